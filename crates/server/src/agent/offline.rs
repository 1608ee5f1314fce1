//! An agent that nobody is connected to: for orders that are given while none runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tidegate_api::agent::{HostClaim, HostGrant};
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_rollout::entities::Report;
use tidegate_rollout::region::host::{HostOptions, HostedRegion, RegionSetup};
use tidegate_rollout::region::hosting::Holder;
use tidegate_rollout::region::link::{AssignmentWatch, LinkError, Position};
use tidegate_rollout::region::remote::http_client;
use tidegate_rollout::region::{RegionHost, RegionLink, Standing};
use tidegate_state::SystemClock;

use super::nodes::Nodes;
use super::removals::Removals;
use super::{AgentSetup, AgentStartError, LOCK_FILE};
use crate::data_folder::{self, FolderLock, write_private};

/// The format that this release writes.
const FORMAT: u32 = 1;

/// What an agent's folder is for.
const FILE: &str = "agent.json";

/// What an agent keeps of its own settings, so that its folder can be used without it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AgentFile {
    format: u32,
    region: String,
    nodes: u32,
    /// What it trusts beside the machine's certificates.
    #[serde(default)]
    trusted: Option<PathBuf>,
}

impl AgentFile {
    pub(super) fn new(setup: &AgentSetup) -> Self {
        let (region, trusted) = (setup.region.clone(), setup.trusted.clone());
        AgentFile { format: FORMAT, region, nodes: setup.nodes, trusted }
    }

    /// Writes it. A folder of another region's agent is refused: it would serve that one's data under this one's name.
    pub(super) fn save(&self, data: &Path) -> io::Result<()> {
        if let Ok(before) = AgentFile::read(data)
            && before.region != self.region
        {
            return Err(io::Error::other(format!("it is that of an agent of region {}", before.region)));
        }
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        write_private(&data.join(FILE), &text)
    }

    fn read(data: &Path) -> io::Result<Self> {
        let file: Self = serde_json::from_slice(&std::fs::read(data.join(FILE))?).map_err(io::Error::other)?;
        if file.format != FORMAT {
            let why = format!("format {} is not known; this release reads {FORMAT}", file.format);
            return Err(io::Error::other(why));
        }
        Ok(file)
    }
}

/// A region on its folder, with nobody at the other end.
pub(super) struct OfflineAgent {
    host: RegionHost,
    pub(super) region: Arc<HostedRegion>,
    pub(super) nodes: Nodes,
    pub(super) removals: Removals,
    _lock: FolderLock,
}

impl OfflineAgent {
    pub(super) async fn stop(self) {
        self.host.stop().await;
    }
}

/// Takes the folder of an agent that does not run.
pub(super) async fn offline(data: &Path) -> Result<OfflineAgent, AgentStartError> {
    let failed = |source| AgentStartError::Data { path: data.to_path_buf(), source };
    let file = AgentFile::read(data).map_err(|error| {
        failed(match error.kind() {
            io::ErrorKind::NotFound => io::Error::other("no agent has ever run there"),
            _ => error,
        })
    })?;
    let lock = data_folder::take(data, LOCK_FILE)?;
    let nowhere = ArtifactStore::new(Arc::new(object_store::memory::InMemory::new()));
    let nodes = Nodes::open(data, http_client(file.trusted.as_deref())?, None).map_err(failed)?;
    let removals = Removals::open(data).map_err(failed)?;
    let mut options = HostOptions::new(data.join("regions"), nowhere);
    options.token = nodes.token();
    options.more_nodes = nodes.known();
    let setup = RegionSetup { name: file.region.clone(), nodes: file.nodes, shares_source: false };
    let links = Arc::new(|region: &str| Ok(Arc::new(NoLink(region.to_owned())) as Arc<dyn RegionLink>));
    let host = RegionHost::start_linked(links, Arc::new(SystemClock), options, [setup]).await?;
    let region = host.hosted(&file.region).expect("it was started just now");
    // It does not take long to find out that nobody is there.
    let mut standing = region.agent().standing();
    let _ = standing.wait_for(|standing| !matches!(standing, Standing::Starting)).await;
    Ok(OfflineAgent { host, region, nodes, removals, _lock: lock })
}

/// A link to nobody.
struct NoLink(String);

fn nobody<T>() -> Result<T, LinkError> {
    Err(LinkError::Unavailable { why: "the agent is not connected".to_owned() })
}

#[async_trait]
impl RegionLink for NoLink {
    fn region(&self) -> &str {
        &self.0
    }

    async fn host(&self, _: &HostClaim) -> Result<HostGrant, LinkError> {
        nobody()
    }

    async fn release(&self, _: Holder) -> Result<(), LinkError> {
        nobody()
    }

    async fn watch(&self, _: Option<Position>) -> Result<Box<dyn AssignmentWatch>, LinkError> {
        nobody()
    }

    async fn report(&self, _: Holder, _: &str, _: Option<Report>) -> Result<(), LinkError> {
        nobody()
    }
}
