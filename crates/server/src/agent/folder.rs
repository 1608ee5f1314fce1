//! The data folder of an agent or a node: whose it is, and small files that are nobody else's business.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use axum::http::{HeaderMap, header};

use super::AgentStartError;

/// What an agent's process holds a lock on.
pub(crate) const LOCK_FILE: &str = "agent.lock";

/// Makes the data folder, for its owner alone, and takes it for this process.
pub(crate) fn open_data(path: &Path, lock: &str) -> Result<File, AgentStartError> {
    let failed = |path: &Path, source: io::Error| AgentStartError::Data { path: path.to_path_buf(), source };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|error| failed(path, error))?;
    let lock_path = path.join(lock);
    let lock = File::create(&lock_path).map_err(|error| failed(&lock_path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(AgentStartError::DataInUse { path: path.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(failed(&lock_path, error)),
    }
}

/// Replaces a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    let beside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

/// Whether a request shows this secret.
pub(crate) fn has_bearer(headers: &HeaderMap, secret: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
    is_equal(given.as_bytes(), secret.as_bytes())
}

/// Takes as long for every guess of the same length.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_compared_as_a_whole() {
        assert!(is_equal(b"abc", b"abc"));
        for other in [&b"abd"[..], b"ab", b"abcd", b""] {
            assert!(!is_equal(other, b"abc"));
        }
    }
}
