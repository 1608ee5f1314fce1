//! The task of one store in one region: keeps the [`View`], asks [`plan`] for steps, carries them out and reports.
//!
//! A task owns everything about its store, so that the trouble of one store can't hold up another's. It never waits for
//! a single step: steps run beside each other, and whatever happens first (a step ends, the control plane says something
//! new, a pause is over) leads to the next look at the whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tidegate_api::manifest::Manifest;
use tidegate_state::Timestamp;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(super) use self::pinning::Ask;
use self::pinning::Asking;
use super::disk::{AgentDisk, StoreFile};
use super::options::{AgentOptions, RegionNode};
use super::revival::Deaths;
use super::steps::{NodeResult, Tools, VersionResult};
use crate::engine::{EngineError, LoadProgress, StoreKey};
use crate::entities::{Assignment, Report};
use crate::region::clients::ClientOrders;
use crate::region::hosting::Standing;
use crate::region::link::{LinkError, Position, RegionLink};
use crate::region::metrics::RegionFigures;
use crate::region::pin::Pins;
use crate::region::plan::{Check, NodeTask, NodeView, VersionTask, View};

mod begin;
mod ended;
mod nodes;
mod pinning;
mod told;
mod wanted;

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

/// How the rest of the agent reaches a store's task.
#[derive(Clone)]
pub(super) struct StoreHandle {
    /// Has it look at its nodes now.
    pub(super) nudge: Arc<Notify>,
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) pins: watch::Sender<Pins>,
}

/// What the tasks of one agent share.
pub(super) struct Shared {
    pub(super) options: AgentOptions,
    pub(super) link: Arc<dyn RegionLink>,
    /// How the agent stands with hosting the region.
    pub(super) standing: watch::Receiver<Standing>,
    /// Has the region claimed again at once.
    pub(super) claim_again: Arc<Notify>,
    pub(super) disk: AgentDisk,
    pub(super) heavy: Arc<Semaphore>,
    pub(super) figures: RegionFigures,
    /// The region's nodes. Some may leave; those that come are always behind those there are.
    pub(super) nodes: watch::Receiver<Arc<Vec<RegionNode>>>,
    pub(super) shutdown: CancellationToken,
    pub(super) deaths: Arc<Deaths>,
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
    SavePins,
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
    /// The region's nodes, in the order of the view.
    nodes: Arc<Vec<RegionNode>>,
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
    asks: mpsc::Receiver<Ask>,
    asking: Option<Asking>,
    pins: watch::Sender<Pins>,
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
    pub(super) fn new(
        shared: Arc<Shared>,
        file: StoreFile,
        words: watch::Receiver<Word>,
        handle: &StoreHandle,
        asks: mpsc::Receiver<Ask>,
    ) -> Self {
        let options = &shared.options;
        let now = options.clock.now();
        let nodes = Arc::clone(&shared.nodes.borrow());
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
            nudge: Arc::clone(&handle.nudge),
            asks,
            asking: None,
            pins: handle.pins.clone(),
            view: View::default(),
            manifests: BTreeMap::new(),
            reached: Vec::new(),
            ended: vec![0; nodes.len()],
            nodes,
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
        task.show_pins();
        task
    }

    /// Starts from what the file says: nothing is known about the nodes but what was found right before.
    fn begin_view(&mut self) {
        self.view = View::default();
        self.view.nodes = self.nodes.iter().map(|node| self.first_view(&node.name)).collect();
        self.reached = self.nodes.iter().map(|node| self.reached_before(&node.name)).collect();
        self.take_assignment();
    }

    /// What the file says of a node.
    fn first_view(&self, name: &str) -> NodeView {
        let sound = self.file.sound.get(name).cloned().unwrap_or_default();
        NodeView {
            checked: sound.iter().map(|version| (*version, Check::Agrees)).collect(),
            // It was right when the agent last looked; the scrub looks again beside all else.
            scrub: sound,
            ..NodeView::default()
        }
    }

    fn reached_before(&self, name: &str) -> Reached {
        let before = self.file.report.as_ref().filter(|report| {
            report.incarnation == self.file.incarnation
                && !report.lagging_nodes.iter().any(|node| node == name)
                // A pin may have been given since.
                && self.file.pins.pin.as_ref().is_none_or(|pin| report.serving == Some(pin.version))
        });
        Reached { known: before.is_some(), held: BTreeSet::new(), serving: before.and_then(|report| report.serving) }
    }

    fn node_names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    pub(super) async fn run(mut self) {
        let shutdown = self.shared.shutdown.clone();
        let mut clients = self.shared.options.clients.changes();
        let mut standing = self.shared.standing.clone();
        let mut nodes = self.shared.nodes.clone();
        self.take_word();
        self.take_nodes();
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
                Some(ask) = self.asks.recv(), if !self.is_asked() => self.take_ask(ask),
                () = self.nudge.notified() => self.look_again(),
                Ok(()) = standing.changed() => {}
                Ok(()) = nodes.changed() => self.take_nodes(),
                Ok(()) = clients.changed() => {}
                () = clock.sleep_until(wake_at) => self.wake(),
            }
        }
        if self.in_trouble {
            self.shared.figures.stores_in_trouble.dec();
        }
        let all_ended = self.stop().await;
        let disk = self.shared.disk.clone();
        if self.let_go {
            let store = self.file.store.clone();
            let removed = tokio::task::spawn_blocking(move || disk.remove(&store)).await;
            if let Ok(Err(error)) = removed {
                tracing::error!(store = %self.file.store, %error, "what was kept of a store that is gone could not be removed");
            }
        } else if all_ended && self.unsaved && self.next_incarnation.is_none() {
            // What came while an earlier state was being saved: the next life is to begin with it.
            let file = self.file.clone();
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || disk.save(&file)).await {
                tracing::warn!(store = %self.file.store, %error, "what was heard last could not be saved; it will be heard again");
            }
        }
    }

    /// Ends what is being done. Says whether all of it has ended.
    async fn stop(&mut self) -> bool {
        for running in self.running.values() {
            running.cancelled.cancel();
        }
        // Steps notice soon. What does not is left behind when the set is dropped.
        let patience = tokio::time::sleep(self.shared.options.limits.stop);
        tokio::pin!(patience);
        loop {
            tokio::select! {
                ended = self.jobs.join_next() => if ended.is_none() { return true },
                () = &mut patience => break,
            }
        }
        self.jobs.shutdown().await;
        false
    }

    fn now(&self) -> Timestamp {
        self.shared.options.clock.now()
    }

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
        if let Some(asked_at) = self.asking_wakes_at()
            && asked_at > now
        {
            at = at.min(asked_at);
        }
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
