//! The servers of the control plane.

use axum::Json;
use axum::extract::State;
use tidegate_api::{ClusterView, ErrorBody};
use tidegate_state::QueueFilter;

use crate::app::App;
use crate::http::errors::{ApiError, ApiResult};
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
