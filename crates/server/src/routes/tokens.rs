//! Tokens.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tidegate_api::{ErrorBody, TokenCreate, TokenCreated, TokenView};

use super::stores::Reason;
use crate::access;
use crate::app::App;
use crate::http::errors::ApiResult;
use crate::http::extract::{Actor, Body, Path, Query};

/// All tokens, without what proves them.
#[utoipa::path(get, path = "/v1/tokens", tag = "access",
    responses((status = 200, body = Vec<TokenView>)))]
pub(crate) async fn list(State(app): State<App>) -> ApiResult<Json<Vec<TokenView>>> {
    access::list(&app.state().snapshot(), app.state().now()).map(Json)
}

/// Makes a token. The answer has its secret, which is not kept: this is the only time that it is shown.
#[utoipa::path(post, path = "/v1/tokens", tag = "access", request_body = TokenCreate,
    responses((status = 201, body = TokenCreated), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    actor: Actor,
    Body(request): Body<TokenCreate>,
) -> ApiResult<(StatusCode, Json<TokenCreated>)> {
    let created = access::create(app.state(), request, &actor).await?;
    app.caught_up().await;
    Ok((StatusCode::CREATED, Json(created)))
}

/// Revokes a token: it holds no longer, and what it has open ends.
#[utoipa::path(delete, path = "/v1/tokens/{token}", tag = "access",
    params(("token" = String, Path, description = "The token's id"),
        ("reason" = Option<String>, Query, description = "Why, for the record")),
    responses((status = 200, body = TokenView), (status = 404, body = ErrorBody),
        (status = 409, description = "It is the last admin token", body = ErrorBody)))]
pub(crate) async fn revoke(
    State(app): State<App>,
    actor: Actor,
    Path(token): Path<String>,
    Query(query): Query<Reason>,
) -> ApiResult<Json<TokenView>> {
    let reason = query.reason.unwrap_or_default();
    let revoked = access::revoke(app.state(), &token, &reason, &actor, app.access().is_required()).await?;
    app.caught_up().await;
    Ok(Json(revoked))
}
