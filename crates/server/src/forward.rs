//! Reads that come to a server which does not host the region go on to whoever does, so that any server answers any read.
//!
//! # Invariants
//! - One hop: what was forwarded is not forwarded again. A server to which a forwarded read comes in vain says who hosts the
//!   region, as it last heard.
//! - Where whoever hosts the region can't answer though something is to be served there, others are asked that serve on: nodes
//!   of the region that are processes of their own, and, where it has just taken over and loads, the agent before it.
//! - Bounded in number and in time, apart from the reads that are answered here, which wait for nothing.
//! - The token of whoever asked goes to servers alone, which know it: that a host is one, the control plane says itself. An
//!   agent's address is what the bearer of a region's token has named, so an agent is shown a token of its own
//!   ([`errand`](crate::access::errand)).

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::StreamExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry as MetricsRegistry;
use reqwest::{RequestBuilder, Url};
use tidegate_api::{BatchRequest, ErrorBody, code};
use tidegate_rollout::entities::{Assignment, Region, RegionHosting};
use tidegate_rollout::region::remote::{HttpClient, RemoteSetupError, chain, check_address, http_client};
use tidegate_state::{Ref, Timestamp};
use tokio::sync::OwnedSemaphorePermit;

use crate::access::errand::Errands;
use crate::app::App;
use crate::http::errors::{ApiError, ApiResult};
use crate::http::guard::{REQUEST_ID_HEADER, RequestId, Room};

/// Marks what was forwarded.
const FORWARDED: HeaderName = HeaderName::from_static("tidegate-forwarded");

/// How long a forwarded read may take, to the last byte of its answer.
const LIMIT: Duration = Duration::from_secs(10);

/// How many others are asked where the host can't answer, and how long each may take.
const OTHERS_ASKED_MAX: usize = 4;
const OTHER_LIMIT: Duration = Duration::from_secs(3);

/// How long after a region was taken over the agent before is asked: later what it has is old.
const BEFORE_FOR: Duration = Duration::from_secs(10 * 60);

/// How many reads are forwarded at once.
const AT_ONCE: usize = 512;

/// The longest refusal that is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Forwards reads.
pub(crate) struct Forwarder {
    http: HttpClient,
    room: Room,
    errands: Errands,
    /// Which of a region's nodes is asked first, by turns.
    next_node: AtomicUsize,
    forwarded: Counter,
    answered_by_others: Counter,
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

impl Read<'_> {
    fn store(&self) -> &str {
        match self {
            Self::Key { store, .. } | Self::Batch { store, .. } => store,
        }
    }
}

/// Who hosts a region that is not hosted here.
pub(crate) struct Elsewhere {
    pub(crate) region: Ref<Region>,
    pub(crate) by: String,
    pub(crate) address: Option<String>,
    pub(crate) is_server: bool,
    /// Where those of its nodes answer that are processes of their own.
    nodes: Vec<String>,
    /// Since when it hosts the region, and where reads were answered before.
    since: Timestamp,
    before: Vec<String>,
}

impl Elsewhere {
    pub(crate) fn of(region: Ref<Region>, hosting: &RegionHosting) -> Self {
        let by = if hosting.is_server {
            hosting.name.clone()
        } else {
            format!("agent {} (id {})", hosting.name, hosting.agent)
        };
        Self {
            region,
            by,
            address: hosting.address.clone(),
            is_server: hosting.is_server,
            nodes: hosting.node_addresses().cloned().collect(),
            since: hosting.since,
            before: hosting.before.clone(),
        }
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
            next_node: AtomicUsize::new(0),
            forwarded: Counter::default(),
            answered_by_others: Counter::default(),
            failed: Counter::default(),
        };
        let registry = metrics.sub_registry_with_prefix("forward");
        registry.register(
            "reads",
            "Reads that were forwarded to whoever hosts their region, and answered",
            forwarder.forwarded.clone(),
        );
        registry.register(
            "reads_answered_by_others",
            "Reads that a node of their region, or the agent before, answered because whoever hosts it could not",
            forwarder.answered_by_others.clone(),
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
        let answer = self.ask_around(app, there, read, origin).await?;
        Ok(answer.into_response(permit))
    }

    /// What whoever hosts the region answers, or somebody else in its stead.
    async fn ask_around(&self, app: &App, there: &Elsewhere, read: Read<'_>, origin: &Origin) -> ApiResult<Answer> {
        let address = there.address.as_deref().unwrap_or_default();
        let answer = match self.ask_at(app, there, (address, there.is_server, LIMIT), read, origin).await {
            Ok(answer) if !answer.can_be_better() => return Ok(answer),
            asked => asked,
        };
        if is_to_be_served(app, there, read.store()) {
            for other in self.others(there, app.state().now()) {
                // These are no servers, whoever the host is: they are shown no token of who asks.
                let asked = self.ask_at(app, there, (other, false, OTHER_LIMIT), read, origin).await;
                if let Ok(of_other) = asked
                    && !of_other.can_be_better()
                {
                    self.answered_by_others.inc();
                    return Ok(of_other);
                }
            }
        }
        answer
    }

    /// Who else may answer, in the order in which they are asked.
    fn others<'a>(&self, there: &'a Elsewhere, now: Timestamp) -> impl Iterator<Item = &'a str> + use<'a> {
        let first = self.next_node.fetch_add(1, Ordering::Relaxed);
        let count = there.nodes.len();
        let nodes = (0..count).map(move |step| &there.nodes[first.wrapping_add(step) % count]);
        let is_new = now.since(there.since) < BEFORE_FOR;
        let before = there.before.iter().filter(move |address| is_new && !there.nodes.contains(address));
        // So many of the nodes that there is room for those before.
        nodes.take(OTHERS_ASKED_MAX / 2).chain(before).take(OTHERS_ASKED_MAX).map(String::as_str)
    }

    /// Asks at one address. What is wrong with the answer is an error only if it is not for whoever asked.
    async fn ask_at(
        &self,
        app: &App,
        there: &Elsewhere,
        (address, is_server, limit): (&str, bool, Duration),
        read: Read<'_>,
        origin: &Origin,
    ) -> ApiResult<Answer> {
        let request = self.request(there, address, read).await?.header(FORWARDED, "1").timeout(limit);
        let request = match &origin.request {
            Some(id) => request.header(REQUEST_ID_HEADER, id.as_str()),
            None => request,
        };
        let request = self.show(request, app, (there, is_server), origin).await?;
        let response = request
            .send()
            .await
            .map_err(|error| not_asked(there, &format!("it could not be reached: {}", chain(&error.without_url()))))?;
        let status = response.status();
        if !passes(status) {
            return Err(not_asked(there, &refusal(response).await));
        }
        let kept = [header::CONTENT_TYPE, header::RETRY_AFTER];
        let headers: HeaderMap =
            kept.into_iter().filter_map(|name| Some((name.clone(), response.headers().get(&name)?.clone()))).collect();
        if status.is_success() {
            return Ok(Answer { status, headers, said: Said::Read(response) });
        }
        let text = refusal_text(response).await;
        let code = serde_json::from_slice::<ErrorBody>(&text).map_or_else(|_| String::new(), |body| body.code);
        Ok(Answer { status, headers, said: Said::Refused { text: text.into(), code } })
    }

    async fn request(&self, there: &Elsewhere, address: &str, read: Read<'_>) -> ApiResult<RequestBuilder> {
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
        let http = self.http.current().await;
        Ok(match read {
            Read::Key { store, key } => http.get(url(&[store, "keys", key])),
            Read::Batch { store, request } => http.post(url(&[store, "keys:batch"])).json(request),
        })
    }

    /// Shows what whoever is asked lets in.
    async fn show(
        &self,
        request: RequestBuilder,
        app: &App,
        (there, is_server): (&Elsewhere, bool),
        origin: &Origin,
    ) -> ApiResult<RequestBuilder> {
        if !is_server {
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

/// Whether the region is to serve something of this store: only then may a node know better than its host.
fn is_to_be_served(app: &App, there: &Elsewhere, store: &str) -> bool {
    let snapshot = app.state().snapshot();
    let assignment = there.region.child::<Assignment>(store).ok();
    let assignment = assignment.and_then(|place| snapshot.get(&place).ok().flatten());
    assignment.is_some_and(|assignment| assignment.serve.is_some())
}

/// What was answered somewhere, for whoever asked.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    said: Said,
}

enum Said {
    /// What was read, still to come.
    Read(reqwest::Response),
    Refused {
        text: Bytes,
        code: String,
    },
}

impl Answer {
    /// Whether somebody else may answer what was not answered there: nothing is wrong with the read itself.
    fn can_be_better(&self) -> bool {
        match &self.said {
            Said::Read(_) => false,
            Said::Refused { code, .. } => {
                [code::NOT_SERVED, code::REGION_HOSTED].contains(&code.as_str())
                    || self.status == StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// The answer; the room that the read takes is held until it was sent.
    fn into_response(self, permit: OwnedSemaphorePermit) -> Response {
        let body = match self.said {
            Said::Refused { text, .. } => Body::from(text),
            Said::Read(response) => Body::from_stream(response.bytes_stream().map(move |chunk| {
                let _held = &permit;
                chunk
            })),
        };
        let mut answer = Response::new(body);
        *answer.status_mut() = self.status;
        answer.headers_mut().extend(self.headers);
        answer
    }
}

/// What a refusal says that is not for whoever asked.
async fn refusal(response: reqwest::Response) -> String {
    let status = response.status();
    match serde_json::from_slice::<ErrorBody>(&refusal_text(response).await) {
        Ok(body) => format!("it answered {status}: {} {}", body.what, body.why.trim_end_matches('.')),
        Err(_) => format!("it answered {status} in no words of Tidegate's"),
    }
}

/// A refusal as it came, as far as it is read.
async fn refusal_text(response: reqwest::Response) -> Vec<u8> {
    let mut text = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        text.extend_from_slice(&chunk);
        if text.len() > REFUSAL_BYTES_MAX {
            break;
        }
    }
    text
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
