//! What a store's error means, in words for people.
//!
//! The store's own text is an HTTP answer that is long, may quote what was signed, and does not say what to do.

use std::error::Error as _;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

/// The longest word that is taken over from an answer.
const CODE_CHARACTERS_MAX: usize = 64;

/// The longest text that is taken over where nothing better is known.
const TEXT_CHARACTERS_MAX: usize = 400;

/// Where a machine that has a role is asked for its credentials.
const MACHINE_ROLES_AT: &str = "169.254.169.254";

/// What happened, and what to do where that is known.
pub(crate) fn describe(error: &Error) -> String {
    if is_without_credentials(error) {
        return "there are no credentials: none were found in access_key_id and secret_access_key of [artifacts], \
                AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile that [artifacts] or AWS_PROFILE names (or `default`) \
                in ~/.aws/credentials and ~/.aws/config, AWS_WEB_IDENTITY_TOKEN_FILE with AWS_ROLE_ARN, and the container's \
                role; and this machine, which was asked last, has no role that gives any. Set one of these"
            .to_owned();
    }
    let code = code_of(error);
    let quoted = code.as_deref().map_or(String::new(), |code| format!(" ({code})"));
    match (error, code.as_deref()) {
        (_, Some("NoSuchBucket")) => {
            format!("there is no such bucket{quoted}; create it, or mend `url` of [artifacts]")
        }
        (_, Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException")) => {
            format!("the bucket is in another region{quoted}; mend `region` of [artifacts]")
        }
        (_, Some("RequestTimeTooSkewed")) => {
            format!("the clocks of this machine and the store differ too much{quoted}; set this machine's clock")
        }
        (_, Some("ExpiredToken" | "TokenRefreshRequired")) => {
            format!("the credentials have run out{quoted}; renew them")
        }
        (Error::Unauthenticated { .. }, _)
        | (_, Some("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "NotSignedUp")) => {
            format!(
                "it does not know these credentials{quoted}; `artifacts.credentials` of `tidegate config show` says \
                 which are used"
            )
        }
        (Error::PermissionDenied { .. }, _) => format!(
            "it does not allow this with these credentials{quoted}; they need to list the bucket, and to get, put and \
             delete objects below the prefix"
        ),
        (Error::NotFound { .. }, _) => format!("it is not there{quoted}"),
        _ => transport(error).unwrap_or_else(|| plain(&error.to_string())),
    }
}

/// Whether what failed was to ask the machine for its role's credentials, which is what is left where nothing else gave any.
fn is_without_credentials(error: &Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.to_string().contains(MACHINE_ROLES_AT) {
            return true;
        }
        source = error.source();
    }
    false
}

/// Whether not just an object but the whole bucket is not there.
pub(crate) fn is_no_bucket(error: &Error) -> bool {
    code_of(error).as_deref() == Some("NoSuchBucket")
}

/// Whether an upload can't be finished, now or later: it is not there, or its chunks are not those.
pub(crate) fn is_unfit_upload(error: &Error) -> bool {
    const CODES: [&str; 6] =
        ["NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall", "MalformedXML", "InvalidArgument"];
    code_of(error).is_some_and(|code| CODES.contains(&code.as_str()))
}

/// The word in `<Code>` of the store's answer.
fn code_of(error: &Error) -> Option<String> {
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if let Some((_, rest)) = text.split_once("<Code>")
            && let Some((code, _)) = rest.split_once("</Code>")
            && code.len() <= CODE_CHARACTERS_MAX
            && code.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return Some(code.to_owned());
        }
        source = error.source();
    }
    None
}

fn transport(error: &Error) -> Option<String> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return Some(match http.kind() {
                HttpErrorKind::Timeout => "it did not answer in time".to_owned(),
                HttpErrorKind::Connect => format!("it can't be reached: {}", plain(&innermost(http))),
                _ => format!("the connection broke: {}", plain(&innermost(http))),
            });
        }
        source = error.source();
    }
    None
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

/// One line of bounded length, without what may have been signed.
fn plain(text: &str) -> String {
    let text = text.split("<?xml").next().unwrap_or_default();
    let text = text.split("<Error>").next().unwrap_or_default();
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > TEXT_CHARACTERS_MAX {
        line = line.chars().take(TEXT_CHARACTERS_MAX).chain("…".chars()).collect();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(body: &str) -> Error {
        Error::PermissionDenied { path: "x".to_owned(), source: body.to_owned().into() }
    }

    #[test]
    fn an_answer_is_told_in_one_line_with_what_to_do_and_without_what_was_signed() {
        let body = "403: <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code>\
                    <StringToSign>hush</StringToSign></Error>";
        let text = describe(&denied(body));
        assert!(text.contains("does not know these credentials (SignatureDoesNotMatch)"), "{text}");
        let other = Error::Generic { store: "S3", source: format!("500 {body}").into() };
        let text = [text, describe(&denied("403")), describe(&other)].join("\n");
        assert!(!text.contains("hush") && !text.contains('<'), "{text}");
    }

    #[test]
    fn where_nothing_gave_credentials_it_is_said_what_was_tried() {
        let asked = "Error performing PUT http://169.254.169.254/latest/api/token in 1.2s, after 3 retries";
        let text = describe(&Error::Generic { store: "S3", source: asked.into() });
        for tried in
            ["access_key_id", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "container", "machine"]
        {
            assert!(text.contains(tried), "{tried}: {text}");
        }
        assert!(!text.contains("169.254"), "{text}");
    }

    #[test]
    fn words_that_are_no_codes_are_not_taken_over() {
        assert_eq!(code_of(&denied("<Code>a b</Code>")), None);
        assert_eq!(code_of(&denied("<Code>NoSuchBucket</Code>")).as_deref(), Some("NoSuchBucket"));
    }
}
