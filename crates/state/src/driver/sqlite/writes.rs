//! What the writer does for commits, settlements, leases and compaction.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::params;
use uuid::Uuid;

use super::super::encoding::{encode_hooks, encode_requested_change, outcome_number};
use super::super::leases::LeaseChanges;
use super::super::{Batch, DriverError, Exception, Fence, LogRow, Receipt, Settle, Settled, SlotToken, check_batch};
use super::stored::read_epoch;
use super::tail::Effect;
use super::writer::Writer;
use crate::revision::{Epoch, Revision, Timestamp};

impl Writer {
    /// Stores a batch whose rows are encoded already.
    pub(super) fn commit(&mut self, batch: &Batch, bodies: &[Vec<u8>]) -> Result<(), DriverError> {
        check_batch(self.head, batch)?;
        for (row, body) in batch.rows.iter().zip(bodies) {
            self.insert_log_row(row, body)?;
        }
        self.write_records(&batch.records)?;
        let exceptions_kept = self.has_exceptions()?;
        for receipt in &batch.receipts {
            self.insert_receipt(receipt)?;
            if exceptions_kept {
                self.remove_exception(receipt)?;
            }
        }
        for exception in &batch.exceptions {
            self.put_exception(exception)?;
        }
        if let Some(last) = batch.rows.last() {
            self.head = last.revision;
            self.stage(Effect::Rows(batch.rows.clone()));
        }
        if let Some(tokens_above) = batch.new_epoch {
            self.begin_epoch(tokens_above)?;
        }
        Ok(())
    }

    pub(super) fn insert_log_row(&self, row: &Arc<LogRow>, body: &[u8]) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("INSERT INTO changes (revision, at, submission, hooks, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![
                row.revision.0.cast_signed(),
                row.at.0,
                row.submission.0.as_bytes(),
                encode_hooks(row),
                body
            ])?;
        Ok(())
    }

    /// One that is there already stays: an answer may have been lost.
    pub(super) fn insert_receipt(&self, receipt: &Receipt) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT OR IGNORE INTO receipts (hook, revision, sequence, slot_hook, slot, token, outcome)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                receipt.request.hook.0,
                receipt.request.revision.0.cast_signed(),
                receipt.request.sequence,
                receipt.fence.slot.hook.0,
                receipt.fence.slot.slot,
                receipt.fence.token.0.cast_signed(),
                outcome_number(receipt.outcome)
            ])?;
        Ok(())
    }

    /// Spares the look-up per receipt in the usual case that there is no exception at all.
    fn has_exceptions(&self) -> rusqlite::Result<bool> {
        self.connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM exceptions)")?.query_row([], |row| row.get(0))
    }

    fn remove_exception(&self, receipt: &Receipt) -> rusqlite::Result<()> {
        let request = receipt.request;
        self.connection
            .prepare_cached("DELETE FROM exceptions WHERE hook = ?1 AND revision = ?2 AND sequence = ?3")?
            .execute(params![request.hook.0, request.revision.0.cast_signed(), request.sequence])?;
        Ok(())
    }

    /// A receipt that is there already wins (invariant 5).
    pub(super) fn put_exception(&self, exception: &Exception) -> Result<(), DriverError> {
        let request = exception.request;
        let state = serde_json::to_string(&exception.state).expect("the state of an exception has only text keys");
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO exceptions
                 (hook, revision, sequence, slot_hook, slot, state, attempts, deaths, error, path, change)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
                 WHERE NOT EXISTS (SELECT 1 FROM receipts WHERE hook = ?1 AND revision = ?2 AND sequence = ?3)",
            )?
            .execute(params![
                request.hook.0,
                request.revision.0.cast_signed(),
                request.sequence,
                exception.slot.hook.0,
                exception.slot.slot,
                state,
                exception.attempts,
                exception.deaths,
                exception.error,
                exception.change.path.as_str(),
                encode_requested_change(&exception.change)
            ])?;
        Ok(())
    }

    /// Stores what a token allows, item by item. All tokens are judged at one time; nothing takes a slot over meanwhile,
    /// since only this thread writes (invariant 4).
    pub(super) fn settle(&mut self, items: &[Settle], now: Timestamp) -> Result<Vec<Settled>, DriverError> {
        let mut judged: HashMap<Fence, bool> = HashMap::new();
        let mut exceptions_kept = self.has_exceptions()?;
        let mut raised = LeaseChanges::default();
        let mut settled = Vec::with_capacity(items.len());
        for item in items {
            let fence = match item {
                Settle::Receipt(receipt) => receipt.fence,
                Settle::Exception { fence, .. } | Settle::Watermark { fence, .. } => *fence,
            };
            if !*judged.entry(fence).or_insert_with(|| self.leases.holds(&fence, now)) {
                settled.push(Settled::Refused);
                continue;
            }
            match item {
                Settle::Receipt(receipt) => {
                    self.insert_receipt(receipt)?;
                    if exceptions_kept {
                        self.remove_exception(receipt)?;
                    }
                }
                Settle::Exception { exception, .. } => {
                    self.put_exception(exception)?;
                    exceptions_kept = true;
                }
                Settle::Watermark { fence, to } => raised.slots.extend(self.leases.raise(fence.slot, *to)),
            }
            settled.push(Settled::Durable);
        }
        if !raised.slots.is_empty() {
            self.store_leases(&raised)?;
            self.stage(Effect::Leases(raised));
        }
        Ok(settled)
    }

    /// Stores changes of leases that [`super::super::leases::Leases`] has made, and shows them once they are durable.
    pub(super) fn change_leases(&mut self, changes: LeaseChanges) -> Result<(), DriverError> {
        self.store_leases(&changes)?;
        self.stage(Effect::Leases(changes));
        Ok(())
    }

    pub(super) fn store_leases(&self, changes: &LeaseChanges) -> Result<(), DriverError> {
        for id in &changes.servers_gone {
            self.connection.prepare_cached("DELETE FROM servers WHERE id = ?1")?.execute([id.0.as_bytes()])?;
        }
        for server in &changes.servers {
            let hooks = serde_json::to_string(&server.hooks).expect("a server's hooks have only text keys");
            let load = serde_json::to_string(&server.load).expect("a server's load has only text keys");
            self.connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO servers (id, name, lease_until, draining, applied, hooks, load)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    server.id.0.as_bytes(),
                    &*server.name,
                    server.lease_until.0,
                    server.draining,
                    server.applied.0.cast_signed(),
                    hooks,
                    load
                ])?;
        }
        for slot in &changes.slots {
            self.connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO slots (hook, slot, owner, token, watermark) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    slot.slot.hook.0,
                    slot.slot.slot,
                    slot.owner.map(|owner| owner.0.into_bytes()),
                    slot.token.0.cast_signed(),
                    slot.watermark.0.cast_signed()
                ])?;
        }
        if let Some(counter) = changes.token_counter {
            // The counter is durable with the first token above the old one (invariant 3).
            self.connection.prepare_cached("UPDATE meta SET token_counter = ?1")?.execute([counter.0.cast_signed()])?;
        }
        Ok(())
    }

    /// Removes the oldest rows of the log that nothing needs, at most `rows_max`, and receipts below what is left.
    pub(super) fn compact(
        &mut self,
        keep: Timestamp,
        floor: Revision,
        rows_max: usize,
    ) -> Result<Revision, DriverError> {
        let watermark = self.leases.watermark_min().unwrap_or(Revision(u64::MAX));
        let newest_stays = Revision(self.head.0.saturating_sub(1));
        let bound = floor.min(self.entities.at).min(watermark).min(newest_stays);
        let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
        let mut compacted = self.compacted;
        // Damaged entities stand for nothing that a start could begin with.
        if bound > self.compacted && !self.shared.entities_damaged() {
            // In order, up to the first row that is to be kept: a clock that was set back leaves no hole.
            let mut statement = self
                .connection
                .prepare_cached("SELECT revision, at FROM changes WHERE revision <= ?1 ORDER BY revision LIMIT ?2")?;
            let mut rows = statement.query(params![bound.0.cast_signed(), limit])?;
            while let Some(row) = rows.next()? {
                if row.get::<_, i64>(1)? >= keep.0 {
                    break;
                }
                compacted = Revision(row.get::<_, i64>(0)?.cast_unsigned());
            }
        }
        if compacted > self.compacted {
            let removed = params![compacted.0.cast_signed()];
            self.connection.prepare_cached("DELETE FROM changes WHERE revision <= ?1")?.execute(removed)?;
            self.connection.prepare_cached("UPDATE meta SET compacted = ?1")?.execute(removed)?;
            self.compacted = compacted;
            self.stage(Effect::Compacted(compacted));
        }
        self.prune_receipts(limit)?;
        Ok(self.compacted)
    }

    /// Receipts whose request is below the log's end: nothing can ask for those runs again.
    fn prune_receipts(&self, limit: i64) -> Result<(), DriverError> {
        let hooks: Vec<u32> = self
            .connection
            .prepare_cached(
                "WITH RECURSIVE hooks (hook) AS (
                     SELECT min(hook) FROM receipts
                     UNION ALL SELECT (SELECT min(hook) FROM receipts WHERE hook > hooks.hook) FROM hooks
                     WHERE hook IS NOT NULL)
                 SELECT hook FROM hooks WHERE hook IS NOT NULL",
            )?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for hook in hooks {
            // One range of the primary key, cut off after so many rows (and the rest of that transaction's).
            self.connection
                .prepare_cached(
                    "DELETE FROM receipts WHERE hook = ?1 AND revision <= min(?2, coalesce(
                         (SELECT revision FROM receipts WHERE hook = ?1 ORDER BY revision, sequence LIMIT 1 OFFSET ?3),
                         ?2))",
                )?
                .execute(params![hook, self.compacted.0.cast_signed(), limit.saturating_sub(1)])?;
        }
        Ok(())
    }

    /// Refuses what a caller knows of another store.
    pub(super) fn expect_epoch(&self, expected: Epoch) -> Result<(), DriverError> {
        let found = read_epoch(&self.connection)?;
        if found == expected { Ok(()) } else { Err(DriverError::EpochChanged { expected, found }) }
    }

    /// Gives the store a new epoch; its tokens go on above `tokens_above`.
    pub(super) fn begin_epoch(&mut self, tokens_above: SlotToken) -> Result<(), DriverError> {
        let epoch = Epoch(Uuid::new_v4());
        self.connection.execute("UPDATE meta SET epoch = ?1", [epoch.0.as_bytes()])?;
        let changes = self.leases.begin_epoch(tokens_above);
        self.change_leases(changes)?;
        self.stage(Effect::Epoch(epoch));
        Ok(())
    }
}
