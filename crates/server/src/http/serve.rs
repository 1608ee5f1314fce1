//! Connections: how many there are, how long each may take over what it does, and what is spoken on them.
//!
//! Whoever connects costs the server something before it is known who it is. So there are bounds on how many connections there
//! are, in all and from one address, on how long a handshake and a request's head may take, on how large a head is, and on how
//! long a peer may leave an answer unread. How long a body may take is the routes' business.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::converse::converse;
use crate::config::ServerLimits;

/// What protects a server from those who connect to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// Connections at once. Further ones wait in the system's queue.
    pub(crate) connections: usize,
    /// Connections at once from one address beyond loopback. Further ones are closed.
    pub(crate) connections_per_address: usize,
    /// How long a TLS handshake may take.
    pub(crate) handshake: Duration,
    /// How long a request's head may take, from when the connection is free for one: an idle connection ends then, too.
    /// Longer than our clients keep one idle, so that no request of theirs meets a connection that is being closed.
    pub(crate) head: Duration,
    /// How long a peer may take nothing of what is written to it.
    pub(crate) stalled: Duration,
}

impl ConnectionLimits {
    /// Those that can be set as they are set, and the others as they are always.
    pub(crate) fn of(limits: &ServerLimits) -> Self {
        Self {
            connections: limits.connections,
            connections_per_address: limits.connections_per_address,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            stalled: Duration::from_secs(60),
        }
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self::of(&ServerLimits::default())
    }
}

/// How long the server waits after it could not accept a connection: it is out of file descriptors at most.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long open requests have to end when a process stops.
const DRAIN: Duration = Duration::from_secs(10);

/// Waits until what was open when [`serve`] was told to end has been answered, for a time; then it is cut off.
pub(crate) async fn drain(serving: &mut JoinHandle<io::Result<()>>) {
    if !has_drained(&mut *serving).await {
        serving.abort();
    }
}

/// The same of [`serve`] itself, which is cut off when it is dropped. Says whether everything was answered.
pub(crate) async fn has_drained(serving: impl Future) -> bool {
    let is_over = tokio::time::timeout(DRAIN, serving).await.is_ok();
    if !is_over {
        tracing::warn!("requests were cut off: they did not end within {DRAIN:?}");
    }
    is_over
}

/// The address at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Metrics of connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionMetrics {
    open: Gauge,
    refused: Counter,
    pub(super) handshakes_failed: Counter,
}

impl ConnectionMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("http");
        registry.register("connections", "Open connections", metrics.open.clone());
        registry.register(
            "connections_refused",
            "Connections closed because their address had too many",
            metrics.refused.clone(),
        );
        registry.register(
            "handshakes_failed",
            "TLS handshakes that failed or took too long",
            metrics.handshakes_failed.clone(),
        );
        metrics
    }
}

/// What serves connections.
pub(crate) struct Service {
    pub(crate) router: Router,
    /// TLS, where it is spoken.
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) limits: ConnectionLimits,
    pub(crate) metrics: ConnectionMetrics,
}

/// Serves until it is told to close; ends once all connections have ended. Dropped, it ends them at once.
pub(crate) async fn serve(listener: TcpListener, service: Service, closing: CancellationToken) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(service.limits.connections));
    let service = Arc::new(service);
    let addresses = Arc::new(Addresses::default());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            // Ended connections are let go of while others come.
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &room) => accepted,
        };
        let (stream, peer, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let limit = service.limits.connections_per_address;
        let Some(held) = Addresses::enter(&addresses, peer.ip(), limit) else {
            service.metrics.refused.inc();
            continue;
        };
        let (service, closing) = (Arc::clone(&service), closing.clone());
        connections.spawn(async move {
            let _held = (permit, held);
            service.metrics.open.inc();
            let _open = Open(&service.metrics.open);
            converse(&service, stream, peer, closing).await;
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

struct Open<'a>(&'a Gauge);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How many connections each address beyond loopback has.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

impl Addresses {
    /// Notes one more connection, unless there are too many.
    fn enter(addresses: &Arc<Self>, address: IpAddr, limit: usize) -> Option<Held> {
        let address = address.to_canonical();
        if !address.is_loopback() {
            let mut counts = addresses.0.lock();
            let count = counts.entry(address).or_default();
            if *count >= limit {
                return None;
            }
            *count += 1;
        }
        Some(Held { addresses: Arc::clone(addresses), address })
    }
}

/// One connection of an address.
struct Held {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.address.is_loopback() {
            return;
        }
        let mut counts = self.addresses.0.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_loopback_as_many_as_it_likes() {
        let addresses = Arc::new(Addresses::default());
        let enter = |address: &str| Addresses::enter(&addresses, address.parse().unwrap(), 2);
        let (first, _second) = (enter("192.0.2.1").unwrap(), enter("192.0.2.1").unwrap());
        assert!(enter("192.0.2.1").is_none());
        // The same address, written otherwise.
        assert!(enter("::ffff:192.0.2.1").is_none());
        let _other = enter("192.0.2.2").unwrap();
        drop(first);
        let _again = enter("192.0.2.1").unwrap();
        let loopback: Vec<_> = (0..10).map(|_| enter("127.0.0.1").unwrap()).collect();
        drop(loopback);
        assert_eq!(addresses.0.lock().len(), 2);
    }
}
