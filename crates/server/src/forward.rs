//! Reads that come to a server which does not host the region go on to whoever does, so that any server answers any read.
//!
//! # Invariants
//! - One hop: what was forwarded is not forwarded again. A server to which a forwarded read comes in vain says who hosts the
//!   region, as it last heard.
//! - Bounded in number and in time, apart from the reads that are answered here, which wait for nothing.
//! - The token of whoever asked goes to servers alone, which know it: that a host is one, the control plane says itself. An
//!   agent's address is what the bearer of a region's token has named, so an agent is shown a token of its own
//!   ([`errand`](crate::access::errand)).

use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::StreamExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry as MetricsRegistry;
use reqwest::{RequestBuilder, Url};
use tidegate_api::{BatchRequest, ErrorBody};
use tidegate_rollout::entities::{Region, RegionHosting};
use tidegate_rollout::region::remote::{RemoteSetupError, chain, check_address, http_client};
use tidegate_state::Ref;

use crate::access::errand::Errands;
use crate::app::App;
use crate::http::errors::{ApiError, ApiResult};
use crate::http::guard::{REQUEST_ID_HEADER, RequestId, Room};

/// Marks what was forwarded.
const FORWARDED: HeaderName = HeaderName::from_static("tidegate-forwarded");

/// How long a forwarded read may take, to the last byte of its answer.
const LIMIT: Duration = Duration::from_secs(10);

/// How many reads are forwarded at once.
const AT_ONCE: usize = 512;

/// The longest refusal that is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Forwards reads.
pub(crate) struct Forwarder {
    http: reqwest::Client,
    room: Room,
    errands: Errands,
    forwarded: Counter,
    failed: Counter,
}

/// What of a request goes on with it.
pub(crate) struct Origin {
    authorization: Option<HeaderValue>,
    cookie: Option<HeaderValue>,
    request: Option<RequestId>,
    is_forwarded: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        // Clones of these share their bytes.
        Ok(Self {
            authorization: parts.headers.get(header::AUTHORIZATION).cloned(),
            cookie: parts.headers.get(header::COOKIE).cloned(),
            request: parts.extensions.get::<RequestId>().cloned(),
            is_forwarded: parts.headers.contains_key(FORWARDED),
        })
    }
}

/// What is read.
#[derive(Clone, Copy)]
pub(crate) enum Read<'a> {
    Key { store: &'a str, key: &'a str },
    Batch { store: &'a str, request: &'a BatchRequest },
}

/// Who hosts a region that is not hosted here.
pub(crate) struct Elsewhere {
    pub(crate) region: Ref<Region>,
    pub(crate) by: String,
    pub(crate) address: Option<String>,
    pub(crate) is_server: bool,
}

impl Elsewhere {
    pub(crate) fn of(region: Ref<Region>, hosting: &RegionHosting) -> Self {
        let by = if hosting.is_server {
            hosting.name.clone()
        } else {
            format!("agent {} (id {})", hosting.name, hosting.agent)
        };
        Self { region, by, address: hosting.address.clone(), is_server: hosting.is_server }
    }
}

impl Forwarder {
    /// Trusts these certificates beside those of the machine.
    ///
    /// # Errors
    /// They can't be used.
    pub(crate) fn new(trusted: Option<&Path>, metrics: &mut MetricsRegistry) -> Result<Self, RemoteSetupError> {
        let forwarder = Self {
            http: http_client(trusted)?,
            room: Room::new("reads of regions that are hosted elsewhere", AT_ONCE, LIMIT),
            errands: Errands::default(),
            forwarded: Counter::default(),
            failed: Counter::default(),
        };
        let registry = metrics.sub_registry_with_prefix("forward");
        registry.register(
            "reads",
            "Reads that were forwarded to whoever hosts their region, and answered",
            forwarder.forwarded.clone(),
        );
        registry.register(
            "reads_failed",
            "Reads that were to be forwarded, and were not answered there",
            forwarder.failed.clone(),
        );
        Ok(forwarder)
    }

    /// Whether this can be asked there.
    pub(crate) fn can(&self, there: &Elsewhere, read: Read<'_>, origin: &Origin) -> bool {
        // An address can't have these as a part of its path.
        let has_no_path = matches!(read, Read::Key { key: "" | "." | "..", .. });
        !origin.is_forwarded && there.address.is_some() && !has_no_path
    }

    /// Asks whoever hosts the region, and answers with their answer.
    pub(crate) async fn forward(
        &self,
        app: &App,
        there: &Elsewhere,
        read: Read<'_>,
        origin: &Origin,
    ) -> ApiResult<Response> {
        let answered = self.ask(app, there, read, origin).await;
        match &answered {
            Ok(_) => self.forwarded.inc(),
            Err(_) => self.failed.inc(),
        };
        answered
    }

    async fn ask(&self, app: &App, there: &Elsewhere, read: Read<'_>, origin: &Origin) -> ApiResult<Response> {
        let permit = self.room.enter()?;
        let request = self.request(there, read)?.header(FORWARDED, "1").timeout(LIMIT);
        let request = match &origin.request {
            Some(id) => request.header(REQUEST_ID_HEADER, id.as_str()),
            None => request,
        };
        let request = self.show(request, app, there, origin).await?;
        let response = request
            .send()
            .await
            .map_err(|error| not_asked(there, &format!("it could not be reached: {}", chain(&error.without_url()))))?;
        let status = response.status();
        if !passes(status) {
            return Err(not_asked(there, &refusal(response).await));
        }
        let kept = [header::CONTENT_TYPE, header::RETRY_AFTER];
        let headers: Vec<_> =
            kept.into_iter().filter_map(|name| Some((name.clone(), response.headers().get(&name)?.clone()))).collect();
        let body = response.bytes_stream().map(move |chunk| {
            let _held = &permit;
            chunk
        });
        let mut answer = Response::new(Body::from_stream(body));
        *answer.status_mut() = status;
        answer.headers_mut().extend(headers);
        Ok(answer)
    }

    fn request(&self, there: &Elsewhere, read: Read<'_>) -> ApiResult<RequestBuilder> {
        let address = there.address.as_deref().unwrap_or_default();
        let base = check_address(address).map_err(|why| not_asked(there, &format!("that is no address: {why}")))?;
        let url = |segments: &[&str]| -> Url {
            let mut url = base.clone();
            if let Ok(mut path) = url.path_segments_mut() {
                path.pop_if_empty().extend(["v1", "stores"]).extend(segments);
            }
            url.set_query(None);
            url.query_pairs_mut().append_pair("region", &there.region.id());
            url
        };
        Ok(match read {
            Read::Key { store, key } => self.http.get(url(&[store, "keys", key])),
            Read::Batch { store, request } => self.http.post(url(&[store, "keys:batch"])).json(request),
        })
    }

    /// Shows what whoever hosts the region lets in.
    async fn show(
        &self,
        request: RequestBuilder,
        app: &App,
        there: &Elsewhere,
        origin: &Origin,
    ) -> ApiResult<RequestBuilder> {
        if !there.is_server {
            if !app.access().is_required() {
                return Ok(request);
            }
            return Ok(request.bearer_auth(self.errands.token(app.state(), &there.region).await?));
        }
        Ok(match (&origin.authorization, &origin.cookie) {
            (Some(shown), _) => request.header(header::AUTHORIZATION, shown),
            (None, Some(session)) => request.header(header::COOKIE, session),
            (None, None) => request,
        })
    }
}

/// Whether an answer is for whoever asked: what is wrong with it is their business.
fn passes(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 404 | 413 | 421 | 422 | 429 | 503)
}

/// What a refusal says that is not for whoever asked.
async fn refusal(response: reqwest::Response) -> String {
    let status = response.status();
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        body.extend_from_slice(&chunk);
        if body.len() > REFUSAL_BYTES_MAX {
            break;
        }
    }
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(body) => format!("it answered {status}: {} {}", body.what, body.why.trim_end_matches('.')),
        Err(_) => format!("it answered {status} in no words of Tidegate's"),
    }
}

fn not_asked(there: &Elsewhere, why: &str) -> ApiError {
    let (region, address) = (there.region.id(), there.address.as_deref().unwrap_or("no address"));
    let what = format!("Region `{region}` can't be asked from here now.");
    let mut error = ApiError::unavailable(what, format!("It is hosted by {}, at {address}, and {why}.", there.by));
    error.body.consequences = "Nothing was read. The region serves on; whoever reaches it reads there.".to_owned();
    error.body.countermeasures =
        "Try again, or ask there. Servers have to reach the addresses by which hosts are advertised, and to trust their \
         certificates (`ca_file` in [server])."
            .to_owned();
    error.body.subjects = std::iter::once(there.by.clone()).chain(there.address.clone()).collect();
    error
}
