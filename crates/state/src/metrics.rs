//! Metrics of one state, in the form that `prometheus-client` registers.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::cluster_hook::metrics::HookMetrics;
use crate::revision::Revision;

/// A hook's name, as a label.
pub(crate) type HookLabel = [(String, String); 1];

pub(crate) fn hook_label(name: &str) -> HookLabel {
    [("hook".to_owned(), name.to_owned())]
}

/// How indexes of records are built that were added later, by kind of record.
#[derive(Debug, Clone, Default)]
pub(crate) struct RecordIndexMetrics {
    building: Family<KindLabel, Gauge>,
    built_to: Family<KindLabel, Gauge>,
    entered: Family<KindLabel, Counter>,
    unreadable: Family<KindLabel, Counter>,
}

type KindLabel = [(String, String); 1];

fn kind_label(kind: &str) -> KindLabel {
    [("kind".to_owned(), kind.to_owned())]
}

impl RecordIndexMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "record_indexes_building",
            "Whether an index of a kind of records does not have every record yet, and serves no query",
            self.building.clone(),
        );
        registry.register(
            "record_indexes_built_to",
            "Revision of the first record that may lack entries in an index of its kind, while that is built",
            self.built_to.clone(),
        );
        registry.register(
            "records_indexed",
            "Records that were entered into indexes which they lacked",
            self.entered.clone(),
        );
        registry.register(
            "records_not_indexable",
            "Of these, those that can't be read and stand under an entry without parts",
            self.unreadable.clone(),
        );
    }

    pub(crate) fn note_page(&self, kind: &str, from: Revision) {
        self.building.get_or_create(&kind_label(kind)).set(1);
        self.built_to.get_or_create(&kind_label(kind)).set(i64::try_from(from.0).unwrap_or(i64::MAX));
    }

    pub(crate) fn note_entered(&self, kind: &str, records: usize, unreadable: usize) {
        self.entered.get_or_create(&kind_label(kind)).inc_by(records as u64);
        self.unreadable.get_or_create(&kind_label(kind)).inc_by(unreadable as u64);
    }

    pub(crate) fn note_complete(&self, kind: &str) {
        self.building.get_or_create(&kind_label(kind)).set(0);
    }
}

/// The metrics of one state. Clones are the same metrics.
#[derive(Debug, Clone)]
pub struct StateMetrics {
    pub(crate) commits: Counter,
    pub(crate) transactions: Counter,
    pub(crate) group_size: Histogram,
    pub(crate) commit_seconds: Histogram,
    pub(crate) unknown_commits: Counter,
    pub(crate) closures_over_budget: Counter,
    pub(crate) closures_ahead: Counter,
    pub(crate) closures_ahead_in_vain: Counter,
    pub(crate) applied_revision: Gauge,
    pub(crate) tail_lag: Gauge,
    pub(crate) tail_errors: Counter,
    pub(crate) reloads: Counter,
    pub(crate) entities_lag: Gauge,
    pub(crate) compacted_revision: Gauge,
    pub(crate) records_pruned: Counter,
    pub(crate) record_indexes: RecordIndexMetrics,
    pub(crate) upkeep_errors: Counter,
    dead_rows: Family<[(String, String); 1], Gauge>,
    pub(crate) oldest_transaction: Gauge,
    pub(crate) local_hook_calls: Family<HookLabel, Counter>,
    pub(crate) local_hook_errors: Family<HookLabel, Counter>,
    pub(crate) local_hook_lag: Family<HookLabel, Gauge>,
    pub(crate) hooks: HookMetrics,
}

impl StateMetrics {
    pub(crate) fn new() -> StateMetrics {
        StateMetrics {
            commits: Counter::default(),
            transactions: Counter::default(),
            group_size: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            unknown_commits: Counter::default(),
            closures_over_budget: Counter::default(),
            closures_ahead: Counter::default(),
            closures_ahead_in_vain: Counter::default(),
            applied_revision: Gauge::default(),
            tail_lag: Gauge::default(),
            tail_errors: Counter::default(),
            reloads: Counter::default(),
            entities_lag: Gauge::default(),
            compacted_revision: Gauge::default(),
            records_pruned: Counter::default(),
            record_indexes: RecordIndexMetrics::default(),
            upkeep_errors: Counter::default(),
            dead_rows: Family::default(),
            oldest_transaction: Gauge::default(),
            local_hook_calls: Family::default(),
            local_hook_errors: Family::default(),
            local_hook_lag: Family::default(),
            hooks: HookMetrics::new(),
        }
    }

    /// Registers all metrics, each name beginning with `state_`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("state");
        registry.register("commits", "Commits of groups of transactions", self.commits.clone());
        registry.register("transactions", "Transactions committed by this server", self.transactions.clone());
        registry.register("commit_group_size", "Transactions per commit", self.group_size.clone());
        registry.register("commit_seconds", "Time that the store took to commit", self.commit_seconds.clone());
        registry.register("unknown_commits", "Commits whose answer was lost", self.unknown_commits.clone());
        registry.register(
            "closures_over_budget",
            "Transactions given up since their closure ran too long",
            self.closures_over_budget.clone(),
        );
        registry.register(
            "closures_ahead",
            "Transactions whose closure ran while another server had the write lock",
            self.closures_ahead.clone(),
        );
        registry.register(
            "closures_ahead_in_vain",
            "Of these, transactions whose closure had to run again at the head",
            self.closures_ahead_in_vain.clone(),
        );
        registry.register("applied_revision", "Revision that this server has applied", self.applied_revision.clone());
        registry.register("tail_lag", "Revisions that the log was ahead when last read", self.tail_lag.clone());
        registry.register("tail_errors", "Failures to read the log", self.tail_errors.clone());
        registry.register("reloads", "Times the tree was loaded anew", self.reloads.clone());
        registry.register(
            "entities_lag",
            "Revisions that the written-behind entities lacked",
            self.entities_lag.clone(),
        );
        registry.register(
            "compacted_revision",
            "Revision that the log is compacted to",
            self.compacted_revision.clone(),
        );
        registry.register("records_pruned", "Records removed by their retention", self.records_pruned.clone());
        self.record_indexes.register(registry);
        registry.register("upkeep_errors", "Upkeep steps that failed and are tried again", self.upkeep_errors.clone());
        registry.register(
            "store_dead_rows",
            "Rows of a table that were deleted or replaced and still take room",
            self.dead_rows.clone(),
        );
        registry.register(
            "store_oldest_transaction_seconds",
            "For how long the oldest transaction in the store has been open",
            self.oldest_transaction.clone(),
        );
        registry.register("local_hook_calls", "Calls of local hooks", self.local_hook_calls.clone());
        registry.register("local_hook_errors", "Calls of local hooks that failed", self.local_hook_errors.clone());
        self.hooks.register(registry);
        registry.register("local_hook_lag", "Revisions that a local hook is behind", self.local_hook_lag.clone());
    }

    /// How many groups of transactions this server has committed.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.get()
    }

    /// How many transactions this server has committed.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.transactions.get()
    }

    /// How many transactions were given up since their closure ran too long.
    #[must_use]
    pub fn closures_over_budget(&self) -> u64 {
        self.closures_over_budget.get()
    }

    /// How many transactions' closures ran while another server had the write lock, and how many of them had to run again at
    /// the head.
    #[must_use]
    pub fn closures_ahead(&self) -> (u64, u64) {
        (self.closures_ahead.get(), self.closures_ahead_in_vain.get())
    }

    /// Whether an index of a kind of records was being built when last looked at.
    #[must_use]
    pub fn record_indexes_building(&self, kind: &str) -> bool {
        self.record_indexes.building.get_or_create(&kind_label(kind)).get() > 0
    }

    /// How many records of a kind this server has entered into indexes that they lacked, and how many of those can't be read.
    #[must_use]
    pub fn records_indexed(&self, kind: &str) -> (u64, u64) {
        let label = kind_label(kind);
        let of = |family: &Family<KindLabel, Counter>| family.get_or_create(&label).get();
        (of(&self.record_indexes.entered), of(&self.record_indexes.unreadable))
    }

    pub(crate) fn set_dead_rows(&self, table: &str, dead: u64) {
        let label = [("table".to_owned(), table.to_owned())];
        self.dead_rows.get_or_create(&label).set(i64::try_from(dead).unwrap_or(i64::MAX));
    }

    /// How many rows of a table were deleted or replaced and still take room, when last looked at.
    #[must_use]
    pub fn dead_rows(&self, table: &str) -> i64 {
        self.dead_rows.get_or_create(&[("table".to_owned(), table.to_owned())]).get()
    }

    /// For how many seconds the oldest transaction in the store had been open when last looked at.
    #[must_use]
    pub fn oldest_transaction_seconds(&self) -> i64 {
        self.oldest_transaction.get()
    }

    /// How many calls of a local hook failed or panicked.
    #[must_use]
    pub fn local_hook_errors(&self, hook: &str) -> u64 {
        self.local_hook_errors.get_or_create(&hook_label(hook)).get()
    }

    /// How many revisions a local hook is behind what this server has applied.
    #[must_use]
    pub fn local_hook_lag(&self, hook: &str) -> i64 {
        self.local_hook_lag.get_or_create(&hook_label(hook)).get()
    }

    /// How often the tree was loaded anew.
    #[must_use]
    pub fn reloads(&self) -> u64 {
        self.reloads.get()
    }
}
