//! Encryption of the connection to the database, by libpq's modes, on the workspace's one TLS stack.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::DriverError;

/// How far the server is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsMode {
    /// No encryption.
    Disable,
    /// Encryption where the server has it. Nothing is checked.
    Prefer,
    /// Encryption or nothing. Nothing is checked.
    Require,
    /// The certificate has to come from a trusted authority.
    VerifyCa,
    /// And has to be for the host's name.
    VerifyFull,
}

/// Whom to trust.
#[derive(Debug, Clone)]
pub(super) enum RootCertificates {
    System,
    File(PathBuf),
}

pub(super) struct TlsOptions {
    pub(super) mode: TlsMode,
    pub(super) root: Option<RootCertificates>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// What connections are encrypted with.
pub(super) struct Tls {
    mode: TlsMode,
    connector: Option<MakeRustlsConnect>,
}

fn refused(why: String) -> DriverError {
    DriverError::Configuration(format!("the connection to the database can't be encrypted as configured: {why}"))
}

impl Tls {
    /// Reads the files that the options name.
    pub(super) fn new(options: TlsOptions) -> Result<Tls, DriverError> {
        let mode = options.mode;
        if mode == TlsMode::Disable {
            return Ok(Tls { mode, connector: None });
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match mode {
            TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => Arc::new(Unchecked(provider.clone())),
            TlsMode::VerifyCa | TlsMode::VerifyFull => {
                let roots = Arc::new(read_roots(options.root.as_ref())?);
                let inner = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                    .build()
                    .map_err(|error| refused(format!("the root certificates can't be used: {error}")))?;
                if mode == TlsMode::VerifyFull { inner } else { Arc::new(AnyName(inner)) }
            }
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refused(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match (&options.certificate, &options.key) {
            (Some(certificate), Some(key)) => {
                let unreadable = |file: &PathBuf, error: &dyn std::fmt::Display| {
                    refused(format!("{} can't be read: {error}; it has to be PEM", file.display()))
                };
                let chain = CertificateDer::pem_file_iter(certificate)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .map_err(|error| unreadable(certificate, &error))?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| refused(format!("sslcert and sslkey do not fit each other: {error}")))?
            }
            (Some(_), None) => return Err(refused("sslcert is given and sslkey is not".to_owned())),
            (None, _) => builder.with_no_client_auth(),
        };
        // What libpq's direct negotiation asks for; without effect in the usual one.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Tls { mode, connector: Some(MakeRustlsConnect::new(config)) })
    }

    pub(super) fn mode(&self) -> TlsMode {
        self.mode
    }

    /// None without encryption.
    pub(super) fn connector(&self) -> Option<MakeRustlsConnect> {
        self.connector.clone()
    }
}

fn read_roots(root: Option<&RootCertificates>) -> Result<RootCertStore, DriverError> {
    let mut store = RootCertStore::empty();
    match root {
        None => {
            return Err(refused(
                "this sslmode checks the server's certificate, and there is nothing to check it against; give \
                 sslrootcert=FILE, or sslrootcert=system, or put the file at ~/.postgresql/root.crt"
                    .to_owned(),
            ));
        }
        Some(RootCertificates::System) => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Some(RootCertificates::File(file)) => {
            let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let read = read.map_err(|error| refused(format!("{} can't be read: {error}", file.display())))?;
            store.add_parsable_certificates(read);
        }
    }
    if store.is_empty() { Err(refused("there is no root certificate in sslrootcert".to_owned())) } else { Ok(store) }
}

fn signatures12(
    provider: &CryptoProvider,
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls12_signature(message, certificate, signed, &provider.signature_verification_algorithms)
}

/// Encrypts for whoever answers: libpq's `prefer` and `require`.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signatures12(&self.0, message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks everything but the name: libpq's `verify-ca`.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The name is checked last, so that its error says that all else is well.
        match self.0.verify_server_cert(certificate, chain, name, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
