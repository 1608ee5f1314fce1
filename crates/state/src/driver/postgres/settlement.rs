//! Receipts, exceptions and watermarks: each on condition that its token holds.
//!
//! The tokens' slots are locked first (`FOR KEY SHARE`), then everything is written in the same transaction on the same
//! condition: what voids a token waits for the lock, so the condition can't change between two of the statements.

use std::collections::{BTreeSet, HashSet};

use tokio_postgres::Row;

use super::super::encoding::{encode_requested_change, outcome_number};
use super::super::{DriverError, Exception, Fence, HookNumber, Receipt, RequestId, Settle, Settled, SlotId, SlotToken};
use super::connection::{Call, values};
use super::driver::PostgresDriver;
use crate::revision::Revision;

/// The time by which a lease is judged within a transaction: one for all of its statements.
macro_rules! transaction_time {
    ($parameter:literal) => {
        concat!("coalesce(", $parameter, "::bigint, (extract(epoch FROM transaction_timestamp()) * 1000)::bigint)")
    };
}
pub(super) use transaction_time;

/// In order of slots, as everything locks them that locks several.
macro_rules! lock_fences {
    ($time:expr) => {
        concat!(
            "SELECT s.hook, s.slot, s.token
             FROM unnest($1::integer[], $2::integer[], $3::bigint[]) AS given (hook, slot, token)
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

const RECEIPTS_FENCED: &str = concat!(
    "INSERT INTO receipts (hook, revision, sequence, slot_hook, slot, token, outcome)
     SELECT given.* FROM unnest($1::integer[], $2::bigint[], $3::integer[], $4::integer[], $5::integer[], $6::bigint[],
                                $7::smallint[])
         AS given (hook, revision, sequence, slot_hook, slot, token, outcome)
     JOIN slots s ON s.hook = given.slot_hook AND s.slot = given.slot AND s.token = given.token
     JOIN servers o ON o.id = s.owner AND o.lease_until > ",
    transaction_time!("$8"),
    " ON CONFLICT DO NOTHING"
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
    let distinct: BTreeSet<(SlotId, SlotToken)> = fences.iter().map(|fence| (fence.slot, fence.token)).collect();
    let (mut hooks, mut slots, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for (slot, token) in distinct {
        hooks.push(slot.hook.0.cast_signed());
        slots.push(slot.slot.cast_signed());
        tokens.push(token.0.cast_signed());
    }
    values![hooks, slots, tokens, now]
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
    Call::new(RECEIPTS, receipt_values(receipts.iter()))
}

fn receipt_values<'a>(receipts: impl Iterator<Item = &'a Receipt>) -> Vec<super::connection::Value> {
    let (mut hooks, mut revisions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
    let (mut slot_hooks, mut slots, mut tokens, mut outcomes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for Receipt { request, fence, outcome } in receipts {
        hooks.push(request.hook.0.cast_signed());
        revisions.push(request.revision.0.cast_signed());
        sequences.push(request.sequence.cast_signed());
        slot_hooks.push(fence.slot.hook.0.cast_signed());
        slots.push(fence.slot.slot.cast_signed());
        tokens.push(fence.token.0.cast_signed());
        outcomes.push(outcome_number(*outcome) as i16);
    }
    values![hooks, revisions, sequences, slot_hooks, slots, tokens, outcomes]
}

/// Removes the exceptions of requests that have receipts now.
pub(super) fn remove_exceptions_call(requests: impl Iterator<Item = RequestId>) -> Call {
    let (mut hooks, mut revisions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
    for request in requests {
        hooks.push(request.hook.0.cast_signed());
        revisions.push(request.revision.0.cast_signed());
        sequences.push(request.sequence.cast_signed());
    }
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

/// Stores what the tokens allow, in one transaction and one round trip.
pub(super) async fn settle(driver: &PostgresDriver, items: Vec<Settle>) -> Result<Vec<Settled>, DriverError> {
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let now = driver.shared().now_given();
    let fences: Vec<Fence> = items.iter().map(fence_of).collect();
    let mut calls = vec![Call::new(FENCES, fence_values(&fences, now))];
    let mut receipts: Vec<&Receipt> = Vec::new();
    let mut exceptions: Vec<(&Exception, Fence)> = Vec::new();
    let mut watermarks: Vec<(Fence, Revision)> = Vec::new();
    for item in &items {
        match item {
            Settle::Receipt(receipt) => receipts.push(receipt),
            Settle::Exception { exception, fence } => exceptions.push((exception, *fence)),
            Settle::Watermark { fence, to } => watermarks.push((*fence, *to)),
        }
    }
    if !receipts.is_empty() {
        let mut values = receipt_values(receipts.iter().copied());
        values.push(Box::new(now));
        calls.push(Call::new(RECEIPTS_FENCED, values));
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
    let connection = driver.links.settle.get().await?;
    let rows = connection.transaction(calls, driver.shared().options.answer_limit).await?;
    let held = held_fences(&rows[0]);
    Ok(fences.iter().map(|fence| if held.contains(fence) { Settled::Durable } else { Settled::Refused }).collect())
}
