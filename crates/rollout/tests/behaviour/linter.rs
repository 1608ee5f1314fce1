//! Lists every invariant of the controller that a step breaks.

use std::collections::BTreeMap;

use tidegate_lifecycle::Function;
use tidegate_rollout::controller::PushView;
use tidegate_rollout::entities::{Gate, Phase, PushEnd, PushState, RegionState};
use tidegate_state::Timestamp;

/// What has to be remembered between steps.
#[derive(Debug, Default)]
pub(crate) struct Linter {
    ends: BTreeMap<String, PushEnd>,
    back: BTreeMap<String, u32>,
}

impl Linter {
    /// Checks one committed step.
    pub(crate) fn check_step(&mut self, before: &PushView, after: &PushView, now: Timestamp) {
        let mut violations = Vec::new();
        self.ends(after, &mut violations);
        self.one_rollback(before, after, &mut violations);
        assignments(before, after, &mut violations);
        post_end(after, &mut violations);
        one_runs(after, &mut violations);
        nothing_left(after, &mut violations);
        assert!(violations.is_empty(), "at {now}:\n{}", violations.join("\n"));
    }

    fn ends(&mut self, after: &PushView, violations: &mut Vec<String>) {
        for (id, facts) in &after.pushes {
            match (self.ends.get(id), facts.push.end()) {
                (Some(was), Some(is)) if was != is => violations.push(format!("{id} ended {was:?} and now {is:?}")),
                (Some(was), None) => violations.push(format!("{id} ended {was:?} and runs again")),
                (None, Some(is)) => {
                    self.ends.insert(id.clone(), is.clone());
                }
                _ => {}
            }
        }
    }

    fn one_rollback(&mut self, before: &PushView, after: &PushView, violations: &mut Vec<String>) {
        let goes_back = |view: &PushView, id: &str| {
            matches!(view.pushes.get(id).and_then(|facts| facts.push.phase()), Some(Phase::GoingBack(_)))
        };
        for id in after.pushes.keys() {
            if goes_back(after, id) && !goes_back(before, id) {
                let times = self.back.entry(id.clone()).or_default();
                *times += 1;
                if *times > 1 {
                    violations.push(format!("{id} begins to go back for the {times}nd time"));
                }
            }
        }
    }
}

fn assignments(before: &PushView, after: &PushView, violations: &mut Vec<String>) {
    for (name, facts) in &after.regions {
        let Some(is) = &facts.assignment else { continue };
        let was = before.regions.get(name).and_then(|facts| facts.assignment.as_ref());
        if let Some(was) = was
            && was != is
            && is.generation != was.generation + 1
        {
            violations.push(format!("{name}: generation {} follows {}", is.generation, was.generation));
        }
        // Version 0 is what was live before any push: nobody copied it, and nobody lists it.
        let Some(serve) = is.serve.filter(|serve| *serve != 0) else { continue };
        if !is.hold.contains_key(&serve) {
            violations.push(format!("{name} is to serve {serve}, which it is not to hold"));
        }
        let served_before = was.and_then(|was| was.serve);
        if served_before == Some(serve) {
            continue;
        }
        if after.versions.get(&serve).is_none_or(|version| version.rolled_back.is_some()) {
            violations.push(format!("{name} is to serve {serve}, which was rolled back"));
        }
        let forward = served_before.is_none_or(|served| served < serve);
        if !forward {
            continue;
        }
        let held = before.regions.get(name).is_some_and(|facts| facts.holds(&before.store, serve));
        if !held {
            violations.push(format!("{name} is to serve {serve}, which it has not reported to hold"));
        }
        let push = after.versions.get(&serve).map(|version| version.push.clone()).unwrap_or_default();
        let gate = Gate::id(Function::PreStoreVersionSwap, Some(name));
        let overridden = after.pushes.get(&push).is_some_and(|facts| facts.push.overrides.contains_key(&gate));
        if before.freeze_of(name).is_some() && !overridden {
            violations.push(format!("{name} is to serve {serve} under a freeze"));
        }
    }
}

fn post_end(after: &PushView, violations: &mut Vec<String>) {
    for (id, facts) in &after.pushes {
        let Some(gate) = facts.gates.get(&Gate::id(Function::PostEndOfPushJob, None)) else { continue };
        if facts.push.end().is_none() {
            violations.push(format!("{id}: post-end is told before the end"));
        }
        if gate.gate.state.attempts.values().any(|attempts| *attempts > 1) {
            violations.push(format!("{id}: post-end is told more than once"));
        }
    }
}

fn one_runs(after: &PushView, violations: &mut Vec<String>) {
    let running = after.pushes.values().filter(|facts| facts.push.phase().is_some()).count();
    if running > 1 {
        violations.push(format!("{running} pushes run at once"));
    }
}

/// Once a push has ended, no region is on its way with it, but those that come late or had been told to swap.
fn nothing_left(after: &PushView, violations: &mut Vec<String>) {
    for (id, facts) in &after.pushes {
        if !matches!(facts.push.state, PushState::Ended { .. }) {
            continue;
        }
        for (name, region) in &facts.push.regions {
            let on_its_way = matches!(
                region.state,
                RegionState::Waiting | RegionState::Ingesting { .. } | RegionState::Ingested { .. }
            );
            if on_its_way && !region.late {
                violations.push(format!("{id} has ended and {name} is {}", region.state.word()));
            }
            let version = facts.push.version;
            let assignment = after.regions.get(name).and_then(|facts| facts.assignment.as_ref());
            let holds = assignment.is_some_and(|assignment| assignment.hold.contains_key(&version));
            let stopped = matches!(region.state, RegionState::Stopped { .. } | RegionState::Failed(_));
            let serves = assignment.is_some_and(|assignment| assignment.serve == Some(version));
            if holds && stopped && !serves {
                violations.push(format!("{id} has ended, and {name} still is to hold version {version}"));
            }
        }
    }
}
