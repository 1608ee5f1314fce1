//! The nodes of a region that are processes of their own.
//!
//! A node announces itself again and again. The agent keeps whom it has taken in, with the secret that it was told, so that
//! after a restart it knows its nodes; one that has gone counts as silent until it is back.
//!
//! Invariant: a name is one process. Were it two that announce themselves by turns, each would be told to load what the other
//! has, and one of them would serve an older version while the region counts as up to date.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate_api::agent::{NodeAnnouncement, NodeWelcome};
use tidegate_api::{ErrorBody, code};
use tidegate_rollout::engine::remote::{NodePlace, RemoteEngine};
use tidegate_rollout::region::RegionNode;

use super::AgentApp;
use crate::data_folder::write_private;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Body, Path as PathIds};
use crate::node::ANNOUNCE_EVERY;
use crate::routes::artifacts;

/// Where an agent keeps whom it has taken in.
const FILE: &str = "nodes.json";

/// How many nodes of their own a region has at most.
const NODES_MAX: usize = 128;

/// How long after it was last heard of a node may be elsewhere: two announcements of it would have come by then.
const GONE_AFTER: Duration = ANNOUNCE_EVERY.saturating_mul(3);

/// The longest address and secret.
const TEXT_BYTES_MAX: usize = 256;

/// The nodes of their own of one region.
#[derive(Clone)]
pub(super) struct Nodes(Arc<Known>);

struct Known {
    file: PathBuf,
    /// The token by which the agent hosts its region; it goes with every order.
    token: Arc<AtomicU64>,
    nodes: Mutex<BTreeMap<String, KnownNode>>,
}

struct KnownNode {
    announced: Announced,
    engine: RemoteEngine,
    /// When it last announced itself, if it has since this agent was started.
    heard: Option<Instant>,
}

/// What is kept of a node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Announced {
    address: String,
    secret: String,
}

impl Announced {
    fn place(&self) -> Result<NodePlace, String> {
        let address = self.address.parse().map_err(|error| format!("{:?} is no address: {error}", self.address))?;
        Ok(NodePlace { address, secret: self.secret.clone() })
    }
}

impl Nodes {
    /// Whom this folder's agent has taken in before. Blocks.
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let file = data.join(FILE);
        let kept: BTreeMap<String, Announced> = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let token = Arc::new(AtomicU64::new(0));
        let mut nodes = BTreeMap::new();
        for (name, announced) in kept {
            let place = announced.place().map_err(io::Error::other)?;
            let engine = RemoteEngine::new(place, Arc::clone(&token)).map_err(io::Error::other)?;
            nodes.insert(name, KnownNode { announced, engine, heard: None });
        }
        Ok(Nodes(Arc::new(Known { file, token, nodes: Mutex::new(nodes) })))
    }

    /// Where the agent writes the token by which it hosts its region.
    pub(super) fn token(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.token)
    }

    /// Those that were taken in before.
    pub(super) fn known(&self) -> Vec<RegionNode> {
        let nodes = self.0.nodes.lock();
        nodes.iter().map(|(name, node)| region_node(name, &node.engine)).collect()
    }

    /// Takes in a node, or notes where it is now. The node, if it was not known before. Blocks where anything is new.
    fn take(&self, name: &str, announced: Announced, now: Instant) -> Result<Option<RegionNode>, String> {
        let place = announced.place()?;
        let mut nodes = self.0.nodes.lock();
        let full = nodes.len() >= NODES_MAX;
        let new = match nodes.get_mut(name) {
            Some(known) if known.announced == announced => {
                known.heard = Some(now);
                return Ok(None);
            }
            // One that was started again where it was is known by its address.
            Some(KnownNode { announced: other, heard: Some(heard), .. })
                if other.address != announced.address && now.duration_since(*heard) < GONE_AFTER =>
            {
                return Err(format!(
                    "a process at {} announces itself by this name, too; where that has just ended, this one is taken in \
                     {GONE_AFTER:?} after it was last heard of",
                    other.address
                ));
            }
            Some(known) => {
                known.engine.moved(place);
                known.announced = announced;
                known.heard = Some(now);
                None
            }
            None if full => {
                return Err(format!("the region has {NODES_MAX} nodes already, the limit"));
            }
            None => {
                let engine = RemoteEngine::new(place, self.token()).map_err(|error| error.to_string())?;
                let node = region_node(name, &engine);
                nodes.insert(name.to_owned(), KnownNode { announced, engine, heard: Some(now) });
                Some(node)
            }
        };
        let kept: BTreeMap<&String, &Announced> = nodes.iter().map(|(name, node)| (name, &node.announced)).collect();
        let text = serde_json::to_string_pretty(&kept).map_err(|error| error.to_string())?;
        write_private(&self.0.file, &text).map_err(|error| format!("it could not be kept on the disk: {error}"))?;
        Ok(new)
    }
}

fn region_node(name: &str, engine: &RemoteEngine) -> RegionNode {
    let engine = engine.clone();
    RegionNode { name: name.to_owned(), address: Some(engine.address()), engine: Arc::new(engine) }
}

/// Takes in a node that announces itself.
pub(super) async fn announce(
    State(app): State<AgentApp>,
    PathIds(name): PathIds<String>,
    headers: HeaderMap,
    Body(announcement): Body<NodeAnnouncement>,
) -> ApiResult<Json<NodeWelcome>> {
    check_token(&app, &headers).await?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let refused = |why: String| {
        ApiError::invalid("The node is not taken in.", format!("{why}."), "Start the node with other settings.")
    };
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_name) {
        return Err(refused("a node's name has 1 to 64 letters, digits, `-`, `_` and `.`".to_owned()));
    }
    if app.0.hosted.has_own_node(&name) {
        return Err(refused(format!("the agent has a node {name} within its own process")));
    }
    if [&announcement.address, &announcement.secret].iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        return Err(refused(format!("its address or its secret has over {TEXT_BYTES_MAX} bytes")));
    }
    let nodes = app.0.nodes.clone();
    let announced = Announced { address: announcement.address, secret: announcement.secret };
    let taken = tokio::task::spawn_blocking(move || nodes.take(&name, announced, Instant::now()))
        .await
        .map_err(ApiError::internal)?;
    if let Some(node) = taken.map_err(refused)? {
        tracing::info!(region = app.0.region, node = node.name, "a node has joined");
        app.0.hosted.agent().add_node(node);
    }
    Ok(Json(NodeWelcome { region: app.0.region.clone() }))
}

/// A file of the region's own copy of an artifact, for its nodes.
pub(super) async fn artifact(
    State(app): State<AgentApp>,
    PathIds((artifact, file)): PathIds<(String, String)>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    check_token(&app, &headers).await?;
    let permit = app.0.downloads.enter()?;
    artifacts::serve(&app.0.artifacts, &artifact, &file, &headers, permit).await
}

/// Whoever belongs to the region has its token, if there is one.
async fn check_token(app: &AgentApp, headers: &HeaderMap) -> ApiResult<()> {
    let Some(file) = &app.0.token else {
        return Ok(());
    };
    if file.is_shown(headers).await {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        ErrorBody::new(
            code::REFUSED,
            "The node is refused.",
            "It does not show the region's token.",
            NOTHING_CHANGED,
            "Start the node with the token file of its agent (`--token-file`).",
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_one_process_until_that_was_not_heard_of_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let nodes = Nodes::open(folder.path()).unwrap();
        let at = |port: u16, secret: &str| Announced {
            address: format!("http://127.0.0.1:{port}"),
            secret: secret.to_owned(),
        };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(nodes.take("n", at(1, "a"), start).unwrap().is_some());
        assert!(nodes.take("n", at(1, "a"), after(5)).unwrap().is_none());
        let refused = nodes.take("n", at(2, "b"), after(6)).map(drop).unwrap_err();
        assert!(refused.contains("127.0.0.1:1"), "{refused}");
        // Started again where it was, with another secret.
        assert!(nodes.take("n", at(1, "c"), after(7)).unwrap().is_none());
        assert!(nodes.take("n", at(2, "b"), after(8)).is_err());
        let gone = after(7) + GONE_AFTER;
        assert!(nodes.take("n", at(2, "b"), gone).unwrap().is_none());
        assert_eq!(nodes.known()[0].address.as_ref().map(ToString::to_string), Some("http://127.0.0.1:2".to_owned()));
        // After a restart the agent has heard of nobody.
        let nodes = Nodes::open(folder.path()).unwrap();
        assert!(nodes.take("n", at(3, "d"), start).unwrap().is_none());
    }
}
