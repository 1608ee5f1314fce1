//! The agent's own HTTP service. Reads are answered as a server answers them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use tidegate_api::{BatchRequest, ErrorBody, code};
use tidegate_rollout::region::Standing;

use super::{AgentApp, nodes};
use crate::config::ServerLimits;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Body, Path, Query};
use crate::http::guard::{self, Hosts, Room};
use crate::http::metrics;
use crate::routes::reads::{LookUp, RegionQuery};
use crate::routes::{ops, reads};

pub(super) fn router(app: AgentApp, hosts: Arc<Hosts>) -> Router {
    let limits = ServerLimits::default();
    let batches = Room::new("look-ups", limits.reads, limits.request_time);
    let http = app.0.http.clone();
    let routes = Router::new()
        .route("/v1/stores/{store}/keys/{key}", get(key).fallback(guard::no_method))
        .route(
            "/v1/stores/{store}/keys:batch",
            post(batch)
                .fallback(guard::no_method)
                .layer(DefaultBodyLimit::max(limits.body_bytes))
                .layer(from_fn_with_state(batches, guard::limit)),
        )
        .route(
            "/v1/nodes/{name}",
            put(nodes::announce).fallback(guard::no_method).layer(DefaultBodyLimit::max(64 * 1024)),
        )
        .route("/v1/artifacts/{artifact}/{file}", get(nodes::artifact).fallback(guard::no_method))
        .route("/healthz", get(ops::health).fallback(guard::no_method))
        .route("/readyz", get(ready).fallback(guard::no_method))
        .route("/metrics", get(measures).fallback(guard::no_method));
    guard::enclose(routes, hosts, http).with_state(app)
}

/// The region that answers, which is the agent's own, whether or not it is named.
fn own_region<'a>(app: &'a AgentApp, named: Option<&str>) -> ApiResult<&'a str> {
    let own = &app.0.region;
    match named {
        Some(region) if region != own => Err(ApiError::region_unknown(region, std::slice::from_ref(own))),
        _ => Ok(own),
    }
}

async fn key(State(app): State<AgentApp>, asked: LookUp) -> ApiResult<Response> {
    let (store, key) = (asked.store(), asked.key());
    let region = own_region(&app, asked.region.as_deref())?;
    let answer = app.0.host.read(region, store, key).map_err(|error| reads::read_failed(store, error, None))?;
    reads::key_answer(store, key, region, &answer)
}

async fn batch(
    State(app): State<AgentApp>,
    Path(store): Path<String>,
    Query(query): Query<RegionQuery>,
    Body(request): Body<BatchRequest>,
) -> ApiResult<Response> {
    let region = own_region(&app, query.region.as_deref())?;
    reads::check_batch(&request, ServerLimits::default().batch_keys)?;
    let answer = app.0.host.read_batch(region, &store, &request.keys);
    let answer = answer.map_err(|error| reads::read_failed(&store, error, None))?;
    reads::batch_answer(&request, region, &answer)
}

/// Ready as long as reads belong here: also with the control plane gone, but not while another agent hosts the region.
async fn ready(State(app): State<AgentApp>) -> Response {
    let standing = app.0.hosted.agent().standing().borrow().clone();
    match &standing {
        Standing::Hosts(_) => "ready\n".into_response(),
        Standing::Unconfirmed { .. } => format!("ready: {}\n", standing.words()).into_response(),
        Standing::Starting => {
            ApiError::unavailable("The agent is not ready.", format!("{}.", standing.words())).into_response()
        }
        Standing::Replaced { by, address, .. } => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorBody::new(
                code::REGION_HOSTED,
                "The agent does not host its region.",
                format!("{}.", standing.words()),
                NOTHING_CHANGED,
                "Ask the agent that hosts it. This one takes over once that one's lease has run out.",
            )
            .with_subjects(std::iter::once(by.clone()).chain(address.clone())),
        )
        .into_response(),
    }
}

async fn measures(State(app): State<AgentApp>) -> Response {
    metrics::text(&app.0.metrics)
}
