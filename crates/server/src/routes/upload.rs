//! Parts and the manifest: what a push client sends.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde::Deserialize;
use tidegate_api::manifest::Manifest;
use tidegate_api::{
    ErrorBody, PartSentRequest, PartUploadRequest, PartUploadView, PartView, PartsView, PushPhase, PushState, code,
};
use tidegate_rollout::entities::{Store, Version, VersionData};

use crate::access::Asked;
use crate::app::App;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Actor, Body, Path, Query};
use crate::uploads::check_part_count;

use super::protocol::answer;

/// The parts of a push that have arrived whole.
#[utoipa::path(get, path = "/v1/pushes/{push}/parts", tag = "push protocol",
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = PartsView), (status = 404, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, Path(push): Path<String>) -> ApiResult<Json<PartsView>> {
    let snapshot = app.state().snapshot();
    app.scene(&snapshot).push_reference(&push)?;
    Ok(Json(app.uploads().list(&push).await?))
}

#[derive(Deserialize)]
pub(crate) struct PutQuery {
    sha256: String,
}

/// Takes a part in. It counts once all of it has arrived with the SHA-256 that is announced.
#[utoipa::path(put, path = "/v1/pushes/{push}/parts/{part}", tag = "push protocol",
    request_body(content = String, content_type = "application/octet-stream",
        description = "The part's bytes"),
    params(("push" = String, Path, description = "The push's id"),
        ("part" = String, Path, description = "The part's name"),
        ("sha256" = String, Query, description = "SHA-256 of its bytes in lower-case hexadecimal")),
    responses((status = 200, body = PartView), (status = 404, body = ErrorBody),
        (status = 409, description = "The push takes no parts (any more)", body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 507, description = "The disk is full", body = ErrorBody)))]
pub(crate) async fn put(
    State(app): State<App>,
    asked: Asked,
    Path((push, part)): Path<(String, String)>,
    Query(query): Query<PutQuery>,
    request: Request,
) -> ApiResult<Json<PartView>> {
    let _share = app.enter_upload(&asked)?;
    check_takes_parts(&app, &push).await?;
    let body = request.into_body().into_data_stream();
    let limit = app.limits().part_bytes;
    let view = app.uploads().receive(&push, &part, &query.sha256, limit, body).await?;
    // It may have ended meanwhile; then what arrived is for the clean-up, and the client learns it.
    check_takes_parts(&app, &push).await?;
    Ok(Json(view))
}

/// URLs over which a part can be put straight into the artifact store, where that is a bucket. Repeated with the id of
/// the upload, it gives those of further chunks, or new ones for those that ran out.
#[utoipa::path(post, path = "/v1/pushes/{push}/parts/{part}/upload", tag = "push protocol",
    request_body = PartUploadRequest,
    params(("push" = String, Path, description = "The push's id"),
        ("part" = String, Path, description = "The part's name")),
    responses((status = 200, body = PartUploadView), (status = 404, body = ErrorBody),
        (status = 409, description = "The push takes no parts (any more)", body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 422, description = "Parts go through the server here", body = ErrorBody)))]
pub(crate) async fn sign(
    State(app): State<App>,
    Path((push, part)): Path<(String, String)>,
    Body(request): Body<PartUploadRequest>,
) -> ApiResult<Json<PartUploadView>> {
    check_takes_parts(&app, &push).await?;
    Ok(Json(app.uploads().sign(&push, &part, app.limits().part_bytes, request).await?))
}

/// Says that all chunks of a part have been put into the artifact store. Its bytes are checked before the artifact is
/// complete.
#[utoipa::path(post, path = "/v1/pushes/{push}/parts/{part}/sent", tag = "push protocol",
    request_body = PartSentRequest,
    params(("push" = String, Path, description = "The push's id"),
        ("part" = String, Path, description = "The part's name")),
    responses((status = 200, body = PartView), (status = 404, body = ErrorBody),
        (status = 409, description = "The push takes no parts (any more)", body = ErrorBody),
        (status = 422, description = "Parts go through the server here", body = ErrorBody)))]
pub(crate) async fn sent(
    State(app): State<App>,
    Path((push, part)): Path<(String, String)>,
    Body(request): Body<PartSentRequest>,
) -> ApiResult<Json<PartView>> {
    check_takes_parts(&app, &push).await?;
    let view = app.uploads().sent(&push, &part, app.limits().part_bytes, request).await?;
    check_takes_parts(&app, &push).await?;
    Ok(Json(view))
}

/// Completes the artifact of a push: all parts have been sent, and this is the manifest.
#[utoipa::path(post, path = "/v1/pushes/{push}/complete", tag = "push protocol",
    request_body = Manifest,
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = PushState), (status = 404, body = ErrorBody),
        (status = 409, description = "Parts are missing; they are named", body = ErrorBody),
        (status = 422, body = ErrorBody),
        (status = 503, description = "Its parts are still being checked; ask again", body = ErrorBody)))]
pub(crate) async fn complete(
    State(app): State<App>,
    actor: Actor,
    Path(push): Path<String>,
    Body(manifest): Body<Manifest>,
) -> ApiResult<Json<PushState>> {
    let state = as_far_as_upload(&app, &push).await?;
    if !state.status.is_terminal() && state.phase < PushPhase::Upload {
        // By the time that the operation looks it may have come so far, and its parts would be unchecked.
        return Err(not_taken("The artifact was not completed.", &push, &state));
    }
    let manifest = Arc::new(manifest);
    let manifest_sha256 = if state.phase == PushPhase::Upload {
        app.mark().check_now().await.map_err(ApiError::other_artifact_store)?;
        check_part_count(&manifest, partitions(&app, &state.store)?)?;
        if let Some(team) = actor.caller().team()
            && is_only_of_others(&app, team, &manifest.artifact_id)?
        {
            // Parts that are there already are taken from whoever pushes the same data, not from who only knows its digests.
            app.uploads().require_sent(&push, &manifest).await?;
        }
        app.uploads().complete(&push, &manifest).await?
    } else {
        // Complete already, or ended: which of them is the operation's to say.
        String::new()
    };
    let operations = app.operations_of(&actor);
    let completed = operations.complete_push(&push, Arc::unwrap_or_clone(manifest), manifest_sha256).await?;
    if let Err(error) = app.uploads().remove(&push).await {
        tracing::warn!(push, %error, "what is left of an upload could not be removed; the clean-up will");
    }
    answer(&app, &push, &completed)
}

/// Whether an artifact is that of versions of stores of which none is the team's.
fn is_only_of_others(app: &App, team: &str, artifact: &str) -> ApiResult<bool> {
    let snapshot = app.state().snapshot();
    let mut is_of_others = false;
    for item in snapshot.all::<Store>() {
        let (place, store) = item.map_err(ApiError::internal)?;
        for item in snapshot.children::<Version>(&place) {
            let (_, version) = item.map_err(ApiError::internal)?;
            if matches!(&version.data, VersionData::Complete { artifact: has, .. } if has == artifact) {
                if store.team.as_deref() == Some(team) {
                    return Ok(false);
                }
                is_of_others = true;
            }
        }
    }
    Ok(is_of_others)
}

fn partitions(app: &App, store: &str) -> ApiResult<u32> {
    let snapshot = app.state().snapshot();
    let scene = app.scene(&snapshot);
    let (_, store) = scene.find_store(store)?;
    Ok(store.partitions)
}

fn current(app: &App, push: &str) -> ApiResult<PushState> {
    let snapshot = app.state().snapshot();
    app.scene(&snapshot).push_state(push)
}

/// Only a push that runs and is not complete takes parts, and only the installation's store takes them in.
async fn check_takes_parts(app: &App, push: &str) -> ApiResult<()> {
    app.mark().check()?;
    let state = as_far_as_upload(app, push).await?;
    if state.status.is_terminal() {
        return Err(ended(&state));
    }
    if state.phase == PushPhase::Upload {
        return Ok(());
    }
    Err(not_taken("The part was not taken.", push, &state))
}

/// How a push stands; where it has not come to the upload here, as far as any server has seen it come.
async fn as_far_as_upload(app: &App, push: &str) -> ApiResult<PushState> {
    let state = current(app, push)?;
    let is_before = !state.status.is_terminal() && state.phase < PushPhase::Upload;
    if is_before && app.look_again().await { current(app, push) } else { Ok(state) }
}

fn not_taken(what: &str, push: &str, state: &PushState) -> ApiError {
    let later = state.phase < PushPhase::Upload;
    ApiError::new(
        axum::http::StatusCode::CONFLICT,
        ErrorBody::new(
            code::WRONG_PHASE,
            what,
            format!("Push {push} is at `{}`, and parts are taken at `upload`.", state.phase.word()),
            NOTHING_CHANGED,
            if later {
                "Say which schema the artifact has, and wait until its gate has opened."
            } else {
                "Nothing: the artifact is complete."
            },
        ),
    )
}

fn ended(state: &PushState) -> ApiError {
    let by = state.ended_by.map_or(String::new(), |by| format!(" ({})", by.word()));
    let reason = state.reason.clone().unwrap_or_default();
    ApiError::new(
        axum::http::StatusCode::CONFLICT,
        ErrorBody::new(
            code::PUSH_ENDED,
            "The part was not taken.",
            format!("Push {} has already ended as {}{by}: {reason}", state.push, state.status.word()),
            "What it has sent is removed by the clean-up.",
            "Start a new push with a new id.",
        )
        .with_subjects([state.push.clone()]),
    )
}
