//! Regions.

use axum::Json;
use axum::extract::State;
use tidegate_api::{AvailabilityRequest, ErrorBody, RegionView};

use crate::access::Asked;
use crate::app::App;
use crate::http::errors::ApiResult;
use crate::http::extract::{Actor, Body, Path};

/// All regions, with what each holds and serves.
#[utoipa::path(get, path = "/v1/regions", tag = "regions",
    responses((status = 200, body = Vec<RegionView>)))]
pub(crate) async fn list(State(app): State<App>, asked: Asked) -> ApiResult<Json<Vec<RegionView>>> {
    let snapshot = app.state().snapshot();
    let mut regions = app.scene(&snapshot).regions()?;
    for region in &mut regions {
        region.stores.retain(|store, _| asked.sees_store(store, &snapshot));
    }
    Ok(Json(regions))
}

/// Marks a region as available or not. Pushes leave out what is not.
#[utoipa::path(put, path = "/v1/regions/{region}/availability", tag = "regions",
    request_body = AvailabilityRequest,
    params(("region" = String, Path, description = "The region's name")),
    responses((status = 200, body = RegionView), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub(crate) async fn mark(
    State(app): State<App>,
    actor: Actor,
    Path(region): Path<String>,
    Body(request): Body<AvailabilityRequest>,
) -> ApiResult<Json<RegionView>> {
    app.operations_of(&actor).mark_region(&region, request.available, &actor.name, &request.reason).await?;
    app.caught_up().await;
    let snapshot = app.state().snapshot();
    Ok(Json(app.scene(&snapshot).region(&region)?))
}
