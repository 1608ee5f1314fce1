//! Slots that pass on, for whatever reason, while changes come in: nothing is lost, nothing is doubled, and what does not pass
//! on goes on.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::sync::watch;

use crate::cluster_hook::points;
use crate::driver::{RequestId, SlotId};
use crate::testing::history::{HistoryEvent, Moment};
use crate::testing::points::Hold;
use crate::{Ref, Registration, Transaction, TransactionError};

use super::super::{applied, within};
use super::Case;
use super::moving::key_per_slot;
use super::support::{LIMIT, Probe, Store, World, counted, per_store};

const SLOTS: u32 = 6;
/// A thousand changes a second, where the machine is up to that: so many at once, so often.
const AT_ONCE: usize = 20;
const PAUSE: Duration = Duration::from_millis(20);
/// So many come in at least while a server is held.
const AMID: u64 = 200;

/// Changes that keep coming in, through a server that runs no hook. Each asks for one run.
struct Changes {
    made: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    making: tokio::task::JoinHandle<()>,
}

impl Changes {
    fn of(world: &World, keys: &[String]) -> Changes {
        let state = world.cluster.server(2).clone();
        let stores: Vec<Ref<Store>> = keys.iter().map(|key| world.store(key)).collect();
        let (sender, made) = watch::channel(0);
        let stop = watch::Sender::new(false);
        let stopped = stop.subscribe();
        let making = tokio::spawn(async move {
            let mut due = tokio::time::interval(PAUSE);
            for value in 1.. {
                due.tick().await;
                if *stopped.borrow() {
                    return;
                }
                let at = value * AT_ONCE;
                let some: Vec<Ref<Store>> =
                    (at..at + AT_ONCE).map(|place| stores[place % stores.len()].clone()).collect();
                let put = move |tx: &mut Transaction| {
                    some.iter().try_for_each(|store| tx.put(store, Store { value: value as u64 }))
                };
                state.write::<_, TransactionError, _>(put).await.unwrap();
                sender.send_modify(|made| *made += AT_ONCE as u64);
            }
        });
        Changes { made, stop, making }
    }

    async fn further(&self) {
        let mut made = self.made.clone();
        let enough = *made.borrow() + AMID;
        within("further changes", made.wait_for(|made| *made >= enough)).await.unwrap();
    }

    /// Says how many there were.
    async fn end(self) -> u64 {
        self.stop.send_replace(true);
        within("the last change", self.making).await.unwrap();
        *self.made.borrow()
    }
}

/// Two servers that run the hook, and a third that only writes.
struct Servers {
    world: World,
    registration: Registration,
    probes: [Probe; 2],
    keys: Vec<String>,
}

impl Servers {
    /// The second does not run the hook yet.
    async fn new(case: &Case) -> Servers {
        let world = World::configured(case, 3, |_, mut options| {
            // What is held meanwhile does not end a drain.
            options.drain_limit = LIMIT;
            options
        })
        .await;
        let mut keys = key_per_slot(&world, SLOTS);
        keys.extend((0..18).map(|number| format!("more-{number}")));
        let probes = [(); 2].map(|()| Probe::answering(counted));
        Servers { world, registration: per_store("hook").slots(SLOTS), probes, keys }
    }

    async fn register(&mut self, server: usize, room: u32) {
        self.world.register(server, &self.registration, room, &self.probes[server]).await;
    }

    fn gates(&self, from: Option<usize>, to: usize) -> Gates {
        let (old, new) = (from.map(|from| self.world.cluster.points(from)), self.world.cluster.points(to));
        Gates {
            from,
            to,
            releasing: old.map(|old| old.hold(points::SLOT_BEFORE_RELEASE)),
            leased: new.hold(points::SLOT_LEASED),
            read: new.hold(points::SLOT_READ),
            since: self.world.recorder.moment(),
        }
    }

    fn starts(&self) -> Vec<(RequestId, String)> {
        let seen = self.probes.iter().flat_map(Probe::seen);
        seen.map(|seen| (seen.request, seen.server)).collect()
    }

    /// All are done, and each has run just once. The history has who started what when, and in which order.
    async fn each_once(self, made: u64) {
        assert!(self.world.hooks_finish(2).await.finished);
        let starts = self.starts();
        let requests: HashSet<RequestId> = starts.iter().map(|(request, _)| *request).collect();
        assert_eq!((starts.len() as u64, requests.len() as u64), (made, made), "each change once, without a fault");
        self.world.finish().await;
    }
}

/// The next owner is held once it has leased slots, and once it has read what is pending in them; the one before, where there
/// is one, before it releases them.
struct Gates {
    from: Option<usize>,
    to: usize,
    releasing: Option<Hold>,
    leased: Hold,
    read: Hold,
    since: Moment,
}

impl Gates {
    /// The slots that one of the two has released or leased since.
    fn passing(&self, world: &World) -> HashSet<SlotId> {
        let server = |index: usize| format!("server-{index}");
        let (from, to) = (self.from.map(server), server(self.to));
        let passes = |event: &HistoryEvent, by: &str| match event {
            HistoryEvent::SlotReleased { fence } if Some(by) == from.as_deref() => Some(fence.slot),
            HistoryEvent::SlotLeased { fence, .. } if by == to => Some(fence.slot),
            _ => None,
        };
        let lines = world.recorder.lines_since(self.since);
        lines.iter().filter_map(|line| passes(&line.event, &line.server)).collect()
    }

    /// Changes come in, the next owner's tail brings them, and the slots that do not pass on go on.
    async fn amid(&self, servers: &Servers, changes: &Changes) {
        let world = &servers.world;
        changes.further().await;
        applied(world.cluster.server(self.to), world.cluster.server(2).snapshot().revision()).await;
        let passing = self.passing(world);
        assert!(!passing.is_empty() && passing.len() < SLOTS as usize, "{passing:?} pass on");
        let before = world.recorder.moment();
        let go_on = || async {
            let lines = world.recorder.lines_since(before);
            let start = |event: &HistoryEvent| match event {
                HistoryEvent::RunStarted { fence, .. } => Some(fence.slot),
                _ => None,
            };
            lines.iter().filter_map(|line| start(&line.event)).any(|slot| !passing.contains(&slot))
        };
        world.eventually("other slots go on", go_on).await;
    }

    async fn pass(mut self, servers: &Servers, changes: &Changes) {
        if let Some(releasing) = self.releasing.take() {
            releasing.reached_within(LIMIT).await;
            self.amid(servers, changes).await;
            releasing.release();
        }
        self.leased.reached_within(LIMIT).await;
        self.amid(servers, changes).await;
        let Gates { leased, read, .. } = self;
        leased.release();
        read.reached_within(LIMIT).await;
        changes.further().await;
        read.release();
        changes.further().await;
    }
}

/// K44: slots pass on since a server joins, and then since one drains, amid a thousand changes a second; each of the two is
/// held at every step of it. Each change runs once, in the order of its key.
pub async fn k44_slots_pass_on_amid_changes_when_a_server_joins_and_when_one_drains(case: Case) {
    let mut servers = Servers::new(&case).await;
    servers.register(0, 8).await;
    servers.world.spread("hook", 1).await;
    let changes = Changes::of(&servers.world, &servers.keys);
    changes.further().await;
    let gates = servers.gates(Some(0), 1);
    servers.register(1, 8).await;
    gates.pass(&servers, &changes).await;
    servers.world.spread("hook", 2).await;
    let gates = servers.gates(Some(0), 1);
    let draining = tokio::spawn(servers.world.cluster.closing(0));
    gates.pass(&servers, &changes).await;
    within("the drain", draining).await.unwrap();
    servers.world.close(0).await;
    let made = changes.end().await;
    servers.each_once(made).await;
}

/// K44: slots pass on amid a thousand changes a second since all the room of their server is taken and another has some.
pub async fn k44_slots_pass_on_amid_changes_when_a_server_is_overloaded(case: Case) {
    let mut servers = Servers::new(&case).await;
    servers.register(0, 2).await;
    servers.register(1, 64).await;
    servers.world.spread("hook", 2).await;
    let mut of_the_first = Vec::new();
    for key in key_per_slot(&servers.world, SLOTS) {
        if servers.world.cluster.owner_of("hook", &servers.world.key(&key)).await == Some(0) {
            of_the_first.push(key);
        }
    }
    for key in &of_the_first[..2] {
        servers.probes[0].hold(key);
    }
    let changes = Changes::of(&servers.world, &servers.keys);
    changes.further().await;
    for key in &of_the_first[..2] {
        servers.probes[0].started(key, 1).await;
    }
    let gates = servers.gates(Some(0), 1);
    // Keys have waited for over a second by then.
    let gives_up = || async {
        servers.world.step(Duration::from_secs(1)).await;
        servers.world.cluster.points(0).held().contains(&points::SLOT_BEFORE_RELEASE)
    };
    servers.world.eventually("it gives a slot up", gives_up).await;
    gates.pass(&servers, &changes).await;
    for key in &of_the_first[..2] {
        servers.probes[0].release(key);
    }
    let made = changes.end().await;
    servers.each_once(made).await;
}

/// K44: the lease of a server that hears nothing ends amid a thousand changes a second: its slots pass on, and only what it had
/// begun and was not acknowledged runs again.
pub async fn k44_slots_pass_on_amid_changes_when_a_lease_ends(case: Case) {
    let mut servers = Servers::new(&case).await;
    servers.register(0, 8).await;
    servers.register(1, 8).await;
    servers.world.spread("hook", 2).await;
    let changes = Changes::of(&servers.world, &servers.keys);
    changes.further().await;
    let old = servers.world.cluster.points(0).clone();
    let (heartbeat, lapse) = (old.hold(points::SLOT_BEFORE_HEARTBEAT), old.hold(points::SLOT_BEFORE_LAPSE));
    let gates = servers.gates(None, 1);
    servers.world.step(Duration::from_secs(12)).await;
    gates.pass(&servers, &changes).await;
    drop((heartbeat, lapse));
    let made = changes.end().await;
    assert!(servers.world.hooks_finish(2).await.finished);
    let mut of_request: HashMap<RequestId, Vec<String>> = HashMap::new();
    for (request, server) in servers.starts() {
        of_request.entry(request).or_default().push(server);
    }
    assert_eq!(of_request.len() as u64, made, "each change");
    let acknowledged_by_the_old: HashSet<RequestId> = servers
        .world
        .recorder
        .lines()
        .into_iter()
        .filter_map(|line| match line.event {
            HistoryEvent::Receipt { request, durable: true, .. } if line.server == "server-0" => Some(request),
            _ => None,
        })
        .collect();
    for (request, servers) in of_request.iter().filter(|(_, servers)| servers.len() > 1) {
        assert_eq!(
            (servers.len(), servers.contains(&"server-0".to_owned())),
            (2, true),
            "{request} runs on {servers:?}"
        );
        assert!(!acknowledged_by_the_old.contains(request), "{request} was done");
    }
    servers.world.finish().await;
}
