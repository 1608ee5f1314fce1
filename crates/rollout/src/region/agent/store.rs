//! The task of one store in one region: keeps the [`View`], asks [`plan`] for steps, carries them out and reports.
//!
//! A task owns everything about its store, so that the trouble of one store can't hold up another's. It never waits for
//! a single step: steps run beside each other, and whatever happens first (a step ends, the control plane says something
//! new, a pause is over) leads to the next look at the whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tidegate_api::manifest::Manifest;
use tidegate_state::Timestamp;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::disk::{AgentDisk, Expected, StoreFile};
use super::options::AgentOptions;
use super::steps::{NodeResult, Tools, VersionResult, digest_mismatch};
use crate::engine::{EngineError, FatalKind, LoadProgress, LoadableArtifact, StoreKey};
use crate::entities::{Assignment, Report};
use crate::region::artifacts::ArtifactName;
use crate::region::clients::{ClientOrders, ClientVersion, orders};
use crate::region::link::{LinkError, Position, RegionLink};
use crate::region::metrics::RegionFigures;
use crate::region::plan::{Check, NodeTask, NodeView, Step, Trouble, VersionTask, View, Wanted, plan};
use crate::region::standing::{self, Facts, Novelty, novelty};

/// What the control plane last said about a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Word {
    /// What is wanted; `None`: nothing is to be left of the store.
    pub(super) assignment: Option<Assignment>,
    /// Where in the control plane's log that was said.
    pub(super) position: Option<Position>,
    /// Whether this was heard in this life of the agent, and not only found on its disk.
    pub(super) heard: bool,
    /// What the control plane had as this region's report when all there is was heard for the n-th time.
    pub(super) reported: Option<(u64, Option<Report>)>,
}

/// What the tasks of one agent share.
pub(super) struct Shared {
    pub(super) options: AgentOptions,
    pub(super) link: Arc<dyn RegionLink>,
    pub(super) disk: AgentDisk,
    pub(super) heavy: Arc<Semaphore>,
    pub(super) figures: RegionFigures,
    pub(super) node_names: Vec<String>,
    pub(super) shutdown: CancellationToken,
}

/// What runs beside the task's own loop.
#[derive(Clone, Debug, PartialEq)]
enum Job {
    /// A step of a node, and how many steps of that node had ended when it began.
    Node(usize, NodeTask, u64),
    Version(u64, VersionTask),
    Report(Box<Report>),
    RemoveReport,
    Save,
    Orders(Option<ClientOrders>),
}

enum Outcome {
    Node(Result<NodeResult, EngineError>),
    Version(Result<VersionResult, EngineError>),
    Report(Result<(), LinkError>),
    Save(std::io::Result<()>),
    Orders,
}

struct Running {
    job: Job,
    cancelled: CancellationToken,
}

/// What a node had reached by the agent's own doing, to tell when it has lost it.
#[derive(Clone, Debug, Default)]
struct Reached {
    known: bool,
    held: BTreeSet<u64>,
    serving: Option<u64>,
}

pub(super) struct StoreTask {
    shared: Arc<Shared>,
    tools: Tools,
    words: watch::Receiver<Word>,
    nudge: Arc<Notify>,
    file: StoreFile,
    view: View,
    manifests: BTreeMap<u64, Arc<Manifest>>,
    reached: Vec<Reached>,
    /// Steps of each node that have ended, so that an observation from before one of them is not believed after it.
    ended: Vec<u64>,
    load_progress: BTreeMap<(usize, u64), Arc<LoadProgress>>,
    copy_progress: BTreeMap<u64, Arc<LoadProgress>>,
    jobs: JoinSet<Outcome>,
    running: HashMap<Id, Running>,
    /// The next incarnation, while the steps of the one before it come to their end.
    next_incarnation: Option<Uuid>,
    /// Whether the control plane was heard since the agent began: before that there is nobody to report to.
    heard: bool,
    reported_heard: Option<u64>,
    written: Option<Report>,
    written_at: Timestamp,
    report_trouble: Option<(u32, Timestamp)>,
    /// What clients were told, once they were told anything.
    told: Option<Option<ClientOrders>>,
    unsaved: bool,
    let_go: bool,
    mismatch_open: bool,
    in_trouble: bool,
    observe_at: Timestamp,
    scrub_at: Timestamp,
}

impl StoreTask {
    /// The task of the store that this file is about; what it says is what was known before.
    pub(super) fn new(shared: Arc<Shared>, file: StoreFile, words: watch::Receiver<Word>, nudge: Arc<Notify>) -> Self {
        let options = &shared.options;
        let now = options.clock.now();
        let tools = Tools {
            key: StoreKey { name: file.store.clone(), incarnation: file.incarnation },
            clock: Arc::clone(&options.clock),
            limits: options.limits.clone(),
            heavy: Arc::clone(&shared.heavy),
            artifacts: options.artifacts.clone(),
            figures: shared.figures.clone(),
        };
        let scrub_at = now.after(options.limits.scrub_every.mul_f64(0.5 + 0.5 * (options.jitter)()));
        let mut task = StoreTask {
            tools,
            words,
            nudge,
            view: View::default(),
            manifests: BTreeMap::new(),
            reached: Vec::new(),
            ended: vec![0; options.nodes.len()],
            load_progress: BTreeMap::new(),
            copy_progress: BTreeMap::new(),
            jobs: JoinSet::new(),
            running: HashMap::new(),
            next_incarnation: None,
            heard: false,
            reported_heard: None,
            written: file.report.clone(),
            written_at: Timestamp(0),
            report_trouble: None,
            told: None,
            unsaved: false,
            let_go: false,
            mismatch_open: false,
            in_trouble: false,
            observe_at: now.after(options.limits.observe_every),
            scrub_at,
            shared: Arc::clone(&shared),
            file,
        };
        task.begin_view();
        task
    }

    /// Starts from what the file says: nothing is known about the nodes but what was found right before.
    fn begin_view(&mut self) {
        let names = &self.shared.node_names;
        self.view = View::default();
        self.view.nodes = names
            .iter()
            .map(|name| {
                let sound = self.file.sound.get(name).cloned().unwrap_or_default();
                NodeView {
                    checked: sound.iter().map(|version| (*version, Check::Agrees)).collect(),
                    // It was right when the agent last looked; the scrub looks again beside all else.
                    scrub: sound,
                    ..NodeView::default()
                }
            })
            .collect();
        self.reached = names
            .iter()
            .map(|name| {
                let before = self.file.report.as_ref().filter(|report| {
                    report.incarnation == self.file.incarnation && !report.lagging_nodes.contains(name)
                });
                Reached {
                    known: before.is_some(),
                    held: BTreeSet::new(),
                    serving: before.and_then(|report| report.serving),
                }
            })
            .collect();
        self.take_assignment();
    }

    pub(super) async fn run(mut self) {
        let shutdown = self.shared.shutdown.clone();
        let mut clients = self.shared.options.clients.changes();
        self.take_word();
        loop {
            self.advance();
            if self.let_go && !self.words.has_changed().unwrap_or(false) {
                break;
            }
            let wake_at = self.wake_at();
            let clock = Arc::clone(&self.shared.options.clock);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                changed = self.words.changed() => match changed {
                    Ok(()) => self.take_word(),
                    Err(_) => break,
                },
                Some(ended) = self.jobs.join_next_with_id() => self.end(ended),
                () = self.nudge.notified() => self.look_again(),
                Ok(()) = clients.changed() => {}
                () = clock.sleep_until(wake_at) => self.wake(),
            }
        }
        if self.in_trouble {
            self.shared.figures.stores_in_trouble.dec();
        }
        self.stop().await;
        if self.let_go {
            let disk = self.shared.disk.clone();
            let store = self.file.store.clone();
            let removed = tokio::task::spawn_blocking(move || disk.remove(&store)).await;
            if let Ok(Err(error)) = removed {
                tracing::error!(store = %self.file.store, %error, "what was kept of a store that is gone could not be removed");
            }
        }
    }

    async fn stop(&mut self) {
        for running in self.running.values() {
            running.cancelled.cancel();
        }
        // Steps notice soon. What does not is left behind when the set is dropped.
        let patience = tokio::time::sleep(self.shared.options.limits.stop);
        tokio::pin!(patience);
        loop {
            tokio::select! {
                ended = self.jobs.join_next() => if ended.is_none() { return },
                () = &mut patience => break,
            }
        }
        self.jobs.shutdown().await;
    }

    fn now(&self) -> Timestamp {
        self.shared.options.clock.now()
    }

    // ---- what is wanted ---------------------------------------------------------------------------------------------

    fn take_word(&mut self) {
        let word = self.words.borrow_and_update().clone();
        self.heard |= word.heard;
        if let Some((time, reported)) = word.reported
            && self.reported_heard != Some(time)
        {
            self.reported_heard = Some(time);
            self.written = reported;
            self.report_trouble = None;
        }
        self.let_go = false;
        let incarnation = word.assignment.as_ref().map(|assignment| assignment.incarnation);
        if let Some(next) = incarnation
            && next != self.file.incarnation
        {
            self.next_incarnation = Some(next);
        } else {
            self.next_incarnation = None;
        }
        if word.assignment != self.file.assignment || word.position != self.file.position {
            self.unsaved |= word.assignment != self.file.assignment;
            self.file.position = word.position;
        }
        if self.next_incarnation.is_some() {
            // Nothing of the other store goes on; what it has left is let go as older.
            for running in self.running.values() {
                running.cancelled.cancel();
            }
            self.file.assignment = word.assignment;
            return;
        }
        // What failed under the word before may work under this one.
        if word.assignment != self.file.assignment {
            for node in &mut self.view.nodes {
                node.trouble.retain(|task, _| !matches!(task, NodeTask::Swap(_)));
            }
        }
        self.file.assignment = word.assignment;
        self.take_assignment();
    }

    /// Puts what the assignment says into the view.
    fn take_assignment(&mut self) {
        let Some(assignment) = &self.file.assignment else {
            self.view.wanted = Wanted::Nothing;
            for number in self.file.expected.keys() {
                self.view.versions.entry(*number).or_default();
            }
            return;
        };
        for (number, held) in &assignment.hold {
            if *number == crate::engine::ADOPTED_VERSION {
                continue;
            }
            let same = self.file.expected.get(number).is_some_and(|expected| {
                expected.artifact == held.artifact && expected.manifest_sha256 == held.manifest_sha256
            });
            if !same {
                let expected = Expected {
                    artifact: held.artifact.clone(),
                    manifest_sha256: held.manifest_sha256.clone(),
                    content_digest: None,
                };
                self.file.expected.insert(*number, expected);
                self.manifests.remove(number);
                self.view.versions.remove(number);
                self.unsaved = true;
            }
            let name = ArtifactName { id: held.artifact.clone(), manifest_sha256: held.manifest_sha256.clone() };
            self.tools.artifacts.claim(&self.file.store, *number, &name);
        }
        let serves_nothing_new = assignment.serve.is_none_or(|version| assignment.hold.contains_key(&version));
        if !serves_nothing_new {
            tracing::warn!(store = %self.file.store, serve = ?assignment.serve, "is to serve a version that it is not to hold; keeps what it has of it");
        }
        self.view.wanted = Wanted::Assigned {
            hold: assignment.hold.iter().map(|(number, held)| (*number, held.artifact.clone())).collect(),
            serve: assignment.serve,
            enough: assignment.enough,
        };
        for (number, expected) in &self.file.expected {
            let version = self.view.versions.entry(*number).or_default();
            version.expected_digest.clone_from(&expected.content_digest);
        }
    }

    fn change_incarnation(&mut self, next: Uuid) {
        tracing::info!(store = %self.file.store, from = %self.file.incarnation, to = %next, "another store has this name now");
        let assignment = self.file.assignment.take();
        for (number, expected) in std::mem::take(&mut self.file.expected) {
            let name = ArtifactName { id: expected.artifact, manifest_sha256: expected.manifest_sha256 };
            self.tools.artifacts.disown(&self.file.store, number, &name);
        }
        let position = self.file.position;
        self.file = StoreFile::new(&self.file.store, next);
        self.file.assignment = assignment;
        self.file.position = position;
        self.tools.key.incarnation = next;
        self.manifests.clear();
        self.load_progress.clear();
        self.copy_progress.clear();
        self.told = None;
        self.unsaved = true;
        self.next_incarnation = None;
        self.begin_view();
    }

    // ---- the loop's body --------------------------------------------------------------------------------------------

    fn advance(&mut self) {
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
        self.track_trouble();
        self.tell_clients();
        self.report(now);
        self.save();
    }

    fn begin(&mut self, step: Step) {
        match step {
            Step::Node(place, task) => self.start_node(place, task),
            Step::Version(number, task) => self.start_version(number, task),
            Step::CancelNode(place, task) => {
                self.cancel(|job| matches!(job, Job::Node(of, which, _) if *of == place && *which == task));
            }
            Step::CancelVersion(number, task) => self.cancel(|job| *job == Job::Version(number, task)),
        }
    }

    fn is_running(&self, matches: impl Fn(&Job) -> bool) -> bool {
        self.running.values().any(|running| matches(&running.job))
    }

    fn cancel(&self, matches: impl Fn(&Job) -> bool) {
        for running in self.running.values().filter(|running| matches(&running.job)) {
            running.cancelled.cancel();
        }
    }

    fn spawn(
        &mut self,
        job: Job,
        cancelled: CancellationToken,
        future: impl Future<Output = Outcome> + Send + 'static,
    ) {
        let id = self.jobs.spawn(future).id();
        self.running.insert(id, Running { job, cancelled });
    }

    fn artifact_name(&self, number: u64) -> Option<ArtifactName> {
        let expected = self.file.expected.get(&number)?;
        Some(ArtifactName { id: expected.artifact.clone(), manifest_sha256: expected.manifest_sha256.clone() })
    }

    fn start_node(&mut self, place: usize, task: NodeTask) {
        let node = self.shared.options.nodes[place].clone();
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

    fn start_version(&mut self, number: u64, task: VersionTask) {
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
                        Some(_) => missing.push((place, self.shared.options.nodes[place].clone())),
                        None => {}
                    }
                }
                Box::pin(tools.check_capacity(number, manifest, missing, holding, self.view.enough()))
            }
            VersionTask::Copy => {
                let progress = Arc::new(LoadProgress::default());
                self.copy_progress.insert(number, Arc::clone(&progress));
                Box::pin(tools.copy(name, progress, cancelled.clone()))
            }
            VersionTask::RemoveCopy => Box::pin(tools.remove_copy(number, name)),
        };
        if let Some(version) = self.view.versions.get_mut(&number) {
            version.running.insert(task);
        }
        self.spawn(Job::Version(number, task), cancelled, async move { Outcome::Version(future.await) });
    }

    /// Has the manifest read again, since only its digest was kept.
    fn forget_manifest(&mut self, number: u64) {
        if let Some(version) = self.view.versions.get_mut(&number) {
            version.expected_digest = None;
        }
    }

    // ---- what ended -------------------------------------------------------------------------------------------------

    fn end(&mut self, ended: Result<(Id, Outcome), JoinError>) {
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
            Job::Orders(orders) => self.told = Some(orders),
        }
    }

    fn end_node(
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
                    (NodeTask::Observe, NodeResult::Observed { observed, older }) => {
                        if self.ended[place] == seen {
                            self.observed(place, observed, older);
                        }
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

    fn unsound(&mut self, place: usize, number: u64) {
        self.view.nodes[place].checked.remove(&number);
        self.view.nodes[place].scrub.remove(&number);
        if let Some(sound) = self.file.sound.get_mut(&self.shared.node_names[place]) {
            self.unsaved |= sound.remove(&number);
        }
    }

    fn observed(&mut self, place: usize, observed: crate::engine::Observed, older: bool) {
        let reached = &self.reached[place];
        let lost_serving = reached.known && reached.serving.is_some() && observed.serving != reached.serving;
        let lost_version = reached.held.iter().any(|version| !observed.holds(*version));
        if (lost_serving || lost_version) && !self.mismatch_open {
            self.mismatch_open = true;
            self.shared.figures.mismatches.inc();
            tracing::warn!(
                region = %self.shared.options.region, store = %self.file.store, node = %self.shared.node_names[place],
                had_reached = ?reached, found = ?observed, "a node is not where it was; it is put right from the assignment"
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

    fn verified(&mut self, place: usize, number: u64, verification: &crate::engine::Verification) {
        let Some(expected) = self.file.expected.get(&number).and_then(|expected| expected.content_digest.clone())
        else {
            return;
        };
        self.view.nodes[place].scrub.remove(&number);
        let name = self.shared.node_names[place].clone();
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

    fn trouble(&self, before: Option<&Trouble>, error: EngineError, bounded: bool) -> Trouble {
        let limits = &self.shared.options.limits;
        let failures = before.map_or(0, |before| before.failures).saturating_add(1);
        let fatal = matches!(error, EngineError::Fatal { .. }) && !bounded;
        let given_up = fatal || failures >= limits.attempts;
        let pause = limits.pause(failures, given_up, (self.shared.options.jitter)());
        Trouble { failures, error, rests_until: self.now().after(pause), given_up }
    }

    fn count_failure(&self, step: &str, trouble: &Trouble, first_given_up: bool) {
        self.shared.figures.failures(step).inc();
        if first_given_up {
            self.shared.figures.given_up(step).inc();
        }
        tracing::warn!(
            region = %self.shared.options.region, store = %self.file.store, step, failures = trouble.failures,
            given_up = trouble.given_up, error = %trouble.error, "a step failed"
        );
    }

    /// Notes a failure. `bounded`: even an error that is fatal is tried again a few times.
    fn node_failed(&mut self, place: usize, task: NodeTask, error: EngineError, bounded: bool) {
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

    fn end_version(
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
            }
        }
    }

    // ---- what others are told ---------------------------------------------------------------------------------------

    fn track_trouble(&mut self) {
        let trouble = self.view.nodes.iter().any(|node| !node.trouble.is_empty())
            || self.view.versions.values().any(|version| !version.trouble.is_empty());
        if trouble != self.in_trouble {
            self.in_trouble = trouble;
            let gauge = &self.shared.figures.stores_in_trouble;
            if trouble {
                gauge.inc()
            } else {
                gauge.dec()
            };
        }
        if self.mismatch_open && self.running.is_empty() && self.asked_everyone() {
            self.mismatch_open = self.view.nodes.iter().any(|node| node.stale);
        }
    }

    fn tell_clients(&mut self) {
        if self.is_running(|job| matches!(job, Job::Orders(_))) {
            return;
        }
        let next = self.file.assignment.as_ref().map(|assignment| {
            let permitted: BTreeMap<u64, ClientVersion> = assignment
                .hold
                .iter()
                .map(|(number, held)| {
                    let version = ClientVersion {
                        permission: held.embedded,
                        artifact: held.artifact.clone(),
                        manifest_sha256: held.manifest_sha256.clone(),
                    };
                    (*number, version)
                })
                .collect();
            orders(
                &permitted,
                assignment.serve,
                standing::serving(&self.view),
                self.told.as_ref().and_then(Option::as_ref),
            )
        });
        // Until the nodes were asked, nobody knows what the region serves.
        if self.told.as_ref() == Some(&next) || !self.asked_everyone() {
            return;
        }
        let clients = Arc::clone(&self.shared.options.clients);
        let key = self.tools.key.clone();
        let order = next.clone();
        self.spawn(Job::Orders(next), CancellationToken::new(), async move {
            clients.order(&key, order).await;
            Outcome::Orders
        });
    }

    /// Whether every node has answered, or failed to, since the agent began.
    fn asked_everyone(&self) -> bool {
        self.view.nodes.iter().all(|node| node.observed.is_some() || node.trouble.contains_key(&NodeTask::Observe))
    }

    fn progress(&self) -> BTreeMap<u64, (u64, u64)> {
        let mut progress = BTreeMap::new();
        for (number, copy) in &self.copy_progress {
            progress.insert(*number, copy.get());
        }
        for ((_, number), load) in &self.load_progress {
            let (done, total) = load.get();
            let sum: &mut (u64, u64) = progress.entry(*number).or_default();
            sum.0 = sum.0.saturating_add(done);
            sum.1 = sum.1.saturating_add(total);
        }
        progress
    }

    fn next_report(&self, now: Timestamp) -> Option<Report> {
        let assignment = self.file.assignment.as_ref()?;
        if self.next_incarnation.is_some() || !self.asked_everyone() {
            return None;
        }
        let progress = self.progress();
        let facts = Facts {
            generation: assignment.generation,
            incarnation: assignment.incarnation,
            node_names: &self.shared.node_names,
            progress: &progress,
            embedded: self.shared.options.clients.counts(&self.tools.key),
        };
        let previous = self.written.as_ref().or(self.file.report.as_ref());
        Some(standing::report(&self.view, facts, previous, now))
    }

    fn report(&mut self, now: Timestamp) {
        let busy = self.is_running(|job| matches!(job, Job::Report(_) | Job::RemoveReport));
        let rests = self.report_trouble.is_some_and(|(_, until)| now < until);
        if busy || rests || !self.heard {
            return;
        }
        let link = Arc::clone(&self.shared.link);
        let store = self.file.store.clone();
        let limit = self.shared.options.limits.step;
        let limited = move |report: Option<Report>| async move {
            let written = tokio::time::timeout(limit, link.report(&store, report)).await;
            Outcome::Report(written.unwrap_or_else(|_| {
                let why = format!("no answer to a report within {} s", limit.as_secs());
                Err(LinkError::Unavailable { why })
            }))
        };
        if self.file.assignment.is_none() {
            if self.view.is_let_go() && !self.let_go {
                self.spawn(Job::RemoveReport, CancellationToken::new(), limited(None));
            }
            return;
        }
        let Some(next) = self.next_report(now) else {
            return;
        };
        let due = match novelty(self.written.as_ref(), &next) {
            Novelty::Same => false,
            Novelty::Progress => now >= self.progress_due(),
            Novelty::News => true,
        };
        if due {
            self.spawn(Job::Report(Box::new(next.clone())), CancellationToken::new(), limited(Some(next)));
        }
    }

    fn progress_due(&self) -> Timestamp {
        self.written_at.after(self.shared.options.limits.progress_every)
    }

    fn reported(&mut self, report: Report) {
        self.shared.figures.reports.inc();
        self.report_trouble = None;
        self.written_at = self.now();
        if novelty(self.file.report.as_ref(), &report) == Novelty::News {
            self.unsaved = true;
            self.file.report = Some(report.clone());
        }
        self.written = Some(report);
    }

    fn report_failed(&mut self, error: &LinkError) {
        self.shared.figures.reports_failed.inc();
        let failures = self.report_trouble.map_or(0, |(failures, _)| failures).saturating_add(1);
        let pause = self.shared.options.limits.pause(failures, false, (self.shared.options.jitter)());
        tracing::warn!(region = %self.shared.options.region, store = %self.file.store, failures, %error, "a report was not written");
        self.report_trouble = Some((failures, self.now().after(pause)));
    }

    fn save(&mut self) {
        if !self.unsaved || self.next_incarnation.is_some() || self.is_running(|job| *job == Job::Save) {
            return;
        }
        self.unsaved = false;
        let disk = self.shared.disk.clone();
        let file = self.file.clone();
        self.spawn(Job::Save, CancellationToken::new(), async move {
            let saved = tokio::task::spawn_blocking(move || disk.save(&file)).await;
            Outcome::Save(saved.unwrap_or_else(|error| Err(std::io::Error::other(error))))
        });
    }

    // ---- time -------------------------------------------------------------------------------------------------------

    fn look_again(&mut self) {
        for (node, ended) in self.view.nodes.iter_mut().zip(&mut self.ended) {
            node.stale = true;
            // An observation that is under way may have looked before whatever it is that happened.
            *ended += 1;
        }
    }

    fn wake(&mut self) {
        let now = self.now();
        if now >= self.observe_at {
            self.observe_at = now.after(self.shared.options.limits.observe_every);
            self.look_again();
        }
        if now >= self.scrub_at {
            self.scrub_at = now.after(self.shared.options.limits.scrub_every);
            for node in &mut self.view.nodes {
                node.scrub = node.checked.keys().copied().collect();
            }
        }
    }

    fn wake_at(&self) -> Timestamp {
        let now = self.now();
        let mut at = self.observe_at.min(self.scrub_at);
        at = at.min(self.view.next_attempt_at(now).unwrap_or(at));
        if let Some((_, until)) = self.report_trouble
            && until > now
        {
            at = at.min(until);
        }
        if !(self.load_progress.is_empty() && self.copy_progress.is_empty()) {
            // Looked at once a second; written only if something has moved.
            at = at.min(now.after(self.shared.options.limits.progress_every));
        }
        at
    }
}
