//! The token that a client shows.

use std::fmt;
use std::path::Path;

use reqwest::header::HeaderValue;

use crate::error::Error;

/// The largest file that is read for a token, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024;

/// What a client proves itself with, `tg_<id>_<secret>`. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

impl Token {
    /// A token from its text; what is around it (a line's end) does not matter.
    ///
    /// # Errors
    /// [`Error::Local`] if it is empty, or has in it what no token has.
    pub fn new(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let is_text = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let value = is_text.then(|| HeaderValue::from_str(&format!("Bearer {text}")).ok()).flatten();
        let mut value = value.ok_or_else(|| Error::Local {
            what: "the token can't be used".to_owned(),
            reason: "it is empty, or has blanks or other characters in it that no token has".to_owned(),
        })?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// Reads a token from a file that has nothing else in it.
    ///
    /// # Errors
    /// [`Error::Local`] if the file can't be read, or has no token in it.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed =
            |reason: String| Error::Local { what: format!("the token in {} can't be used", path.display()), reason };
        let length = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
        if length > FILE_BYTES_MAX {
            return Err(failed(format!("the file has {length} bytes, and a token is shorter than {FILE_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        Self::new(&text).map_err(|error| match error {
            Error::Local { reason, .. } => failed(reason),
            other => other,
        })
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_without_what_is_around_it_and_never_printed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "tg_1_2\n").unwrap();
        let token = Token::read(&path).unwrap();
        assert_eq!(token, Token::new(" tg_1_2 ").unwrap());
        assert!(!format!("{token:?} {:?}", token.header()).contains("tg_1_2"));
    }

    #[test]
    fn what_is_no_token_is_refused_naming_the_file_and_not_its_content() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [("empty", "\n".to_owned()), ("two", "a b".to_owned()), ("long", "x".repeat(5_000))] {
            let path = folder.path().join(name);
            std::fs::write(&path, &content).unwrap();
            let error = Token::read(&path).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert!(content.trim().is_empty() || !error.contains(content.trim()), "{error}");
        }
        assert!(Token::read(&folder.path().join("absent")).is_err());
    }
}
