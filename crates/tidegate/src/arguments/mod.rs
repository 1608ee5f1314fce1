//! What the command line takes. One file per group of commands.

mod access;
mod agent;
mod backup;
mod demo;
#[cfg(test)]
mod deploy_tests;
mod push;
mod server;
mod store;
pub(crate) mod usage;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use access::{AuditArguments, TokenCommand};
pub(crate) use agent::{AgentArguments, AgentCommand, AgentRunArguments, NodeArguments, ServiceArguments};
pub(crate) use backup::{BackupArguments, PlaceArguments, RestoreArguments};
pub(crate) use demo::{DemoApplicationArguments, DemoArguments};
pub(crate) use push::{ProceedArguments, PushArguments, PushCommand};
pub(crate) use server::{
    ClusterArguments, ClusterCommand, ConfigCommand, QueueCommand, RegionCommand, ServerArguments,
};
pub(crate) use store::{HooksCommand, RollbackArguments, SchemaCommand, StoreCommand};

/// Releases data: versioned datasets, pushed region by region, with hooks around every step.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArguments,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// Whether it is an order to a region's agent: with no agent running, what it works on in its place has nobody to reach,
    /// which is no news.
    pub(crate) fn is_order_to_agent(&self) -> bool {
        matches!(self.command, Command::Agent(AgentArguments { command: Some(_), .. }))
    }
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArguments {
    /// The server's address.
    #[arg(long, global = true, env = "TIDEGATE_URL", default_value = "http://127.0.0.1:7600", value_name = "URL")]
    pub(crate) url: String,
    /// A file with the token to show to the server. Without it, TIDEGATE_TOKEN has the token itself.
    #[arg(long, global = true, env = "TIDEGATE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// A file with the certificates (PEM) that the server's leads to, in place of those that this machine trusts.
    #[arg(long, global = true, env = "TIDEGATE_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Text for people, or one JSON object for programs.
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Text, value_name = "FORMAT")]
    pub(crate) output: OutputFormat,
    /// Colours on the terminal (NO_COLOR turns them off too).
    #[arg(long, global = true, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub(crate) color: ColorChoice,
    /// For a process that another one has started for its own sake: it ends when its standard input does, which is when the
    /// other has ended, however that ends.
    #[arg(long, global = true, hide = true)]
    pub(crate) until_input_ends: bool,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Whether to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal that can.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell the whole story: three regions, good pushes and two bad ones that are caught; in one process, or in many.
    Demo(DemoArguments),
    /// The demo's reading application, as a process of its own.
    #[command(hide = true)]
    DemoApplication(DemoApplicationArguments),
    /// Run a control-plane server.
    Server(ServerArguments),
    /// Run a region's agent with its nodes, or give it orders on this machine (`agent pin`, …).
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Agent(AgentArguments),
    /// Run a serving node of a region, beside those within its agent's process.
    Node(NodeArguments),
    /// Stores: what is pushed to.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Push a dataset, or look at pushes (`push list`, `push status ID`, …).
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Push(PushArguments),
    /// Read the value of a key, as an application in a region would.
    Get {
        /// The store.
        store: String,
        /// The key; several key columns are separated by commas, or written as a JSON array.
        key: String,
        /// The region to read in.
        #[arg(long)]
        region: String,
    },
    /// Regions: where data is served.
    #[command(subcommand)]
    Region(RegionCommand),
    /// Compare two datasets; needs no server.
    Diff {
        /// The one before: a file, a folder of part files, or an artifact's folder.
        before: PathBuf,
        /// The one after.
        after: PathBuf,
        /// The key columns.
        #[arg(long = "key", required = true, value_name = "COLUMN", value_delimiter = ',')]
        key: Vec<String>,
    },
    /// The hooks' configuration that is in force.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The control plane's servers: how far each is behind, what it leases, and what waits.
    Cluster(ClusterArguments),
    /// Requests of the cluster hooks that wait, failed or are dead.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Whether the server at --url can work: exit code 0 if so, 1 if not, 3 if nobody answers.
    Ready,
    /// Tokens: who may ask the server what.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Who changed what, the newest first.
    Audit(AuditArguments),
    /// Back the installation up into a file, while its servers work on; needs no server.
    Backup(BackupArguments),
    /// Put a backup in the place of an installation's state. Asks before it does.
    Restore(RestoreArguments),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Reads `90s`, `15m`, `2h`, `1d` and sums of them (`1h30m`).
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let explain = || format!("{text:?} is not a duration; write for instance 90s, 15m, 2h or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(explain());
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(explain)?;
        let (number, after) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| explain())?;
        let letters = after.find(|letter: char| letter.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(explain()),
        };
        let part = number.checked_mul(milliseconds).ok_or_else(explain)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(explain)?;
        rest = after;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_every_command_takes_stands_under_its_own_heading() {
        let mut command = Arguments::command();
        command.build();
        let create = command.find_subcommand_mut("store").unwrap().find_subcommand_mut("create").unwrap();
        let help = create.render_long_help().to_string();
        let (own, global) = help.split_once("Global options:").unwrap_or_else(|| panic!("{help}"));
        for option in ["--key", "--partitions", "--on-new-push"] {
            assert!(own.contains(option), "{option}: {help}");
        }
        for option in ["--url", "--token-file", "--ca", "--output", "--color"] {
            assert!(global.contains(option) && !own.contains(&format!("{option} <")), "{option}: {help}");
        }
    }

    #[test]
    fn durations_are_read_with_their_units() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for none in ["", "5", "h", "5x", "-5s", "99999999999999999999s", "9999999999999999d"] {
            assert!(parse_duration(none).is_err(), "{none}");
        }
    }

    #[test]
    fn agent_takes_a_region_or_an_order() {
        let run = [
            "tidegate",
            "agent",
            "--region",
            "a",
            "--control-plane",
            "http://h:1,http://h:2",
            "--data",
            "d",
            "--allow-anyone",
        ];
        let Command::Agent(AgentArguments { command: None, run: Some(run), service }) =
            Arguments::try_parse_from(run).unwrap().command
        else {
            panic!()
        };
        assert_eq!(run.control_planes, ["http://h:1", "http://h:2"]);
        assert!(service.allow_anyone);
        let pin = ["tidegate", "agent", "pin", "s", "--version", "1", "--reason", "r", "--data", "d"];
        let pin = Arguments::try_parse_from(pin).unwrap().command;
        assert!(matches!(pin, Command::Agent(AgentArguments { command: Some(AgentCommand::Pin { .. }), .. })));
        for bad in [
            vec!["tidegate", "agent", "--region", "a", "--data", "d"],
            vec!["tidegate", "agent", "pin", "s", "--version", "1", "--data", "d"],
        ] {
            assert!(Arguments::try_parse_from(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn push_takes_a_store_and_paths_or_a_subcommand() {
        let push =
            Arguments::try_parse_from(["tidegate", "push", "airports", "a.csv", "b.csv", "--id", "p1", "--watch"]);
        assert!(matches!(push.unwrap().command, Command::Push(PushArguments { command: None, .. })));
        let list = Arguments::try_parse_from(["tidegate", "push", "list"]);
        assert!(matches!(
            list.unwrap().command,
            Command::Push(PushArguments { command: Some(PushCommand::List { .. }), .. })
        ));
        assert!(Arguments::try_parse_from(["tidegate", "push", "airports"]).is_err());
        assert!(Arguments::try_parse_from(["tidegate", "push"]).is_err());
    }
}
