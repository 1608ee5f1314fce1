//! A cap in the cluster: as many runs at once as it allows, never more, and never fewer for good.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster_hook::points;

use super::super::Variant;
use super::Case;
use super::support::{Probe, Seen, World, per_store};

/// How many rounds the servers of a cap have to go through; fewer where the case is varied: what varies is the ids of keys
/// alone, since nothing is written twice here, and each round waits for leases to end or slots to pass on.
const ROUNDS: u64 = 50;
const ROUNDS_VARIED: u64 = 12;
const KEYS: u64 = 100;
const CAP: usize = 3;

/// K39: a cap in the cluster holds.
pub async fn k39_a_cap_in_the_cluster_holds(case: Case) {
    let mut world = World::new(&case, 3).await;
    let probe = Probe::new();
    probe.pause(Duration::from_millis(5));
    let registration = per_store("hook").slots(12).runs_in_cluster(2);
    world.register_everywhere(&registration, 8, &probe).await;
    for value in 1..=3 {
        for key in 0..30 {
            world.set(key % 3, &format!("k{key}"), value).await;
        }
    }
    world.hooks_finish(0).await;
    assert_eq!(probe.seen().len(), 90);
    world.finish().await;
}

/// The server that has most of the cap's places, of those that have any.
async fn with_most_places(world: &World) -> usize {
    let mut places: BTreeMap<usize, usize> = BTreeMap::new();
    let taken = || async {
        let view = world.cluster.server(4).cluster().await.unwrap();
        view.slots.iter().filter(|slot| slot.is_permit && slot.owner.is_some()).count() == CAP
    };
    world.eventually("all places are taken", taken).await;
    let view = world.cluster.server(4).cluster().await.unwrap();
    for owner in view.slots.iter().filter(|slot| slot.is_permit).filter_map(|slot| slot.owner.as_ref()) {
        *places.entry(owner.trim_start_matches("server-").parse().unwrap()).or_default() += 1;
    }
    let most = places.into_iter().max_by_key(|(_, places)| *places);
    most.map_or(0, |(server, _)| server)
}

/// K39: servers with places of a cap of 3 are killed, held past their lease, drained and made to hand over, again and again,
/// each time amid runs. The history has never more than 3 at once; in the end 3 run side by side, and every key has had its
/// turn.
pub async fn k39_a_cap_holds_and_leaks_no_place_whatever_happens_to_its_servers(case: Case) {
    let rounds = if case.variant == Variant::Plain { ROUNDS } else { ROUNDS_VARIED };
    let mut world = World::new(&case, 5).await;
    let probe = Probe::new();
    let registration = per_store("hook").slots(16).runs_in_cluster(u32::try_from(CAP).unwrap());
    for server in 0..4 {
        world.register(server, &registration, 8, &probe).await;
    }
    let mut committed = Vec::new();
    // One in each slot, so that whoever has a place has one of them to run.
    let held = super::moving::key_per_slot(&world, 16);
    for round in 0..rounds {
        let victim = with_most_places(&world).await;
        for key in &held {
            probe.hold(key);
        }
        let before = probe.seen().len();
        let keys = (0..12).map(|key| format!("other-{}", (round * 12 + key) % KEYS));
        for key in held.iter().cloned().chain(keys) {
            committed.push(world.set_beside_others(4, key, round + 1).await);
        }
        // Nothing more can start now, wherever it is.
        let takes_a_place = |seen: &&Seen| held.contains(&seen.key);
        let taken = || probe.seen()[before..].iter().filter(takes_a_place).count();
        // Places and slots go to where they are needed a second after the ones before at the earliest.
        let all_taken = || async { taken() == CAP };
        world.eventually_as_time_passes("all places are taken by runs that go on", all_taken).await;
        match round % 4 {
            kind @ (0 | 1) => {
                let points = world.cluster.points(victim).clone();
                let mut holds = None;
                if kind == 0 {
                    world.kill(victim);
                } else {
                    holds = Some((points.hold(points::SLOT_BEFORE_HEARTBEAT), points.hold(points::SLOT_BEFORE_LAPSE)));
                }
                world.step(Duration::from_secs(6)).await;
                assert!(taken() == CAP, "its places are its own as long as its lease holds");
                world.step(Duration::from_secs(6)).await;
                // Others run what it ran, and it may still run that itself.
                let again = || async { taken() > CAP };
                world.eventually_as_time_passes("its places are free", again).await;
                drop(holds);
            }
            2 => {
                let draining = tokio::spawn(world.cluster.closing(victim));
                held.iter().for_each(|key| probe.release(key));
                draining.await.unwrap();
                world.close(victim).await;
            }
            _ => {
                held.iter().for_each(|key| probe.release(key));
                world.hand_over(victim, &registration, 8, &probe).await;
            }
        }
        held.iter().for_each(|key| probe.release(key));
        assert!(world.hooks_finish(4).await.finished, "round {round}");
        if world.cluster.running().len() < 5 {
            world.restart(victim).await;
            world.register(victim, &registration, 8, &probe).await;
        }
    }
    let mut ran: Vec<_> = probe.seen().iter().map(|seen| seen.request.revision).collect();
    ran.sort_unstable();
    ran.dedup();
    committed.sort_unstable();
    assert_eq!(ran, committed, "every key has had its turn");
    let before = probe.seen().len();
    for key in &held {
        probe.hold(key);
        world.set_beside_others(4, key.as_str(), rounds + 1).await;
    }
    let side_by_side = || async { probe.seen().len() == before + CAP };
    world.eventually_as_time_passes("as many as the cap run side by side", side_by_side).await;
    world.step(Duration::from_secs(4)).await;
    assert_eq!(probe.seen().len(), before + CAP, "and no more");
    for key in &held {
        probe.release(key);
    }
    assert!(world.hooks_finish(4).await.finished);
    assert_eq!(probe.seen().len(), before + held.len());
    world.finish().await;
}
