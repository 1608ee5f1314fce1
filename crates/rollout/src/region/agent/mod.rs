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
//! - A store is let go only on the word of the log that the agent was told to hold it by: another
//!   log that merely does not know the store is no reason to drop data.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tidegate_state::Timestamp;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::disk::{AgentDisk, StoreFile};
use self::revival::{Deaths, outlive};
use self::store::{Shared, StoreTask, Word};
use super::link::{AssignmentWatch, LinkError, LinkItem, Position, RegionLink};
use crate::entities::{AgentHeartbeat, Assignment, Report};

mod disk;
mod options;
mod revival;
mod steps;
mod store;

pub use options::{AgentLimits, AgentOptions, Jitter, RegionNode, random_jitter};

/// What the agent's own tasks do, for people.
const FOLLOWER: &str = "follows the control plane";
const HEART: &str = "says that the agent lives";

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
    deaths: Arc<Deaths>,
    nudges: Arc<Mutex<BTreeMap<String, Arc<Notify>>>>,
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
        let folder = options.folder.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let disk = AgentDisk::open(&folder)?;
            let files = disk.load()?;
            Ok((disk, files))
        })
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
        let (disk, files) = opened.map_err(|source| AgentError::Folder {
            region: options.region.clone(),
            folder: options.folder.display().to_string(),
            source,
        })?;
        let region = options.region.clone();
        let shutdown = CancellationToken::new();
        let nudges = Arc::new(Mutex::new(BTreeMap::new()));
        let deaths = Arc::new(Deaths::default());
        let shared = Arc::new(Shared {
            heavy: Arc::new(Semaphore::new(options.limits.heavy_steps.max(1))),
            figures: options.metrics.of_region(&region),
            node_names: options.nodes.iter().map(|node| node.name.clone()).collect(),
            shutdown: shutdown.clone(),
            deaths: Arc::clone(&deaths),
            disk,
            link,
            options,
        });
        let mut follower = Follower {
            shared,
            nudges: Arc::clone(&nudges),
            tasks: JoinSet::new(),
            names: BTreeMap::new(),
            stores: BTreeMap::new(),
            position: None,
            seen: None,
            snapshots: 0,
        };
        follower.take_files(files);
        let follower = tokio::spawn(follower.run());
        Ok(RegionAgent { region, shutdown, follower: Mutex::new(Some(follower)), deaths, nudges })
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// What keeps the agent from its work, if one of its tasks has died and does not work again yet.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.deaths.text()
    }

    /// Has the agent look at its nodes now, instead of at the next time that it would: something has
    /// found one of them damaged.
    pub fn look_at(&self, store: &str) {
        if let Some(nudge) = self.nudges.lock().get(store) {
            nudge.notify_one();
        }
    }

    /// Whether the agent has anything to do with this store.
    #[must_use]
    pub fn follows(&self, store: &str) -> bool {
        self.nudges.lock().contains_key(store)
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
    nudges: Arc<Mutex<BTreeMap<String, Arc<Notify>>>>,
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
        let nudge = Arc::new(Notify::new());
        self.nudges.lock().insert(store.clone(), Arc::clone(&nudge));
        let task = StoreTask::new(Arc::clone(&self.shared), file, receiver, nudge);
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
        self.nudges.lock().remove(&store);
        let word = followed.words.borrow().clone();
        if panicked {
            tracing::error!(region = %self.shared.options.region, %store, "the store's task panicked and is started again");
        }
        if panicked || word.assignment.is_some() {
            let incarnation =
                word.assignment.as_ref().map_or(followed.incarnation, |assignment| assignment.incarnation);
            self.begin(StoreFile::new(&store, incarnation), word);
        }
    }

    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let heart = tokio::spawn(async move {
            let mut deaths = 0;
            while !outlive(&shared, HEART, &mut deaths, beat(Arc::clone(&shared))).await {}
        });
        let shared = Arc::clone(&self.shared);
        let mut deaths = 0;
        while !outlive(&shared, FOLLOWER, &mut deaths, self.follow_on()).await {
            // Whatever it was in the middle of: all there is is heard again.
            self.position = None;
        }
        // Each task ends by the same token, within its limit.
        while self.tasks.join_next().await.is_some() {}
        heart.abort();
        let _ = heart.await;
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
        let mut watch: Box<dyn AssignmentWatch> = match link.watch(self.position).await {
            Ok(watch) => watch,
            Err(error) => return error,
        };
        loop {
            let item = tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id() => {
                    self.task_ended(ended);
                    continue;
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

    async fn hear(&mut self, item: LinkItem) -> Result<(), LinkError> {
        let position = match &item {
            LinkItem::Snapshot { position, .. }
            | LinkItem::Change { position, .. }
            | LinkItem::Removed { position } => *position,
        };
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
                self.hear_all(position, same_log, assignments, &unreadable, reports).await;
            }
            LinkItem::Change { store, assignment, .. } => {
                if assignment.is_some() || self.stores.contains_key(&store) {
                    self.tell(&store, Word { assignment, position: Some(position), heard: true, reported: None });
                }
            }
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
                    "is held here and the control plane's log, which is another one than before, does not know it; it is kept as it is"
                );
            }
        }
    }

    async fn stores_of_nodes(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for node in &self.shared.options.nodes {
            let clock = &self.shared.options.clock;
            let deadline = clock.sleep_until(clock.now().after(self.shared.options.limits.step));
            tokio::select! {
                biased;
                stores = node.engine.stores() => match stores {
                    Ok(stores) => names.extend(stores.into_iter().map(|store| store.name)),
                    Err(error) => tracing::warn!(node = %node.name, %error, "did not say which stores it has"),
                },
                () = deadline => tracing::warn!(node = %node.name, "did not say which stores it has in time"),
            }
        }
        names
    }
}

/// Says that the agent lives, until it does not; and removes copies that nobody needs any more.
async fn beat(shared: Arc<Shared>) {
    let clock = Arc::clone(&shared.options.clock);
    let agent = format!("{} ({} nodes)", shared.options.region, shared.options.nodes.len());
    let mut failures: u32 = 0;
    loop {
        let now: Timestamp = clock.now();
        let heartbeat = AgentHeartbeat { at: now, agent: agent.clone() };
        let beat = tokio::time::timeout(shared.options.limits.step, shared.link.heartbeat(heartbeat)).await;
        match beat {
            Ok(Ok(())) => {
                failures = 0;
                shared.deaths.works(HEART);
            }
            Ok(Err(error)) => {
                failures = failures.saturating_add(1);
                // The first of a row: the follower logs the rest of the story.
                if failures == 1 {
                    tracing::warn!(region = %shared.options.region, %error, "could not say that the agent lives");
                }
            }
            Err(_) => failures = failures.saturating_add(1),
        }
        if let Err(error) = shared.options.artifacts.sweep().await {
            tracing::warn!(region = %shared.options.region, %error, "copies that nobody needs could not be removed; tried again");
        }
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => return,
            () = clock.sleep_until(now.after(shared.options.limits.heartbeat_every)) => {}
        }
    }
}
