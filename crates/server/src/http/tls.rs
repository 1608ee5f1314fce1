//! The server's certificate, read again when its files change.
//!
//! Whoever renews certificates writes two files, one after the other. So a pair that can't be read, or whose halves do not
//! belong together, changes nothing: the one before it is shown until a good one is there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often their content is compared though nothing else about them has changed.
const COMPARE: Duration = Duration::from_secs(60);

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can't be read.
    #[error("{} can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file has nothing of use in it.
    #[error("{} can't be used: {reason}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The two do not belong together, or are of a kind that is not spoken.
    #[error("certificate and key can't be used together: {0}")]
    Pair(#[from] rustls::Error),
}

/// Metrics of the certificate.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsMetrics {
    reloads: Counter,
    failures: Counter,
    is_stale: Gauge,
}

impl TlsMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("tls");
        registry.register(
            "reloads",
            "Certificates taken into use after a change of their files",
            metrics.reloads.clone(),
        );
        registry.register(
            "reload_failures",
            "Changed files that can't be used; the certificate before them is still shown",
            metrics.failures.clone(),
        );
        registry.register(
            "certificate_is_stale",
            "1 while the files have changed and can't be used",
            metrics.is_stale.clone(),
        );
        metrics
    }
}

/// Where the certificate is, and what is shown of it.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    shown: Arc<Shown>,
    seen: Seen,
}

/// What connections are shown.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

/// What was seen of both files.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    stamps: [Stamp; 2],
    digest: [u8; 32],
}

/// What changes of a file when it is written anew.
type Stamp = Option<(SystemTime, u64)>;

/// Both files, read.
struct Files {
    seen: Seen,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Certificate {
    /// Reads a certificate and its key.
    pub(crate) async fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let files = read_both(certificate, key).await?;
        let pair = pair_of(&files, certificate, key)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            shown: Arc::new(Shown(RwLock::new(Arc::new(pair)))),
            seen: files.seen,
        })
    }

    /// What speaks TLS with it.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let shown: Arc<dyn ResolvesServerCert> = Arc::clone(&self.shown) as Arc<dyn ResolvesServerCert>;
        let mut config = config.with_no_client_auth().with_cert_resolver(shown);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Looks after the files until it is told to close.
    pub(crate) async fn keep(mut self, metrics: TlsMetrics, closing: CancellationToken) {
        let mut looks = 0;
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            looks += 1;
            let is_due = looks % (COMPARE.as_secs() / LOOK.as_secs()) == 0;
            let stamps = [stamp(&self.certificate).await, stamp(&self.key).await];
            if is_due || stamps != self.seen.stamps {
                self.look(&metrics, stamps).await;
            }
        }
    }

    async fn look(&mut self, metrics: &TlsMetrics, stamps: [Stamp; 2]) {
        let files = match read_both(&self.certificate, &self.key).await {
            Ok(files) => files,
            Err(error) => return self.not_taken(&error, metrics, Seen { stamps, digest: self.seen.digest }),
        };
        if files.seen.digest == self.seen.digest {
            self.seen = files.seen;
            return;
        }
        match pair_of(&files, &self.certificate, &self.key) {
            Ok(pair) => {
                *self.shown.0.write() = Arc::new(pair);
                metrics.reloads.inc();
                metrics.is_stale.set(0);
                tracing::info!(certificate = %self.certificate.display(), "a new certificate is in use");
                self.seen = files.seen;
            }
            Err(error) => self.not_taken(&error, metrics, files.seen),
        }
    }

    /// Says so once for each change of the files.
    fn not_taken(&mut self, error: &TlsError, metrics: &TlsMetrics, seen: Seen) {
        metrics.failures.inc();
        metrics.is_stale.set(1);
        tracing::warn!(%error, "the certificate has changed and can't be used; the one before it is still shown");
        self.seen = seen;
    }
}

/// The one provider of cryptography in this program: the one that its clients have.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn pair_of(files: &Files, certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let form = |path: &Path, reason: String| TlsError::Form { path: path.to_owned(), reason };
    let chain = CertificateDer::pem_slice_iter(&files.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| form(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(form(certificate, "there is no certificate in it".to_owned()));
    }
    let secret = PrivateKeyDer::from_pem_slice(&files.key).map_err(|error| form(key, error.to_string()))?;
    Ok(CertifiedKey::from_der(chain, secret, &provider())?)
}

async fn read_both(certificate: &Path, key: &Path) -> Result<Files, TlsError> {
    // Stamps come first: what is written meanwhile has another one at the next look.
    let stamps = [stamp(certificate).await, stamp(key).await];
    let (first, second) = (read(certificate).await?, read(key).await?);
    let mut digest = Sha256::new();
    digest.update((first.len() as u64).to_be_bytes());
    digest.update(&first);
    digest.update(&second);
    let seen = Seen { stamps, digest: digest.finalize().into() };
    Ok(Files { seen, certificate: first, key: second })
}

async fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source: io::Error| TlsError::Read { path: path.to_owned(), source };
    let length = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if length > FILE_BYTES_MAX {
        let reason = format!("it has {length} bytes, and {FILE_BYTES_MAX} are the most that is read");
        return Err(TlsError::Form { path: path.to_owned(), reason });
    }
    tokio::fs::read(path).await.map_err(failed)
}

async fn stamp(path: &Path) -> Stamp {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
