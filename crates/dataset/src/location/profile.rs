//! Profiles of the AWS command line: `~/.aws/credentials` and `~/.aws/config`.
//!
//! ```text
//! [default]                     in both files
//! aws_access_key_id = …
//! [profile other]               in `config`; in `credentials` just `[other]`
//! region = eu-central-1
//! s3 =
//!     addressing_style = path   indented: belongs to `s3`
//! ```

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What both files say of one profile.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Profile {
    values: BTreeMap<String, String>,
}

// By hand, so that no secret is ever printed.
impl std::fmt::Debug for Profile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.values.keys()).finish()
    }
}

/// Ways to credentials that a profile may name and that are not followed.
const ELSEWHERE: [&str; 6] =
    ["role_arn", "credential_process", "sso_session", "sso_start_url", "web_identity_token_file", "login_session"];

impl Profile {
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The setting by which this profile leads to credentials that are kept elsewhere.
    pub(super) fn leads_elsewhere(&self) -> Option<&'static str> {
        ELSEWHERE.into_iter().find(|key| self.get(key).is_some())
    }
}

/// Reads a profile from both files; what stands in `credentials` wins. `None` if neither has it. A file that is not
/// there is an empty one.
///
/// # Errors
/// Which file can't be read, and why.
pub(super) fn read(credentials: Option<&Path>, config: Option<&Path>, name: &str) -> Result<Option<Profile>, String> {
    let mut found = None;
    for (path, is_config) in [(config, true), (credentials, false)] {
        let Some(text) = path.map(read_file).transpose()?.flatten() else { continue };
        if let Some(values) = section(&text, name, is_config) {
            found.get_or_insert_with(Profile::default).values.extend(values);
        }
    }
    Ok(found)
}

fn read_file(path: &Path) -> Result<Option<String>, String> {
    let failed = |why: String| format!("{} can't be read: {why}", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("it has over {FILE_BYTES_MAX} bytes")));
    }
    Ok(Some(text))
}

fn section(text: &str, name: &str, is_config: bool) -> Option<BTreeMap<String, String>> {
    let mut found: Option<BTreeMap<String, String>> = None;
    let mut is_ours = false;
    for line in text.lines() {
        let is_indented = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            let header = header.split(']').next().unwrap_or_default().trim();
            is_ours = is_header_of(header, name, is_config);
            if is_ours {
                found.get_or_insert_default();
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        if is_ours && !is_indented {
            let values = found.get_or_insert_default();
            values.insert(key.trim().to_ascii_lowercase(), without_comment(value).to_owned());
        }
    }
    found
}

fn is_header_of(header: &str, name: &str, is_config: bool) -> bool {
    let named = header.strip_prefix("profile").filter(|rest| rest.starts_with([' ', '\t']));
    match named {
        Some(rest) if is_config => rest.trim().trim_matches('"') == name,
        _ => header == name && (!is_config || name == "default"),
    }
}

/// A comment within a line begins with a space and `#` or `;`.
fn without_comment(value: &str) -> &str {
    let end = value.match_indices(['#', ';']).map(|(at, _)| at).find(|&at| value[..at].ends_with([' ', '\t']));
    value[..end.unwrap_or(value.len())].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_texts(credentials: &str, config: &str, name: &str) -> Option<Profile> {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("credentials"), folder.path().join("config"));
        std::fs::write(&a, credentials).unwrap();
        std::fs::write(&b, config).unwrap();
        read(Some(&a), Some(&b), name).unwrap()
    }

    #[test]
    fn a_profile_is_put_together_from_both_files_and_credentials_win() {
        let credentials = "# mine\n[default]\naws_access_key_id = A ; old\naws_secret_access_key=S#=c\n\
                           [other]\naws_access_key_id = B\n";
        let config = "[default]\nregion = eu-west-1\naws_access_key_id = Z\ns3 =\n  endpoint_url = inner\n\
                      [profile other]\nregion=us-west-2 # there\n[other]\nregion = not this\n";
        let default = read_texts(credentials, config, "default").unwrap();
        assert_eq!(default.get("aws_access_key_id"), Some("A"));
        assert_eq!(default.get("aws_secret_access_key"), Some("S#=c"));
        assert_eq!(default.get("region"), Some("eu-west-1"));
        assert_eq!((default.get("endpoint_url"), default.get("s3")), (None, None));
        let other = read_texts(credentials, config, "other").unwrap();
        assert_eq!((other.get("aws_access_key_id"), other.get("region")), (Some("B"), Some("us-west-2")));
        assert_eq!(read_texts(credentials, config, "third"), None);
        assert_eq!(read(None, Some("/nowhere/at/all".as_ref()), "default"), Ok(None));
    }

    #[test]
    fn a_profile_that_leads_elsewhere_says_by_what() {
        let profile = read_texts("", "[profile x]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile=y\n", "x").unwrap();
        assert_eq!(profile.leads_elsewhere(), Some("role_arn"));
    }

    #[test]
    fn no_secret_is_printed() {
        let profile = read_texts("[default]\naws_secret_access_key = hush\n", "", "default").unwrap();
        assert!(!format!("{profile:?}").contains("hush"));
    }

    #[test]
    fn files_that_are_too_large_or_no_text_are_refused_naming_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        for content in [vec![b'#'; FILE_BYTES_MAX as usize + 1], vec![0xff, 0xfe]] {
            std::fs::write(&path, content).unwrap();
            let error = read(Some(&path), None, "default").unwrap_err();
            assert!(error.contains("credentials can't be read"), "{error}");
        }
    }
}
