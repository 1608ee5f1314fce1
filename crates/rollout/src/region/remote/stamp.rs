//! Whether a file was replaced.

use std::fs::Metadata;
use std::time::SystemTime;

/// What is another one after a file was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    #[cfg(unix)]
    file: u64,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Stamp {
            modified: metadata.modified().ok(),
            bytes: metadata.len(),
            #[cfg(unix)]
            file: std::os::unix::fs::MetadataExt::ino(metadata),
        }
    }
}
