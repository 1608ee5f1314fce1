//! What can be asked about pushes.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tidegate_api::{CallView, ErrorBody, ExplainView, JobStatus, PushSummary, PushView};
use tidegate_lifecycle::CallRecord;
use tidegate_state::{IndexKey, RecordSearch};

use crate::access::Asked;
use crate::app::App;
use crate::http::errors::{ApiError, ApiResult};
use crate::http::extract::{Path, Query};
use crate::views::gate::call_view;
use crate::views::job::job_status;

/// How many pushes are listed where nobody says how many.
const LIST_DEFAULT: u32 = 50;
const LIST_MAX: u32 = 1000;

/// How many calls of a push are answered at most.
const CALLS_MAX: usize = 10_000;

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    store: Option<String>,
    limit: Option<u32>,
}

/// Pushes, the newest first, of one store or of all.
#[utoipa::path(get, path = "/v1/pushes", tag = "pushes",
    params(("store" = Option<String>, Query, description = "Of this store only"),
        ("limit" = Option<u32>, Query, description = "How many at most; 50 unless told, 1000 at most")),
    responses((status = 200, body = Vec<PushSummary>), (status = 404, body = ErrorBody)))]
pub(crate) async fn list(
    State(app): State<App>,
    asked: Asked,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Vec<PushSummary>>> {
    let limit = query.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
    let snapshot = app.state().snapshot();
    let is_shown = |store: &str| asked.sees_store(store, &snapshot);
    let pushes = app.scene(&snapshot).pushes(query.store.as_deref(), limit as usize, is_shown)?;
    Ok(Json(pushes))
}

/// Everything about a push.
#[utoipa::path(get, path = "/v1/pushes/{push}", tag = "pushes",
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = PushView), (status = 404, body = ErrorBody)))]
pub(crate) async fn show(State(app): State<App>, Path(push): Path<String>) -> ApiResult<Json<PushView>> {
    push_view(&app, &push).map(Json)
}

/// Why a push is where it is, and what happens next.
#[utoipa::path(get, path = "/v1/pushes/{push}/explain", tag = "pushes",
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = ExplainView), (status = 404, body = ErrorBody)))]
pub(crate) async fn explain(State(app): State<App>, Path(push): Path<String>) -> ApiResult<Json<ExplainView>> {
    let snapshot = app.state().snapshot();
    let scene = app.scene(&snapshot);
    let found = scene.find_push(&push)?;
    Ok(Json(scene.explain(&found)))
}

/// The finished hook calls of a push, the oldest first.
#[utoipa::path(get, path = "/v1/pushes/{push}/calls", tag = "pushes",
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = Vec<CallView>), (status = 404, body = ErrorBody)))]
pub(crate) async fn calls(State(app): State<App>, Path(push): Path<String>) -> ApiResult<Json<Vec<CallView>>> {
    let snapshot = app.state().snapshot();
    app.scene(&snapshot).push_reference(&push)?;
    let mut calls = Vec::new();
    let mut after = None;
    loop {
        let search = RecordSearch::by("push").prefix(IndexKey::new().text(&push)).after(after).limit(500);
        let page = app
            .state()
            .records::<CallRecord>(search)
            .await
            .map_err(|error| ApiError::unavailable("The calls could not be read.", format!("{error}.")))?;
        calls.extend(page.items.iter().filter_map(|stored| stored.value.as_ref().ok()).map(call_view));
        after = page.next;
        if after.is_none() || calls.len() >= CALLS_MAX {
            return Ok(Json(calls));
        }
    }
}

/// The status of a push in VIP-4's words.
#[utoipa::path(get, path = "/v1/pushes/{push}/job", tag = "pushes",
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = JobStatus), (status = 404, body = ErrorBody)))]
pub(crate) async fn job(State(app): State<App>, Path(push): Path<String>) -> ApiResult<Json<JobStatus>> {
    push_view(&app, &push).map(|view| Json(job_status(&view)))
}

pub(crate) fn push_view(app: &App, push: &str) -> ApiResult<PushView> {
    let snapshot = app.state().snapshot();
    let scene = app.scene(&snapshot);
    if let Some(view) = scene.later_push(&scene.push_reference(push)?) {
        return Ok(view);
    }
    let found = scene.find_push(push)?;
    scene.push_view(&found)
}
