//! The servers of the control plane.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tidegate_api::{ClusterView, ErrorBody, SetBackConfirm, SetBackConfirmed, code};
use tidegate_rollout::OperationError;
use tidegate_state::{QueueFilter, Transaction, WriteError};

use crate::app::App;
use crate::backup::versions;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Actor, Body};
use crate::views::cluster::{COUNTED_MAX, cluster};

/// Who is in the cluster, what each server leases and how far it is behind, and what waits.
#[utoipa::path(get, path = "/v1/cluster", tag = "server",
    responses((status = 200, body = ClusterView), (status = 503, body = ErrorBody)))]
pub(crate) async fn show(State(app): State<App>) -> ApiResult<Json<ClusterView>> {
    let unavailable = |reason: String| ApiError::unavailable("The cluster could not be read.", reason);
    let state = app.state();
    let members = state.cluster().await.map_err(|error| unavailable(format!("{error}.")))?;
    let filter = QueueFilter { limit: Some(COUNTED_MAX), ..QueueFilter::default() };
    let queue = state.queue().list(filter).await.map_err(|error| unavailable(format!("{error}.")))?;
    let answering = *state.member().borrow();
    let moment = (state.snapshot().revision(), state.now());
    Ok(Json(cluster(state.driver().name(), moment, answering, &members, &queue)))
}

/// Confirms that the database was put back to an older state, and that what came after it is lost: a new epoch begins, every
/// store's next version is raised far above all that can have been given out, and all servers write again.
#[utoipa::path(post, path = "/v1/cluster/confirm-set-back", tag = "server", request_body = SetBackConfirm,
    responses((status = 200, body = SetBackConfirmed),
        (status = 409, description = "This server knows of nothing to confirm", body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn confirm_set_back(
    State(app): State<App>,
    actor: Actor,
    Body(request): Body<SetBackConfirm>,
) -> ApiResult<Json<SetBackConfirmed>> {
    if request.reason.trim().is_empty() {
        return Err(OperationError::ReasonMissing.into());
    }
    let state = app.state();
    // A server that was up when it happened still shows what is lost.
    let known = Arc::new(versions::Known::lost_with(&state.snapshot()));
    let beside = actor.clone();
    let first = move |transaction: &mut Transaction| {
        let what = "confirm that the database was put back";
        versions::raise(transaction, &known, what, &beside.name, &request.reason)?;
        beside.write_beside(transaction)
    };
    let confirmed = state.confirm_lower_head(actor.attributes(), first).await.map_err(|error| match error {
        error if error.is_retryable() => ApiError::unavailable("It could not be confirmed.", format!("{error}.")),
        error @ WriteError::OverBudget { .. } => {
            ApiError::unavailable("It could not be confirmed.", format!("{error}."))
        }
        error => ApiError::internal(error),
    })?;
    if confirmed.is_none() {
        let body = ErrorBody::new(
            code::REFUSED,
            "There is nothing to confirm.",
            "This server has seen no higher head of its database than there is, or it was confirmed already.",
            NOTHING_CHANGED,
            "Ask the server whose /readyz says that its database was put back (`--url`).",
        );
        return Err(ApiError::new(StatusCode::CONFLICT, body));
    }
    let snapshot = state.snapshot();
    Ok(Json(SetBackConfirmed { epoch: snapshot.epoch().to_string(), revision: snapshot.revision().0 }))
}
