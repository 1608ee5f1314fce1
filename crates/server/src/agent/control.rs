//! Break glass: pinning a version in the region itself.
//!
//! A running agent takes orders on a loopback port of its own. Whoever can read its data folder may give them: the port's
//! address and a secret, drawn anew at each start, lie there, for the folder's owner alone. Where no agent runs, the order
//! is carried out on the folder itself, by the same code, with nobody to report to.

use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::Deserialize;
use tidegate_api::agent::{PinAnswer, PinOrder, StorePins};
use tidegate_api::{ErrorBody, PinView, code};
use tidegate_rollout::region::host::HostedRegion;
use tidegate_rollout::region::pin::{PinRefused, PinRequest, Pins};
use tidegate_rollout::region::remote::RemoteError;
use tidegate_rollout::region::{RemoteClient, RemoteOptions, TokenFile};

use super::{AgentApp, AgentStartError, LOCK_FILE, offline, secret};
use crate::data_folder::{self, FolderError, write_private};
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Body, Path, Query};
use crate::http::guard::{self, Hosts};
use crate::views::region::{past_pin_view, pin_view};

/// The control port's address, in the agent's data folder.
const ADDRESS_FILE: &str = "control.address";
/// Its secret.
const SECRET_FILE: &str = "control.secret";

/// How long an order may take: what is pinned is read back from end to end first.
const ORDER_LIMIT: Duration = Duration::from_secs(35 * 60);

/// What the control port's handlers can reach.
#[derive(Clone)]
struct Control {
    app: AgentApp,
    secret: String,
}

/// The control port's service, after its address and a new secret were written into the folder.
pub(super) fn router(app: AgentApp, data: &FilePath, address: SocketAddr) -> std::io::Result<Router> {
    let secret = secret::draw();
    write_private(&data.join(SECRET_FILE), &secret)?;
    write_private(&data.join(ADDRESS_FILE), &format!("http://{address}"))?;
    let http = app.0.http.clone();
    let control = Control { app, secret };
    let routes = Router::new()
        .route("/v1/pins", get(list).fallback(guard::no_method))
        .route("/v1/pins/{store}", put(take_pin).delete(take_unpin).fallback(guard::no_method))
        .layer(DefaultBodyLimit::max(64 * 1024))
        .layer(from_fn_with_state(control.clone(), check_secret));
    Ok(guard::enclose(routes, Arc::new(Hosts::default()), http).with_state(control))
}

async fn check_secret(State(control): State<Control>, request: Request, next: Next) -> Response {
    if secret::is_shown(request.headers(), &control.secret) {
        return next.run(request).await;
    }
    ApiError::new(
        StatusCode::FORBIDDEN,
        ErrorBody::new(
            code::REFUSED,
            "The order is refused.",
            "It does not have the secret that lies in the agent's data folder.",
            NOTHING_CHANGED,
            "Give orders with `tidegate agent pin … --data DIR`, as who may read the folder.",
        ),
    )
    .into_response()
}

async fn list(State(control): State<Control>) -> Json<Vec<StorePins>> {
    Json(pins_of(&control.app.0.hosted))
}

async fn take_pin(
    State(control): State<Control>,
    Path(store): Path<String>,
    Body(order): Body<PinOrder>,
) -> ApiResult<Json<PinAnswer>> {
    give(&control.app.0.hosted, &store, order).await.map(Json).map_err(|body| refused(*body))
}

#[derive(Deserialize)]
struct UnpinQuery {
    #[serde(default)]
    by: String,
}

async fn take_unpin(
    State(control): State<Control>,
    Path(store): Path<String>,
    Query(query): Query<UnpinQuery>,
) -> ApiResult<Json<PinView>> {
    lift(&control.app.0.hosted, &store, &query.by).await.map(Json).map_err(|body| refused(*body))
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
                Err(FolderError::InUse { .. }) => Err(ControlError::Unreachable { why: error.to_string() }),
                Err(error) => Err(AgentStartError::from(error).into()),
            }
        }
        RemoteError::Refused { body, .. } => Err(ControlError::Refused(body)),
    }
}
