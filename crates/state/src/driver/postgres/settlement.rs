//! Receipts, exceptions and watermarks: each on condition that its token holds.
//!
//! The tokens' slots are locked first (`FOR KEY SHARE`), then everything is written in the same transaction on the same
//! condition: what voids a token waits for the lock, so the condition can't change between two of the statements. Receipts
//! alone are one statement, in which the rows that are locked are the condition: one that waited for a taking over finds
//! the key columns changed, and does not have the row.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::super::encoding::{encode_requested_change, outcome_number};
use super::super::{DriverError, Exception, Fence, HookNumber, Receipt, RequestId, Settle, Settled, SlotId, SlotToken};
use super::connection::{Call, Failed, values};
use super::driver::PostgresDriver;
use crate::revision::Revision;

/// The time by which a lease is judged within a transaction: one for all of its statements.
macro_rules! transaction_time {
    ($parameter:literal) => {
        concat!("coalesce(", $parameter, "::bigint, (extract(epoch FROM transaction_timestamp()) * 1000)::bigint)")
    };
}
pub(super) use transaction_time;

/// In order of slots, as everything locks them that locks several. With the place of each among those that were given.
macro_rules! lock_fences {
    ($time:expr) => {
        concat!(
            "SELECT s.hook, s.slot, s.token, given.place
             FROM unnest($1::integer[], $2::integer[], $3::bigint[]) WITH ORDINALITY AS given (hook, slot, token, place)
             JOIN slots s ON s.hook = given.hook AND s.slot = given.slot AND s.token = given.token
             JOIN servers o ON o.id = s.owner AND o.lease_until > ",
            $time,
            " ORDER BY s.hook, s.slot FOR KEY SHARE OF s"
        )
    };
}

/// For a transaction that judges the tokens again in its later statements.
const FENCES: &str = lock_fences!(transaction_time!("$4"));

/// For a session, whose transaction may be older than the lease.
const FENCES_NOW: &str = lock_fences!("coalesce($4::bigint, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)");

const RECEIPTS: &str = "
    INSERT INTO receipts (hook, revision, sequence, slot_hook, slot, token, outcome)
    SELECT * FROM unnest($1::integer[], $2::bigint[], $3::integer[], $4::integer[], $5::integer[], $6::bigint[],
                         $7::smallint[])
    ON CONFLICT DO NOTHING";

/// Receipts name their token by its place among the distinct ones, since each of them is judged once and not once for each
/// receipt.
const RECEIPTS_FENCED: &str = concat!(
    "INSERT INTO receipts (hook, revision, sequence, slot_hook, slot, token, outcome)
     SELECT given.hook, given.revision, given.sequence, ($6::integer[])[given.fence],
            ($7::integer[])[given.fence], ($8::bigint[])[given.fence], given.outcome
     FROM unnest($1::integer[], $2::bigint[], $3::integer[], $4::smallint[], $5::integer[])
         AS given (hook, revision, sequence, outcome, fence)
     WHERE (SELECT array_agg(o.id IS NOT NULL ORDER BY fence.place)
            FROM unnest($6::integer[], $7::integer[], $8::bigint[])
                WITH ORDINALITY AS fence (hook, slot, token, place)
            LEFT JOIN slots s ON s.hook = fence.hook AND s.slot = fence.slot AND s.token = fence.token
            LEFT JOIN servers o ON o.id = s.owner AND o.lease_until > ",
    transaction_time!("$9"),
    ")[given.fence]
     ON CONFLICT DO NOTHING"
);

/// All that most settlements are, as one statement: a transaction of several costs the database more than the receipts do.
/// What locks the slots also judges their tokens, and everything else goes by its result. Fails where a receipt is there
/// already, which is cheaper than to look first.
const RECEIPTS_ALONE: &str = concat!(
    "WITH held AS MATERIALIZED (",
    lock_fences!(transaction_time!("$4")),
    "), receipt AS MATERIALIZED (
         SELECT given.hook, given.revision, given.sequence, ($1::integer[])[given.fence] AS slot_hook,
                ($2::integer[])[given.fence] AS slot, ($3::bigint[])[given.fence] AS token, given.outcome
         FROM unnest($5::integer[], $6::bigint[], $7::integer[], $8::smallint[], $9::integer[])
             AS given (hook, revision, sequence, outcome, fence)
         WHERE given.fence = ANY (ARRAY(SELECT held.place::integer FROM held))
     ), stored AS (
         INSERT INTO receipts (hook, revision, sequence, slot_hook, slot, token, outcome) SELECT * FROM receipt
     ), removed AS (
         DELETE FROM exceptions e USING receipt
         WHERE (SELECT EXISTS (SELECT FROM exceptions))
           AND e.hook = receipt.hook AND e.revision = receipt.revision AND e.sequence = receipt.sequence
     )
     SELECT hook, slot, token FROM held"
);

/// A receipt wins over an exception. Spares the look-up per receipt where there is no exception at all.
const REMOVE_EXCEPTIONS: &str = "
    DELETE FROM exceptions e
    USING unnest($1::integer[], $2::bigint[], $3::integer[]) AS given (hook, revision, sequence)
    WHERE (SELECT EXISTS (SELECT FROM exceptions))
      AND e.hook = given.hook AND e.revision = given.revision AND e.sequence = given.sequence
      AND EXISTS (SELECT FROM receipts r WHERE r.hook = e.hook AND r.revision = e.revision AND r.sequence = e.sequence)";

macro_rules! put_exceptions {
    ($condition:expr) => {
        concat!(
            "INSERT INTO exceptions (hook, revision, sequence, slot_hook, slot, state, attempts, deaths, error, path, change)
             SELECT DISTINCT ON (given.hook, given.revision, given.sequence)
                 given.hook, given.revision, given.sequence, given.slot_hook, given.slot, given.state, given.attempts,
                 given.deaths, given.error, given.path, given.change
             FROM unnest($1::integer[], $2::bigint[], $3::integer[], $4::integer[], $5::integer[], $6::text[],
                         $7::integer[], $8::integer[], $9::bytea[], $10::text[], $11::bytea[],
                         $12::integer[], $13::integer[], $14::bigint[])
                 WITH ORDINALITY
                 AS given (hook, revision, sequence, slot_hook, slot, state, attempts, deaths, error, path, change,
                           fence_hook, fence_slot, token, place)
             ",
            $condition,
            " NOT EXISTS (SELECT FROM receipts r WHERE r.hook = given.hook AND r.revision = given.revision
                            AND r.sequence = given.sequence)
             ORDER BY given.hook, given.revision, given.sequence, given.place DESC
             ON CONFLICT (hook, revision, sequence) DO UPDATE SET
                 slot_hook = excluded.slot_hook, slot = excluded.slot, state = excluded.state,
                 attempts = excluded.attempts, deaths = excluded.deaths, error = excluded.error,
                 path = excluded.path, change = excluded.change"
        )
    };
}

const EXCEPTIONS: &str = put_exceptions!("WHERE");

const EXCEPTIONS_FENCED: &str = put_exceptions!(concat!(
    "JOIN slots s ON s.hook = given.fence_hook AND s.slot = given.fence_slot AND s.token = given.token
     JOIN servers o ON o.id = s.owner AND o.lease_until > ",
    transaction_time!("$15"),
    " WHERE"
));

const WATERMARKS: &str = concat!(
    "UPDATE slots s SET watermark = raised.watermark
     FROM (SELECT hook, slot, token, max(watermark) AS watermark
           FROM unnest($1::integer[], $2::integer[], $3::bigint[], $4::bigint[]) AS given (hook, slot, token, watermark)
           GROUP BY hook, slot, token ORDER BY hook, slot) raised
     JOIN servers o ON o.lease_until > ",
    transaction_time!("$5"),
    " WHERE s.hook = raised.hook AND s.slot = raised.slot AND s.token = raised.token AND s.owner = o.id
       AND s.watermark < raised.watermark"
);

/// Locks the slots of those tokens that hold now, and says which these are.
pub(super) fn fences_now_call(fences: &[Fence], now: Option<i64>) -> Call {
    Call::new(FENCES_NOW, fence_values(fences, now))
}

fn fence_values(fences: &[Fence], now: Option<i64>) -> Vec<super::connection::Value> {
    let Columns { hooks, slots, tokens } = columns(&distinct(fences.iter().copied()));
    values![hooks, slots, tokens, now]
}

/// In order of slots.
fn distinct(fences: impl Iterator<Item = Fence>) -> Vec<Fence> {
    let distinct: BTreeSet<(SlotId, SlotToken)> = fences.map(|fence| (fence.slot, fence.token)).collect();
    distinct.into_iter().map(|(slot, token)| Fence { slot, token }).collect()
}

#[derive(Default)]
struct Columns {
    hooks: Vec<i32>,
    slots: Vec<i32>,
    tokens: Vec<i64>,
}

fn columns<'a>(fences: impl IntoIterator<Item = &'a Fence>) -> Columns {
    let mut columns = Columns::default();
    for fence in fences {
        columns.hooks.push(fence.slot.hook.0.cast_signed());
        columns.slots.push(fence.slot.slot.cast_signed());
        columns.tokens.push(fence.token.0.cast_signed());
    }
    columns
}

#[derive(Default)]
struct Requests {
    hooks: Vec<i32>,
    revisions: Vec<i64>,
    sequences: Vec<i32>,
}

fn requests(of: impl Iterator<Item = RequestId>) -> Requests {
    let mut requests = Requests::default();
    for request in of {
        requests.hooks.push(request.hook.0.cast_signed());
        requests.revisions.push(request.revision.0.cast_signed());
        requests.sequences.push(request.sequence.cast_signed());
    }
    requests
}

fn outcomes<'a>(receipts: impl Iterator<Item = &'a Receipt>) -> Vec<i16> {
    receipts.map(|receipt| outcome_number(receipt.outcome) as i16).collect()
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

/// Receipts whose tokens were checked in this transaction.
pub(super) fn receipts_call(receipts: &[Receipt]) -> Call {
    let Requests { hooks, revisions, sequences } = requests(receipts.iter().map(|receipt| receipt.request));
    let fences = columns(receipts.iter().map(|receipt| &receipt.fence));
    let outcomes = outcomes(receipts.iter());
    Call::new(RECEIPTS, values![hooks, revisions, sequences, fences.hooks, fences.slots, fences.tokens, outcomes])
}

/// Receipts on condition of their tokens; which of these hold is asked by another statement.
fn receipts_fenced_call(receipts: &[&Receipt], now: Option<i64>) -> Call {
    let (mut values, fences) = receipt_values(receipts.iter().copied());
    let Columns { hooks, slots, tokens } = columns(&fences);
    values.extend(values![hooks, slots, tokens, now]);
    Call::new(RECEIPTS_FENCED, values)
}

/// Receipts and nothing else, and which of their tokens hold.
fn receipts_alone_call(receipts: &[&Receipt], now: Option<i64>) -> Call {
    let (values, fences) = receipt_values(receipts.iter().copied());
    let Columns { hooks, slots, tokens } = columns(&fences);
    let mut all = values![hooks, slots, tokens, now];
    all.extend(values);
    Call::new(RECEIPTS_ALONE, all)
}

/// The columns of receipts, whose last one is the place of the token among the distinct ones, and these.
fn receipt_values<'a>(
    receipts: impl Iterator<Item = &'a Receipt> + Clone,
) -> (Vec<super::connection::Value>, Vec<Fence>) {
    let distinct = distinct(receipts.clone().map(|receipt| receipt.fence));
    let places: HashMap<Fence, i32> = distinct.iter().copied().zip(1..).collect();
    let Requests { hooks, revisions, sequences } = requests(receipts.clone().map(|receipt| receipt.request));
    let fences: Vec<i32> = receipts.clone().map(|receipt| places[&receipt.fence]).collect();
    (values![hooks, revisions, sequences, outcomes(receipts), fences], distinct)
}

/// Removes the exceptions of requests that have receipts now.
pub(super) fn remove_exceptions_call(of: impl Iterator<Item = RequestId>) -> Call {
    let Requests { hooks, revisions, sequences } = requests(of);
    Call::new(REMOVE_EXCEPTIONS, values![hooks, revisions, sequences])
}

/// Exceptions that need no token of their own. One per request.
pub(super) fn exceptions_call<'a>(exceptions: impl Iterator<Item = &'a Exception>) -> Call {
    let none = Fence { slot: SlotId { hook: HookNumber(0), slot: 0 }, token: SlotToken(0) };
    Call::new(EXCEPTIONS, exception_values(exceptions.map(|exception| (exception, none))))
}

fn exception_values<'a>(exceptions: impl Iterator<Item = (&'a Exception, Fence)>) -> Vec<super::connection::Value> {
    let (mut hooks, mut revisions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
    let (mut slot_hooks, mut slots, mut states) = (Vec::new(), Vec::new(), Vec::new());
    let (mut attempts, mut deaths, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    let (mut paths, mut changes) = (Vec::new(), Vec::new());
    let (mut fence_hooks, mut fence_slots, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for (exception, fence) in exceptions {
        let Exception { request, slot, state, error, change, .. } = exception;
        hooks.push(request.hook.0.cast_signed());
        revisions.push(request.revision.0.cast_signed());
        sequences.push(request.sequence.cast_signed());
        slot_hooks.push(slot.hook.0.cast_signed());
        slots.push(slot.slot.cast_signed());
        states.push(serde_json::to_string(state).expect("the state of an exception has only text keys"));
        attempts.push(exception.attempts.cast_signed());
        deaths.push(exception.deaths.cast_signed());
        // As bytes: a text of PostgreSQL can't have U+0000 in it.
        errors.push(error.as_ref().map(|error| error.as_bytes().to_vec()));
        paths.push(change.path.as_str().to_owned());
        changes.push(encode_requested_change(change));
        fence_hooks.push(fence.slot.hook.0.cast_signed());
        fence_slots.push(fence.slot.slot.cast_signed());
        tokens.push(fence.token.0.cast_signed());
    }
    values![
        hooks,
        revisions,
        sequences,
        slot_hooks,
        slots,
        states,
        attempts,
        deaths,
        errors,
        paths,
        changes,
        fence_hooks,
        fence_slots,
        tokens
    ]
}

fn fence_of(item: &Settle) -> Fence {
    match item {
        Settle::Receipt(receipt) => receipt.fence,
        Settle::Exception { fence, .. } | Settle::Watermark { fence, .. } => *fence,
    }
}

/// Stores what the tokens allow, in one transaction and one round trip; in two where some of it is there already.
pub(super) async fn settle(driver: &PostgresDriver, items: Vec<Settle>) -> Result<Vec<Settled>, DriverError> {
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let now = driver.shared().now_given();
    let connection = driver.links.settle.get().await?;
    let limit = driver.shared().options.answer_limit;
    let mut alone = None;
    if let Some(receipts) = only_receipts(&items) {
        alone = match connection.single(receipts_alone_call(&receipts, now), limit).await {
            // What was sent before is sent again when its answer was lost.
            Err(Failed::Statement(error)) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => None,
            answered => Some(answered?),
        };
    }
    let fences: Vec<Fence> = items.iter().map(fence_of).collect();
    let held = match alone {
        Some(rows) => rows,
        None => connection.transaction(settle_calls(&items, &fences, now), limit).await?.swap_remove(0),
    };
    let held = held_fences(&held);
    Ok(fences.iter().map(|fence| if held.contains(fence) { Settled::Durable } else { Settled::Refused }).collect())
}

fn only_receipts(items: &[Settle]) -> Option<Vec<&Receipt>> {
    let receipts = items.iter().map(|item| match item {
        Settle::Receipt(receipt) => Some(receipt),
        Settle::Exception { .. } | Settle::Watermark { .. } => None,
    });
    receipts.collect()
}

/// The statements that store it, whether some of it is there already or not. The first one says which tokens hold.
fn settle_calls(items: &[Settle], fences: &[Fence], now: Option<i64>) -> Vec<Call> {
    let mut calls = vec![Call::new(FENCES, fence_values(fences, now))];
    let mut receipts: Vec<&Receipt> = Vec::new();
    let mut exceptions: Vec<(&Exception, Fence)> = Vec::new();
    let mut watermarks: Vec<(Fence, Revision)> = Vec::new();
    for item in items {
        match item {
            Settle::Receipt(receipt) => receipts.push(receipt),
            Settle::Exception { exception, fence } => exceptions.push((exception, *fence)),
            Settle::Watermark { fence, to } => watermarks.push((*fence, *to)),
        }
    }
    if !receipts.is_empty() {
        calls.push(receipts_fenced_call(&receipts, now));
        calls.push(remove_exceptions_call(receipts.iter().map(|receipt| receipt.request)));
    }
    if !exceptions.is_empty() {
        let mut values = exception_values(exceptions.into_iter());
        values.push(Box::new(now));
        calls.push(Call::new(EXCEPTIONS_FENCED, values));
    }
    if !watermarks.is_empty() {
        let (mut hooks, mut slots, mut tokens, mut to) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (fence, watermark) in watermarks {
            hooks.push(fence.slot.hook.0.cast_signed());
            slots.push(fence.slot.slot.cast_signed());
            tokens.push(fence.token.0.cast_signed());
            to.push(watermark.0.cast_signed());
        }
        calls.push(Call::new(WATERMARKS, values![hooks, slots, tokens, to, now]));
    }
    calls
}
