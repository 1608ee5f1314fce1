//! Talking to another Tidegate process over HTTP: an agent to the control plane, a node to its agent.
//!
//! | file | has |
//! |---|---|
//! | this one | requests: several addresses, a token from a file, limits on time and size |
//! | `token` | the token's file, read again when it changes |
//! | `stamp` | whether a file was replaced |
//! | `trust` | the certificates that are trusted, read again when they change |
//! | `artifacts` | the other's artifacts as an object store, so that [`ArtifactStore`] works on it unchanged |
//!
//! # Invariants
//! - A request goes to one address after the other, from the one that worked last, once each. Who asks decides whether and
//!   when to ask again.
//! - Every wait has a limit, and every answer a largest size.
//! - A token goes into one header and nowhere else: not into an error, not into a log.
//!
//! [`ArtifactStore`]: tidegate_dataset::artifact::ArtifactStore

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use tidegate_api::ErrorBody;

mod artifacts;
mod stamp;
mod token;
mod trust;

pub use artifacts::RemoteArtifacts;
pub use token::TokenFile;
pub use trust::HttpClient;

/// The longest answer that is read as a whole, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The largest file of certificates, in bytes.
const CERTIFICATES_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The longest error that is read, in bytes.
const ERROR_BYTES_MAX: usize = 1024 * 1024;

/// How many addresses one client may have.
const ADDRESSES_MAX: usize = 32;

/// What a [`RemoteClient`] is made of.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// The other's addresses, such as `http://127.0.0.1:7600`. Any of them will do.
    pub addresses: Vec<String>,
    /// Where the token is, if one is needed.
    pub token: Option<TokenFile>,
    /// Certificates (PEM) that are trusted beside those of the machine. Read again when the file changes.
    pub trusted: Option<PathBuf>,
    /// Who acts, for the record.
    pub user: String,
    /// How long connecting may take.
    pub connect_limit: Duration,
    /// How long a request may take, from connecting to the end of the answer; of one whose answer is a stream, to its
    /// beginning.
    pub request_limit: Duration,
}

impl RemoteOptions {
    /// Options with the usual limits and no token.
    pub fn new(addresses: impl IntoIterator<Item = impl Into<String>>, user: impl Into<String>) -> Self {
        RemoteOptions {
            addresses: addresses.into_iter().map(Into::into).collect(),
            token: None,
            trusted: None,
            user: user.into(),
            connect_limit: Duration::from_secs(3),
            request_limit: Duration::from_secs(10),
        }
    }
}

/// Why a client can't be made.
#[derive(Debug, thiserror::Error)]
pub enum RemoteSetupError {
    /// There is no address, there are too many, or one of them is none.
    #[error("{address:?} is no address of a Tidegate process: {why}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The certificates can't be used.
    #[error("the certificates in {path} can't be used: {why}")]
    Trusted {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
}

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoteError {
    /// Nobody could be reached, or nobody could answer now.
    #[error("{why}")]
    Unreachable {
        /// What happened, at each address.
        why: String,
    },
    /// It was refused.
    #[error("{body}")]
    Refused {
        /// The status of the answer.
        status: u16,
        /// What the other said.
        body: Box<ErrorBody>,
    },
}

impl RemoteError {
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            RemoteError::Refused { status, .. } => Some(*status),
            RemoteError::Unreachable { .. } => None,
        }
    }
}

/// Makes requests. Clones share connections.
#[derive(Clone, Debug)]
pub struct RemoteClient(Arc<Remote>);

#[derive(Debug)]
struct Remote {
    http: HttpClient,
    addresses: Vec<Url>,
    /// The address that answered last.
    current: AtomicUsize,
    token: Option<TokenFile>,
    request_limit: Duration,
}

impl RemoteClient {
    /// A client with these options.
    ///
    /// # Errors
    /// See [`RemoteSetupError`].
    pub fn new(options: RemoteOptions) -> Result<Self, RemoteSetupError> {
        let bad =
            |address: &str, why: &str| RemoteSetupError::Address { address: address.to_owned(), why: why.to_owned() };
        if options.addresses.is_empty() || options.addresses.len() > ADDRESSES_MAX {
            return Err(bad("", &format!("from 1 to {ADDRESSES_MAX} addresses are needed")));
        }
        let mut addresses = Vec::with_capacity(options.addresses.len());
        for address in &options.addresses {
            addresses.push(check_address(address).map_err(|why| bad(address, &why))?);
        }
        let (connect_limit, user) = (options.connect_limit, HeaderValue::from_str(&options.user).ok());
        let http = HttpClient::new(options.trusted.as_deref(), move |builder| {
            let builder = builder.connect_timeout(connect_limit);
            match &user {
                Some(user) => builder.default_headers([(USER_HEADER, user.clone())].into_iter().collect()),
                None => builder,
            }
        })?;
        let remote = Remote {
            http,
            addresses,
            current: AtomicUsize::new(0),
            token: options.token,
            request_limit: options.request_limit,
        };
        Ok(RemoteClient(Arc::new(remote)))
    }

    /// How long a request may take.
    #[must_use]
    pub fn request_limit(&self) -> Duration {
        self.0.request_limit
    }

    /// Makes a request: `build` is given the route's address. The answer is one that is no error; its body is still to
    /// be read.
    ///
    /// # Errors
    /// See [`RemoteError`].
    pub async fn send(
        &self,
        segments: &[&str],
        build: impl Fn(&reqwest::Client, Url) -> RequestBuilder,
    ) -> Result<Response, RemoteError> {
        let remote = &self.0;
        let first = remote.current.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for step in 0..remote.addresses.len() {
            let place = (first + step) % remote.addresses.len();
            let base = &remote.addresses[place];
            match self.attempt(base, segments, &build).await {
                Ok(response) => {
                    remote.current.store(place, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(RemoteError::Unreachable { why }) => failures.push(format!("{base}: {why}")),
                Err(RemoteError::Refused { status, body }) if is_passing(status, &body) => {
                    failures.push(format!("{base}: {body}"));
                }
                Err(refused) => {
                    remote.current.store(place, Ordering::Relaxed);
                    return Err(refused);
                }
            }
        }
        // The next request begins elsewhere: what failed last is the least likely to answer.
        remote.current.store((first + 1) % remote.addresses.len(), Ordering::Relaxed);
        Err(RemoteError::Unreachable { why: failures.join("; ") })
    }

    async fn attempt(
        &self,
        base: &Url,
        segments: &[&str],
        build: &impl Fn(&reqwest::Client, Url) -> RequestBuilder,
    ) -> Result<Response, RemoteError> {
        let url = route(base, segments);
        let http = self.0.http.current().await;
        for again in [true, false] {
            let token = match &self.0.token {
                Some(file) => Some(file.current().await.map_err(|why| RemoteError::Unreachable { why })?),
                None => None,
            };
            let mut request = build(&http, url.clone());
            if let Some(token) = &token {
                request = request.header(AUTHORIZATION, token.header());
            }
            let limit = self.0.request_limit;
            let response = match tokio::time::timeout(limit, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(RemoteError::Unreachable { why: chain(&error.without_url()) }),
                Err(_) => {
                    return Err(RemoteError::Unreachable { why: format!("no answer within {} s", limit.as_secs()) });
                }
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            // The token may have been replaced a moment ago.
            if status == StatusCode::UNAUTHORIZED
                && again
                && let Some(file) = &self.0.token
                && file.is_newer_than(token.as_ref()).await
            {
                continue;
            }
            return Err(refusal(status, response, limit).await);
        }
        Err(RemoteError::Unreachable { why: "the token was refused".to_owned() })
    }

    /// Makes a request and reads its answer as JSON.
    ///
    /// # Errors
    /// See [`RemoteError`].
    pub async fn json<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        build: impl Fn(&reqwest::Client, Url) -> RequestBuilder,
    ) -> Result<T, RemoteError> {
        let response = self.send(segments, build).await?;
        let bytes = read(response, ANSWER_BYTES_MAX, self.0.request_limit).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| RemoteError::Unreachable { why: format!("the answer can't be read: {error}") })
    }

    /// Makes a request whose answer says nothing more than that it was done.
    ///
    /// # Errors
    /// See [`RemoteError`].
    pub async fn done(
        &self,
        segments: &[&str],
        build: impl Fn(&reqwest::Client, Url) -> RequestBuilder,
    ) -> Result<(), RemoteError> {
        let response = self.send(segments, build).await?;
        read(response, ANSWER_BYTES_MAX, self.0.request_limit).await.map(|_| ())
    }
}

/// What every client of one Tidegate process to another is made of: it trusts these certificates (PEM) beside those of the
/// machine, if there are any, and goes where it is told to and nowhere else.
///
/// # Errors
/// The certificates can't be used.
pub fn http_builder(trusted: Option<&Path>) -> Result<reqwest::ClientBuilder, RemoteSetupError> {
    let builder = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(3))
        // Half-open connections show by themselves.
        .tcp_keepalive(Duration::from_secs(15))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")));
    let Some(path) = trusted else { return Ok(builder) };
    let unusable = |why: String| RemoteSetupError::Trusted { path: path.display().to_string(), why };
    let bytes = std::fs::metadata(path).map_err(|error| unusable(error.to_string()))?.len();
    if bytes > CERTIFICATES_BYTES_MAX {
        return Err(unusable(format!("it has {bytes} bytes, and {CERTIFICATES_BYTES_MAX} are the most that is read")));
    }
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(chain(&error)))?;
    if certificates.is_empty() {
        return Err(unusable("there is no certificate in it".to_owned()));
    }
    Ok(builder.tls_certs_merge(certificates))
}

/// A client of these certificates, as [`http_builder`] makes it, which takes them in again when the file changes.
///
/// # Errors
/// The certificates can't be used.
pub fn http_client(trusted: Option<&Path>) -> Result<HttpClient, RemoteSetupError> {
    HttpClient::new(trusted, |builder| builder)
}

/// An address of a Tidegate process, as it is written.
///
/// # Errors
/// What is wrong with it.
pub fn check_address(address: &str) -> Result<Url, String> {
    let url = Url::parse(address).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
        return Err("it has to start with http:// or https://".to_owned());
    }
    Ok(url)
}

/// Says who acts.
const USER_HEADER: reqwest::header::HeaderName = reqwest::header::HeaderName::from_static("tidegate-user");

/// Whether another address, or the same one later, may well answer: nothing is wrong with the request.
fn is_passing(status: u16, body: &ErrorBody) -> bool {
    status >= 500 || status == 429 || status == 408 || body.retryable
}

fn route(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

async fn refusal(status: StatusCode, response: Response, limit: Duration) -> RemoteError {
    let bytes = match read(response, ERROR_BYTES_MAX, limit).await {
        Ok(bytes) => bytes,
        Err(error) => return error,
    };
    match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(body) => RemoteError::Refused { status: status.as_u16(), body: Box::new(body) },
        Err(_) => {
            let text: String = String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).take(200).collect();
            RemoteError::Unreachable { why: format!("answered {status} in no words of Tidegate's: {text}") }
        }
    }
}

async fn read(mut response: Response, bytes_max: usize, limit: Duration) -> Result<Vec<u8>, RemoteError> {
    let unreachable = |why: String| RemoteError::Unreachable { why };
    let reading = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(chain(&error)))? {
            if bytes.len().saturating_add(chunk.len()) > bytes_max {
                return Err(unreachable(format!("the answer is longer than {bytes_max} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    match tokio::time::timeout(limit, reading).await {
        Ok(read) => read,
        Err(_) => Err(unreachable(format!("the answer was not whole within {} s", limit.as_secs()))),
    }
}

/// An error with all that lies behind it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_escaped_and_stay_below_the_address() {
        let base = Url::parse("http://127.0.0.1:1/tidegate/").unwrap();
        let url = route(&base, &["v1", "regions", "a/b ?", "agent"]);
        assert_eq!(url.as_str(), "http://127.0.0.1:1/tidegate/v1/regions/a%2Fb%20%3F/agent");
        assert_eq!(route(&Url::parse("http://h").unwrap(), &["v1"]).as_str(), "http://h/v1");
    }

    #[test]
    fn an_address_that_is_none_is_named() {
        for bad in ["", "127.0.0.1:7600", "ftp://h", "mailto:x@y"] {
            let error = RemoteClient::new(RemoteOptions::new([bad], "test")).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        assert!(RemoteClient::new(RemoteOptions::new(Vec::<String>::new(), "test")).is_err());
    }
}
