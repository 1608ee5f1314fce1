//! What can be wrong with a stored artifact.

use object_store::path::Path as ObjectPath;
use tidegate_api::manifest::Part;

/// Why an artifact could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// There is no complete artifact of this id.
    #[error("artifact {artifact} is not there, or not complete")]
    NotFound {
        /// Its id.
        artifact: String,
    },
    /// Parts are not there, or not of the size that the manifest says.
    #[error("artifact {artifact} is not complete: missing or of another size: {}", parts.join(", "))]
    Missing {
        /// Its id.
        artifact: String,
        /// The parts' names.
        parts: Vec<String>,
    },
    /// A file is not what its digest says. It is never used; copy or build it again.
    #[error("artifact {artifact}: {file} is damaged: its SHA-256 is {found} and should be {expected}")]
    Damaged {
        /// The artifact's id.
        artifact: String,
        /// The file's name.
        file: String,
        /// The SHA-256 that it should have.
        expected: String,
        /// The SHA-256 (or else the size) that it has.
        found: String,
    },
    /// A manifest can't be used.
    #[error("the manifest of artifact {artifact} can't be used: {why}")]
    BadManifest {
        /// The artifact's id.
        artifact: String,
        /// What is wrong with it.
        why: String,
    },
    /// A name that no artifact or part can have.
    #[error("`{name}` is no name of an artifact, a manifest or a part")]
    BadName {
        /// The name.
        name: String,
    },
    /// The object store failed. It may work later.
    #[error("{object}: the object store failed: {}", crate::location::describe(source))]
    Store {
        /// The object.
        object: String,
        /// What the store says.
        source: object_store::Error,
    },
    /// Another store than the one that was meant.
    #[error(
        "{store} is not the installation's artifact store: {why}. All servers and agents of an installation have to \
         reach one store"
    )]
    OtherStore {
        /// What people know the store by.
        store: String,
        /// What tells it from the one that was meant.
        why: String,
    },
    /// A local file could not be written or read.
    #[error("{path}: {}", crate::build::describe_disk_error(source))]
    Disk {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl ArtifactError {
    pub(crate) fn store(object: &ObjectPath, source: object_store::Error) -> Self {
        Self::Store { object: object.to_string(), source }
    }

    pub(crate) fn damaged(artifact: &str, part: &Part, found: String) -> Self {
        Self::Damaged { artifact: artifact.to_owned(), file: part.name.clone(), expected: part.sha256.clone(), found }
    }

    /// Whether a disk is full, here or behind the store.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<std::io::Error>()
                && matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            {
                return true;
            }
            source = error.source();
        }
        false
    }
}
