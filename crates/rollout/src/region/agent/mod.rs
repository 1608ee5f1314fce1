//! A region's agent: makes the region hold and serve what the control plane says, and reports what is.
//!
//! The agent has one task per store (`store`), and one that follows what the control plane says and
//! hands it on. Nothing is shared between stores but the number of copies and loads that run at a
//! time, so that one store's trouble never holds up another's. What the agent was told is on its own
//! disk (`disk`): after a restart without the control plane it goes on where it was.
//!
//! # Invariants
//! - An agent obeys the newest word that it has heard. A control plane that has fallen back behind
//!   that (restored from a backup behind everybody's back) is not obeyed until it has caught up.
//! - A region that the control plane does not know goes on serving what it has.
//! - An agent that was told that another hosts its region commands nothing and reports nothing, see
//!   [`hosting`](super::hosting).
//! - A store is let go only on the word of the log that the agent was told to hold it by: another
//!   log that merely does not know the store is no reason to drop data.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_api::agent::HostNode;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::disk::{AgentDisk, StoreFile};
use self::revival::{Deaths, outlive};
use self::store::{Ask, Shared, StoreHandle, StoreTask, Word};
use super::hosting::Standing;
use super::hosting::identity::IdentityFile;
use super::hosting::keeper::{Keeper, release};
use super::link::{AssignmentWatch, LinkError, LinkItem, Position, RegionLink};
use super::pin::{PinRefused, PinRequest, Pinned, Pins};
use crate::entities::{Assignment, PastPin, Report};

mod disk;
mod options;
mod revival;
mod steps;
mod store;

pub use options::{AgentLimits, AgentOptions, Jitter, RegionNode, random_jitter};

/// How many may wait at a store's task for a pin.
const ASKS_MAX: usize = 8;

/// The stores' tasks, by store.
type Handles = Arc<Mutex<BTreeMap<String, StoreHandle>>>;

/// How long an agent that stops tries to let go of its region's lease; else it runs out.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);
/// What the agent's own tasks do, for people.
const FOLLOWER: &str = "follows the control plane";
const KEEPER: &str = "keeps the region's lease";
const SWEEPER: &str = "removes copies";

/// Why an agent can't start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its folder can't be used.
    #[error("the agent of region {region} can't use its folder {folder}: {source}")]
    Folder {
        /// The region.
        region: String,
        /// The folder.
        folder: String,
        /// What the system said.
        source: io::Error,
    },
    /// A region without nodes serves nothing.
    #[error("region {region} has no nodes; it needs at least one")]
    NoNodes {
        /// The region.
        region: String,
    },
}

/// A region's agent, running. Dropping it ends it at once; [`stop`](RegionAgent::stop) ends it in order.
pub struct RegionAgent {
    region: String,
    shutdown: CancellationToken,
    follower: Mutex<Option<JoinHandle<()>>>,
    handles: Handles,
    standing: watch::Receiver<Standing>,
    elsewhere: Arc<AtomicBool>,
    nodes: watch::Sender<Arc<Vec<RegionNode>>>,
    claim_again: Arc<Notify>,
    deaths: Arc<Deaths>,
}

impl RegionAgent {
    /// Starts the agent. What it was told before it was stopped is in force at once, whether or not
    /// the control plane can be reached.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn start(options: AgentOptions, link: Arc<dyn RegionLink>) -> Result<RegionAgent, AgentError> {
        if options.nodes.is_empty() {
            return Err(AgentError::NoNodes { region: options.region });
        }
        let (folder, new_id) = (options.folder.clone(), options.new_id);
        let opened = tokio::task::spawn_blocking(move || {
            let disk = AgentDisk::open(&folder)?;
            let files = disk.load()?;
            let identity = IdentityFile::open(&folder, new_id)?;
            Ok((disk, files, identity))
        })
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
        let (disk, files, (file, identity)) = opened.map_err(|source| AgentError::Folder {
            region: options.region.clone(),
            folder: options.folder.display().to_string(),
            source,
        })?;
        let region = options.region.clone();
        let shutdown = CancellationToken::new();
        let handles = Handles::default();
        let deaths = Arc::new(Deaths::default());
        let keeps = Arc::clone(&deaths);
        let (standing, stands) = watch::channel(Keeper::first_standing(&identity, &*options.clock));
        let elsewhere = Arc::new(AtomicBool::new(stands.borrow().is_elsewhere()));
        let claim_again = Arc::new(Notify::new());
        options.token.store(identity.token, Ordering::Relaxed);
        let (nodes, node_list) = watch::channel(Arc::new(options.nodes.clone()));
        let claimed = node_list.clone();
        let keeper = Keeper {
            region: region.clone(),
            name: options.name.clone(),
            address: options.address.clone(),
            link: Arc::clone(&link),
            clock: Arc::clone(&options.clock),
            jitter: Arc::clone(&options.jitter),
            limits: options.limits.clone(),
            nodes: Arc::new(move || {
                let host_node = |node: &RegionNode| HostNode { name: node.name.clone(), address: node.address.clone() };
                claimed.borrow().iter().map(host_node).collect()
            }),
            token: Arc::clone(&options.token),
            works: Arc::new(move || keeps.works(KEEPER)),
            starting: true,
            file,
            identity,
            standing,
            elsewhere: Arc::clone(&elsewhere),
            nudge: Arc::clone(&claim_again),
            shutdown: shutdown.clone(),
        };
        let shared = Arc::new(Shared {
            standing: stands.clone(),
            claim_again: Arc::clone(&claim_again),
            heavy: Arc::new(Semaphore::new(options.limits.heavy_steps.max(1))),
            figures: options.metrics.of_region(&region),
            nodes: node_list,
            shutdown: shutdown.clone(),
            deaths: Arc::clone(&deaths),
            disk,
            link,
            options,
        });
        let mut follower = Follower {
            shared,
            handles: Arc::clone(&handles),
            tasks: JoinSet::new(),
            names: BTreeMap::new(),
            stores: BTreeMap::new(),
            position: None,
            seen: None,
            snapshots: 0,
        };
        follower.take_files(files);
        let follower = tokio::spawn(follower.run(keeper));
        Ok(RegionAgent {
            region,
            shutdown,
            follower: Mutex::new(Some(follower)),
            handles,
            standing: stands,
            elsewhere,
            nodes,
            claim_again,
            deaths,
        })
    }

    /// How the agent stands with hosting its region, now and whenever that changes.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Whether another agent hosts the region and this one has not in this life. Cheap enough for every read.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.elsewhere.load(Ordering::Relaxed)
    }

    /// Takes one more node into the region. It is brought to where the others are. One whose name is taken is not.
    pub fn add_node(&self, node: RegionNode) {
        self.nodes.send_if_modified(|nodes| {
            let is_new = nodes.iter().all(|known| known.name != node.name);
            if is_new {
                Arc::make_mut(nodes).push(node);
            }
            is_new
        });
        // Whoever looks at the region sees its nodes by the claims.
        self.claim_again.notify_one();
    }

    /// Notes where a node answers from now on, for those who look at the region.
    pub fn node_moved(&self, name: &str, address: String) {
        let moved = self.nodes.send_if_modified(|nodes| {
            let is_other = |node: &RegionNode| node.name == name && node.address.as_ref() != Some(&address);
            let is_moved = nodes.iter().any(is_other);
            if is_moved {
                let found = Arc::make_mut(nodes).iter_mut().find(|node| node.name == name);
                if let Some(node) = found {
                    node.address = Some(address.clone());
                }
            }
            is_moved
        });
        if moved {
            self.claim_again.notify_one();
        }
    }

    /// Lets go of a node: it is neither commanded nor counted any more, and serves what it serves. Whether there was one.
    pub fn remove_node(&self, name: &str) -> bool {
        let removed = self.nodes.send_if_modified(|nodes| {
            let is_there = nodes.iter().any(|known| known.name == name);
            if is_there {
                Arc::make_mut(nodes).retain(|known| known.name != name);
            }
            is_there
        });
        self.claim_again.notify_one();
        removed
    }

    /// The names of the region's nodes.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        self.nodes.borrow().iter().map(|node| node.name.clone()).collect()
    }

    /// What keeps the agent from its work, if one of its tasks has died and does not work again yet.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.deaths.text()
    }

    /// Has the agent look at its nodes now, instead of at the next time that it would: something has
    /// found one of them damaged.
    pub fn look_at(&self, store: &str) {
        if let Some(handle) = self.handles.lock().get(store) {
            handle.nudge.notify_one();
        }
    }

    /// Whether the agent has anything to do with this store.
    #[must_use]
    pub fn follows(&self, store: &str) -> bool {
        self.handles.lock().contains_key(store)
    }

    /// Pins a version of a store in this region: it is served, whatever the assignment says, until the pin is lifted. It
    /// is in force, and on the agent's disk, when this returns.
    ///
    /// # Errors
    /// See [`PinRefused`].
    pub async fn pin(&self, store: &str, request: PinRequest) -> Result<Pinned, PinRefused> {
        self.ask(store, |answer| Ask::Pin(request, answer)).await
    }

    /// Lifts the pin of a store: the region does what its assignment says.
    ///
    /// # Errors
    /// See [`PinRefused`].
    pub async fn unpin(&self, store: &str, by: &str) -> Result<PastPin, PinRefused> {
        self.ask(store, |answer| Ask::Unpin { by: by.to_owned(), answer }).await
    }

    async fn ask<T>(
        &self,
        store: &str,
        ask: impl FnOnce(oneshot::Sender<Result<T, PinRefused>>) -> Ask,
    ) -> Result<T, PinRefused> {
        let unavailable = |why: &str| PinRefused::Unavailable { why: why.to_owned() };
        let asks = {
            let handles = self.handles.lock();
            let handle = handles.get(store).ok_or_else(|| PinRefused::NoSuchStore {
                store: store.to_owned(),
                known: handles.keys().cloned().collect(),
            })?;
            handle.asks.clone()
        };
        let (answer, answered) = oneshot::channel();
        asks.try_send(ask(answer)).map_err(|_| unavailable("too many ask at once, or it is stopping"))?;
        answered.await.unwrap_or_else(|_| Err(unavailable("it stopped before it had answered")))
    }

    /// What is pinned, and was, by store.
    #[must_use]
    pub fn pins(&self) -> BTreeMap<String, Pins> {
        let handles = self.handles.lock();
        handles.iter().map(|(store, handle)| (store.clone(), handle.pins.borrow().clone())).collect()
    }

    /// Ends the agent. Nodes go on serving what they serve.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        let follower = self.follower.lock().take();
        if let Some(follower) = follower {
            // It ends by itself, within the limits of its tasks; a panic in it was logged where it happened.
            let _ = follower.await;
        }
    }
}

impl Drop for RegionAgent {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(follower) = self.follower.get_mut() {
            follower.abort();
        }
    }
}

/// A store that has a task.
struct Followed {
    words: watch::Sender<Word>,
    incarnation: Uuid,
}

/// Follows the control plane and hands its words to the stores' tasks.
struct Follower {
    shared: Arc<Shared>,
    handles: Handles,
    tasks: JoinSet<()>,
    names: BTreeMap<Id, String>,
    stores: BTreeMap<String, Followed>,
    /// Where the open watch is.
    position: Option<Position>,
    /// The furthest that this agent has ever heard.
    seen: Option<Position>,
    /// How often all there is was heard.
    snapshots: u64,
}

impl Follower {
    fn take_files(&mut self, files: Vec<StoreFile>) {
        for file in &files {
            self.note(file.position);
            for (number, expected) in &file.expected {
                let name = super::artifacts::ArtifactName {
                    id: expected.artifact.clone(),
                    manifest_sha256: expected.manifest_sha256.clone(),
                };
                // Before any task runs, so that none removes what another still needs.
                self.shared.options.artifacts.claim(&file.store, *number, &name);
            }
        }
        for file in files {
            let word =
                Word { assignment: file.assignment.clone(), position: file.position, heard: false, reported: None };
            self.begin(file, word);
        }
    }

    fn note(&mut self, position: Option<Position>) {
        if let Some(position) = position
            && self.seen.is_none_or(|seen| seen.epoch != position.epoch || seen.is_before(position))
        {
            self.seen = Some(position);
        }
    }

    fn begin(&mut self, file: StoreFile, word: Word) {
        let store = file.store.clone();
        let incarnation = file.incarnation;
        let (words, receiver) = watch::channel(word);
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let handle = StoreHandle { nudge: Arc::new(Notify::new()), asks, pins: watch::Sender::default() };
        self.handles.lock().insert(store.clone(), handle.clone());
        let task = StoreTask::new(Arc::clone(&self.shared), file, receiver, &handle, asked);
        let id = self.tasks.spawn(task.run()).id();
        self.names.insert(id, store.clone());
        self.stores.insert(store, Followed { words, incarnation });
    }

    fn tell(&mut self, store: &str, mut word: Word) {
        if let Some(assignment) = &word.assignment {
            for (number, held) in &assignment.hold {
                let name = super::artifacts::ArtifactName {
                    id: held.artifact.clone(),
                    manifest_sha256: held.manifest_sha256.clone(),
                };
                self.shared.options.artifacts.claim(store, *number, &name);
            }
        }
        match self.stores.get_mut(store) {
            Some(followed) => {
                // A word that replaces one that was not taken yet still has to say what that one said of reports.
                followed.words.send_modify(|before| {
                    word.reported = word.reported.take().or_else(|| before.reported.take());
                    *before = word;
                });
            }
            None => {
                // Of a store that only nodes know, the incarnation is not known: all of it is older.
                let incarnation = word.assignment.as_ref().map_or(Uuid::nil(), |assignment| assignment.incarnation);
                self.begin(StoreFile::new(store, incarnation), word);
            }
        }
    }

    /// A store's task has ended: it has let go of everything, or panicked.
    fn ended(&mut self, id: Id, panicked: bool) {
        let Some(store) = self.names.remove(&id) else {
            return;
        };
        let Some(followed) = self.stores.remove(&store) else {
            return;
        };
        let handle = self.handles.lock().remove(&store);
        let word = followed.words.borrow().clone();
        if panicked {
            tracing::error!(region = %self.shared.options.region, %store, "the store's task panicked and is started again");
        }
        if panicked || word.assignment.is_some() {
            let incarnation =
                word.assignment.as_ref().map_or(followed.incarnation, |assignment| assignment.incarnation);
            let mut file = StoreFile::new(&store, incarnation);
            if let Some(handle) = handle {
                // A pin wins until it is lifted, whatever becomes of a task.
                file.pins = handle.pins.borrow().clone();
            }
            self.begin(file, word);
        }
    }

    async fn run(mut self, mut keeper: Keeper) {
        let shared = Arc::clone(&self.shared);
        let keeper = tokio::spawn(async move {
            let mut deaths = 0;
            while !outlive(&shared, KEEPER, &mut deaths, keeper.run()).await {}
        });
        let shared = Arc::clone(&self.shared);
        let sweeper = tokio::spawn(async move {
            let mut deaths = 0;
            while !outlive(&shared, SWEEPER, &mut deaths, sweep(Arc::clone(&shared))).await {}
        });
        let shared = Arc::clone(&self.shared);
        let mut deaths = 0;
        while !outlive(&shared, FOLLOWER, &mut deaths, self.follow_on()).await {
            // Whatever it was in the middle of: all there is is heard again.
            self.position = None;
        }
        // Each task ends by the same token, within its limit.
        while self.tasks.join_next().await.is_some() {}
        // Both end by the token too.
        let _ = tokio::join!(keeper, sweeper);
        let standing = self.shared.standing.borrow().clone();
        release(&*self.shared.link, &standing, RELEASE_LIMIT).await;
    }

    /// Follows one watch after the other until the agent is stopped.
    async fn follow_on(&mut self) {
        let shutdown = self.shared.shutdown.clone();
        let mut failures = 0;
        loop {
            let error = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                error = self.follow(&mut failures) => error,
            };
            failures += 1;
            let limits = &self.shared.options.limits;
            let pause = limits.pause(failures, false, (self.shared.options.jitter)());
            tracing::warn!(region = %self.shared.options.region, failures, %error, "lost the control plane; the region goes on as it was told");
            let clock = Arc::clone(&self.shared.options.clock);
            let until = clock.sleep_until(clock.now().after(pause));
            tokio::pin!(until);
            loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                    () = &mut until => break,
                }
            }
        }
    }

    fn task_ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        match ended {
            Ok((id, ())) => self.ended(id, false),
            Err(error) => self.ended(error.id(), error.is_panic()),
        }
    }

    /// Follows one watch until it ends, and says why it did.
    async fn follow(&mut self, failures: &mut u32) -> LinkError {
        let link = Arc::clone(&self.shared.link);
        let mut standing = self.shared.standing.clone();
        self.until_it_commands(&mut standing).await;
        let opened = tokio::time::timeout(self.shared.options.limits.step, link.watch(self.position)).await;
        let mut watch: Box<dyn AssignmentWatch> = match opened {
            Ok(Ok(watch)) => watch,
            Ok(Err(error)) => return error,
            Err(_) => return LinkError::Unavailable { why: "the watch was not opened in time".to_owned() },
        };
        loop {
            let item = tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id() => {
                    self.task_ended(ended);
                    continue;
                }
                () = until(&mut standing, |standing| !standing.commands()) => {
                    return LinkError::Unavailable { why: self.shared.standing.borrow().words() };
                }
                item = watch.next() => item,
            };
            let heard = match item {
                Ok(item) => self.hear(item).await,
                Err(error) => Err(error),
            };
            if let Err(error) = heard {
                return error;
            }
            *failures = 0;
            self.shared.deaths.works(FOLLOWER);
        }
    }

    /// Waits, with the tasks that end meanwhile looked after.
    async fn until_it_commands(&mut self, standing: &mut watch::Receiver<Standing>) {
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                () = until(standing, Standing::commands) => return,
            }
        }
    }

    async fn hear(&mut self, item: LinkItem) -> Result<(), LinkError> {
        let position = item.position();
        if let Some(seen) = self.seen
            && position.is_before(seen)
        {
            self.position = None;
            return Err(LinkError::Refused {
                why: format!(
                    "the control plane is at revision {} of a log of which this agent has seen {}; it is not obeyed \
                     until it has caught up",
                    position.revision, seen.revision
                ),
            });
        }
        let same_log = self.seen.is_some_and(|seen| seen.epoch == position.epoch);
        match item {
            LinkItem::Snapshot { assignments, unreadable, reports, .. } => {
                if self.shared.standing.borrow().holder().is_none() {
                    // The region may have been unknown a moment ago.
                    self.shared.claim_again.notify_one();
                }
                self.hear_all(position, same_log, assignments, &unreadable, reports).await;
            }
            LinkItem::Change { store, assignment, .. } => {
                if assignment.is_some() || self.stores.contains_key(&store) {
                    self.tell(&store, Word { assignment, position: Some(position), heard: true, reported: None });
                }
            }
            LinkItem::Nothing { .. } => {}
            LinkItem::Removed { .. } => {
                tracing::warn!(region = %self.shared.options.region, "the control plane does not know this region; it goes on serving what it has");
            }
        }
        self.position = Some(position);
        self.note(Some(position));
        Ok(())
    }

    async fn hear_all(
        &mut self,
        position: Position,
        same_log: bool,
        assignments: BTreeMap<String, Assignment>,
        unreadable: &BTreeSet<String>,
        mut reports: BTreeMap<String, Report>,
    ) {
        self.snapshots += 1;
        let mut not_wanted: BTreeSet<String> =
            self.stores.keys().filter(|store| !assignments.contains_key(*store)).cloned().collect();
        for store in self.stores_of_nodes().await {
            if !assignments.contains_key(&store) {
                not_wanted.insert(store);
            }
        }
        for (store, assignment) in assignments {
            let reported = Some((self.snapshots, reports.remove(&store)));
            self.tell(&store, Word { assignment: Some(assignment), position: Some(position), heard: true, reported });
        }
        for store in not_wanted.difference(unreadable) {
            if same_log {
                let reported = Some((self.snapshots, reports.remove(store)));
                self.tell(store, Word { assignment: None, position: Some(position), heard: true, reported });
            } else {
                tracing::warn!(
                    region = %self.shared.options.region, %store,
                    "a store is held here that the control plane's log, which is another one than before, does not know; it is kept as it is"
                );
            }
        }
    }

    async fn stores_of_nodes(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let nodes = Arc::clone(&self.shared.nodes.borrow());
        for node in nodes.iter() {
            let clock = &self.shared.options.clock;
            let deadline = clock.sleep_until(clock.now().after(self.shared.options.limits.step));
            tokio::select! {
                biased;
                stores = node.engine.stores() => match stores {
                    Ok(stores) => names.extend(stores.into_iter().map(|store| store.name)),
                    Err(error) => tracing::warn!(node = %node.name, %error, "a node did not say which stores it has; what it still has of stores that are gone stays until it does"),
                },
                () = deadline => tracing::warn!(node = %node.name, "a node did not say in time which stores it has; what it still has of stores that are gone stays until it does"),
            }
        }
        names
    }
}

/// Waits until the agent stands like this. Should nobody be left to say so, it waits for ever: the agent is stopping.
async fn until(standing: &mut watch::Receiver<Standing>, holds: impl FnMut(&Standing) -> bool) {
    if standing.wait_for(holds).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Removes copies that nobody needs any more.
async fn sweep(shared: Arc<Shared>) {
    let clock = Arc::clone(&shared.options.clock);
    loop {
        match shared.options.artifacts.sweep().await {
            Ok(_) => shared.deaths.works(SWEEPER),
            Err(error) => {
                tracing::warn!(region = %shared.options.region, %error, "copies that nobody needs could not be removed; tried again");
            }
        }
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => return,
            () = clock.sleep_until(clock.now().after(shared.options.limits.heartbeat_every)) => {}
        }
    }
}
