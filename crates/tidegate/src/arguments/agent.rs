//! `tidegate agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::parse_duration;

#[derive(Debug, Args)]
pub(crate) struct AgentArguments {
    #[command(subcommand)]
    pub(crate) command: Option<AgentCommand>,
    #[command(flatten)]
    pub(crate) run: Option<AgentRunArguments>,
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
    /// A file with the agent's token. It is read again when it changes.
    #[arg(long, env = "TIDEGATE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust beside those of the machine.
    #[arg(long, env = "TIDEGATE_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Where the agent keeps everything.
    #[arg(long, env = "TIDEGATE_DATA", value_name = "DIR", required = true)]
    pub(crate) data: PathBuf,
    /// Where it answers reads.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS", default_value = tidegate_server::agent::DEFAULT_LISTEN)]
    pub(crate) listen: SocketAddr,
    /// Listen beyond loopback although whoever reaches it may read everything.
    #[arg(long)]
    pub(crate) allow_anyone: bool,
    /// Listen beyond loopback although it speaks no TLS itself.
    #[arg(long)]
    pub(crate) allow_plain_http: bool,
    /// Where others reach it, if that is not where it listens.
    #[arg(long, value_name = "URL")]
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
    /// A file with the region's token. It is read again when it changes.
    #[arg(long, env = "TIDEGATE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificates (PEM) to trust beside those of the machine.
    #[arg(long, env = "TIDEGATE_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Where the node keeps everything.
    #[arg(long, env = "TIDEGATE_DATA", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where it answers reads and its agent's orders.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS", default_value = tidegate_server::node::DEFAULT_LISTEN)]
    pub(crate) listen: SocketAddr,
    /// Listen beyond loopback although whoever reaches it may read everything.
    #[arg(long)]
    pub(crate) allow_anyone: bool,
    /// Listen beyond loopback although it speaks no TLS itself.
    #[arg(long)]
    pub(crate) allow_plain_http: bool,
    /// Where the agent and others reach it, if that is not where it listens.
    #[arg(long, value_name = "URL")]
    pub(crate) advertise: Option<String>,
}
