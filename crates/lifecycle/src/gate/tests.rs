//! A gate played through: hooks with scripted answers, a clock that only the test moves.

use proptest::prelude::*;

use super::*;
use crate::configuration::OnFailure;

const INTERVAL: Duration = Duration::from_secs(60);

fn hook(name: &str, mode: Mode) -> EffectiveHook {
    EffectiveHook { name: name.into(), mode, on_failure: OnFailure::Wait }
}

fn enforced(names: &[&str]) -> Vec<EffectiveHook> {
    names.iter().map(|name| hook(name, Mode::Enforce)).collect()
}

fn answer(verdict: Verdict, at: Timestamp) -> RecordedAnswer {
    RecordedAnswer {
        verdict,
        reason: if verdict == Verdict::Proceed { String::new() } else { format!("says {verdict}") },
        ask_again_at: None,
        stops_clock: false,
        memo: None,
        failed: None,
        started_at: at,
        ended_at: at,
        server: "server-a".into(),
    }
}

/// A gate, its hooks, and the time.
struct Play {
    gate: GateState,
    hooks: Vec<EffectiveHook>,
    now: Timestamp,
    /// Every call, in the order they were asked.
    asked: Vec<CallRequest>,
}

impl Play {
    fn new(function: Function, hooks: Vec<EffectiveHook>) -> Play {
        let region = Some("a".to_owned());
        Play { gate: GateState::new(function, "s", region), hooks, now: Timestamp(0), asked: Vec::new() }
    }

    fn step(&mut self) -> GateStep {
        let step = next_round(&self.gate, &self.hooks, self.now, INTERVAL);
        self.gate.apply(&step, self.now);
        if let GateStep::Ask(requests) = &step {
            self.asked.extend(requests.iter().cloned());
        }
        step
    }

    /// Steps, answering every call at once with `say`, until the gate waits for a time or is decided.
    fn run(&mut self, mut say: impl FnMut(&CallRequest) -> RecordedAnswer) -> GateStep {
        for _ in 0..100 {
            match self.step() {
                GateStep::Ask(requests) => {
                    for request in requests {
                        let answer = say(&request);
                        assert_eq!(self.gate.record(&request, &answer), Recorded::Counted);
                    }
                }
                step => return step,
            }
        }
        panic!("the gate asks without end");
    }

    fn asked_names(&self) -> Vec<(&str, u32)> {
        self.asked.iter().map(|request| (request.hook.as_str(), request.round)).collect()
    }
}

#[test]
fn h01_a_gate_without_hooks_opens_at_once() {
    for function in Function::ALL {
        assert_eq!(Play::new(function, Vec::new()).step(), GateStep::Open);
    }
}

#[test]
fn h08_two_outcomes_stop_at_the_first_abort() {
    let mut play = Play::new(Function::PreStartOfPushJob, enforced(&["x", "y"]));
    let step = play.run(|request| answer(Verdict::Abort, request.asked_at));
    assert_eq!(step, GateStep::Abort { hook: "x".into(), reason: "says Abort".into() });
    assert_eq!(play.asked_names(), [("x", 1)]);
}

#[test]
fn h09_four_outcomes_combine_by_severity_and_every_round_asks_all_in_order() {
    use Verdict::{Abort, Proceed, Rollback, Wait};
    for (x, y, expected) in [
        (Proceed, Proceed, Proceed),
        (Proceed, Abort, Abort),
        (Abort, Wait, Abort),
        (Wait, Proceed, Wait),
        (Wait, Rollback, Rollback),
        (Abort, Rollback, Rollback),
        (Rollback, Abort, Rollback),
    ] {
        let mut play = Play::new(Function::PreStoreVersionSwap, enforced(&["x", "y"]));
        let step = play.run(|request| answer(if request.hook == "x" { x } else { y }, request.asked_at));
        let verdict = match step {
            GateStep::Open => Proceed,
            GateStep::Abort { .. } => Abort,
            GateStep::Rollback { .. } => Rollback,
            GateStep::Waiting { .. } => Wait,
            GateStep::Ask(_) => panic!("not decided"),
        };
        assert_eq!(verdict, expected, "{x} and {y}");
        assert_eq!(play.asked_names(), [("x", 1), ("y", 1)], "{x} and {y}");
    }
}

#[test]
fn h09_y_is_asked_only_when_x_has_answered() {
    let mut play = Play::new(Function::PreStoreVersionSwap, enforced(&["x", "y"]));
    let GateStep::Ask(requests) = play.step() else { panic!("asks nobody") };
    assert_eq!(requests.len(), 1);
    assert!(matches!(play.step(), GateStep::Waiting { until: None, hook, .. } if hook == "x"));
    play.gate.record(&requests[0], &answer(Verdict::Rollback, play.now));
    assert!(matches!(play.step(), GateStep::Ask(requests) if requests[0].hook == "y"));
}

#[test]
fn h10_all_must_proceed_in_the_same_round() {
    use Verdict::{Proceed, Wait};
    let mut play = Play::new(Function::PreStoreVersionSwap, enforced(&["x", "y"]));
    let says = |request: &CallRequest| {
        let x = [Proceed, Wait, Proceed];
        let y = [Wait, Proceed, Proceed];
        let script = if request.hook == "x" { x } else { y };
        answer(script[request.round as usize - 1], request.asked_at)
    };
    for round in 1..=2 {
        assert!(matches!(play.run(says), GateStep::Waiting { .. }), "round {round}");
        play.now = play.now.after(INTERVAL);
    }
    assert_eq!(play.run(says), GateStep::Open);
    assert_eq!(play.gate.round, 3);
}

#[test]
fn h11_asked_again_each_interval_with_rising_attempts_and_never_after_it_opened() {
    let mut play = Play::new(Function::PreStoreVersionSwap, enforced(&["x"]));
    let says = |request: &CallRequest| {
        answer(if request.attempt <= 5 { Verdict::Wait } else { Verdict::Proceed }, request.asked_at)
    };
    for _ in 0..5 {
        let GateStep::Waiting { until, .. } = play.run(says) else { panic!("does not wait") };
        assert_eq!(until, Some(play.now.after(INTERVAL)));
        play.now = play.now.after(INTERVAL - Duration::from_millis(1));
        assert!(matches!(play.step(), GateStep::Waiting { .. }), "asked too early");
        play.now = until.unwrap();
    }
    assert_eq!(play.run(says), GateStep::Open);
    let attempts: Vec<_> = play.asked.iter().map(|request| (request.attempt, request.asked_at.0)).collect();
    assert_eq!(attempts, [(1, 0), (2, 60_000), (3, 120_000), (4, 180_000), (5, 240_000), (6, 300_000)]);
    play.now = play.now.after(INTERVAL * 10);
    assert_eq!(play.step(), GateStep::Open);
    assert_eq!(play.asked.len(), 6);
}

#[test]
fn h12_asked_again_at_the_time_that_the_answer_names_but_never_in_a_busy_loop() {
    for (names, due) in [(600_000, 600_000), (1_000, 1_000), (-5_000, 1_000), (0, 1_000)] {
        let mut play = Play::new(Function::PreStoreVersionSwap, enforced(&["x"]));
        let step = play.run(|request| RecordedAnswer {
            ask_again_at: Some(Timestamp(names)),
            ..answer(Verdict::Wait, request.asked_at)
        });
        assert!(matches!(step, GateStep::Waiting { until: Some(Timestamp(at)), .. } if at == due), "{names}: {step:?}");
    }
}

#[test]
fn h15_a_gate_that_refused_keeps_its_first_word() {
    let mut play = Play::new(Function::PreStoreVersionSwap, enforced(&["x", "y"]));
    let step = play.run(|request| answer(Verdict::Rollback, request.asked_at));
    assert_eq!(step, GateStep::Rollback { hook: "x".into(), reason: "says Rollback".into() });
    let late = play.asked[1].clone();
    assert_eq!(play.gate.record(&late, &answer(Verdict::Proceed, play.now)), Recorded::Stale);
    assert_eq!(play.step(), step);
    play.gate.proceed("ada", "please", play.now);
    assert_eq!(play.step(), step, "a push that ended is not pushed on");
}

#[test]
fn h25_pre_end_holds_and_then_opens_or_aborts() {
    for (then, expected) in [
        (Verdict::Proceed, GateStep::Open),
        (Verdict::Abort, GateStep::Abort { hook: "x".into(), reason: "says Abort".into() }),
    ] {
        let mut play = Play::new(Function::PreEndOfPushJob, enforced(&["x"]));
        let says =
            |request: &CallRequest| answer(if request.attempt == 1 { Verdict::Wait } else { then }, request.asked_at);
        assert!(matches!(play.run(says), GateStep::Waiting { .. }));
        play.now = play.now.after(INTERVAL);
        assert_eq!(play.run(says), expected);
    }
}

#[test]
fn h04_two_outcomes_retry_a_bounded_number_of_times_then_abort() {
    let mut play = Play::new(Function::PreStartOfPushJob, enforced(&["x"]));
    let failing = |request: &CallRequest| RecordedAnswer {
        failed: Some(FailureKind::Panic),
        reason: "panicked: boom".into(),
        ..answer(Verdict::Wait, request.asked_at)
    };
    let mut pauses = Vec::new();
    let step = loop {
        match play.run(failing) {
            GateStep::Waiting { until: Some(until), .. } => {
                pauses.push(until.since(play.now).as_secs());
                play.now = until;
            }
            step => break step,
        }
    };
    assert_eq!(pauses, [1, 2, 4]);
    let GateStep::Abort { hook, reason } = step else { panic!("{step:?}") };
    assert_eq!((hook.as_str(), play.asked.len()), ("x", TWO_OUTCOME_ATTEMPTS_MAX as usize));
    assert!(reason.contains("4 times") && reason.contains("boom"), "{reason}");
    assert_eq!(play.asked.iter().map(|request| request.attempt).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn h04_functions_without_outcomes_go_on_whatever_happens() {
    let mut play = Play::new(Function::PostStoreVersionCreation, enforced(&["x", "y"]));
    let step = play.run(|request| RecordedAnswer {
        failed: Some(FailureKind::Error),
        ..answer(Verdict::Proceed, request.asked_at)
    });
    assert_eq!(step, GateStep::Open);
    assert_eq!(play.asked_names(), [("x", 1), ("y", 1)]);
}

#[test]
fn h34_observed_hooks_are_asked_and_never_obeyed_or_waited_for() {
    let hooks = vec![hook("w", Mode::Observe), hook("x", Mode::Enforce), hook("y", Mode::Observe)];
    let mut play = Play::new(Function::PreStoreVersionSwap, hooks);
    let GateStep::Ask(requests) = play.step() else { panic!("asks nobody") };
    assert_eq!(requests.iter().map(|request| request.hook.as_str()).collect::<Vec<_>>(), ["w", "x", "y"]);
    play.gate.record(&requests[0], &answer(Verdict::Rollback, play.now));
    play.gate.record(&requests[1], &answer(Verdict::Proceed, play.now));
    assert_eq!(play.step(), GateStep::Open, "y hangs, w says Rollback, x alone counts");
}

#[test]
fn h34_an_observed_hook_that_hangs_is_not_asked_twice_at_once() {
    let hooks = vec![hook("x", Mode::Enforce), hook("y", Mode::Observe)];
    let mut play = Play::new(Function::PreStoreVersionSwap, hooks);
    let GateStep::Ask(requests) = play.step() else { panic!("asks nobody") };
    play.gate.record(&requests[0], &answer(Verdict::Wait, play.now));
    assert!(matches!(play.step(), GateStep::Waiting { until: Some(_), .. }));
    play.now = play.now.after(INTERVAL);
    assert!(matches!(play.step(), GateStep::Ask(again) if again.len() == 1 && again[0].hook == "x"));
    assert_eq!(play.gate.record(&requests[1], &answer(Verdict::Abort, play.now)), Recorded::Counted);
}

#[test]
fn h35_switching_a_waiting_hook_to_observe_or_off_opens_at_the_next_round() {
    for mode in [Mode::Observe, Mode::Off] {
        let mut play = Play::new(Function::PreStoreVersionSwap, enforced(&["x"]));
        let waits = |request: &CallRequest| answer(Verdict::Wait, request.asked_at);
        assert!(matches!(play.run(waits), GateStep::Waiting { .. }));
        play.hooks = vec![hook("x", mode)];
        play.gate.wake();
        assert_eq!(play.run(waits), GateStep::Open, "{mode:?}");
    }
}

#[test]
fn h35_a_hook_that_is_off_is_never_asked() {
    let mut play = Play::new(Function::PreStoreVersionSwap, vec![hook("x", Mode::Off)]);
    assert_eq!(play.step(), GateStep::Open);
    assert!(play.asked.is_empty());
}

#[test]
fn h32_waking_a_gate_asks_at_once_but_never_a_second_time_before_the_answer() {
    let mut play = Play::new(Function::PreStoreVersionSwap, enforced(&["x"]));
    let says = |request: &CallRequest| answer(Verdict::Wait, request.asked_at);
    assert!(matches!(play.run(says), GateStep::Waiting { .. }));
    play.gate.wake();
    let GateStep::Ask(requests) = play.step() else { panic!("not asked at once") };
    play.gate.wake();
    assert!(matches!(play.step(), GateStep::Waiting { until: None, .. }));
    play.gate.record(&requests[0], &answer(Verdict::Proceed, play.now));
    assert_eq!(play.step(), GateStep::Open);
}

#[test]
fn h30_the_memo_comes_back_and_a_failure_leaves_it() {
    let mut play = Play::new(Function::PostStoreVersionSwap, enforced(&["x"]));
    let mut memos = Vec::new();
    for attempt in 1..=4_u32 {
        play.run(|request| {
            memos.push(request.memo.clone());
            RecordedAnswer {
                memo: (attempt == 1).then(|| "1".to_owned()),
                failed: (attempt == 2).then_some(FailureKind::Timeout),
                ..answer(Verdict::Wait, request.asked_at)
            }
        });
        play.now = play.now.after(INTERVAL);
    }
    assert_eq!(memos, [None, Some("1".to_owned()), Some("1".to_owned()), None]);
}

#[test]
fn b18_an_operator_opens_a_gate_at_once_and_the_late_answer_changes_nothing() {
    let mut play = Play::new(Function::PreStoreVersionSwap, enforced(&["x"]));
    let GateStep::Ask(requests) = play.step() else { panic!("asks nobody") };
    play.gate.proceed("ada", "the hook hangs", play.now);
    assert_eq!(play.step(), GateStep::Open);
    assert_eq!(play.gate.record(&requests[0], &answer(Verdict::Rollback, play.now)), Recorded::Stale);
    assert_eq!(play.step(), GateStep::Open);
    assert_eq!(play.gate.overridden.as_ref().unwrap().by, "ada");
}

#[test]
fn f21_a_closed_window_stops_the_clock_whoever_else_waits() {
    let mut play = Play::new(Function::PreStoreVersionSwap, enforced(&["x", "y"]));
    let step = play
        .run(|request| RecordedAnswer { stops_clock: request.hook == "y", ..answer(Verdict::Wait, request.asked_at) });
    assert!(matches!(step, GateStep::Waiting { stops_clock: true, hook, .. } if hook == "x"));
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![Just(Verdict::Proceed), Just(Verdict::Wait), Just(Verdict::Abort), Just(Verdict::Rollback)]
}

proptest! {
    /// Whatever hooks say, in whatever mode: a gate opens exactly when every enforced hook of one round proceeded, and
    /// no hook is asked again before it answered.
    #[test]
    fn a_gate_opens_exactly_when_all_enforced_hooks_of_a_round_proceed(
        modes in proptest::collection::vec(prop_oneof![Just(Mode::Enforce), Just(Mode::Observe), Just(Mode::Off)], 0..4),
        script in proptest::collection::vec(verdicts(), 64),
    ) {
        let hooks: Vec<_> = modes.iter().enumerate().map(|(n, mode)| hook(&format!("h{n}"), *mode)).collect();
        let mut play = Play::new(Function::PreStoreVersionSwap, hooks.clone());
        let mut script = script.into_iter();
        let mut said: BTreeMap<(u32, String), Verdict> = BTreeMap::new();
        let mut step = GateStep::Ask(Vec::new());
        for _ in 0..8 {
            step = play.run(|request| {
                let verdict = script.next().unwrap_or(Verdict::Proceed);
                assert!(said.insert((request.round, request.hook.clone()), verdict).is_none(), "asked twice in a round");
                answer(verdict, request.asked_at)
            });
            match &step {
                GateStep::Waiting { until: Some(until), .. } => play.now = *until,
                _ => break,
            }
        }
        let enforced: Vec<_> = hooks.iter().filter(|hook| hook.mode == Mode::Enforce).collect();
        let worst = enforced
            .iter()
            .map(|hook| said.get(&(play.gate.round, hook.name.clone())).copied())
            .collect::<Option<Vec<_>>>()
            .map(|verdicts| verdicts.into_iter().max().unwrap_or(Verdict::Proceed));
        match step {
            GateStep::Open => prop_assert_eq!(worst, Some(Verdict::Proceed)),
            GateStep::Abort { .. } => prop_assert_eq!(worst, Some(Verdict::Abort)),
            GateStep::Rollback { .. } => prop_assert_eq!(worst, Some(Verdict::Rollback)),
            GateStep::Waiting { .. } => prop_assert_eq!(worst, Some(Verdict::Wait)),
            GateStep::Ask(_) => prop_assert!(false, "undecided"),
        }
    }
}
