//! The logic of a gate: rounds, severity, waiting, bounded retries. Pure: what is asked and answered comes in as data.
//!
//! A gate belongs to one function of one push (and region). Its controller loops: it [`record`](GateState::record)s the
//! answers that calls hold, asks [`next_round`] what to do, [`apply`](GateState::apply)s that to the gate, and carries it
//! out (creates the calls that `Ask` names, takes the step on `Open`, ends the push on `Abort` and `Rollback`), until
//! the step is none that asks.
//!
//! Invariants:
//! - A gate that has opened, or refused, never changes its mind; answers that come later are stale.
//! - Hooks are asked in configured order, one after the other; observed ones go along and are never waited for.
//! - A gate with four outcomes opens only when every enforced hook proceeds in the same round.
//! - There is at most one call per hook at a gate.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_state::Timestamp;

use crate::call::{CallRequest, FailureKind, RecordedAnswer};
use crate::configuration::{EffectiveHook, Mode};
use crate::function::{Function, Outcomes};
use crate::outcome::Verdict;

/// How often a hook that fails is asked in a function with two outcomes before its failure counts as Abort (H4).
pub const TWO_OUTCOME_ATTEMPTS_MAX: u32 = 4;
/// The pause before the first of those retries; it doubles with each.
pub const TWO_OUTCOME_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// The shortest time between an answer and the next round, whatever time the answer names (H12).
pub const ASK_AGAIN_PAUSE_MIN: Duration = Duration::from_secs(1);

/// Where a gate stands. Part of the rollout's gate entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateState {
    /// The function.
    pub function: Function,
    /// The store.
    pub store: String,
    /// The region, for functions of a region.
    pub region: Option<String>,
    /// The current round; 0 before the first.
    pub round: u32,
    /// The answers of the current round, by hook.
    pub answers: BTreeMap<String, RoundAnswer>,
    /// Calls that have not answered, by hook.
    pub pending: BTreeMap<String, PendingCall>,
    /// What each hook's last answer carried, by hook.
    pub memos: BTreeMap<String, String>,
    /// How often each hook has been asked here, by hook.
    pub attempts: BTreeMap<String, u32>,
    /// How often in a row each hook has failed here, by hook.
    pub failures: BTreeMap<String, u32>,
    /// Something happened that makes waiting for the next interval pointless: the next round is due at once.
    pub woken: bool,
    /// When the gate opened.
    pub opened_at: Option<Timestamp>,
    /// How the gate refused.
    pub refused: Option<Refused>,
    /// Who pushed past it.
    pub overridden: Option<Override>,
}

/// A call that has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingCall {
    /// The round it was asked in.
    pub round: u32,
    /// Its attempt.
    pub attempt: u32,
}

/// An answer of the current round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundAnswer {
    /// What counts.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// When to ask again, if the answer names a time.
    pub ask_again_at: Option<Timestamp>,
    /// The push's limit does not run while this holds the gate.
    pub stops_clock: bool,
    /// Asked in mode `observe`.
    pub observed: bool,
    /// How the call failed, if it did.
    pub failed: Option<FailureKind>,
    /// When the answer was there.
    pub ended_at: Timestamp,
}

/// A gate that said no, for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Abort or Rollback.
    pub verdict: Verdict,
    /// The hook that said so: the first, in configured order, of those that said the most severe.
    pub hook: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// An operator's word that opens a gate (B18).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// What a gate's controller is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GateStep {
    /// Create these calls, then ask for the next step again.
    Ask(Vec<CallRequest>),
    /// Nothing before `until`; without it an answer is awaited.
    Waiting {
        /// When the next round is due; none while a call is pending.
        until: Option<Timestamp>,
        /// Who holds the gate and why, for people.
        reason: String,
        /// The hook that holds it.
        hook: String,
        /// The push's limit does not run meanwhile.
        stops_clock: bool,
    },
    /// Take the step.
    Open,
    /// End the push ABORTED.
    Abort {
        /// Who said so.
        hook: String,
        /// Why.
        reason: String,
    },
    /// Roll the store back.
    Rollback {
        /// Who said so.
        hook: String,
        /// Why.
        reason: String,
    },
}

/// Whether an answer counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is part of the current round.
    Counted,
    /// Nobody waited for it any more; nothing changed.
    Stale,
}

impl GateState {
    /// A gate that nobody has been asked at.
    #[must_use]
    pub fn new(function: Function, store: impl Into<String>, region: Option<String>) -> Self {
        GateState {
            function,
            store: store.into(),
            region,
            round: 0,
            answers: BTreeMap::new(),
            pending: BTreeMap::new(),
            memos: BTreeMap::new(),
            attempts: BTreeMap::new(),
            failures: BTreeMap::new(),
            woken: false,
            opened_at: None,
            refused: None,
            overridden: None,
        }
    }

    /// Whether it has opened or refused, for good.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        self.opened_at.is_some() || self.refused.is_some()
    }

    /// Takes in what a call has answered. Stale unless this gate waits for exactly this attempt.
    pub fn record(&mut self, request: &CallRequest, answer: &RecordedAnswer) -> Recorded {
        let awaited = self
            .pending
            .get(&request.hook)
            .is_some_and(|pending| pending.round == request.round && pending.attempt == request.attempt);
        if !awaited || self.is_decided() {
            return Recorded::Stale;
        }
        self.pending.remove(&request.hook);
        if answer.failed.is_some() {
            *self.failures.entry(request.hook.clone()).or_default() += 1;
        } else {
            self.failures.remove(&request.hook);
            match &answer.memo {
                Some(memo) => self.memos.insert(request.hook.clone(), memo.clone()),
                None => self.memos.remove(&request.hook),
            };
        }
        if request.round == self.round {
            self.answers.insert(
                request.hook.clone(),
                RoundAnswer {
                    verdict: answer.verdict,
                    reason: answer.reason.clone(),
                    ask_again_at: answer.ask_again_at,
                    stops_clock: answer.stops_clock,
                    observed: request.mode == Mode::Observe,
                    failed: answer.failed,
                    ended_at: answer.ended_at,
                },
            );
        }
        Recorded::Counted
    }

    /// Notes what is being done about a step, so that the next [`next_round`] goes on from there.
    pub fn apply(&mut self, step: &GateStep, now: Timestamp) {
        match step {
            GateStep::Ask(requests) => {
                for request in requests {
                    if request.round > self.round {
                        self.round = request.round;
                        self.answers.clear();
                        self.woken = false;
                    }
                    // A retry within the round takes the place of the failed answer.
                    self.answers.remove(&request.hook);
                    self.attempts.insert(request.hook.clone(), request.attempt);
                    let pending = PendingCall { round: request.round, attempt: request.attempt };
                    self.pending.insert(request.hook.clone(), pending);
                }
            }
            GateStep::Waiting { .. } => {}
            GateStep::Open => self.opened_at = self.opened_at.or(Some(now)),
            GateStep::Abort { hook, reason } => self.refuse(Verdict::Abort, hook, reason, now),
            GateStep::Rollback { hook, reason } => self.refuse(Verdict::Rollback, hook, reason, now),
        }
    }

    fn refuse(&mut self, verdict: Verdict, hook: &str, reason: &str, at: Timestamp) {
        if !self.is_decided() {
            self.refused = Some(Refused { verdict, hook: hook.to_owned(), reason: reason.to_owned(), at });
        }
    }

    /// Makes the next round of a waiting gate due at once: a pause was answered, a setting changed. A call that has not
    /// answered is not asked twice for it.
    pub fn wake(&mut self) {
        if !self.is_decided() {
            self.woken = true;
        }
    }

    /// Opens the gate by an operator's word, whatever its hooks say. A gate that is decided stays as it is.
    pub fn proceed(&mut self, by: impl Into<String>, reason: impl Into<String>, at: Timestamp) {
        if !self.is_decided() {
            self.overridden = Some(Override { by: by.into(), reason: reason.into(), at });
        }
    }
}

/// What a gate is to do next. `hooks` are those that take part in this function now, in configured order
/// ([`crate::HooksConfiguration::effective_hooks`]); one that was switched off since it was asked no longer counts.
#[must_use]
pub fn next_round(gate: &GateState, hooks: &[EffectiveHook], now: Timestamp, wait_interval: Duration) -> GateStep {
    if gate.opened_at.is_some() {
        return GateStep::Open;
    }
    if let Some(refused) = &gate.refused {
        return refusal(refused.verdict, &refused.hook, &refused.reason);
    }
    if gate.overridden.is_some() {
        return GateStep::Open;
    }
    if gate.round == 0 {
        return ask(gate, hooks, 1, now).unwrap_or(GateStep::Open);
    }
    match gate.function.outcomes() {
        Outcomes::None => ask(gate, hooks, gate.round, now).or_else(|| pending(gate, hooks)).unwrap_or(GateStep::Open),
        Outcomes::Two => next_of_two(gate, hooks, now),
        Outcomes::Four => next_of_four(gate, hooks, now, wait_interval),
    }
}

fn next_of_two(gate: &GateState, hooks: &[EffectiveHook], now: Timestamp) -> GateStep {
    for hook in hooks.iter().filter(|hook| hook.mode == Mode::Enforce) {
        let Some(answer) = gate.answers.get(&hook.name) else { break };
        match answer.verdict {
            Verdict::Proceed => {}
            Verdict::Abort | Verdict::Rollback => return refusal(Verdict::Abort, &hook.name, &answer.reason),
            Verdict::Wait => {
                let failures = gate.failures.get(&hook.name).copied().unwrap_or(0);
                if failures >= TWO_OUTCOME_ATTEMPTS_MAX {
                    let reason = format!("failed {failures} times in a row, last: {}", answer.reason);
                    return refusal(Verdict::Abort, &hook.name, &reason);
                }
                let pause = TWO_OUTCOME_RETRY_PAUSE * 2_u32.saturating_pow(failures.saturating_sub(1));
                let due = answer.ended_at.after(pause);
                if now >= due || gate.woken {
                    return GateStep::Ask(vec![request(gate, hook, gate.round, now)]);
                }
                return GateStep::Waiting {
                    until: Some(due),
                    reason: format!(
                        "{}: {} (attempt {failures} of {TWO_OUTCOME_ATTEMPTS_MAX})",
                        hook.name, answer.reason
                    ),
                    hook: hook.name.clone(),
                    stops_clock: answer.stops_clock,
                };
            }
        }
    }
    ask(gate, hooks, gate.round, now).or_else(|| pending(gate, hooks)).unwrap_or(GateStep::Open)
}

fn next_of_four(gate: &GateState, hooks: &[EffectiveHook], now: Timestamp, wait_interval: Duration) -> GateStep {
    if let Some(step) = ask(gate, hooks, gate.round, now).or_else(|| pending(gate, hooks)) {
        return step;
    }
    let mut worst: Option<(&EffectiveHook, &RoundAnswer)> = None;
    let mut due: Option<Timestamp> = None;
    for hook in hooks.iter().filter(|hook| hook.mode == Mode::Enforce) {
        let Some(answer) = gate.answers.get(&hook.name) else { continue };
        if worst.is_none_or(|(_, other)| answer.verdict > other.verdict) {
            worst = Some((hook, answer));
        }
        if answer.verdict == Verdict::Wait {
            let at = ask_again_at(answer, wait_interval);
            due = Some(due.map_or(at, |other| other.min(at)));
        }
    }
    let Some((hook, answer)) = worst else { return GateStep::Open };
    match answer.verdict {
        Verdict::Proceed => GateStep::Open,
        Verdict::Abort | Verdict::Rollback => refusal(answer.verdict, &hook.name, &answer.reason),
        Verdict::Wait => {
            let due = due.unwrap_or(now);
            if now >= due || gate.woken {
                return ask(gate, hooks, gate.round + 1, now).unwrap_or(GateStep::Open);
            }
            GateStep::Waiting {
                until: Some(due),
                reason: format!("{}: {}", hook.name, answer.reason),
                hook: hook.name.clone(),
                stops_clock: holds_stop_clock(gate, hooks),
            }
        }
    }
}

/// When an answer that waits is asked again: at its own time, but never in a busy loop.
fn ask_again_at(answer: &RoundAnswer, wait_interval: Duration) -> Timestamp {
    let earliest = answer.ended_at.after(ASK_AGAIN_PAUSE_MIN);
    answer.ask_again_at.unwrap_or_else(|| answer.ended_at.after(wait_interval)).max(earliest)
}

/// One closed window is enough: the push could not go on before it opens, whatever else holds it.
fn holds_stop_clock(gate: &GateState, hooks: &[EffectiveHook]) -> bool {
    hooks.iter().filter(|hook| hook.mode == Mode::Enforce).any(|hook| {
        gate.answers.get(&hook.name).is_some_and(|answer| answer.verdict == Verdict::Wait && answer.stops_clock)
    })
}

fn refusal(verdict: Verdict, hook: &str, reason: &str) -> GateStep {
    let (hook, reason) = (hook.to_owned(), reason.to_owned());
    match verdict {
        Verdict::Rollback => GateStep::Rollback { hook, reason },
        Verdict::Abort | Verdict::Wait | Verdict::Proceed => GateStep::Abort { hook, reason },
    }
}

/// The calls that this round needs now: observed hooks up to the next enforced one, that one, and, if it is the last,
/// the observed ones behind it. None while an enforced call has not answered, and when all have been asked.
fn ask(gate: &GateState, hooks: &[EffectiveHook], round: u32, now: Timestamp) -> Option<GateStep> {
    let fresh = round > gate.round;
    let asked = |name: &str| gate.pending.contains_key(name) || (!fresh && gate.answers.contains_key(name));
    let last_enforced = hooks.iter().rposition(|hook| hook.mode == Mode::Enforce);
    let mut requests = Vec::new();
    for (position, hook) in hooks.iter().enumerate() {
        match hook.mode {
            Mode::Off => {}
            Mode::Observe => {
                if !asked(&hook.name) {
                    requests.push(request(gate, hook, round, now));
                }
            }
            Mode::Enforce => {
                if gate.pending.contains_key(&hook.name) {
                    break;
                }
                if !asked(&hook.name) {
                    requests.push(request(gate, hook, round, now));
                    if last_enforced != Some(position) {
                        break;
                    }
                }
            }
        }
    }
    (!requests.is_empty()).then_some(GateStep::Ask(requests))
}

fn request(gate: &GateState, hook: &EffectiveHook, round: u32, now: Timestamp) -> CallRequest {
    CallRequest {
        function: gate.function,
        hook: hook.name.clone(),
        store: gate.store.clone(),
        region: gate.region.clone(),
        round,
        attempt: gate.attempts.get(&hook.name).copied().unwrap_or(0) + 1,
        memo: gate.memos.get(&hook.name).cloned(),
        mode: hook.mode,
        asked_at: now,
    }
}

fn pending(gate: &GateState, hooks: &[EffectiveHook]) -> Option<GateStep> {
    let hook = hooks.iter().find(|hook| hook.mode == Mode::Enforce && gate.pending.contains_key(&hook.name))?;
    Some(GateStep::Waiting {
        until: None,
        reason: format!("{}: asked, has not answered yet", hook.name),
        hook: hook.name.clone(),
        stops_clock: false,
    })
}

#[cfg(test)]
mod tests;
