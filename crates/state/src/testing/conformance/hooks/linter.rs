//! U4: each kind of damage, planted in what the driver stores, is named with its path or row; a sound store gives nothing,
//! whatever is going on in it.

use crate::cluster_hook::points;
use crate::driver::{
    Exception, ExceptionState, HookNumber, LogEntry, Receipt, ReceiptOutcome, RequestId, ServerId, SlotToken,
    StoredDocument, StoredState,
};
use crate::testing::linter::{Invariant, Violation, lint};
use crate::testing::points::name as point;
use crate::{IndexDeclaration, Outcome, Record, Revision, Transaction, TransactionError};

use super::Case;
use super::support::{Ledger, Probe, Store, World, counted, per_store, plain_key, store};

fn kinds() -> Vec<IndexDeclaration> {
    vec![IndexDeclaration {
        kind: Ledger::KIND.into(),
        indexes: Ledger::INDEXES.iter().map(|index| (*index).to_owned()).collect(),
        retain: Ledger::RETENTION,
    }]
}

/// A cluster that has stored a bit of everything and is at rest: nobody writes to its store any more.
async fn at_rest(case: &Case) -> World {
    let mut world = World::new(&case.upkept(), 2).await;
    let probe =
        Probe::answering(
            |run| if plain_key(run.key().as_str()) == "dead" { Outcome::fail("no") } else { counted(run) },
        );
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
    for server in 0..2 {
        world.close(server).await;
    }
    world
}

/// How many rows of each table there are.
fn rows(stored: &StoredState) -> [usize; 7] {
    [
        stored.log.len(),
        stored.tree.entities.len(),
        stored.receipts.len(),
        stored.exceptions.len(),
        stored.slots.len(),
        stored.records.len(),
        stored.index_entries.len(),
    ]
}

/// Everything that is stored, in a form that two looks at one state have in common.
fn told(stored: &StoredState) -> String {
    let mut stored = stored.clone();
    stored.slots.sort_by_key(|row| row.slot);
    stored.servers.sort_by_key(|row| row.id);
    stored.receipts.sort_by_key(|row| row.request);
    stored.exceptions.sort_by_key(|row| row.request);
    stored.tree.entities.sort_by(|one, other| one.path.cmp(&other.path));
    format!("{stored:?}")
}

/// U4: each kind of damage is named, once it is planted in what the driver stores. Rows that a driver keeps by a key are not
/// there twice, whatever is done to it: of those the linter is shown the rows themselves.
pub async fn u04_each_kind_of_damage_is_named(case: Case) {
    let world = at_rest(&case).await;
    let sound = world.cluster.stored().await;
    let found = lint(&sound, &kinds());
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(told(&world.cluster.stored().await), told(&sound), "looking at it has changed nothing");
    let (path_of_a, path_of_b) = (world.store("a").path().clone(), world.store("b").path().clone());
    let a_is_gone = path_of_a.clone();
    let request = sound.receipts[0].request;
    let fence = sound.receipts[0].fence;
    let dead = sound.exceptions.iter().find(|exception| exception.state == ExceptionState::Dead).unwrap().clone();
    type Damage = Box<dyn FnOnce(&mut StoredState) + Send>;
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
            Box::new(move |stored| {
                let entity = stored.tree.entities.iter_mut().find(|entity| entity.path == path_of_a).unwrap();
                entity.document = StoredDocument { format: 1, json: "{\"value\":77}".into() };
            }),
        ),
        (
            "entity missing",
            Invariant::EntitiesAsLogged,
            Box::new(move |stored| {
                stored.tree.entities.retain(|entity| entity.path != a_is_gone);
            }),
        ),
        (
            "deleted entity there",
            Invariant::EntitiesAsLogged,
            Box::new(move |stored| {
                let mut entity = stored.tree.entities[0].clone();
                entity.path = path_of_b;
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
                    stored.exceptions.retain(|exception| exception.request != second.request);
                    stored.receipts.retain(|receipt| receipt.request != second.request);
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
        let mut damaged = sound.clone();
        damage(&mut damaged);
        let found = lint(&damaged, &kinds());
        assert!(names(&found, invariant), "{what}: {found:#?}");
        let planted = damaged.clone();
        match world.cluster.store().tamper(Box::new(move |stored| *stored = planted)).await {
            // There is no place for it.
            Err(_) if what.ends_with(" twice") => continue,
            planted => planted.unwrap(),
        }
        let stored = world.cluster.stored().await;
        let found = lint(&stored, &kinds());
        let is_kept_by_a_key = what.ends_with(" twice") && rows(&stored) == rows(&sound);
        assert!(is_kept_by_a_key || names(&found, invariant), "{what}, as it is stored: {found:#?}");
        assert_eq!(told(&world.cluster.stored().await), told(&stored), "{what}: looking at it has changed nothing");
    }
    world.cluster.store().tamper(Box::new(move |stored| *stored = sound)).await.unwrap();
    world.finish_waiting().await;
}

fn names(found: &[Violation], invariant: Invariant) -> bool {
    found.iter().any(|violation| violation.invariant == invariant && !violation.subject.is_empty())
}

/// U4: a store that is sound gives nothing under load, amid a hand-over, and with entities behind.
pub async fn u04_a_sound_store_gives_none_whatever_goes_on_in_it(case: Case) {
    let mut world = World::new(&case.upkept(), 3).await;
    let probe = Probe::answering(counted);
    world.register_everywhere(&per_store("hook"), 4, &probe).await;
    world.spread("hook", 3).await;
    // Entities are written a few times, and then fall behind.
    for server in 0..3 {
        world.cluster.points(server).hold_after(point::UPKEEP_BEFORE_ENTITIES, server);
    }
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writers = Vec::new();
    for server in 0..2 {
        let (state, stop) = (world.cluster.server(server).clone(), stop.clone());
        let ids: Vec<String> = (0..8).map(|number| case.id(&format!("k{number}"))).collect();
        writers.push(tokio::spawn(async move {
            let mut value = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                value += 1;
                let target = store(&ids[value % ids.len()]);
                let write = move |tx: &mut Transaction| match value % 11 {
                    0 => tx.delete(&target).map(|_| ()),
                    _ => tx.put(&target, Store { value: value as u64 }),
                };
                state.write::<_, TransactionError, _>(write).await.unwrap();
                // Not as fast as it can: what is read is the whole of it, again and again.
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        }));
    }
    let key = world.key("k1");
    for place in [points::SLOT_BEFORE_RELEASE, points::SLOT_LEASED, points::SLOT_READ, points::RUN_BEFORE_COMPLETION] {
        let from = world.cluster.owner_of("hook", &key).await.unwrap();
        let to = (from + 1) % 3;
        let held = if place == points::SLOT_BEFORE_RELEASE { from } else { to };
        let hold = world.cluster.points(held).hold(place);
        let amid = async {
            hold.reached().await;
            for _ in 0..3 {
                let found = lint(&world.cluster.stored().await, &kinds());
                assert!(found.is_empty(), "amid a hand-over, at {place}: {found:#?}");
            }
            drop(hold);
        };
        tokio::join!(world.cluster.move_slot("hook", &key, to), amid);
        let stored = world.cluster.stored().await;
        let found = lint(&stored, &kinds());
        assert!(found.is_empty(), "under load: {found:#?}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    world.hooks_finish(0).await;
    let stored = world.cluster.stored().await;
    assert!(stored.tree.revision < stored.meta.head, "entities are behind");
    world.finish().await;
}
