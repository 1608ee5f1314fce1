//! Freezes.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tidegate_api::ErrorBody;
use tidegate_api::freeze::{FreezeRequest, FreezeScope, FreezeView};
use tidegate_rollout::entities;

use super::stores::Reason;
use crate::access::Asked;
use crate::app::App;
use crate::http::errors::ApiResult;
use crate::http::extract::{Actor, Body, Path, Query};
use crate::views::ms;

/// All freezes in force.
#[utoipa::path(get, path = "/v1/freezes", tag = "freezes",
    responses((status = 200, body = Vec<FreezeView>)))]
pub(crate) async fn list(State(app): State<App>, asked: Asked) -> ApiResult<Json<Vec<FreezeView>>> {
    let snapshot = app.state().snapshot();
    let mut freezes = Vec::new();
    for item in snapshot.roots::<entities::Freeze>() {
        let (freeze, value) = item?;
        let is_shown = match &value.scope {
            entities::FreezeScope::Store(store) => asked.sees_store(store, &snapshot),
            // These hold everybody's stores.
            entities::FreezeScope::Region(_) | entities::FreezeScope::All => true,
        };
        if is_shown {
            freezes.push(view(freeze.id(), value));
        }
    }
    Ok(Json(freezes))
}

/// Sets a freeze: nothing swaps where it is in force. Going back stays possible.
#[utoipa::path(post, path = "/v1/freezes", tag = "freezes", request_body = FreezeRequest,
    responses((status = 201, body = FreezeView), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub(crate) async fn set(
    State(app): State<App>,
    actor: Actor,
    Body(request): Body<FreezeRequest>,
) -> ApiResult<(StatusCode, Json<FreezeView>)> {
    let scope = match request.scope {
        FreezeScope::Store(store) => entities::FreezeScope::Store(store),
        FreezeScope::Region(region) => entities::FreezeScope::Region(region),
        FreezeScope::All => entities::FreezeScope::All,
    };
    let operations = app.operations_of(&actor);
    let freeze = operations.freeze(&request.id, scope, &actor.name, &request.reason).await?;
    app.caught_up().await;
    Ok((StatusCode::CREATED, Json(view(request.id, &freeze))))
}

/// Lifts a freeze.
#[utoipa::path(delete, path = "/v1/freezes/{freeze}", tag = "freezes",
    params(("freeze" = String, Path, description = "The freeze's id"),
        ("reason" = Option<String>, Query, description = "Why, for the record")),
    responses((status = 204, description = "Lifted"), (status = 404, body = ErrorBody)))]
pub(crate) async fn lift(
    State(app): State<App>,
    actor: Actor,
    Path(freeze): Path<String>,
    Query(query): Query<Reason>,
) -> ApiResult<StatusCode> {
    let reason = query.reason.unwrap_or_default();
    app.operations_of(&actor).unfreeze(&freeze, &actor.name, &reason).await?;
    app.caught_up().await;
    Ok(StatusCode::NO_CONTENT)
}

fn view(id: String, freeze: &entities::Freeze) -> FreezeView {
    FreezeView {
        id,
        scope: match &freeze.scope {
            entities::FreezeScope::Store(store) => FreezeScope::Store(store.clone()),
            entities::FreezeScope::Region(region) => FreezeScope::Region(region.clone()),
            entities::FreezeScope::All => FreezeScope::All,
        },
        reason: freeze.reason.clone(),
        by: freeze.by.clone(),
        since: ms(freeze.at),
    }
}
