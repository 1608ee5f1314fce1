//! The nodes of a region that are processes of their own.
//!
//! A node announces itself again and again. The agent keeps whom it has taken in, with the secret that it was told, so that
//! after a restart it knows its nodes; one that has gone counts as silent until it is back, or an operator removes it: a node
//! that is stopped in order is one that will be started again more often than not. A process that was removed is told to end,
//! and is known by its secret; started anew, it joins as any other.
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
use tidegate_rollout::region::remote::HttpClient;

use super::AgentApp;
use super::service::ADDRESS_BYTES_MAX;
use crate::data_folder::write_private;
use crate::http::errors::{ApiError, ApiResult};
use crate::http::extract::{Body, Path as PathIds};
use crate::node::ANNOUNCE_EVERY;
use crate::routes::artifacts;

/// Where an agent keeps whom it has taken in.
const FILE: &str = "nodes.json";

/// How many nodes of their own a region has at most.
const NODES_MAX: usize = 128;

/// How long after it was last heard of a node may be elsewhere: two announcements of it would have come by then.
const GONE_AFTER: Duration = ANNOUNCE_EVERY.saturating_mul(3);

/// The nodes of their own of one region.
#[derive(Clone)]
pub(super) struct Nodes(Arc<Known>);

struct Known {
    file: PathBuf,
    /// Reaches nodes.
    http: HttpClient,
    /// Since when nodes can have been heard of, if an agent runs.
    since: Option<Instant>,
    /// The token by which the agent hosts its region; it goes with every order.
    token: Arc<AtomicU64>,
    nodes: Mutex<Members>,
}

/// Who belongs to the region, and who does no more.
#[derive(Default)]
struct Members {
    there: BTreeMap<String, KnownNode>,
    /// Those that were removed and may still run.
    removed: BTreeMap<String, Announced>,
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
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
}

/// What came of an announcement.
enum Taken {
    /// The node was not known before.
    New(RegionNode),
    /// It is somewhere else than before.
    Moved(String),
    /// Nothing is new about where it is.
    Known,
}

/// Why a node is not taken in.
enum NotTaken {
    /// It was removed, and runs on.
    Removed,
    Refused(String),
}

/// Why a node is not removed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotRemoved {
    /// There is none of this name.
    Unknown { known: Vec<String> },
    /// It serves, or may: why that is known or not.
    MayServe { address: String, why: String },
    /// That it is removed can't be kept.
    Disk(String),
}

impl Announced {
    fn place(&self) -> Result<NodePlace, String> {
        let address = self.address.parse().map_err(|error| format!("{:?} is no address: {error}", self.address))?;
        Ok(NodePlace { address, secret: self.secret.clone() })
    }
}

impl Nodes {
    /// Whom this folder's agent has taken in before. Blocks.
    pub(super) fn open(data: &Path, http: HttpClient, since: Option<Instant>) -> io::Result<Self> {
        let file = data.join(FILE);
        let kept: BTreeMap<String, Announced> = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let token = Arc::new(AtomicU64::new(0));
        let mut members = Members::default();
        for (name, announced) in kept {
            if announced.removed {
                members.removed.insert(name, announced);
                continue;
            }
            let place = announced.place().map_err(io::Error::other)?;
            let engine = RemoteEngine::new(place, Arc::clone(&token), http.clone());
            members.there.insert(name, KnownNode { announced, engine, heard: None });
        }
        Ok(Nodes(Arc::new(Known { file, http, since, token, nodes: Mutex::new(members) })))
    }

    /// Where the agent writes the token by which it hosts its region.
    pub(super) fn token(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.token)
    }

    /// Those that were taken in before.
    pub(super) fn known(&self) -> Vec<RegionNode> {
        let nodes = self.0.nodes.lock();
        nodes.there.iter().map(|(name, node)| region_node(name, &node.engine)).collect()
    }

    /// Takes in a node, or notes where it is now. Blocks where anything is new.
    fn take(&self, name: &str, announced: Announced, now: Instant) -> Result<Taken, NotTaken> {
        let place = announced.place().map_err(NotTaken::Refused)?;
        let mut nodes = self.0.nodes.lock();
        if nodes.removed.get(name).is_some_and(|removed| removed.secret == announced.secret) {
            return Err(NotTaken::Removed);
        }
        let full = nodes.there.len() >= NODES_MAX;
        let new = match nodes.there.get_mut(name) {
            Some(known) if known.announced == announced => {
                known.heard = Some(now);
                return Ok(Taken::Known);
            }
            // One that was started again where it was is known by its address.
            Some(KnownNode { announced: other, heard: Some(heard), .. })
                if other.address != announced.address && now.duration_since(*heard) < GONE_AFTER =>
            {
                return Err(NotTaken::Refused(format!(
                    "a process at {} announces itself by this name, too; where that has just ended, this one is taken in \
                     {GONE_AFTER:?} after it was last heard of",
                    other.address
                )));
            }
            Some(known) => {
                known.engine.moved(place);
                known.announced = announced;
                known.heard = Some(now);
                Taken::Moved(known.engine.address())
            }
            None if full => {
                return Err(NotTaken::Refused(format!("the region has {NODES_MAX} nodes already, the limit")));
            }
            None => {
                let engine = RemoteEngine::new(place, self.token(), self.0.http.clone());
                let node = region_node(name, &engine);
                nodes.there.insert(name.to_owned(), KnownNode { announced, engine, heard: Some(now) });
                Taken::New(node)
            }
        };
        // Another process of this name is meant to be there.
        nodes.removed.remove(name);
        self.keep(&nodes).map_err(|why| NotTaken::Refused(format!("it could not be kept on the disk: {why}")))?;
        Ok(new)
    }

    /// Lets go of a node: where it was, and whether it was heard of a moment ago. One that serves, as far as can be known, is
    /// not let go of unless that is forced. Blocks.
    pub(super) fn remove(&self, name: &str, is_forced: bool, now: Instant) -> Result<(String, bool), NotRemoved> {
        let mut nodes = self.0.nodes.lock();
        let Some(known) = nodes.there.get(name) else {
            return Err(NotRemoved::Unknown { known: nodes.there.keys().cloned().collect() });
        };
        let address = known.announced.address.clone();
        let serves = may_serve(known.heard, self.0.since, now);
        if let Some(why) = serves.as_ref().filter(|_| !is_forced) {
            return Err(NotRemoved::MayServe { address, why: why.clone() });
        }
        let Some(known) = nodes.there.remove(name) else { return Ok((address, false)) };
        while nodes.removed.len() >= NODES_MAX {
            nodes.removed.pop_first();
        }
        nodes.removed.insert(name.to_owned(), Announced { removed: true, ..known.announced.clone() });
        if let Err(why) = self.keep(&nodes) {
            nodes.removed.remove(name);
            nodes.there.insert(name.to_owned(), known);
            return Err(NotRemoved::Disk(why));
        }
        Ok((address, serves.is_some()))
    }

    fn keep(&self, members: &Members) -> Result<(), String> {
        let there = members.there.iter().map(|(name, node)| (name, &node.announced));
        // Nobody is in both.
        let kept: BTreeMap<&String, &Announced> = there.chain(&members.removed).collect();
        let text = serde_json::to_string_pretty(&kept).map_err(|error| error.to_string())?;
        write_private(&self.0.file, &text).map_err(|error| error.to_string())
    }
}

/// Why a node serves, or may, as far as an agent can know that has run since then.
fn may_serve(heard: Option<Instant>, since: Option<Instant>, now: Instant) -> Option<String> {
    match (heard, since) {
        (Some(heard), _) => {
            let ago = now.saturating_duration_since(heard);
            (ago < GONE_AFTER).then(|| format!("it was heard of {} s ago", ago.as_secs()))
        }
        (None, Some(since)) => (now.saturating_duration_since(since) < GONE_AFTER).then(|| {
            format!(
                "the agent has just been started, and hears of all nodes that run within {} s",
                GONE_AFTER.as_secs()
            )
        }),
        (None, None) => Some("no agent runs on this folder that could hear of it".to_owned()),
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
    Body(announcement): Body<NodeAnnouncement>,
) -> ApiResult<Json<NodeWelcome>> {
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
    if [&announcement.address, &announcement.secret].iter().any(|text| text.len() > ADDRESS_BYTES_MAX) {
        return Err(refused(format!("its address or its secret has over {ADDRESS_BYTES_MAX} bytes")));
    }
    let nodes = app.0.nodes.clone();
    let NodeAnnouncement { address, secret, access_mark, look_again } = announcement;
    let announced = Announced { address, secret, removed: false };
    let named = name.clone();
    let taken = tokio::task::spawn_blocking(move || nodes.take(&name, announced, Instant::now()))
        .await
        .map_err(ApiError::internal)?;
    match taken {
        Ok(Taken::New(node)) => {
            tracing::info!(region = app.0.region, node = node.name, "a node has joined");
            app.0.hosted.agent().add_node(node);
        }
        Ok(Taken::Moved(address)) => app.0.hosted.agent().node_moved(&named, address),
        Ok(Taken::Known) => {}
        Err(NotTaken::Refused(why)) => return Err(refused(why)),
        Err(NotTaken::Removed) => return Err(removed(&app.0.region)),
    }
    let guard = &app.0.guard;
    if look_again && guard.is_needed() {
        guard.look_again().await;
    }
    Ok(Json(NodeWelcome { region: app.0.region.clone(), access: guard.known_beside(access_mark.as_deref()) }))
}

fn removed(region: &str) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        ErrorBody::new(
            code::NODE_REMOVED,
            format!("The node does not belong to region `{region}` any more."),
            "An operator has removed it (`tidegate agent remove-node`).",
            "It is commanded no more: what it served gets old.",
            "End it. Started again, it joins the region again.",
        ),
    )
}

/// A file of the region's own copy of an artifact, for its nodes.
pub(super) async fn artifact(
    State(app): State<AgentApp>,
    PathIds((artifact, file)): PathIds<(String, String)>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let permit = app.0.downloads.enter()?;
    artifacts::serve(&app.0.artifacts, &artifact, &file, &headers, permit).await
}

#[cfg(test)]
mod tests {
    use tidegate_rollout::region::remote::http_client;

    use super::*;

    #[tokio::test]
    async fn a_name_is_one_process_until_that_was_not_heard_of_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let nodes = open(folder.path(), None);
        let at = |port: u16, secret: &str| Announced {
            address: format!("http://127.0.0.1:{port}"),
            secret: secret.to_owned(),
            removed: false,
        };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let take = |nodes: &Nodes, at, when| match nodes.take("n", at, when) {
            Ok(taken) => Ok(matches!(taken, Taken::New(_))),
            Err(NotTaken::Refused(why)) => Err(why),
            Err(NotTaken::Removed) => panic!("nobody was removed"),
        };
        assert_eq!(take(&nodes, at(1, "a"), start), Ok(true));
        assert_eq!(take(&nodes, at(1, "a"), after(5)), Ok(false));
        let refused = take(&nodes, at(2, "b"), after(6)).unwrap_err();
        assert!(refused.contains("127.0.0.1:1"), "{refused}");
        // Started again where it was, with another secret.
        assert_eq!(take(&nodes, at(1, "c"), after(7)), Ok(false));
        assert!(take(&nodes, at(2, "b"), after(8)).is_err());
        let gone = after(7) + GONE_AFTER;
        assert_eq!(take(&nodes, at(2, "b"), gone), Ok(false));
        assert_eq!(nodes.known()[0].address.as_ref().map(ToString::to_string), Some("http://127.0.0.1:2".to_owned()));
        // After a restart the agent has heard of nobody.
        let nodes = open(folder.path(), None);
        assert_eq!(take(&nodes, at(3, "d"), start), Ok(false));
    }

    fn open(folder: &Path, since: Option<Instant>) -> Nodes {
        Nodes::open(folder, http_client(None).unwrap(), since).unwrap()
    }

    #[test]
    fn what_serves_is_not_removed_unless_that_is_forced_and_a_removed_process_is_not_taken_in_again() {
        let folder = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let at = |secret: &str| Announced {
            address: "http://127.0.0.1:1".to_owned(),
            secret: secret.to_owned(),
            removed: false,
        };
        let nodes = open(folder.path(), Some(start));
        for name in ["m", "n"] {
            assert!(matches!(nodes.take(name, at("a"), start), Ok(Taken::New(_))));
        }
        assert!(matches!(nodes.remove("n", false, after(14)), Err(NotRemoved::MayServe { .. })));
        assert_eq!(nodes.remove("n", true, after(14)), Ok(("http://127.0.0.1:1".to_owned(), true)));
        let known = vec!["m".to_owned()];
        assert_eq!(nodes.remove("n", true, after(14)), Err(NotRemoved::Unknown { known }));
        assert!(matches!(nodes.take("n", at("a"), after(15)), Err(NotTaken::Removed)));
        // Also after a restart of the agent, which does not know at once who runs; and without an agent nobody does.
        let nodes = open(folder.path(), Some(after(20)));
        assert!(matches!(nodes.take("n", at("a"), after(20)), Err(NotTaken::Removed)));
        assert!(matches!(nodes.remove("m", false, after(30)), Err(NotRemoved::MayServe { .. })));
        let offline = open(folder.path(), None);
        assert!(matches!(offline.remove("m", false, after(100)), Err(NotRemoved::MayServe { .. })));
        assert_eq!(nodes.remove("m", false, after(35)), Ok(("http://127.0.0.1:1".to_owned(), false)));
        // Started again, it is another process.
        assert!(matches!(nodes.take("n", at("b"), after(36)), Ok(Taken::New(_))));
        assert_eq!(open(folder.path(), None).known().len(), 1);
    }
}
