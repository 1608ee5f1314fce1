//! The working copy that the phases change, and the plan that is read off it at the end.
//!
//! Every phase looks at the copy as it is and takes at most one step; the planner goes round until nothing moves any more.
//! So a phase never has to know which of them ran before it, and what several of them do in a row commits as one.

use std::collections::BTreeMap;

use tidegate_state::Timestamp;

use super::plan::{CallWrite, Plan, Write};
use super::view::{PushFacts, PushView};
use crate::entities::{Assignment, Garbage};

/// How often the phases are gone through at most. Each turn takes a push or a region a step further, and the longest way
/// has about ten; what would not have settled by then goes on with the next run.
const TURNS_MAX: usize = 48;

pub(super) struct Planner {
    pub(super) view: PushView,
    pub(super) now: Timestamp,
    pub(super) wake_at: Option<Timestamp>,
    pub(super) garbage: BTreeMap<String, Garbage>,
    /// The assignments as they were committed: an answer to what this very plan says can't be there yet.
    pub(super) committed: BTreeMap<String, Option<Assignment>>,
}

/// One push at work, apart from the view that it is part of.
pub(super) struct PushStep<'a> {
    pub(super) id: &'a str,
    pub(super) facts: &'a mut PushFacts,
    pub(super) planner: &'a mut Planner,
}

impl Planner {
    pub(super) fn new(view: &PushView, now: Timestamp) -> Self {
        let committed = view.regions.iter().map(|(name, facts)| (name.clone(), facts.assignment.clone())).collect();
        Planner { view: view.clone(), now, wake_at: None, garbage: BTreeMap::new(), committed }
    }

    /// Looks again at `at` at the latest.
    pub(super) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            let before = self.view.clone();
            self.wake_at = None;
            self.turn();
            if self.view == before {
                return;
            }
        }
        // Not settled: look again at once.
        self.wake(self.now);
    }

    fn turn(&mut self) {
        self.admit();
        let ids: Vec<String> = self.view.pushes.keys().cloned().collect();
        for id in ids {
            self.with_push(&id, |step| step.turn());
        }
        self.catch_up();
        self.assign();
        self.judge_versions();
        self.retain();
    }

    /// Takes one push out of the view, works on it, and puts it back.
    pub(super) fn with_push<T>(&mut self, id: &str, work: impl FnOnce(&mut PushStep<'_>) -> T) -> Option<T> {
        let mut facts = self.view.pushes.remove(id)?;
        let result = work(&mut PushStep { id, facts: &mut facts, planner: self });
        self.view.pushes.insert(id.to_owned(), facts);
        Some(result)
    }

    /// What has become different, in the order in which it has to be written.
    pub(super) fn plan(self, before: &PushView) -> Plan {
        let mut writes = Vec::new();
        let mut calls = Vec::new();
        for (number, version) in &self.view.versions {
            if before.versions.get(number) != Some(version) {
                writes.push(Write::Version { number: *number, version: Box::new(version.clone()) });
            }
        }
        for number in before.versions.keys().filter(|number| !self.view.versions.contains_key(number)) {
            writes.push(Write::RemoveVersion { number: *number });
        }
        for (number, schema) in &self.view.schemas {
            if before.schemas.get(number) != Some(schema) {
                writes.push(Write::Schema { number: *number, schema: Box::new(schema.clone()) });
            }
        }
        for (id, facts) in &self.view.pushes {
            let was = before.pushes.get(id);
            if was.map(|was| &was.push) != Some(&facts.push) {
                writes.push(Write::Push { id: id.clone(), push: Box::new(facts.push.clone()) });
            }
            for (gate_id, gate) in &facts.gates {
                let was = was.and_then(|was| was.gates.get(gate_id));
                if was.map(|was| &was.gate) != Some(&gate.gate) {
                    let gate = Box::new(gate.gate.clone());
                    writes.push(Write::Gate { push: id.clone(), id: gate_id.clone(), gate });
                }
                for (hook, call) in &gate.calls {
                    if was.and_then(|was| was.calls.get(hook)) != Some(call) {
                        calls.push(CallWrite {
                            push: id.clone(),
                            gate: gate_id.clone(),
                            hook: hook.clone(),
                            call: call.clone(),
                        });
                    }
                }
            }
        }
        for id in before.pushes.keys().filter(|id| !self.view.pushes.contains_key(*id)) {
            writes.push(Write::RemovePush { id: id.clone() });
        }
        for (region, facts) in self.view.regions {
            let was = before.regions.get(&region).and_then(|was| was.assignment.as_ref());
            let Some(assignment) = facts.assignment else { continue };
            if was != Some(&assignment) {
                let generation = was.map_or(0, |was| was.generation) + 1;
                let assignment = Box::new(Assignment { generation, ..assignment });
                writes.push(Write::Assignment { region, assignment });
            }
        }
        for (id, garbage) in self.garbage {
            writes.push(Write::Garbage { id, garbage: Box::new(garbage) });
        }
        Plan { writes, calls, wake_at: self.wake_at }
    }
}

impl PushStep<'_> {
    pub(super) fn now(&self) -> Timestamp {
        self.planner.now
    }

    pub(super) fn version(&self) -> u64 {
        self.facts.push.version
    }
}
