//! Stores, their schemas, versions and hook settings.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use tidegate_api::{
    ErrorBody, OverridesUpdate, OverridesView, RegisterSchemaRequest, RollbackAnswer, RollbackRequest, SchemaView,
    StoreCreate, StorePatch, StoreView, VersionView,
};
use tidegate_lifecycle::HooksConfiguration;
use tidegate_rollout::entities::{self, Store};
use tidegate_rollout::operations::NewStore;

use crate::access::Asked;
use crate::app::App;
use crate::http::errors::{ApiError, ApiResult};
use crate::http::extract::{Actor, Body, Path, Query};
use crate::validation;
use crate::views::store::{PARTITIONS_MAX, schema_view};

/// All stores.
#[utoipa::path(get, path = "/v1/stores", tag = "stores",
    responses((status = 200, body = Vec<StoreView>)))]
pub(crate) async fn list(State(app): State<App>, asked: Asked) -> ApiResult<Json<Vec<StoreView>>> {
    let snapshot = app.state().snapshot();
    let mut stores = app.scene(&snapshot).stores()?;
    stores.retain(|store| asked.sees_store(&store.name, &snapshot));
    Ok(Json(stores))
}

/// Creates a store.
#[utoipa::path(post, path = "/v1/stores", tag = "stores", request_body = StoreCreate,
    responses((status = 201, body = StoreView), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    actor: Actor,
    Body(request): Body<StoreCreate>,
) -> ApiResult<(StatusCode, Json<StoreView>)> {
    check_partitions(request.partitions)?;
    check_patch(&request.settings)?;
    validation::overrides(&app, &request.name, &request.hooks).await?;
    let mut new = NewStore::new(&request.name, &request.key_columns);
    new.partitions = request.partitions;
    new.hook_overrides = request.hooks;
    let mut settings = request.settings;
    // What a team makes is its own.
    if let Some(team) = actor.caller().team() {
        settings.team = Some(team.to_owned());
    }
    app.operations_of(&actor).create_store(new, &actor.name, move |store| apply(store, &settings)).await?;
    app.caught_up().await;
    let view = store_view(&app, &request.name)?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// One store.
#[utoipa::path(get, path = "/v1/stores/{store}", tag = "stores",
    params(("store" = String, Path, description = "The store's name")),
    responses((status = 200, body = StoreView), (status = 404, body = ErrorBody)))]
pub(crate) async fn show(State(app): State<App>, Path(store): Path<String>) -> ApiResult<Json<StoreView>> {
    store_view(&app, &store).map(Json)
}

/// Changes settings of a store. What is absent stays as it is.
#[utoipa::path(patch, path = "/v1/stores/{store}", tag = "stores", request_body = StorePatch,
    params(("store" = String, Path, description = "The store's name")),
    responses((status = 200, body = StoreView), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub(crate) async fn update(
    State(app): State<App>,
    actor: Actor,
    Path(store): Path<String>,
    Body(patch): Body<StorePatch>,
) -> ApiResult<Json<StoreView>> {
    check_patch(&patch)?;
    app.operations_of(&actor).update_store(&store, &actor.name, move |store| apply(store, &patch)).await?;
    app.caught_up().await;
    store_view(&app, &store).map(Json)
}

#[derive(serde::Deserialize)]
pub(crate) struct Reason {
    #[serde(default)]
    pub(crate) reason: Option<String>,
}

/// Deletes a store with all its versions. Refused while a push runs.
#[utoipa::path(delete, path = "/v1/stores/{store}", tag = "stores",
    params(("store" = String, Path, description = "The store's name"),
        ("reason" = Option<String>, Query, description = "Why, for the record")),
    responses((status = 204, description = "Deleted"), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<App>,
    actor: Actor,
    Path(store): Path<String>,
    Query(query): Query<Reason>,
) -> ApiResult<StatusCode> {
    let reason = query.reason.unwrap_or_default();
    app.operations_of(&actor).delete_store(&store, &actor.name, &reason).await?;
    app.caught_up().await;
    Ok(StatusCode::NO_CONTENT)
}

/// The hook settings of a store: its own, and what is in force for it.
#[utoipa::path(get, path = "/v1/stores/{store}/hooks", tag = "stores",
    params(("store" = String, Path, description = "The store's name")),
    responses((status = 200, body = OverridesView), (status = 404, body = ErrorBody)))]
pub(crate) async fn overrides(State(app): State<App>, Path(store): Path<String>) -> ApiResult<Json<OverridesView>> {
    overrides_view(&app, &store).map(Json)
}

/// Changes the hook settings of a store: all of it, or nothing. The hooks that are named say
/// whether they can work with it.
#[utoipa::path(put, path = "/v1/stores/{store}/hooks", tag = "stores",
    request_body = OverridesUpdate,
    params(("store" = String, Path, description = "The store's name")),
    responses((status = 200, body = OverridesView), (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub(crate) async fn set_overrides(
    State(app): State<App>,
    actor: Actor,
    Path(store): Path<String>,
    Body(update): Body<OverridesUpdate>,
) -> ApiResult<Json<OverridesView>> {
    let snapshot = app.state().snapshot();
    app.scene(&snapshot).find_store(&store)?;
    if let Some(both) = update.unset.iter().find(|key| update.set.contains_key(*key)) {
        return Err(ApiError::invalid(
            format!("`{both}` is to be set and to be cleared."),
            "A key can be in one of `set` and `unset` only.",
            "Leave it out of one of them.",
        ));
    }
    validation::overrides(&app, &store, &update.set).await?;
    let unset: BTreeSet<String> = update.unset.into_iter().collect();
    app.operations_of(&actor).set_overrides(&store, &actor.name, update.set, unset).await?;
    app.caught_up().await;
    overrides_view(&app, &store).map(Json)
}

/// The registered schemas of a store, the newest last.
#[utoipa::path(get, path = "/v1/stores/{store}/schemas", tag = "stores",
    params(("store" = String, Path, description = "The store's name")),
    responses((status = 200, body = Vec<SchemaView>), (status = 404, body = ErrorBody)))]
pub(crate) async fn list_schemas(
    State(app): State<App>,
    Path(store): Path<String>,
) -> ApiResult<Json<Vec<SchemaView>>> {
    let snapshot = app.state().snapshot();
    let scene = app.scene(&snapshot);
    let (reference, _) = scene.find_store(&store)?;
    Ok(Json(scene.schemas(&reference)?))
}

/// Registers a schema. One that is registered already stays as it is.
#[utoipa::path(post, path = "/v1/stores/{store}/schemas", tag = "stores",
    request_body = RegisterSchemaRequest,
    params(("store" = String, Path, description = "The store's name")),
    responses((status = 200, body = SchemaView), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(crate) async fn add_schema(
    State(app): State<App>,
    actor: Actor,
    Path(store): Path<String>,
    Body(request): Body<RegisterSchemaRequest>,
) -> ApiResult<Json<SchemaView>> {
    // Half of what a request may take: hooks that need longer are still asked, and whoever asks again waits for the same
    // answer.
    let patience = app.limits().request_time / 2;
    let operations = app.operations_of(&actor);
    let (id, schema) = operations.add_schema(&store, request.schema, &actor.name, patience).await?;
    app.caught_up().await;
    Ok(Json(schema_view(id, &schema)))
}

/// The versions of a store, the newest last.
#[utoipa::path(get, path = "/v1/stores/{store}/versions", tag = "stores",
    params(("store" = String, Path, description = "The store's name")),
    responses((status = 200, body = Vec<VersionView>), (status = 404, body = ErrorBody)))]
pub(crate) async fn versions(State(app): State<App>, Path(store): Path<String>) -> ApiResult<Json<Vec<VersionView>>> {
    let snapshot = app.state().snapshot();
    let scene = app.scene(&snapshot);
    let (reference, value) = scene.find_store(&store)?;
    Ok(Json(scene.versions(&reference, value)?))
}

/// Rolls a store back to what was served before, in all regions or in one.
#[utoipa::path(post, path = "/v1/stores/{store}/rollback", tag = "stores",
    request_body = RollbackRequest,
    params(("store" = String, Path, description = "The store's name")),
    responses((status = 200, body = RollbackAnswer), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
pub(crate) async fn roll_back(
    State(app): State<App>,
    actor: Actor,
    Path(store): Path<String>,
    Body(request): Body<RollbackRequest>,
) -> ApiResult<Json<RollbackAnswer>> {
    let region = request.region.as_deref();
    let told = app
        .operations_of(&actor)
        .roll_back_store(&store, region, request.version, &actor.name, &request.reason)
        .await?;
    app.caught_up().await;
    let regions = told.into_iter().map(|(region, version)| (region, Some(version))).collect();
    Ok(Json(RollbackAnswer { regions }))
}

fn store_view(app: &App, name: &str) -> ApiResult<StoreView> {
    let snapshot = app.state().snapshot();
    let scene = app.scene(&snapshot);
    let (reference, store) = scene.find_store(name)?;
    scene.store_view(&reference, store)
}

fn overrides_view(app: &App, name: &str) -> ApiResult<OverridesView> {
    let snapshot = app.state().snapshot();
    let scene = app.scene(&snapshot);
    let (_, store) = scene.find_store(name)?;
    let configuration = snapshot.get(&HooksConfiguration::place())?;
    let effective: BTreeMap<String, BTreeMap<String, String>> = configuration
        .map(|configuration| {
            let merged = configuration
                .enabled
                .iter()
                .map(|hook| (hook.clone(), configuration.merged(hook, &store.hook_overrides)));
            merged.filter(|(_, settings)| !settings.is_empty()).collect()
        })
        .unwrap_or_default();
    Ok(OverridesView { overrides: store.hook_overrides.clone(), effective })
}

fn check_partitions(partitions: Option<u32>) -> ApiResult<()> {
    match partitions {
        Some(partitions) if partitions == 0 || partitions > PARTITIONS_MAX => Err(ApiError::invalid(
            format!("A store can't have {partitions} partitions."),
            format!("There are 1 to {PARTITIONS_MAX}."),
            "Leave the number out, or choose one within these limits.",
        )),
        _ => Ok(()),
    }
}

/// The longest time that a setting may name: a hundred years.
const TIME_MS_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1000;

fn check_patch(patch: &StorePatch) -> ApiResult<()> {
    if let Some(retention) = patch.retention
        && retention < 2
    {
        return Err(ApiError::invalid(
            format!("A store can't keep {retention} version(s)."),
            "At least 2 are kept: the one that is served, and the way back.",
            "Choose 2 or more.",
        ));
    }
    let limits = patch.limits.unwrap_or_default();
    let freshness = patch.freshness.unwrap_or_default();
    let times = [
        ("limits.push_ms", limits.push_ms),
        ("limits.region_ms", limits.region_ms),
        ("limits.silence_ms", limits.silence_ms),
        ("limits.confirmation_ms", limits.confirmation_ms),
        ("freshness.expected_every_ms", freshness.expected_every_ms),
        ("freshness.max_age_ms", freshness.max_age_ms),
    ];
    for (name, value) in times {
        if let Some(value) = value
            && (value == 0 || value > TIME_MS_MAX)
        {
            return Err(ApiError::invalid(
                format!("`{name}` can't be {value} ms."),
                format!("It is more than 0 and at most {TIME_MS_MAX} ms (a hundred years)."),
                "Choose a time within these limits.",
            ));
        }
    }
    let kept = [("keep_rejected_ms", patch.keep_rejected_ms), ("grace_ms", patch.grace_ms)];
    for (name, value) in kept {
        if value.is_some_and(|value| value > TIME_MS_MAX) {
            return Err(ApiError::invalid(
                format!("`{name}` is too long."),
                format!("It is at most {TIME_MS_MAX} ms (a hundred years)."),
                "Choose a time within this limit.",
            ));
        }
    }
    if let Some(percent) = patch.embedded_dead_percent_max
        && percent > 100
    {
        return Err(ApiError::invalid(
            format!("`embedded_dead_percent_max` can't be {percent}."),
            "It is a share of a region's embedded clients, from 0 to 100 percent.",
            "Choose a share within these limits.",
        ));
    }
    if limits.value_bytes == Some(0) {
        return Err(ApiError::invalid(
            "`limits.value_bytes` can't be 0.",
            "No value would be small enough.",
            "Choose a size above 0.",
        ));
    }
    Ok(())
}

/// Sets what a patch has.
fn apply(store: &mut Store, patch: &StorePatch) {
    fn set<T: Clone>(target: &mut T, value: &Option<T>) {
        if let Some(value) = value {
            target.clone_from(value);
        }
    }
    use tidegate_api::store as api;
    if let Some(mode) = patch.schema_mode {
        store.schema_mode = match mode {
            api::SchemaMode::Compatible => entities::SchemaMode::Compatible,
            api::SchemaMode::Any => entities::SchemaMode::Any,
        };
    }
    if let Some(setting) = patch.on_new_push {
        store.on_new_push = match setting {
            api::OnNewPush::Refuse => entities::OnNewPush::Refuse,
            api::OnNewPush::Queue => entities::OnNewPush::Queue,
            api::OnNewPush::Supersede => entities::OnNewPush::Supersede,
        };
    }
    if let Some(setting) = patch.embedded_swap {
        store.embedded_swap = match setting {
            api::EmbeddedSwap::Alone => entities::EmbeddedSwap::Alone,
            api::EmbeddedSwap::WithRegion => entities::EmbeddedSwap::WithRegion,
        };
    }
    if let Some(team) = &patch.team {
        store.team = Some(team.clone()).filter(|team| !team.is_empty());
    }
    set(&mut store.auto_register_schema, &patch.auto_register_schemas);
    set(&mut store.allow_empty, &patch.allow_empty);
    set(&mut store.retention.versions, &patch.retention);
    set(&mut store.retention.rejected_ms, &patch.keep_rejected_ms);
    set(&mut store.retention.grace_ms, &patch.grace_ms);
    set(&mut store.retention.pushes, &patch.keep_pushes);
    set(&mut store.golden_keys, &patch.golden_keys);
    set(&mut store.embedded_dead_percent_max, &patch.embedded_dead_percent_max);
    if let Some(limits) = &patch.limits {
        set(&mut store.limits.push_ms, &limits.push_ms);
        set(&mut store.limits.region_ms, &limits.region_ms);
        set(&mut store.limits.client_ms, &limits.silence_ms);
        set(&mut store.limits.confirmation_ms, &limits.confirmation_ms);
        if limits.value_bytes.is_some() {
            store.value_bytes_max = limits.value_bytes;
        }
    }
    if let Some(freshness) = &patch.freshness {
        store.freshness.expected_every_ms = freshness.expected_every_ms;
        store.freshness.max_age_ms = freshness.max_age_ms;
    }
}
