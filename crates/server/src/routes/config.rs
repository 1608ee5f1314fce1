//! The configuration in force.

use axum::Json;
use axum::extract::{Request, State};
use serde::Deserialize;
use tidegate_api::{ConfigView, ErrorBody, HookSettingsView, HooksConfigUpdate, HooksConfigView};
use tidegate_lifecycle::{HooksConfiguration, HooksFile, PublishError, Refusal};

use crate::app::App;
use crate::config::ConfigFile;
use crate::http::errors::{ApiError, ApiResult};
use crate::http::extract::{Actor, Query, expect_media_type, parse_json, read};
use crate::validation::{refused, surroundings};

/// The configuration in force, and where it came from.
#[utoipa::path(get, path = "/v1/config", tag = "configuration",
    responses((status = 200, body = ConfigView)))]
pub(crate) async fn show(State(app): State<App>) -> ApiResult<Json<ConfigView>> {
    Ok(Json(ConfigView { hooks: hooks_view(&app)?, server: app.server_config() }))
}

#[derive(Deserialize)]
pub(crate) struct PublishQuery {
    #[serde(default)]
    check: bool,
}

/// Publishes a hooks configuration: the TOML of a configuration file, of which the table `[hooks]`
/// is read, or the same as JSON. It is judged by the hooks themselves, and published whole or not
/// at all.
#[utoipa::path(put, path = "/v1/config/hooks", tag = "configuration",
    params(("check" = Option<bool>, Query,
        description = "Judge it and answer with what it would be, of generation 0; publish nothing")),
    request_body(content(
        (HooksConfigUpdate = "application/json"),
        (String = "application/toml"))),
    responses((status = 200, body = HooksConfigView), (status = 415, body = ErrorBody),
        (status = 422, description = "A hook refused it", body = ErrorBody)))]
pub(crate) async fn publish(
    State(app): State<App>,
    actor: Actor,
    Query(query): Query<PublishQuery>,
    request: Request,
) -> ApiResult<Json<HooksConfigView>> {
    let known = ["application/json", "application/toml"];
    let media_type = expect_media_type(request.headers(), &known)?;
    let bytes = read(request, &app).await?;
    let registry = app.lifecycle().registry();
    let file = if media_type == "application/json" {
        HooksFile::from_json(parse_json(&bytes)?, registry)
    } else {
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| ApiError::bad_request("The body is no TOML.", format!("It is not UTF-8: {error}.")))?;
        check_whole_file(text)?;
        HooksFile::from_toml(text, registry)
    };
    let file = file.map_err(|refusal| refused(&refusal))?;
    let surroundings = surroundings(&app)?;
    if query.check {
        app.lifecycle().validate_file(&file, &surroundings).await.map_err(|refusal| refused(&refusal))?;
        let would_be = file.configuration(0, &actor.name);
        return Ok(Json(HooksConfigView { generation: 0, ..view_of(&would_be, known_hooks(&app)) }));
    }
    let transaction = app.state().transaction().attributes(actor.attributes());
    let beside = actor.clone();
    let published = app.lifecycle().publish_with(transaction, &file, &actor.name, &surroundings, move |transaction| {
        beside.write_beside(transaction)
    });
    published.await.map_err(|error| match error {
        PublishError::Refused(refusal) => refused(&refusal),
        PublishError::Write(error) if error.is_retryable() => {
            ApiError::unavailable("The hooks configuration could not be published.", format!("{error}."))
        }
        PublishError::Write(error) => ApiError::internal(error),
    })?;
    app.caught_up().await;
    hooks_view(&app).map(Json)
}

/// The file may serve a server as well; then it has that server's tables too, and no others.
fn check_whole_file(text: &str) -> ApiResult<()> {
    ConfigFile::parse(text, "The file").map(|_| ()).map_err(|error| {
        refused(&Refusal {
            what: "The hooks configuration was refused.".to_owned(),
            why: format!("{}.", error.to_string().trim_end().trim_end_matches('.')),
            consequences: "Nothing was published; what was in force stays in force.".to_owned(),
            countermeasures: "Correct the file and apply it again.".to_owned(),
        })
    })
}

/// Hooks that this server was built with, and their keys.
fn known_hooks(app: &App) -> Vec<HookSettingsView> {
    let registry = app.lifecycle().registry();
    registry
        .names()
        .filter_map(|name| registry.get(name))
        .map(|descriptor| HookSettingsView {
            hook: descriptor.name.clone(),
            keys: descriptor.keys.unwrap_or_default().iter().map(|key| key.key.to_owned()).collect(),
        })
        .collect()
}

fn hooks_view(app: &App) -> ApiResult<HooksConfigView> {
    let snapshot = app.state().snapshot();
    let known = known_hooks(app);
    Ok(match snapshot.get(&HooksConfiguration::place())? {
        Some(published) => view_of(published, known),
        None => HooksConfigView { known, ..HooksConfigView::default() },
    })
}

fn view_of(published: &HooksConfiguration, known: Vec<HookSettingsView>) -> HooksConfigView {
    HooksConfigView {
        generation: published.generation,
        enabled: published.enabled.clone(),
        threads: published.threads,
        timeout_ms: published.timeout_ms,
        wait_interval_ms: published.wait_interval_ms,
        hooks: published.hooks.clone(),
        published_by: published.published_by.clone(),
        published_at: None,
        digest: published.digest.clone(),
        known,
    }
}
