//! Hook settings are judged by the hooks that they are for, before they come into force.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::StatusCode;
use tidegate_api::{ErrorBody, code};
use tidegate_lifecycle::{HooksConfiguration, OverrideUpdate, Refusal, Surroundings};

use crate::app::App;
use crate::http::errors::{ApiError, ApiResult};

/// What a judging hook may know.
pub(crate) fn surroundings(app: &App) -> ApiResult<Surroundings> {
    let snapshot = app.state().snapshot();
    let regions: BTreeSet<String> = app.scene(&snapshot).region_names()?.into_iter().collect();
    Ok(Surroundings { regions: Some(regions), now: app.state().now() })
}

/// Asks the hooks that are named whether they can work with these overrides of a store.
pub(crate) async fn overrides(app: &App, store: &str, set: &BTreeMap<String, String>) -> ApiResult<()> {
    if set.is_empty() {
        return Ok(());
    }
    let snapshot = app.state().snapshot();
    let current = match app.scene(&snapshot).find_store(store) {
        Ok((_, store)) => store.hook_overrides.clone(),
        // It is about to be created.
        Err(_) => BTreeMap::new(),
    };
    let published = snapshot.get(&HooksConfiguration::place())?.cloned().ok_or_else(|| {
        ApiError::unavailable("Hook settings can't be judged.", "No hooks configuration has been published yet.")
    })?;
    let update = OverrideUpdate { set: set.clone(), unset: Vec::new() };
    let surroundings = surroundings(app)?;
    app.lifecycle()
        .validate_overrides(&published, store, &current, &update, &surroundings)
        .await
        .map(|_| ())
        .map_err(|refusal| refused(&refusal))
}

pub(crate) fn refused(refusal: &Refusal) -> ApiError {
    ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        ErrorBody::new(
            code::HOOK_REFUSED,
            &refusal.what,
            &refusal.why,
            &refusal.consequences,
            &refusal.countermeasures,
        ),
    )
}
