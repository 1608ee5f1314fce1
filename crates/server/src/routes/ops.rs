//! What keeps a server running asks: is it alive, is it ready, what does it measure.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use tidegate_api::ErrorBody;

use crate::app::App;
use crate::http::errors::ApiError;
use crate::http::metrics;

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", tag = "server",
    responses((status = 200, description = "It is", body = String)))]
pub(crate) async fn health() -> &'static str {
    "ok\n"
}

/// Whether the server can do its work: the state is loaded and regions are restored.
#[utoipa::path(get, path = "/readyz", tag = "server",
    responses((status = 200, description = "It can", body = String),
        (status = 503, description = "Not yet, and why", body = ErrorBody)))]
pub(crate) async fn ready(State(app): State<App>) -> Response {
    if let Some(why) = app.set_back() {
        return ApiError::set_back("The server is not ready: its database was put back.", why).into_response();
    }
    match app.not_ready() {
        None => "ready\n".into_response(),
        Some(why) => ApiError::not_ready(why).into_response(),
    }
}

/// Metrics in Prometheus' text form.
#[utoipa::path(get, path = "/metrics", tag = "server",
    responses((status = 200, description = "Metrics", body = String,
        content_type = "application/openmetrics-text")))]
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    metrics::text(app.metrics())
}
