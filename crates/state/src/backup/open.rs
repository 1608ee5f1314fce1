//! A backup as a state in memory, for what has to be looked at and changed before it is restored.

use super::{Backup, BackupHeader};
use crate::driver::memory::MemoryStore;
use crate::error::OpenError;
use crate::state::{State, StateOptions};

/// A backup that can be read and written like any other state.
pub struct OpenBackup {
    header: BackupHeader,
    store: MemoryStore,
    state: State,
}

impl std::fmt::Debug for OpenBackup {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("OpenBackup").field("header", &self.header).finish_non_exhaustive()
    }
}

impl Backup {
    /// Opens it in memory. The file is not touched by what is written there.
    ///
    /// # Errors
    /// [`OpenError`]: the log does not complete the entities, or records are declared otherwise than by this build.
    pub async fn open(self, mut options: StateOptions) -> Result<OpenBackup, OpenError> {
        let Backup { header, state, kinds } = self;
        let store = MemoryStore::of_backup(state, kinds);
        // All of it is to be restored, also what a server would let go of by now.
        options.compact_every = u64::MAX;
        let state = State::open(store.driver(), options).await?;
        Ok(OpenBackup { header, store, state })
    }
}

impl OpenBackup {
    /// What the file says of itself.
    #[must_use]
    pub fn header(&self) -> &BackupHeader {
        &self.header
    }

    /// What is in it.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Closes it. What is restored then has all that was written meanwhile.
    pub async fn close(self) -> Backup {
        self.state.close().await;
        let (state, kinds) = self.store.to_backup();
        Backup { header: self.header, state, kinds }
    }
}
