//! The agent's own HTTP service. Reads are answered as a server answers them.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use tidegate_api::{BatchRequest, ErrorBody, code};
use tidegate_rollout::region::Standing;

use super::{AgentApp, nodes};
use crate::access::region::{RegionGate, region_guard};
use crate::access::table::Process;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Body, Path, Query};
use crate::http::guard::{self, Hosts};
use crate::http::metrics;
use crate::routes::reads::{LookUp, RegionQuery};
use crate::routes::{Group, Route, Unruled, assemble, ops, reads};

/// Every route of an agent.
pub(crate) fn all() -> Vec<Route<AgentApp>> {
    vec![
        Route::new("/v1/stores/{store}/keys/{key}", Group::LookUps).on("get", key),
        Route::new("/v1/stores/{store}/keys:batch", Group::Reads).on("post", batch),
        Route::new("/v1/nodes/{node}", Group::Requests).on("put", nodes::announce),
        Route::new("/v1/artifacts/{artifact}/{file}", Group::Free).on("get", nodes::artifact),
        Route::new("/healthz", Group::Free).on("get", ops::health),
        Route::new("/readyz", Group::Free).on("get", ready),
        Route::new("/metrics", Group::Free).on("get", measures),
    ]
}

/// The agent's service.
///
/// # Errors
/// A route without a rule.
pub(super) fn router(app: AgentApp, hosts: Arc<Hosts>) -> Result<Router, Unruled> {
    let region = app.0.guard.clone();
    let routes = assemble(Process::Agent, all(), &app.0.limits.service, |route, rules, is_look_up| {
        let gate = RegionGate { guard: region.clone(), rules, is_look_up, secret: None };
        route.layer(from_fn_with_state(gate, region_guard))
    })?;
    let http = app.0.http.clone();
    Ok(guard::enclose(routes, hosts, http).with_state(app))
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
    reads::check_batch(&request, app.0.limits.service.batch_keys)?;
    let answer = app.0.host.read_batch(region, &store, &request.keys);
    let answer = answer.map_err(|error| reads::read_failed(&store, error, None))?;
    reads::batch_answer(&request, region, &answer)
}

/// Ready as long as reads belong here: also with the control plane gone, but not while another agent hosts the region.
async fn ready(State(app): State<AgentApp>) -> Response {
    let standing = app.0.hosted.agent().standing().borrow().clone();
    match &standing {
        Standing::Hosts(_) | Standing::Unconfirmed { .. } => {
            let unconfirmed = matches!(standing, Standing::Unconfirmed { .. }).then(|| standing.words());
            let trouble = app.0.source.trouble().map(|why| format!("{why}; the region serves what it has"));
            let said: Vec<String> = unconfirmed.into_iter().chain(trouble).collect();
            if said.is_empty() {
                return "ready\n".into_response();
            }
            format!("ready: {}\n", said.join("; ")).into_response()
        }
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
