//! C16: pushes that come faster than a rollout takes.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_rollout::entities::{EndedBy, OnNewPush, PushState, PushStatus};
use tidegate_state::Timestamp;

use crate::simulator::{HOUR, MINUTE, Simulator};

/// How a store fares for two days in which a push comes every 40 minutes.
struct Course {
    world: Simulator,
    ends: BTreeMap<String, (PushStatus, Option<EndedBy>)>,
    /// The longest time that each region was without a swap.
    longest: BTreeMap<String, Duration>,
}

fn two_days(policy: OnNewPush) -> Course {
    let mut world = Simulator::new();
    world.view.store.on_new_push = policy;
    // What is long over plays no part.
    world.view.store.retention.pushes = 4;
    world.order(&["a", "b", "c"], HOUR);
    let begun = world.now;
    let mut course = Course { ends: BTreeMap::new(), longest: BTreeMap::new(), world };
    let mut last: BTreeMap<String, (usize, Timestamp)> = BTreeMap::new();
    for minute in (0..48 * 60).step_by(5) {
        let world = &mut course.world;
        if minute % 40 == 0 {
            world.start();
        }
        // Clients of pushes that wait their turn are heard of. Each is quick: its artifact is complete as soon as its turn has come.
        if let Some(running) = world.view.running().map(|(id, _)| id.clone()) {
            world.complete(&running);
        }
        let waiting = world.view.pushes.iter().filter(|(_, facts)| facts.push.state == PushState::Queued);
        for id in waiting.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            world.heartbeat(&id);
        }
        world.advance(MINUTE * 5);
        for (name, agent) in &world.agents {
            let (swaps, at) = last.entry(name.clone()).or_insert((0, begun));
            if agent.served.len() > *swaps {
                (*swaps, *at) = (agent.served.len(), world.now);
            }
            let longest = course.longest.entry(name.clone()).or_default();
            *longest = world.now.since(*at).max(*longest);
        }
        for (id, facts) in &world.view.pushes {
            if let Some(end) = facts.push.end() {
                course.ends.insert(id.clone(), (end.status, end.by));
            }
        }
    }
    course
}

#[test]
fn c16_however_often_a_push_is_superseded_no_region_is_starved() {
    let course = two_days(OnNewPush::Supersede);
    for (region, longest) in &course.longest {
        assert!(*longest <= HOUR * 4, "{region} went {longest:?} without a swap");
    }
    // What did not run to its end gave way for a newer one; most did, and some ran to their end.
    let completed = course.ends.values().filter(|(status, _)| *status == PushStatus::Completed).count();
    let superseded =
        course.ends.values().filter(|end| **end == (PushStatus::Killed, Some(EndedBy::Superseded))).count();
    assert_eq!(completed + superseded, course.ends.len(), "{:?}", course.ends);
    assert!(completed >= 10 && superseded >= 30, "{completed} completed, {superseded} superseded");
    // No region ever went back.
    for (region, agent) in &course.world.agents {
        assert!(agent.served.is_sorted(), "{region}: {:?}", agent.served);
    }
}
