use super::*;
use crate::engine::{FatalKind, HeldVersion};

const NOW: Timestamp = Timestamp(1_000);

/// A node in short: what it holds (all of it checked), and what it serves.
fn node(held: &[u64], serving: Option<u64>) -> NodeView {
    let held_versions = held
        .iter()
        .map(|version| (*version, HeldVersion { artifact: (*version > 0).then(|| artifact(*version)) }))
        .collect();
    NodeView {
        observed: Some(Observed { held: held_versions, serving, remains: BTreeSet::new() }),
        adopted: true,
        checked: held.iter().filter(|version| **version > 0).map(|version| (*version, Check::Agrees)).collect(),
        ..NodeView::default()
    }
}

fn artifact(version: u64) -> String {
    format!("artifact-{version}")
}

fn assigned(hold: &[u64], serve: Option<u64>) -> Wanted {
    let hold = hold.iter().map(|version| (*version, artifact(*version))).collect();
    Wanted::Assigned { hold, serve, enough: 2 }
}

/// A version whose manifest is known, that fits, and whose copy is there.
fn ready() -> VersionView {
    VersionView { expected_digest: Some("digest".to_owned()), fits: true, copied: true, ..VersionView::default() }
}

fn view(wanted: Wanted, nodes: &[NodeView], versions: &[(u64, VersionView)]) -> View {
    View { wanted, nodes: nodes.to_vec(), versions: versions.iter().cloned().collect() }
}

fn trouble(rests_until: i64) -> Trouble {
    Trouble {
        failures: 1,
        error: EngineError::fatal(FatalKind::Other, "no"),
        rests_until: Timestamp(rests_until),
        given_up: false,
    }
}

fn with(mut node: NodeView, change: impl FnOnce(&mut NodeView)) -> NodeView {
    change(&mut node);
    node
}

/// Checks the plan, and that carrying it out leaves nothing more to begin.
fn check(name: &str, view: &View, expected: &[Step]) {
    let steps = plan(view, NOW);
    assert_eq!(steps, expected, "{name}");
    let mut going = view.clone();
    for step in &steps {
        match step {
            Step::Node(place, task) => {
                going.nodes[*place].running.insert(*task);
            }
            Step::Version(version, task) => {
                going.versions.get_mut(version).unwrap().running.insert(*task);
            }
            Step::CancelNode(place, task) => {
                going.nodes[*place].running.remove(task);
            }
            Step::CancelVersion(version, task) => {
                going.versions.get_mut(version).unwrap().running.remove(task);
            }
        }
    }
    let again: Vec<Step> = plan(&going, NOW).into_iter().filter(|step| steps.contains(step)).collect();
    assert_eq!(again, [], "{name}: asked for twice");
}

#[test]
fn a_first_version_goes_through_manifest_capacity_copy_load_verify_in_this_order() {
    let empty = [node(&[], None), node(&[], None)];
    let wanted = assigned(&[1], None);
    let unread = VersionView::default();
    check("manifest", &view(wanted.clone(), &empty, &[(1, unread)]), &[Step::Version(1, VersionTask::ReadManifest)]);
    let read = VersionView { expected_digest: Some("d".to_owned()), ..VersionView::default() };
    check(
        "capacity",
        &view(wanted.clone(), &empty, &[(1, read.clone())]),
        &[Step::Version(1, VersionTask::CheckCapacity)],
    );
    let fits = VersionView { fits: true, ..read };
    check("copy", &view(wanted.clone(), &empty, &[(1, fits)]), &[Step::Version(1, VersionTask::Copy)]);
    check(
        "load",
        &view(wanted.clone(), &empty, &[(1, ready())]),
        &[Step::Node(0, NodeTask::Load(1)), Step::Node(1, NodeTask::Load(1))],
    );
    let loaded = with(node(&[1], None), |node| node.checked.clear());
    check(
        "verify",
        &view(wanted.clone(), &[loaded, node(&[1], None)], &[(1, ready())]),
        &[Step::Node(0, NodeTask::Verify(1))],
    );
    check("done", &view(wanted, &[node(&[1], None), node(&[1], None)], &[(1, ready())]), &[]);
}

#[test]
fn r5_what_is_ingested_waits_for_the_word_to_serve() {
    let both = [node(&[1, 2], Some(1)), node(&[1, 2], Some(1))];
    let versions = [(1, ready()), (2, ready())];
    check("no word", &view(assigned(&[1, 2], Some(1)), &both, &versions), &[]);
    check(
        "the word",
        &view(assigned(&[1, 2], Some(2)), &both, &versions),
        &[Step::Node(0, NodeTask::Swap(Some(2))), Step::Node(1, NodeTask::Swap(Some(2)))],
    );
    check(
        "and back",
        &view(assigned(&[1, 2], Some(1)), &[node(&[1, 2], Some(2)), node(&[1, 2], Some(1))], &versions),
        &[Step::Node(0, NodeTask::Swap(Some(1)))],
    );
}

#[test]
fn b5_a_rollback_is_a_swap_and_waits_for_no_load() {
    let loading = with(node(&[1, 2], Some(2)), |node| {
        node.running.insert(NodeTask::Load(3));
    });
    check(
        "rollback beside a load",
        &view(assigned(&[1, 2, 3], Some(1)), &[loading], &[(1, ready()), (2, ready()), (3, ready())]),
        &[Step::Node(0, NodeTask::Swap(Some(1)))],
    );
}

#[test]
fn n5_serving_nothing_is_a_swap_too_and_adopted_data_needs_a_word_of_its_own() {
    let versions = [(1, ready())];
    check(
        "none",
        &view(assigned(&[1], None), &[node(&[1], Some(1))], &versions),
        &[Step::Node(0, NodeTask::Swap(None))],
    );
    check("adopted stays live", &view(assigned(&[1], None), &[node(&[0, 1], Some(0))], &versions), &[]);
    check(
        "back to adopted",
        &view(assigned(&[1], Some(0)), &[node(&[0, 1], Some(1))], &versions),
        &[Step::Node(0, NodeTask::Swap(Some(0)))],
    );
    check(
        "adopted is let go once pushes made two",
        &view(assigned(&[1, 2], Some(2)), &[node(&[0, 1, 2], Some(2))], &[(1, ready()), (2, ready())]),
        &[Step::Node(0, NodeTask::Drop(0))],
    );
}

#[test]
fn c9_a_region_that_was_cut_off_goes_straight_to_what_is_wanted_now() {
    let versions = [(2, VersionView { copied: true, ..VersionView::default() }), (4, ready())];
    let behind = with(node(&[1], Some(1)), |node| {
        node.observed.as_mut().unwrap().remains.insert(2);
    });
    check(
        "loads 4, forgets 2 and keeps 1 while it serves",
        &view(assigned(&[4], Some(4)), &[behind], &versions),
        &[
            Step::Node(0, NodeTask::Drop(2)),
            Step::Node(0, NodeTask::Load(4)),
            Step::Version(2, VersionTask::RemoveCopy),
        ],
    );
    check(
        "swaps",
        &view(assigned(&[4], Some(4)), &[node(&[1, 4], Some(1))], &[(4, ready())]),
        &[Step::Node(0, NodeTask::Swap(Some(4)))],
    );
    check(
        "and only then drops what served",
        &view(assigned(&[4], Some(4)), &[node(&[1, 4], Some(4))], &[(4, ready())]),
        &[Step::Node(0, NodeTask::Drop(1))],
    );
}

#[test]
fn n3_a_load_that_is_no_longer_wanted_is_cut_off_and_then_dropped() {
    let loading = with(node(&[1], Some(1)), |node| {
        node.running.insert(NodeTask::Load(2));
        node.observed.as_mut().unwrap().remains.insert(2);
    });
    let copying = VersionView { running: [VersionTask::Copy].into(), ..VersionView::default() };
    check(
        "cut off",
        &view(assigned(&[1], Some(1)), &[loading], &[(1, ready()), (2, copying)]),
        &[Step::CancelNode(0, NodeTask::Load(2)), Step::CancelVersion(2, VersionTask::Copy)],
    );
    let cut = with(node(&[1], Some(1)), |node| {
        node.observed.as_mut().unwrap().remains.insert(2);
    });
    check(
        "cleaned up",
        &view(assigned(&[1], Some(1)), &[cut], &[(1, ready()), (2, ready())]),
        &[Step::Node(0, NodeTask::Drop(2)), Step::Version(2, VersionTask::RemoveCopy)],
    );
}

#[test]
fn n4_a_digest_that_differs_is_dropped_and_loaded_again_and_never_serves() {
    let differs = with(node(&[1, 2], Some(1)), |node| {
        node.checked.insert(2, Check::Differs);
    });
    let versions = [(1, ready()), (2, ready())];
    check(
        "dropped though it is to serve",
        &view(assigned(&[1, 2], Some(2)), std::slice::from_ref(&differs), &versions),
        &[Step::Node(0, NodeTask::Drop(2))],
    );
    let resting = with(node(&[1], Some(1)), |node| {
        node.trouble.insert(NodeTask::Verify(2), trouble(2_000));
    });
    check("loaded again after a pause", &view(assigned(&[1, 2], Some(2)), &[resting], &versions), &[]);
    let serves_it = with(node(&[1, 2], Some(2)), |node| {
        node.checked.insert(2, Check::Differs);
    });
    check(
        "what turns out wrong while it serves stops serving",
        &view(assigned(&[1, 2], Some(2)), &[serves_it], &versions),
        &[Step::Node(0, NodeTask::Swap(None))],
    );
}

#[test]
fn c21_the_same_number_with_another_artifact_is_not_what_is_wanted() {
    let other = with(node(&[1, 2], Some(1)), |node| {
        let held = &mut node.observed.as_mut().unwrap().held;
        held.insert(2, HeldVersion { artifact: Some("another".to_owned()) });
    });
    check(
        "replaced",
        &view(assigned(&[1, 2], Some(2)), &[other], &[(1, ready()), (2, ready())]),
        &[Step::Node(0, NodeTask::Drop(2))],
    );
}

#[test]
fn r7_n8_lost_data_is_loaded_verified_and_swapped_by_the_assignment_alone() {
    let lost = node(&[], None);
    let versions = [(1, ready()), (2, ready())];
    check(
        "what is to serve is loaded first",
        &view(assigned(&[1, 2], Some(1)), &[lost], &versions),
        &[Step::Node(0, NodeTask::Load(1))],
    );
    let back = with(node(&[1], None), |node| {
        node.running.insert(NodeTask::Load(2));
    });
    check(
        "and swapped while the rest is loaded",
        &view(assigned(&[1, 2], Some(1)), &[back], &versions),
        &[Step::Node(0, NodeTask::Swap(Some(1)))],
    );
}

#[test]
fn r12_a_node_that_does_not_answer_is_only_asked_again() {
    let silent = with(NodeView::default(), |node| {
        node.trouble.insert(NodeTask::Observe, trouble(2_000));
    });
    let unknown = NodeView::default();
    check(
        "one rests, one is asked, one works",
        &view(assigned(&[1], None), &[silent, unknown, node(&[], None)], &[(1, ready())]),
        &[Step::Node(1, NodeTask::Observe), Step::Node(2, NodeTask::Load(1))],
    );
}

#[test]
fn r14_a_store_that_is_gone_stops_serving_before_it_is_dropped() {
    let versions = [(1, ready())];
    check(
        "stop",
        &view(Wanted::Nothing, &[node(&[0, 1], Some(1))], &versions),
        &[Step::Node(0, NodeTask::Swap(None)), Step::Version(1, VersionTask::RemoveCopy)],
    );
    check(
        "drop",
        &view(Wanted::Nothing, &[node(&[0, 1], None)], &[]),
        &[Step::Node(0, NodeTask::Drop(0)), Step::Node(0, NodeTask::Drop(1))],
    );
    let gone = view(Wanted::Nothing, &[node(&[], None)], &[]);
    check("forgotten", &gone, &[]);
    assert!(gone.is_let_go());
    assert!(!view(Wanted::Nothing, &[NodeView::default()], &[]).is_let_go(), "a silent node may hold it");
}

#[test]
fn r14_another_store_of_the_same_name_goes_before_anything_is_loaded() {
    let older = with(node(&[], None), |node| node.older = true);
    check(
        "older first",
        &view(assigned(&[1], None), &[older], &[(1, ready())]),
        &[Step::Node(0, NodeTask::LetGoOlder)],
    );
}

#[test]
fn n1_a_node_is_asked_to_adopt_before_anything_else() {
    let fresh = with(node(&[], None), |node| node.adopted = false);
    check(
        "adopt",
        &view(assigned(&[1], None), &[fresh], &[(1, VersionView::default())]),
        &[Step::Node(0, NodeTask::Adopt), Step::Version(1, VersionTask::ReadManifest)],
    );
}

#[test]
fn what_failed_rests_and_the_view_knows_until_when() {
    let resting = with(node(&[1, 2], Some(1)), |node| {
        node.trouble.insert(NodeTask::Swap(Some(2)), trouble(1_500));
    });
    let mut version = ready();
    version.trouble.insert(VersionTask::Copy, trouble(1_200));
    let view = view(assigned(&[1, 2], Some(2)), &[resting], &[(1, ready()), (2, version)]);
    check("rests", &view, &[]);
    assert_eq!(view.next_attempt_at(NOW), Some(Timestamp(1_200)));
    assert_eq!(view.next_attempt_at(Timestamp(1_200)), Some(Timestamp(1_500)));
    assert_eq!(plan(&view, Timestamp(1_500)), [Step::Node(0, NodeTask::Swap(Some(2)))]);
}

#[test]
fn d7_a_scrub_reads_back_what_was_read_back_before() {
    let due = with(node(&[1], Some(1)), |node| {
        node.scrub.insert(1);
    });
    check("scrub", &view(assigned(&[1], Some(1)), &[due], &[(1, ready())]), &[Step::Node(0, NodeTask::Verify(1))]);
}

mod invariants {
    use proptest::prelude::*;

    use super::*;

    fn any_node() -> impl Strategy<Value = NodeView> {
        (
            proptest::option::of((
                proptest::collection::btree_map(0_u64..5, proptest::bool::weighted(0.9), 0..5),
                proptest::option::of(0_u64..5),
                proptest::collection::btree_set(0_u64..5, 0..3),
            )),
            proptest::collection::btree_map(0_u64..5, any::<bool>(), 0..5),
            any::<bool>(),
            any::<bool>(),
            proptest::collection::btree_set(any_task(), 0..3),
        )
            .prop_map(|(observed, checked, older, adopted, running)| NodeView {
                observed: observed.map(|(held, serving, remains)| {
                    let held: BTreeMap<u64, HeldVersion> = held
                        .into_iter()
                        .map(|(version, right)| {
                            let artifact = if right { artifact(version) } else { "another".to_owned() };
                            (version, HeldVersion { artifact: (version > 0).then_some(artifact) })
                        })
                        .collect();
                    let serving = serving.filter(|version| held.contains_key(version));
                    let remains = remains.into_iter().filter(|version| !held.contains_key(version)).collect();
                    Observed { held, serving, remains }
                }),
                checked: checked
                    .into_iter()
                    .map(|(version, agrees)| (version, if agrees { Check::Agrees } else { Check::Differs }))
                    .collect(),
                older,
                adopted,
                running,
                ..NodeView::default()
            })
    }

    fn any_task() -> impl Strategy<Value = NodeTask> {
        prop_oneof![
            (0_u64..5).prop_map(NodeTask::Load),
            (0_u64..5).prop_map(NodeTask::Verify),
            (0_u64..5).prop_map(NodeTask::Drop),
            proptest::option::of(0_u64..5).prop_map(NodeTask::Swap),
            Just(NodeTask::Observe),
        ]
    }

    fn any_wanted() -> impl Strategy<Value = Wanted> {
        prop_oneof![
            1 => Just(Wanted::Nothing),
            6 => (proptest::collection::btree_set(0_u64..5, 0..4), proptest::option::of(0_u64..5), 1_u32..3).prop_map(
                |(hold, serve, enough)| {
                    let serve = serve.filter(|version| hold.contains(version));
                    let hold = hold.into_iter().map(|version| (version, artifact(version))).collect();
                    Wanted::Assigned { hold, serve, enough }
                }
            ),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_planner_keeps_its_promises(
            wanted in any_wanted(),
            nodes in proptest::collection::vec(any_node(), 1..4),
            prepared in proptest::collection::btree_map(0_u64..5, any::<(bool, bool, bool)>(), 0..5),
        ) {
            let versions = prepared
                .into_iter()
                .map(|(version, (known, fits, copied))| {
                    let expected_digest = known.then(|| "digest".to_owned());
                    (version, VersionView { expected_digest, fits, copied, ..VersionView::default() })
                })
                .collect();
            let view = View { wanted, nodes, versions };
            for step in plan(&view, NOW) {
                let Step::Node(place, task) = step else { continue };
                let node = &view.nodes[place];
                prop_assert!(!node.running.contains(&task), "{task:?} runs already");
                let (hold, serve) = match &view.wanted {
                    Wanted::Nothing => (BTreeMap::new(), None),
                    Wanted::Assigned { hold, serve, .. } => (hold.clone(), *serve),
                };
                match task {
                    NodeTask::Swap(Some(version)) => {
                        prop_assert_eq!(Some(version), serve, "only to what is wanted");
                        prop_assert!(node.has_sound(version), "only to what is sound");
                    }
                    NodeTask::Drop(version) => {
                        prop_assert_ne!(node.serving(), Some(version), "never what serves");
                        prop_assert!(!node.running.contains(&NodeTask::Swap(Some(version))), "nor what is about to");
                        let sound = node.has_sound(version) && node.observed.as_ref().is_some_and(|observed| {
                            observed.held[&version].artifact.is_none()
                                || observed.held[&version].artifact.as_ref() == hold.get(&version)
                        });
                        prop_assert!(!(sound && hold.contains_key(&version)), "nor what is wanted and sound");
                    }
                    NodeTask::Load(version) => {
                        prop_assert!(hold.contains_key(&version), "only what is wanted");
                        let prepared = &view.versions[&version];
                        prop_assert!(prepared.fits && prepared.copied, "only what fits and was checked");
                    }
                    NodeTask::Observe | NodeTask::LetGoOlder | NodeTask::Adopt | NodeTask::Verify(_)
                    | NodeTask::Swap(None) => {}
                }
            }
        }
    }
}
