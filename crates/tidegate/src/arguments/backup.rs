//! `tidegate backup` and `restore`.

use std::path::PathBuf;

use clap::Args;

/// Which installation: named as for its servers.
#[derive(Debug, Args)]
pub(crate) struct PlaceArguments {
    /// The servers' data folder.
    #[arg(long, env = "TIDEGATE_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The PostgreSQL that the servers share [default: as the configuration says, or the file below --data].
    #[arg(long, env = "TIDEGATE_DATABASE", value_name = "URL", hide_env_values = true)]
    pub(crate) database: Option<String>,
    /// Where artifacts are kept [default: as the configuration says, or a folder below --data].
    #[arg(long, env = "TIDEGATE_ARTIFACTS", value_name = "URL")]
    pub(crate) artifacts: Option<String>,
    /// The servers' configuration: `[server]` and `[artifacts]` of it.
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BackupArguments {
    /// The file to write. It must not be there yet.
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    #[command(flatten)]
    pub(crate) place: PlaceArguments,
    /// Copy the artifacts too, into a folder beside the file: its name with `.artifacts` after it. Without this the backup
    /// names them.
    #[arg(long)]
    pub(crate) with_artifacts: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    /// The backup.
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,
    #[command(flatten)]
    pub(crate) place: PlaceArguments,
    /// A folder with the backup's artifacts [default: the one beside the backup, if there is one].
    #[arg(long, value_name = "DIR")]
    pub(crate) artifacts_from: Option<PathBuf>,
    /// Replace the state of this other installation, which the database holds; without it a restore replaces its own
    /// installation's alone, whatever --yes says.
    #[arg(long, value_name = "ID")]
    pub(crate) replace_installation: Option<String>,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}
