//! Routes as every process has them: in groups that share room and limits, each behind the guard of its process.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use axum::{Extension, Router};

use crate::access::table::{Process, Rule, rule};
use crate::config::ServerLimits;
use crate::http::extract::BodyLimits;
use crate::http::guard::{self, Room};

/// One route: its path as OpenAPI writes it, its methods, and what serves it.
pub(crate) struct Route<S> {
    pub(crate) path: &'static str,
    pub(crate) methods: Vec<&'static str>,
    router: MethodRouter<S>,
    group: Group,
}

/// How many sign in at once, how long that takes, and how long a form is: a token and the names of its fields.
const SIGN_INS: usize = 64;
const SIGN_IN_TIME: Duration = Duration::from_secs(5);
const SIGN_IN_BYTES: usize = 4 * 1024;

/// Routes that share room and limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
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
    /// Orders that are given on the machine: they may read back all that a region holds, and take their time.
    Orders,
    /// Streams, which have room of their own, and what has to answer whatever happens.
    Free,
}

impl Group {
    /// Whether its requests are look-ups, which have a rate of their own.
    fn is_look_up(self) -> bool {
        matches!(self, Self::LookUps | Self::Reads)
    }
}

impl<S: Clone + Send + Sync + 'static> Route<S> {
    pub(crate) fn new(path: &'static str, group: Group) -> Self {
        Self { path, methods: Vec::new(), router: MethodRouter::new(), group }
    }

    pub(crate) fn on<H, T>(mut self, method: &'static str, handler: H) -> Self
    where
        H: Handler<T, S>,
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

/// A route that the table of access knows nothing about.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the route {method} {path} is not in the table of access")]
pub(crate) struct Unruled {
    path: &'static str,
    method: &'static str,
}

/// All routes of a process, guarded and bounded. `put_guard` puts the process's guard before a route: it is given that, its
/// rules, and whether it is for look-ups.
///
/// # Errors
/// A route without a rule: nobody may ask it, so it is a mistake.
pub(crate) fn assemble<S: Clone + Send + Sync + 'static>(
    process: Process,
    routes: Vec<Route<S>>,
    limits: &ServerLimits,
    put_guard: impl Fn(MethodRouter<S>, Arc<[&'static Rule]>, bool) -> MethodRouter<S>,
) -> Result<Router<S>, Unruled> {
    let mut router = Router::new();
    let requests = Room::new("requests", limits.requests, limits.request_time);
    let reads = Room::new("look-ups", limits.reads, limits.request_time);
    // A part takes as long as it takes: its handler cuts off a sender that falls silent.
    let uploads = Room::new("uploads", limits.uploads, Duration::from_secs(24 * 60 * 60));
    let sign_ins = Room::new("sign-ins", SIGN_INS, SIGN_IN_TIME);
    for route in routes {
        let rules = rules_of(process, &route)?;
        // The guard stands within the group's room and time, so that a body that it reads is bounded by them, too.
        let method_router = put_guard(route.router.fallback(guard::no_method), rules, route.group.is_look_up());
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
            Group::Orders => method_router.layer(bodies(limits.body_bytes, "server.limits.body_bytes")),
            Group::LookUps | Group::Free => method_router,
        };
        router = router.route(route.path, method_router);
    }
    Ok(router)
}

fn rules_of<S>(process: Process, route: &Route<S>) -> Result<Arc<[&'static Rule]>, Unruled> {
    let rules = route.methods.iter().map(|method| {
        let path = route.path;
        rule(method, path).filter(|rule| rule.at.contains(&process)).ok_or(Unruled { path, method })
    });
    rules.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn nothing() {}

    #[test]
    fn a_route_that_is_not_in_the_table_does_not_start() {
        let route = |path, method| Route::<()>::new(path, Group::Requests).on(method, nothing);
        assert!(rules_of(Process::Server, &route("/v1/stores", "get")).is_ok());
        assert!(rules_of(Process::Node, &route("/v1/engine", "post")).is_ok());
        for (process, path, method) in [
            (Process::Server, "/v1/everything", "get"),
            (Process::Server, "/v1/stores", "delete"),
            // Rules of other processes do not count.
            (Process::Agent, "/v1/stores", "get"),
            (Process::Server, "/v1/engine", "post"),
        ] {
            assert_eq!(rules_of(process, &route(path, method)).unwrap_err(), Unruled { path, method });
        }
    }
}
