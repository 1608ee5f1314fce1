//! Hooks that answer as they are scripted, or let regions swap in an order.

use std::collections::VecDeque;
use std::time::Duration;

use tidegate_lifecycle::{
    CallState, EffectiveHook, FailureKind as CallFailure, Function, Mode, OnFailure, RecordedAnswer, Verdict,
};
use tidegate_rollout::entities::{Milestone, Push};
use tidegate_state::Timestamp;

use super::Simulator;

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

impl Simulator {
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

    pub(super) fn answer_calls(&mut self) -> bool {
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
