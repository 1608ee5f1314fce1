//! U4: each kind of damage is named with its path or row; a sound store gives nothing.

use crate::driver::{
    Exception, ExceptionState, HookNumber, LogEntry, Receipt, ReceiptOutcome, RequestId, ServerId, SlotToken,
    StoredDocument, StoredState,
};
use crate::testing::linter::{Invariant, lint};
use crate::{IndexDeclaration, Outcome, Record, Revision};

use super::Case;
use super::support::{Ledger, Probe, World, counted, per_store};

fn kinds() -> Vec<IndexDeclaration> {
    vec![IndexDeclaration {
        kind: Ledger::KIND.into(),
        indexes: Ledger::INDEXES.iter().map(|index| (*index).to_owned()).collect(),
        retain: Ledger::RETENTION,
    }]
}

/// A store with a bit of everything, at rest.
async fn sound(case: &Case) -> StoredState {
    let mut world = World::new(case, 2).await;
    let probe = Probe::answering(|run| if run.key().as_str() == "dead" { Outcome::fail("no") } else { counted(run) });
    world.register_everywhere(&per_store("hook").attempts(1), 4, &probe).await;
    world.spread("hook", 2).await;
    for value in 1..=5 {
        for key in ["a", "b", "dead"] {
            world.set(0, key, value).await;
        }
    }
    world.delete(1, "b").await;
    world.hooks_finish(0).await;
    world
        .eventually("entities are written behind", || async {
            let stored = world.cluster.stored().await;
            stored.tree.revision == stored.meta.head
        })
        .await;
    let stored = world.cluster.stored().await;
    world.finish_waiting().await;
    stored
}

/// U4: each kind of damage is named.
pub async fn u04_each_kind_of_damage_is_named(case: Case) {
    let sound = sound(&case).await;
    let found = lint(&sound, &kinds());
    assert!(found.is_empty(), "{found:#?}");
    let request = sound.receipts[0].request;
    let fence = sound.receipts[0].fence;
    let dead = sound.exceptions.iter().find(|exception| exception.state == ExceptionState::Dead).unwrap().clone();
    type Damage = Box<dyn Fn(&mut StoredState)>;
    let damages: Vec<(&str, Invariant, Damage)> = vec![
        (
            "gap in the log",
            Invariant::LogWithoutGap,
            Box::new(|stored| {
                stored.log.remove(3);
            }),
        ),
        (
            "head missing",
            Invariant::LogWithoutGap,
            Box::new(|stored| {
                stored.log.pop();
            }),
        ),
        (
            "entity unlike the log",
            Invariant::EntitiesAsLogged,
            Box::new(|stored| {
                let entity =
                    stored.tree.entities.iter_mut().find(|entity| entity.path.as_str() == "/stores/a").unwrap();
                entity.document = StoredDocument { format: 1, json: "{\"value\":77}".into() };
            }),
        ),
        (
            "entity missing",
            Invariant::EntitiesAsLogged,
            Box::new(|stored| {
                stored.tree.entities.retain(|entity| entity.path.as_str() != "/stores/a");
            }),
        ),
        (
            "deleted entity there",
            Invariant::EntitiesAsLogged,
            Box::new(|stored| {
                let mut entity = stored.tree.entities[0].clone();
                entity.path = crate::Path::parse("/stores/b").unwrap();
                stored.tree.entities.push(entity);
            }),
        ),
        (
            "a hook too few",
            Invariant::HooksAsRegistered,
            Box::new(|stored| {
                for row in &mut stored.log {
                    let mut changed = (**row).clone();
                    let mut done = false;
                    for entry in &mut changed.entries {
                        if let LogEntry::Change { hooks, .. } = entry
                            && !hooks.is_empty()
                        {
                            hooks.clear();
                            done = true;
                        }
                    }
                    if done {
                        *row = changed.into();
                        return;
                    }
                }
            }),
        ),
        (
            "receipt for no request",
            Invariant::ReceiptOfRequest,
            Box::new(move |stored| {
                let request = RequestId { revision: Revision(1), sequence: 5, hook: HookNumber(1) };
                stored.receipts.push(Receipt { request, fence, outcome: ReceiptOutcome::Done });
            }),
        ),
        (
            "receipt twice",
            Invariant::ReceiptOfRequest,
            Box::new(|stored| {
                let receipt = stored.receipts[0].clone();
                stored.receipts.push(receipt);
            }),
        ),
        (
            "receipt beyond the head",
            Invariant::ReceiptOfRequest,
            Box::new(move |stored| {
                let request = RequestId { revision: Revision(1_000_000), sequence: 0, hook: HookNumber(1) };
                stored.receipts.push(Receipt { request, fence, outcome: ReceiptOutcome::Done });
            }),
        ),
        (
            "watermark above a pending request",
            Invariant::WatermarkBelowPending,
            Box::new(move |stored| {
                stored.receipts.retain(|receipt| receipt.request != request);
                for slot in &mut stored.slots {
                    slot.watermark = stored.meta.head;
                }
            }),
        ),
        (
            "log row gone above a watermark",
            Invariant::LogWhole,
            Box::new(|stored| {
                stored.meta.compacted = Revision(2);
                stored.log.retain(|row| row.revision > Revision(2));
                stored.slots[0].watermark = Revision(1);
            }),
        ),
        (
            "log row gone above the entities",
            Invariant::LogWhole,
            Box::new(|stored| {
                stored.meta.compacted = Revision(2);
                stored.log.retain(|row| row.revision > Revision(2));
                stored.tree.revision = Revision(1);
            }),
        ),
        (
            "slot missing",
            Invariant::SlotOnceAndOwned,
            Box::new(move |stored| {
                stored.slots.retain(|row| row.slot != fence.slot);
            }),
        ),
        (
            "slot twice",
            Invariant::SlotOnceAndOwned,
            Box::new(|stored| {
                let slot = stored.slots[0].clone();
                stored.slots.push(slot);
            }),
        ),
        (
            "slot of nobody",
            Invariant::SlotOnceAndOwned,
            Box::new(|stored| {
                stored.slots[0].owner = Some(ServerId("00000000-0000-0000-0000-00000000dead".parse().unwrap()));
            }),
        ),
        (
            "token above the counter",
            Invariant::TokensRise,
            Box::new(|stored| {
                stored.slots[0].token = SlotToken(stored.token_counter.0 + 1);
            }),
        ),
        (
            "token not above the last",
            Invariant::TokensRise,
            Box::new(move |stored| {
                let row = stored.slots.iter_mut().find(|row| row.slot == fence.slot).unwrap();
                row.token = SlotToken(fence.token.0 - 1);
            }),
        ),
        (
            "paused key without a letter",
            Invariant::PausedBehindLetter,
            Box::new({
                let dead = dead.clone();
                move |stored| {
                    stored.exceptions.retain(|exception| exception.request != dead.request);
                    stored.exceptions.push(Exception { state: ExceptionState::Parked, ..dead.clone() });
                }
            }),
        ),
        (
            "letter behind another request",
            Invariant::ExceptionInPlace,
            Box::new({
                let dead = dead.clone();
                move |stored| {
                    let mut second = dead.clone();
                    second.request.revision = Revision(second.request.revision.0 + 3);
                    stored.exceptions.push(second);
                }
            }),
        ),
        (
            "record without its index entry",
            Invariant::RecordIndexed,
            Box::new(|stored| {
                stored.index_entries.remove(0);
            }),
        ),
        (
            "index entry without its record",
            Invariant::RecordIndexed,
            Box::new(|stored| {
                let id = stored.index_entries[0].id;
                stored.records.retain(|record| record.id != id);
            }),
        ),
        (
            "record twice",
            Invariant::RecordIndexed,
            Box::new(|stored| {
                let record = stored.records[0].clone();
                stored.records.push(record);
            }),
        ),
    ];
    for (what, invariant, damage) in damages {
        let mut stored = sound.clone();
        damage(&mut stored);
        let found = lint(&stored, &kinds());
        assert!(found.iter().any(|violation| violation.invariant == invariant), "{what}: {found:#?}");
    }
}
