//! `tidegate push …`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::parse_duration;

#[derive(Debug, Args)]
pub(crate) struct PushArguments {
    #[command(subcommand)]
    pub(crate) command: Option<PushCommand>,
    /// The store. One whose name is a subcommand is pushed to after two dashes: `push -- list data.csv`.
    #[arg(required = true)]
    pub(crate) store: Option<String>,
    /// Files, folders of part files, or patterns such as 'data/part-*.csv.zst'.
    #[arg(required_unless_present = "from_version", value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Release the data of this version again, as a new version: nothing is built or sent, every gate is asked.
    #[arg(long, value_name = "VERSION", conflicts_with_all = ["paths", "allow_empty"])]
    pub(crate) from_version: Option<u64>,
    /// Open one gate whatever its hooks say, on record: 'pre-creation@a=the drop is expected'.
    #[arg(long = "proceed", value_name = "GATE[@REGION]=REASON")]
    pub(crate) overrides: Vec<String>,
    /// The push's id. The same id again continues the same push; without one a new id is made.
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Follow in a tree that is redrawn in place, rather than by a line for each step.
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Do not follow: end once the server has the whole artifact.
    #[arg(long, conflicts_with = "watch")]
    pub(crate) detach: bool,
    /// How long all of it may take, waiting for a server that does not answer included; exit code 14 when the push has not
    /// ended by then, 3 when no server has taken it in.
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", conflicts_with = "detach")]
    pub(crate) timeout: Option<Duration>,
    /// Accept an input without rows.
    #[arg(long)]
    pub(crate) allow_empty: bool,
    /// What the build may keep in memory, in MiB.
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    pub(crate) memory: u64,
    /// Who pushes, for the record.
    #[arg(long, env = "TIDEGATE_USER", default_value = "")]
    pub(crate) user: String,
    /// A NAME=VALUE kept with the push and shown to every hook.
    #[arg(long = "attribute", value_name = "NAME=VALUE")]
    pub(crate) attributes: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PushCommand {
    /// The newest pushes.
    List {
        /// Of this store alone.
        #[arg(long)]
        store: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Where a push is: its tree of regions, states and hooks.
    Status {
        /// The push.
        id: String,
        /// Redraw until the push has ended.
        #[arg(long, short)]
        watch: bool,
        /// How long to watch; exit code 14 when the push has not ended by then.
        #[arg(long, value_parser = parse_duration, value_name = "DURATION", requires = "watch")]
        timeout: Option<Duration>,
    },
    /// Why a push is where it is: which hook holds what, the measured value and its limit, what comes next.
    Explain {
        /// The push.
        id: String,
    },
    /// Every hook call of a push.
    Calls {
        /// The push.
        id: String,
    },
    /// End a running push.
    Kill {
        /// The push.
        id: String,
        /// Why, for the record.
        #[arg(long)]
        reason: String,
    },
    /// Open one gate by hand, on record.
    Proceed(ProceedArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ProceedArguments {
    /// The push.
    pub(crate) id: String,
    /// The gate, by its short name: pre-swap, pre-creation, ….
    #[arg(long)]
    pub(crate) gate: String,
    /// The region, where the gate is a region's.
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// Why, for the record.
    #[arg(long)]
    pub(crate) reason: String,
}
