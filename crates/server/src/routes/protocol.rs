//! The push protocol, but for parts and manifest; and what operators say to a running push.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tidegate_api::{
    ClientPhase, ErrorBody, FailRequest, HeartbeatRequest, InputFault, KillRequest, ProceedRequest, PushAccepted,
    PushStart, PushState, RegisterSchemaRequest, RegisteredSchema, code,
};
use tidegate_rollout::entities::{self, BuildProgress, Push, Store};
use tidegate_rollout::operations::{OperationError, StartPush};
use tidegate_state::Ref;

use crate::access::{Asked, Caller};
use crate::app::App;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Actor, Body, Path};
use crate::views::push::push_state;
use crate::views::store::VALUE_BYTES_MAX_DEFAULT;
use crate::views::words;

/// How often a push client is to be heard of.
const HEARTBEAT_INTERVAL_MS: u64 = 10_000;

/// Starts a push, or finds the one that has this id.
#[utoipa::path(post, path = "/v1/pushes", tag = "push protocol", request_body = PushStart,
    responses((status = 200, description = "It was there", body = PushAccepted),
        (status = 201, description = "It was started", body = PushAccepted),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub(crate) async fn start(
    State(app): State<App>,
    actor: Actor,
    asked: Asked,
    Body(request): Body<PushStart>,
) -> ApiResult<(StatusCode, Json<PushAccepted>)> {
    let id = request.id.clone();
    let store = request.store.clone();
    if !request.overrides.is_empty() {
        actor.caller().may_open_gates().map_err(|refusal| refusal.error())?;
    }
    // Nothing that the caller says stands above its token.
    let pushed_by = match actor.caller() {
        Caller::Bearer(_) => actor.name.clone(),
        Caller::Anyone => request.pushed_by.unwrap_or_else(|| actor.name.clone()),
    };
    let accepted = app
        .operations_of(&actor)
        .start_push(StartPush {
            id: request.id,
            store: request.store,
            pushed_by,
            attributes: request.attributes,
            input_digest: request.input_digest,
            allow_empty: request.allow_empty,
            from_version: request.from_version,
            overrides: request.overrides,
        })
        .await
        .map_err(|error| match error {
            // Whose it is is not for a team to know, unless it is its own.
            OperationError::PushIdTaken { push, store: other }
                if !asked.sees_store(&other, &app.state().snapshot()) =>
            {
                id_taken(&push)
            }
            error => error.into(),
        })?;
    app.caught_up().await;
    let settings = &accepted.store;
    // The silence limit is told halved where it is short, so that two heartbeats fit into it.
    let heartbeat = HEARTBEAT_INTERVAL_MS.min((settings.limits.client_ms / 3).max(100));
    let answer = PushAccepted {
        state: state_of(&store, &id, &accepted.push)?,
        created: accepted.created,
        key_columns: settings.key_columns.clone(),
        partitions: settings.partitions,
        schema: accepted.schema.map(|(number, schema)| RegisteredSchema { id: number, schema: schema.schema }),
        auto_register_schemas: settings.auto_register_schema,
        golden_keys: settings.golden_keys.clone(),
        allow_empty: settings.allow_empty || accepted.push.allow_empty,
        value_bytes_max: settings.value_bytes_max.unwrap_or(VALUE_BYTES_MAX_DEFAULT),
        heartbeat_interval_ms: heartbeat,
        silence_limit_ms: settings.limits.client_ms,
    };
    let status = if accepted.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(answer)))
}

fn id_taken(push: &str) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        ErrorBody::new(
            code::PUSH_ID_TAKEN,
            "The push was not started.",
            format!("Push id \"{push}\" is another push's."),
            NOTHING_CHANGED,
            "Choose another id.",
        ),
    )
}

/// Says that the push client is alive, and how far it is. The answer says how the push stands.
#[utoipa::path(post, path = "/v1/pushes/{push}/heartbeat", tag = "push protocol",
    request_body = HeartbeatRequest,
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = PushState), (status = 404, body = ErrorBody)))]
pub(crate) async fn heartbeat(
    State(app): State<App>,
    actor: Actor,
    Path(push): Path<String>,
    Body(request): Body<HeartbeatRequest>,
) -> ApiResult<Json<PushState>> {
    let mut progress = BuildProgress {
        phase: words::build_phase(request.phase),
        records: request.records,
        ..BuildProgress::default()
    };
    match request.phase {
        ClientPhase::Uploading => {
            progress.uploaded_bytes = request.bytes;
            progress.uploaded_bytes_total = request.of;
        }
        ClientPhase::Waiting | ClientPhase::Inspecting | ClientPhase::Building | ClientPhase::Unknown => {
            progress.input_bytes = request.bytes;
            progress.input_bytes_total = request.of;
        }
    }
    let heard = app.operations_of(&actor).heartbeat_push(&push, progress).await?;
    answer(&app, &push, &heard)
}

/// Says which schema the artifact will have. Whether it is accepted is told by the push's phase.
#[utoipa::path(put, path = "/v1/pushes/{push}/schema", tag = "push protocol",
    request_body = RegisterSchemaRequest,
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = PushState), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(crate) async fn schema(
    State(app): State<App>,
    actor: Actor,
    Path(push): Path<String>,
    Body(request): Body<RegisterSchemaRequest>,
) -> ApiResult<Json<PushState>> {
    let changed = app.operations_of(&actor).register_schema(&push, request.schema).await?;
    answer(&app, &push, &changed)
}

/// Gives a push up, because its input is at fault, or because its client can't go on.
#[utoipa::path(post, path = "/v1/pushes/{push}/fail", tag = "push protocol",
    request_body = FailRequest,
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = PushState), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub(crate) async fn fail(
    State(app): State<App>,
    actor: Actor,
    Path(push): Path<String>,
    Body(request): Body<FailRequest>,
) -> ApiResult<Json<PushState>> {
    let by = match request.kind {
        InputFault::Input => entities::EndedBy::Input,
        InputFault::Fault => entities::EndedBy::Fault,
    };
    let ended = app.operations_of(&actor).fail_push(&push, by, &request.message).await?;
    answer(&app, &push, &ended)
}

/// Ends a push.
#[utoipa::path(post, path = "/v1/pushes/{push}/kill", tag = "pushes", request_body = KillRequest,
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = PushState), (status = 404, body = ErrorBody),
        (status = 409, description = "It has ended already", body = ErrorBody)))]
pub(crate) async fn kill(
    State(app): State<App>,
    actor: Actor,
    Path(push): Path<String>,
    Body(request): Body<KillRequest>,
) -> ApiResult<Json<PushState>> {
    let killed = app.operations_of(&actor).kill_push(&push, &actor.name, &request.reason).await?;
    answer(&app, &push, &killed)
}

/// Opens one gate by hand.
#[utoipa::path(post, path = "/v1/pushes/{push}/proceed", tag = "pushes",
    request_body = ProceedRequest,
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, body = PushState), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(crate) async fn proceed(
    State(app): State<App>,
    actor: Actor,
    Path(push): Path<String>,
    Body(request): Body<ProceedRequest>,
) -> ApiResult<Json<PushState>> {
    let region = request.region.as_deref();
    let changed =
        app.operations_of(&actor).proceed_gate(&push, &request.gate, region, &actor.name, &request.reason).await?;
    answer(&app, &push, &changed)
}

/// The answer to every request that leaves a push somewhere.
pub(crate) fn answer(app: &App, id: &str, push: &Push) -> ApiResult<Json<PushState>> {
    let snapshot = app.state().snapshot();
    let reference = app.scene(&snapshot).push_reference(id)?;
    Ok(Json(push_state(&reference, push)))
}

fn state_of(store: &str, id: &str, push: &Push) -> ApiResult<PushState> {
    let reference: Ref<Push> = Ref::<Store>::root(store)?.child(id)?;
    Ok(push_state(&reference, push))
}
