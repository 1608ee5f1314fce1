//! `tidegate server`, `region`, `config` and `queue`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct ServerArguments {
    /// Where the server keeps everything.
    #[arg(long, env = "TIDEGATE_DATA", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where it listens [default: as the configuration says, or 127.0.0.1:7600]. Beyond loopback it needs [tls] in its
    /// configuration, and asks everybody for a token.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where other servers reach it: reads of its regions that come to them go there [default: as the configuration says, or
    /// where it listens, if that is one address].
    #[arg(long, env = "TIDEGATE_ADVERTISE", value_name = "URL")]
    pub(crate) advertise: Option<String>,
    /// A PostgreSQL that several servers share, for their state: `postgres://user@host/database` [default: as the
    /// configuration says, or a file below --data].
    #[arg(long, env = "TIDEGATE_DATABASE", value_name = "URL", hide_env_values = true)]
    pub(crate) database: Option<String>,
    /// End with an error if that database can't be reached at the start; without this the server answers that it is not
    /// ready, and starts once the database answers.
    #[arg(long)]
    pub(crate) fail_fast: bool,
    /// Where artifacts are kept: `s3://bucket/prefix` or `file:///a/folder` [default: as the configuration says, or a
    /// folder below --data]. All servers have to reach one store.
    #[arg(long, env = "TIDEGATE_ARTIFACTS", value_name = "URL")]
    pub(crate) artifacts: Option<String>,
    /// Make an artifact store that bears no mark the installation's, for this start: after a bucket was emptied or a folder
    /// lost. The mark is left anew, and what is missing is told. Refused for a store with another installation's mark.
    #[arg(long)]
    pub(crate) adopt_artifact_store: bool,
    /// Its configuration (TOML): regions, limits, `[artifacts]` and `[hooks]`.
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) exposure: ExposureArguments,
}

/// What a server beyond loopback has to be told by name.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct ExposureArguments {
    /// Listen beyond loopback without TLS: something in front of the server speaks it, or tokens travel in the clear.
    #[arg(long)]
    pub(crate) allow_plain_http: bool,
    /// Listen beyond loopback without authentication: whoever reaches the server may do anything.
    #[arg(long)]
    pub(crate) allow_anyone: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegionCommand {
    /// All regions: availability, who hosts them, what they serve.
    List,
    /// One region, whole: who hosts it, its nodes, and each store it has to do with.
    Show {
        /// The region.
        region: String,
    },
    /// Add a region, or change its settings.
    Add {
        /// The region.
        region: String,
        /// How many serving nodes it has.
        #[arg(long, default_value_t = 2)]
        nodes: u32,
        /// How many of them have to hold a version before it counts as ingested [default: more than half].
        #[arg(long)]
        enough: Option<u32>,
        /// It is hosted by a server, from the server's next start on, and not by an agent of its own.
        #[arg(long)]
        by_server: bool,
    },
    /// Remove a region. Whoever hosts it goes on serving what it has.
    Remove {
        /// The region.
        region: String,
        /// Why, for the record.
        #[arg(long)]
        reason: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Say that pushes leave a region out (--unavailable), or that they go there again (--available). It serves what it has
    /// all the while.
    Mark {
        /// The region.
        region: String,
        /// Pushes go there again; what it missed is brought to it.
        #[arg(long, conflicts_with = "unavailable", required_unless_present = "unavailable")]
        available: bool,
        /// Pushes leave it out, from now on; needs a --reason.
        #[arg(long, requires = "reason")]
        unavailable: bool,
        /// Why, for the record.
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Publish the `[hooks]` of a file for all servers.
    Apply {
        /// The file (TOML).
        file: PathBuf,
        /// Do not ask where hooks stop being configured by it.
        #[arg(long, short)]
        yes: bool,
    },
    /// What is in force, and where it came from.
    Show,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterArguments {
    #[command(subcommand)]
    pub(crate) command: Option<ClusterCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Go on from a database that was put back to an older state behind the servers' backs (`ready` says so). What came
    /// after that state is lost. One server is told; the others follow.
    ConfirmSetBack {
        /// Why, for the record.
        #[arg(long)]
        reason: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Requests that are not done, oldest first.
    List {
        /// Of this cluster hook alone.
        #[arg(long)]
        hook: Option<String>,
        /// In this state alone.
        #[arg(long)]
        state: Option<String>,
    },
    /// One request, whole.
    Show {
        /// The request, as `queue list` prints it.
        request: String,
    },
    /// Run a dead letter again, its attempts counted afresh.
    Retry {
        /// The request.
        request: String,
    },
    /// Let go of a request for good.
    Discard {
        /// The request.
        request: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}
