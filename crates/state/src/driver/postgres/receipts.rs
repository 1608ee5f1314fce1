//! Receipts as they are stored, and read again.
//!
//! From format 2 on a row has up to [`BLOCK`] of them: a row for each is most of what a receipt costs the database. In a
//! store of format 1, which servers of the release before share, each is a row, and such rows are read in both.
//!
//! # Invariants
//! - The requests of a block are of one hook, and their revisions lie at most [`SPAN`] apart.
//! - Of two receipts of one request the first one counts. A receipt is stored again only where its answer was lost, and is
//!   the same then.

use std::collections::BTreeSet;

use bytes::Buf as _;
use tokio_postgres::Row;

use super::super::encoding::{outcome_number, outcome_of};
use super::super::{DriverError, Fence, HookNumber, Receipt, RequestId, SlotId, SlotToken};
use super::connection::{Call, Value, values};
use super::log::column_revision;
use super::schema::BLOCKS_FORMAT;
use super::settlement::{
    column_fence, column_number, column_request, columns, condition_values, held_slots, lock_fences, request_values,
    transaction_time,
};
use super::stored::damaged;
use crate::revision::Revision;

/// How many receipts a block has at most. Less than 2 000 bytes, beyond which the database moves values out of their table.
const BLOCK: usize = 64;

/// How far apart the revisions of a block's requests may be.
const SPAN: u64 = 1_024;

/// The bytes of one receipt.
const ENTRY: usize = 29;

/// What most settlements are, as one statement: a transaction of several costs the database more than the receipts do. What
/// locks the slots also judges their tokens. All receipts are stored if all tokens hold, and otherwise none; the answer is
/// the tokens that do. A receipt wins over an exception; where there is none at all, none is looked up.
macro_rules! store_receipts {
    ($store:literal, $again:literal) => {
        concat!(
            "WITH held AS MATERIALIZED (",
            lock_fences!(transaction_time!("$4")),
            "), stored AS (",
            $store,
            " WHERE (SELECT count(*) FROM held) = $5::bigint ",
            $again,
            "), removed AS (
                 DELETE FROM exceptions e
                 USING unnest($6::integer[], $7::bigint[], $8::integer[]) AS given (hook, revision, sequence)
                 WHERE (SELECT EXISTS (SELECT FROM exceptions)) AND (SELECT count(*) FROM held) = $5::bigint
                   AND e.hook = given.hook AND e.revision = given.revision AND e.sequence = given.sequence
             )
             SELECT hook, slot, token FROM held"
        )
    };
}

const STORE_BLOCKS: &str = store_receipts!(
    "INSERT INTO receipt_blocks (hook, first_revision, last_revision, receipts)
     SELECT * FROM unnest($9::integer[], $10::bigint[], $11::bigint[], $12::bytea[])",
    ""
);

const STORE_ROWS: &str = store_receipts!(
    "INSERT INTO receipts (hook, revision, sequence, slot_hook, slot, token, outcome)
     SELECT * FROM unnest($6::integer[], $7::bigint[], $8::integer[], $9::integer[], $10::integer[], $11::bigint[],
                          $12::smallint[])",
    "ON CONFLICT DO NOTHING"
);

/// The condition that no receipt of `given` is stored.
macro_rules! not_received {
    () => {
        "NOT EXISTS (SELECT FROM receipts r WHERE r.hook = given.hook AND r.revision = given.revision
                       AND r.sequence = given.sequence)
         AND NOT EXISTS (SELECT FROM receipt_blocks b CROSS JOIN generate_series(0, length(b.receipts) - 29, 29) AS at
                         WHERE b.hook = given.hook AND b.first_revision <= given.revision
                           AND b.last_revision BETWEEN given.revision AND given.revision + 1024
                           AND position(int8send(given.revision) || int4send(given.sequence) IN b.receipts) > 0
                           AND substr(b.receipts, at + 1, 12) = int8send(given.revision) || int4send(given.sequence))"
    };
}
pub(super) use not_received;

const RECEIVED_ROWS: &str = "
    SELECT hook, revision, sequence FROM receipts WHERE hook = $1 AND revision > $2 AND revision <= $3";

pub(super) const RECEIVED_BLOCKS: &str = "
    SELECT receipts FROM receipt_blocks
    WHERE hook = $1 AND last_revision > $2 AND last_revision <= $3::bigint + 1024 AND first_revision <= $3";

/// Stores receipts in a store of this format, all of them if all of `fences` hold and otherwise none, and says which of these
/// do. Those whose tokens were checked in this transaction need none.
pub(super) fn store_call(receipts: &[&Receipt], fences: &[Fence], now: Option<i64>, format: u32) -> Call {
    let mut all = condition_values(fences, now);
    all.extend(request_values(receipts.iter().map(|receipt| receipt.request)));
    if format < BLOCKS_FORMAT {
        all.extend(row_values(receipts));
        Call::new(STORE_ROWS, all)
    } else {
        all.extend(block_values(receipts));
        Call::new(STORE_BLOCKS, all)
    }
}

fn row_values(receipts: &[&Receipt]) -> Vec<Value> {
    let fences = columns(receipts.iter().map(|receipt| &receipt.fence));
    let outcomes: Vec<i16> = receipts.iter().map(|receipt| outcome_number(receipt.outcome) as i16).collect();
    values![fences.hooks, fences.slots, fences.tokens, outcomes]
}

fn block_values(receipts: &[&Receipt]) -> Vec<Value> {
    let (mut hooks, mut first, mut last, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for block in blocks(receipts) {
        hooks.push(block.hook.0.cast_signed());
        first.push(block.first.0.cast_signed());
        last.push(block.last.0.cast_signed());
        bytes.push(block.receipts);
    }
    values![hooks, first, last, bytes]
}

/// A row of `receipt_blocks`.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    hook: HookNumber,
    first: Revision,
    last: Revision,
    receipts: Vec<u8>,
}

/// Puts receipts together, in order of their requests; of one request the first one is first.
fn blocks(receipts: &[&Receipt]) -> Vec<Block> {
    let mut sorted = receipts.to_vec();
    sorted.sort_by_key(|receipt| (receipt.request.hook, receipt.request));
    let mut blocks: Vec<Block> = Vec::with_capacity(receipts.len() / BLOCK + 1);
    for receipt in sorted {
        let RequestId { hook, revision, .. } = receipt.request;
        let fits = |block: &&mut Block| {
            block.hook == hook && revision.0 - block.first.0 <= SPAN && block.receipts.len() < BLOCK * ENTRY
        };
        if let Some(block) = blocks.last_mut().filter(fits) {
            block.last = revision;
            put(&mut block.receipts, receipt);
        } else {
            let mut block =
                Block { hook, first: revision, last: revision, receipts: Vec::with_capacity(BLOCK * ENTRY) };
            put(&mut block.receipts, receipt);
            blocks.push(block);
        }
    }
    blocks
}

fn put(bytes: &mut Vec<u8>, receipt: &Receipt) {
    let Receipt { request, fence, outcome } = receipt;
    bytes.extend(request.revision.0.to_be_bytes());
    bytes.extend(request.sequence.to_be_bytes());
    bytes.extend(fence.slot.hook.0.to_be_bytes());
    bytes.extend(fence.slot.slot.to_be_bytes());
    bytes.extend(fence.token.0.to_be_bytes());
    bytes.push(outcome_number(*outcome) as u8);
}

/// All receipts that are rows, in order of their requests.
pub(super) const RECEIPT_ROWS: &str = "
    SELECT hook, revision, sequence, slot_hook, slot, token, outcome FROM receipts ORDER BY hook, revision, sequence";

/// All that are in blocks; of two of one request the first one comes first.
pub(super) const RECEIPT_BLOCKS: &str =
    "SELECT hook, last_revision, receipts FROM receipt_blocks ORDER BY hook, last_revision, first_revision, id";

/// Reads a row of [`RECEIPT_ROWS`].
pub(super) fn read_receipt(row: &Row) -> Result<Receipt, DriverError> {
    let outcome = outcome_of(i64::from(row.get::<_, i16>(6))).ok_or_else(|| damaged("a receipt"))?;
    Ok(Receipt { request: column_request(row, 0), fence: column_fence(row, 3), outcome })
}

/// Reads rows of [`RECEIPT_BLOCKS`]. What a compaction has passed is left out of a block that it has not.
pub(super) fn read_blocks(rows: &[Row], compacted: Revision) -> Result<Vec<Receipt>, DriverError> {
    let mut receipts = Vec::with_capacity(rows.len());
    for row in rows {
        let is_passed = column_revision(row, 1) <= compacted;
        for receipt in entries(HookNumber(column_number(row, 0)), row.get(2))? {
            let receipt = receipt?;
            if is_passed || receipt.request.revision > compacted {
                receipts.push(receipt);
            }
        }
    }
    Ok(receipts)
}

/// The receipts of a block.
fn entries(hook: HookNumber, block: &[u8]) -> Result<impl Iterator<Item = Result<Receipt, DriverError>>, DriverError> {
    let (entries, rest) = block.as_chunks::<ENTRY>();
    if !rest.is_empty() {
        return Err(damaged("a block of receipts"));
    }
    Ok(entries.iter().map(move |entry| {
        let mut rest = &entry[..];
        let request = RequestId { hook, revision: Revision(rest.get_u64()), sequence: rest.get_u32() };
        let slot = SlotId { hook: HookNumber(rest.get_u32()), slot: rest.get_u32() };
        let fence = Fence { slot, token: SlotToken(rest.get_u64()) };
        let outcome = outcome_of(i64::from(rest.get_u8())).ok_or_else(|| damaged("a receipt"))?;
        Ok(Receipt { request, fence, outcome })
    }))
}

/// Reads which requests of a hook have receipts, above one revision and up to another.
pub(super) fn received_calls(hook: HookNumber, after: Revision, to: Revision) -> [Call; 2] {
    let given = || values![hook.0.cast_signed(), after.0.cast_signed(), to.0.cast_signed()];
    [Call::new(RECEIVED_ROWS, given()), Call::new(RECEIVED_BLOCKS, given())]
}

/// What [`received_calls`] have found, in order, each request once.
pub(super) fn read_received(
    hook: HookNumber,
    after: Revision,
    to: Revision,
    rows: &[Row],
    blocks: &[Row],
) -> Result<Vec<RequestId>, DriverError> {
    let mut received: BTreeSet<RequestId> = rows.iter().map(|row| column_request(row, 0)).collect();
    for block in blocks {
        for receipt in entries(hook, block.get(0))? {
            let request = receipt?.request;
            if request.revision > after && request.revision <= to {
                received.insert(request);
            }
        }
    }
    Ok(received.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::driver::ReceiptOutcome;

    fn receipt(hook: u32, revision: u64, sequence: u32) -> Receipt {
        let request = RequestId { hook: HookNumber(hook), revision: Revision(revision), sequence };
        let slot = SlotId { hook: HookNumber(hook), slot: 63 };
        Receipt { request, fence: Fence { slot, token: SlotToken(u64::MAX >> 1) }, outcome: ReceiptOutcome::Done }
    }

    fn made_of(receipts: &[Receipt]) -> Vec<Block> {
        blocks(&receipts.iter().collect::<Vec<_>>())
    }

    #[test]
    fn statements_and_the_table_go_by_the_same_sizes() {
        assert!(not_received!().contains(&format!("given.revision + {SPAN}")));
        assert!(RECEIVED_BLOCKS.contains(&format!("$3::bigint + {SPAN}")));
        assert!(not_received!().contains(&format!("- {ENTRY}, {ENTRY})")));
        let table = include_str!("migrations/V2__blocks.sql");
        assert!(table.contains(&format!("- {ENTRY}, {ENTRY})")));
        const { assert!(BLOCK * ENTRY < 2_000) };
    }

    #[test]
    fn a_block_is_full_or_of_another_hook_or_too_far_away() {
        let full: Vec<Receipt> = (0..65).map(|sequence| receipt(1, 7, sequence)).collect();
        assert_eq!(made_of(&full).iter().map(|block| block.receipts.len()).collect::<Vec<_>>(), [64 * ENTRY, ENTRY]);
        assert_eq!(made_of(&[receipt(1, 7, 0), receipt(2, 7, 0), receipt(1, 8, 0)]).len(), 2);
        assert_eq!(made_of(&[receipt(1, 1, 0), receipt(1, 1 + SPAN, 0)]).len(), 1);
        assert_eq!(made_of(&[receipt(1, 1, 0), receipt(1, 2 + SPAN, 0)]).len(), 2);
    }

    #[test]
    fn of_two_receipts_of_one_request_the_first_one_is_first() {
        let (first, again) = (receipt(1, 7, 0), Receipt { outcome: ReceiptOutcome::Cancelled, ..receipt(1, 7, 0) });
        let [block] = &made_of(&[first, again])[..] else { panic!("one block") };
        assert_eq!(block.receipts[ENTRY - 1], outcome_number(ReceiptOutcome::Done) as u8);
    }

    #[test]
    fn a_block_that_was_cut_off_is_damage() {
        let bytes = &made_of(&[receipt(1, 7, 0)])[0].receipts;
        assert!(entries(HookNumber(1), bytes).is_ok());
        assert!(matches!(entries(HookNumber(1), &bytes[1..]).map(drop), Err(DriverError::Damaged(_))));
    }

    proptest! {
        #[test]
        fn blocks_have_what_was_put_into_them(
            given in prop::collection::vec((1_u32..4, 1_u64..5_000, 0_u32..3), 0..400),
        ) {
            let receipts: Vec<Receipt> = given.iter().map(|(hook, revision, sequence)| receipt(*hook, *revision, *sequence)).collect();
            let mut expected = receipts.clone();
            expected.sort_by_key(|receipt| (receipt.request.hook, receipt.request));
            let mut found = Vec::new();
            for block in made_of(&receipts) {
                let read: Vec<Receipt> = entries(block.hook, &block.receipts).unwrap().map(Result::unwrap).collect();
                prop_assert!(read.len() <= BLOCK && block.last.0 - block.first.0 <= SPAN);
                prop_assert_eq!(read.first().unwrap().request.revision, block.first);
                prop_assert_eq!(read.last().unwrap().request.revision, block.last);
                found.extend(read);
            }
            prop_assert_eq!(found, expected);
        }
    }
}
