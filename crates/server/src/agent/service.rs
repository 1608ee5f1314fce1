//! How an agent or a node listens: where, with which certificate, and for whom.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use prometheus_client::registry::Registry as MetricsRegistry;
use tidegate_rollout::region::remote::check_address;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::AgentStartError;
use crate::access::config::{Authentication, TlsSection};
use crate::access::{Exposure, region_authentication};
use crate::config::ServerLimits;
use crate::http::address;
use crate::http::guard::Hosts;
use crate::http::serve::{ConnectionLimits, ConnectionMetrics, Service, drain, serve};
use crate::http::tls::{Certificate, TlsMetrics};

/// The longest address that is told to others.
pub(crate) const ADDRESS_BYTES_MAX: usize = 256;

/// What an agent or a node is told of how to listen.
pub(crate) struct Listening<'a> {
    pub(crate) listen: SocketAddr,
    pub(crate) exposure: Exposure,
    pub(crate) tls: &'a TlsSection,
    pub(crate) advertise: Option<&'a str>,
    pub(crate) has_token: bool,
}

/// What was found to be right of that, before anything is opened.
pub(crate) struct Checked {
    pub(crate) authentication: Authentication,
    listen: SocketAddr,
    advertise: Option<String>,
    certificate: Option<Certificate>,
}

/// A socket that listens.
pub(crate) struct Opened {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
    advertise: Option<String>,
    certificate: Option<Certificate>,
}

/// What serves, and looks after the certificate.
pub(crate) struct Serving {
    serving: JoinHandle<io::Result<()>>,
    certificate: Option<JoinHandle<()>>,
}

impl Listening<'_> {
    pub(crate) async fn check(self) -> Result<Checked, AgentStartError> {
        let bad = |what: String, why: String| AgentStartError::Setting { what, why };
        self.tls.check().map_err(|error| bad("the certificate".to_owned(), error.to_string()))?;
        if let Some(address) = self.advertise {
            check_address(address).map_err(|why| bad(format!("the address {address:?}"), why))?;
            if address.len() > ADDRESS_BYTES_MAX {
                return Err(bad("the address for others".to_owned(), format!("it has over {ADDRESS_BYTES_MAX} bytes")));
            }
        }
        let has_tls = self.tls.pair().is_some();
        let authentication = region_authentication(self.listen, self.has_token, self.exposure, has_tls)?;
        let certificate = self.tls.certificate().await?;
        Ok(Checked { authentication, listen: self.listen, advertise: self.advertise.map(str::to_owned), certificate })
    }
}

impl Checked {
    pub(crate) async fn open(self) -> Result<Opened, AgentStartError> {
        let listen = self.listen;
        let failed = |source| AgentStartError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Opened { address, listener, advertise: self.advertise, certificate: self.certificate })
    }
}

impl Opened {
    /// Its address for programs of this machine.
    pub(crate) fn url(&self) -> String {
        address::url(self.address, self.certificate.is_some())
    }

    /// Its address for others; none where it listens on all of them and was not told which is meant.
    pub(crate) fn advertised(&self) -> Option<String> {
        address::advertised(self.advertise.as_deref(), self.address, self.certificate.is_some())
    }

    /// Which hosts it answers for: loopback, its addresses, and the name that it is advertised by.
    pub(crate) fn hosts(&self) -> Arc<Hosts> {
        let names: Vec<String> = self.advertise.as_deref().and_then(address::host_of).into_iter().collect();
        Arc::new(Hosts::new(&names, !self.address.ip().is_loopback(), self.certificate.is_some()))
    }

    /// What counts how the certificate is renewed, where there is one.
    pub(crate) fn tls_metrics(&self, metrics: &mut MetricsRegistry) -> Option<TlsMetrics> {
        self.certificate.is_some().then(|| TlsMetrics::register(metrics))
    }

    pub(crate) fn serve(
        self,
        router: Router,
        metrics: ConnectionMetrics,
        tls_metrics: Option<TlsMetrics>,
        limits: &ServerLimits,
        closing: &CancellationToken,
    ) -> Result<Serving, AgentStartError> {
        let tls = self.certificate.as_ref().map(Certificate::acceptor).transpose()?;
        let certificate = self.certificate.zip(tls_metrics);
        let certificate = certificate.map(|(kept, metrics)| tokio::spawn(kept.keep(metrics, closing.clone())));
        let service = Service { router, tls, limits: ConnectionLimits::of(limits), metrics };
        let serving = tokio::spawn(serve(self.listener, service, closing.clone()));
        Ok(Serving { serving, certificate })
    }
}

impl Serving {
    /// Waits until it has ended: it was told to close.
    pub(crate) async fn end(&mut self) {
        drain(&mut self.serving).await;
        if let Some(certificate) = self.certificate.take() {
            // It ends by the same token; a panic in it was logged where it happened.
            let _ = certificate.await;
        }
    }

    /// Ends it at once.
    pub(crate) fn abort(&self) {
        self.serving.abort();
        if let Some(certificate) = &self.certificate {
            certificate.abort();
        }
    }
}
