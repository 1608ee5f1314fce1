//! Routes, a file per subject.
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
pub(crate) mod sign_in;
mod stores;
mod tokens;
mod upload;
mod watch;

pub(crate) mod openapi;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use axum::{Extension, Router};

use crate::access::table::{CONFIRM_SET_BACK, Rule};
use crate::access::{self, Gate};
use crate::app::App;
use crate::http::extract::BodyLimits;
use crate::http::guard::{self, Room};

/// One route: its path as OpenAPI writes it, its methods, and what serves it.
pub(crate) struct Route {
    pub(crate) path: &'static str,
    pub(crate) methods: Vec<&'static str>,
    router: MethodRouter<App>,
    group: Group,
}

/// How many sign in at once, how long that takes, and how long a form is: a token and the names of its fields.
const SIGN_INS: usize = 64;
const SIGN_IN_TIME: Duration = Duration::from_secs(5);
const SIGN_IN_BYTES: usize = 4 * 1024;

/// Routes that share room and limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// Ordinary requests.
    Requests,
    /// Ordinary requests with a manifest as body.
    Manifests,
    /// Look-ups in batches.
    Reads,
    /// Look-ups of one key. They wait for nothing, so they need neither a limit of time nor one of
    /// their number: there are never more at work than the process has threads.
    LookUps,
    /// Parts that are received. They watch their own silence.
    Uploads,
    /// Signing in, which is open to everybody: it takes no room from who has a token.
    SignIn,
    /// Streams, which have room of their own, and what has to answer whatever happens.
    Free,
}

impl Route {
    fn new(path: &'static str, group: Group) -> Self {
        Self { path, methods: Vec::new(), router: MethodRouter::new(), group }
    }

    fn on<H, T>(mut self, method: &'static str, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.methods.push(method);
        let router = match method {
            "get" => get(handler),
            "put" => put(handler),
            "post" => post(handler),
            "patch" => patch(handler),
            "delete" => delete(handler),
            other => unreachable!("no route has the method {other}"),
        };
        self.router = self.router.merge(router);
        self
    }
}

/// Every route there is.
pub(crate) fn all() -> Vec<Route> {
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

/// A route that the table of access knows nothing about.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the route {method} {path} is not in the table of access")]
pub(crate) struct Unruled {
    path: &'static str,
    method: &'static str,
}

/// The whole service.
///
/// # Errors
/// A route without a rule: nobody may ask it, so it is a mistake.
pub(crate) fn router(app: App) -> Result<Router, Unruled> {
    build(app, all())
}

fn build(app: App, routes: Vec<Route>) -> Result<Router, Unruled> {
    let limits = app.limits().clone();
    let mut router = Router::new();
    let requests = Room::new("requests", limits.requests, limits.request_time);
    let reads = Room::new("look-ups", limits.reads, limits.request_time);
    // A part takes as long as it takes: its handler cuts off a sender that falls silent.
    let uploads = Room::new("uploads", limits.uploads, Duration::from_secs(24 * 60 * 60));
    let sign_ins = Room::new("sign-ins", SIGN_INS, SIGN_IN_TIME);
    for route in routes {
        let gate = Gate {
            app: app.clone(),
            rules: rules_of(&route)?,
            is_look_up: matches!(route.group, Group::LookUps | Group::Reads),
        };
        // The guard stands within the group's room and time, so that a body that it reads is bounded by them, too.
        let method_router = route.router.fallback(guard::no_method).layer(from_fn_with_state(gate, access::guard));
        let bodies = |bytes, setting| {
            // The rest is for what is done with it.
            let time = limits.request_time.mul_f64(0.9);
            (DefaultBodyLimit::max(bytes), Extension(BodyLimits { bytes, time, setting }))
        };
        let method_router = match route.group {
            Group::Requests => method_router
                .layer(bodies(limits.body_bytes, "server.limits.body_bytes"))
                .layer(from_fn_with_state(requests.clone(), guard::limit)),
            Group::Manifests => method_router
                .layer(bodies(limits.manifest_bytes, "server.limits.manifest_bytes"))
                .layer(from_fn_with_state(requests.clone(), guard::limit)),
            Group::SignIn => method_router
                .layer(DefaultBodyLimit::max(SIGN_IN_BYTES))
                .layer(from_fn_with_state(sign_ins.clone(), guard::limit)),
            Group::Reads => method_router
                .layer(bodies(limits.body_bytes, "server.limits.body_bytes"))
                .layer(from_fn_with_state(reads.clone(), guard::limit)),
            Group::Uploads => method_router
                .layer(DefaultBodyLimit::disable())
                .layer(from_fn_with_state(uploads.clone(), guard::limit)),
            Group::LookUps | Group::Free => method_router,
        };
        router = router.route(route.path, method_router);
    }
    let http = app.http_metrics().clone();
    let hosts = app.hosts();
    Ok(guard::enclose(router, hosts, http).with_state(app))
}

fn rules_of(route: &Route) -> Result<Arc<[&'static Rule]>, Unruled> {
    let rules = route.methods.iter().map(|method| {
        let path = route.path;
        access::table::rule(method, path).ok_or(Unruled { path, method })
    });
    rules.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_is_not_in_the_table_does_not_start() {
        let ruled = Route::new("/v1/stores", Group::Requests).on("get", stores::list);
        assert!(rules_of(&ruled).is_ok());
        for (path, method) in [("/v1/everything", "get"), ("/v1/stores", "delete")] {
            let method_router = match method {
                "get" => Route::new(path, Group::Requests).on("get", ops::health),
                _ => Route::new(path, Group::Requests).on("delete", ops::health),
            };
            assert_eq!(rules_of(&method_router).unwrap_err(), Unruled { path, method });
        }
    }
}
