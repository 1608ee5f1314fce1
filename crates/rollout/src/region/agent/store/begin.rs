//! Beginning what the plan asks for, and cutting off what it no longer does.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Job, Outcome, Running, StoreTask};
use crate::engine::{LoadProgress, LoadableArtifact};
use crate::region::artifacts::ArtifactName;
use crate::region::plan::{NodeTask, Step, VersionTask, plan};

impl StoreTask {
    pub(super) fn advance(&mut self) {
        if !self.shared.standing.borrow().commands() {
            self.stand_still();
            return;
        }
        if let Some(next) = self.next_incarnation {
            if self.running.values().any(|running| matches!(running.job, Job::Node(..) | Job::Version(..))) {
                return;
            }
            self.change_incarnation(next);
        }
        let now = self.now();
        // Twice, since beginning a step can show that another has to come first.
        for step in plan(&self.view, now) {
            self.begin(step);
        }
        for step in plan(&self.view, now) {
            self.begin(step);
        }
        self.answer_asked();
        self.track_trouble();
        self.tell_clients();
        self.report(now);
        self.save();
    }

    /// Another agent hosts the region, or that is not known yet: nodes are commanded no more, and nothing is reported.
    /// What was heard is kept.
    fn stand_still(&mut self) {
        self.cancel(|job| matches!(job, Job::Node(..) | Job::Version(..)));
        self.refuse_asked();
        self.track_trouble();
        self.save();
    }

    pub(super) fn begin(&mut self, step: Step) {
        match step {
            Step::Node(place, task) => self.start_node(place, task),
            Step::Version(number, task) => self.start_version(number, task),
            Step::CancelNode(place, task) => {
                self.cancel(|job| matches!(job, Job::Node(of, which, _) if *of == place && *which == task));
            }
            Step::CancelVersion(number, task) => self.cancel(|job| *job == Job::Version(number, task)),
        }
    }

    pub(super) fn is_running(&self, matches: impl Fn(&Job) -> bool) -> bool {
        self.running.values().any(|running| matches(&running.job))
    }

    pub(super) fn cancel(&self, matches: impl Fn(&Job) -> bool) {
        for running in self.running.values().filter(|running| matches(&running.job)) {
            running.cancelled.cancel();
        }
    }

    pub(super) fn spawn(
        &mut self,
        job: Job,
        cancelled: CancellationToken,
        future: impl Future<Output = Outcome> + Send + 'static,
    ) {
        let id = self.jobs.spawn(future).id();
        self.running.insert(id, Running { job, cancelled });
    }

    pub(super) fn artifact_name(&self, number: u64) -> Option<ArtifactName> {
        let expected = self.file.expected.get(&number)?;
        Some(ArtifactName { id: expected.artifact.clone(), manifest_sha256: expected.manifest_sha256.clone() })
    }

    pub(super) fn start_node(&mut self, place: usize, task: NodeTask) {
        let node = self.nodes[place].clone();
        let progress = Arc::new(LoadProgress::default());
        let mut artifact = None;
        if let NodeTask::Load(number) = task {
            let Some((name, manifest)) = self.artifact_name(number).zip(self.manifests.get(&number).cloned()) else {
                // The digest was known from before and the manifest was not read in this life: read it first.
                if let Some(version) = self.view.versions.get_mut(&number) {
                    version.copied = false;
                    version.expected_digest = None;
                }
                return;
            };
            artifact = Some(LoadableArtifact {
                store: self.tools.artifacts.region_store(),
                manifest,
                manifest_sha256: name.manifest_sha256,
            });
            self.load_progress.insert((place, number), Arc::clone(&progress));
        }
        self.view.nodes[place].running.insert(task);
        let cancelled = CancellationToken::new();
        let step = self.tools.clone().node(node, task, artifact, progress, cancelled.clone());
        let job = Job::Node(place, task, self.ended[place]);
        self.spawn(job, cancelled, async move { Outcome::Node(step.await) });
    }

    /// Reads a version back without waiting for a turn: someone waits for it.
    pub(super) fn verify_at_once(&mut self, place: usize, number: u64) {
        let task = NodeTask::Verify(number);
        let node = self.nodes[place].clone();
        self.view.nodes[place].running.insert(task);
        let step = self.tools.clone().verify_at_once(node, number);
        let job = Job::Node(place, task, self.ended[place]);
        self.spawn(job, CancellationToken::new(), async move { Outcome::Node(step.await) });
    }

    pub(super) fn start_version(&mut self, number: u64, task: VersionTask) {
        let Some(name) = self.artifact_name(number) else {
            self.view.versions.remove(&number);
            return;
        };
        let cancelled = CancellationToken::new();
        let tools = self.tools.clone();
        let future: futures::future::BoxFuture<'static, _> = match task {
            VersionTask::ReadManifest => Box::pin(tools.read_manifest(name)),
            VersionTask::CheckCapacity => {
                let Some(manifest) = self.manifests.get(&number).cloned() else {
                    self.forget_manifest(number);
                    return;
                };
                let mut missing = Vec::new();
                let mut holding = 0;
                for (place, node) in self.view.nodes.iter().enumerate() {
                    match &node.observed {
                        Some(observed) if observed.holds(number) => holding += 1,
                        Some(_) => missing.push((place, self.nodes[place].clone())),
                        None => {}
                    }
                }
                Box::pin(tools.check_capacity(number, manifest, missing, holding, self.view.enough()))
            }
            VersionTask::Copy => {
                let progress = Arc::new(LoadProgress::default());
                self.copy_progress.insert(number, Arc::clone(&progress));
                let suspect = self.view.nodes.iter().any(|node| node.trouble.contains_key(&NodeTask::Load(number)));
                Box::pin(tools.copy(name, suspect, progress, cancelled.clone()))
            }
            VersionTask::RemoveCopy => Box::pin(tools.remove_copy(number, name)),
        };
        if let Some(version) = self.view.versions.get_mut(&number) {
            version.running.insert(task);
        }
        self.spawn(Job::Version(number, task), cancelled, async move { Outcome::Version(future.await) });
    }

    /// Has the manifest read again, since only its digest was kept.
    pub(super) fn forget_manifest(&mut self, number: u64) {
        if let Some(version) = self.view.versions.get_mut(&number) {
            version.expected_digest = None;
        }
    }
}
