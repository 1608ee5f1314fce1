//! What a server is started with.

use std::net::SocketAddr;
use std::path::PathBuf;

use tidegate_dataset::location::Environment;
use tidegate_lifecycle::Registry;

use crate::config::ConfigFile;

/// Where a server listens if nobody says.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7600";

/// The lock of the data folder, which a server holds while it runs.
pub(crate) const LOCK: &str = "server.lock";

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder that everything is kept in. Made if it is not there.
    pub data: PathBuf,
    /// A PostgreSQL that servers share (`postgres://…`), for their state. Absent: as the file says, or a file of this
    /// server's own below the data folder.
    pub database: Option<String>,
    /// The schema of that database that the installation is in. Absent: as the file says, or `tidegate`.
    pub schema: Option<String>,
    /// End if the database that is shared can't be reached, where the server would wait for it, answering that it is not
    /// ready.
    pub fail_fast: bool,
    /// Where to listen. Beyond loopback TLS and authentication are needed, unless `[access]` says
    /// otherwise by name. Port 0: any free one. Absent: as the file says, or [`DEFAULT_LISTEN`].
    pub listen: Option<SocketAddr>,
    /// Where other servers reach it. Absent: as the file says, or where it listens, unless that is all addresses.
    pub advertise: Option<String>,
    /// The configuration.
    pub config: ConfigFile,
    /// Where the configuration came from, for people.
    pub config_path: Option<PathBuf>,
    /// Where artifacts are kept, `s3://bucket/prefix` or `file:///a/folder`. Absent: as the file says, or a folder below
    /// [`Options::data`].
    pub artifacts: Option<String>,
    /// Make an artifact store that bears no mark the installation's: after a bucket was emptied or a folder lost.
    pub adopt_artifact_store: bool,
    /// The variables that credentials and other settings of a bucket are taken from.
    pub environment: Environment,
    /// The hooks that this build has.
    pub registry: Registry,
}

impl Options {
    /// Options for a data folder, with no configuration file and the hooks that are shipped.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            database: None,
            schema: None,
            fail_fast: false,
            listen: None,
            advertise: None,
            config: ConfigFile::default(),
            config_path: None,
            artifacts: None,
            adopt_artifact_store: false,
            environment: Environment::of_process(),
            registry: Registry::shipped(),
        }
    }
}
