//! `tidegate store …`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::parse_duration;

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Make a store.
    Create {
        /// Its name. Letters, digits, dashes and underscores never need quoting; other characters are taken, too. What
        /// `push` has as a subcommand (`list`, `status`, …) is refused.
        name: String,
        /// The columns that name a record.
        #[arg(long = "key", required = true, value_name = "COLUMN", value_delimiter = ',')]
        key: Vec<String>,
        /// How many partitions its versions have.
        #[arg(long)]
        partitions: Option<u32>,
        /// The team that may change it, beside operators and admins.
        #[arg(long)]
        team: Option<String>,
        /// What a push does while another runs: refuse, queue or supersede.
        #[arg(long, value_name = "POLICY")]
        on_new_push: Option<String>,
    },
    /// All stores.
    List,
    /// One store: settings, versions, what each region serves.
    Show {
        /// The store.
        name: String,
    },
    /// Change settings, as NAME=VALUE: `store set airports retention=3 on_new_push=queue limits.push_ms=2h`.
    Set {
        /// The store.
        name: String,
        /// What to change.
        #[arg(required = true, value_name = "NAME=VALUE")]
        settings: Vec<String>,
    },
    /// The store's hook settings, which win over the published ones.
    #[command(subcommand)]
    Hooks(HooksCommand),
    /// The store's schemas.
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// Go back to what was served before the newest version.
    Rollback(RollbackArguments),
    /// Delete a store and, after a grace time, its data.
    Delete {
        /// The store.
        name: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArguments {
    /// The store.
    pub(crate) name: String,
    /// In this region alone.
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// To this version; without it each region that serves the newest one goes to what it served before.
    #[arg(long, value_name = "VERSION")]
    pub(crate) to: Option<u64>,
    /// Why, for the record.
    #[arg(long)]
    pub(crate) reason: String,
    /// Follow until every region serves what it goes back to: exit code 1 where one does not, or not within the store's limit
    /// on the confirmation of a rollback.
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// How long all of it may take; exit code 14 when a region is not there by then.
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", requires = "watch")]
    pub(crate) timeout: Option<Duration>,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HooksCommand {
    /// The hook settings that the store has of its own, and all that are in force for it.
    Show {
        /// The store.
        store: String,
    },
    /// Set hook settings: `store hooks set airports region-order.order=a,b,c`.
    Set {
        /// The store.
        store: String,
        /// HOOK.KEY=VALUE.
        #[arg(required = true, value_name = "HOOK.KEY=VALUE")]
        settings: Vec<String>,
    },
    /// Clear hook settings, so that the published ones hold again.
    Unset {
        /// The store.
        store: String,
        /// HOOK.KEY.
        #[arg(required = true, value_name = "HOOK.KEY")]
        keys: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// The schemas that the store knows, the newest last.
    List {
        /// The store.
        store: String,
    },
    /// Register a schema before a push brings it.
    Add {
        /// The store.
        store: String,
        /// A JSON file: {"fields": [{"name": "icao", "type": "string", "nullable": false}, …]}.
        file: PathBuf,
    },
}
