//! The link of a region whose agent is a process of its own, over HTTP.
//!
//! The watch is a stream of server-sent events that says something at least every few seconds; one that is silent for
//! longer is lost, and another is opened where it was, at whichever address answers. Where the log does not reach back to
//! that place any more (410: it was compacted, or the database restored), the link asks for the whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use reqwest::{Response, Url};
use tidegate_api::agent::{HostClaim, HostGrant};
use tidegate_api::code;
use tidegate_api::sse::Parser;
use tidegate_state::{Clock, SystemClock, Timestamp};

use super::wire::WireItem;
use super::{AssignmentWatch, LinkError, LinkItem, Position, RegionLink};
use crate::entities::Report;
use crate::region::hosting::Holder;
use crate::region::remote::{RemoteClient, RemoteError};

/// The control plane says something at least every five seconds; after three times that, a watch counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Differences between the clocks below this are the network's.
const CLOCK_STEP_MIN_MS: i64 = 200;

/// What an [`HttpLink`] is made of.
#[derive(Clone, Debug)]
pub struct HttpLinkOptions {
    /// The region.
    pub region: String,
    /// Reaches the control plane.
    pub client: RemoteClient,
}

/// Watches and reports over HTTP.
#[derive(Clone)]
pub struct HttpLink {
    region: String,
    client: RemoteClient,
    clock: PlaneClock,
}

impl HttpLink {
    /// The link of this region.
    #[must_use]
    pub fn new(options: HttpLinkOptions) -> Self {
        HttpLink { region: options.region, client: options.client, clock: PlaneClock::default() }
    }

    /// The control plane's clock, as far as it is known from its answers: this machine's until there is one.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.clock.clone())
    }

    fn segments<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        [&["v1", "regions", &self.region, "agent"], rest].concat()
    }

    fn failed(error: RemoteError) -> LinkError {
        match error {
            RemoteError::Unreachable { why } => LinkError::Unavailable { why },
            RemoteError::Refused { body, .. } if body.code == code::REGION_HOSTED => {
                let mut subjects = body.subjects.into_iter();
                let by = subjects.next().unwrap_or_else(|| body.why.clone());
                LinkError::Replaced { by, address: subjects.next() }
            }
            RemoteError::Refused { status: 401 | 403, body } => LinkError::NotLetIn { why: body.to_string() },
            RemoteError::Refused { body, .. } => LinkError::Refused { why: body.to_string() },
        }
    }
}

#[async_trait]
impl RegionLink for HttpLink {
    fn region(&self) -> &str {
        &self.region
    }

    async fn host(&self, claim: &HostClaim) -> Result<HostGrant, LinkError> {
        let sent = Instant::now();
        let segments = self.segments(&["host"]);
        let grant: HostGrant =
            self.client.json(&segments, |http, url| http.put(url).json(claim)).await.map_err(Self::failed)?;
        self.clock.heard(grant.now, sent.elapsed());
        Ok(grant)
    }

    async fn release(&self, holder: Holder) -> Result<(), LinkError> {
        let segments = self.segments(&["host"]);
        let released = self.client.done(&segments, |http, url| http.delete(as_holder(url, holder)));
        released.await.map_err(Self::failed)
    }

    async fn watch(&self, from: Option<Position>) -> Result<Box<dyn AssignmentWatch>, LinkError> {
        let response = match self.open(from).await {
            Err(RemoteError::Refused { body, .. }) if from.is_some() && body.code == code::WATCH_GONE => {
                self.open(None).await
            }
            opened => opened,
        };
        let response = response.map_err(Self::failed)?;
        Ok(Box::new(HttpWatch { response, parser: Parser::default() }))
    }

    async fn report(&self, holder: Holder, store: &str, report: Option<Report>) -> Result<(), LinkError> {
        let segments = self.segments(&["reports", store]);
        let done = match &report {
            Some(report) => {
                self.client.done(&segments, |http, url| http.put(as_holder(url, holder)).json(report)).await
            }
            None => self.client.done(&segments, |http, url| http.delete(as_holder(url, holder))).await,
        };
        done.map_err(Self::failed)
    }
}

impl HttpLink {
    async fn open(&self, from: Option<Position>) -> Result<Response, RemoteError> {
        let segments = self.segments(&["watch"]);
        self.client
            .send(&segments, |http, mut url| {
                if let Some(from) = from {
                    let (epoch, revision) = (from.epoch.to_string(), from.revision.to_string());
                    url.query_pairs_mut().append_pair("epoch", &epoch).append_pair("revision", &revision);
                }
                http.get(url).header("accept", "text/event-stream")
            })
            .await
    }
}

/// The address, saying as whom.
fn as_holder(mut url: Url, holder: Holder) -> Url {
    let (agent, token) = (holder.agent.to_string(), holder.token.to_string());
    url.query_pairs_mut().append_pair("agent", &agent).append_pair("token", &token);
    url
}

struct HttpWatch {
    response: Response,
    parser: Parser,
}

#[async_trait]
impl AssignmentWatch for HttpWatch {
    async fn next(&mut self) -> Result<LinkItem, LinkError> {
        let lost = |why: String| LinkError::Unavailable { why };
        loop {
            match self.parser.next() {
                Ok(Some(event)) if event.data.is_empty() => continue,
                Ok(Some(event)) => {
                    let item: WireItem = serde_json::from_str(&event.data)
                        .map_err(|error| lost(format!("an event of the watch can't be read: {error}")))?;
                    return Ok(item.into_item());
                }
                Ok(None) => {}
                Err(why) => return Err(lost(why)),
            }
            match tokio::time::timeout(SILENCE_MAX, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => self.parser.push(&chunk),
                Ok(Ok(None)) => return Err(lost("the control plane closed the watch".to_owned())),
                Ok(Err(error)) => return Err(lost(error.without_url().to_string())),
                Err(_) => return Err(lost(format!("nothing came for {} s", SILENCE_MAX.as_secs()))),
            }
        }
    }
}

/// This machine's clock, set right by what the control plane says the time is, so that all times in reports are by one
/// clock.
#[derive(Clone, Debug, Default)]
struct PlaneClock {
    offset_ms: Arc<Mutex<i64>>,
}

impl PlaneClock {
    /// Takes the time that an answer named, which took so long to come.
    fn heard(&self, now_ms: u64, took: Duration) {
        let half = i64::try_from(took.as_millis() / 2).unwrap_or(0);
        let there = i64::try_from(now_ms).unwrap_or(i64::MAX).saturating_add(half);
        let found = there.saturating_sub(SystemClock.now().0);
        let mut offset = self.offset_ms.lock();
        if offset.abs_diff(found) >= CLOCK_STEP_MIN_MS.unsigned_abs().saturating_add(half.unsigned_abs()) {
            tracing::info!(from_ms = *offset, to_ms = found, "this machine's clock differs from the control plane's");
            *offset = found;
        }
    }
}

impl Clock for PlaneClock {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0.saturating_add(*self.offset_ms.lock()))
    }

    fn sleep_until(&self, at: Timestamp) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        let wait = at.since(self.now());
        Box::pin(tokio::time::sleep(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c13_the_clock_follows_the_control_planes_and_not_the_network() {
        let clock = PlaneClock::default();
        let ahead = |ms: i64| u64::try_from(SystemClock.now().0 + ms).unwrap();
        clock.heard(ahead(50), Duration::from_millis(10));
        assert_eq!(*clock.offset_ms.lock(), 0);
        clock.heard(ahead(300_000), Duration::from_millis(10));
        let offset = *clock.offset_ms.lock();
        assert!((299_000..=301_000).contains(&offset), "{offset}");
        // An answer that took long says little: the time in it may be that of any moment on its way.
        clock.heard(ahead(299_000), Duration::from_secs(4));
        assert_eq!(*clock.offset_ms.lock(), offset);
    }
}
