//! Whatever happens in whatever order, the controller breaks no invariant, comes to rest, and takes the next push.

use std::time::Duration;

use proptest::prelude::*;
use tidegate_lifecycle::Function;
use tidegate_rollout::entities::{FailureKind, FreezeScope, PushStatus};

use crate::simulator::{DAY, HOUR, MINUTE, Reply, Simulator};

#[derive(Debug, Clone)]
enum Event {
    Advance(Duration),
    Blackout(Duration),
    Start,
    Complete,
    Heartbeat,
    Kill,
    Reply(Function, usize, Reply),
    Hang(Function, usize),
    Agent { region: usize, alive: bool },
    Fails { region: usize, fails: bool },
    RefusesSwap { region: usize, refuses: bool },
    Ingestion { region: usize, seconds: u64 },
    Clients { region: usize, clients: u32 },
    Freeze(usize),
    Unfreeze(usize),
    Mark { region: usize, available: bool },
    OpenByHand(Function, usize),
    AddRegion,
}

const REGIONS: [&str; 3] = ["a", "b", "c"];
const ASKED: [Function; 7] = [
    Function::PreStartOfPushJob,
    Function::PreStoreVersionCreation,
    Function::PreStartOfStoreVersionIngestionForDaVinci,
    Function::PostStartOfStoreVersionIngestionForDaVinci,
    Function::PreStoreVersionSwap,
    Function::PostStoreVersionSwap,
    Function::PreEndOfPushJob,
];

fn event() -> impl Strategy<Value = Event> {
    let function = || prop::sample::select(ASKED.to_vec());
    let region = || 0..REGIONS.len();
    let reply = prop_oneof![
        4 => Just(Reply::Wait),
        1 => Just(Reply::Closed),
        1 => Just(Reply::Abort),
        1 => Just(Reply::Rollback),
        1 => Just(Reply::Fail),
    ];
    prop_oneof![
        8 => prop_oneof![Just(Duration::from_secs(1)), Just(MINUTE), Just(HOUR), Just(DAY)].prop_map(Event::Advance),
        1 => prop_oneof![Just(MINUTE * 5), Just(HOUR)].prop_map(Event::Blackout),
        4 => Just(Event::Start),
        5 => Just(Event::Complete),
        2 => Just(Event::Heartbeat),
        1 => Just(Event::Kill),
        4 => (function(), region(), reply).prop_map(|(function, region, reply)| Event::Reply(function, region, reply)),
        1 => (function(), region()).prop_map(|(function, region)| Event::Hang(function, region)),
        2 => (region(), any::<bool>()).prop_map(|(region, alive)| Event::Agent { region, alive }),
        1 => (region(), any::<bool>()).prop_map(|(region, fails)| Event::Fails { region, fails }),
        1 => (region(), any::<bool>()).prop_map(|(region, refuses)| Event::RefusesSwap { region, refuses }),
        1 => (region(), 0_u64..4_000).prop_map(|(region, seconds)| Event::Ingestion { region, seconds }),
        1 => (region(), 0_u32..3).prop_map(|(region, clients)| Event::Clients { region, clients }),
        1 => (0_usize..5).prop_map(Event::Freeze),
        2 => (0_usize..5).prop_map(Event::Unfreeze),
        1 => (region(), any::<bool>()).prop_map(|(region, available)| Event::Mark { region, available }),
        1 => (function(), region()).prop_map(|(function, region)| Event::OpenByHand(function, region)),
        1 => Just(Event::AddRegion),
    ]
}

fn region_of(function: Function, region: usize) -> &'static str {
    match function {
        Function::PreStartOfPushJob | Function::PreEndOfPushJob => "",
        _ => REGIONS[region],
    }
}

fn happen(world: &mut Simulator, newest: &mut Option<String>, event: Event) {
    let busy = world.view.pushes.values().filter(|facts| !facts.push.status().is_final()).count();
    match event {
        Event::Advance(by) => world.advance(by),
        Event::Blackout(by) => world.blackout(by),
        // One runs and one waits at most, as operations have it.
        Event::Start if busy < 2 => *newest = Some(world.start()),
        Event::Start => {}
        Event::Complete => {
            if let Some(push) = running(world) {
                world.complete(&push);
            }
        }
        Event::Heartbeat => {
            if let Some(push) = newest {
                world.heartbeat(push);
            }
        }
        Event::Kill => {
            if let Some(push) = running(world) {
                world.kill(&push);
            }
        }
        Event::Reply(function, region, reply) => {
            world.script("x", function, region_of(function, region), &[reply]);
        }
        Event::Hang(function, region) => world.always("x", function, region_of(function, region), Reply::Silence),
        Event::Agent { region, alive } => world.agent(REGIONS[region]).alive = alive,
        Event::Fails { region, fails } => {
            world.agent(REGIONS[region]).fails = fails.then(|| (FailureKind::Other, "broken".into()));
        }
        Event::RefusesSwap { region, refuses } => world.agent(REGIONS[region]).refuses_swap = refuses,
        Event::Ingestion { region, seconds } => {
            world.agent(REGIONS[region]).ingestion = Duration::from_secs(seconds);
        }
        Event::Clients { region, clients } => world.agent(REGIONS[region]).clients = clients,
        Event::Freeze(which) => {
            let scope = match which {
                0 => FreezeScope::All,
                1 => FreezeScope::Store("s".into()),
                other => FreezeScope::Region(REGIONS[other - 2].into()),
            };
            world.freeze(&which.to_string(), scope);
        }
        Event::Unfreeze(which) => world.unfreeze(&which.to_string()),
        Event::Mark { region, available } => world.mark(REGIONS[region], available),
        Event::OpenByHand(function, region) => {
            if let Some(push) = running(world) {
                let region = region_of(function, region);
                let region = (!region.is_empty()).then_some(region);
                world.open_by_hand(&push, &tidegate_rollout::entities::Gate::id(function, region));
            }
        }
        Event::AddRegion => {
            if !world.view.regions.contains_key("d") {
                world.add_region("d");
                world.settle();
            }
        }
    }
}

fn running(world: &Simulator) -> Option<String> {
    world.view.running().map(|(id, _)| id.clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_invariant_breaks_and_the_next_push_completes(
        events in prop::collection::vec(event(), 1..40),
    ) {
        let mut world = Simulator::empty();
        world.enable(&["x"]);
        // Days pass here, and what happens in between does not depend on how often a hook that waits is asked.
        world.view.hooks.wait_interval = HOUR;
        let mut newest = None;
        for event in events {
            happen(&mut world, &mut newest, event);
        }
        // Everything is well again, and time passes.
        world.clear_scripts();
        for which in 0..5 {
            world.unfreeze(&which.to_string());
        }
        for agent in world.agents.values_mut() {
            agent.alive = true;
            agent.fails = None;
            agent.refuses_swap = false;
            agent.clients_slow = false;
            agent.ingestion = Duration::from_secs(1);
        }
        for region in REGIONS {
            world.mark(region, true);
        }
        world.advance(DAY * 20);
        for (id, facts) in &world.view.pushes {
            prop_assert!(world.wrapped_up(id), "{id}: {:?}", facts.push);
        }
        for (name, facts) in &world.view.regions {
            let told = facts.serve();
            let serves = facts.report.as_ref().and_then(|report| report.serving);
            prop_assert_eq!(serves, told, "{}", name);
        }
        let last = world.push();
        world.advance(HOUR);
        prop_assert_eq!(world.status(&last), PushStatus::Completed);
        let number = world.facts(&last).push.version;
        for (name, facts) in &world.view.regions {
            prop_assert_eq!(facts.report.as_ref().and_then(|report| report.serving), Some(number), "{}", name);
        }
        use tidegate_rollout::entities::VersionStatus::{Pushed, Started};
        let under_way = world.view.versions.values().flat_map(|version| version.regions.values());
        let under_way = under_way.filter(|region| matches!(region.status, Started | Pushed)).count();
        prop_assert_eq!(under_way, 0);
    }
}
