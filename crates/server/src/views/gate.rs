//! Gates and the calls that were made at them.

use tidegate_api::{CallView, GateStatus, GateView, HookAnswerView, Mode, OverrideView};
use tidegate_lifecycle::{
    CallRecord, CallState, EffectiveHook, Function, GateState, GateStep, Outcomes, Verdict, next_round,
};
use tidegate_rollout::controller::{GateFacts, HookSettings};
use tidegate_state::Timestamp;

use super::{ms, words};

/// A gate as people see it. Answers that its controller has not taken up yet count as given. `ended`: so has its push.
pub(crate) fn gate_view(facts: &GateFacts, settings: &HookSettings, ended: bool, now: Timestamp) -> GateView {
    let mut state = facts.gate.state.clone();
    for call in facts.calls.values() {
        if let CallState::Answered { request, answer } = &call.state {
            state.record(request, answer);
        }
    }
    let hooks = settings.of(state.function);
    let step = next_round(&state, hooks, now, settings.wait_interval);
    let next_ask_at = match &step {
        GateStep::Waiting { until, .. } if !state.is_decided() && !ended => *until,
        _ => None,
    };
    GateView {
        gate: state.function.short_name().to_owned(),
        function: state.function.name().to_owned(),
        region: state.region.clone(),
        status: status(&state, ended),
        round: state.round,
        asked_at: Some(ms(facts.gate.asked_at)),
        opened_at: state.opened_at.map(ms),
        next_ask_at: next_ask_at.map(ms),
        hooks: hook_views(&state, hooks, facts, ended),
        overridden: state.overridden.as_ref().map(|by| OverrideView {
            by: by.by.clone(),
            reason: by.reason.clone(),
            at: ms(by.at),
        }),
    }
}

fn status(state: &GateState, ended: bool) -> GateStatus {
    if let Some(refused) = &state.refused {
        return match refused.verdict {
            Verdict::Rollback => GateStatus::RolledBack,
            Verdict::Abort | Verdict::Wait | Verdict::Proceed => GateStatus::Aborted,
        };
    }
    if state.overridden.is_some() {
        return GateStatus::Overridden;
    }
    if state.opened_at.is_some() {
        return GateStatus::Open;
    }
    // What takes effect after the end is asked after it.
    if ended && state.function != Function::PostEndOfPushJob {
        return GateStatus::NotAskedAnyMore;
    }
    if state.pending.is_empty() { GateStatus::Waiting } else { GateStatus::Asking }
}

/// Hooks in the order in which they are asked; then those that were asked before the
/// configuration changed.
fn hook_views(state: &GateState, hooks: &[EffectiveHook], facts: &GateFacts, ended: bool) -> Vec<HookAnswerView> {
    let is_over = ended && state.function != Function::PostEndOfPushJob;
    let mut names: Vec<&String> = hooks.iter().map(|hook| &hook.name).collect();
    for name in state.attempts.keys() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
        .into_iter()
        .filter(|name| {
            let was_asked = state.attempts.contains_key(*name);
            was_asked || !(state.is_decided() || is_over)
        })
        .map(|name| {
            let answer = state.answers.get(name);
            let configured = hooks.iter().find(|hook| hook.name == *name);
            let asked = facts.calls.get(name).map(|call| call.state.request().mode);
            let has_outcome = state.function.outcomes() != Outcomes::None;
            HookAnswerView {
                hook: name.clone(),
                mode: asked.or(configured.map(|hook| hook.mode)).map_or(Mode::Off, words::mode),
                attempts: state.attempts.get(name).copied().unwrap_or(0),
                asking: state.pending.contains_key(name) && !is_over,
                verdict: answer.filter(|_| has_outcome).map(|answer| words::verdict(answer.verdict)),
                reason: answer.map(|answer| answer.reason.clone()).filter(|reason| !reason.is_empty()),
                failed: answer.and_then(|answer| answer.failed).map(|kind| kind.name().to_owned()),
                answered_at: answer.map(|answer| ms(answer.ended_at)),
                ask_again_at: answer.and_then(|answer| answer.ask_again_at).map(ms),
                stops_clock: answer.is_some_and(|answer| answer.stops_clock),
            }
        })
        .collect()
}

/// A finished call as it was recorded.
pub(crate) fn call_view(record: &CallRecord) -> CallView {
    CallView {
        hook: record.hook.clone(),
        function: record.function.name().to_owned(),
        gate: record.function.short_name().to_owned(),
        region: record.region.clone(),
        round: record.round,
        attempt: record.attempt,
        mode: if record.observed { Mode::Observe } else { Mode::Enforce },
        queued_at: ms(record.queued_at),
        started_at: ms(record.started_at),
        ended_at: ms(record.ended_at),
        verdict: (record.function.outcomes() != Outcomes::None).then(|| words::verdict(record.verdict)),
        reason: Some(record.reason.clone()).filter(|reason| !reason.is_empty()),
        failed: record.failed.map(|kind| kind.name().to_owned()),
        server: record.server.clone(),
        stale: record.stale,
    }
}
