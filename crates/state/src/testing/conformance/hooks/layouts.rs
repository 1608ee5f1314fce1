//! Another number of slots: keys, and what stands in them, go from the slots of one layout to those of the next.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster_hook::slots::RETIRED;
use crate::driver::Call;
use crate::testing::START;
use crate::{Outcome, QueueFilter, Registration, RequestState, Revision, Run, Timestamp};

use super::Case;
use super::faults::count_of;
use super::support::{Probe, World, counted, plain_key};

/// When what waits for a time is due.
const DUE: Timestamp = Timestamp(START.0 + 600_000);

/// The hook in the definition version that has so many slots.
fn registration(version: u32, slots: u32) -> Registration {
    Registration::new("hook", version).on("/stores/{store}").key("{store}").slots(slots).attempts(1)
}

fn answer(run: &Run) -> Outcome {
    match plain_key(run.key().as_str()) {
        "dead" => Outcome::fail("no"),
        "later" if run.now() < DUE => Outcome::RetryAt(DUE),
        _ => counted(run),
    }
}

/// Waits until every slot of a layout is retired but the one in which something runs; says who leases that. Slots that
/// are on their way from one server to another are leased by nobody, and not gone.
async fn only_what_runs_is_left(world: &World, generation: u32) -> String {
    let left = || async {
        let view = world.cluster.server(4).cluster().await.unwrap();
        let of_layout = view.slots.into_iter().filter(|slot| slot.generation == generation);
        of_layout.filter(|slot| slot.watermark < RETIRED).map(|slot| slot.owner).collect::<Vec<_>>()
    };
    let is_one = || async { matches!(left().await.as_slice(), [Some(_)]) };
    world.eventually("the layout before keeps nothing but what runs", is_one).await;
    let owner = left().await.remove(0);
    owner.expect("what runs stays where it is").to_string()
}

/// Waits until so many slots of a layout are leased, and none of another.
async fn all_of_layout(world: &World, generation: u32, count: usize) {
    world
        .eventually("all slots are of the next layout", || async {
            let view = world.cluster.server(4).cluster().await.unwrap();
            let leased: Vec<_> = view.slots.iter().filter(|slot| slot.owner.is_some()).collect();
            leased.len() == count && leased.iter().all(|slot| slot.generation == generation)
        })
        .await;
}

/// Each of these keys gets this value; nobody waits in between.
async fn set_all(world: &World, keys: &[&str], value: u64) {
    futures::future::join_all(keys.iter().map(|key| world.set_beside_others(4, *key, value))).await;
}

/// K49: the number of slots goes from 4 to 64 to 1 while requests run, wait, wait for a time and lie dead. Of the servers
/// of each build the one that runs something dies amid it. Keys keep their order, nothing is lost, and nothing but what
/// ran at a death is run again.
pub async fn k49_another_number_of_slots_takes_over_when_the_old_ones_are_drained(case: Case) {
    let plain: Vec<String> = (0..12).map(|number| format!("plain-{number}")).collect();
    let mut keys: Vec<&str> = plain.iter().map(String::as_str).collect();
    keys.extend(["running", "dead", "later"]);
    let mut world = World::new(&case, 5).await;
    let probes: [Probe; 3] = std::array::from_fn(|_| Probe::answering(answer));
    let [first, second, third] = &probes;
    world.register(0, &registration(1, 4), 16, first).await;
    world.spread("hook", 1).await;
    first.hold("running");
    set_all(&world, &keys, 1).await;
    first.started("running", 1).await;
    set_all(&world, &keys, 2).await;
    // From 4 to 64: the server of the old build dies with the last slot that it has.
    second.hold("running");
    for server in [1, 2] {
        world.register(server, &registration(2, 64), 16, second).await;
    }
    assert_eq!(only_what_runs_is_left(&world, 0).await, "server-0");
    set_all(&world, &keys, 3).await;
    world.kill(0);
    world.step(Duration::from_secs(12)).await;
    second.started("running", 1).await;
    second.release("running");
    all_of_layout(&world, 1, 64).await;
    second.started("running", 3).await;
    // From 64 to 1: one of two dies with what runs on it.
    second.hold("running");
    set_all(&world, &keys, 4).await;
    second.started("running", 4).await;
    world.register(3, &registration(3, 1), 16, third).await;
    let owner = only_what_runs_is_left(&world, 1).await;
    set_all(&world, &keys, 5).await;
    world.kill(if owner == "server-1" { 1 } else { 2 });
    world.step(Duration::from_secs(12)).await;
    all_of_layout(&world, 2, 1).await;
    set_all(&world, &keys, 6).await;
    third.started("running", 3).await;
    // What stood still stands as it did.
    let stands = || async { world.cluster.server(4).queue().list(QueueFilter::all()).await.unwrap() };
    world.eventually("only what stands still is left", || async { stands().await.len() == 12 }).await;
    let mut listed: BTreeMap<String, Vec<RequestState>> = BTreeMap::new();
    let list = stands().await;
    for entry in &list {
        listed.entry(plain_key(&entry.key).to_owned()).or_default().push(entry.state.clone());
    }
    let letter = list.iter().find(|entry| plain_key(&entry.key) == "dead").unwrap();
    assert_eq!((letter.attempts, letter.error.as_deref()), (1, Some("no")));
    assert_eq!(listed["dead"][0], RequestState::Dead);
    assert!(listed["dead"][1..].iter().all(|state| *state == RequestState::PausedBehind(letter.request)));
    assert_eq!(listed["later"][0], RequestState::RetryAt(DUE));
    // It goes on where it stood.
    third.answer(|run| match plain_key(run.key().as_str()) {
        "dead" => counted(run),
        _ => answer(run),
    });
    world.cluster.server(4).queue().retry(letter.request, "operator").await.unwrap();
    world.step(Duration::from_secs(600)).await;
    assert!(world.hooks_finish(4).await.finished);
    let runs = |key: &str| -> Vec<u64> {
        let mut seen: Vec<_> = probes.iter().flat_map(|probe| probe.seen_of(key)).collect();
        seen.sort_by_key(|seen| seen.token);
        seen.iter().map(|seen| seen.after.unwrap()).collect()
    };
    for key in &plain {
        assert_eq!(runs(key), [1, 2, 3, 4, 5, 6], "{key}");
    }
    assert_eq!(runs("running"), [1, 1, 2, 3, 4, 4, 5, 6], "again what ran at a death");
    assert_eq!(runs("dead"), [1, 1, 2, 3, 4, 5, 6], "the letter was dead once");
    assert_eq!(runs("later"), [1, 1, 2, 3, 4, 5, 6], "once to ask for a later time");
    for key in keys {
        assert_eq!(count_of(&world, 4, key).await, 6, "{key}");
    }
    world.finish().await;
}

/// K49: what the first owners of a layout's slots read does not grow with what lies before it, also where nothing was
/// compacted.
pub async fn k49_what_a_new_layout_reads_does_not_grow(case: Case) {
    let mut world = World::new(&case, 5).await;
    let probe = Probe::new();
    world.register(0, &registration(1, 1), 8, &probe).await;
    world.spread("hook", 1).await;
    let changes = (0..2_000).flat_map(|value| [("x", value), ("y", value)]);
    futures::future::join_all(changes.map(|(key, value)| world.set_beside_others(4, key, value))).await;
    assert!(world.hooks_finish(4).await.finished);
    for (generation, slots) in [(1, 2), (2, 1), (3, 2)] {
        let owner = generation as usize;
        world.register(owner, &registration(generation + 1, slots), 8, &probe).await;
        all_of_layout(&world, generation, slots as usize).await;
        world.set(4, "x", 2_000 + u64::from(generation)).await;
        assert!(world.hooks_finish(4).await.finished);
        let pages = world.cluster.faults(owner).take_calls()[&Call::Pending];
        // Of the layout before it may have had a slot, whose watermark is up to a thousand revisions behind.
        assert!(pages <= 6, "{pages} pages of requests were read by the first owner of {slots} slots; the log has 9");
        assert_eq!(world.cluster.meta().await.compacted, Revision::ZERO);
    }
    assert_eq!(probe.seen().len(), 4_003);
    world.finish().await;
}
