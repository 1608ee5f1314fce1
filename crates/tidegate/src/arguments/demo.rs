//! `tidegate demo`, and the application that is one of its processes.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// End after the story instead of staying up; exit code 0 only if every step ended as told.
    #[arg(long)]
    pub(crate) once: bool,
    /// Every part as a process of its own: servers (two with --database), an agent and a node in each region, and the
    /// application that reads. One that dies is started again.
    #[arg(long)]
    pub(crate) processes: bool,
    /// Where the page and the API are served.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// A PostgreSQL to keep the demo's state in, in a schema that goes with it; by default a file.
    #[arg(long, value_name = "URL")]
    pub(crate) database: Option<String>,
    /// Where the demo keeps its data; by default a folder that goes with it.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoApplicationArguments {
    /// Where it answers.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    /// Where to read in a region; several addresses of one region are tried in this order.
    #[arg(long = "place", value_name = "REGION=URL", required = true)]
    pub(crate) places: Vec<String>,
}
