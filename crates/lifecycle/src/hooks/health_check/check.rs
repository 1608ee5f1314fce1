//! One check: the URL filled in, the request, and what its answer means.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{StatusCode, Url, redirect};

use crate::context::Context;
use crate::contract::HookError;
use crate::outcome::shorten;

/// What is escaped in names: everything but letters, digits, and what can't end any part of a URL.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// The longest finding, in bytes; a memo holds three.
const FINDING_BYTES_MAX: usize = 400;

/// What a check found, with a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    Healthy(String),
    Bad(String),
    NoData(String),
    Unreachable(String),
}

impl Finding {
    pub(super) fn text(&self) -> &str {
        match self {
            Finding::Healthy(text) | Finding::Bad(text) | Finding::NoData(text) | Finding::Unreachable(text) => text,
        }
    }
}

/// A client that keeps no connections: each call may run on another worker's runtime, and a connection belongs to the
/// one that it was opened on.
pub(super) fn client() -> Result<reqwest::Client, HookError> {
    reqwest::Client::builder()
        .redirect(redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .no_proxy()
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| HookError::new(format!("no HTTP client: {}", chain(&error))))
}

/// The URL with names filled in. What is filled in is percent-encoded, so that no name can change the URL's meaning.
pub(super) fn fill(template: &str, context: &Context) -> Result<Url, String> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once('{') {
        text.push_str(before);
        let (name, behind) = behind.split_once('}').ok_or("has a brace that is not closed")?;
        let value = match name {
            "store" => context.store.clone(),
            "region" => context.region.clone().unwrap_or_default(),
            "push" => context.push.clone().unwrap_or_default(),
            "version" => context.version.map_or_else(String::new, |version| version.to_string()),
            _ => {
                return Err(format!("has {{{name}}}, where {{region}}, {{store}}, {{version}} and {{push}} can stand"));
            }
        };
        // URL parsers take these for steps in the path even where their dots are escaped.
        if value == "." || value == ".." {
            return Err(format!("can't have {value:?} filled in for {{{name}}}"));
        }
        text.extend(utf8_percent_encode(&value, ESCAPED));
        rest = behind;
    }
    text.push_str(rest);
    let url = Url::parse(&text).map_err(|error| format!("is no URL: {error}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("has the scheme {other}, where http or https was expected")),
    }
}

/// Asks once.
pub(super) async fn ask(client: &reqwest::Client, url: Url, timeout: Duration, no_data: &[u16]) -> Finding {
    let asked = shorten(url.as_str(), FINDING_BYTES_MAX / 2);
    let answer = client.get(url).timeout(timeout).send().await;
    let text = |what: &str| shorten(&format!("{asked} {what}"), FINDING_BYTES_MAX);
    match answer {
        Ok(answer) => {
            let status = answer.status();
            let said = text(&format!("answered {status}"));
            if no_data.contains(&status.as_u16()) {
                Finding::NoData(said)
            } else if is_healthy(status) {
                Finding::Healthy(said)
            } else {
                Finding::Bad(said)
            }
        }
        Err(error) if error.is_timeout() => {
            Finding::Unreachable(text(&format!("did not answer within {} ms", timeout.as_millis())))
        }
        Err(error) => Finding::Unreachable(text(&format!("could not be asked: {}", chain(&error.without_url())))),
    }
}

fn is_healthy(status: StatusCode) -> bool {
    status.is_success()
}

/// An error with what it comes from, since the first one alone seldom says anything.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::Function;

    #[test]
    fn g14_names_are_escaped_and_a_url_keeps_its_meaning() {
        let mut context = Context::new(Function::PostStoreVersionSwap, "a\"} or vector(1) #");
        context.region = Some("eu-west-1".into());
        context.version = Some(7);
        let url = fill("http://app.{region}.example/{version}?store={store}&x=1", &context).unwrap();
        assert_eq!(url.host_str(), Some("app.eu-west-1.example"));
        assert_eq!(url.path(), "/7");
        assert_eq!(url.fragment(), None);
        let pairs: Vec<_> = url.query_pairs().into_owned().collect();
        assert_eq!(pairs, [("store".to_owned(), context.store.clone()), ("x".to_owned(), "1".to_owned())]);
        context.store = "../../admin?x=/y".into();
        let url = fill("http://h/stores/{store}/health", &context).unwrap();
        assert_eq!(url.path().split('/').count(), 4, "{url}");
        context.store = "..".into();
        assert!(fill("http://h/stores/{store}/health", &context).is_err());
    }

    #[test]
    fn g03_a_url_that_is_none_is_refused_with_the_reason() {
        let context = Context::new(Function::PostStoreVersionSwap, "s");
        for (template, part) in [
            ("http://h/{shop}", "{shop}"),
            ("http://h/{store", "not closed"),
            ("h/x", "no URL"),
            ("file:///etc", "scheme file"),
        ] {
            let error = fill(template, &context).unwrap_err();
            assert!(error.contains(part), "{template}: {error}");
        }
    }
}
