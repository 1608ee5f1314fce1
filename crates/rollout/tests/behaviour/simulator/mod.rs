//! A little world around the pure controller: one store, scripted hooks, regions that do what they are told after a
//! while, and a clock that jumps from one event to the next. No state tree, no threads, no waiting.
//!
//! | file | has |
//! |---|---|
//! | this one | the world, and time that passes in it |
//! | `orders` | what push clients and operators do |
//! | `hooks` | hooks that answer as they are scripted |
//! | `regions` | the regions' agents, with their nodes and embedded clients |
//! | `asked` | what tests ask of it |

mod asked;
mod hooks;
mod orders;
mod regions;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tidegate_lifecycle::{CallRequest, Function};
use tidegate_rollout::controller::{GateFacts, HookSettings, PushView, Write, next};
use tidegate_rollout::entities::{Garbage, PushStatus, Store, UptimeMark};
use tidegate_state::Timestamp;
use uuid::Uuid;

pub(crate) use self::hooks::Reply;
use self::regions::Agent;
use crate::linter::Linter;

pub(crate) const START: Timestamp = Timestamp(1_700_000_000_000);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
/// How long an embedded client may be silent before it counts as dead.
pub(crate) const CLIENT_GRACE: Duration = Duration::from_secs(300);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

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
}
