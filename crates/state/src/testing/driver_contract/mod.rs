//! The contract of [`crate::driver::Driver`] as tests, each of which takes an empty store on a clock that stands
//! still. A driver elsewhere passes it with [`crate::driver_contract_tests`].
//!
//! The tests speak to the driver itself, with nothing before it that could refuse first.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)] // Test code: a violated contract is a panic.

pub mod commits;
pub mod leases;
pub mod records;
pub mod requests;
pub mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::clock::{Clock, ManualClock};
use crate::driver::{
    Batch, CommitError, Driver, EntityRow, Exception, ExceptionState, Fence, HookNumber, LogEntry, LogRow, Receipt,
    ReceiptOutcome, RecordId, RecordRow, RecordWrite, RequestId, RequestedChange, ServerId, ServerLoad, ServerRow,
    Settle, SlotId, SlotToken, StoredDocument,
};
use crate::path::Path;
use crate::record::{IndexDeclaration, IndexKey, Retain};
use crate::revision::{Epoch, Revision, SubmissionId, Timestamp};

/// The lease that servers of these tests have.
pub const LEASE: Duration = Duration::from_secs(10);

/// When the clock of these tests starts.
pub const START: Timestamp = Timestamp(1_000_000);

/// What a test is given: a driver on an empty store, and the clock that it goes by.
#[derive(Clone)]
pub struct Subject {
    /// The driver.
    pub driver: Arc<dyn Driver>,
    /// Its clock, which stands at [`START`].
    pub clock: ManualClock,
}

impl Subject {
    /// A subject on a clock that stands at [`START`].
    #[must_use]
    pub fn new(make: impl FnOnce(Arc<dyn Clock>) -> Arc<dyn Driver>) -> Self {
        let clock = ManualClock::new(START);
        Subject { driver: make(Arc::new(clock.clone())), clock }
    }

    pub(crate) async fn epoch(&self) -> Epoch {
        self.driver.meta().await.unwrap().epoch
    }

    pub(crate) async fn head(&self) -> Revision {
        self.driver.meta().await.unwrap().head
    }

    /// Commits what `batch` makes of the head, in a session of its own.
    pub(crate) async fn commit(
        &self,
        batch: impl FnOnce(Revision, Timestamp) -> Batch,
    ) -> Result<Revision, CommitError> {
        let (epoch, head) = (self.epoch().await, self.head().await);
        let begun = self.driver.begin(epoch, head, 1_000).await.map_err(CommitError::NotCommitted)?;
        let head = begun.rows.last().map_or(head, |row| row.revision);
        let batch = batch(head, begun.session.now());
        let revision = batch.rows.last().map_or(head, |row| row.revision);
        begun.session.commit(batch).await.map(|()| revision)
    }

    /// Commits nothing but a new epoch, whose tokens are above this one; says which.
    pub(crate) async fn begin_epoch(&self, tokens_above: SlotToken) -> Epoch {
        self.commit(|_, _| Batch { new_epoch: Some(tokens_above), ..Batch::default() }).await.unwrap();
        self.epoch().await
    }

    /// Commits `count` transactions, each of which puts an entity and asks for a run of each of the hooks.
    pub(crate) async fn put(&self, count: u64, hooks: &[HookNumber]) -> Revision {
        let hooks = hooks.to_vec();
        self.commit(move |head, now| Batch { rows: rows(head, now, count, &hooks), ..Batch::default() }).await.unwrap()
    }

    /// As [`Subject::put`], each in a commit of its own.
    pub(crate) async fn put_each(&self, count: u64, hooks: &[HookNumber]) {
        for _ in 0..count {
            self.put(1, hooks).await;
        }
    }

    pub(crate) async fn join(&self, number: u128) -> ServerId {
        let row = server(number, self.clock.now());
        self.driver.join(row.clone()).await.unwrap();
        row.id
    }

    pub(crate) async fn take(&self, server: ServerId, slot: SlotId) -> Option<Fence> {
        self.driver.take_slots(server, &[slot]).await.unwrap().first().copied()
    }

    pub(crate) async fn settle_one(&self, item: Settle) -> crate::driver::Settled {
        self.driver.settle(vec![item]).await.unwrap()[0]
    }

    /// Writes the entities of [`rows`] behind, up to `to`.
    pub(crate) async fn write_behind(&self, from: Revision, to: Revision) {
        let changed = (from.0 + 1..=to.0).map(|revision| entity(Revision(revision))).collect();
        self.driver.write_entities(self.epoch().await, from, to, changed, Vec::new()).await.unwrap();
    }
}

/// The hook of these tests.
pub(crate) const HOOK: HookNumber = HookNumber(1);

pub(crate) fn slot(number: u32) -> SlotId {
    SlotId { hook: HOOK, slot: number }
}

pub(crate) fn document(text: &str) -> StoredDocument {
    StoredDocument { format: 1, json: format!("{{\"text\":{text:?}}}").into() }
}

pub(crate) fn path(revision: Revision) -> Path {
    Path::root().child("things", &revision.to_string()).unwrap()
}

pub(crate) fn entity(revision: Revision) -> EntityRow {
    EntityRow { path: path(revision), revision, document: document(&revision.to_string()) }
}

pub(crate) fn row(revision: Revision, at: Timestamp, hooks: &[HookNumber]) -> Arc<LogRow> {
    Arc::new(LogRow {
        revision,
        submission: submission(revision),
        at,
        server: "server-a".into(),
        attributes: Arc::new([("user".to_owned(), "é\0".to_owned())].into()),
        entries: vec![LogEntry::Change {
            path: path(revision),
            before: None,
            after: Some(document(&revision.to_string())),
            hooks: hooks.to_vec(),
        }],
    })
}

pub(crate) fn rows(head: Revision, at: Timestamp, count: u64, hooks: &[HookNumber]) -> Vec<Arc<LogRow>> {
    (head.0 + 1..=head.0 + count).map(|revision| row(Revision(revision), at, hooks)).collect()
}

pub(crate) fn revisions(rows: &[Arc<LogRow>]) -> Vec<u64> {
    rows.iter().map(|row| row.revision.0).collect()
}

pub(crate) fn submission(revision: Revision) -> SubmissionId {
    SubmissionId(Uuid::from_u128(0x5000_0000 + u128::from(revision.0)))
}

pub(crate) fn request(revision: u64) -> RequestId {
    RequestId { revision: Revision(revision), sequence: 0, hook: HOOK }
}

pub(crate) fn receipt(revision: u64, fence: Fence) -> Receipt {
    Receipt { request: request(revision), fence, outcome: ReceiptOutcome::Done }
}

pub(crate) fn exception(revision: u64, slot: SlotId, state: ExceptionState) -> Exception {
    Exception {
        request: request(revision),
        slot,
        state,
        attempts: 3,
        deaths: 1,
        error: Some("the disk said \"no\"\0é".to_owned()),
        change: RequestedChange {
            path: path(Revision(revision)),
            before: Some(document("before")),
            after: None,
            at: Timestamp(-7),
            attributes: Arc::new([("trace".to_owned(), "1".to_owned())].into()),
        },
    }
}

pub(crate) fn server(number: u128, now: Timestamp) -> ServerRow {
    ServerRow {
        id: ServerId(Uuid::from_u128(number)),
        name: "server".into(),
        lease_until: now.after(LEASE),
        draining: false,
        hooks: vec![crate::driver::ServerHook { hook: HOOK, version: 2, room: 3 }],
        load: ServerLoad::default(),
        applied: Revision(4),
    }
}

/// Two indexes: by owner, then the time falling; by number.
pub(crate) fn declaration(per_key: Option<u64>) -> IndexDeclaration {
    IndexDeclaration {
        kind: "run".into(),
        indexes: vec!["by-owner".to_owned(), "by-number".to_owned()],
        retain: Retain { age: None, per_key },
    }
}

pub(crate) fn record(id: RecordId, at: Timestamp, owner: &str, number: i64) -> RecordRow {
    RecordRow {
        kind: "run".into(),
        id,
        closed: false,
        at,
        document: document(&number.to_string()),
        keys: vec![
            IndexKey::new().text(owner).falling(number).into_bytes(),
            IndexKey::new().number(number).into_bytes(),
        ],
    }
}

/// A transaction of records alone: those of `owners`, numbered from `first`.
pub(crate) fn append(head: Revision, now: Timestamp, owners: &[&str], first: i64) -> Batch {
    let revision = head.next();
    let records = owners
        .iter()
        .zip(0..)
        .map(|(owner, sequence)| {
            let id = RecordId { revision, sequence };
            RecordWrite::Append(record(id, now, owner, first + i64::from(sequence)))
        })
        .collect();
    let mut row = (*row(revision, now, &[])).clone();
    row.entries.clear();
    Batch { rows: vec![Arc::new(row)], records, ..Batch::default() }
}

/// Makes a `#[tokio::test]` of each test of the contract. Takes an expression that makes a [`Subject`] and whatever has
/// to be kept while it lives, as a pair.
#[macro_export]
macro_rules! driver_contract_tests {
    ($make:expr) => {
        $crate::driver_contract_tests!(@each $make;
            commits::d01_revisions_have_no_gap_and_a_batch_that_would_make_one_is_refused,
            commits::d01_a_batch_is_applied_whole_or_not_at_all,
            commits::d15_readers_see_every_row_in_order_while_many_commit,
            commits::d15_any_part_of_what_was_committed_together_can_be_read,
            commits::d16_a_submission_is_found_by_its_id_while_its_row_is_kept,
            commits::d19_a_lost_answer_is_unknown_and_the_submission_says_what_happened,
            commits::d33_who_is_far_behind_does_not_get_the_lock,
            commits::t19_a_dropped_session_leaves_no_trace_and_lets_go_of_the_lock,
            commits::t19_a_commit_whose_caller_goes_away_is_applied_whole_or_not_at_all,
            commits::d06_news_come_at_once_and_waiting_for_them_has_a_limit,
            commits::d26_large_documents_and_transactions_are_stored_whole,
            leases::k48_tokens_only_rise_over_slots_owners_and_epochs,
            leases::k07_another_process_under_the_name_waits_for_the_old_lease,
            leases::k43_a_heartbeat_that_lands_late_takes_nothing_back,
            leases::k43_a_lapsed_lease_is_not_renewed_and_gets_nothing,
            leases::k43_joining_anew_under_the_same_id_does_not_bring_old_tokens_back,
            leases::k30_released_slots_are_free_at_once_and_a_draining_server_gets_none,
            leases::k39_a_server_that_leaves_frees_its_slots,
            leases::d34_leases_end_when_the_clock_says_so_and_not_before,
            leases::k45_a_checked_token_cannot_be_taken_over_before_its_commit,
            leases::k45_receipts_and_taking_over_never_overlap,
            requests::k45_a_settlement_is_judged_item_by_item,
            requests::k45_a_settlement_is_there_whole_or_not_at_all,
            requests::k45_a_lost_answer_can_be_asked_for_again,
            requests::g05_a_receipt_wins_over_an_exception,
            requests::k11_receipts_of_a_commit_are_stored_with_its_rows,
            requests::k46_what_waits_is_read_page_by_page,
            requests::k46_exceptions_read_back_as_they_were_written,
            requests::k47_a_watermark_is_never_lowered_and_never_raised_by_a_stale_owner,
            records::r01_records_are_stored_with_their_transaction_and_updated_until_closed,
            records::r06_pages_go_forwards_and_back_in_index_order,
            records::r06_paging_sees_each_record_once_while_others_append_and_prune,
            records::r06_a_query_without_index_is_refused_naming_those_there_are,
            records::r07_retention_by_age_and_by_number_lets_go_in_small_batches,
            records::r08_large_records_are_read_in_bounded_pages,
            records::r10_declarations_may_grow_at_the_end_only,
            records::r10_an_added_index_is_built_page_by_page,
            records::r10_an_older_build_never_leaves_a_hole,
            upkeep::d41_entities_are_written_behind_and_never_go_back,
            upkeep::d41_compaction_takes_nothing_that_is_needed,
            upkeep::d41_of_what_was_committed_together_nothing_goes_that_is_needed,
            upkeep::k34_compaction_goes_in_small_steps_and_prunes_receipts,
            upkeep::k34_a_slot_that_never_was_begins_where_the_log_does,
            upkeep::d08_another_epoch_is_noticed_by_every_call_that_names_one,
            upkeep::d37_a_head_below_what_was_seen_is_told,
            upkeep::u04_all_that_is_stored_can_be_read,
        );
    };
    (@each $make:expr; $($module:ident :: $case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let (subject, _kept) = $make;
                $crate::testing::driver_contract::$module::$case(subject).await;
            }
        )*
    };
}
