//! The connection to a server: addresses, requests, answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_api::ErrorBody;

use crate::error::Error;
use crate::retry::{Attempts, Repeat};
use crate::token::Token;

/// Says who acts.
const USER_HEADER: &str = "tidegate-user";

/// The longest answer that is read, but for watch streams.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long an idle connection is kept. Shorter than the server keeps one, so that no request meets
/// a connection that is being closed.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// How a [`Client`] behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server's address, for example `http://127.0.0.1:7600`.
    pub url: String,
    /// Who acts, for the record, where the server asks nobody for a token.
    pub user: Option<String>,
    /// What the client proves itself with.
    pub token: Option<Token>,
    /// A file with the certificates (PEM) that the server's leads to. Absent: those that this
    /// machine trusts.
    pub ca: Option<PathBuf>,
    /// How long a request is repeated while the server can't be reached.
    pub patience: Duration,
    /// How long one attempt may take, from connecting to the end of the answer. Parts and watch
    /// streams have no such limit; they have one on silence instead.
    pub request_limit: Duration,
    /// How long connecting may take.
    pub connect_limit: Duration,
}

impl Options {
    /// Options for a server's address: 10 s of patience, 30 s for a request; the user is the one of
    /// the environment (`USER`).
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: std::env::var("USER").ok(),
            token: None,
            ca: None,
            patience: Duration::from_secs(10),
            request_limit: Duration::from_secs(30),
            connect_limit: Duration::from_secs(5),
        }
    }
}

/// A client of a Tidegate server. Clones are cheap and share connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// For addresses that are not the server's: it tells them nothing about who asks.
    anonymous: reqwest::Client,
    base: Url,
    patience: Duration,
    request_limit: Duration,
    notice: Notice,
}

/// Who is told that a request has failed and is made again.
#[derive(Clone, Default)]
struct Notice(Option<Arc<dyn Fn(&Error, Duration) + Send + Sync>>);

impl Notice {
    fn tell(&self, error: &Error, patience: Duration) {
        if let Some(tell) = &self.0 {
            tell(error, patience);
        }
    }
}

impl std::fmt::Debug for Notice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Notice").field(&self.0.is_some()).finish()
    }
}

/// What a request carries.
pub(crate) enum Body<'a> {
    Nothing,
    Json(&'a [u8]),
    Text(&'static str, &'a str),
}

/// A request that can be made again.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) body: Body<'a>,
    pub(crate) repeat: Repeat,
}

impl Client {
    /// A client for the server at this address, with the default [`Options`].
    ///
    /// # Errors
    /// [`Error::Url`] if the address is no `http` or `https` URL.
    pub fn new(url: &str) -> Result<Self, Error> {
        Self::with_options(Options::new(url))
    }

    /// A client with these options.
    ///
    /// # Errors
    /// [`Error::Url`] if the address is no `http` or `https` URL, [`Error::Local`] if the file with
    /// certificates can't be read.
    pub fn with_options(options: Options) -> Result<Self, Error> {
        let bad = |reason: String| Error::Url { url: options.url.clone(), reason };
        let base = Url::parse(&options.url).map_err(|error| bad(error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(bad("it has to start with http:// or https://".to_owned()));
        }
        let mut headers = HeaderMap::new();
        let user = options.user.as_ref().and_then(|user| HeaderValue::from_bytes(user.as_bytes()).ok());
        if let Some(user) = user {
            headers.insert(USER_HEADER, user);
        }
        if let Some(token) = &options.token {
            if base.scheme() == "http" && !is_loopback(&base) {
                tracing::warn!(url = %base, "the token travels in the clear: the address begins with http://");
            }
            headers.insert(AUTHORIZATION, token.header());
        }
        let mut builder = reqwest::Client::builder();
        if let Some(path) = &options.ca {
            builder = builder.tls_certs_only(read_certificates(path)?);
        }
        let http = builder
            .connect_timeout(options.connect_limit)
            .pool_idle_timeout(IDLE_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .default_headers(headers)
            .user_agent(concat!("tidegate-client/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| bad(chain(&error)))?;
        let anonymous = reqwest::Client::builder()
            .connect_timeout(options.connect_limit)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| bad(chain(&error)))?;
        Ok(Self {
            http,
            anonymous,
            base,
            patience: options.patience,
            request_limit: options.request_limit,
            notice: Notice::default(),
        })
    }

    /// The same client with another [`Options::patience`].
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// The same client, which tells of each failure after which a request is made again: what failed, and for how long it
    /// is tried in all. It must be quick.
    #[must_use]
    pub fn with_notice(&self, notice: impl Fn(&Error, Duration) + Send + Sync + 'static) -> Self {
        Self { notice: Notice(Some(Arc::new(notice))), ..self.clone() }
    }

    /// The server's address.
    #[must_use]
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// The URL of a route: each segment is escaped. Parameters without a value are left out.
    pub(crate) fn route(&self, segments: &[&str], query: &[(&str, Option<&str>)]) -> Url {
        let mut url = self.base.clone();
        let mut path = self.base.path().trim_end_matches('/').to_owned();
        for segment in segments {
            path.push('/');
            escape_into(&mut path, segment);
        }
        url.set_path(&path);
        url.set_query(None);
        for (name, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        url
    }

    pub(crate) async fn get_json<T: DeserializeOwned>(&self, url: Url) -> Result<T, Error> {
        self.request(Request { method: Method::GET, url, body: Body::Nothing, repeat: Repeat::Always }).await
    }

    pub(crate) async fn send_json<B: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: &B,
        repeat: Repeat,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Local {
            what: format!("could not write the request to {url}"),
            reason: error.to_string(),
        })?;
        self.request(Request { method, url, body: Body::Json(&body), repeat }).await
    }

    /// Makes a request, again where that may help, and reads the answer.
    pub(crate) async fn request<T: DeserializeOwned>(&self, request: Request<'_>) -> Result<T, Error> {
        let bytes = self.request_bytes(&request).await?;
        serde_json::from_slice(&bytes.1).map_err(|error| Error::Unreadable {
            url: request.url.to_string(),
            status: bytes.0,
            reason: error.to_string(),
        })
    }

    /// Makes a request, again where that may help. Status and body of an answer that is no error.
    pub(crate) async fn request_bytes(&self, request: &Request<'_>) -> Result<(u16, Vec<u8>), Error> {
        let mut attempts = Attempts::new(self.patience);
        let mut never_sent = true;
        loop {
            let (mut error, is_final) = match self.attempt(request).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Final(error)) => (error, true),
                Err(Failed::Again(error)) => (error, false),
            };
            if let Error::Unreachable { surely_not_sent, .. } = &mut error {
                never_sent &= *surely_not_sent;
                *surely_not_sent = never_sent;
            } else {
                never_sent = false;
            }
            if is_final {
                return Err(error);
            }
            match attempts.failed() {
                Some(pause) => {
                    self.notice.tell(&error, self.patience);
                    tracing::debug!(url = %request.url, %error, ?pause, "trying again");
                    tokio::time::sleep(pause).await;
                }
                None => return Err(error.after(&attempts)),
            }
        }
    }

    async fn attempt(&self, request: &Request<'_>) -> Result<(u16, Vec<u8>), Failed> {
        let builder = self.http.request(request.method.clone(), request.url.clone()).timeout(self.request_limit);
        let builder = match request.body {
            Body::Nothing => builder,
            Body::Json(bytes) => builder.header("content-type", "application/json").body(bytes.to_vec()),
            Body::Text(media_type, text) => builder.header("content-type", media_type).body(text.to_owned()),
        };
        let response = builder.send().await.map_err(|error| self.transport(&error, request.repeat))?;
        let status = response.status();
        let bytes = read_all(response, ANSWER_BYTES_MAX).await.map_err(|reason| match reason {
            ReadFailed::Transport(error) => self.transport(&error, request.repeat),
            ReadFailed::TooLong => Failed::Final(Error::Unreadable {
                url: request.url.to_string(),
                status: status.as_u16(),
                reason: format!("it is longer than {ANSWER_BYTES_MAX} bytes"),
            }),
        })?;
        if status.is_success() {
            return Ok((status.as_u16(), bytes));
        }
        Err(refusal(&request.url, status, &bytes, request.repeat))
    }

    /// A request that is not repeated here: for bodies that are streams, and for watch streams.
    pub(crate) fn single(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// A client for URLs that the server has given, which may lead elsewhere.
    pub(crate) fn anonymous(&self) -> &reqwest::Client {
        &self.anonymous
    }

    pub(crate) fn transport(&self, error: &reqwest::Error, repeat: Repeat) -> Failed {
        let unreachable = Error::Unreachable {
            url: self.url().to_owned(),
            tried_for: Duration::ZERO,
            reason: chain(error),
            surely_not_sent: error.is_connect(),
        };
        if repeat == Repeat::Always || error.is_connect() {
            Failed::Again(unreachable)
        } else {
            Failed::Final(unreachable)
        }
    }
}

/// The outcome of one attempt that gave no answer.
pub(crate) enum Failed {
    /// Trying again may help.
    Again(Error),
    /// It does not.
    Final(Error),
}

impl Error {
    /// Says how long was tried, where that matters.
    pub(crate) fn after(self, attempts: &Attempts) -> Self {
        match self {
            Self::Unreachable { url, reason, surely_not_sent, .. } => {
                Self::Unreachable { url, reason, tried_for: attempts.elapsed(), surely_not_sent }
            }
            other => other,
        }
    }
}

/// What an answer that is an error means.
pub(crate) fn refusal(url: &Url, status: StatusCode, bytes: &[u8], repeat: Repeat) -> Failed {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => {
            // What was over the limit was not looked at: it can be made again in any case.
            let is_unseen = status == StatusCode::TOO_MANY_REQUESTS;
            let again = body.retryable && (repeat == Repeat::Always || is_unseen);
            let error = Error::Refused { status: status.as_u16(), body: Box::new(body) };
            if again { Failed::Again(error) } else { Failed::Final(error) }
        }
        Err(_) => Failed::Final(Error::Unreadable {
            url: url.to_string(),
            status: status.as_u16(),
            reason: format!(
                "expected one of Tidegate's errors, found: {}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(200)])
            ),
        }),
    }
}

enum ReadFailed {
    Transport(reqwest::Error),
    TooLong,
}

/// Reads an answer up to a bound.
async fn read_all(mut response: Response, limit: usize) -> Result<Vec<u8>, ReadFailed> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(ReadFailed::Transport)? {
        if bytes.len().saturating_add(chunk.len()) > limit {
            return Err(ReadFailed::TooLong);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads the beginning of an error's answer.
pub(crate) async fn read_error(response: Response) -> Vec<u8> {
    read_all(response, 1024 * 1024).await.unwrap_or_default()
}

/// An error with all that lies behind it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Whether what is sent to this address stays on the machine.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn read_certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, Error> {
    let failed =
        |reason: String| Error::Local { what: format!("the certificates in {} can't be used", path.display()), reason };
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(chain(&error)))?;
    if certificates.is_empty() {
        return Err(failed("there is none in it".to_owned()));
    }
    Ok(certificates)
}

/// Percent-encodes everything but the characters that RFC 3986 calls unreserved.
fn escape_into(path: &mut String, segment: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~:".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push('%');
            path.push(char::from(HEX[usize::from(byte >> 4)]));
            path.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn segments_and_parameters_are_escaped() {
        let client = Client::new("http://127.0.0.1:1/below/").unwrap();
        let url = client.route(&["v1", "stores", "a/b?c#d é%", "keys"], &[("region", Some("x&y")), ("limit", None)]);
        assert_eq!(url.as_str(), "http://127.0.0.1:1/below/v1/stores/a%2Fb%3Fc%23d%20%C3%A9%25/keys?region=x%26y");
    }

    #[test]
    fn an_address_that_is_no_url_is_refused_with_a_reason() {
        for url in ["", "127.0.0.1:7600", "ftp://host/", "http://"] {
            let error = Client::new(url).unwrap_err();
            assert!(matches!(error, Error::Url { .. }), "{url}: {error}");
        }
    }
}
