//! `tidegate agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::parse_duration;

/// What an agent or a node speaks, and whom it answers.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServiceArguments {
    /// Its certificate and those that it leads to its root by (PEM): it speaks TLS then. Read again when it changes.
    #[arg(long, env = "TIDEGATE_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, env = "TIDEGATE_TLS_KEY", value_name = "FILE", requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Ask nobody who reads for a token, though it has one itself; or listen beyond loopback without one: whoever reaches it
    /// may read everything.
    #[arg(long)]
    pub(crate) allow_anyone: bool,
    /// Listen beyond loopback without TLS: something in front of it speaks it, or tokens travel in the clear.
    #[arg(long)]
    pub(crate) allow_plain_http: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArguments {
    #[command(subcommand)]
    pub(crate) command: Option<AgentCommand>,
    #[command(flatten)]
    pub(crate) run: Option<AgentRunArguments>,
    // Not within `run`: optional arguments that have others flattened into them are never seen to be given.
    #[command(flatten)]
    pub(crate) service: ServiceArguments,
}

#[derive(Debug, Args)]
pub(crate) struct AgentRunArguments {
    /// The region that it hosts.
    #[arg(long, env = "TIDEGATE_REGION", value_name = "NAME", required = true)]
    pub(crate) region: String,
    /// Addresses of control-plane servers; the next one is tried when one fails.
    #[arg(
        long = "control-plane",
        env = "TIDEGATE_CONTROL_PLANE",
        value_name = "URL[,URL…]",
        value_delimiter = ',',
        required = true
    )]
    pub(crate) control_planes: Vec<String>,
    /// A file with the agent's token. It is read again when it changes. With one it asks for tokens, too: nodes for the
    /// region's, and who reads for one that may read at a server.
    #[arg(long, env = "TIDEGATE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust beside those of the machine. Read again when the file changes.
    #[arg(long, env = "TIDEGATE_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Its limits (TOML): `[server.limits]` and `[access.limits]`, as of a server.
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the agent keeps everything.
    #[arg(long, env = "TIDEGATE_DATA", value_name = "DIR", required = true)]
    pub(crate) data: PathBuf,
    /// Where it answers reads.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS", default_value = tidegate_server::agent::DEFAULT_LISTEN)]
    pub(crate) listen: SocketAddr,
    /// Where others reach it [default: where it listens, if that is one address].
    #[arg(long, env = "TIDEGATE_ADVERTISE", value_name = "URL")]
    pub(crate) advertise: Option<String>,
    /// What people call it [default: the machine's name].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// How many serving nodes it has within its process.
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pub(crate) nodes: u32,
    /// How long after it was last heard of another agent may host the region.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(crate) lease: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Break glass: serve this version in this region, whatever the control plane says, until the pin is lifted.
    Pin {
        /// The store.
        store: String,
        /// The version. The region has to hold it.
        #[arg(long)]
        version: u64,
        /// Why, for the record.
        #[arg(long)]
        reason: String,
        /// The agent's folder, on this machine.
        #[arg(long, env = "TIDEGATE_DATA", value_name = "DIR")]
        data: PathBuf,
    },
    /// Lift a pin: the region does what its assignment says.
    Unpin {
        /// The store.
        store: String,
        /// The agent's folder, on this machine.
        #[arg(long, env = "TIDEGATE_DATA", value_name = "DIR")]
        data: PathBuf,
    },
    /// Let go of a node that is gone for good: it is neither commanded nor counted any more. (One that is stopped, and will be
    /// started again, stays.)
    RemoveNode {
        /// The node.
        node: String,
        /// Why, for the record.
        #[arg(long)]
        reason: String,
        /// Also if it serves: it is told to end, and reads that go there fail.
        #[arg(long)]
        force: bool,
        /// The agent's folder, on this machine.
        #[arg(long, env = "TIDEGATE_DATA", value_name = "DIR")]
        data: PathBuf,
    },
    /// What is pinned, and was.
    Pins {
        /// The agent's folder, on this machine.
        #[arg(long, env = "TIDEGATE_DATA", value_name = "DIR")]
        data: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NodeArguments {
    /// The address of the region's agent.
    #[arg(long, env = "TIDEGATE_AGENT", value_name = "URL")]
    pub(crate) agent: String,
    /// The node's name, its own within the region.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// A file with a token of the region. It is read again when it changes. With one the node asks who reads for a token, too.
    #[arg(long, env = "TIDEGATE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust beside those of the machine. Read again when the file changes.
    #[arg(long, env = "TIDEGATE_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Its limits (TOML): `[server.limits]` and `[access.limits]`, as of a server.
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the node keeps everything.
    #[arg(long, env = "TIDEGATE_DATA", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where it answers reads and its agent's orders.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS", default_value = tidegate_server::node::DEFAULT_LISTEN)]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) service: ServiceArguments,
    /// Where the agent and others reach it [default: where it listens; needed if that is all addresses].
    #[arg(long, env = "TIDEGATE_ADVERTISE", value_name = "URL")]
    pub(crate) advertise: Option<String>,
}
