//! What a server remembers of the log over a restart: the highest revision that it has applied, with its epoch, in a small
//! file of its own. A store whose head is below it, in the same epoch, was put back while the server was away.
//!
//! An epoch is random and begins with its store, so it also says which installation it is of.
//!
//! The file is written about once a second while something is applied, and when the state is closed. A server that dies has
//! forgotten what it applied last; then only what lies further back than that is noticed.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Core;
use super::set_back::SetBack;
use crate::error::OpenError;
use crate::revision::{Epoch, Revision};

/// How often the file is written at most.
const EVERY: Duration = Duration::from_secs(1);

/// What is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) epoch: Epoch,
    pub(super) revision: Revision,
    /// The store was found below it, and nobody has confirmed that. It holds for the whole epoch: servers that know of no
    /// higher head may have gone on, and past it.
    #[serde(default)]
    pub(super) set_back: bool,
}

impl Seen {
    /// What follows for a store that is at this head.
    pub(super) fn against(self, epoch: Epoch, head: Revision) -> Option<SetBack> {
        let is_lower = self.epoch == epoch && (self.set_back || head < self.revision);
        is_lower.then_some(SetBack { epoch, head, seen: self.revision })
    }
}

/// Reads the file; none if there is none yet.
///
/// One that can't be read keeps the state from opening: to go on without it would take the guard away unseen.
pub(super) async fn read(file: &Path) -> Result<Option<Seen>, OpenError> {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    });
    read.await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|error| OpenError::Seen { file: file.to_owned(), reason: error.to_string() })
}

/// Replaces the file in one step: whoever reads it finds all of the old one or all of the new one.
fn write(file: &Path, seen: &Seen) -> io::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut fresh = std::fs::File::create(&beside)?;
    fresh.write_all(&serde_json::to_vec(seen)?)?;
    fresh.sync_data()?;
    std::fs::rename(&beside, file)
}

/// Keeps the file up to date until the state is closed, and once more then.
pub(super) async fn run(core: Arc<Core>, file: PathBuf) {
    let mut applied = core.applied.subscribe();
    let mut kept = None;
    let mut failing = false;
    loop {
        // Before what is kept is looked up: what comes after it is for the next round.
        applied.mark_unchanged();
        let is_last = core.stop.is_cancelled();
        let seen = core.seen();
        if kept != Some(seen) {
            let path = file.clone();
            let written = tokio::task::spawn_blocking(move || write(&path, &seen)).await;
            match written.map_err(io::Error::other).flatten() {
                Ok(()) => {
                    kept = Some(seen);
                    failing = false;
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(
                            server = %core.server, file = %file.display(), %error,
                            "how far the log was seen can't be kept; a store that is put back now may not be noticed after \
                             a restart"
                        );
                    }
                    failing = true;
                }
            }
        }
        if is_last {
            return;
        }
        // A write that failed is tried again without anything new.
        if !failing {
            tokio::select! {
                biased;
                () = core.stop.cancelled() => continue,
                () = core.set_back_noticed.notified() => continue,
                // Ends with the core at the latest.
                _ = applied.changed() => {}
            }
        }
        tokio::select! {
            biased;
            () = core.stop.cancelled() => {}
            () = core.set_back_noticed.notified() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const HERE: Epoch = Epoch(Uuid::from_u128(1));
    const ELSEWHERE: Epoch = Epoch(Uuid::from_u128(2));

    #[test]
    fn d37_given_what_was_seen_when_the_head_is_lower_in_the_same_epoch_then_the_store_was_put_back() {
        let seen = Seen { epoch: HERE, revision: Revision(9), set_back: false };
        let found = SetBack { epoch: HERE, head: Revision(8), seen: Revision(9) };
        assert_eq!(seen.against(HERE, Revision(8)), Some(found));
        for (epoch, head) in [(HERE, 9), (HERE, 10), (ELSEWHERE, 8)] {
            assert_eq!(seen.against(epoch, Revision(head)), None, "{epoch} at {head}");
        }
        // Others may have gone on past it since: it is as mixed as before.
        let noticed = Seen { set_back: true, ..seen };
        assert_eq!(noticed.against(HERE, Revision(12)).map(|found| found.seen), Some(Revision(9)));
        assert_eq!(noticed.against(ELSEWHERE, Revision(3)), None);
    }

    #[tokio::test]
    async fn d37_given_a_file_when_it_is_replaced_or_damaged_then_it_reads_as_written_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("seen.json");
        assert_eq!(read(&file).await.unwrap(), None);
        for revision in [1, 2] {
            let seen = Seen { epoch: HERE, revision: Revision(revision), set_back: revision == 2 };
            write(&file, &seen).unwrap();
            assert_eq!(read(&file).await.unwrap(), Some(seen));
        }
        std::fs::write(&file, "{\"epoch\":").unwrap();
        let refused = read(&file).await.unwrap_err().to_string();
        assert!(refused.contains("seen.json") && refused.contains("remove"), "{refused}");
    }
}
