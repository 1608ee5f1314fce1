//! Watch streams: server-sent events.
//!
//! A stream's producer is a task of its own that ends with the stream. What it has made waits in a
//! short queue; a reader that takes nothing from it for a while is cut off, so that it can't pin
//! old snapshots in memory. It may come back and resume.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::{FutureExt, Stream};
use serde::{Deserialize, Serialize};
use tidegate_api::{ChangedEntity, EntityDocument, ErrorBody, PushView, WatchEvent, code};
use tidegate_rollout::entities::{Region, Store};
use tidegate_state::{Applied, Entity, Epoch, Feed, FeedItem, Path as TreePath, Ref, Revision, Snapshot};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio::time::error::Elapsed;

use crate::access::errand::Errand;
use crate::access::{Asked, Token};
use crate::app::{App, WatchRoom};
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Path, Query};

/// How often something is sent where nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How many events wait for a reader.
const QUEUE: usize = 16;

/// How long a reader may take nothing.
const STALL: Duration = Duration::from_secs(30);

/// The shortest time between two views of one push.
const VIEW_PAUSE: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
pub(crate) struct TreeQuery {
    epoch: Option<String>,
    revision: Option<u64>,
    prefix: Option<String>,
}

/// Watches the state tree below a path: a snapshot, then each change; a heartbeat where nothing
/// happens. With epoch and revision of an earlier watch it goes on from there, or answers 410.
#[utoipa::path(get, path = "/v1/watch", tag = "server",
    params(("epoch" = Option<String>, Query, description = "The epoch of the last event that is known"),
        ("revision" = Option<u64>, Query, description = "Its revision"),
        ("prefix" = Option<String>, Query, description = "A path, such as /stores/airports; everything unless told")),
    responses((status = 200, description = "Events, each a `WatchEvent`", body = WatchEvent,
            content_type = "text/event-stream"),
        (status = 400, body = ErrorBody),
        (status = 410, description = "The log no longer reaches back: begin anew", body = ErrorBody)))]
pub(crate) async fn tree(State(app): State<App>, asked: Asked, Query(query): Query<TreeQuery>) -> ApiResult<Response> {
    let scope = Scope::parse(query.prefix.as_deref())?;
    let from = match (query.epoch, query.revision) {
        (None, None) => None,
        (Some(epoch), Some(revision)) => {
            let epoch = epoch
                .parse()
                .map_err(|_| ApiError::bad_request("The parameter `epoch` is no epoch.", "It is no UUID."))?;
            Some((Epoch(epoch), Revision(revision)))
        }
        _ => {
            return Err(ApiError::bad_request(
                "The place to resume from is incomplete.",
                "`epoch` and `revision` are needed together.",
            ));
        }
    };
    let room = app.enter_watch(&asked)?;
    let feed = app.state().changes(from);
    if let Some((epoch, revision)) = from {
        let at = feed.snapshot();
        if at.epoch() != epoch || at.revision() != revision {
            return Err(gone(at));
        }
    }
    let watch = TreeWatch { feed, scope };
    Ok(stream(&app, asked, room, |sender| watch.run(sender)))
}

pub(super) fn gone(at: &Snapshot) -> ApiError {
    ApiError::new(
        StatusCode::GONE,
        ErrorBody::new(
            code::WATCH_GONE,
            "The watch can't go on from there.",
            format!(
                "What came after that revision is not to be had any more, or belongs to another \
                 epoch; the server is at {}:{}.",
                at.epoch(),
                at.revision()
            ),
            NOTHING_CHANGED,
            "Watch again without epoch and revision: the first event tells everything.",
        ),
    )
}

/// Since when nothing was sent. What happens elsewhere in the tree is nothing that the reader hears.
struct Quiet(Instant);

impl Quiet {
    fn begin() -> Self {
        Self(Instant::now())
    }

    /// What comes before the reader is to be told that the watch lives.
    async fn until_heartbeat<T>(&self, next: impl Future<Output = T>) -> Result<T, Elapsed> {
        tokio::time::timeout_at(self.0 + HEARTBEAT, next).await
    }
}

/// What a watch is about.
enum Scope {
    Everything,
    /// An entity and what lies below it.
    Entity(TreePath),
    /// A collection, with what lies below its entities: its path in text form, with a slash behind.
    Collection(String),
}

impl Scope {
    fn parse(prefix: Option<&str>) -> ApiResult<Self> {
        let prefix = match prefix.map(|prefix| prefix.trim_end_matches('/')) {
            None | Some("") => return Ok(Self::Everything),
            Some(prefix) => prefix,
        };
        if let Ok(path) = TreePath::parse(prefix) {
            return Ok(Self::Entity(path));
        }
        // A collection is what becomes a path with one more id.
        let any = TreePath::parse(&format!("{prefix}/x"))
            .map_err(|error| ApiError::bad_request("The parameter `prefix` is no path.", format!("{error}.")))?;
        let text = any.as_str().strip_suffix('x').unwrap_or(any.as_str());
        Ok(Self::Collection(text.to_owned()))
    }

    fn has(&self, path: &TreePath) -> bool {
        if path.pairs().any(|(collection, _)| [Token::COLLECTION, Errand::COLLECTION].contains(&collection)) {
            // What proves a token is shown to nobody, not even as a digest.
            return false;
        }
        match self {
            Self::Everything => true,
            Self::Entity(scope) => path.is_within(scope),
            Self::Collection(prefix) => path.as_str().starts_with(prefix),
        }
    }
}

struct TreeWatch {
    feed: Feed,
    scope: Scope,
}

impl TreeWatch {
    async fn run(mut self, sender: Sender) -> Result<(), Cut> {
        let mut quiet = Quiet::begin();
        loop {
            let event = match quiet.until_heartbeat(self.feed.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(FeedItem::Snapshot(snapshot))) => Some(self.snapshot(&snapshot)),
                Ok(Some(FeedItem::Transaction(applied))) => self.change(&applied),
                Err(_) => {
                    let at = self.feed.snapshot();
                    Some(WatchEvent::Heartbeat { epoch: at.epoch().to_string(), revision: at.revision().0 })
                }
            };
            if let Some(event) = event {
                let (epoch, revision) = event.position();
                let id = format!("{epoch}:{revision}");
                let name = match &event {
                    WatchEvent::Snapshot { .. } => "snapshot",
                    WatchEvent::Change { .. } => "change",
                    WatchEvent::Heartbeat { .. } => "heartbeat",
                };
                sender.send(name, Some(id), &event).await?;
                quiet = Quiet::begin();
            }
        }
    }

    fn snapshot(&self, snapshot: &Snapshot) -> WatchEvent {
        let mut paths = match &self.scope {
            Scope::Entity(path) => snapshot.paths_within(path),
            Scope::Everything | Scope::Collection(_) => snapshot.paths(),
        };
        paths.retain(|path| self.scope.has(path));
        let entities = paths.into_iter().filter_map(|path| {
            let document = snapshot.document(&path)?;
            Some(EntityDocument { document: parsed(document.json()), path: path.as_str().to_owned() })
        });
        WatchEvent::Snapshot {
            epoch: snapshot.epoch().to_string(),
            revision: snapshot.revision().0,
            entities: entities.collect(),
        }
    }

    /// A transaction, if it concerns anything in scope.
    fn change(&self, applied: &Applied) -> Option<WatchEvent> {
        let changes: Vec<ChangedEntity> = applied
            .changes
            .iter()
            .filter(|change| self.scope.has(&change.path))
            .map(|change| ChangedEntity {
                path: change.path.as_str().to_owned(),
                document: change.after_json().map(parsed),
            })
            .collect();
        (!changes.is_empty()).then(|| WatchEvent::Change {
            epoch: applied.snapshot.epoch().to_string(),
            revision: applied.revision.0,
            at: crate::views::ms(applied.at),
            attributes: (*applied.attributes).clone(),
            changes,
        })
    }
}

fn parsed(json: &str) -> serde_json::Value {
    // What is stored was written as JSON; should it not be, the text itself is the better answer.
    serde_json::from_str(json).unwrap_or_else(|_| json.into())
}

/// Follows a push: its view now and after each change. Ends after a view whose status is for
/// good, with an event called `end`.
#[utoipa::path(get, path = "/v1/pushes/{push}/watch", tag = "pushes",
    params(("push" = String, Path, description = "The push's id")),
    responses((status = 200, description = "Events, each a `PushView`", body = PushView,
            content_type = "text/event-stream"),
        (status = 404, body = ErrorBody)))]
pub(crate) async fn push(State(app): State<App>, asked: Asked, Path(push): Path<String>) -> ApiResult<Response> {
    let room = app.enter_watch(&asked)?;
    let feed = app.state().changes(None);
    let snapshot = app.state().snapshot();
    let reference = app.scene(&snapshot).push_reference(&push)?;
    let watch = PushWatch { app: app.clone(), feed, id: push, store: reference.parent::<Store>() };
    Ok(stream(&app, asked, room, |sender| watch.run(sender)))
}

struct PushWatch {
    app: App,
    feed: Feed,
    id: String,
    store: Ref<Store>,
}

impl PushWatch {
    async fn run(mut self, sender: Sender) -> Result<(), Cut> {
        let mut last: Option<PushView> = None;
        let mut quiet = Quiet::begin();
        loop {
            let Some(view) = self.view() else {
                // The push is gone: its store was deleted, or retention let it go.
                return sender.end().await;
            };
            let ended = view.state.status.is_terminal();
            if last.as_ref().is_none_or(|last| differs(last, &view)) {
                sender.send("push", None, &view).await?;
                last = Some(view);
                quiet = Quiet::begin();
                tokio::time::sleep(VIEW_PAUSE).await;
            }
            if ended {
                return sender.end().await;
            }
            self.changed(&sender, &mut quiet).await?;
        }
    }

    fn view(&self) -> Option<PushView> {
        let snapshot = self.feed.snapshot();
        let scene = self.app.scene(snapshot);
        let found = scene.find_push(&self.id).ok()?;
        scene.push_view(&found).ok()
    }

    /// Waits until something happens that may show in the view; all that has happened by then
    /// counts as one.
    async fn changed(&mut self, sender: &Sender, quiet: &mut Quiet) -> Result<(), Cut> {
        loop {
            let item = quiet.until_heartbeat(self.feed.next()).await;
            let mut concerned = match item {
                Ok(None) => return Err(Cut::Closed),
                Ok(Some(item)) => self.concerns(&item),
                Err(_) => {
                    sender.comment().await?;
                    *quiet = Quiet::begin();
                    // Time alone may show, too: a region that fell silent.
                    true
                }
            };
            while let Some(Some(item)) = self.feed.next().now_or_never() {
                concerned |= self.concerns(&item);
            }
            if concerned {
                return Ok(());
            }
        }
    }

    fn concerns(&self, item: &FeedItem) -> bool {
        let FeedItem::Transaction(applied) = item else {
            return true;
        };
        let store = self.store.id();
        applied.changes.iter().any(|change| {
            let path = &change.path;
            if path.is_within(self.store.path()) {
                return true;
            }
            match path.pairs().next() {
                // Of regions, what they are told of this store and say about it.
                Some((Region::COLLECTION, _)) => {
                    path.depth() == 1 || path.pairs().nth(1).is_some_and(|(_, id)| id == store)
                }
                Some((
                    "stores" | "push-names" | "cluster-hooks" | "uptime" | "garbage" | "artifact-store"
                    | "version-floor",
                    _,
                )) => false,
                _ => true,
            }
        })
    }
}

/// Whether two views differ in more than the time at which they were made.
fn differs(a: &PushView, b: &PushView) -> bool {
    let mut at_the_same_time = b.clone();
    at_the_same_time.now = a.now;
    let heard = at_the_same_time.regions.iter_mut().zip(&a.regions);
    for (region, before) in heard {
        // That an agent lives shows elsewhere.
        region.heard_at = before.heard_at;
    }
    *a != at_the_same_time
}

/// Why a producer stopped.
pub(super) enum Cut {
    /// The reader went away, or the server closes.
    Closed,
    /// The reader took nothing for too long.
    Stalled,
}

pub(super) struct Sender(mpsc::Sender<Event>);

impl Sender {
    pub(super) async fn send<T: Serialize>(&self, name: &str, id: Option<String>, data: &T) -> Result<(), Cut> {
        let Ok(json) = serde_json::to_string(data) else {
            tracing::error!(name, "an event can't be written as JSON");
            return Err(Cut::Closed);
        };
        let event = Event::default().event(name).data(json);
        self.event(match id {
            Some(id) => event.id(id),
            None => event,
        })
        .await
    }

    async fn comment(&self) -> Result<(), Cut> {
        self.event(Event::default().comment("alive")).await
    }

    /// Says that nothing more comes, so that the reader does not take the end for a fault.
    async fn end(&self) -> Result<(), Cut> {
        self.event(Event::default().event("end").data("{}")).await
    }

    async fn event(&self, event: Event) -> Result<(), Cut> {
        match self.0.send_timeout(event, STALL).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(Cut::Stalled),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(Cut::Closed),
        }
    }
}

/// The events of a producer, which ends with them.
struct Events {
    receiver: mpsc::Receiver<Event>,
    producer: JoinHandle<()>,
    metrics: crate::http::metrics::HttpMetrics,
    _room: WatchRoom,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.producer.abort();
        self.metrics.watches.dec();
    }
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context).map(|event| event.map(Ok))
    }
}

/// The answer that a producer's events make up, until whoever asked may ask no more.
pub(super) fn stream<F>(app: &App, asked: Asked, room: WatchRoom, produce: impl FnOnce(Sender) -> F) -> Response
where
    F: Future<Output = Result<(), Cut>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    let metrics = app.http_metrics().clone();
    metrics.watches.inc();
    let work = produce(Sender(sender));
    let closing = app.closing();
    let cut = metrics.watches_cut.clone();
    let watched = app.clone();
    let producer = tokio::spawn(async move {
        let done = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            () = asked.until_over(&watched) => return,
            done = work => done,
        };
        if let Err(Cut::Stalled) = done {
            tracing::info!("a watch was cut off: its reader took nothing for {STALL:?}");
            cut.inc();
        }
    });
    let events = Events { receiver, producer, metrics, _room: room };
    let no_buffering = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (no_buffering, Sse::new(events)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_hears_that_its_watch_lives_while_only_the_rest_of_the_tree_changes() {
        let quiet = Quiet::begin();
        let mut ignored = 0;
        let elsewhere = || tokio::time::sleep(Duration::from_secs(1));
        while quiet.until_heartbeat(elsewhere()).await.is_ok() {
            ignored += 1;
            assert!(Duration::from_secs(ignored) <= HEARTBEAT);
        }
        assert!(ignored > 0);
    }

    #[test]
    fn a_scope_is_everything_an_entity_or_a_collection() {
        let has = |prefix: &str, path: &str| {
            let path = TreePath::parse(path).unwrap();
            Scope::parse(Some(prefix)).unwrap().has(&path)
        };
        assert!(has("", "/stores/s") && has("/", "/stores/s"));
        assert!(has("/stores", "/stores/s") && has("/stores/", "/stores/s/pushes/p"));
        assert!(!has("/stores", "/regions/a") && !has("/store", "/stores/s"));
        assert!(has("/stores/s", "/stores/s") && has("/stores/s", "/stores/s/pushes/p"));
        assert!(!has("/stores/s", "/stores/st"));
        assert!(has("/stores/s/pushes", "/stores/s/pushes/p"));
        assert!(!has("/stores/s/pushes", "/stores/s"));
        assert!(Scope::parse(Some("stores")).is_err());
        for prefix in ["", "/tokens", "/tokens/t", "/tokens/t/sessions"] {
            assert!(!has(prefix, "/tokens/t") && !has(prefix, "/tokens/t/sessions/s"), "{prefix}");
        }
    }
}
