//! Steps that have ended: what they mean for the view.

use tokio::task::{Id, JoinError};

use super::super::steps::{NodeResult, VersionResult, digest_mismatch};
use super::{Job, Outcome, Reached, StoreTask};
use crate::engine::{EngineError, FatalKind, Observed, Verification};
use crate::region::link::LinkError;
use crate::region::plan::{Check, NodeTask, Trouble, VersionTask, Wanted};

/// `holds version 1, 2, serves 2`.
fn place_text<'a>(held: impl Iterator<Item = &'a u64>, serving: Option<u64>) -> String {
    let held: Vec<String> = held.map(u64::to_string).collect();
    let held = if held.is_empty() { "no version".to_owned() } else { format!("version {}", held.join(", ")) };
    format!("holds {held}, serves {}", serving.map_or("none".to_owned(), |version| version.to_string()))
}

impl StoreTask {
    pub(super) fn end(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, Some(outcome)),
            Err(error) => (error.id(), None),
        };
        let Some(running) = self.running.remove(&id) else {
            return;
        };
        let was_cancelled = running.cancelled.is_cancelled();
        let panicked = || EngineError::retry("the step panicked; the log has more");
        match running.job {
            Job::Node(place, task, seen) => {
                let result = match outcome {
                    Some(Outcome::Node(result)) => result,
                    _ => Err(panicked()),
                };
                self.end_node(place, task, seen, result, was_cancelled);
            }
            Job::Version(number, task) => {
                let result = match outcome {
                    Some(Outcome::Version(result)) => result,
                    _ => Err(panicked()),
                };
                self.end_version(number, task, result, was_cancelled);
            }
            Job::Report(report) => match outcome {
                Some(Outcome::Report(Ok(()))) => self.reported(*report),
                Some(Outcome::Report(Err(error))) => self.report_failed(&error),
                _ => self.report_failed(&LinkError::Unavailable { why: "the report's task panicked".to_owned() }),
            },
            Job::RemoveReport => match outcome {
                Some(Outcome::Report(Ok(()) | Err(LinkError::Refused { .. }))) => {
                    self.report_trouble = None;
                    self.let_go = self.view.is_let_go();
                }
                Some(Outcome::Report(Err(error))) => self.report_failed(&error),
                _ => self.report_failed(&LinkError::Unavailable { why: "the report's task panicked".to_owned() }),
            },
            Job::Save => {
                if let Some(Outcome::Save(Err(error))) = outcome {
                    // Serving goes on and the nodes keep their pointers; only a restart without control plane would miss it.
                    tracing::error!(store = %self.file.store, %error, "what is wanted could not be kept on the agent's disk");
                }
            }
            Job::SavePins => match outcome {
                Some(Outcome::Save(saved)) => self.pins_saved(saved),
                _ => self.pins_saved(Err(std::io::Error::other("the task panicked"))),
            },
            Job::Orders(orders) => self.told = Some(orders),
        }
    }

    pub(super) fn end_node(
        &mut self,
        place: usize,
        task: NodeTask,
        seen: u64,
        result: Result<NodeResult, EngineError>,
        was_cancelled: bool,
    ) {
        self.view.nodes[place].running.remove(&task);
        if let NodeTask::Load(number) = task {
            self.load_progress.remove(&(place, number));
        }
        if let NodeTask::Verify(number) = task {
            let read = match &result {
                Ok(NodeResult::Verified(verification)) => Ok(verification.clone()),
                Ok(_) => Err(EngineError::retry("it was not read back")),
                Err(error) => Err(error.clone()),
            };
            self.read_back(place, number, &read);
        }
        if self.next_incarnation.is_some() {
            return;
        }
        if task != NodeTask::Observe {
            self.ended[place] += 1;
            self.view.nodes[place].stale = true;
        }
        match result {
            Ok(result) => {
                // A version that turns out wrong is counted below; all else that ended well starts afresh.
                if !matches!(result, NodeResult::Verified(_)) {
                    self.view.nodes[place].trouble.remove(&task);
                }
                match (task, result) {
                    (NodeTask::Observe, NodeResult::Observed { observed, older }) if self.ended[place] == seen => {
                        self.observed(place, observed, older);
                    }
                    (NodeTask::Verify(number), NodeResult::Verified(verification)) => {
                        self.verified(place, number, &verification);
                    }
                    (NodeTask::Adopt, _) => self.view.nodes[place].adopted = true,
                    (NodeTask::Load(number), _) => {
                        self.reached[place].held.insert(number);
                        self.view.nodes[place].checked.remove(&number);
                    }
                    (NodeTask::Swap(version), _) => {
                        self.reached[place].known = true;
                        self.reached[place].serving = version;
                    }
                    (NodeTask::Drop(number), _) => {
                        self.reached[place].held.remove(&number);
                        self.unsound(place, number);
                    }
                    _ => {}
                }
            }
            Err(_) if was_cancelled => {}
            Err(error) => {
                if task == NodeTask::Observe {
                    self.view.nodes[place].observed = None;
                }
                if let NodeTask::Load(number) = task
                    && let Some(version) = self.view.versions.get_mut(&number)
                {
                    // A part may have been damaged in the region's copy, or the room may be gone.
                    match error {
                        EngineError::Retry { .. } => version.copied = false,
                        EngineError::Fatal { .. } => version.fits = false,
                    }
                }
                self.node_failed(place, task, error, false);
            }
        }
    }

    pub(super) fn unsound(&mut self, place: usize, number: u64) {
        self.view.nodes[place].checked.remove(&number);
        self.view.nodes[place].scrub.remove(&number);
        if let Some(sound) = self.file.sound.get_mut(&self.nodes[place].name) {
            self.unsaved |= sound.remove(&number);
        }
    }

    pub(super) fn observed(&mut self, place: usize, observed: Observed, older: bool) {
        let reached = &self.reached[place];
        // What is being swapped or dropped right now, and what nobody wants here any more, is no loss.
        let running = &self.view.nodes[place].running;
        let swaps = running.iter().any(|task| matches!(task, NodeTask::Swap(_)));
        let wanted = |version: u64| match &self.view.wanted {
            Wanted::Assigned { hold, .. } => hold.contains_key(&version) && !running.contains(&NodeTask::Drop(version)),
            Wanted::Nothing => false,
        };
        let lost_serving = reached.known
            && !swaps
            && reached.serving.is_some_and(|version| wanted(version) && observed.serving != Some(version));
        let lost_version = reached.held.iter().any(|version| wanted(*version) && !observed.holds(*version));
        if (lost_serving || lost_version) && !self.mismatch_open {
            self.mismatch_open = true;
            self.shared.figures.mismatches.inc();
            tracing::warn!(
                region = %self.shared.options.region, store = %self.file.store, node = %self.nodes[place].name,
                before = place_text(reached.held.iter(), reached.serving),
                now = place_text(observed.held.keys(), observed.serving),
                "a node is not where it was; it is put right from the assignment"
            );
        }
        let gone: Vec<u64> =
            self.view.nodes[place].checked.keys().filter(|version| !observed.holds(**version)).copied().collect();
        for number in gone {
            self.unsound(place, number);
        }
        self.reached[place] =
            Reached { known: true, held: observed.held.keys().copied().collect(), serving: observed.serving };
        let node = &mut self.view.nodes[place];
        node.observed = Some(observed);
        node.older = older;
        node.stale = false;
    }

    pub(super) fn verified(&mut self, place: usize, number: u64, verification: &Verification) {
        let Some(expected) = self.file.expected.get(&number).and_then(|expected| expected.content_digest.clone())
        else {
            return;
        };
        self.view.nodes[place].scrub.remove(&number);
        let name = self.nodes[place].name.clone();
        if verification.content_digest == expected {
            self.view.nodes[place].checked.insert(number, Check::Agrees);
            self.view.nodes[place].trouble.remove(&NodeTask::Verify(number));
            self.unsaved |= self.file.sound.entry(name).or_default().insert(number);
            return;
        }
        self.unsound(place, number);
        self.view.nodes[place].checked.insert(number, Check::Differs);
        let error = digest_mismatch(&name, number, verification, &expected);
        self.node_failed(place, NodeTask::Verify(number), error, true);
    }

    pub(super) fn trouble(&self, before: Option<&Trouble>, error: EngineError, bounded: bool) -> Trouble {
        let limits = &self.shared.options.limits;
        let failures = before.map_or(0, |before| before.failures).saturating_add(1);
        let fatal = matches!(error, EngineError::Fatal { .. }) && !bounded;
        let given_up = fatal || failures >= limits.attempts;
        let pause = limits.pause(failures, given_up, (self.shared.options.jitter)());
        Trouble { failures, error, rests_until: self.now().after(pause), given_up }
    }

    pub(super) fn count_failure(&self, step: &str, trouble: &Trouble, first_given_up: bool) {
        self.shared.figures.failures(step).inc();
        if first_given_up {
            self.shared.figures.given_up(step).inc();
        }
        let what_follows = if trouble.given_up {
            "a step failed too often, or for good: the node counts as failed for this version; it is tried again now and then"
        } else {
            "a step failed; it is tried again"
        };
        tracing::warn!(
            region = %self.shared.options.region, store = %self.file.store, step, failures = trouble.failures,
            given_up = trouble.given_up, error = %trouble.error, "{what_follows}"
        );
    }

    /// Notes a failure. `bounded`: even an error that is fatal is tried again a few times.
    pub(super) fn node_failed(&mut self, place: usize, task: NodeTask, error: EngineError, bounded: bool) {
        let before = self.view.nodes[place].trouble.get(&task);
        let had_given_up = before.is_some_and(|trouble| trouble.given_up);
        let trouble = self.trouble(before, error, bounded);
        let step = match task {
            NodeTask::Observe => "observe",
            NodeTask::LetGoOlder => "let_go",
            NodeTask::Adopt => "adopt",
            NodeTask::Load(_) => "load",
            NodeTask::Verify(_) => "verify",
            NodeTask::Swap(_) => "swap",
            NodeTask::Drop(_) => "drop",
        };
        self.count_failure(step, &trouble, trouble.given_up && !had_given_up);
        self.view.nodes[place].trouble.insert(task, trouble);
    }

    pub(super) fn end_version(
        &mut self,
        number: u64,
        task: VersionTask,
        result: Result<VersionResult, EngineError>,
        was_cancelled: bool,
    ) {
        self.copy_progress.remove(&number);
        let Some(version) = self.view.versions.get_mut(&number) else {
            return;
        };
        version.running.remove(&task);
        match result {
            Ok(result) => {
                version.trouble.remove(&task);
                match result {
                    VersionResult::Manifest(manifest) => {
                        version.expected_digest = Some(manifest.content_digest.clone());
                        if let Some(expected) = self.file.expected.get_mut(&number) {
                            self.unsaved |= expected.content_digest.as_ref() != Some(&manifest.content_digest);
                            expected.content_digest = Some(manifest.content_digest.clone());
                        }
                        self.manifests.insert(number, manifest);
                    }
                    VersionResult::Fits { without_room } => {
                        version.fits = true;
                        for (place, error) in without_room {
                            self.node_failed(place, NodeTask::Load(number), error, false);
                        }
                    }
                    VersionResult::Copied => version.copied = true,
                    VersionResult::Removed => {
                        self.view.versions.remove(&number);
                        self.file.expected.remove(&number);
                        self.manifests.remove(&number);
                        self.unsaved = true;
                    }
                }
            }
            Err(_) if was_cancelled => {}
            Err(error) => {
                let before = version.trouble.get(&task).cloned();
                let had_given_up = before.as_ref().is_some_and(|trouble| trouble.given_up);
                // A damaged source may be put right: that too is tried a few times before it counts.
                let bounded = error.kind() == FatalKind::DigestMismatch;
                let is_unanswered = task == VersionTask::CheckCapacity && matches!(error, EngineError::Retry { .. });
                let trouble = self.trouble(before.as_ref(), error, bounded);
                let step = match task {
                    VersionTask::ReadManifest => "manifest",
                    VersionTask::CheckCapacity => "capacity",
                    VersionTask::Copy => "copy",
                    VersionTask::RemoveCopy => "remove_copy",
                };
                self.count_failure(step, &trouble, trouble.given_up && !had_given_up);
                if let Some(version) = self.view.versions.get_mut(&number) {
                    version.trouble.insert(task, trouble);
                }
                if is_unanswered {
                    // A node did not answer. Once that is seen it is left out, and the others go on without it.
                    self.look_again();
                }
            }
        }
    }
}
