use super::*;
use crate::context::RegionStatus;

const MINUTE: i64 = 60_000;

fn plan(settings: &[(&str, &str)]) -> Plan {
    let mut config = BTreeMap::from([("url".to_owned(), "http://h/".to_owned()), ("bake".into(), "30m".into())]);
    config.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    Plan::read(&config).unwrap().unwrap()
}

fn bad() -> Finding {
    Finding::Bad("answered 500".into())
}
fn healthy() -> Finding {
    Finding::Healthy("answered 200".into())
}
fn unreachable() -> Finding {
    Finding::Unreachable("refused".into())
}
fn no_data() -> Finding {
    Finding::NoData("answered 404".into())
}

/// A region that swapped at 0, asked at the times that the answers name.
struct Bake {
    plan: Plan,
    now: Timestamp,
    memo: Option<String>,
    paused: bool,
}

impl Bake {
    fn new(settings: &[(&str, &str)]) -> Bake {
        Bake { plan: plan(settings), now: Timestamp(0), memo: None, paused: false }
    }

    /// One check with this finding; the time moves on to when the answer wants to be asked again.
    fn check(&mut self, finding: &Finding) -> Answer<Four> {
        let mut context = Context::new(Function::PostStoreVersionSwap, "s");
        context.region = Some("a".into());
        context.now = self.now;
        context.pause = self.paused.then(|| crate::pause::PauseView { id: "p".into(), since: self.now, until: None });
        let mut region = RegionStatus::default();
        region.reached_at.insert(RegionPushStatus::Swapped.name().into(), Timestamp(0));
        context.regions.insert("a".into(), region);
        let counts: Counts = self.memo.as_deref().map(|memo| serde_json::from_str(memo).unwrap()).unwrap_or_default();
        assert!(is_due(&self.plan, &context, &counts), "asked at {} and not due", self.now);
        let answer = decide(&self.plan, &context, counts, Some(finding));
        self.memo.clone_from(&answer.memo);
        if let Four::Wait { ask_again_at: Some(at), .. } = answer.outcome {
            self.now = at;
        }
        answer
    }

    fn outcome(&mut self, finding: &Finding) -> Four {
        self.check(finding).outcome
    }
}

#[test]
fn g10_a_success_resets_the_count_and_the_third_failure_in_a_row_rolls_back_at_once() {
    let mut bake = Bake::new(&[]);
    for finding in [bad(), bad(), healthy(), bad(), bad()] {
        assert!(matches!(bake.outcome(&finding), Four::Wait { .. }));
    }
    assert_eq!(bake.now, Timestamp(5 * MINUTE));
    let Four::Rollback { reason } = bake.outcome(&bad()) else { panic!("no rollback") };
    assert!(reason.contains("3 checks in a row were bad (limit 3)") && reason.contains("answered 500"), "{reason}");
}

#[test]
fn g10_a_finding_that_comes_again_and_again_is_quoted_once_with_its_count() {
    let mut bake = Bake::new(&[]);
    let asked = |said: &str| Finding::Bad(format!("http://h/ {said}"));
    bake.outcome(&asked("answered 503"));
    bake.outcome(&asked("answered 500"));
    let Four::Rollback { reason } = bake.outcome(&asked("answered 500")) else { panic!("no rollback") };
    assert!(reason.ends_with("last: http://h/ answered 503; answered 500 (2 times)"), "{reason}");
}

#[test]
fn g11_a_healthy_region_waits_to_the_end_of_its_bake_and_then_proceeds() {
    let mut bake = Bake::new(&[("interval", "7m")]);
    let mut times = Vec::new();
    loop {
        times.push(bake.now.0 / MINUTE);
        match bake.outcome(&healthy()) {
            Four::Wait { reason, .. } => assert!(reason.contains("limit 30 min"), "{reason}"),
            outcome => {
                assert_eq!(outcome, Four::Proceed);
                break;
            }
        }
    }
    assert_eq!(times, [0, 7, 14, 21, 28, 30], "the last check is made at the end itself");
}

#[test]
fn g11_failures_mean_abort_where_that_is_set() {
    let mut bake = Bake::new(&[("bad_outcome", "abort"), ("bad_max", "1")]);
    assert!(matches!(bake.outcome(&bad()), Four::Abort { .. }));
}

#[test]
fn g12_what_can_not_be_asked_is_neither_failure_nor_success_where_nothing_is_set_for_it() {
    let mut bake = Bake::new(&[]);
    for _ in 0..60 {
        let Four::Wait { reason, .. } = bake.outcome(&no_data()) else { panic!("decided") };
        assert!(reason.contains("no data"), "{reason}");
    }
    assert!(bake.now > Timestamp(30 * MINUTE));
    assert_eq!(bake.outcome(&healthy()), Four::Proceed);
}

#[test]
fn g40_one_kind_neither_fills_nor_resets_another() {
    let budgets = [
        ("unreachable_max", "10"),
        ("unreachable_outcome", "abort"),
        ("bad_max", "3"),
        ("bad_outcome", "rollback"),
        ("no_data_max", "5"),
        ("no_data_outcome", "hold"),
        ("bake", "10h"),
    ];
    for last in [unreachable(), bad(), no_data()] {
        let mut bake = Bake::new(&budgets);
        for turn in 0..9 {
            assert!(matches!(bake.outcome(&unreachable()), Four::Wait { .. }));
            if turn < 2 {
                assert!(matches!(bake.outcome(&bad()), Four::Wait { .. }));
            }
            if turn < 4 {
                let answer = bake.check(&no_data());
                assert!(matches!(answer.outcome, Four::Wait { .. }) && answer.pause.is_none());
            }
        }
        let answer = bake.check(&last);
        match (&last, &answer.outcome) {
            (Finding::Unreachable(_), Four::Abort { reason }) => {
                assert!(reason.contains("10 checks in a row were unreachable (limit 10)"), "{reason}");
            }
            (Finding::Bad(_), Four::Rollback { reason }) => {
                assert!(reason.contains("3 checks in a row were bad (limit 3)"), "{reason}");
            }
            (Finding::NoData(_), Four::Wait { reason, .. }) => {
                assert!(answer.pause.is_some() && reason.contains("were no data (limit 5)"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn g41_while_held_checks_are_shown_and_decide_nothing() {
    let mut bake = Bake::new(&[("bad_outcome", "hold"), ("may_answer", "on-call")]);
    for _ in 0..2 {
        assert!(bake.check(&bad()).pause.is_none());
    }
    let pause = bake.check(&bad()).pause.unwrap();
    assert_eq!(pause.may_answer, ["on-call"]);
    bake.paused = true;
    for finding in [bad(), bad(), healthy(), healthy()] {
        let answer = bake.check(&finding);
        assert_eq!(answer.pause.as_ref(), Some(&pause), "the same pause, however often it is asked for");
        assert!(matches!(answer.outcome, Four::Wait { .. }));
    }
}

#[test]
fn a_round_that_comes_early_makes_no_check_and_keeps_the_memo() {
    let mut bake = Bake::new(&[]);
    bake.check(&bad());
    let counts: Counts = serde_json::from_str(bake.memo.as_deref().unwrap()).unwrap();
    let mut context = Context::new(Function::PostStoreVersionSwap, "s");
    context.now = Timestamp(1_000);
    assert!(!is_due(&bake.plan, &context, &counts));
    let answer = decide(&bake.plan, &context, counts, None);
    assert_eq!(answer.memo, bake.memo);
    assert!(matches!(answer.outcome, Four::Wait { ask_again_at: Some(Timestamp(at)), .. } if at == MINUTE));
}

#[test]
fn a_memo_stays_within_its_bound_however_long_the_findings() {
    let mut bake = Bake::new(&[("bad_max", "1000")]);
    for _ in 0..20 {
        bake.check(&Finding::Bad(crate::outcome::shorten(&"\"".repeat(5_000), 400)));
    }
    assert!(bake.memo.unwrap().len() <= crate::outcome::MEMO_BYTES_MAX);
}

#[test]
fn g03_settings_that_are_none_are_refused() {
    for (key, value) in [
        ("bad_max", "0"),
        ("bad_outcome", "explode"),
        ("interval", "0"),
        ("no_data_status", "99"),
        ("bake", "-1m"),
        ("url", "x"),
    ] {
        let config = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let error = Plan::read(&config).unwrap_err();
        assert_eq!((error.key.as_str(), error.value.as_str()), (key, value));
    }
}
