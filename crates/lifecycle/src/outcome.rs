//! What hooks answer: outcomes, and what an answer may carry beside its outcome.

use std::fmt;

use serde::{Deserialize, Serialize};
use tidegate_state::Timestamp;

use crate::function::Outcomes;

/// The longest memo, in bytes (H33).
pub const MEMO_BYTES_MAX: usize = 4 * 1024;
/// The most events that one answer carries.
pub const EVENTS_MAX: usize = 16;
/// The largest event, its kind and data as JSON, in bytes.
pub const EVENT_BYTES_MAX: usize = 16 * 1024;
/// The longest reason that is kept, in bytes; a longer one is cut with an ellipsis.
pub const REASON_BYTES_MAX: usize = 2 * 1024;

/// The outcome of a function with two: VIP-4's `StoreLifecycleEventOutcome`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreLifecycleEventOutcome {
    /// As if the hook were absent.
    Proceed,
    /// This step and every later one do not happen; the push ends ABORTED.
    Abort {
        /// For people, with the measured value next to its limit.
        reason: String,
    },
}

/// The outcome of a function with four: VIP-4's `StoreVersionLifecycleEventOutcome`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreVersionLifecycleEventOutcome {
    /// As if the hook were absent.
    Proceed,
    /// This step and every later one do not happen; the push ends ABORTED, and regions that already serve the new
    /// version keep it.
    Abort {
        /// For people, with the measured value next to its limit.
        reason: String,
    },
    /// Ask again later.
    Wait {
        /// For people, with the measured value next to its limit.
        reason: String,
        /// When to ask again; after the wait interval where it is not given.
        ask_again_at: Option<Timestamp>,
    },
    /// The store goes back, in all regions, to what each served before the push.
    Rollback {
        /// For people, with the measured value next to its limit.
        reason: String,
    },
}

/// An outcome without its reason, ordered by severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Go on.
    #[serde(alias = "PROCEED", alias = "Proceed")]
    Proceed,
    /// Ask again later.
    #[serde(alias = "WAIT", alias = "Wait")]
    Wait,
    /// End the push.
    #[serde(alias = "ABORT", alias = "Abort")]
    Abort,
    /// End the push and go back.
    #[serde(alias = "ROLLBACK", alias = "Rollback")]
    Rollback,
}

impl Verdict {
    /// Whether a function with these outcomes may answer this. A function without outcomes answers Proceed.
    #[must_use]
    pub const fn is_within(self, outcomes: Outcomes) -> bool {
        match outcomes {
            Outcomes::None => matches!(self, Verdict::Proceed),
            Outcomes::Two => matches!(self, Verdict::Proceed | Verdict::Abort),
            Outcomes::Four => true,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Verdict::Proceed => "Proceed",
            Verdict::Wait => "Wait",
            Verdict::Abort => "Abort",
            Verdict::Rollback => "Rollback",
        })
    }
}

/// Something that other systems should hear of once this answer counts. Committed with the answer, delivered afterwards
/// with one id on every retry; no gate waits for the delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventDraft {
    /// What happened, in the receiver's words: `region.baking`.
    pub kind: String,
    /// The details. Kind and data together take at most [`EVENT_BYTES_MAX`].
    #[serde(default)]
    pub data: serde_json::Value,
}

/// Holds a gate for a person. It goes with a Wait; asking for it again while it is open changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseRequest {
    /// Names of roles or users, any of whom may answer; empty means any operator.
    #[serde(default)]
    pub may_answer: Vec<String>,
    /// When the pause runs out; never where it is not given.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// What counts as this hook's answer when the pause has run out.
    pub when_run_out: Verdict,
}

/// An outcome and what goes with it. Any outcome turns into one with `into()`.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<O> {
    /// The outcome.
    pub outcome: O,
    /// While this answer holds the gate, the push's limit does not run (a closed window).
    pub stops_clock: bool,
    /// Given back on the next attempt of this hook at this gate; at most [`MEMO_BYTES_MAX`].
    pub memo: Option<String>,
    /// Delivered once the answer is committed; at most [`EVENTS_MAX`].
    pub events: Vec<EventDraft>,
    /// Holds the gate for a person.
    pub pause: Option<PauseRequest>,
}

impl<O> From<O> for Answer<O> {
    fn from(outcome: O) -> Self {
        Answer { outcome, stops_clock: false, memo: None, events: Vec::new(), pause: None }
    }
}

impl<O> Answer<O> {
    /// Adds a memo for the next attempt.
    #[must_use]
    pub fn memo(mut self, memo: impl Into<String>) -> Self {
        self.memo = Some(memo.into());
        self
    }

    /// Adds an event.
    #[must_use]
    pub fn event(mut self, kind: impl Into<String>, data: serde_json::Value) -> Self {
        self.events.push(EventDraft { kind: kind.into(), data });
        self
    }

    /// Adds a pause.
    #[must_use]
    pub fn pause(mut self, pause: PauseRequest) -> Self {
        self.pause = Some(pause);
        self
    }

    /// Says that the push's limit does not run while this answer holds the gate.
    #[must_use]
    pub fn stops_clock(mut self) -> Self {
        self.stops_clock = true;
        self
    }
}

/// An answer in its common form, whichever function gave it: what `exec` prints and what is kept of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerDocument {
    /// The outcome.
    #[serde(rename = "outcome")]
    pub verdict: Verdict,
    /// For people; empty only with Proceed.
    #[serde(default)]
    pub reason: String,
    /// When to ask again; Wait only.
    #[serde(default)]
    pub ask_again_at: Option<Timestamp>,
    /// See [`Answer::stops_clock`].
    #[serde(default)]
    pub stops_clock: bool,
    /// See [`Answer::memo`].
    #[serde(default)]
    pub memo: Option<String>,
    /// See [`Answer::events`].
    #[serde(default)]
    pub events: Vec<EventDraft>,
    /// See [`Answer::pause`].
    #[serde(default)]
    pub pause: Option<PauseRequest>,
}

impl AnswerDocument {
    /// Proceed, and nothing else.
    pub const PROCEED: AnswerDocument = AnswerDocument {
        verdict: Verdict::Proceed,
        reason: String::new(),
        ask_again_at: None,
        stops_clock: false,
        memo: None,
        events: Vec::new(),
        pause: None,
    };
}

impl From<Answer<StoreLifecycleEventOutcome>> for AnswerDocument {
    fn from(answer: Answer<StoreLifecycleEventOutcome>) -> Self {
        let (verdict, reason) = match answer.outcome {
            StoreLifecycleEventOutcome::Proceed => (Verdict::Proceed, String::new()),
            StoreLifecycleEventOutcome::Abort { reason } => (Verdict::Abort, reason),
        };
        AnswerDocument {
            verdict,
            reason,
            ask_again_at: None,
            stops_clock: answer.stops_clock,
            memo: answer.memo,
            events: answer.events,
            pause: answer.pause,
        }
    }
}

impl From<Answer<StoreVersionLifecycleEventOutcome>> for AnswerDocument {
    fn from(answer: Answer<StoreVersionLifecycleEventOutcome>) -> Self {
        let (verdict, reason, ask_again_at) = match answer.outcome {
            StoreVersionLifecycleEventOutcome::Proceed => (Verdict::Proceed, String::new(), None),
            StoreVersionLifecycleEventOutcome::Abort { reason } => (Verdict::Abort, reason, None),
            StoreVersionLifecycleEventOutcome::Wait { reason, ask_again_at } => (Verdict::Wait, reason, ask_again_at),
            StoreVersionLifecycleEventOutcome::Rollback { reason } => (Verdict::Rollback, reason, None),
        };
        AnswerDocument {
            verdict,
            reason,
            ask_again_at,
            stops_clock: answer.stops_clock,
            memo: answer.memo,
            events: answer.events,
            pause: answer.pause,
        }
    }
}

/// Cuts `text` to at most `bytes_max` bytes at a character's boundary; what was cut is shown as an ellipsis.
pub(crate) fn shorten(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut end = bytes_max.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_ordered_by_severity() {
        assert!(Verdict::Proceed < Verdict::Wait);
        assert!(Verdict::Wait < Verdict::Abort);
        assert!(Verdict::Abort < Verdict::Rollback);
    }

    #[test]
    fn text_is_cut_within_its_bound_and_between_characters() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("abcdef", 5), "ab…");
        assert_eq!(shorten("ééééé", 6), "é…");
    }
}
