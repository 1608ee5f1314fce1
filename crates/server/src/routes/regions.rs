//! Regions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use tidegate_api::{AvailabilityRequest, ErrorBody, RegionSettings, RegionView};
use tidegate_rollout::entities::{Availability, Region};

use crate::access::Asked;
use crate::app::App;
use crate::config::check_region_name;
use crate::http::errors::ApiError;
use crate::http::errors::ApiResult;
use crate::http::extract::{Actor, Body, Path, Query};

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

/// A region, with what it holds and serves and who hosts it.
#[utoipa::path(get, path = "/v1/regions/{region}", tag = "regions",
    params(("region" = String, Path, description = "The region's name")),
    responses((status = 200, body = RegionView), (status = 404, body = ErrorBody)))]
pub(crate) async fn show(State(app): State<App>, Path(region): Path<String>) -> ApiResult<Json<RegionView>> {
    let snapshot = app.state().snapshot();
    Ok(Json(app.scene(&snapshot).region(&region)?))
}

/// Adds a region, or changes its settings. Stores reach it through its own gates, without a new push. Servers host it from
/// their next start on, unless an agent of its own is to.
#[utoipa::path(put, path = "/v1/regions/{region}", tag = "regions",
    request_body = RegionSettings,
    params(("region" = String, Path, description = "The region's name")),
    responses((status = 200, body = RegionView), (status = 422, body = ErrorBody)))]
pub(crate) async fn set(
    State(app): State<App>,
    actor: Actor,
    Path(region): Path<String>,
    Body(settings): Body<RegionSettings>,
) -> ApiResult<Json<RegionView>> {
    check_region_name(&region).map_err(|why| {
        ApiError::invalid("The region can't have this name.", format!("{why}."), "Choose another name.")
    })?;
    let value = Region {
        nodes: settings.nodes,
        enough: settings.enough.unwrap_or(settings.nodes / 2 + 1),
        shares_source: settings.shares_source,
        agent: settings.agent,
        availability: Availability::Available,
        added_at: tidegate_state::Timestamp::default(),
    };
    app.operations_of(&actor).register_region(&region, value, &actor.name).await?;
    app.caught_up().await;
    let snapshot = app.state().snapshot();
    Ok(Json(app.scene(&snapshot).region(&region)?))
}

#[derive(Deserialize)]
pub(crate) struct RemoveQuery {
    #[serde(default)]
    reason: String,
}

/// Removes a region, with what it was told and what it reported. Whoever hosts it goes on serving what it has, and is
/// refused with its reports. Pushes that run go on without it.
#[utoipa::path(delete, path = "/v1/regions/{region}", tag = "regions",
    params(("region" = String, Path, description = "The region's name"),
        ("reason" = Option<String>, Query, description = "Why, for the record")),
    responses((status = 204, description = "It is gone"), (status = 404, body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<App>,
    actor: Actor,
    Path(region): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> ApiResult<StatusCode> {
    app.operations_of(&actor).remove_region(&region, &actor.name, &query.reason).await?;
    app.caught_up().await;
    Ok(StatusCode::NO_CONTENT)
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
