use super::*;
use crate::engine::{HeldVersion, Observed};
use crate::region::plan::{Check, VersionView};

const INCARNATION: Uuid = Uuid::nil();

fn node(sound: &[u64], serving: Option<u64>) -> NodeView {
    let held = sound.iter().map(|version| (*version, HeldVersion::default())).collect();
    NodeView {
        observed: Some(Observed { held, serving, remains: BTreeSet::new() }),
        adopted: true,
        checked: sound.iter().map(|version| (*version, Check::Agrees)).collect(),
        ..NodeView::default()
    }
}

fn failed(mut node: NodeView, task: NodeTask, error: EngineError, given_up: bool) -> NodeView {
    node.trouble.insert(task, Trouble { failures: 5, error, rests_until: Timestamp(9_999), given_up });
    node
}

fn view(hold: &[u64], serve: Option<u64>, enough: u32, nodes: Vec<NodeView>) -> View {
    let wanted = Wanted::Assigned {
        hold: hold.iter().map(|version| (*version, format!("artifact-{version}"))).collect(),
        serve,
        enough,
    };
    let version = VersionView { expected_digest: Some("digest".to_owned()), ..VersionView::default() };
    let versions = hold.iter().map(|number| (*number, version.clone())).collect();
    View { wanted, nodes, versions }
}

fn make(view: &View, progress: &[(u64, (u64, u64))], previous: Option<&Report>, now: i64) -> Report {
    let names: Vec<String> = (1..=view.nodes.len()).map(|number| format!("node-{number}")).collect();
    let progress = progress.iter().copied().collect();
    let facts = Facts {
        generation: 7,
        incarnation: INCARNATION,
        node_names: &names,
        progress: &progress,
        embedded: EmbeddedCounts::default(),
        pins: &crate::region::pin::Pins::default(),
    };
    report(view, facts, previous, Timestamp(now))
}

#[test]
fn r12_two_of_three_that_agree_are_enough_and_the_third_is_named() {
    let down = failed(NodeView::default(), NodeTask::Observe, EngineError::retry("connection refused"), true);
    let report = make(&view(&[1], Some(1), 2, vec![node(&[1], Some(1)), node(&[1], Some(1)), down]), &[], None, 5);
    assert_eq!(report.versions[&1].status, IngestionStatus::Completed);
    assert_eq!(report.versions[&1].nodes, 2);
    assert_eq!(report.serving, Some(1));
    assert_eq!(report.lagging_nodes, ["node-3"]);
}

#[test]
fn r12_a_node_whose_digest_differs_does_not_count() {
    let mut differs = node(&[1], None);
    differs.checked.insert(1, Check::Differs);
    let report = make(&view(&[1], None, 2, vec![node(&[1], None), differs.clone()]), &[], None, 5);
    assert_eq!(report.versions[&1].status, IngestionStatus::Started);
    let gave_up = failed(differs, NodeTask::Verify(1), EngineError::fatal(FatalKind::DigestMismatch, "a ≠ b"), true);
    let report = make(&view(&[1], None, 2, vec![node(&[1], None), gave_up]), &[], None, 5);
    let IngestionStatus::Failed { kind: FailureKind::DataDamaged, message } = &report.versions[&1].status else {
        panic!("{report:?}");
    };
    assert!(message.contains("a ≠ b"), "{message}");
}

#[test]
fn f12_every_kind_of_fatal_error_is_shown_as_its_kind() {
    for (kind, shown) in [
        (FatalKind::DiskFull, FailureKind::DiskFull),
        (FatalKind::MemoryLimit, FailureKind::MemoryLimitReached),
        (FatalKind::TooManyDead, FailureKind::TooManyDeadInstances),
        (FatalKind::DigestMismatch, FailureKind::DataDamaged),
        (FatalKind::Other, FailureKind::Other),
    ] {
        let broken = failed(node(&[], None), NodeTask::Load(2), EngineError::fatal(kind, "text of the engine"), true);
        let report = make(&view(&[2], None, 1, vec![broken]), &[], None, 5);
        let IngestionStatus::Failed { kind, message } = &report.versions[&2].status else { panic!("{report:?}") };
        assert_eq!(*kind, shown);
        assert!(message.contains("text of the engine"), "{message}");
    }
}

#[test]
fn f6_a_swap_that_is_refused_for_good_fails_what_was_ingested() {
    let refused = EngineError::retry("no");
    let once = failed(node(&[1, 2], Some(1)), NodeTask::Swap(Some(2)), refused.clone(), false);
    let report = make(&view(&[1, 2], Some(2), 1, vec![once]), &[], None, 5);
    assert_eq!(report.versions[&2].status, IngestionStatus::Completed);
    assert_eq!(report.versions[&2].retrying.as_deref(), Some("failed 5 times: no"));
    let for_good = failed(node(&[1, 2], Some(1)), NodeTask::Swap(Some(2)), refused, true);
    let report = make(&view(&[1, 2], Some(2), 1, vec![for_good]), &[], None, 5);
    let IngestionStatus::Failed { kind: FailureKind::SwapRefused, .. } = &report.versions[&2].status else {
        panic!("{report:?}");
    };
    assert_eq!(report.versions[&1].status, IngestionStatus::Completed);
    assert_eq!(report.serving, Some(1));
}

#[test]
fn n8_a_region_counts_as_serving_what_was_asked_only_with_enough_nodes() {
    let cases: &[(&[Option<u64>], Option<u64>, Option<u64>)] = &[
        // What the nodes serve, what is wanted, what the region serves.
        (&[Some(2), Some(2)], Some(2), Some(2)),
        (&[Some(2), Some(1)], Some(2), Some(1)),
        (&[Some(2), None], Some(2), None),
        (&[None, None], Some(2), None),
        (&[Some(1), Some(1)], Some(2), Some(1)),
        (&[Some(1), None], None, Some(1)),
        (&[None, None], None, None),
        (&[Some(0), Some(0)], None, Some(0)),
    ];
    for (serving, wanted, expected) in cases {
        let nodes = serving.iter().map(|version| node(&[0, 1, 2], *version)).collect();
        assert_eq!(super::serving(&view(&[1, 2], *wanted, 2, nodes)), *expected, "{serving:?} {wanted:?}");
    }
}

#[test]
fn r3_repeating_a_report_moves_no_time() {
    let view_of = |serving| view(&[1], Some(1), 1, vec![node(&[1], serving)]);
    let first = make(&view_of(Some(1)), &[], None, 100);
    let again = make(&view_of(Some(1)), &[], Some(&first), 5_000);
    assert_eq!(again.versions, first.versions);
    assert_eq!(again.serving_since, Some(Timestamp(100)));
    assert_eq!(again.at, Timestamp(5_000));
    assert_eq!(novelty(Some(&first), &again), Novelty::Same);
    let stopped = make(&view_of(None), &[], Some(&again), 6_000);
    assert_eq!(stopped.serving_since, None);
    assert_eq!(novelty(Some(&again), &stopped), Novelty::News);
}

#[test]
fn progress_is_told_from_news() {
    let loading = view(&[1], None, 1, vec![node(&[], None)]);
    let early = make(&loading, &[(1, (10, 100))], None, 100);
    let later = make(&loading, &[(1, (20, 100))], Some(&early), 200);
    assert_eq!(later.versions[&1].status, IngestionStatus::Progress { bytes: 20, of: 100 });
    assert_eq!(later.versions[&1].since, Timestamp(100));
    assert_eq!(novelty(Some(&early), &later), Novelty::Progress);
    let done = make(&view(&[1], None, 1, vec![node(&[1], None)]), &[], Some(&later), 300);
    assert_eq!(done.versions[&1].since, Timestamp(300));
    assert_eq!(novelty(Some(&later), &done), Novelty::News);
}

#[test]
fn lagging_nodes_are_bounded_and_errors_are_cut() {
    let nodes = vec![NodeView::default(); 40];
    let report = make(&view(&[1], None, 40, nodes), &[], None, 5);
    assert_eq!(report.lagging_nodes.len(), LAGGING_NAMED_MAX);
    let long = EngineError::fatal(FatalKind::Other, "é".repeat(5_000));
    let broken = failed(node(&[], None), NodeTask::Load(1), long, true);
    let report = make(&view(&[1], None, 1, vec![broken]), &[], None, 5);
    let IngestionStatus::Failed { message, .. } = &report.versions[&1].status else { panic!("{report:?}") };
    assert_eq!(message.chars().count(), MESSAGE_MAX);
}
