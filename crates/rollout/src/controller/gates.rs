//! Gates: asking the hooks of a function, and what their answers come to.

use std::hash::{DefaultHasher, Hash, Hasher};

use tidegate_lifecycle::{CallState, Function, GateState, GateStep, Outcomes, Verdict, next_round};
use tidegate_state::Timestamp;

use super::planner::PushStep;
use super::view::{GateFacts, PushFacts, PushView};
use crate::entities::{Call, Gate, Turn};

/// A step of a gate's is followed at most so often in a row: ask, then wait or open.
const STEPS_MAX: usize = 8;

impl PushStep<'_> {
    /// Asks a function's hooks as far as it is due, and says how its gate stands.
    pub(super) fn ask(&mut self, function: Function, region: Option<&str>) -> GateStep {
        let id = Gate::id(function, region);
        let now = self.now();
        let settings = settings_digest(&self.planner.view);
        let others = others_digest(&self.planner.view, self.facts, region);
        let hooks = self.planner.view.hooks.of(function);
        let wait_interval = self.planner.view.hooks.wait_interval;
        let over = self.facts.push.overrides.get(&id);
        let store = &self.planner.view.name;
        let facts = self.facts.gates.entry(id).or_insert_with(|| GateFacts {
            gate: Gate {
                state: GateState::new(function, store.clone(), region.map(str::to_owned)),
                settings,
                others,
                turn: None,
                asked_at: now,
            },
            calls: std::collections::BTreeMap::new(),
        });
        facts.take_answers();
        if let Some(over) = over {
            facts.gate.state.proceed(over.by.clone(), over.reason.clone(), over.at);
        }
        let waits_for_others = facts.waits_for_others();
        if facts.gate.settings != settings || (waits_for_others && facts.gate.others != others) {
            facts.gate.state.wake();
        }
        for _ in 0..STEPS_MAX {
            let step = next_round(&facts.gate.state, hooks, now, wait_interval);
            let rises = matches!(&step, GateStep::Ask(requests)
                if requests.iter().any(|request| request.round > facts.gate.state.round));
            facts.gate.state.apply(&step, now);
            match &step {
                GateStep::Ask(requests) => {
                    if rises {
                        facts.gate.settings = settings;
                        facts.gate.others = others;
                    }
                    for request in requests {
                        facts.calls.insert(request.hook.clone(), Call::asked(request.clone()));
                    }
                }
                GateStep::Waiting { until, .. } => {
                    if let Some(until) = *until {
                        self.planner.wake(until);
                    }
                    return step;
                }
                GateStep::Open | GateStep::Abort { .. } | GateStep::Rollback { .. } => return step,
            }
        }
        waiting("the gate has not settled")
    }

    /// Tells a function that has no outcome. Says whether everyone was told.
    pub(super) fn tell(&mut self, function: Function, region: Option<&str>) -> bool {
        debug_assert_eq!(function.outcomes(), Outcomes::None);
        matches!(self.ask(function, region), GateStep::Open)
    }

    /// A gate that a freeze holds: nobody is asked, what was answered before it is forgotten if it would open the gate, and
    /// a way back that was asked for still counts.
    pub(super) fn hold(&mut self, function: Function, region: &str, reason: String) -> GateStep {
        let id = Gate::id(function, Some(region));
        if self.facts.push.overrides.contains_key(&id) {
            return self.ask(function, Some(region));
        }
        let now = self.now();
        let hooks = self.planner.view.hooks.of(function);
        let wait_interval = self.planner.view.hooks.wait_interval;
        if let Some(facts) = self.facts.gates.get_mut(&id) {
            facts.take_answers();
            let step = next_round(&facts.gate.state, hooks, now, wait_interval);
            match step {
                GateStep::Abort { .. } | GateStep::Rollback { .. } => {
                    facts.gate.state.apply(&step, now);
                    return step;
                }
                GateStep::Open if facts.gate.state.opened_at.is_none() => facts.gate.state.answers.clear(),
                GateStep::Open | GateStep::Ask(_) | GateStep::Waiting { .. } => {}
            }
        }
        waiting(&reason)
    }

    /// When a gate opened, if it did.
    pub(super) fn opened_at(&self, function: Function, region: Option<&str>) -> Option<Timestamp> {
        self.facts.gates.get(&Gate::id(function, region))?.gate.state.opened_at
    }
}

fn waiting(reason: &str) -> GateStep {
    GateStep::Waiting { until: None, reason: reason.to_owned(), hook: String::new(), stops_clock: false }
}

/// The shipped hook whose answer depends on other regions, and so need not wait for the next interval when one of them
/// comes to rest. All others are asked when they said, and no sooner.
const REGION_ORDER: &str = "region-order";

impl GateFacts {
    fn waits_for_others(&self) -> bool {
        let answer = self.gate.state.answers.get(REGION_ORDER);
        answer.is_some_and(|answer| answer.verdict == Verdict::Wait && !answer.observed)
    }

    /// Takes in what its calls have answered.
    pub(super) fn take_answers(&mut self) {
        for call in self.calls.values() {
            if let CallState::Answered { request, answer } = &call.state {
                self.gate.state.record(request, answer);
                if let Some(at) = answer.ask_again_at.filter(|_| request.hook == REGION_ORDER)
                    && self.gate.turn.is_none_or(|turn| turn.at != at)
                {
                    let delay = at.since(answer.ended_at).as_millis();
                    self.gate.turn = Some(Turn { at, delay_ms: u64::try_from(delay).unwrap_or(u64::MAX) });
                }
            }
        }
    }
}

/// A number that changes with the store's hook settings and the published ones.
fn settings_digest(view: &PushView) -> u64 {
    let mut hasher = DefaultHasher::new();
    view.hooks.generation.hash(&mut hasher);
    view.store.hook_overrides.hash(&mut hasher);
    hasher.finish()
}

/// A number that changes when another region comes to rest, fails, or is marked.
fn others_digest(view: &PushView, facts: &PushFacts, region: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, other) in &facts.push.regions {
        if Some(name.as_str()) != region && other.state.is_at_rest() {
            (name, other.state.word()).hash(&mut hasher);
        }
    }
    for (name, other) in &view.regions {
        (name, other.region.availability.is_available()).hash(&mut hasher);
    }
    hasher.finish()
}
