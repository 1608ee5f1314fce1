//! "Hold for a person": pauses as entities, and the operations on them.
//!
//! A pause belongs to one hook at one gate, so its id follows from the call's path: however often the hook asks for it,
//! there is one. Answering it, or its running out, decides that hook's answer at that gate; the hook is not asked again.
//!
//! Whoever answers a pause also wakes its gate ([`crate::GateState::wake`]) in the same transaction, so that the gate is
//! asked at once and not at its next interval.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Path, Ref, Root, Timestamp};
use uuid::Uuid;

use crate::function::Function;
use crate::outcome::{PauseRequest, Verdict};

const NAMESPACE: Uuid = Uuid::from_u128(0x9f3c_1c5e_6b0b_4f6e_8a57_2f1d_0c4b_7a11);

/// A gate held for a person, at `/pauses/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pause {
    /// The store.
    pub store: String,
    /// The push's id; none for a direct registration of a schema.
    pub push: Option<String>,
    /// The region whose gate is held; none for functions of the whole push.
    pub region: Option<String>,
    /// The gate's function.
    pub function: Function,
    /// The hook that asked for it.
    pub hook: String,
    /// The call that asked for it; the gate is its parent.
    pub call: Path,
    /// Why, for people; the hook's latest reason.
    pub reason: String,
    /// Roles or users who may answer; empty means any operator.
    pub may_answer: Vec<String>,
    /// When the hook first asked for it.
    pub since: Timestamp,
    /// When it runs out, if ever.
    pub until: Option<Timestamp>,
    /// What counts as the hook's answer when it has run out.
    pub when_run_out: Verdict,
    /// What a person said.
    pub answer: Option<PauseAnswer>,
}

impl Entity for Pause {
    const COLLECTION: &'static str = "pauses";
    type Parent = Root;
    type Id = String;
}

/// What a person said to a pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseAnswer {
    /// Proceed, Abort or Rollback.
    pub verdict: Verdict,
    /// Who said so.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub comment: String,
}

/// A pause as its hook sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseView {
    /// Its id.
    pub id: String,
    /// Since when it holds the gate.
    pub since: Timestamp,
    /// When it runs out, if ever.
    pub until: Option<Timestamp>,
}

/// Who answers a pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The user's name.
    pub user: String,
    /// The user's roles.
    pub roles: Vec<String>,
}

/// Why a pause was not answered. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    /// Who asked may not answer this pause (HTTP 403).
    #[error("{user} may not answer this pause; these may: {}", may_answer.join(", "))]
    NotAllowed {
        /// Who asked.
        user: String,
        /// Who may.
        may_answer: Vec<String>,
    },
    /// Somebody answered before, and otherwise. The same answer again is no error.
    #[error("{by} has answered {verdict} already; roll the store back instead of answering again")]
    Answered {
        /// Who answered.
        by: String,
        /// What the answer was.
        verdict: Verdict,
    },
    /// The pause's time was over before the answer came.
    #[error("the pause ran out at {until}, and counts as {verdict} since")]
    RanOut {
        /// When it ran out.
        until: Timestamp,
        /// What it counts as.
        verdict: Verdict,
    },
    /// Wait is not an answer for a person.
    #[error("a pause is answered with Proceed, Abort or Rollback; Wait is what it does already")]
    NotAnAnswer,
}

/// What has become of a pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// Nobody answered and its time is not over.
    Open,
    /// It counts as this answer of its hook.
    Decided {
        /// The outcome.
        verdict: Verdict,
        /// Who, when and why, for people.
        reason: String,
    },
}

impl Pause {
    /// The id of the pause that the hook of this call can open.
    #[must_use]
    pub fn id_of(call: &Path) -> String {
        Uuid::new_v5(&NAMESPACE, call.as_str().as_bytes()).to_string()
    }

    /// The pause that the hook of this call can open.
    #[must_use]
    pub fn of(call: &Path) -> Ref<Pause> {
        Ref::root(Pause::id_of(call)).expect("a UUID's text is an id")
    }

    /// The gate that it holds.
    #[must_use]
    pub fn gate(&self) -> Option<Path> {
        self.call.parent()
    }

    /// Takes over what a later answer of the hook asks for. What a person relies on (since when, until when, who) stays.
    pub(crate) fn ask_again(&mut self, reason: &str) {
        if self.answer.is_none() {
            reason.clone_into(&mut self.reason);
        }
    }

    /// What has become of it at `now`.
    #[must_use]
    pub fn resolution(&self, now: Timestamp) -> Resolution {
        if let Some(answer) = &self.answer {
            let comment = if answer.comment.is_empty() { String::new() } else { format!(": {}", answer.comment) };
            return Resolution::Decided {
                verdict: answer.verdict,
                reason: format!("{} answered {} at {}{comment}", answer.by, answer.verdict, answer.at),
            };
        }
        match self.until {
            Some(until) if now >= until => Resolution::Decided {
                verdict: self.when_run_out,
                reason: format!("ran out at {until} with no answer: {}", self.reason),
            },
            _ => Resolution::Open,
        }
    }

    /// This pause with a person's answer in it.
    ///
    /// # Errors
    /// [`PauseError`]; nothing is to be written then.
    pub fn answered(
        &self,
        actor: &Actor,
        verdict: Verdict,
        comment: &str,
        now: Timestamp,
    ) -> Result<Pause, PauseError> {
        if verdict == Verdict::Wait {
            return Err(PauseError::NotAnAnswer);
        }
        let allowed = if self.may_answer.is_empty() {
            actor.roles.iter().any(|role| role == "operator" || role == "admin")
        } else {
            self.may_answer.iter().any(|who| *who == actor.user || actor.roles.contains(who))
        };
        if !allowed {
            let may_answer =
                if self.may_answer.is_empty() { vec!["operator".to_owned()] } else { self.may_answer.clone() };
            return Err(PauseError::NotAllowed { user: actor.user.clone(), may_answer });
        }
        if let Some(answer) = &self.answer {
            if answer.verdict == verdict {
                return Ok(self.clone());
            }
            return Err(PauseError::Answered { by: answer.by.clone(), verdict: answer.verdict });
        }
        if let Some(until) = self.until.filter(|until| now >= *until) {
            return Err(PauseError::RanOut { until, verdict: self.when_run_out });
        }
        let answer = PauseAnswer { verdict, by: actor.user.clone(), at: now, comment: comment.to_owned() };
        Ok(Pause { answer: Some(answer), ..self.clone() })
    }
}

/// What opens a pause beside the request itself.
pub(crate) fn opened(
    request: &PauseRequest,
    call: &Path,
    context: &crate::context::Context,
    hook: &str,
    reason: &str,
    now: Timestamp,
) -> Pause {
    Pause {
        store: context.store.clone(),
        push: context.push.clone(),
        region: context.region.clone(),
        function: context.function,
        hook: hook.to_owned(),
        call: call.clone(),
        reason: reason.to_owned(),
        may_answer: request.may_answer.clone(),
        since: now,
        until: request.until,
        when_run_out: request.when_run_out,
        answer: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause() -> Pause {
        Pause {
            store: "s".into(),
            push: Some("P".into()),
            region: Some("a".into()),
            function: Function::PreStoreVersionSwap,
            hook: "approval".into(),
            call: Path::parse("/stores/s/pushes/P/gates/pre-swap@a/calls/approval").unwrap(),
            reason: "waits for a person".into(),
            may_answer: vec!["on-call".into()],
            since: Timestamp(1_000),
            until: Some(Timestamp(5_000)),
            when_run_out: Verdict::Abort,
            answer: None,
        }
    }

    fn actor(role: &str) -> Actor {
        Actor { user: "ada".into(), roles: vec![role.into()] }
    }

    #[test]
    fn h32_who_may_answers_and_the_answer_decides() {
        let answered = pause().answered(&actor("on-call"), Verdict::Proceed, "looked fine", Timestamp(2_000)).unwrap();
        let Resolution::Decided { verdict, reason } = answered.resolution(Timestamp(2_000)) else { panic!("open") };
        assert_eq!(verdict, Verdict::Proceed);
        assert!(reason.contains("ada") && reason.contains("looked fine"), "{reason}");
        assert_eq!(answered.answered(&actor("on-call"), Verdict::Proceed, "", Timestamp(3_000)).unwrap(), answered);
        let error = answered.answered(&actor("on-call"), Verdict::Abort, "", Timestamp(3_000)).unwrap_err();
        assert!(matches!(error, PauseError::Answered { .. }));
    }

    #[test]
    fn h32_who_may_not_changes_nothing() {
        let error = pause().answered(&actor("viewer"), Verdict::Proceed, "", Timestamp(2_000)).unwrap_err();
        assert_eq!(error.to_string(), "ada may not answer this pause; these may: on-call");
        let anyone = Pause { may_answer: Vec::new(), ..pause() };
        assert!(anyone.answered(&actor("viewer"), Verdict::Proceed, "", Timestamp(2_000)).is_err());
        assert!(anyone.answered(&actor("operator"), Verdict::Proceed, "", Timestamp(2_000)).is_ok());
    }

    #[test]
    fn h32_running_out_does_what_it_names_at_that_time() {
        assert_eq!(pause().resolution(Timestamp(4_999)), Resolution::Open);
        assert!(matches!(pause().resolution(Timestamp(5_000)), Resolution::Decided { verdict: Verdict::Abort, .. }));
        let error = pause().answered(&actor("on-call"), Verdict::Proceed, "", Timestamp(5_001)).unwrap_err();
        assert!(matches!(error, PauseError::RanOut { .. }));
    }
}
