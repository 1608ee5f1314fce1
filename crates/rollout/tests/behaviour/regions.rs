//! R and E: regions on their way.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_lifecycle::Function;
use tidegate_rollout::entities::{
    EmbeddedPermission, EmbeddedSwap, EndedBy, FailureKind, IngestionStatus, Milestone, PushStatus, RegionState,
    VersionStatus,
};

use crate::simulator::{CLIENT_GRACE, HOUR, MINUTE, Reply, Simulator};

const SWAP: Function = Function::PreStoreVersionSwap;
const EMBEDDED: Function = Function::PreStartOfStoreVersionIngestionForDaVinci;

#[test]
fn r1_regions_start_together_and_each_swaps_when_it_is_ready() {
    let mut world = Simulator::new();
    world.agent("b").ingestion = Duration::from_secs(10);
    world.agent("c").ingestion = Duration::from_secs(60);
    let push = world.push();
    assert_eq!(world.holders(2), ["a", "b", "c"]);
    let begun = world.now;
    world.advance(Duration::from_secs(1));
    assert_eq!(world.serving(), [Some(2), Some(1), Some(1)]);
    world.advance(Duration::from_secs(9));
    assert_eq!(world.serving(), [Some(2), Some(2), Some(1)]);
    world.advance(Duration::from_secs(50));
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.version(2), VersionStatus::Online);
    let swapped: Vec<u64> = world
        .facts(&push)
        .push
        .regions
        .values()
        .map(|region| region.reached[&Milestone::Serving].since(begun).as_secs())
        .collect();
    assert_eq!(swapped, [1, 10, 60]);
}

#[test]
fn r2_the_first_push_of_a_store_has_nothing_before_it() {
    let mut world = Simulator::empty();
    let push = world.push();
    assert_eq!(world.serving(), [None, None, None]);
    assert!(world.facts(&push).push.regions.values().all(|region| region.previous.is_none()));
    world.advance(Duration::from_secs(1));
    assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn r3_regions_swap_when_their_order_says_and_repeated_reports_move_no_time() {
    let mut world = Simulator::new();
    world.enable(&["order"]);
    let swap_a = world.now.after(Duration::from_secs(1));
    world.script("order", SWAP, "b", &[Reply::Wait, Reply::WaitUntil(swap_a.after(HOUR))]);
    world.script("order", SWAP, "c", &[Reply::Wait, Reply::WaitUntil(swap_a.after(HOUR * 2))]);
    let push = world.push();
    world.advance(Duration::from_secs(2));
    assert_eq!(world.serving(), [Some(2), Some(1), Some(1)]);
    let before = world.facts(&push).push.clone();
    for _ in 0..12 {
        let now = world.now;
        world.view.regions.get_mut("a").unwrap().report.as_mut().unwrap().at = now;
        world.advance(Duration::from_secs(5));
    }
    assert_eq!(world.facts(&push).push.regions["a"].reached, before.regions["a"].reached);
    assert!(matches!(world.region(&push, "b"), RegionState::Ingested { .. }));
    world.advance(swap_a.after(HOUR).since(world.now) - Duration::from_millis(1));
    assert_eq!(world.serving(), [Some(2), Some(1), Some(1)]);
    world.advance(Duration::from_millis(1));
    assert_eq!(world.serving(), [Some(2), Some(2), Some(1)]);
    world.advance(HOUR);
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn r5_a_region_serves_what_its_assignment_says_however_much_it_holds() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", SWAP, "b", Reply::Wait);
    world.push();
    world.advance(HOUR);
    let report = world.view.regions["b"].report.as_ref().unwrap();
    assert_eq!(report.versions[&2].status, IngestionStatus::Completed);
    assert_eq!(report.serving, Some(1));
    assert!(world.agents["b"].served.is_empty());
}

#[test]
fn r7_only_what_nodes_serve_counts_as_swapped() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    let push = world.start();
    world.agent("b").refuses_swap = true;
    world.complete(&push);
    world.agent("b").alive = false;
    world.advance(Duration::from_secs(2));
    // The region holds the version, its nodes serve the old one.
    let report = world.view.regions.get_mut("b").unwrap().report.as_mut().unwrap();
    report.versions.get_mut(&2).unwrap().status = IngestionStatus::Completed;
    world.settle();
    assert!(matches!(world.region(&push, "b"), RegionState::Swapping { .. }));
    assert_eq!(world.asked(Function::PostStoreVersionSwap, Some("b")), 0);
    world.agent("b").refuses_swap = false;
    world.agent("b").alive = true;
    world.advance(Duration::from_secs(2));
    assert_eq!(world.status(&push), PushStatus::Completed);
    // Later its nodes come back with an old disk: the assignment brings them there, with no push and no call.
    let calls = world.calls.len();
    let report = world.view.regions.get_mut("c").unwrap().report.as_mut().unwrap();
    report.versions.remove(&2);
    report.serving = Some(1);
    world.advance(Duration::from_secs(5));
    assert_eq!(world.serving(), [Some(2), Some(2), Some(2)]);
    assert_eq!(world.calls.len(), calls);
}

#[test]
fn r8_once_the_artifact_is_complete_its_client_is_not_needed() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", SWAP, "c", Reply::Wait);
    let push = world.push();
    world.advance(HOUR * 24);
    assert_eq!(world.status(&push), PushStatus::Started);
    world.clear_scripts();
    world.advance(MINUTE * 2);
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn r15_a_new_region_gets_what_is_served_through_its_own_gates() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.add_region("d");
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(1), Some(1), Some(1), Some(1)]);
    assert_eq!(world.asked(SWAP, Some("d")), 1);
    assert_eq!(world.asked(SWAP, Some("a")), 0);
    assert_eq!(world.version(1), VersionStatus::Online);

    // One that comes while a push runs takes no part in it, and follows when it has ended.
    world.always("x", SWAP, "b", Reply::Wait);
    let push = world.push();
    world.add_region("e");
    world.advance(MINUTE);
    assert!(!world.facts(&push).push.regions.contains_key("e"));
    world.clear_scripts();
    world.advance(MINUTE * 2);
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.serving(), [Some(2); 5]);
}

#[test]
fn r16_a_push_goes_on_without_a_region_that_is_removed() {
    let mut world = Simulator::new();
    world.agent("c").ingestion = HOUR;
    let push = world.push();
    world.advance(MINUTE);
    world.view.regions.remove("c");
    world.settle();
    world.advance(MINUTE);
    let end = world.end(&push);
    assert_eq!(end.status, PushStatus::Completed);
    assert!(end.reason.contains("c left out (was removed)"), "{}", end.reason);
    assert_eq!(world.version(2), VersionStatus::Online);
    assert!(!world.view.versions[&2].regions.contains_key("c"));
    let next = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&next), PushStatus::Completed);
}

#[test]
fn f18_a_region_that_is_marked_unavailable_is_left_out_and_said_to_be() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.mark("c", false);
    let push = world.push();
    world.advance(MINUTE);
    let end = world.end(&push);
    assert_eq!(end.status, PushStatus::Completed);
    assert!(end.reason.contains("c left out (marked unavailable by eve: power)"), "{}", end.reason);
    assert_eq!(world.version(2), VersionStatus::PartiallyOnline);
    assert_eq!(world.holders(2), ["a", "b"]);
    assert!(world.calls.iter().all(|(_, call)| call.region.as_deref() != Some("c")), "no gate of C is asked");
    assert_eq!(world.serving(), [Some(2), Some(2), Some(1)]);
}

#[test]
fn f19_a_region_that_is_back_gets_what_is_served_once_through_its_own_gates() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.mark("c", false);
    let push = world.push();
    world.advance(MINUTE);
    let end = world.end(&push).clone();
    world.calls.clear();
    // Its own gate is minded, and marking it twice is marking it once.
    world.script("x", SWAP, "c", &[Reply::Wait]);
    world.mark("c", true);
    world.mark("c", true);
    world.advance(Duration::from_secs(30));
    assert_eq!(world.serving(), [Some(2), Some(2), Some(1)], "its swap gate holds it");
    assert_eq!(world.version(2), VersionStatus::PartiallyOnline);
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(2), Some(2), Some(2)]);
    assert_eq!(world.version(2), VersionStatus::Online);
    assert_eq!((world.asked(SWAP, Some("c")), world.asked(Function::PreStoreVersionCreation, Some("c"))), (2, 1));
    assert!(world.calls.iter().all(|(_, call)| call.region.as_deref() == Some("c")), "no other gate is asked again");
    assert_eq!(world.agents["c"].loads, BTreeMap::from([(2, 1)]));
    assert_eq!(world.end(&push), &end, "the push stays as it ended");
    assert_eq!(world.view.pushes.len(), 2, "no new push");
}

#[test]
fn f19_a_region_that_is_back_after_the_next_push_goes_straight_to_that_one() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.mark("c", false);
    world.push();
    world.advance(MINUTE);
    let last = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&last), PushStatus::Completed);
    world.mark("c", true);
    world.advance(MINUTE);
    assert_eq!(world.agents["c"].served, [Some(3)]);
    assert_eq!(world.agents["c"].loads, BTreeMap::from([(3, 1)]), "version 2 is not even loaded");
    assert_eq!(world.version(3), VersionStatus::Online);
}

#[test]
fn f18_all_regions_marked_end_the_push_when_its_turn_comes() {
    let mut world = Simulator::new();
    for region in ["a", "b", "c"] {
        world.mark(region, false);
    }
    let push = world.start();
    assert_eq!(world.status(&push), PushStatus::Error);
}

#[test]
fn e1_a_region_swaps_after_its_embedded_clients() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.agent("a").clients = 3;
    world.agent("a").clients_slow = true;
    let push = world.push();
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(1), Some(2), Some(2)]);
    assert_eq!(world.asked(SWAP, Some("a")), 0);
    world.agent("a").clients_slow = false;
    world.advance(MINUTE);
    assert!(world.agents["a"].clients_served.contains(&2));
    assert_eq!(world.asked(SWAP, Some("a")), 1);
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn e2_clients_may_be_told_to_swap_with_their_region() {
    let mut world = Simulator::new();
    world.view.store.embedded_swap = EmbeddedSwap::WithRegion;
    world.enable(&["x"]);
    world.agent("a").clients = 2;
    world.always("x", SWAP, "a", Reply::Wait);
    world.push();
    world.advance(MINUTE);
    assert!(!world.agents["a"].clients_served.contains(&2));
    assert_eq!(world.view.regions["a"].report.as_ref().unwrap().embedded.versions[&2].ingested, 2);
    world.clear_scripts();
    world.advance(MINUTE * 2);
    assert!(world.agents["a"].clients_served.contains(&2));
}

#[test]
fn e3_the_embedded_gate_holds_clients_and_the_swap_but_not_ingestion() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.agent("b").clients = 2;
    world.script("x", EMBEDDED, "b", &[Reply::Wait]);
    let push = world.push();
    world.advance(Duration::from_secs(30));
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)]);
    assert!(matches!(world.region(&push, "b"), RegionState::Ingested { .. }));
    assert_eq!(permission(&world, "b", 2), EmbeddedPermission::None);
    assert!(!world.agents["b"].clients_served.contains(&2));
    world.advance(MINUTE);
    assert!(world.agents["b"].clients_served.contains(&2));
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn e3_each_gate_is_opened_by_hand_by_its_own_name_only() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", EMBEDDED, "b", Reply::Wait);
    world.always("x", SWAP, "b", Reply::Wait);
    let push = world.push();
    world.advance(MINUTE);
    world.open_by_hand(&push, "pre-swap@b");
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)], "the embedded gate still holds the swap");
    world.open_by_hand(&push, "pre-embedded@b");
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert!(tidegate_rollout::controller::holds(&world.view, &push, world.now).is_empty());
}

#[test]
fn e4_no_client_serves_what_its_regions_gate_has_not_let() {
    let mut world = Simulator::new();
    world.enable(&["order"]);
    for region in ["a", "b", "c"] {
        world.agent(region).clients = 1;
    }
    // The order answers both gates: B's turn comes after A.
    world.script("order", EMBEDDED, "b", &[Reply::Wait, Reply::Wait]);
    world.script("order", EMBEDDED, "c", &[Reply::Wait, Reply::Wait, Reply::Wait]);
    let push = world.push();
    world.advance(Duration::from_secs(30));
    assert!(world.agents["a"].clients_served.contains(&2));
    assert!(!world.agents["c"].clients_served.contains(&2));
    world.advance(MINUTE * 5);
    assert_eq!(world.status(&push), PushStatus::Completed, "no circular wait");
}

#[test]
fn e5_one_dead_client_of_twenty_is_waited_for_until_its_grace_time_is_over() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.agent("b").clients = 20;
    world.agent("b").clients_silent = Some((1, world.now));
    let push = world.push();
    world.advance(CLIENT_GRACE - Duration::from_millis(1));
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)]);
    assert_eq!(world.asked(SWAP, Some("b")), 0, "its swap waits for all twenty");
    world.advance(Duration::from_millis(1));
    assert_eq!(world.serving(), [Some(2), Some(2), Some(2)]);
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn e5_with_more_dead_clients_than_are_allowed_the_region_fails() {
    // A tenth may be dead where the store says nothing else: two of twenty are, three are not.
    for (dead, allowed, fails) in [(2, 10, false), (3, 10, true), (3, 15, false), (1, 0, true)] {
        let mut world = Simulator::new();
        world.enable(&["x"]);
        world.view.store.embedded_dead_percent_max = allowed;
        world.agent("b").clients = 20;
        world.agent("b").clients_silent = Some((dead, world.now));
        let push = world.push();
        world.advance(CLIENT_GRACE - Duration::from_millis(1));
        assert_eq!(world.status(&push), PushStatus::Started, "within the grace time nobody is dead");
        world.advance(MINUTE);
        if !fails {
            assert_eq!(world.status(&push), PushStatus::Completed, "{dead} dead, {allowed} % allowed");
            continue;
        }
        let end = world.end(&push);
        assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Region)));
        let dead = format!("region b failed (too many dead instances): {dead} of 20");
        assert!(end.reason.contains(&dead) && end.reason.contains(&format!("at most {allowed} %")), "{}", end.reason);
        assert_eq!(world.serving(), [Some(2), Some(1), Some(2)]);
        assert!(matches!(world.region(&push, "b"), RegionState::Failed(failure)
            if failure.kind == FailureKind::TooManyDeadInstances));
    }
}

#[test]
fn e6_a_client_that_registers_meanwhile_counts_from_then_on() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.agent("b").ingestion = MINUTE;
    world.agent("b").clients_slow = true;
    let push = world.push();
    world.advance(Duration::from_secs(30));
    world.agent("b").clients = 1;
    world.advance(MINUTE * 2);
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)], "it registered while version 2 was ingested");
    world.agent("b").clients_slow = false;
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed);
    // One that registers after the swap holds up nothing, and gets what the region serves.
    world.agent("c").clients = 1;
    world.advance(MINUTE);
    assert!(world.agents["c"].clients_served.contains(&2));
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn e6_a_region_without_clients_is_not_held_up() {
    let mut world = Simulator::new();
    let push = world.push();
    world.advance(Duration::from_secs(1));
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn e9_the_permission_is_written_once_per_region_and_version() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", SWAP, "a", Reply::Wait);
    world.agent("a").clients = 1;
    world.push();
    world.advance(MINUTE);
    let generation = world.view.regions["a"].assignment.as_ref().unwrap().generation;
    world.advance(HOUR);
    assert_eq!(world.view.regions["a"].assignment.as_ref().unwrap().generation, generation);
}

fn permission(world: &Simulator, region: &str, version: u64) -> EmbeddedPermission {
    world.view.regions[region].assignment.as_ref().unwrap().hold[&version].embedded
}

#[test]
fn f7_a_region_that_comes_to_rest_is_news_for_an_order_and_for_nothing_else() {
    for (hook, asked) in [("region-order", 2), ("x", 1)] {
        let mut world = Simulator::new();
        world.enable(&[hook]);
        world.agent("a").ingestion = Duration::from_secs(5);
        world.script(hook, SWAP, "b", &[Reply::Wait]);
        world.push();
        world.advance(Duration::from_secs(30));
        assert_eq!(world.asked(SWAP, Some("b")), asked, "{hook}");
    }
}
