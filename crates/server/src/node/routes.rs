//! A node's own HTTP service: orders of its agent, and reads.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use futures::Stream;
use tidegate_api::{BatchRequest, ErrorBody, code};
use tidegate_rollout::engine::embedded::NodeReadError;
use tidegate_rollout::engine::remote::wire::{Line, Order, carry_out};
use tidegate_rollout::engine::{EngineError, LoadProgress};
use tidegate_rollout::region::host::{ReadAnswer, ReadBatchAnswer, ReadError};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::NodeApp;
use crate::access::region::{RegionGate, Secret, region_guard};
use crate::access::table::Process;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Body, Path};
use crate::http::guard::{self, Hosts};
use crate::http::metrics;
use crate::routes::reads::LookUp;
use crate::routes::{Group, Route, Unruled, assemble, ops, reads};

/// How often a node says that it lives while a step goes on. Its agent takes five times that for the end of it.
const ALIVE_EVERY: Duration = Duration::from_secs(2);

/// Every route of a node.
pub(crate) fn all() -> Vec<Route<NodeApp>> {
    vec![
        Route::new("/v1/engine", Group::Manifests).on("post", engine),
        Route::new("/v1/stores/{store}/keys/{key}", Group::LookUps).on("get", key),
        Route::new("/v1/stores/{store}/keys:batch", Group::Reads).on("post", batch),
        Route::new("/healthz", Group::Free).on("get", ops::health),
        Route::new("/readyz", Group::Free).on("get", ready),
        Route::new("/metrics", Group::Free).on("get", measures),
    ]
}

/// The node's service.
///
/// # Errors
/// A route without a rule.
pub(super) fn router(app: NodeApp, hosts: Arc<Hosts>) -> Result<Router, Unruled> {
    let region = app.0.guard.clone();
    let secret = Secret {
        text: app.0.secret.as_str().into(),
        whose: "that the node has told its agent",
        what_to_do: "Start the node with the address of the agent that hosts the region.",
    };
    let routes = assemble(Process::Node, all(), &app.0.limits.service, |route, rules, is_look_up| {
        let gate = RegionGate { guard: region.clone(), rules, is_look_up, secret: Some(secret.clone()) };
        route.layer(from_fn_with_state(gate, region_guard))
    })?;
    let http = app.0.http.clone();
    Ok(guard::enclose(routes, hosts, http).with_state(app))
}

/// A step, as its agent orders it. The answer is lines, the last of which says what came of it.
async fn engine(State(app): State<NodeApp>, Body(order): Body<Order>) -> ApiResult<Response> {
    let obeyed = {
        let app = app.clone();
        tokio::task::spawn_blocking(move || app.0.obeys.take(order.token)).await.map_err(ApiError::internal)?
    };
    match obeyed {
        Ok(Ok(())) => {}
        Ok(Err(highest)) => {
            return Err(refused(&format!(
                "Its token is {}, and another agent has commanded the node with {highest}: that one alone is obeyed.",
                order.token
            )));
        }
        Err(error) => return Err(ApiError::disk("The token could not be kept.", &error)),
    }
    let (sender, receiver) = mpsc::channel(4);
    let cancelled = app.0.closing.child_token();
    let steps = app.0.steps.clone();
    steps.spawn(step(app, order, sender, cancelled.clone()));
    let lines = Lines { receiver, _stop: cancelled.drop_guard() };
    let body = axum::body::Body::from_stream(lines);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")], body).into_response())
}

/// Carries a step out, and says how far it is. It ends when its reader has gone away.
async fn step(app: NodeApp, order: Order, sender: mpsc::Sender<Bytes>, cancelled: CancellationToken) {
    let progress = Arc::new(LoadProgress::default());
    let work = carry_out(&app.0.engine, order.command, &app.0.source, &app.0.loads, &progress, &cancelled);
    let mut work = std::pin::pin!(work);
    let mut said = progress.get();
    let last = loop {
        tokio::select! {
            biased;
            outcome = &mut work => break match outcome {
                Ok(outcome) => Line::Done(outcome),
                Err(error) => Line::Failed(error.into()),
            },
            () = cancelled.cancelled() => {
                // The step notices soon, and what it says then nobody hears.
                let _ = tokio::time::timeout(ALIVE_EVERY, &mut work).await;
                break Line::Failed(EngineError::retry("the step was cut off").into());
            }
            () = tokio::time::sleep(ALIVE_EVERY / 4) => {
                let now = progress.get();
                let line = if now == said { Line::Alive } else { Line::Progress { done: now.0, total: now.1 } };
                said = now;
                if send(&sender, &line).await.is_err() {
                    cancelled.cancel();
                }
            }
        }
    };
    // Who asked may have gone away.
    let _ = send(&sender, &last).await;
}

async fn send(sender: &mpsc::Sender<Bytes>, line: &Line) -> Result<(), ()> {
    let mut text = serde_json::to_vec(line).map_err(|_| ())?;
    text.push(b'\n');
    sender.send_timeout(text.into(), ALIVE_EVERY * 5).await.map_err(|_| ())
}

/// The lines of a step, which is cut off when nobody reads them any more.
struct Lines {
    receiver: mpsc::Receiver<Bytes>,
    _stop: DropGuard,
}

impl Stream for Lines {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context).map(|line| line.map(Ok))
    }
}

fn refused(why: &str) -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        ErrorBody::new(
            code::REFUSED,
            "The node refuses the order.",
            why,
            "Nothing was changed: the node serves what it serves.",
            "Start the node with the address of the agent that hosts the region.",
        ),
    )
}

impl NodeApp {
    fn region(&self) -> String {
        self.0.region.read().clone().unwrap_or_default()
    }

    fn not_read(&self, store: &str, error: NodeReadError) -> ApiError {
        let (region, name) = (self.region(), store.to_owned());
        let error = match error {
            NodeReadError::NoVersion => ReadError::NoVersion { region, store: name },
            NodeReadError::BadKey { message } => ReadError::BadKey { message },
            NodeReadError::TooLarge => ReadError::TooLarge,
            NodeReadError::Damaged { version, message } => {
                tracing::warn!(
                    node = self.0.name,
                    store,
                    version,
                    message,
                    "a read found damage; the agent puts it right"
                );
                ReadError::Damaged { region, store: name, version }
            }
        };
        reads::read_failed(store, error, None)
    }
}

async fn key(State(app): State<NodeApp>, asked: LookUp) -> ApiResult<Response> {
    let (store, key) = (asked.store(), asked.key());
    let answer = app.0.engine.read(store, key).map_err(|error| app.not_read(store, error))?;
    let answer = ReadAnswer { value: answer.value, version: answer.version, node: app.0.name.as_str().into() };
    reads::key_answer(store, key, &app.region(), &answer)
}

async fn batch(
    State(app): State<NodeApp>,
    Path(store): Path<String>,
    Body(request): Body<BatchRequest>,
) -> ApiResult<Response> {
    reads::check_batch(&request, app.0.limits.service.batch_keys)?;
    let answer = app.0.engine.read_batch(&store, &request.keys).map_err(|error| app.not_read(&store, error))?;
    let answer = ReadBatchAnswer { values: answer.values, version: answer.version, node: app.0.name.as_str().into() };
    reads::batch_answer(&request, &app.region(), &answer)
}

/// Ready once it belongs to a region: until then it has nothing to serve.
async fn ready(State(app): State<NodeApp>) -> Response {
    if app.0.region.read().is_some() {
        return "ready\n".into_response();
    }
    let why = "No agent has taken it into its region yet.";
    let mut error = ApiError::unavailable("The node is not ready.", why);
    error.body.consequences = NOTHING_CHANGED.to_owned();
    error.into_response()
}

async fn measures(State(app): State<NodeApp>) -> Response {
    metrics::text(&app.0.metrics)
}
