//! The suite that every driver passes: one function per case, whose name carries the case's id. Run it on a driver of
//! your own by a [`StoreFactory`] and the macro:
//!
//! ```ignore
//! tidegate_state::state_conformance!(my_driver, MyFactory, Variants::Drawn);
//! ```
//!
//! Cases wait at gates, never by sleeping; a limit on time is a limit on failure, and generous.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::too_many_lines)]

mod compare;
mod drivers;
mod drivers_faults;
mod entities;
mod forms;
mod local_hooks;
mod oracle;
mod records;
mod snapshots;
mod transactions;
mod transactions_faults;

pub use compare::{Dump, agree, dump};
pub use drivers::*;
pub use drivers_faults::*;
pub use entities::*;
pub use forms::*;
pub use local_hooks::*;
pub use oracle::*;
pub use records::*;
pub use snapshots::*;
pub use transactions::*;
pub use transactions_faults::*;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{Cluster, ClusterBuilder, StoreFactory};
use crate::error::WriteError;
use crate::revision::Revision;
use crate::state::{Committed, State, StateOptions};
use crate::transaction::{Transaction, TransactionError};

/// How long anything in a case may take before the case fails.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How a case is varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// As written.
    Plain,
    /// Each repeatable write is submitted twice in a row; the second is no change.
    Repeated,
    /// Ids with a space, a slash, a percent sign and letters beyond ASCII.
    Awkward,
}

/// Which variants a suite runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variants {
    /// All of them.
    All,
    /// The plain one, and one that a printed seed draws.
    Drawn,
}

/// What a case runs on.
#[derive(Clone)]
pub struct Case {
    factory: Arc<dyn StoreFactory>,
    /// How it is varied.
    pub variant: Variant,
    /// Where the case draws from. Printed when it fails.
    pub seed: u64,
}

impl Case {
    /// Runs a case in its variants, each within [`LIMIT`].
    pub async fn run<F, R>(factory: impl StoreFactory + 'static, variants: Variants, case: F)
    where
        F: Fn(Case) -> R,
        R: Future<Output = ()> + Send + 'static,
    {
        if factory.skipped().is_some() {
            return;
        }
        let factory: Arc<dyn StoreFactory> = Arc::new(factory);
        let given = std::env::var("STATE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(rand::random::<u64>);
        let chosen: &[Variant] = match variants {
            Variants::All => &[Variant::Plain, Variant::Repeated, Variant::Awkward],
            Variants::Drawn if seed.is_multiple_of(2) => &[Variant::Plain, Variant::Repeated],
            Variants::Drawn => &[Variant::Plain, Variant::Awkward],
        };
        for &variant in chosen {
            // Shown only when the case fails.
            println!("variant {variant:?}, STATE_TEST_SEED={seed}");
            let running = tokio::spawn(case(Case { factory: factory.clone(), variant, seed }));
            match tokio::time::timeout(LIMIT * 2, running).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => panic!("the case ended early: {error}"),
                },
                Err(_) => panic!("the case did not end within {:?}", LIMIT * 2),
            }
        }
    }

    /// A cluster being put together; the records of `entities` are declared.
    pub fn builder(&self) -> ClusterBuilder {
        self.configured(|_, options| options)
    }

    /// As [`Case::builder`], with options of the case's own.
    pub fn configured(
        &self,
        configure: impl Fn(usize, StateOptions) -> StateOptions + Send + Sync + 'static,
    ) -> ClusterBuilder {
        Cluster::builder().configure(move |index, options| configure(index, declare_records(options)))
    }

    /// So many servers on a fresh store.
    pub async fn cluster(&self, servers: usize) -> Cluster {
        self.open(self.builder().servers(servers)).await
    }

    /// Opens what was put together.
    pub async fn open(&self, builder: ClusterBuilder) -> Cluster {
        builder.open(&*self.factory).await
    }

    /// An id, awkward in that variant.
    #[must_use]
    pub fn id(&self, id: &str) -> String {
        match self.variant {
            Variant::Plain | Variant::Repeated => id.to_owned(),
            Variant::Awkward => format!("{id} /50%\"é?#"),
        }
    }

    /// A write whose repetition is no change; repeated in that variant.
    pub async fn write<T, F>(&self, state: &State, closure: F) -> Committed<T>
    where
        F: Fn(&mut Transaction) -> Result<T, TransactionError> + Clone + Send + 'static,
        T: Send + 'static,
    {
        let committed = state.write(closure.clone()).await.unwrap();
        if self.variant == Variant::Repeated {
            let again = state.write(closure).await.unwrap();
            assert!(!again.changed, "the same write again is no change");
            assert!(again.revision >= committed.revision);
        }
        committed
    }
}

/// Waits for something, and fails with its name when it does not come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {LIMIT:?}"),
    }
}

/// The result of a write whose closure's own error type is the transaction's.
pub type Written<T> = Result<Committed<T>, WriteError<TransactionError>>;

/// Waits until a server has applied a revision.
pub async fn applied(state: &State, revision: Revision) {
    state.wait_for(revision, LIMIT).await.unwrap();
}

/// Makes a test of every case, for one driver. See [`testing::conformance`](crate::testing::conformance).
#[macro_export]
macro_rules! state_conformance {
    ($module:ident, $factory:expr, $variants:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $crate::state_conformance_cases!($factory, $variants);
        }
    };
}

/// The list of cases; see [`state_conformance!`].
#[doc(hidden)]
#[macro_export]
macro_rules! state_conformance_cases {
    ($factory:expr, $variants:expr) => {
        $crate::state_conformance_tests! { $factory, $variants,
            s01_snapshots_never_change,
            s02_every_snapshot_is_consistent,
            s03_reads_go_on_without_the_store,
            s04_ids_are_any_text_within_bounds,
            s05_wrong_paths_say_which_segment,
            s06_refs_to_absent_entities_can_be_kept,
            s07_children_come_in_id_order,
            s08_listings_of_absent_empty_and_all,
            s09_values_read_back_equal,
            s10_snapshots_let_go_of_what_they_held,
            t01_a_write_reads_the_head,
            t02_no_increment_is_lost,
            t03_transactions_are_serializable,
            t04_a_transaction_is_one_revision,
            t05_a_closure_sees_its_own_writes,
            t06_rejected_leaves_no_trace,
            t07_preconditions_hold_at_the_head,
            t08_create_refuses_what_exists,
            t09_a_child_needs_its_ancestors,
            t10_deleting_takes_the_subtree,
            t11_an_equal_value_is_no_change,
            t12_one_change_from_first_before_to_last_after,
            t13_a_panic_costs_its_own_transaction,
            t14_a_group_has_revisions_of_its_own,
            t15_only_the_last_run_counts,
            t16_waiting_within_a_closure_is_refused,
            t17_what_was_answered_is_seen,
            t18_attributes_are_each_transactions_own,
            t19_dropped_writes_are_whole_or_absent,
            t20_over_budget_costs_its_own_transaction,
            r01_records_and_entities_commit_together,
            r02_failed_transactions_leave_no_record,
            r05_queries_read_the_store,
            r06_pages_by_keyset_hold_while_others_append,
            r07_retention_prunes_in_batches,
            r08_large_values_and_many_records,
            r09_records_make_no_change,
            r10_records_of_every_age_read,
            d01_d02_random_script_agrees_with_the_oracle,
            d03_one_initial_state_however_many_open,
            d06_flush_waits_for_the_tail,
            d07_waits_end_and_close_leaves_no_waiter,
            d08_a_recreated_store_is_loaded_anew,
            d09_a_store_that_comes_back_is_taken_up,
            d10_a_start_without_a_store_invents_nothing,
            d12_writes_fail_in_time_and_all_resumes,
            d14_without_hints_the_poll_finds_changes,
            d15_revisions_come_in_order_without_a_gap,
            d16_unknown_and_committed_counts_once,
            d17_unknown_and_not_committed_is_submitted_again,
            d18_an_unknown_commit_overwrites_nothing,
            d19_unknown_past_the_limit_says_unknown,
            d22_a_start_under_load_loses_nothing,
            d23_a_server_behind_the_compaction_reloads,
            d24_idle_writes_nothing,
            d25_waiting_transactions_share_commits,
            d26_large_documents_and_transactions_are_whole,
            d27_fields_of_newer_builds_survive,
            d28_an_unreadable_document_is_its_own_error,
            d33_a_server_far_behind_catches_up_and_writes,
            d34_time_is_the_injected_clocks,
            d35_a_restored_backup_is_noticed,
            d37_a_lower_head_stops_writing,
            d38_documents_are_upgraded_on_read,
            d41_a_start_needs_entities_and_the_log_after,
            n01_existing_matches_come_first,
            n02_registering_under_load_has_no_gap,
            n03_before_and_after,
            n04_scopes,
            n05_no_call_for_what_did_not_happen,
            n06_order_within_a_transaction,
            n07_all_servers_see_one_sequence,
            n08_the_snapshot_is_at_the_change,
            n09_a_slow_hook_delays_nobody,
            n10_failures_do_not_stop_the_stream,
            n11_a_hook_may_write_and_wait,
            n12_hanoi_by_hooks,
            n13_attributes_reach_the_hook,
            n14_a_reload_calls_for_what_differs,
            n15_handles_and_hooks_from_inside,
        }
    };
}

/// One test per case; see [`state_conformance!`].
#[doc(hidden)]
#[macro_export]
macro_rules! state_conformance_tests {
    ($factory:expr, $variants:expr, $($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::testing::conformance::Case::run(
                    $factory, $variants, $crate::testing::conformance::$case,
                ).await;
            }
        )*
    };
}
