//! Metrics of requests.

use std::sync::Arc;
use std::time::Instant;

use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::errors::ApiError;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: Arc<str>,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: Arc<str>,
}

/// Requests by route, method and status; how long they took; and how many watches are open.
#[derive(Clone, Debug)]
pub(crate) struct HttpMetrics {
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram, fn() -> Histogram>,
    pub(crate) watches: Gauge,
    pub(crate) watches_cut: Counter,
}

impl HttpMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        // 50 µs to 26 s.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_05, 3.0, 13));
        let metrics = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            watches: Gauge::default(),
            watches_cut: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("http");
        registry.register("requests", "Requests answered", metrics.requests.clone());
        registry.register(
            "request_seconds",
            "Time from the request's head to the answer's head",
            metrics.seconds.clone(),
        );
        registry.register("watches", "Open watch streams", metrics.watches.clone());
        registry.register(
            "watches_cut",
            "Watch streams that were closed because their reader was too slow",
            metrics.watches_cut.clone(),
        );
        metrics
    }
}

/// The answer with all measures of a process, in Prometheus' text form.
pub(crate) fn text(registry: &Registry) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => ApiError::internal(error).into_response(),
    }
}

impl HttpMetrics {
    /// Begins to count a request. The route is the pattern, not the address: there are few of them, whatever people ask for.
    pub(crate) fn begin(&self, route: Option<&str>, method: &Method) -> Counting {
        let method = match method.as_str() {
            "GET" => "GET",
            "PUT" => "PUT",
            "POST" => "POST",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            "HEAD" => "HEAD",
            "OPTIONS" => "OPTIONS",
            _ => "other",
        };
        let route = route.unwrap_or("none").into();
        Counting { metrics: self.clone(), started: Instant::now(), route, method }
    }
}

/// A request that is being answered. One that is given up is not counted.
pub(crate) struct Counting {
    metrics: HttpMetrics,
    started: Instant,
    route: Arc<str>,
    method: &'static str,
}

impl Counting {
    /// The head of the answer is there.
    pub(crate) fn end(self, status: StatusCode) {
        let Counting { metrics, started, route, method } = self;
        let took = started.elapsed().as_secs_f64();
        metrics.seconds.get_or_create(&Route { route: Arc::clone(&route) }).observe(took);
        metrics.requests.get_or_create(&Answered { method, route, status: status.as_u16() }).inc();
    }
}
