//! A region's agent: makes the region hold and serve what the control plane says, and reports what is.
//!
//! The agent has one task per store, and one that follows what the control plane says and hands it on. Nothing is shared
//! between stores but the number of copies and loads that run at a time, so that one store's trouble never holds up
//! another's. What the agent was told is on its own disk: after a restart without the control plane it goes on where it
//! was.
//!
//! | file | has |
//! |---|---|
//! | this one | the agent as others see it: starting, stopping, nodes that come and go, orders and questions of people |
//! | `options` | what it is made of, and its limits |
//! | `follower` | the task that follows the control plane and looks after the stores' tasks |
//! | `store` | the task of one store |
//! | `steps` | carrying out one step of a store's task |
//! | `sweeper` | the task that removes copies that nobody needs |
//! | `revival` | tasks that die by a panic |
//! | `disk` | what it keeps on its own disk |
//!
//! # Invariants
//! - An agent obeys the newest word that it has heard. A control plane that has fallen back behind
//!   that (restored from a backup behind everybody's back) is not obeyed until it has caught up.
//! - A region that the control plane does not know goes on serving what it has.
//! - An agent that was told that another hosts its region commands nothing and reports nothing, see
//!   [`hosting`](super::hosting).
//! - A store is let go only on the word of the log that the agent was told to hold it by: another
//!   log that merely does not know the store is no reason to drop data.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tidegate_api::agent::HostNode;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::disk::AgentDisk;
use self::follower::Follower;
use self::revival::Deaths;
use self::store::{Ask, Shared, StoreHandle};
use super::hosting::Standing;
use super::hosting::identity::IdentityFile;
use super::hosting::keeper::Keeper;
use super::link::RegionLink;
use super::pin::{PinRefused, PinRequest, Pinned, Pins};
use crate::entities::PastPin;

mod disk;
mod follower;
mod options;
mod revival;
mod steps;
mod store;
mod sweeper;

pub use options::{AgentLimits, AgentOptions, Jitter, RegionNode, random_jitter};

/// The stores' tasks, by store.
type Handles = Arc<Mutex<BTreeMap<String, StoreHandle>>>;

/// What the task that takes and renews the lease does, for people.
const KEEPER: &str = "keeps the region's lease";

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
        let follower = tokio::spawn(Follower::new(shared, Arc::clone(&handles), files).run(keeper));
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
