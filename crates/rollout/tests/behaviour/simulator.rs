//! A little world around the pure controller: one store, scripted hooks, regions that do what they are told after a
//! while, and a clock that jumps from one event to the next. No state tree, no threads, no waiting.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tidegate_lifecycle::{
    CallRequest, CallState, EffectiveHook, FailureKind as CallFailure, Function, Mode, OnFailure, RecordedAnswer,
    Verdict,
};
use tidegate_rollout::controller::{
    GateFacts, HookSettings, PushFacts, PushView, RegionFacts, Way, Write, next, way_of_new_push,
};
use tidegate_rollout::entities::{
    AgentHeartbeat, Availability, BuildProgress, EmbeddedCounts, EmbeddedPermission, EmbeddedSwap, FailureKind, Freeze,
    FreezeScope, Garbage, HeldReport, IngestionStatus, Kill, Milestone, Override, Phase, Pin, Push, PushClient,
    PushClock, PushEnd, PushState, PushStatus, Region, RegionState, Report, SchemaProgress, Store, UptimeMark, Version,
    VersionData, VersionStatus, WrapUp,
};
use tidegate_state::Timestamp;
use uuid::Uuid;

use crate::linter::Linter;

pub(crate) const START: Timestamp = Timestamp(1_700_000_000_000);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
/// How long an embedded client may be silent before it counts as dead.
pub(crate) const CLIENT_GRACE: Duration = Duration::from_secs(300);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// What a scripted hook answers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Proceed,
    Wait,
    WaitUntil(Timestamp),
    Closed,
    Abort,
    Rollback,
    Fail,
    /// Hangs: no answer comes.
    Silence,
}

/// A region's agent with its nodes.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) alive: bool,
    pub(crate) ingestion: Duration,
    pub(crate) fails: Option<(FailureKind, String)>,
    pub(crate) refuses_swap: bool,
    /// Embedded clients, which ingest and serve as soon as they may, unless they are slow.
    pub(crate) clients: u32,
    pub(crate) clients_slow: bool,
    /// How many of them are silent, and since when: they count until the grace time is over, and then as dead.
    pub(crate) clients_silent: Option<(u32, Timestamp)>,
    /// Every version that its nodes served, in order.
    pub(crate) served: Vec<Option<u64>>,
    pub(crate) clients_served: BTreeSet<u64>,
    /// Versions loaded, and how often.
    pub(crate) loads: BTreeMap<u64, u32>,
}

pub(crate) struct Simulator {
    pub(crate) view: PushView,
    pub(crate) now: Timestamp,
    pub(crate) agents: BTreeMap<String, Agent>,
    pub(crate) calls: Vec<(Timestamp, CallRequest)>,
    pub(crate) garbage: BTreeMap<String, Garbage>,
    order: Option<(Vec<String>, Duration)>,
    scripts: BTreeMap<(Function, String, String), VecDeque<Reply>>,
    standing: BTreeMap<(Function, String, String), Reply>,
    wake_at: Option<Timestamp>,
    linter: Linter,
    next_push: u32,
}

impl Simulator {
    /// Regions a, b and c that serve nothing, and no hooks.
    pub(crate) fn empty() -> Self {
        let store = Store::new(Uuid::from_u128(1), START, "ada", vec!["key".into()]);
        let view = PushView {
            name: "s".into(),
            store,
            hooks: HookSettings { generation: 1, wait_interval: MINUTE, by_function: BTreeMap::new() },
            pushes: BTreeMap::new(),
            versions: BTreeMap::new(),
            schemas: BTreeMap::new(),
            regions: BTreeMap::new(),
            freezes: BTreeMap::new(),
            uptime: UptimeMark { at: START, gaps: Vec::new() },
        };
        let mut simulator = Simulator {
            view,
            now: START,
            agents: BTreeMap::new(),
            calls: Vec::new(),
            garbage: BTreeMap::new(),
            order: None,
            scripts: BTreeMap::new(),
            standing: BTreeMap::new(),
            wake_at: None,
            linter: Linter::default(),
            next_push: 1,
        };
        for name in ["a", "b", "c"] {
            simulator.add_region(name);
        }
        simulator
    }

    /// As the acceptance cases have it: a, b and c serve v1.
    pub(crate) fn new() -> Self {
        let mut simulator = Simulator::empty();
        let first = simulator.push();
        simulator.advance(MINUTE);
        assert_eq!(simulator.status(&first), PushStatus::Completed);
        for agent in simulator.agents.values_mut() {
            agent.served.clear();
            agent.loads.clear();
        }
        simulator.calls.clear();
        simulator
    }

    pub(crate) fn add_region(&mut self, name: &str) {
        let region = Region {
            nodes: 2,
            enough: 2,
            shares_source: false,
            agent: false,
            availability: Availability::Available,
            added_at: self.now,
        };
        let facts = RegionFacts { region, assignment: None, report: None, heartbeat: None };
        self.view.regions.insert(name.into(), facts);
        let agent = Agent {
            alive: true,
            ingestion: Duration::from_secs(1),
            fails: None,
            refuses_swap: false,
            clients: 0,
            clients_slow: false,
            clients_silent: None,
            served: Vec::new(),
            clients_served: BTreeSet::new(),
            loads: BTreeMap::new(),
        };
        self.agents.insert(name.into(), agent);
    }

    /// Data that no push made is live there: version 0.
    pub(crate) fn adopt(&mut self, name: &str) {
        let report = Report {
            generation: 0,
            incarnation: self.view.store.incarnation,
            versions: BTreeMap::new(),
            serving: Some(0),
            serving_since: Some(self.now),
            lagging_nodes: Vec::new(),
            embedded: EmbeddedCounts::default(),
            pin: None,
            past_pins: Vec::new(),
            at: self.now,
        };
        self.view.regions.get_mut(name).unwrap().report = Some(report);
    }

    pub(crate) fn agent(&mut self, name: &str) -> &mut Agent {
        self.agents.get_mut(name).unwrap()
    }

    /// Enables hooks for every function, in this order. They proceed unless they are scripted.
    pub(crate) fn enable(&mut self, hooks: &[&str]) {
        let enforced: Vec<(&str, Mode)> = hooks.iter().map(|hook| (*hook, Mode::Enforce)).collect();
        self.enable_in(&enforced);
    }

    pub(crate) fn enable_in(&mut self, hooks: &[(&str, Mode)]) {
        let effective: Vec<EffectiveHook> = hooks
            .iter()
            .map(|(name, mode)| EffectiveHook { name: (*name).into(), mode: *mode, on_failure: OnFailure::Wait })
            .collect();
        self.view.hooks.by_function = Function::ALL.into_iter().map(|function| (function, effective.clone())).collect();
    }

    /// What a hook answers in turn at a function, in one region or (with an empty name) of the whole push; then Proceed.
    pub(crate) fn script(&mut self, hook: &str, function: Function, region: &str, replies: &[Reply]) {
        let key = (function, region.to_owned(), hook.to_owned());
        self.scripts.insert(key, replies.iter().cloned().collect());
    }

    /// What a hook answers for ever, beyond its script.
    pub(crate) fn always(&mut self, hook: &str, function: Function, region: &str, reply: Reply) {
        self.standing.insert((function, region.to_owned(), hook.to_owned()), reply);
    }

    /// Enables a hook that lets regions swap in this order, each so long after the one before it.
    pub(crate) fn order(&mut self, regions: &[&str], delay: Duration) {
        self.enable(&["region-order"]);
        self.order = Some((regions.iter().map(|region| (*region).to_owned()).collect(), delay));
    }

    pub(crate) fn clear_scripts(&mut self) {
        self.scripts.clear();
        self.standing.clear();
    }

    /// Starts a push whose client has not built anything yet.
    pub(crate) fn start(&mut self) -> String {
        let id = format!("p{}", self.next_push);
        self.next_push += 1;
        let (supersedes, protected) = self.make_way(&id);
        let version = self.view.store.next_version;
        self.view.store.next_version += 1;
        let push = Push {
            version,
            pushed_by: "ada".into(),
            attributes: BTreeMap::new(),
            input_digest: None,
            created_at: self.now,
            started_at: None,
            state: PushState::Queued,
            clock: PushClock::default(),
            schema: SchemaProgress::Known { number: 1, registered: false },
            allow_empty: false,
            completed_at: None,
            regions: BTreeMap::new(),
            kill: None,
            overrides: BTreeMap::new(),
            protected,
            supersedes,
            from_version: None,
            alarm: None,
        };
        self.view.versions.insert(version, Version::new(id.clone(), self.now));
        let client = PushClient { heard_at: self.now, progress: BuildProgress::default() };
        let facts = PushFacts { push, client: Some(client), gates: BTreeMap::new() };
        self.view.pushes.insert(id.clone(), facts);
        self.settle();
        id
    }

    /// What the operation does with other pushes. Where the store refuses a second one a test may still start it, to see
    /// the controller hold it.
    fn make_way(&mut self, id: &str) -> (Option<String>, bool) {
        let Way::Open { ended, supersedes, protected } = way_of_new_push(&self.view) else { return (None, false) };
        for other in ended {
            let reason = format!("push {id} came");
            let kill = Kill { by: "ada".into(), reason, at: self.now, superseded_by: Some(id.to_owned()) };
            self.view.pushes.get_mut(&other).unwrap().push.kill = Some(kill);
        }
        (supersedes, protected)
    }

    /// The client's last word: its artifact is complete.
    pub(crate) fn complete(&mut self, id: &str) {
        let now = self.now;
        let facts = self.view.pushes.get_mut(id).unwrap();
        if !matches!(facts.push.state, PushState::Running(Phase::Build | Phase::Upload)) {
            return;
        }
        facts.push.state = PushState::Running(Phase::Regions);
        facts.push.completed_at = Some(now);
        let version = facts.push.version;
        self.view.versions.get_mut(&version).unwrap().data = VersionData::Complete {
            artifact: format!("artifact-{version}"),
            manifest_sha256: format!("digest-{version}"),
            schema: 1,
            record_count: 10,
            bytes: 100,
            at: now,
        };
        self.settle();
    }

    /// Starts a push and completes it at once.
    pub(crate) fn push(&mut self) -> String {
        let id = self.start();
        self.complete(&id);
        id
    }

    pub(crate) fn kill(&mut self, id: &str) {
        let now = self.now;
        let push = &mut self.view.pushes.get_mut(id).unwrap().push;
        if !push.status().is_final() {
            push.kill = Some(Kill { by: "ada".into(), reason: "wrong data".into(), at: now, superseded_by: None });
        }
        self.settle();
    }

    pub(crate) fn heartbeat(&mut self, id: &str) {
        let now = self.now;
        if let Some(facts) = self.view.pushes.get_mut(id) {
            facts.client = Some(PushClient { heard_at: now, progress: BuildProgress::default() });
        }
        self.settle();
    }

    pub(crate) fn open_by_hand(&mut self, id: &str, gate: &str) {
        let over = Override { by: "ada".into(), reason: "I looked".into(), at: self.now };
        self.view.pushes.get_mut(id).unwrap().push.overrides.insert(gate.into(), over);
        self.settle();
    }

    pub(crate) fn freeze(&mut self, id: &str, scope: FreezeScope) {
        let freeze = Freeze { scope, reason: "holidays".into(), by: "eve".into(), at: self.now };
        self.view.freezes.insert(id.into(), freeze);
        self.settle();
    }

    pub(crate) fn unfreeze(&mut self, id: &str) {
        self.view.freezes.remove(id);
        self.settle();
    }

    pub(crate) fn mark(&mut self, region: &str, available: bool) {
        let since = self.now;
        self.view.regions.get_mut(region).unwrap().region.availability = if available {
            Availability::Available
        } else {
            Availability::Unavailable { reason: "power".into(), by: "eve".into(), since }
        };
        self.settle();
    }

    /// Lets time pass, from one event to the next.
    pub(crate) fn advance(&mut self, by: Duration) {
        let end = self.now.after(by);
        self.settle();
        loop {
            let due = self.agents.iter().filter_map(|(name, agent)| self.agent_due(name, agent));
            let events = due.chain(self.wake_at);
            let next = events.filter(|at| *at > self.now).min().unwrap_or(end).min(end);
            self.now = next;
            // A server is up all the time, so that its marks never lie far apart.
            self.view.uptime.at = self.now;
            self.settle();
            if self.now >= end {
                return;
            }
        }
    }

    /// Lets time pass in which no server is up.
    pub(crate) fn blackout(&mut self, by: Duration) {
        self.now = self.now.after(by);
        self.view.uptime = self.view.uptime.marked(self.now);
        self.settle();
    }

    /// Everything that happens without time passing.
    pub(crate) fn settle(&mut self) {
        for _ in 0..500 {
            let mut moved = self.answer_calls();
            moved |= self.run_agents();
            let plan = next(&self.view, self.now);
            self.wake_at = plan.wake_at;
            if plan.is_empty() {
                if !moved {
                    let busy = plan.wake_at.is_some_and(|at| at <= self.now);
                    assert!(!busy, "the controller wants to run again at once, and there is nothing to do");
                    return;
                }
                continue;
            }
            let before = self.view.clone();
            for write in plan.writes {
                self.write(write);
            }
            for call in plan.calls {
                let gate = self.view.pushes.get_mut(&call.push).unwrap().gates.get_mut(&call.gate).unwrap();
                gate.calls.insert(call.hook, call.call);
            }
            self.linter.check_step(&before, &self.view, self.now);
        }
        panic!("the controller does not come to rest");
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Version { number, version } => {
                self.view.versions.insert(number, *version);
            }
            Write::RemoveVersion { number } => {
                self.view.versions.remove(&number);
            }
            Write::Schema { number, schema } => {
                self.view.schemas.insert(number, *schema);
            }
            Write::Push { id, push } => self.view.pushes.get_mut(&id).unwrap().push = *push,
            Write::RemovePush { id } => {
                self.view.pushes.remove(&id);
            }
            Write::Gate { push, id, gate } => {
                let gates = &mut self.view.pushes.get_mut(&push).unwrap().gates;
                match gates.get_mut(&id) {
                    Some(facts) => facts.gate = *gate,
                    None => {
                        gates.insert(id, GateFacts { gate: *gate, calls: BTreeMap::new() });
                    }
                }
            }
            Write::Assignment { region, assignment } => {
                self.view.regions.get_mut(&region).unwrap().assignment = Some(*assignment);
            }
            Write::Garbage { id, garbage } => {
                self.garbage.insert(id, *garbage);
            }
        }
    }

    fn answer_calls(&mut self) -> bool {
        let mut answered = false;
        for facts in self.view.pushes.values_mut() {
            for gate in facts.gates.values_mut() {
                for call in gate.calls.values_mut() {
                    let CallState::Asked { request } = call.state.clone() else { continue };
                    let region = request.region.clone().unwrap_or_default();
                    let key = (request.function, region, request.hook.clone());
                    let ordered = self.order.as_ref().filter(|_| request.function == Function::PreStoreVersionSwap);
                    let reply = match (self.scripts.get_mut(&key).and_then(VecDeque::pop_front), ordered) {
                        (Some(reply), _) => reply,
                        (None, Some((order, delay))) => turn_of(&facts.push, order, *delay, &key.1, self.now),
                        (None, None) => self.standing.get(&key).cloned().unwrap_or(Reply::Proceed),
                    };
                    if reply == Reply::Silence {
                        // It stays asked; asking the script again must not use it up.
                        self.standing.insert(key, Reply::Silence);
                        continue;
                    }
                    self.calls.push((self.now, request.clone()));
                    call.state = CallState::Answered { answer: recorded(&reply, self.now), request };
                    answered = true;
                }
            }
        }
        answered
    }

    fn agent_due(&self, name: &str, agent: &Agent) -> Option<Timestamp> {
        if !agent.alive {
            return None;
        }
        let report = self.view.regions.get(name)?.report.as_ref()?;
        let ingested = report
            .versions
            .values()
            .filter(|held| matches!(held.status, IngestionStatus::Started))
            .map(|held| held.since.after(agent.ingestion));
        ingested.chain(agent.clients_silent.map(|(_, since)| since.after(CLIENT_GRACE))).min()
    }

    fn run_agents(&mut self) -> bool {
        let mut moved = false;
        let (now, store, swap) = (self.now, self.view.store.incarnation, self.view.store.embedded_swap);
        for (name, facts) in &mut self.view.regions {
            let Some(agent) = self.agents.get_mut(name).filter(|agent| agent.alive) else { continue };
            let before = facts.report.clone();
            facts.heartbeat = Some(AgentHeartbeat { at: now, agent: name.clone() });
            let Some(assignment) = &facts.assignment else { continue };
            let mut report = before.clone().unwrap_or(Report {
                generation: 0,
                incarnation: store,
                versions: BTreeMap::new(),
                serving: None,
                serving_since: None,
                lagging_nodes: Vec::new(),
                embedded: EmbeddedCounts::default(),
                pin: None,
                past_pins: Vec::new(),
                at: now,
            });
            report.generation = assignment.generation;
            for number in assignment.hold.keys() {
                let held = report.versions.entry(*number).or_insert_with(|| HeldReport {
                    status: IngestionStatus::Started,
                    since: now,
                    digest: None,
                    nodes: 0,
                    retrying: None,
                });
                if matches!(held.status, IngestionStatus::Started) && now >= held.since.after(agent.ingestion) {
                    held.since = now;
                    held.status = match &agent.fails {
                        Some((kind, message)) => IngestionStatus::Failed { kind: *kind, message: message.clone() },
                        None => {
                            *agent.loads.entry(*number).or_default() += 1;
                            held.nodes = 2;
                            IngestionStatus::Completed
                        }
                    };
                }
            }
            let serving = report.serving;
            report.versions.retain(|number, _| assignment.hold.contains_key(number) || serving == Some(*number));
            let pinned = report.pin.as_ref().map(|pin| pin.version);
            let target = pinned.or(assignment.serve);
            // What was live before the first push serves until the control plane has said another.
            let adopted_stays = report.serving == Some(0) && target.is_none();
            if report.serving != target && !adopted_stays {
                let ready = target.is_none_or(|target| {
                    target == 0
                        || report.versions.get(&target).is_some_and(|held| held.status == IngestionStatus::Completed)
                });
                let refused = target.filter(|_| ready && agent.refuses_swap);
                if let Some(held) = refused.and_then(|target| report.versions.get_mut(&target)) {
                    held.status = IngestionStatus::Failed {
                        kind: FailureKind::SwapRefused,
                        message: "the engine refuses to swap".into(),
                    };
                } else if ready {
                    report.serving = target;
                    report.serving_since = Some(now);
                    agent.served.push(target);
                }
            }
            run_clients(agent, &mut report, assignment, swap, now);
            let unchanged = before.as_ref().is_some_and(|before| Report { at: before.at, ..report.clone() } == *before);
            if !unchanged {
                report.at = now;
                facts.report = Some(report);
                moved = true;
            }
        }
        moved
    }

    /// Someone pins a version in a region itself, or lifts the pin.
    pub(crate) fn pin(&mut self, region: &str, version: Option<u64>) {
        let at = self.now;
        let report = self.view.regions.get_mut(region).unwrap().report.as_mut().unwrap();
        report.pin = version.map(|version| Pin { version, reason: "prices are wrong".into(), by: "ann".into(), at });
        self.settle();
    }

    // What tests ask.

    pub(crate) fn facts(&self, id: &str) -> &PushFacts {
        &self.view.pushes[id]
    }

    pub(crate) fn status(&self, id: &str) -> PushStatus {
        self.view.pushes[id].push.status()
    }

    pub(crate) fn end(&self, id: &str) -> &PushEnd {
        self.view.pushes[id].push.end().unwrap_or_else(|| {
            panic!("{id} has not ended: {:?}", self.view.pushes[id].push);
        })
    }

    pub(crate) fn region(&self, id: &str, region: &str) -> &RegionState {
        &self.view.pushes[id].push.regions[region].state
    }

    /// What the regions' nodes serve.
    pub(crate) fn serving(&self) -> Vec<Option<u64>> {
        self.view.regions.values().map(|facts| facts.report.as_ref().and_then(|report| report.serving)).collect()
    }

    pub(crate) fn version(&self, number: u64) -> VersionStatus {
        self.view.versions[&number].status
    }

    /// Who has been told to hold a version.
    pub(crate) fn holders(&self, number: u64) -> Vec<&str> {
        self.view
            .regions
            .iter()
            .filter(|(_, facts)| {
                facts.assignment.as_ref().is_some_and(|assignment| assignment.hold.contains_key(&number))
            })
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// How often a function was asked, in one region or (without one) anywhere.
    pub(crate) fn asked(&self, function: Function, region: Option<&str>) -> usize {
        self.calls
            .iter()
            .filter(|(_, call)| call.function == function)
            .filter(|(_, call)| region.is_none() || call.region.as_deref() == region)
            .count()
    }

    pub(crate) fn wrapped_up(&self, id: &str) -> bool {
        matches!(self.view.pushes[id].push.state, PushState::Ended { wrap_up: WrapUp::Done, .. })
    }
}

/// Embedded clients: they hold and serve what they may, as soon as they may, unless they are slow.
fn run_clients(
    agent: &mut Agent,
    report: &mut Report,
    assignment: &tidegate_rollout::entities::Assignment,
    swap: EmbeddedSwap,
    now: Timestamp,
) {
    let (silent, since) = agent.clients_silent.unwrap_or((0, now));
    let dead = if now >= since.after(CLIENT_GRACE) { silent } else { 0 };
    report.embedded.live = agent.clients - dead;
    report.embedded.dead = dead;
    if agent.clients == 0 || agent.clients_slow {
        return;
    }
    let awake = agent.clients - silent;
    for (number, held) in &assignment.hold {
        if held.embedded == EmbeddedPermission::None {
            continue;
        }
        let counts = report.embedded.versions.entry(*number).or_default();
        counts.ingested = counts.ingested.min(report.embedded.live).max(awake);
        let may_serve = held.embedded == EmbeddedPermission::Serve;
        if may_serve && (swap == EmbeddedSwap::Alone || report.serving == Some(*number)) {
            counts.serving = awake;
            agent.clients_served.insert(*number);
        }
    }
    report.embedded.versions.retain(|number, _| assignment.hold.contains_key(number));
}

/// Whether it is a region's turn in an order: the one before it has swapped, and the delay is over.
fn turn_of(push: &Push, order: &[String], delay: Duration, region: &str, now: Timestamp) -> Reply {
    let place = order.iter().position(|name| name == region).unwrap_or(order.len());
    let Some(before) = place.checked_sub(1).and_then(|place| order.get(place)) else { return Reply::Proceed };
    match push.regions.get(before).and_then(|region| region.reached.get(&Milestone::Done)) {
        None => Reply::Wait,
        Some(swapped) if swapped.after(delay) <= now => Reply::Proceed,
        Some(swapped) => Reply::WaitUntil(swapped.after(delay)),
    }
}

fn recorded(reply: &Reply, now: Timestamp) -> RecordedAnswer {
    let (verdict, reason) = match reply {
        Reply::Proceed => (Verdict::Proceed, ""),
        Reply::Wait | Reply::WaitUntil(_) => (Verdict::Wait, "not yet"),
        Reply::Closed => (Verdict::Wait, "the window is closed"),
        Reply::Abort => (Verdict::Abort, "bad, 3 of 2"),
        Reply::Rollback => (Verdict::Rollback, "worse, 5 of 2"),
        Reply::Fail | Reply::Silence => (Verdict::Wait, "the hook failed"),
    };
    RecordedAnswer {
        verdict,
        reason: reason.into(),
        ask_again_at: if let Reply::WaitUntil(at) = reply { Some(*at) } else { None },
        stops_clock: *reply == Reply::Closed,
        memo: None,
        failed: (*reply == Reply::Fail).then_some(CallFailure::Error),
        started_at: now,
        ended_at: now,
        server: "server".into(),
    }
}
