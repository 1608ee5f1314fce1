//! The file that a token is in.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;

use super::stamp::Stamp;

/// The largest token file, in bytes.
const TOKEN_BYTES_MAX: u64 = 16 * 1024;

/// A file with a token. It is read again whenever it has changed, so that a token can be replaced under a running process.
#[derive(Clone, Debug)]
pub struct TokenFile(Arc<File>);

#[derive(Debug)]
struct File {
    path: PathBuf,
    last: Mutex<Option<(Stamp, Token)>>,
}

/// A token, which is shown to nobody but who asks for it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(HeaderValue);

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token(…)")
    }
}

impl Token {
    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl TokenFile {
    /// A token in this file. It is read when it is first needed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        TokenFile(Arc::new(File { path: path.into(), last: Mutex::new(None) }))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.0.path
    }

    /// Whether a request shows this token. Takes as long for every guess of the same length.
    pub async fn is_shown(&self, headers: &HeaderMap) -> bool {
        let Ok(token) = self.current().await else {
            return false;
        };
        let given = headers.get(AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
        given.ct_eq(token.0.as_bytes()).into()
    }

    /// The token that the file has now.
    pub(super) async fn current(&self) -> Result<Token, String> {
        let unreadable = |why: String| format!("the token in {} can't be read: {why}", self.0.path.display());
        let metadata = tokio::fs::metadata(&self.0.path).await.map_err(|error| unreadable(error.to_string()))?;
        let stamp = Stamp::of(&metadata);
        if let Some((known, token)) = &*self.0.last.lock()
            && *known == stamp
        {
            return Ok(token.clone());
        }
        if metadata.len() > TOKEN_BYTES_MAX {
            return Err(unreadable(format!(
                "it has {} bytes, and a token has {TOKEN_BYTES_MAX} at most",
                metadata.len()
            )));
        }
        let text = tokio::fs::read_to_string(&self.0.path).await.map_err(|error| unreadable(error.to_string()))?;
        let token = text.trim();
        let header = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| !token.is_empty());
        let mut header =
            header.ok_or_else(|| unreadable("it is empty, or has characters that no token has".to_owned()))?;
        header.set_sensitive(true);
        let token = Token(header);
        *self.0.last.lock() = Some((stamp, token.clone()));
        Ok(token)
    }

    /// Whether the file has another token by now.
    pub(super) async fn is_newer_than(&self, token: Option<&Token>) -> bool {
        self.current().await.is_ok_and(|current| Some(&current) != token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_read_again_when_its_file_was_replaced_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let file = TokenFile::new(&path);
        assert!(file.current().await.unwrap_err().contains("token"));
        std::fs::write(&path, "first\n").unwrap();
        let first = file.current().await.unwrap();
        assert_eq!(first.header().to_str().unwrap(), "Bearer first");
        let next = folder.path().join("next");
        std::fs::write(&next, "second").unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert!(file.is_newer_than(Some(&first)).await);
        let second = file.current().await.unwrap();
        assert_eq!(second.header().to_str().unwrap(), "Bearer second");
        assert!(!format!("{file:?} {second:?}").contains("second"));
        for bad in ["", "\n", "two\nlines"] {
            std::fs::write(&path, bad).unwrap();
            assert!(file.current().await.is_err(), "{bad:?}");
        }
    }
}
