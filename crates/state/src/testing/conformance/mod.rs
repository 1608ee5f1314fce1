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
mod drivers_behind;
mod drivers_faults;
mod entities;
mod forms;
mod hooks;
mod local_hooks;
mod oracle;
mod record_indexes;
mod record_sizes;
mod records;
mod script;
mod set_back;
mod snapshots;
mod transactions;
mod transactions_ahead;
mod transactions_faults;

pub use compare::{Dump, agree, dump};
pub use drivers::*;
pub use drivers_behind::*;
pub use drivers_faults::*;
pub use entities::*;
pub use forms::*;
pub use hooks::*;
pub use local_hooks::*;
pub use oracle::*;
pub use record_indexes::*;
pub use record_sizes::*;
pub use records::*;
pub use script::*;
pub use set_back::*;
pub use snapshots::*;
pub use transactions::*;
pub use transactions_ahead::*;
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

/// How long a whole case may take, also on a machine that has much else to do.
const CASE_LIMIT: Duration = Duration::from_secs(300);

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

impl Variants {
    fn chosen(self, seed: u64) -> &'static [Variant] {
        match self {
            Variants::All => &[Variant::Plain, Variant::Repeated, Variant::Awkward],
            Variants::Drawn if seed.is_multiple_of(2) => &[Variant::Plain, Variant::Repeated],
            Variants::Drawn => &[Variant::Plain, Variant::Awkward],
        }
    }
}

/// What a case runs on.
#[derive(Clone)]
pub struct Case {
    factory: Arc<dyn StoreFactory>,
    /// How it is varied.
    pub variant: Variant,
    /// Where the case draws from. Printed when it fails.
    pub seed: u64,
    /// The writing of entities stops after so many times.
    entities_held_after: Option<usize>,
}

impl Case {
    /// Runs a case in its variants, each within a limit.
    pub async fn run<F, R>(factory: impl StoreFactory + 'static, variants: Variants, case: F)
    where
        F: Fn(Case) -> R,
        R: Future<Output = ()> + Send + 'static,
    {
        if factory.skipped().is_some() {
            return;
        }
        let factory: Arc<dyn StoreFactory> = Arc::new(factory);
        let seed = super::cluster::seed();
        for &variant in variants.chosen(seed) {
            // Shown only when the case fails.
            println!("variant {variant:?}, {}={seed}", super::cluster::SEED);
            // In every other run who comes late starts from an old table and a long log.
            let entities_held_after =
                (seed >> 1).is_multiple_of(2).then_some(usize::from((seed >> 2).to_le_bytes()[0] % 3));
            let case_of = Case { factory: factory.clone(), variant, seed, entities_held_after };
            let running = tokio::spawn(case(case_of));
            match tokio::time::timeout(CASE_LIMIT, running).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => panic!("the case ended early: {error}"),
                },
                Err(_) => panic!("the case did not end within {CASE_LIMIT:?}"),
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
        builder.seed(self.seed).entities_held_after(self.entities_held_after).open(&*self.factory).await
    }

    /// The case in a run in which entities are written throughout: for what is about just that, or waits for what follows.
    #[must_use]
    pub fn upkept(&self) -> Case {
        Case { entities_held_after: None, ..self.clone() }
    }

    /// After how many steps of a long script the whole store is looked through.
    #[must_use]
    pub fn read_every(&self) -> usize {
        self.factory.read_every()
    }

    /// An id, awkward in that variant.
    #[must_use]
    pub fn id(&self, id: &str) -> String {
        match self.variant {
            Variant::Plain | Variant::Repeated => id.to_owned(),
            Variant::Awkward => awkward(id),
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

/// An awkward id in place of a plain one.
pub(crate) fn awkward(id: &str) -> String {
    format!("{id} /50%\"é?#")
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
            t01_what_a_closure_reads_of_others_is_shown_while_it_runs,
            t01_what_ran_ahead_counts_if_it_is_so_at_the_head,
            t02_no_increment_is_lost,
            t02_increments_of_many_who_run_ahead_keep_their_order,
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
            r07_many_records_go_under_load_and_through_kills,
            r08_large_values_and_many_records,
            r09_records_make_no_change,
            r09_many_records_cost_nothing_elsewhere,
            r10_records_of_every_age_read,
            r10_an_added_index_is_built_beside_everything,
            r10_servers_build_an_index_together_and_enter_nothing_twice,
            d01_random_script_agrees_with_the_oracle,
            d02_old_hand_and_latecomer_agree_with_the_oracle,
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
            d19_unknown_stays_unknown_when_writing_stops,
            d20_each_error_of_the_store_is_retried_or_reported,
            d21_a_transaction_of_the_old_connection_fails_alone,
            d22_a_start_under_load_loses_nothing,
            d23_a_server_behind_the_compaction_reloads,
            d24_idle_writes_nothing,
            d25_waiting_transactions_share_commits,
            d26_large_documents_and_transactions_are_whole,
            d27_fields_of_newer_builds_survive,
            d28_an_unreadable_document_is_its_own_error,
            d33_a_server_far_behind_catches_up_and_writes,
            d33_a_server_behind_a_compacted_log_catches_up_and_writes,
            d34_time_is_the_injected_clocks,
            d35_a_restored_backup_is_noticed,
            d37_a_lower_head_stops_writing,
            d37_a_lower_head_is_noticed_after_a_restart,
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
            r03_a_completion_and_its_records_are_one,
            r03_a_rejected_completion_leaves_no_record,
            r03_records_come_with_a_later_time_too,
            r04_a_cancelled_run_brings_no_record,
            r04_a_late_completion_brings_no_record,
            d14_runs_start_without_hints,
            d41_a_start_from_entities_far_behind_has_everything,
            d20_hooks_outlast_each_error_of_the_store,
            d21_runs_outlast_a_new_connection,
            d35_hooks_run_for_what_the_backup_has,
            d36_numbers_of_two_epochs_are_not_confused,
            k01_every_server_dies_before_it_applied_the_change,
            k02_no_fault_each_change_once,
            k03_what_did_not_happen_asks_for_no_run,
            k04_one_transaction_asks_for_all_its_runs_at_once,
            k05_a_run_waits_until_its_server_has_applied_the_request,
            k06_what_was_missed_while_nobody_ran_the_hook_is_given_whole,
            k07_a_killed_server_s_slots_pass_on_when_its_lease_ends,
            k08_long_runs_keep_their_lease_by_one_row,
            k09_zombie_completion_is_refused,
            k10_a_server_that_hears_nothing_cancels_its_runs_when_its_lease_ends,
            k10_what_was_about_to_begin_when_the_lease_ended_does_not_begin,
            k11_a_completion_that_changes_nothing_is_acknowledged_once,
            k11_a_completion_that_is_committed_late_takes_effect_once,
            k11_writes_and_receipt_are_one_wherever_a_completion_is_cut,
            k12_refused_writes_and_panics_are_failed_attempts,
            k12_writes_over_their_time_budget_are_a_failed_attempt,
            k13_keys_in_order_one_at_a_time,
            k14_a_key_waits_for_its_receipt_and_other_keys_of_its_slot_do_not,
            k15_latest_state_coalesces_into_one_further_run,
            k16_latest_state_without_room_runs_at_most_twice,
            k17_a_delete_reaches_its_hook_after_everyone_died,
            k18_every_change_waits_behind_and_times_and_attempts_survive,
            k18_waiting_is_no_failure_and_a_change_brings_latest_state_forward,
            k19_a_dead_latest_state_key_is_revived_by_the_next_change,
            k19_dead_letters_are_handled_through_any_server,
            k20_waiting_and_running_requests_are_cancelled,
            k21_a_request_waits_for_a_server_that_knows_its_hook,
            k22_a_server_without_the_code_makes_the_request_all_the_same,
            k23_what_exists_is_asked_for_once_although_every_server_dies,
            k23_a_hook_that_begins_with_what_exists_runs_once_for_each,
            k24_many_servers_register_one_hook_at_the_same_moment,
            k25_a_removed_registration_keeps_what_waits,
            k26_hooks_that_trigger_hooks_do_not_deadlock,
            k27_hanging_hooks_hold_up_nothing_else,
            k28_a_run_in_progress_holds_no_lock,
            k29_a_server_that_joins_runs_its_share_of_what_waits,
            k29_no_key_stands_still_for_the_long_runs_of_others,
            k29_slots_leave_a_server_without_room_for_one_that_has_it,
            k29_slots_pass_on_until_who_takes_them_is_busy,
            k30_a_drain_hands_back_at_once_what_does_not_run,
            k31_only_its_owner_sends_statements_for_a_request,
            k32_attributes_reach_the_run_and_what_it_writes,
            k33_waiting_tells_of_letters_failures_and_slots_that_pass_on,
            k33_waiting_for_hooks_says_what_is_not_finished_and_keeps_its_limit,
            k34_the_log_keeps_what_is_pending_and_lets_the_rest_go,
            k34_what_no_server_runs_is_kept_in_the_log,
            k35_matching_is_done_at_the_head_by_the_registration_alone,
            k36_bad_registrations_are_refused,
            k37_two_patterns_share_a_key,
            k38_a_higher_version_takes_over_and_a_lower_one_never_does,
            k39_a_cap_in_the_cluster_holds,
            k39_a_cap_holds_and_leaks_no_place_whatever_happens_to_its_servers,
            k40_a_server_runs_no_more_than_it_declares,
            k41_a_fan_out_hook_writes_beside_all_that_are_concerned,
            k42_unlimited_attempts_never_make_a_dead_letter,
            k43_a_lapsed_lease_is_not_renewed_and_all_its_runs_are_void,
            k44_slots_pass_on_amid_changes_when_a_lease_ends,
            k44_slots_pass_on_amid_changes_when_a_server_is_overloaded,
            k44_slots_pass_on_amid_changes_when_a_server_joins_and_when_one_drains,
            k45_a_batch_counts_but_for_the_slot_that_was_lost,
            k45_a_completion_and_a_take_over_do_not_cross,
            k45_a_receipt_is_there_before_the_next_owner_looks_or_refused,
            k46_everything_is_as_it_was_after_all_servers_died,
            k47_a_stale_owner_does_not_raise_the_watermark,
            k47_the_low_watermark_stays_below_what_runs_on,
            k47_what_a_take_over_and_a_start_read_does_not_grow,
            k48_what_a_server_does_past_its_lease_is_refused,
            k49_another_number_of_slots_takes_over_when_the_old_ones_are_drained,
            k49_what_a_new_layout_reads_does_not_grow,
            k50_all_that_did_not_fit_into_memory_runs_in_its_order,
            k50_keys_take_turns_beside_one_with_a_hundred_thousand_requests,
            k51_a_hook_that_kills_its_servers_is_found,
            k51_a_request_is_not_blamed_for_servers_that_die_as_soon_as_they_are_up,
            u04_each_kind_of_damage_is_named,
            u04_a_sound_store_gives_none_whatever_goes_on_in_it,
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
