//! Why a server did not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tidegate_dataset::artifact::ArtifactError;
use tidegate_dataset::location::LocationError;
use tidegate_lifecycle::Refusal;
use tidegate_rollout::OperationError;
use tidegate_rollout::region::host::HostError;
use tidegate_rollout::region::remote::RemoteSetupError;
use tidegate_state::{DriverError, OpenError, RegisterError};

use crate::access;
use crate::config::ConfigError;
use crate::data_folder::FolderLockError;
use crate::http::tls::TlsError;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The server would be open, or in the clear, beyond loopback.
    #[error("{0}")]
    Exposed(access::Exposed),
    /// The certificate can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address can't be listened on.
    #[error("the server can't listen on {address}: {source}; another one may be running")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Another server uses the data folder.
    #[error("another server is running on {}; stop it, or choose another folder", path.display())]
    DataInUse {
        /// The folder.
        path: PathBuf,
    },
    /// The data folder can't be used.
    #[error("the data folder {} can't be used: {source}", path.display())]
    Data {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file of its history can't be written.
    #[error("the history file {} can't be written: {source}; give `server.history_file` another path, or leave it out", path.display())]
    HistoryFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The hooks configuration is refused, and none is published that could be gated by.
    #[error("{}: {}. {} {}", .0.what, .0.why, .0.consequences, .0.countermeasures)]
    Hooks(Refusal),
    /// The database can't be opened.
    #[error("the database can't be opened: {0}")]
    Database(#[from] DriverError),
    /// The state can't be loaded.
    #[error("the state can't be loaded: {0}")]
    State(#[from] OpenError),
    /// The artifact store is described in a way that can't be used, or its credentials can't.
    #[error(transparent)]
    ArtifactsDescribed(#[from] LocationError),
    /// The artifact store does not do what it has to.
    #[error("the artifact store {store} can't be used: {source}")]
    Artifacts {
        /// What people know it by.
        store: String,
        /// What is wrong with it.
        source: ArtifactError,
    },
    /// The artifact store is not the one that the installation's other servers use.
    #[error(
        "this server's artifact store is not the installation's: {store} was given to it, and {why}; the installation's \
         was called {known} when it was set up"
    )]
    OtherStore {
        /// What people know the given store by.
        store: String,
        /// What tells it from the right one.
        why: String,
        /// What the right one was called by the server that first used it.
        known: String,
    },
    /// The artifact store is to be adopted, and bears the mark of another installation.
    #[error(
        "the artifact store {store} is not adopted: it bears a mark that is not this installation's (probe/{marks})"
    )]
    AnothersStore {
        /// What people know the store by.
        store: String,
        /// The marks that it bears.
        marks: String,
    },
    /// Another server on the database has the name.
    #[error(
        "another server on this database is called {name} and lives (id {id}); operators and the others tell servers apart \
         by their names"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The other's id in the cluster.
        id: String,
    },
    /// The certificates by which it knows others can't be used.
    #[error(transparent)]
    Trusted(#[from] RemoteSetupError),
    /// A region can't be registered.
    #[error("a region can't be registered: {0}")]
    Register(#[from] OperationError),
    /// A region can't be started.
    #[error("a region can't be started: {0}")]
    Region(#[from] HostError),
    /// A cluster hook can't be registered.
    #[error("a cluster hook can't be registered: {0}")]
    ClusterHook(#[from] RegisterError),
    /// The state could not be written.
    #[error("the state could not be prepared: {0}")]
    Prepare(String),
}

impl From<FolderLockError> for StartError {
    fn from(error: FolderLockError) -> Self {
        match error {
            FolderLockError::Held { path } => StartError::DataInUse { path },
            FolderLockError::Unusable { path, source } => StartError::Data { path, source },
        }
    }
}
