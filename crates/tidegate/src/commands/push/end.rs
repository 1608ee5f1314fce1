//! The end of a push: what is printed of it, and the exit code that it is.

use tidegate_api::{EndedBy, PushRegionView, PushStatus, PushView, VersionStatus};
use tidegate_client::push::PushOutcome;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, plain, tree};

/// The end of a followed push: the whole tree where there is one, and what is to be done where it did not end well. The
/// reason is told once, with the latter.
pub(super) fn print(outcome: &PushOutcome, output: Output) -> Result<(), Failure> {
    let failure = failure(outcome);
    match &outcome.view {
        Some(view) if failure.is_some() => output.result(view, tree::without_reason)?,
        Some(view) => output.result(view, tree::push)?,
        None => output.result(&outcome.state, |state, style| {
            format!("push {}: {}", plain(&state.push), tree::status(state, style))
        })?,
    }
    if let Some(failure) = failure.filter(|_| !output.is_json()) {
        failure.print(output);
    }
    Ok(())
}

/// What is said of a push that did not end well.
fn failure(outcome: &PushOutcome) -> Option<Failure> {
    let state = &outcome.state;
    let id = plain(&state.push);
    let how = match state.status {
        _ if outcome.timed_out => return None,
        PushStatus::Error => "it ended with an error",
        PushStatus::Aborted => "a gate stopped it",
        PushStatus::RolledBack => "it was rolled back",
        PushStatus::Killed => "it was killed",
        PushStatus::Completed | PushStatus::Started | PushStatus::Queued | PushStatus::Unknown => return None,
    };
    let in_part = outcome.view.as_ref().is_some_and(|view| view.version_status == Some(VersionStatus::PartiallyOnline));
    let what = if in_part {
        format!("push {id} is released in part: {how}")
    } else {
        format!("push {id} is not released: {how}")
    };
    let follows = match &outcome.view {
        Some(view) if in_part => format!("{}.", who_serves_what(view)),
        Some(view) if !view.regions.is_empty() => format!("No region serves its version: {}.", who_serves_what(view)),
        _ => "No region serves its version.".to_owned(),
    };
    let reason = state.reason.as_deref().unwrap_or("no reason is known");
    let to_do = outcome.to_do.clone().unwrap_or_else(|| what_to_do(&id, &plain(&state.store), state.ended_by));
    Some(Failure::new(what, reason, &follows, &to_do))
}

/// What can be done about a push that ended so, where nobody knows it better.
fn what_to_do(id: &str, store: &str, ended_by: Option<EndedBy>) -> String {
    match ended_by {
        Some(EndedBy::Gate) => format!(
            "Mend the data and push it as a new push; `tidegate push calls {id}` has all that the hooks said. Where a hook \
             is wrong, push with --proceed GATE=REASON."
        ),
        Some(EndedBy::Region) => {
            "Look at the region with `tidegate region show REGION`, and push again once it is well, or without it: \
             `tidegate region mark REGION --unavailable --reason …`."
                .to_owned()
        }
        Some(EndedBy::Limit) => format!(
            "Push again once nothing holds it any more; `tidegate store show {store}` has the limits, and `tidegate store \
             set` changes them."
        ),
        Some(EndedBy::Input) => "Mend the input and push it as a new push.".to_owned(),
        Some(EndedBy::Fault) => "Mend what the text names, and push again.".to_owned(),
        Some(EndedBy::Operator) => "Push again once that is wanted.".to_owned(),
        Some(EndedBy::Superseded) => {
            format!("Nothing has to be done: a newer push took its place (`tidegate push list --store {store}`).")
        }
        Some(EndedBy::Unknown) | None => format!("Look at it with `tidegate push explain {id}`."),
    }
}

/// `a serves version 2, b serves version 1, c serves nothing`.
fn who_serves_what(view: &PushView) -> String {
    let of = |region: &PushRegionView| {
        let serving = region.serving.map_or("nothing".to_owned(), |version| format!("version {version}"));
        format!("{} serves {serving}", plain(&region.region))
    };
    view.regions.iter().map(of).collect::<Vec<_>>().join(", ")
}

/// The exit code that an end is.
pub(super) fn exit_of(outcome: &PushOutcome, followed: bool) -> Exit {
    if outcome.timed_out {
        return Exit::PushTimedOut;
    }
    match outcome.state.status {
        PushStatus::Completed => Exit::Done,
        PushStatus::Error => Exit::PushError,
        PushStatus::Aborted => Exit::PushAborted,
        PushStatus::RolledBack => Exit::PushRolledBack,
        PushStatus::Killed => Exit::PushKilled,
        PushStatus::Queued | PushStatus::Started if !followed => Exit::Done,
        PushStatus::Queued | PushStatus::Started | PushStatus::Unknown => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::{PushPhase, PushState};

    use super::*;

    fn outcome(status: PushStatus, ended_by: Option<EndedBy>, timed_out: bool) -> PushOutcome {
        let state = PushState {
            push: "p".to_owned(),
            store: "s".to_owned(),
            version: None,
            status,
            phase: PushPhase::Ended,
            ended_by,
            reason: Some("the reason".to_owned()),
        };
        PushOutcome { state, view: None, timed_out, to_do: None }
    }

    #[test]
    fn f11_each_end_has_an_exit_code_of_its_own() {
        for (status, code) in [
            (PushStatus::Completed, 0),
            (PushStatus::Error, 10),
            (PushStatus::Aborted, 11),
            (PushStatus::RolledBack, 12),
            (PushStatus::Killed, 13),
        ] {
            assert_eq!(exit_of(&outcome(status, None, false), true) as u8, code);
        }
        assert_eq!(exit_of(&outcome(PushStatus::Started, None, true), true) as u8, 14);
        assert_eq!(exit_of(&outcome(PushStatus::Started, None, false), false) as u8, 0);
    }

    #[test]
    fn f11_an_end_that_was_not_hoped_for_says_why_and_one_that_was_says_nothing() {
        for (status, ended_by) in [
            (PushStatus::Error, EndedBy::Input),
            (PushStatus::Aborted, EndedBy::Gate),
            (PushStatus::RolledBack, EndedBy::Gate),
            (PushStatus::Killed, EndedBy::Operator),
        ] {
            let failure = failure(&outcome(status, Some(ended_by), false));
            assert_eq!(failure.map(|failure| failure.why().to_owned()).as_deref(), Some("the reason"), "{status:?}");
        }
        assert!(failure(&outcome(PushStatus::Completed, None, false)).is_none());
        assert!(failure(&outcome(PushStatus::Started, None, true)).is_none());
    }
}
