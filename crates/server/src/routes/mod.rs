//! Routes of a server, a file per subject. Those of agents and nodes stand with them.
//!
//! Each handler is described where it stands; [`openapi`] gathers the descriptions, and a test
//! sees to it that none is missing and none is left over.

mod agent;
mod artifact_store;
pub(crate) mod artifacts;
mod audit;
mod cluster;
mod config;
mod freezes;
pub(crate) mod ops;
mod page;
mod pauses;
mod protocol;
mod pushes;
mod queue;
pub(crate) mod reads;
mod regions;
mod route;
pub(crate) mod sign_in;
mod stores;
mod tokens;
mod upload;
mod watch;

pub(crate) mod openapi;

use axum::Router;
use axum::middleware::from_fn_with_state;

use crate::access::table::{CONFIRM_SET_BACK, Process};
use crate::access::{self, Gate};
use crate::app::App;
use crate::http::guard;
pub(crate) use route::{Group, Route, Unruled, assemble};

/// Every route of a server.
pub(crate) fn all() -> Vec<Route<App>> {
    use Group::{Free, LookUps, Manifests, Reads, Requests, SignIn, Uploads};
    vec![
        Route::new("/v1/stores", Requests).on("get", stores::list).on("post", stores::create),
        Route::new("/v1/stores/{store}", Requests)
            .on("get", stores::show)
            .on("patch", stores::update)
            .on("delete", stores::remove),
        Route::new("/v1/stores/{store}/hooks", Requests).on("get", stores::overrides).on("put", stores::set_overrides),
        Route::new("/v1/stores/{store}/schemas", Requests)
            .on("get", stores::list_schemas)
            .on("post", stores::add_schema),
        Route::new("/v1/stores/{store}/versions", Requests).on("get", stores::versions),
        Route::new("/v1/stores/{store}/rollback", Requests).on("post", stores::roll_back),
        Route::new("/v1/stores/{store}/keys/{key}", LookUps).on("get", reads::key),
        Route::new("/v1/stores/{store}/keys:batch", Reads).on("post", reads::batch),
        Route::new("/v1/pushes", Requests).on("get", pushes::list).on("post", protocol::start),
        Route::new("/v1/pushes/{push}", Requests).on("get", pushes::show),
        Route::new("/v1/pushes/{push}/explain", Requests).on("get", pushes::explain),
        Route::new("/v1/pushes/{push}/calls", Requests).on("get", pushes::calls),
        Route::new("/v1/pushes/{push}/job", Requests).on("get", pushes::job),
        Route::new("/v1/pushes/{push}/watch", Free).on("get", watch::push),
        Route::new("/v1/pushes/{push}/heartbeat", Requests).on("post", protocol::heartbeat),
        Route::new("/v1/pushes/{push}/schema", Requests).on("put", protocol::schema),
        Route::new("/v1/pushes/{push}/parts", Requests).on("get", upload::list),
        Route::new("/v1/pushes/{push}/parts/{part}", Uploads).on("put", upload::put),
        Route::new("/v1/pushes/{push}/parts/{part}/upload", Requests).on("post", upload::sign),
        Route::new("/v1/pushes/{push}/parts/{part}/sent", Requests).on("post", upload::sent),
        Route::new("/v1/pushes/{push}/complete", Manifests).on("post", upload::complete),
        Route::new("/v1/pushes/{push}/fail", Requests).on("post", protocol::fail),
        Route::new("/v1/pushes/{push}/kill", Requests).on("post", protocol::kill),
        Route::new("/v1/pushes/{push}/proceed", Requests).on("post", protocol::proceed),
        Route::new("/v1/artifact-store", Requests).on("get", artifact_store::show),
        Route::new("/v1/regions", Requests).on("get", regions::list),
        Route::new("/v1/regions/{region}", Requests)
            .on("get", regions::show)
            .on("put", regions::set)
            .on("delete", regions::remove),
        Route::new("/v1/regions/{region}/availability", Requests).on("put", regions::mark),
        Route::new("/v1/regions/{region}/agent/host", Requests).on("put", agent::host).on("delete", agent::release),
        Route::new("/v1/regions/{region}/agent/watch", Free).on("get", agent::watch),
        Route::new("/v1/regions/{region}/agent/reports/{store}", Requests)
            .on("put", agent::report)
            .on("delete", agent::remove_report),
        Route::new("/v1/regions/{region}/agent/removals", Requests).on("post", agent::removal),
        Route::new("/v1/regions/{region}/agent/access", Requests).on("get", agent::access),
        Route::new("/v1/artifacts/{artifact}/{file}", Free).on("get", artifacts::file),
        Route::new("/v1/freezes", Requests).on("get", freezes::list).on("post", freezes::set),
        Route::new("/v1/freezes/{freeze}", Requests).on("delete", freezes::lift),
        Route::new("/v1/pauses", Requests).on("get", pauses::list),
        Route::new("/v1/pauses/{pause}/answer", Requests).on("post", pauses::answer),
        Route::new("/v1/config", Requests).on("get", config::show),
        Route::new("/v1/config/hooks", Requests).on("put", config::publish),
        Route::new("/v1/cluster", Requests).on("get", cluster::show),
        Route::new(CONFIRM_SET_BACK, Requests).on("post", cluster::confirm_set_back),
        Route::new("/v1/queue", Requests).on("get", queue::list),
        Route::new("/v1/queue/{request}/{action}", Requests).on("post", queue::act),
        Route::new("/v1/tokens", Requests).on("get", tokens::list).on("post", tokens::create),
        Route::new("/v1/tokens/{token}", Requests).on("delete", tokens::revoke),
        Route::new("/v1/audit", Requests).on("get", audit::list),
        Route::new("/v1/watch", Free).on("get", watch::tree),
        Route::new("/openapi.json", Free).on("get", openapi::serve),
        Route::new("/metrics", Free).on("get", ops::metrics),
        Route::new("/healthz", Free).on("get", ops::health),
        Route::new("/readyz", Free).on("get", ops::ready),
        Route::new("/", Requests).on("get", page::page),
        Route::new("/login", SignIn).on("get", sign_in::show).on("post", sign_in::sign_in),
        Route::new("/logout", Requests).on("post", sign_in::sign_out),
        Route::new("/assets/page.css", Free).on("get", page::style),
        Route::new("/assets/page.js", Free).on("get", page::script),
    ]
}

/// The whole service of a server.
///
/// # Errors
/// A route without a rule: nobody may ask it, so it is a mistake.
pub(crate) fn router(app: App) -> Result<Router, Unruled> {
    let router = assemble(Process::Server, all(), app.limits(), |route, rules, is_look_up| {
        route.layer(from_fn_with_state(Gate { app: app.clone(), rules, is_look_up }, access::guard))
    })?;
    Ok(guard::enclose(router, app.hosts(), app.http_metrics().clone()).with_state(app))
}
