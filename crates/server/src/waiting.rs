//! A server whose database does not answer yet: it says so to whoever asks, and goes on starting once it does.
//!
//! Invariant: nothing is made up meanwhile. No tree, no default state; every route but `/healthz` answers 503.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tidegate_state::{DriverError, OpenError, State};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::ServerLimits;
use crate::database;
use crate::http::errors::ApiError;
use crate::http::serve::{ConnectionLimits, ConnectionMetrics, Service, has_drained, serve};
use crate::http::tls::Certificate;
use crate::routes::ops;
use crate::server::{Options, StartError};

/// How long passes before the database is tried again, at first and at most.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Opens the state. As long as a shared database can't be reached the server answers at its address that it is not ready,
/// unless it is to fail fast. Dropped, it stops answering.
pub(crate) async fn open(
    options: &Options,
    address: SocketAddr,
    listener: TcpListener,
    certificate: Option<&Certificate>,
) -> Result<(State, TcpListener), StartError> {
    let error = match database::open(options, address).await {
        Err(error) if waits_after(options, &error) => error,
        opened => return Ok((opened?, listener)),
    };
    tracing::warn!(%error, "this server is not ready, and starts once its database answers; with --fail-fast it would end");
    let (listener, meanwhile) = twice(listener).map_err(|source| StartError::Listen { address, source })?;
    let tls = certificate.map(Certificate::acceptor).transpose()?;
    let closing = CancellationToken::new();
    let service = Service {
        router: Router::new().route("/healthz", get(ops::health)).fallback(not_ready),
        tls,
        limits: ConnectionLimits::of(&ServerLimits::from_section(&options.config.server.limits)),
        metrics: ConnectionMetrics::default(),
    };
    let mut answering = pin!(serve(meanwhile, service, closing.clone()));
    let opening = until_it_answers(options, address);
    let opened = tokio::select! {
        opened = opening => opened,
        _ = &mut answering => unreachable!("it serves until it is told to close"),
    };
    closing.cancel();
    has_drained(answering).await;
    let state = opened?;
    tracing::info!("the database answers");
    Ok((state, listener))
}

async fn until_it_answers(options: &Options, address: SocketAddr) -> Result<State, StartError> {
    let mut pause = PAUSE;
    loop {
        // Spread by a random part, so that servers do not come back in step.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSE_MAX);
        match database::open(options, address).await {
            Err(error) if waits_after(options, &error) => tracing::debug!(%error, "the database does not answer yet"),
            opened => return opened,
        }
    }
}

/// Whether waiting may help, and is wanted. The file of a server's own is there or is not.
fn waits_after(options: &Options, error: &StartError) -> bool {
    let driver: &DriverError = match error {
        StartError::Database(driver) | StartError::State(OpenError::Driver(driver)) => driver,
        _ => return false,
    };
    !options.fail_fast && database::database(options).is_some() && driver.is_retryable()
}

/// The database's address and what it says are for the log: whoever asks here is not known.
async fn not_ready() -> ApiError {
    ApiError::not_ready("It waits for its database, which does not answer, and starts by itself once it does.")
}

/// One listener for now and one for later: what connects in between waits in the system's queue.
fn twice(listener: TcpListener) -> io::Result<(TcpListener, TcpListener)> {
    let first = listener.into_std()?;
    let second = first.try_clone()?;
    Ok((TcpListener::from_std(first)?, TcpListener::from_std(second)?))
}
