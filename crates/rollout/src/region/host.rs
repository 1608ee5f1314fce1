//! The regions of one process: their nodes, their agents, and reads from them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_state::{Clock, PathError, State, Timestamp};

use super::agent::{AgentError, AgentLimits, AgentOptions, Jitter, RegionAgent, RegionNode, random_jitter};
use super::artifacts::RegionArtifacts;
use super::clients::{EmbeddedClients, NoClients};
use super::hosting::Standing;
use super::link::{RegionLink, StateLink};
use super::metrics::{NodeFigures, RegionMetrics};
use crate::engine::embedded::{BATCH_BYTES_MAX, EmbeddedEngine, NodeOpenError, NodeReadError};
use crate::engine::file::encode_name;

/// How many keys one batch may have.
pub const BATCH_KEYS_MAX: usize = 10_000;

/// How long damage that reads go on finding is logged once.
const LOGGED_AGAIN: Duration = Duration::from_secs(60);

/// How many damaged versions of one node are kept in mind for that.
const LOGGED_MAX: usize = 1_000;

/// A region of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionSetup {
    /// Its name.
    pub name: String,
    /// How many nodes it has.
    pub nodes: u32,
    /// Whether its nodes read the source's object store themselves.
    pub shares_source: bool,
}

/// What the regions of a process are made of.
#[derive(Clone)]
pub struct HostOptions {
    /// Everything that the regions keep is below this folder.
    pub folder: PathBuf,
    /// Where artifacts come from.
    pub source: ArtifactStore,
    /// The embedded clients of every region.
    pub clients: Arc<dyn EmbeddedClients>,
    /// The clock of all times; by default the state's.
    pub clock: Option<Arc<dyn Clock>>,
    /// Spread of pauses.
    pub jitter: Jitter,
    /// Limits of the agents.
    pub limits: AgentLimits,
    /// Where the regions count.
    pub metrics: RegionMetrics,
    /// What people call whoever hosts the regions.
    pub name: String,
    /// Where it answers reads, if others can know.
    pub address: Option<String>,
    /// Nodes that every region has beside those within the process.
    pub more_nodes: Vec<RegionNode>,
    /// Where the token goes by which a region is hosted, see [`AgentOptions::token`].
    pub token: Arc<AtomicU64>,
}

impl HostOptions {
    /// The usual options.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, source: ArtifactStore) -> Self {
        HostOptions {
            folder: folder.into(),
            source,
            clients: Arc::new(NoClients::default()),
            clock: None,
            jitter: random_jitter(),
            limits: AgentLimits::default(),
            metrics: RegionMetrics::default(),
            name: "server".to_owned(),
            address: None,
            more_nodes: Vec::new(),
            token: Arc::default(),
        }
    }
}

/// Makes the link of a region.
type Links = Arc<dyn Fn(&str) -> Result<Arc<dyn RegionLink>, PathError> + Send + Sync>;

/// Why a region can't be started.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A region of this name runs already.
    #[error("region {region} runs already in this process")]
    Runs {
        /// The region.
        region: String,
    },
    /// The name can't be one of a region.
    #[error("{region:?} can't be the name of a region: {why}")]
    Name {
        /// The name.
        region: String,
        /// Why.
        why: String,
    },
    /// A node can't be opened.
    #[error("a node of region {region} can't be opened: {source}")]
    Node {
        /// The region.
        region: String,
        /// Why.
        source: NodeOpenError,
    },
    /// The region's own copies of artifacts can't be kept.
    #[error("region {region} can't keep artifacts: {source}")]
    Artifacts {
        /// The region.
        region: String,
        /// Why.
        source: ArtifactError,
    },
    /// The agent can't be started.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// The answer to a read of one key.
#[derive(Clone, Debug)]
pub struct ReadAnswer {
    /// The value, the text of a JSON object with all fields of the record; `None`: the version has no such key.
    pub value: Option<Box<RawValue>>,
    /// The version that answered.
    pub version: u64,
    /// The node that answered.
    pub node: Arc<str>,
}

/// The answer to a read of several keys: all from one version, on one node.
#[derive(Clone, Debug)]
pub struct ReadBatchAnswer {
    /// One value per key as in [`ReadAnswer::value`], in the order of the keys.
    pub values: Vec<Option<Box<RawValue>>>,
    /// The version that answered.
    pub version: u64,
    /// The node that answered.
    pub node: Arc<str>,
}

/// Why a region did not answer a read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This process has no such region.
    #[error("there is no region {region:?} here; there are {}", known.join(", "))]
    NoSuchRegion {
        /// What was asked for.
        region: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// Another agent hosts the region.
    #[error("region {region} is hosted by {by}")]
    HostedElsewhere {
        /// The region.
        region: String,
        /// Who hosts it, in words.
        by: String,
        /// Where that one answers reads.
        address: Option<String>,
    },
    /// The region has nothing to do with this store.
    #[error("region {region} knows no store {store:?}")]
    NoSuchStore {
        /// The region.
        region: String,
        /// The store.
        store: String,
    },
    /// The store is known, and none of its versions is served.
    #[error("region {region} serves no version of store {store}")]
    NoVersion {
        /// The region.
        region: String,
        /// The store.
        store: String,
    },
    /// The key is none of the store's.
    #[error("{message}")]
    BadKey {
        /// What is wrong with it.
        message: String,
    },
    /// More keys than a batch may have.
    #[error("the batch has {given} keys; the limit is {BATCH_KEYS_MAX}")]
    TooManyKeys {
        /// How many were given.
        given: usize,
    },
    /// The values of a batch are larger than an answer may be.
    #[error("the values of the batch take over {BATCH_BYTES_MAX} bytes")]
    TooLarge,
    /// The record is damaged on every node that serves the store. It is being put right; try again. What was found is in
    /// the log, with the file.
    #[error("the record is damaged on every node of region {region} that serves version {version} of store {store}")]
    Damaged {
        /// The region.
        region: String,
        /// The store.
        store: String,
        /// The version.
        version: u64,
    },
}

struct HostedNode {
    name: Arc<str>,
    engine: EmbeddedEngine,
    figures: NodeFigures,
    /// When damage was last logged, by store and version. Reads may find it again and again until it is put right.
    logged: Mutex<BTreeMap<(String, u64), Timestamp>>,
}

impl HostedNode {
    /// Logs damage that a read has found, once a while.
    fn log_damage(&self, store: &str, version: u64, message: &str, now: Timestamp) {
        let mut logged = self.logged.lock();
        if logged.len() >= LOGGED_MAX {
            logged.retain(|_, at| now < at.after(LOGGED_AGAIN));
        }
        let before = logged.get(&(store.to_owned(), version));
        if before.is_some_and(|at| now < at.after(LOGGED_AGAIN)) || logged.len() >= LOGGED_MAX {
            return;
        }
        logged.insert((store.to_owned(), version), now);
        tracing::warn!(node = %self.name, store, version, message, "a read found damage; another node answers while it is put right");
    }
}

/// A region of this process.
pub struct HostedRegion {
    name: String,
    nodes: Vec<HostedNode>,
    artifacts: ArtifactStore,
    next: AtomicUsize,
    agent: RegionAgent,
    clock: Arc<dyn Clock>,
}

/// The regions of one process. Clones are the same host.
#[derive(Clone)]
pub struct RegionHost(Arc<Host>);

struct Host {
    links: Links,
    clock: Arc<dyn Clock>,
    options: HostOptions,
    regions: ArcSwap<BTreeMap<String, Arc<HostedRegion>>>,
    /// One start or stop at a time.
    changing: tokio::sync::Mutex<()>,
}

impl RegionHost {
    /// Starts these regions. Each serves what it served before from the first moment on.
    ///
    /// # Errors
    /// See [`HostError`]; regions that were started before the one that failed are stopped again.
    pub async fn start(
        state: State,
        options: HostOptions,
        regions: impl IntoIterator<Item = RegionSetup>,
    ) -> Result<Self, HostError> {
        let clock = Arc::clone(state.clock());
        let links: Links = Arc::new(move |region| Ok(Arc::new(StateLink::new(state.clone(), region)?)));
        Self::start_linked(links, clock, options, regions).await
    }

    /// As [`start`](RegionHost::start), with links and a clock of the caller's.
    ///
    /// # Errors
    /// See [`HostError`].
    pub async fn start_linked(
        links: Arc<dyn Fn(&str) -> Result<Arc<dyn RegionLink>, PathError> + Send + Sync>,
        clock: Arc<dyn Clock>,
        options: HostOptions,
        regions: impl IntoIterator<Item = RegionSetup>,
    ) -> Result<Self, HostError> {
        let host = RegionHost(Arc::new(Host {
            links,
            clock,
            options,
            regions: ArcSwap::default(),
            changing: tokio::sync::Mutex::new(()),
        }));
        for region in regions {
            if let Err(error) = host.start_region(region).await {
                host.stop().await;
                return Err(error);
            }
        }
        Ok(host)
    }

    /// Starts one more region.
    ///
    /// # Errors
    /// See [`HostError`].
    pub async fn start_region(&self, setup: RegionSetup) -> Result<(), HostError> {
        let _alone = self.0.changing.lock().await;
        if self.0.regions.load().contains_key(&setup.name) {
            return Err(HostError::Runs { region: setup.name });
        }
        let region = Arc::new(self.open(&setup).await?);
        self.0.regions.rcu(|before| {
            let mut regions = BTreeMap::clone(before);
            regions.insert(setup.name.clone(), Arc::clone(&region));
            regions
        });
        Ok(())
    }

    async fn open(&self, setup: &RegionSetup) -> Result<HostedRegion, HostError> {
        let options = &self.0.options;
        let name = setup.name.clone();
        let bad_name = |why: String| HostError::Name { region: setup.name.clone(), why };
        let encoded = encode_name(&name).ok_or_else(|| bad_name("it is empty or too long".to_owned()))?;
        let link = (self.0.links)(&name).map_err(|error| bad_name(error.to_string()))?;
        let folder = options.folder.join(encoded);
        let mut nodes = Vec::new();
        for number in 1..=setup.nodes {
            let node = format!("{name}-{number}");
            let opened = EmbeddedEngine::open(folder.join("nodes").join(number.to_string())).await;
            let engine = opened.map_err(|source| HostError::Node { region: name.clone(), source })?;
            let figures = options.metrics.of_node(&name, &node);
            nodes.push(HostedNode { name: node.into(), engine, figures, logged: Mutex::default() });
        }
        let artifacts = if setup.shares_source {
            RegionArtifacts::shared(options.source.clone())
        } else {
            let own = ArtifactStore::local(folder.join("artifacts"));
            let own = own.map_err(|source| HostError::Artifacts { region: name.clone(), source })?;
            RegionArtifacts::copied(options.source.clone(), own)
        };
        let region_store = artifacts.region_store();
        let region_nodes = nodes
            .iter()
            .map(|node| RegionNode {
                name: node.name.to_string(),
                address: None,
                engine: Arc::new(node.engine.clone()),
            })
            .chain(options.more_nodes.iter().cloned())
            .collect();
        let clock = options.clock.clone().unwrap_or_else(|| Arc::clone(&self.0.clock));
        let mut agent =
            AgentOptions::new(name.clone(), folder.join("agent"), region_nodes, artifacts, Arc::clone(&clock));
        agent.clients = Arc::clone(&options.clients);
        agent.jitter = Arc::clone(&options.jitter);
        agent.limits = options.limits.clone();
        agent.metrics = options.metrics.clone();
        agent.name.clone_from(&options.name);
        agent.address.clone_from(&options.address);
        agent.token = Arc::clone(&options.token);
        let agent = RegionAgent::start(agent, link).await?;
        Ok(HostedRegion { name, nodes, artifacts: region_store, next: AtomicUsize::new(0), agent, clock })
    }

    /// Stops one region: it answers no more reads, and its agent ends. What it has stays on its disk.
    pub async fn stop_region(&self, region: &str) {
        let _alone = self.0.changing.lock().await;
        let stopped = self.0.regions.load().get(region).cloned();
        if let Some(stopped) = stopped {
            self.0.regions.rcu(|before| {
                let mut regions = BTreeMap::clone(before);
                regions.remove(region);
                regions
            });
            stopped.agent.stop().await;
        }
    }

    /// Stops all regions, and returns when their agents have ended.
    pub async fn stop(&self) {
        for region in self.regions() {
            self.stop_region(&region).await;
        }
    }

    /// The regions of this process, in order.
    #[must_use]
    pub fn regions(&self) -> Vec<String> {
        self.0.regions.load().keys().cloned().collect()
    }

    /// A region of this process, if there is one of this name.
    #[must_use]
    pub fn hosted(&self, region: &str) -> Option<Arc<HostedRegion>> {
        self.0.regions.load().get(region).cloned()
    }

    /// The regions' figures.
    #[must_use]
    pub fn metrics(&self) -> &RegionMetrics {
        &self.0.options.metrics
    }

    /// Regions whose agent can't do its work now, each with the reason.
    #[must_use]
    pub fn troubles(&self) -> Vec<(String, String)> {
        let regions = self.0.regions.load();
        regions.values().filter_map(|region| Some((region.name.clone(), region.agent.trouble()?))).collect()
    }

    fn region(&self, region: &str) -> Result<Arc<HostedRegion>, ReadError> {
        let regions = self.0.regions.load();
        regions.get(region).cloned().ok_or_else(|| ReadError::NoSuchRegion {
            region: region.to_owned(),
            known: regions.keys().cloned().collect(),
        })
    }

    /// Reads one key, given as text: from one node after the other in turn, and from the next one where a node can't
    /// answer.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, region: &str, store: &str, key: &str) -> Result<ReadAnswer, ReadError> {
        let region = self.region(region)?;
        let (node, answer) = region.ask(store, |node| node.read(store, key))?;
        Ok(ReadAnswer { value: answer.value, version: answer.version, node })
    }

    /// Reads several keys, all from one version on one node.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_batch<K: AsRef<str>>(
        &self,
        region: &str,
        store: &str,
        keys: &[K],
    ) -> Result<ReadBatchAnswer, ReadError> {
        if keys.len() > BATCH_KEYS_MAX {
            return Err(ReadError::TooManyKeys { given: keys.len() });
        }
        let region = self.region(region)?;
        let (node, answer) = region.ask(store, |node| node.read_batch(store, keys))?;
        Ok(ReadBatchAnswer { values: answer.values, version: answer.version, node })
    }
}

impl HostedRegion {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its nodes load from.
    #[must_use]
    pub fn artifacts(&self) -> ArtifactStore {
        self.artifacts.clone()
    }

    /// Whether one of its nodes within this process has this name.
    #[must_use]
    pub fn has_own_node(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| &*node.name == name)
    }

    /// Its agent.
    #[must_use]
    pub fn agent(&self) -> &RegionAgent {
        &self.agent
    }

    fn hosted_elsewhere(&self) -> ReadError {
        let region = self.name.clone();
        match &*self.agent.standing().borrow() {
            Standing::Replaced { by, address, .. } => {
                ReadError::HostedElsewhere { region, by: by.clone(), address: address.clone() }
            }
            // It has come to be hosted here between the two looks.
            other => ReadError::HostedElsewhere { region, by: other.words(), address: None },
        }
    }

    /// Asks nodes in turn: first those that are sound, then those that may still have the record.
    fn ask<T>(
        &self,
        store: &str,
        read: impl Fn(&EmbeddedEngine) -> Result<T, NodeReadError>,
    ) -> Result<(Arc<str>, T), ReadError> {
        if self.agent.is_elsewhere() {
            return Err(self.hosted_elsewhere());
        }
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let in_turn = || (0..self.nodes.len()).map(|step| &self.nodes[first.wrapping_add(step) % self.nodes.len()]);
        let mut damaged = None;
        for sound in [true, false] {
            for node in in_turn() {
                if node.engine.is_sound(store) != sound {
                    continue;
                }
                match read(&node.engine) {
                    Ok(answer) => {
                        node.figures.reads.inc();
                        return Ok((Arc::clone(&node.name), answer));
                    }
                    Err(NodeReadError::BadKey { message }) => return Err(ReadError::BadKey { message }),
                    Err(NodeReadError::TooLarge) => return Err(ReadError::TooLarge),
                    // Swapped to none between the two looks: the next node says whether that holds for all.
                    Err(NodeReadError::NoVersion) => {}
                    Err(NodeReadError::Damaged { version, message }) => {
                        node.figures.reads_failed.inc();
                        node.log_damage(store, version, &message, self.clock.now());
                        self.agent.look_at(store);
                        damaged = Some(version);
                    }
                }
            }
        }
        let (region, store) = (self.name.clone(), store.to_owned());
        Err(match damaged {
            Some(version) => ReadError::Damaged { region, store, version },
            None if self.agent.follows(&store) => ReadError::NoVersion { region, store },
            None => ReadError::NoSuchStore { region, store },
        })
    }
}
