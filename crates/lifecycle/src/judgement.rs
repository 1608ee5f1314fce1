//! What a call's end means: an answer checked against its bounds, or a failure turned into what `on_failure` says. Pure.

use tidegate_state::Timestamp;

use crate::call::{FailureKind, RecordedAnswer};
use crate::configuration::OnFailure;
use crate::contract::HookError;
use crate::function::Function;
use crate::function::Outcomes;
use crate::metrics::Counted;
use crate::outcome::{
    AnswerDocument, EVENT_BYTES_MAX, EVENTS_MAX, EventDraft, MEMO_BYTES_MAX, PauseRequest, REASON_BYTES_MAX, Verdict,
    shorten,
};
use crate::pool::CallError;
use crate::wording;

/// How a call ended, before it is judged.
pub(crate) type End = Result<Result<AnswerDocument, CallFault>, CallError>;

/// Why a call that ran gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CallFault {
    /// The hook could not be made.
    Configuration(HookError),
    /// The hook returned an error.
    Hook(HookError),
}

/// When and where a call ran.
#[derive(Debug, Clone)]
pub(crate) struct Circumstances {
    pub(crate) function: Function,
    pub(crate) on_failure: OnFailure,
    pub(crate) started_at: Timestamp,
    pub(crate) ended_at: Timestamp,
    pub(crate) server: String,
}

/// What counts, what goes with it, and how it is counted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judgement {
    pub(crate) answer: RecordedAnswer,
    pub(crate) events: Vec<EventDraft>,
    pub(crate) pause: Option<PauseRequest>,
    pub(crate) counted: Counted,
}

struct Failure {
    kind: FailureKind,
    text: String,
    ask_again_at: Option<Timestamp>,
}

impl Failure {
    fn new(kind: FailureKind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into(), ask_again_at: None }
    }
}

/// Judges a call's end.
pub(crate) fn judge(end: End, circumstances: &Circumstances) -> Judgement {
    let outcomes = circumstances.function.outcomes();
    match accept(end, outcomes) {
        Ok(document) => Judgement {
            counted: Counted::Answered((outcomes != Outcomes::None).then_some(document.verdict)),
            events: document.events,
            pause: document.pause.filter(|_| document.verdict == Verdict::Wait),
            answer: RecordedAnswer {
                verdict: document.verdict,
                reason: reason(document.verdict, &document.reason),
                ask_again_at: document.ask_again_at,
                stops_clock: document.stops_clock,
                memo: document.memo,
                failed: None,
                started_at: circumstances.started_at,
                ended_at: circumstances.ended_at,
                server: circumstances.server.clone(),
            },
        },
        Err(failure) => Judgement {
            counted: match failure.kind {
                FailureKind::Timeout => Counted::TimedOut,
                FailureKind::Error | FailureKind::Panic | FailureKind::Answer | FailureKind::Configuration => {
                    Counted::Failed
                }
            },
            events: Vec::new(),
            pause: None,
            answer: RecordedAnswer {
                verdict: verdict_of_failure(outcomes, circumstances.on_failure),
                reason: shorten(&format!("failed: {}", failure.text), REASON_BYTES_MAX),
                ask_again_at: failure.ask_again_at,
                stops_clock: false,
                memo: None,
                failed: Some(failure.kind),
                started_at: circumstances.started_at,
                ended_at: circumstances.ended_at,
                server: circumstances.server.clone(),
            },
        },
    }
}

/// With two outcomes Wait means that the gate asks again, a bounded number of times.
fn verdict_of_failure(outcomes: Outcomes, on_failure: OnFailure) -> Verdict {
    match (outcomes, on_failure) {
        (Outcomes::None, _) | (_, OnFailure::Proceed) => Verdict::Proceed,
        (_, OnFailure::Wait) => Verdict::Wait,
        (_, OnFailure::Abort) => Verdict::Abort,
    }
}

fn reason(verdict: Verdict, reason: &str) -> String {
    match reason.trim() {
        "" if verdict == Verdict::Proceed => String::new(),
        "" => "gave no reason".to_owned(),
        text => shorten(text, REASON_BYTES_MAX),
    }
}

fn accept(end: End, outcomes: Outcomes) -> Result<AnswerDocument, Failure> {
    let document = match end {
        Ok(Ok(document)) => document,
        Ok(Err(CallFault::Hook(error))) => {
            return Err(Failure {
                ask_again_at: error.ask_again_at,
                ..Failure::new(FailureKind::Error, error.message)
            });
        }
        Ok(Err(CallFault::Configuration(error))) => {
            let text = format!("the hook could not be made: {}", error.message);
            return Err(Failure::new(FailureKind::Configuration, text));
        }
        Err(error @ CallError::Panicked(_)) => return Err(Failure::new(FailureKind::Panic, error.to_string())),
        Err(error @ CallError::TimedOut { .. }) => return Err(Failure::new(FailureKind::Timeout, error.to_string())),
        Err(error @ (CallError::QueueFull { .. } | CallError::Closed)) => {
            return Err(Failure::new(FailureKind::Error, error.to_string()));
        }
    };
    let broken = |text: String| Err(Failure::new(FailureKind::Answer, text));
    if !document.verdict.is_within(outcomes) {
        return broken(format!("answered {}, which the function does not have", document.verdict));
    }
    if let Some(memo) = document.memo.as_ref().filter(|memo| memo.len() > MEMO_BYTES_MAX) {
        let (bytes, limit) = (wording::count(memo.len() as u64), wording::count(MEMO_BYTES_MAX as u64));
        return broken(format!("its memo has {bytes} bytes (limit {limit})"));
    }
    if document.events.len() > EVENTS_MAX {
        return broken(format!("it carries {} events (limit {EVENTS_MAX})", document.events.len()));
    }
    for event in &document.events {
        let bytes = event.kind.len() + event.data.to_string().len();
        if bytes > EVENT_BYTES_MAX {
            let (bytes, limit) = (wording::count(bytes as u64), wording::count(EVENT_BYTES_MAX as u64));
            return broken(format!("its event {:?} has {bytes} bytes (limit {limit})", shorten(&event.kind, 80)));
        }
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn judged(function: Function, on_failure: OnFailure, end: End) -> Judgement {
        let circumstances = Circumstances {
            function,
            on_failure,
            started_at: Timestamp(1),
            ended_at: Timestamp(2),
            server: "server-a".into(),
        };
        judge(end, &circumstances)
    }

    fn hook_error() -> End {
        Ok(Err(CallFault::Hook(HookError::new("no disk"))))
    }

    #[test]
    fn h04_a_failure_counts_as_its_on_failure() {
        use Verdict::{Abort, Proceed, Wait};
        for (function, on_failure, verdict) in [
            (Function::PreStoreVersionSwap, OnFailure::Wait, Wait),
            (Function::PreStoreVersionSwap, OnFailure::Abort, Abort),
            (Function::PreStoreVersionSwap, OnFailure::Proceed, Proceed),
            (Function::PreStartOfPushJob, OnFailure::Wait, Wait),
            (Function::PreStartOfPushJob, OnFailure::Abort, Abort),
            (Function::PreStartOfPushJob, OnFailure::Proceed, Proceed),
            (Function::PostEndOfPushJob, OnFailure::Wait, Proceed),
            (Function::PostEndOfPushJob, OnFailure::Abort, Proceed),
        ] {
            let judgement = judged(function, on_failure, hook_error());
            assert_eq!(judgement.answer.verdict, verdict, "{function} {on_failure:?}");
            assert_eq!(judgement.answer.failed, Some(FailureKind::Error));
            assert_eq!(judgement.answer.reason, "failed: no disk");
            assert_eq!(judgement.counted, Counted::Failed);
        }
    }

    #[test]
    fn h05_a_timeout_is_counted_as_one() {
        let end = Err(CallError::TimedOut { timeout: Duration::from_secs(30) });
        let judgement = judged(Function::PreStoreVersionSwap, OnFailure::Wait, end);
        assert_eq!(judgement.counted, Counted::TimedOut);
        assert!(judgement.answer.reason.contains("30000 ms"), "{}", judgement.answer.reason);
    }

    #[test]
    fn h33_a_memo_of_exactly_4_kib_is_kept_and_one_byte_more_is_a_failure_with_both_sizes() {
        let answer = |bytes| AnswerDocument {
            verdict: Verdict::Wait,
            reason: "r".into(),
            memo: Some("x".repeat(bytes)),
            ..AnswerDocument::PROCEED
        };
        let judgement = judged(Function::PreStoreVersionSwap, OnFailure::Wait, Ok(Ok(answer(4_096))));
        assert_eq!(judgement.answer.memo, Some("x".repeat(4_096)));
        assert_eq!(judgement.answer.failed, None);
        let judgement = judged(Function::PreStoreVersionSwap, OnFailure::Wait, Ok(Ok(answer(4_097))));
        assert_eq!(judgement.answer.failed, Some(FailureKind::Answer));
        assert_eq!(judgement.answer.reason, "failed: its memo has 4,097 bytes (limit 4,096)");
    }

    #[test]
    fn answers_beyond_their_bounds_are_failures() {
        let event = EventDraft { kind: "k".into(), data: serde_json::Value::String("x".repeat(EVENT_BYTES_MAX)) };
        for document in [
            AnswerDocument { events: vec![event.clone()], ..AnswerDocument::PROCEED },
            AnswerDocument {
                events: vec![EventDraft { data: serde_json::Value::Null, ..event }; 17],
                ..AnswerDocument::PROCEED
            },
        ] {
            let judgement = judged(Function::PreStoreVersionSwap, OnFailure::Wait, Ok(Ok(document)));
            assert_eq!(judgement.answer.failed, Some(FailureKind::Answer));
            assert!(judgement.answer.reason.contains("limit"), "{}", judgement.answer.reason);
        }
    }

    #[test]
    fn a_long_reason_is_cut_and_a_missing_one_said() {
        let answer =
            |reason: &str| AnswerDocument { verdict: Verdict::Abort, reason: reason.into(), ..AnswerDocument::PROCEED };
        let judgement = judged(Function::PreStoreVersionSwap, OnFailure::Wait, Ok(Ok(answer(" "))));
        assert_eq!(judgement.answer.reason, "gave no reason");
        let judgement = judged(Function::PreStoreVersionSwap, OnFailure::Wait, Ok(Ok(answer(&"x".repeat(9_999)))));
        assert_eq!(judgement.answer.reason.len(), REASON_BYTES_MAX);
    }
}
