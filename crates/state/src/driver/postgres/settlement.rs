//! Receipts, exceptions and watermarks: each on condition that its token holds.
//!
//! The tokens' slots are locked first (`FOR KEY SHARE`), then everything is written in the same transaction on the same
//! condition. What voids a token waits for the lock, so what held goes on holding for all of the statements. What did not may
//! be found to hold by a later one, where a heartbeat commits in between: an exception is stored then whose settlement is
//! answered as refused, as if the answer had been lost. Receipts are one statement, in which the rows that are locked are the
//! condition: one that waited for a taking over finds the key columns changed, and does not have the row.

use std::collections::{BTreeSet, HashSet};

use tokio_postgres::Row;

use super::super::encoding::encode_requested_change;
use super::super::{DriverError, Exception, Fence, HookNumber, Receipt, RequestId, Settle, Settled, SlotId, SlotToken};
use super::connection::{Call, Value, values};
use super::driver::PostgresDriver;
use super::receipts::{not_received, store_call};
use crate::revision::Revision;

/// The time by which a lease is judged within a transaction: one for all of its statements.
macro_rules! transaction_time {
    ($parameter:literal) => {
        concat!("coalesce(", $parameter, "::bigint, (extract(epoch FROM transaction_timestamp()) * 1000)::bigint)")
    };
}
pub(super) use transaction_time;

/// The time by which a lease is judged as of now, also in a transaction that is older.
macro_rules! clock_time {
    ($parameter:literal) => {
        concat!("coalesce(", $parameter, "::bigint, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)")
    };
}
pub(super) use clock_time;

/// The slots `s` of those tokens that hold at a time: the first three parameters.
macro_rules! held_slots {
    ($time:expr) => {
        concat!(
            " FROM unnest($1::integer[], $2::integer[], $3::bigint[]) AS fence (hook, slot, token)
             JOIN slots s ON s.hook = fence.hook AND s.slot = fence.slot AND s.token = fence.token
             JOIN servers o ON o.id = s.owner AND o.lease_until > ",
            $time
        )
    };
}
pub(super) use held_slots;

/// In order of slots, as everything locks them that locks several.
macro_rules! lock_fences {
    ($time:expr) => {
        concat!("SELECT s.hook, s.slot, s.token", held_slots!($time), " ORDER BY s.hook, s.slot FOR KEY SHARE OF s")
    };
}
pub(super) use lock_fences;

/// For a transaction whose later statements go by whether all of them hold.
const FENCES: &str = lock_fences!(transaction_time!("$4"));

/// For a session, whose transaction may be older than the lease.
const FENCES_NOW: &str = lock_fences!(clock_time!("$4"));

/// The condition that all tokens hold, whose slots this transaction has locked: the first three parameters, judged at the
/// time of the fourth, as many as the fifth says.
macro_rules! all_hold {
    () => {
        concat!("(SELECT count(*)", held_slots!(transaction_time!("$4")), ") = $5::bigint")
    };
}

const EXCEPTIONS: &str = concat!(
    "INSERT INTO exceptions (hook, revision, sequence, slot_hook, slot, state, attempts, deaths, error, path, change)
     SELECT DISTINCT ON (given.hook, given.revision, given.sequence)
         given.hook, given.revision, given.sequence, given.slot_hook, given.slot, given.state, given.attempts,
         given.deaths, given.error, given.path, given.change
     FROM unnest($6::integer[], $7::bigint[], $8::integer[], $9::integer[], $10::integer[], $11::text[],
                 $12::integer[], $13::integer[], $14::bytea[], $15::text[], $16::bytea[])
         WITH ORDINALITY
         AS given (hook, revision, sequence, slot_hook, slot, state, attempts, deaths, error, path, change, place)
     WHERE ",
    all_hold!(),
    " AND ",
    not_received!(),
    "
     ORDER BY given.hook, given.revision, given.sequence, given.place DESC
     ON CONFLICT (hook, revision, sequence) DO UPDATE SET
         slot_hook = excluded.slot_hook, slot = excluded.slot, state = excluded.state,
         attempts = excluded.attempts, deaths = excluded.deaths, error = excluded.error,
         path = excluded.path, change = excluded.change"
);

/// How many exceptions one statement stores. Each is looked for among the receipts of a thousand revisions, which may be many.
const EXCEPTIONS_AT_ONCE: usize = 250;

const WATERMARKS: &str = concat!(
    "UPDATE slots s SET watermark = raised.watermark
     FROM (SELECT hook, slot, max(watermark) AS watermark
           FROM unnest($6::integer[], $7::integer[], $8::bigint[]) AS given (hook, slot, watermark)
           GROUP BY hook, slot ORDER BY hook, slot) raised
     WHERE ",
    all_hold!(),
    " AND s.hook = raised.hook AND s.slot = raised.slot AND s.watermark < raised.watermark"
);

/// Locks the slots of those tokens that hold now, and says which these are.
pub(super) fn fences_now_call(fences: &[Fence], now: Option<i64>) -> Call {
    Call::new(FENCES_NOW, fence_values(&distinct(fences.iter().copied()), now))
}

pub(super) fn fence_values(fences: &[Fence], now: Option<i64>) -> Vec<Value> {
    let Columns { hooks, slots, tokens } = columns(fences);
    values![hooks, slots, tokens, now]
}

/// In order of slots.
fn distinct(fences: impl Iterator<Item = Fence>) -> Vec<Fence> {
    let distinct: BTreeSet<(SlotId, SlotToken)> = fences.map(|fence| (fence.slot, fence.token)).collect();
    distinct.into_iter().map(|(slot, token)| Fence { slot, token }).collect()
}

/// The columns `hook`, `slot`, `token`.
#[derive(Default)]
pub(super) struct Columns {
    pub(super) hooks: Vec<i32>,
    pub(super) slots: Vec<i32>,
    pub(super) tokens: Vec<i64>,
}

pub(super) fn columns<'a>(fences: impl IntoIterator<Item = &'a Fence>) -> Columns {
    let mut columns = Columns::default();
    for fence in fences {
        columns.hooks.push(fence.slot.hook.0.cast_signed());
        columns.slots.push(fence.slot.slot.cast_signed());
        columns.tokens.push(fence.token.0.cast_signed());
    }
    columns
}

pub(super) fn held_fences(rows: &[Row]) -> HashSet<Fence> {
    rows.iter().map(|row| column_fence(row, 0)).collect()
}

/// The columns `hook, slot, token` from `column` on.
pub(super) fn column_fence(row: &Row, column: usize) -> Fence {
    Fence { slot: column_slot(row, column), token: SlotToken(row.get::<_, i64>(column + 2).cast_unsigned()) }
}

/// The columns `hook, slot` from `column` on.
pub(super) fn column_slot(row: &Row, column: usize) -> SlotId {
    SlotId { hook: HookNumber(column_number(row, column)), slot: column_number(row, column + 1) }
}

pub(super) fn column_number(row: &Row, column: usize) -> u32 {
    row.get::<_, i32>(column).cast_unsigned()
}

/// The columns `hook, revision, sequence` from `column` on.
pub(super) fn column_request(row: &Row, column: usize) -> RequestId {
    RequestId {
        hook: HookNumber(column_number(row, column)),
        revision: super::log::column_revision(row, column + 1),
        sequence: column_number(row, column + 2),
    }
}

/// Stores exceptions if all of `fences` hold, whose slots this transaction has locked. Of one request the last one counts;
/// one with a receipt has none. Those whose tokens were checked in this transaction need none.
pub(super) fn exceptions_call(exceptions: &[&Exception], fences: &[Fence], now: Option<i64>) -> Call {
    let mut all = condition_values(fences, now);
    all.extend(exception_values(exceptions));
    Call::new(EXCEPTIONS, all)
}

/// The first five parameters of what is stored on condition of tokens.
pub(super) fn condition_values(fences: &[Fence], now: Option<i64>) -> Vec<Value> {
    let mut all = fence_values(fences, now);
    all.push(Box::new(i64::try_from(fences.len()).unwrap_or(i64::MAX)));
    all
}

/// The columns `hook`, `revision`, `sequence`.
pub(super) fn request_values(requests: impl Iterator<Item = RequestId>) -> Vec<Value> {
    let (mut hooks, mut revisions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
    for RequestId { hook, revision, sequence } in requests {
        hooks.push(hook.0.cast_signed());
        revisions.push(revision.0.cast_signed());
        sequences.push(sequence.cast_signed());
    }
    values![hooks, revisions, sequences]
}

fn exception_values(exceptions: &[&Exception]) -> Vec<Value> {
    let (mut slot_hooks, mut slots, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let (mut attempts, mut deaths, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    let (mut paths, mut changes) = (Vec::new(), Vec::new());
    for Exception { slot, state, error, change, attempts: failed, deaths: died, .. } in exceptions {
        slot_hooks.push(slot.hook.0.cast_signed());
        slots.push(slot.slot.cast_signed());
        states.push(serde_json::to_string(state).expect("the state of an exception has only text keys"));
        attempts.push(failed.cast_signed());
        deaths.push(died.cast_signed());
        // As bytes: a text of PostgreSQL can't have U+0000 in it.
        errors.push(error.as_ref().map(|error| error.as_bytes().to_vec()));
        paths.push(change.path.as_str().to_owned());
        changes.push(encode_requested_change(change));
    }
    let mut all = request_values(exceptions.iter().map(|exception| exception.request));
    all.extend(values![slot_hooks, slots, states, attempts, deaths, errors, paths, changes]);
    all
}

fn fence_of(item: &Settle) -> Fence {
    match item {
        Settle::Receipt(receipt) => receipt.fence,
        Settle::Exception { fence, .. } | Settle::Watermark { fence, .. } => *fence,
    }
}

/// Stores what the tokens allow, all of it together: an operator's action and what it has changed, or a watermark and the
/// receipts below it, must not come apart.
pub(super) async fn settle(driver: &PostgresDriver, items: Vec<Settle>) -> Result<Vec<Settled>, DriverError> {
    let now = driver.shared().now_given();
    let limit = driver.shared().options.answer_limit;
    let mut going: Vec<&Settle> = items.iter().collect();
    let mut stored = HashSet::new();
    while !going.is_empty() {
        let fences = distinct(going.iter().map(|item| fence_of(item)));
        let calls = calls(&going, &fences, now, driver.shared().format());
        let connection = driver.links.settle.get().await?;
        let rows = if calls.len() == 1 {
            connection.run(calls, limit).await?
        } else {
            // Beside the first and the last one these are of exceptions, which may take as long each.
            let longest = u32::try_from(calls.len().saturating_sub(2).max(1)).unwrap_or(u32::MAX);
            connection.transaction(calls, limit * longest).await?
        };
        let held = held_fences(&rows[0]);
        if held.len() == fences.len() {
            stored = held;
            break;
        }
        // Nothing was stored. There are fewer each time.
        going.retain(|item| held.contains(&fence_of(item)));
    }
    let settled = |item| if stored.contains(&fence_of(item)) { Settled::Durable } else { Settled::Refused };
    Ok(items.iter().map(settled).collect())
}

/// The statements that store all of it if all tokens hold, and nothing otherwise. The first one locks their slots and says
/// which do. Most settlements are receipts alone, and one statement.
fn calls(items: &[&Settle], fences: &[Fence], now: Option<i64>, format: u32) -> Vec<Call> {
    let (mut receipts, mut exceptions): (Vec<&Receipt>, Vec<&Exception>) = (Vec::new(), Vec::new());
    let mut watermarks: Vec<(Fence, Revision)> = Vec::new();
    for item in items {
        match item {
            Settle::Receipt(receipt) => receipts.push(receipt),
            Settle::Exception { exception, .. } => exceptions.push(exception),
            Settle::Watermark { fence, to } => watermarks.push((*fence, *to)),
        }
    }
    let mut calls = Vec::with_capacity(3);
    calls.push(if receipts.is_empty() {
        Call::new(FENCES, fence_values(fences, now))
    } else {
        store_call(&receipts, fences, now, format)
    });
    calls.extend(exceptions.chunks(EXCEPTIONS_AT_ONCE).map(|some| exceptions_call(some, fences, now)));
    if !watermarks.is_empty() {
        let Columns { hooks, slots, .. } = columns(watermarks.iter().map(|(fence, _)| fence));
        let to: Vec<i64> = watermarks.iter().map(|(_, to)| to.0.cast_signed()).collect();
        let mut all = condition_values(fences, now);
        all.extend(values![hooks, slots, to]);
        calls.push(Call::new(WATERMARKS, all));
    }
    calls
}
