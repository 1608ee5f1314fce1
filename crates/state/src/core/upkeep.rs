//! Upkeep: writes the entities behind, builds indexes of records, compacts the log and prunes records, each in bounded steps.
//! Any server may do it; the driver ignores what another has done already.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::Core;
use crate::cluster_hook::matcher::Matcher;
use crate::driver::{DriverError, EntityRow, SlotId, SlotRow, StoredTree};
use crate::record::Retention;
use crate::revision::Revision;
use crate::snapshot::Snapshot;
use crate::testing::points::name as point;

/// How many rows one short transaction removes.
const ROWS_MAX: usize = 1_000;
/// How many batches are removed before other work has its turn.
const BATCHES_MAX: usize = 64;

pub(super) async fn run(core: Arc<Core>) {
    let mut round: u64 = 0;
    let mut indexes_complete = false;
    loop {
        let pause = core.options.entities_behind.mul_f64(rand::random_range(0.8..1.2));
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if core.set_back().is_some() {
            continue;
        }
        if let Err(error) = core.write_entities().await {
            report(&core, "the entities can't be written behind", &error);
        }
        round += 1;
        // What is not complete is worked on in every round; whether it still is, is asked now and then.
        if !indexes_complete || round.is_multiple_of(core.options.compact_every) {
            indexes_complete = match core.build_indexes().await {
                Ok(complete) => complete,
                Err(error) => {
                    report(&core, "an index of records can't be built", &error);
                    false
                }
            };
        }
        if round.is_multiple_of(core.options.compact_every) {
            if let Err(error) = core.compact().await {
                report(&core, "the log can't be compacted", &error);
            }
            if let Err(error) = core.prune().await {
                report(&core, "records can't be pruned", &error);
            }
        }
    }
}

fn report(core: &Core, what: &str, error: &DriverError) {
    core.metrics.upkeep_errors.inc();
    core.note_failed_write(error);
    tracing::warn!(server = %core.server, %error, "{what}; it is tried again");
}

/// The revision below which no request can be of a slot that has no row yet: the driver holds back the log by the
/// watermarks of slots, and can't know of slots that nobody has ever leased.
fn compaction_floor(matcher: &Matcher, slots: &[SlotRow]) -> Revision {
    let known: HashSet<SlotId> = slots.iter().map(|row| row.slot).collect();
    let mut floor = Revision(u64::MAX);
    for definitions in matcher.all() {
        for layout in definitions.layouts() {
            // What its slots are asked for came after it.
            if !layout.slots(definitions.entity.number).all(|slot| known.contains(&slot)) {
                floor = floor.min(layout.since);
            }
        }
    }
    floor
}

fn stored_tree(snapshot: &Snapshot) -> StoredTree {
    let entities = snapshot.tree().iter().map(|(path, node)| EntityRow {
        path: path.clone(),
        revision: node.changed_at(),
        document: node.document.to_stored(),
    });
    StoredTree { revision: snapshot.revision(), entities: entities.collect() }
}

impl Core {
    /// Moves the written-behind entities on to what this server has applied.
    pub(crate) async fn write_entities(&self) -> Result<(), DriverError> {
        let (snapshot, from, lacking) = {
            let mut head = self.head.lock().await;
            let snapshot = head.snapshot.clone();
            // What this server has not applied itself is not told apart from what it has.
            let at = self.driver.entities_at(snapshot.epoch()).min(snapshot.revision());
            let is_its_turn = head.behind.is_its_turn(at);
            let from = head.behind.from;
            let lacking = is_its_turn.then(|| head.behind.take(snapshot.revision()));
            (snapshot, from, lacking)
        };
        let lag = snapshot.revision().0.saturating_sub(from.0);
        self.metrics.entities_lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
        let Some(lacking) = lacking.filter(|_| snapshot.revision() > from) else {
            // Nothing to write, but a start may have found damage that this server can mend.
            return match self.driver.write_entities(snapshot.epoch(), from, from, Vec::new(), Vec::new()).await {
                Err(DriverError::Damaged(_)) => {
                    self.driver.replace_entities(snapshot.epoch(), stored_tree(&snapshot)).await
                }
                told => told,
            };
        };
        self.points.pass(point::UPKEEP_BEFORE_ENTITIES).await;
        let started = tokio::time::Instant::now();
        let mut changed = Vec::with_capacity(lacking.touched.len());
        let mut removed = Vec::new();
        for path in lacking.touched.keys() {
            match snapshot.tree().get(path) {
                Some(node) => changed.push(EntityRow {
                    path: path.clone(),
                    revision: node.changed_at(),
                    document: node.document.to_stored(),
                }),
                None => removed.push(path.clone()),
            }
        }
        let written =
            match self.driver.write_entities(snapshot.epoch(), from, snapshot.revision(), changed, removed).await {
                // A start has found them damaged and can't rebuild them from the log: this server has the whole tree.
                Err(DriverError::Damaged(_)) => {
                    self.driver.replace_entities(snapshot.epoch(), stored_tree(&snapshot)).await
                }
                written => written,
            };
        let mut head = self.head.lock().await;
        head.behind.wrote(started.elapsed(), self.options.entities_behind);
        // After a reload in between, what was taken belongs to another tree and is not put back.
        if written.is_err() && head.snapshot.epoch() == snapshot.epoch() && head.behind.from == snapshot.revision() {
            head.behind.put_back(lacking);
        }
        written
    }

    /// Removes log rows and receipts that nothing needs and that are older than the log is kept.
    pub(crate) async fn compact(&self) -> Result<(), DriverError> {
        let now = self.clock.now();
        let keep = crate::revision::Timestamp(
            now.0.saturating_sub(i64::try_from(self.options.log_keep.as_millis()).unwrap_or(i64::MAX)),
        );
        let (_, slots) = self.driver.cluster().await?;
        let (epoch, matcher) = {
            let head = self.head.lock().await;
            (head.snapshot.epoch(), head.matcher.clone())
        };
        let floor = compaction_floor(&matcher, &slots);
        let mut last = None;
        for _ in 0..BATCHES_MAX {
            self.points.pass(point::UPKEEP_COMPACTION).await;
            let compacted = self.driver.compact(epoch, keep, floor, ROWS_MAX).await?;
            self.metrics.compacted_revision.set(i64::try_from(compacted.0).unwrap_or(i64::MAX));
            if last == Some(compacted) {
                return Ok(());
            }
            last = Some(compacted);
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Removes records that their retention lets go.
    pub(crate) async fn prune(&self) -> Result<(), DriverError> {
        let now = self.clock.now();
        for declaration in &self.options.records {
            let retain = declaration.retain;
            if retain.age.is_none() && retain.per_key.is_none() {
                continue;
            }
            let before = retain.age.map(|age| {
                crate::revision::Timestamp(now.0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
            });
            let retention = Retention { kind: declaration.kind.clone(), before, per_key: retain.per_key };
            for _ in 0..BATCHES_MAX {
                self.points.pass(point::UPKEEP_PRUNING).await;
                let pruned = self.driver.prune_records(&retention, ROWS_MAX).await?;
                self.metrics.records_pruned.inc_by(pruned as u64);
                if pruned == 0 {
                    break;
                }
                // Writers come in between two batches.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(())
    }
}
