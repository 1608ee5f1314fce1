//! The task that follows what the control plane says and hands it on to the stores' tasks, which it starts and looks after.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use uuid::Uuid;

use super::disk::StoreFile;
use super::revival::outlive;
use super::store::{Shared, StoreHandle, StoreTask, Word};
use super::sweeper::{SWEEPER, sweep};
use super::{Handles, KEEPER};
use crate::entities::{Assignment, Report};
use crate::region::artifacts::ArtifactName;
use crate::region::hosting::Standing;
use crate::region::hosting::keeper::{Keeper, release};
use crate::region::link::{AssignmentWatch, LinkError, LinkItem, Position};

/// How many may wait at a store's task for a pin.
const ASKS_MAX: usize = 8;
/// How long an agent that stops tries to let go of its region's lease; else it runs out.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);
/// What the task does, for people.
const FOLLOWER: &str = "follows the control plane";

/// A store that has a task.
struct Followed {
    words: watch::Sender<Word>,
    incarnation: Uuid,
}

/// Follows the control plane and hands its words to the stores' tasks.
pub(super) struct Follower {
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
    /// The follower of an agent that has found this on its disk, with the tasks of those stores begun.
    pub(super) fn new(shared: Arc<Shared>, handles: Handles, files: Vec<StoreFile>) -> Follower {
        let mut follower = Follower {
            shared,
            handles,
            tasks: JoinSet::new(),
            names: BTreeMap::new(),
            stores: BTreeMap::new(),
            position: None,
            seen: None,
            snapshots: 0,
        };
        follower.take_files(files);
        follower
    }

    fn take_files(&mut self, files: Vec<StoreFile>) {
        for file in &files {
            self.note(file.position);
            for (number, expected) in &file.expected {
                let name =
                    ArtifactName { id: expected.artifact.clone(), manifest_sha256: expected.manifest_sha256.clone() };
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
                let name = ArtifactName { id: held.artifact.clone(), manifest_sha256: held.manifest_sha256.clone() };
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

    pub(super) async fn run(mut self, mut keeper: Keeper) {
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

    fn task_ended(&mut self, ended: Result<(Id, ()), JoinError>) {
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
