//! What stands before every route: whom the request is for, how much is let in, how long it takes.
//!
//! A server on loopback can be reached by every program of the machine, and by every page in a browser on it; one beyond, by
//! every page in a browser near it. A page of another site must not: its requests name another origin, or, where it has bent
//! the name service (DNS rebinding), another host. An address of numbers can't be bent.

use std::any::Any;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tidegate_api::{ErrorBody, code};
use tokio::sync::Semaphore;

use super::errors::{ApiError, NOTHING_CHANGED};
use super::metrics::HttpMetrics;

/// Names a request in logs, errors and the attributes of its transactions.
pub(crate) const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from the caller.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The largest head of a request: its target and its headers, in bytes.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The id of a request: visible ASCII.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// What stands around all routes of a process: each request gets an id, is counted, is refused if it is too large in its head
/// or for another host, and is answered whatever its handler does. One layer, since each costs every look-up a copy of all
/// that is within.
pub(crate) fn enclose<S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    hosts: Arc<Hosts>,
    counted: HttpMetrics,
) -> Router<S> {
    routes.fallback(no_route).layer(from_fn_with_state(Shell { hosts, counted }, receive))
}

#[derive(Clone)]
struct Shell {
    hosts: Arc<Hosts>,
    counted: HttpMetrics,
}

async fn receive(
    State(shell): State<Shell>,
    matched: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let count = shell.counted.begin(matched.as_ref().map(MatchedPath::as_str), request.method());
    let id = identify(&mut request);
    let judged = judge_size(request.uri(), request.headers())
        .and_then(|()| judge_host(&shell.hosts, request.method(), request.uri(), request.headers()));
    let mut response = match judged {
        // What a handler that panicked leaves behind is behind locks, which know of it.
        Ok(()) => AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(panicked),
        Err(error) => error.into_response(),
    };
    count.end(response.status());
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID_HEADER, id);
    // What keeps browsers from guessing, and everybody from keeping.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Gives a request its id: the caller's, if it has one.
fn identify(request: &mut Request) -> HeaderValue {
    let is_usable = |id: &&HeaderValue| !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.to_str().is_ok();
    let given = request.headers().get(&REQUEST_ID_HEADER).filter(is_usable).cloned();
    let id = given.unwrap_or_else(next_id);
    request.extensions_mut().insert(RequestId(id.clone()));
    id
}

/// An id that no other request has: what is random about it is drawn once per process.
fn next_id() -> HeaderValue {
    static PROCESS: LazyLock<uuid::fmt::Simple> = LazyLock::new(|| uuid::Uuid::new_v4().simple());
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let id = format!("{}-{}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed));
    HeaderValue::try_from(id).expect("digits and a hyphen are fit for a header")
}

/// Which hosts a server answers for.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    /// The configured names.
    names: Vec<String>,
    /// Whether it listens beyond loopback, so that its addresses of numbers are hosts too.
    is_beyond_loopback: bool,
    /// Whether it speaks TLS itself. If not, something in front of it may.
    has_tls: bool,
}

impl Hosts {
    pub(crate) fn new(names: &[String], is_beyond_loopback: bool, has_tls: bool) -> Self {
        Self { names: names.to_vec(), is_beyond_loopback, has_tls }
    }

    fn has(&self, host: &str) -> bool {
        let Some(name) = name_of_host(host) else { return false };
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|address| self.is_beyond_loopback || address.is_loopback())
            || self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Whether a page of this origin is the server's own.
    fn is_own_origin(&self, origin: &str, host: &str) -> bool {
        let own = |scheme: &str| origin.strip_prefix(scheme).is_some_and(|rest| rest.eq_ignore_ascii_case(host));
        own("https://") || (!self.has_tls && own("http://"))
    }
}

/// What reads a connection bounds its buffer, which may hold twice as much before that is noticed: here the limit is exact.
fn judge_size(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let target = uri.path().len() + uri.query().map_or(0, str::len);
    let size = headers.iter().fold(target, |size, (name, value)| size + name.as_str().len() + value.len());
    if size <= HEAD_BYTES_MAX {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ErrorBody::new(
            code::TOO_LARGE,
            "The request's head is too large.",
            format!("Its target and headers have {size} bytes; there may be {HEAD_BYTES_MAX}."),
            NOTHING_CHANGED,
            "Send what is large in the body.",
        ),
    ))
}

fn judge_host(hosts: &Hosts, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    // Whoever stands in between may have gone by another of them (RFC 9112, 3.2).
    if headers.get_all(header::HOST).iter().count() > 1 {
        return Err(host_refused("The request names several hosts.".to_owned(), "A request is for one host."));
    }
    let host = headers
        .get(header::HOST)
        .map(|value| value.to_str().unwrap_or("?"))
        .or_else(|| uri.authority().map(|authority| authority.as_str()))
        .unwrap_or_default();
    if !hosts.has(host) {
        return Err(host_refused(
            format!("The request is for the host `{}`.", shown(host)),
            "This server answers for the names in its configuration and for this machine's own alone, so \
             that no page in a browser can reach it under another name.",
        ));
    }
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    if let Some(origin) = origin
        && !method.is_safe()
        && !hosts.is_own_origin(origin, host)
    {
        return Err(host_refused(
            format!("The request comes from a page of `{}`.", shown(origin)),
            "Only the server's own page may change anything.",
        ));
    }
    Ok(())
}

fn host_refused(what: String, why: &str) -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        ErrorBody::new(
            code::HOST_REFUSED,
            what,
            why,
            NOTHING_CHANGED,
            "Use http://127.0.0.1 or http://localhost with the server's port, or add the name to `hosts` in [server].",
        ),
    )
}

/// The beginning of a text that came from outside, without what could confuse a reader.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// The name or address in a host, with or without a port.
fn name_of_host(host: &str) -> Option<&str> {
    match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if port.is_empty() || is_port(port) => Some(address),
            _ => None,
        },
        None => match host.split_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(name),
            Some(_) => None,
            None => Some(host),
        },
    }
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// How many requests of a group of routes are worked on at once, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) limit: Duration,
    /// What the group is called, for people.
    pub(crate) name: &'static str,
}

impl Room {
    pub(crate) fn new(name: &'static str, at_once: usize, limit: Duration) -> Self {
        Self { permits: Arc::new(Semaphore::new(at_once)), limit, name }
    }

    /// Refuses at once what there is no room for: whoever asks can wait better than a queue here.
    pub(crate) fn enter(&self) -> Result<tokio::sync::OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorBody::new(
                    code::OVERLOADED,
                    "The server has no room for another request of this kind.",
                    format!("It works on as many {} as it may at once.", self.name),
                    NOTHING_CHANGED,
                    "Try again in a moment, or raise the limit in the server's configuration.",
                )
                .with_retryable(true),
            )
        })
    }
}

/// Lets a request in if there is room, and cuts it off at its time limit.
pub(crate) async fn limit(State(room): State<Room>, request: Request, next: Next) -> Response {
    let _permit = match room.enter() {
        Ok(permit) => permit,
        Err(error) => return error.into_response(),
    };
    match tokio::time::timeout(room.limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorBody::new(
                code::TIMED_OUT,
                "The server took too long.",
                format!("The request was not done within {:?}, its limit.", room.limit),
                "Whether something was changed is uncertain.",
                "Look at how things stand, then try again.",
            )
            .with_retryable(true),
        )
        .into_response(),
    }
}

/// A handler that panicked: the connection gets an answer all the same.
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    ApiError::internal(format!("panicked: {text}")).into_response()
}

/// The answer where there is no such route.
pub(crate) async fn no_route(uri: Uri) -> ApiError {
    ApiError::absent(
        code::ROUTE_UNKNOWN,
        format!("There is nothing at `{}`.", shown(uri.path())),
        "The API has no such route.",
        "/openapi.json describes every route.",
    )
}

/// The answer where a route does not have this method.
pub(crate) async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        ErrorBody::new(
            code::METHOD_NOT_ALLOWED,
            format!("`{}` can't be asked with {method}.", shown(uri.path())),
            "The route has other methods; the header allow names them.",
            NOTHING_CHANGED,
            "/openapi.json describes every route.",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_hosts_on_loopback() {
        let hosts = Hosts::default();
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:7600", "127.9.9.9:1", "[::1]", "[::1]:7600"] {
            assert!(hosts.has(host), "{host}");
        }
        for host in [
            "",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "127.0.0.1:80@example.com",
            "10.0.0.1",
            "0.0.0.0",
            "[::1",
            "[::1]x",
            "[::2]:1",
            "::1",
        ] {
            assert!(!hosts.has(host), "{host}");
        }
    }

    #[test]
    fn beyond_loopback_the_configured_names_and_numbers_are_hosts_too() {
        let hosts = Hosts::new(&["tidegate.example.com".to_owned()], true, true);
        for host in
            ["tidegate.example.com", "TIDEGATE.example.com:7600", "10.0.0.1:7600", "[2001:db8::1]:1", "localhost"]
        {
            assert!(hosts.has(host), "{host}");
        }
        for host in
            ["example.com", "evil.tidegate.example.com", "tidegate.example.com.evil", "tidegate.example.com:x", ""]
        {
            assert!(!hosts.has(host), "{host}");
        }
    }

    #[test]
    fn a_request_is_for_one_host() {
        let mut headers = HeaderMap::new();
        headers.append(header::HOST, HeaderValue::from_static("127.0.0.1:7600"));
        let judge = |headers: &HeaderMap| judge_host(&Hosts::default(), &Method::GET, &Uri::from_static("/"), headers);
        assert!(judge(&headers).is_ok());
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(judge(&headers).is_err());
    }

    #[test]
    fn a_head_has_a_size() {
        let judge = |bytes: usize| {
            let mut headers = HeaderMap::new();
            headers.insert("x", HeaderValue::from_str(&"x".repeat(bytes)).unwrap());
            judge_size(&Uri::from_static("/"), &headers).is_ok()
        };
        assert!(judge(HEAD_BYTES_MAX - 2));
        assert!(!judge(HEAD_BYTES_MAX - 1));
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let judge = |hosts: &Hosts, method: Method, origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("127.0.0.1:7600"));
            if !origin.is_empty() {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            judge_host(hosts, &method, &Uri::from_static("/v1/stores"), &headers).is_ok()
        };
        let plain = Hosts::default();
        assert!(judge(&plain, Method::POST, ""));
        assert!(judge(&plain, Method::POST, "http://127.0.0.1:7600"));
        assert!(judge(&plain, Method::POST, "https://127.0.0.1:7600"));
        assert!(!judge(&plain, Method::POST, "http://127.0.0.1:7601"));
        assert!(!judge(&plain, Method::PUT, "https://example.com"));
        assert!(!judge(&plain, Method::DELETE, "null"));
        assert!(judge(&plain, Method::GET, "https://example.com"));
        let with_tls = Hosts::new(&[], true, true);
        assert!(judge(&with_tls, Method::POST, "https://127.0.0.1:7600"));
        assert!(!judge(&with_tls, Method::POST, "http://127.0.0.1:7600"));
    }
}
