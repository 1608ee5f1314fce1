//! Orders that are given on the agent's machine: pinning a version in the region itself (break glass), and letting go of a
//! node that is gone for good.
//!
//! A running agent takes orders on a loopback port of its own. Whoever can read its data folder may give them: the port's
//! address and a secret, drawn anew at each start, lie there, for the folder's owner alone. Where no agent runs, the order
//! is carried out on the folder itself, by the same code, with nobody to report to.

use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::{Json, Router};
use serde::Deserialize;
use tidegate_api::agent::{NodeRemoved, PinAnswer, PinOrder, StorePins};
use tidegate_api::{ErrorBody, PinView, code};
use tidegate_rollout::region::host::HostedRegion;
use tidegate_rollout::region::pin::{PinRefused, PinRequest, Pins};
use tidegate_rollout::region::remote::RemoteError;
use tidegate_rollout::region::{RemoteClient, RemoteOptions, TokenFile};
use tidegate_state::{Clock, SystemClock, Timestamp};

use super::nodes::{Nodes, NotRemoved};
use super::removals::{Removals, Removed};
use super::{AgentApp, AgentStartError, LOCK_FILE, offline, secret};
use crate::access::region::{RegionGate, Secret, region_guard};
use crate::access::table::Process;
use crate::config::ServerLimits;
use crate::data_folder::{self, FolderLockError, write_private};
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Body, Path, Query};
use crate::http::guard::{self, Hosts};
use crate::routes::{Group, Route, Unruled, assemble};
use crate::views::ms;
use crate::views::region::{past_pin_view, pin_view};

/// The control port's address, in the agent's data folder.
const ADDRESS_FILE: &str = "control.address";
/// Its secret.
const SECRET_FILE: &str = "control.secret";

/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 1024;

/// How long an order may take: what is pinned is read back from end to end first.
const ORDER_LIMIT: Duration = Duration::from_secs(35 * 60);

/// Every route for orders.
pub(crate) fn routes() -> Vec<Route<AgentApp>> {
    vec![
        Route::new("/v1/pins", Group::Orders).on("get", list),
        Route::new("/v1/pins/{store}", Group::Orders).on("put", take_pin).on("delete", take_unpin),
        Route::new("/v1/nodes/{node}", Group::Orders).on("delete", take_removal),
    ]
}

/// The control port's service, after its address and a new secret were written into the folder.
pub(super) fn router(app: AgentApp, data: &FilePath, address: SocketAddr) -> std::io::Result<Result<Router, Unruled>> {
    let text = secret::draw();
    write_private(&data.join(SECRET_FILE), &text)?;
    write_private(&data.join(ADDRESS_FILE), &format!("http://{address}"))?;
    let secret = Secret {
        text: text.into(),
        whose: "that lies in the agent's data folder",
        what_to_do: "Give orders with `tidegate agent … --data DIR`, as who may read the folder.",
    };
    let region = app.0.guard.clone();
    let routes = assemble(Process::Orders, routes(), &ServerLimits::default(), |route, rules, is_look_up| {
        let gate = RegionGate { guard: region.clone(), rules, is_look_up, secret: Some(secret.clone()) };
        route.layer(from_fn_with_state(gate, region_guard))
    });
    let http = app.0.http.clone();
    Ok(routes.map(|routes| guard::enclose(routes, Arc::new(Hosts::default()), http).with_state(app)))
}

async fn list(State(app): State<AgentApp>) -> Json<Vec<StorePins>> {
    Json(pins_of(&app.0.hosted))
}

async fn take_pin(
    State(app): State<AgentApp>,
    Path(store): Path<String>,
    Body(order): Body<PinOrder>,
) -> ApiResult<Json<PinAnswer>> {
    give(&app.0.hosted, &store, order).await.map(Json).map_err(|body| refused(*body))
}

#[derive(Deserialize)]
struct UnpinQuery {
    #[serde(default)]
    by: String,
}

async fn take_unpin(
    State(app): State<AgentApp>,
    Path(store): Path<String>,
    Query(query): Query<UnpinQuery>,
) -> ApiResult<Json<PinView>> {
    lift(&app.0.hosted, &store, &query.by).await.map(Json).map_err(|body| refused(*body))
}

/// Lets go of a node.
#[derive(Clone, Debug, Deserialize)]
pub struct NodeRemoval {
    /// Who says so.
    pub by: String,
    /// Why, for the record.
    pub reason: String,
    /// Also one that serves.
    #[serde(default)]
    pub force: bool,
}

async fn take_removal(
    State(app): State<AgentApp>,
    Path(node): Path<String>,
    Query(removal): Query<NodeRemoval>,
) -> ApiResult<Json<NodeRemoved>> {
    let removed = let_go(&app.0.hosted, &app.0.nodes, (&app.0.removals, app.0.clock.now()), &node, removal).await;
    removed.map(Json).map_err(|body| refused(*body))
}

async fn let_go(
    region: &HostedRegion,
    nodes: &Nodes,
    (removals, now): (&Removals, Timestamp),
    node: &str,
    removal: NodeRemoval,
) -> Result<NodeRemoved, Box<ErrorBody>> {
    if removal.reason.trim().is_empty() || removal.reason.len() > REASON_BYTES_MAX {
        let why = format!("a reason has 1 to {REASON_BYTES_MAX} bytes");
        return Err(not_removed(region, node, &why, NOTHING_CHANGED, "Say why (`--reason`)."));
    }
    if region.has_own_node(node) {
        let why = "it is one of the nodes within the agent's own process";
        let to_do = "Start the agent with fewer of them (`--nodes`).";
        return Err(not_removed(region, node, why, NOTHING_CHANGED, to_do));
    }
    let (taken, kept, order, name) = (nodes.clone(), removals.clone(), removal.clone(), node.to_owned());
    let removed = tokio::task::spawn_blocking(move || {
        let (address, was_heard) = taken.remove(&name, order.force, Instant::now())?;
        let NodeRemoval { by, reason, force: forced } = order;
        let removed = Removed { node: name.clone(), address: address.clone(), by, reason, forced, at: ms(now) };
        if let Err(error) = kept.add(removed) {
            tracing::error!(node = name, %error, "that the node was removed could not be kept on the disk: the audit trail will not have it");
        }
        Ok((address, was_heard))
    });
    let removed = removed.await;
    let removed =
        removed.map_err(|error| not_removed(region, node, &error.to_string(), NOTHING_CHANGED, "Try again."))?;
    let (address, was_heard) = removed.map_err(|error| match error {
        NotRemoved::Unknown { known } => {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let why = format!("the region has no such node; of nodes that are processes of their own it has {known}");
            not_removed(region, node, &why, NOTHING_CHANGED, "Name one of those.")
        }
        NotRemoved::MayServe { address, why } => not_removed(
            region,
            node,
            &format!("{why}: at {address} it serves, and pushes wait for it as for the others"),
            "Nothing was changed. Forced, it would be told to end: reads that go there fail then, and pushes wait for the \
             others alone.",
            "Stop it for good, its supervisor first, and repeat the order 15 s later; or force it (`--force`).",
        ),
        NotRemoved::Disk(why) => {
            let why = format!("that could not be kept on the agent's disk: {why}");
            not_removed(region, node, &why, NOTHING_CHANGED, "Mend the disk, and repeat the order.")
        }
    })?;
    region.agent().remove_node(node);
    tracing::warn!(
        region = region.name(),
        node,
        address,
        by = removal.by,
        reason = removal.reason,
        forced = removal.force,
        "a node was removed"
    );
    Ok(NodeRemoved {
        region: region.name().to_owned(),
        node: node.to_owned(),
        address,
        was_heard,
        left: region.agent().node_names(),
    })
}

fn not_removed(region: &HostedRegion, node: &str, why: &str, follows: &str, to_do: &str) -> Box<ErrorBody> {
    let what = format!("Node `{node}` of region `{}` is not removed.", region.name());
    Box::new(ErrorBody::new(code::REFUSED, what, format!("{}.", sentence(why)), follows, to_do))
}

/// With a capital at its beginning.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn refused(body: ErrorBody) -> ApiError {
    let status = if body.retryable { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CONFLICT };
    ApiError::new(status, body)
}

fn pins_of(region: &HostedRegion) -> Vec<StorePins> {
    let shown = |(store, pins): (String, Pins)| StorePins {
        store,
        pin: pins.pin.as_ref().map(pin_view),
        past: pins.past.iter().map(past_pin_view).collect(),
    };
    region.agent().pins().into_iter().map(shown).filter(|pins| pins.pin.is_some() || !pins.past.is_empty()).collect()
}

async fn give(region: &HostedRegion, store: &str, order: PinOrder) -> Result<PinAnswer, Box<ErrorBody>> {
    let request = PinRequest { version: order.version, reason: order.reason, by: order.by };
    let pinned = region.agent().pin(store, request).await.map_err(|error| refusal("nothing was pinned", &error))?;
    Ok(PinAnswer {
        region: region.name().to_owned(),
        store: store.to_owned(),
        pin: pin_view(&pinned.pin),
        replaced: pinned.replaced.as_ref().map(pin_view),
        nodes: pinned.nodes,
        of_nodes: pinned.of_nodes,
        serving: pinned.serving,
    })
}

async fn lift(region: &HostedRegion, store: &str, by: &str) -> Result<PinView, Box<ErrorBody>> {
    let lifted = region.agent().unpin(store, by).await.map_err(|error| refusal("no pin was lifted", &error))?;
    Ok(past_pin_view(&lifted))
}

fn refusal(what: &str, error: &PinRefused) -> Box<ErrorBody> {
    let to_do = match error {
        PinRefused::ReasonMissing => "Say why (`--reason`).",
        PinRefused::TooLong { .. } => "Say it in fewer words.",
        PinRefused::NotHeld { .. } => "Pin one of the versions that it holds.",
        PinRefused::NoSuchStore { .. } => "Name one of the stores that it knows.",
        PinRefused::NotPinned { .. } => "Nothing has to be done: the region does what its assignment says.",
        PinRefused::HostedElsewhere { .. } => "Give the order to the agent that hosts the region.",
        PinRefused::Disk { .. } => "Mend the disk that is named, and try again.",
        PinRefused::Unavailable { .. } => "Try again.",
    };
    let body = ErrorBody::new(code::REFUSED, what, format!("{error}."), "The region serves what it served.", to_do);
    Box::new(body.with_retryable(matches!(error, PinRefused::Unavailable { .. })))
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// It was refused.
    #[error("{0}")]
    Refused(Box<ErrorBody>),
    /// The folder is no agent's, or can't be used.
    #[error(transparent)]
    Folder(#[from] AgentStartError),
    /// An agent uses the folder, and can't be reached.
    #[error("an agent runs on this folder, and its control port can't be reached: {why}")]
    Unreachable {
        /// Why.
        why: String,
    },
}

/// Pins a version of a store in the region that is hosted on this folder, whether or not an agent runs there.
///
/// # Errors
/// See [`ControlError`].
pub async fn pin_version(data: &FilePath, store: &str, order: PinOrder) -> Result<PinAnswer, ControlError> {
    match running(data) {
        Some(client) => {
            let sent = client.json(&["v1", "pins", store], |http, url| http.put(url).json(&order)).await;
            match sent {
                Ok(answer) => return Ok(answer),
                Err(error) => retry_on_disk(data, error)?,
            }
        }
        None => tracing::debug!("no agent has run on this folder"),
    }
    let agent = offline(data).await?;
    let given = give(&agent.region, store, order).await.map_err(ControlError::Refused);
    agent.stop().await;
    given
}

/// Lifts the pin of a store in the region that is hosted on this folder, whether or not an agent runs there.
///
/// # Errors
/// See [`ControlError`].
pub async fn unpin(data: &FilePath, store: &str, by: &str) -> Result<PinView, ControlError> {
    if let Some(client) = running(data) {
        let segments = ["v1", "pins", store];
        let sent = client.json(&segments, |http, mut url| {
            url.query_pairs_mut().append_pair("by", by);
            http.delete(url)
        });
        match sent.await {
            Ok(lifted) => return Ok(lifted),
            Err(error) => retry_on_disk(data, error)?,
        }
    }
    let agent = offline(data).await?;
    let lifted = lift(&agent.region, store, by).await.map_err(ControlError::Refused);
    agent.stop().await;
    lifted
}

/// What is pinned in the region that is hosted on this folder, and was.
///
/// # Errors
/// See [`ControlError`].
pub async fn pins(data: &FilePath) -> Result<Vec<StorePins>, ControlError> {
    if let Some(client) = running(data) {
        match client.json(&["v1", "pins"], |http, url| http.get(url)).await {
            Ok(pins) => return Ok(pins),
            Err(error) => retry_on_disk(data, error)?,
        }
    }
    let agent = offline(data).await?;
    let pins = pins_of(&agent.region);
    agent.stop().await;
    Ok(pins)
}

/// Lets go of a node of the region that is hosted on this folder, whether or not an agent runs there.
///
/// # Errors
/// See [`ControlError`].
pub async fn remove_node(data: &FilePath, node: &str, removal: NodeRemoval) -> Result<NodeRemoved, ControlError> {
    if let Some(client) = running(data) {
        let segments = ["v1", "nodes", node];
        let sent = client.json(&segments, |http, mut url| {
            let NodeRemoval { by, reason, force } = &removal;
            let force = force.to_string();
            url.query_pairs_mut().append_pair("by", by).append_pair("reason", reason).append_pair("force", &force);
            http.delete(url)
        });
        match sent.await {
            Ok(removed) => return Ok(removed),
            Err(error) => retry_on_disk(data, error)?,
        }
    }
    let agent = offline(data).await?;
    let kept = (&agent.removals, SystemClock.now());
    let removed = let_go(&agent.region, &agent.nodes, kept, node, removal).await.map_err(ControlError::Refused);
    agent.stop().await;
    removed
}

/// The agent that last ran on this folder.
fn running(data: &FilePath) -> Option<RemoteClient> {
    let address = std::fs::read_to_string(data.join(ADDRESS_FILE)).ok()?;
    let mut options = RemoteOptions::new([address.trim()], "operator");
    options.token = Some(TokenFile::new(data.join(SECRET_FILE)));
    options.request_limit = ORDER_LIMIT;
    RemoteClient::new(options).ok()
}

/// Whether an order that a running agent did not answer may be carried out on the folder: only if none runs there.
fn retry_on_disk(data: &FilePath, error: RemoteError) -> Result<(), ControlError> {
    match error {
        // Something else listens at that port by now.
        RemoteError::Refused { status: 403 | 404, .. } | RemoteError::Unreachable { .. } => {
            match data_folder::take(data, LOCK_FILE) {
                Ok(_) => Ok(()),
                Err(FolderLockError::Held { .. }) => Err(ControlError::Unreachable { why: error.to_string() }),
                Err(error) => Err(AgentStartError::from(error).into()),
            }
        }
        RemoteError::Refused { body, .. } => Err(ControlError::Refused(body)),
    }
}
