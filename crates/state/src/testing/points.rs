//! Named test points: places in a server's work where a test can hold it, cut it off or let it die. Without a test they
//! cost a null check.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

/// The names of the points; those of cluster hooks ([`crate::points`]) among them.
pub mod name {
    pub use crate::cluster_hook::points::*;

    /// Before the committer asks for the write lock.
    pub const COMMIT_BEFORE_LOCK: &str = "commit.before-lock";
    /// The committer holds the write lock.
    pub const COMMIT_LOCKED: &str = "commit.locked";
    /// The closures have run; the commit is about to be sent.
    pub const COMMIT_BEFORE_COMMIT: &str = "commit.before-commit";
    /// The commit is durable, and nobody has been told.
    pub const COMMIT_AFTER_COMMIT: &str = "commit.after-commit";
    /// The tail has read rows and not applied them.
    pub const TAIL_BEFORE_APPLY: &str = "tail.before-apply";
    /// The tail is about to show what it has read.
    pub const TAIL_BEFORE_PUBLISH: &str = "tail.before-publish";
    /// Before the entities are written behind.
    pub const UPKEEP_BEFORE_ENTITIES: &str = "upkeep.before-entities";
    /// Before each batch of a compaction.
    pub const UPKEEP_COMPACTION: &str = "upkeep.compaction";
    /// Before each batch of a pruning of records.
    pub const UPKEEP_PRUNING: &str = "upkeep.pruning";
    /// A page of records is read that lack index entries, and is about to be entered.
    pub const UPKEEP_INDEXING: &str = "upkeep.indexing";
}

/// How long a test waits for a point to be reached before it fails.
const REACH_LIMIT: Duration = Duration::from_secs(20);

/// Whether a server passes a point, or is cut off there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// It goes on.
    Go,
    /// Its connection is cut here: what it was about to do is not done, and what it did is not answered.
    Cut,
}

/// The points of one server. The default has none.
#[derive(Debug, Clone, Default)]
pub struct Points(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    server: String,
    gates: Mutex<HashMap<&'static str, Gate>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Gate {
    /// The server waits here until released.
    hold: bool,
    /// From how many arrivals on it waits here, until let go.
    hold_from: Option<usize>,
    /// How many of the next passes are cut.
    cuts: usize,
    /// The server never gets beyond this point.
    death: bool,
    /// How many wait at the gate now.
    waiting: usize,
    /// How often the point was reached.
    reached: usize,
}

impl Gate {
    fn stops(&self) -> bool {
        self.hold || self.death || self.hold_from.is_some_and(|arrivals| self.reached > arrivals)
    }
}

impl Points {
    /// No points: nothing can be held.
    #[must_use]
    pub const fn none() -> Points {
        Points(None)
    }

    /// Points for the server of this name.
    #[must_use]
    pub fn new(server: impl Into<String>) -> Points {
        Points(Some(Arc::new(Inner {
            server: server.into(),
            gates: Mutex::new(HashMap::new()),
            changed: watch::Sender::new(0),
        })))
    }

    /// Whether there are points at all.
    pub(crate) const fn are_some(&self) -> bool {
        self.0.is_some()
    }

    /// The server's side: passes a point, waiting while a test holds it.
    pub(crate) async fn pass(&self, point: &'static str) -> Pass {
        match &self.0 {
            None => Pass::Go,
            Some(inner) => inner.pass(point).await,
        }
    }

    /// Holds the server at a point from now on, until the returned hold is released or dropped.
    ///
    /// # Panics
    /// If the server was made without points.
    pub fn hold(&self, point: &'static str) -> Hold {
        let inner = self.inner();
        inner.change(point, |gate| gate.hold = true);
        Hold { inner, point }
    }

    /// Holds the server at a point after so many arrivals, until [`Points::let_go`] or the end of the test: for what is to
    /// stand still beside a test, and is not its subject. [`Points::held`] does not list it.
    ///
    /// # Panics
    /// If the server was made without points.
    pub fn hold_after(&self, point: &'static str, arrivals: usize) {
        self.inner().change(point, |gate| gate.hold_from = Some(arrivals));
    }

    /// Ends [`Points::hold_after`].
    ///
    /// # Panics
    /// If the server was made without points.
    pub fn let_go(&self, point: &'static str) {
        self.inner().change(point, |gate| gate.hold_from = None);
    }

    /// Cuts the server off at the next so many passes of a point.
    ///
    /// # Panics
    /// If the server was made without points.
    pub fn cut(&self, point: &'static str, times: usize) {
        self.inner().change(point, |gate| gate.cuts += times);
    }

    /// Lets the server's task die at a point: it never gets beyond it. Kill the server when it has been reached.
    ///
    /// # Panics
    /// If the server was made without points.
    pub fn die(&self, point: &'static str) {
        self.inner().change(point, |gate| gate.death = true);
    }

    /// Lets a server that was started again get beyond a point at which it was to die.
    ///
    /// # Panics
    /// If the server was made without points.
    pub fn revive(&self, point: &'static str) {
        self.inner().change(point, |gate| gate.death = false);
    }

    /// Waits until something waits at a point (held or dead there).
    ///
    /// # Panics
    /// If that takes longer than any working server needs, naming the point and the server.
    pub async fn reached(&self, point: &'static str) {
        self.inner().wait(point, "reached", REACH_LIMIT, |gate| gate.waiting > 0).await;
    }

    /// How often a point was reached.
    #[must_use]
    pub fn count(&self, point: &'static str) -> usize {
        self.0.as_ref().map_or(0, |inner| inner.gates.lock().get(point).map_or(0, |gate| gate.reached))
    }

    /// The points at which the server is held now.
    #[must_use]
    pub fn held(&self) -> Vec<&'static str> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let gates = inner.gates.lock();
        gates.iter().filter(|(_, gate)| gate.hold && gate.waiting > 0).map(|(point, _)| *point).collect()
    }

    fn inner(&self) -> Arc<Inner> {
        self.0.clone().expect("the server was made with points (testing::Cluster does)")
    }
}

impl Inner {
    async fn pass(&self, point: &'static str) -> Pass {
        let mut changed = self.changed.subscribe();
        let held = self.change(point, |gate| {
            gate.reached += 1;
            if gate.stops() {
                gate.waiting += 1;
                return true;
            }
            false
        });
        if held {
            let guard = Waiting { inner: self, point };
            // The sender is in `self`, so the wait only ends by the condition.
            while self.gates.lock().get(point).is_some_and(Gate::stops) {
                let _ = changed.changed().await;
            }
            drop(guard);
        }
        self.change(point, |gate| {
            if gate.cuts > 0 {
                gate.cuts -= 1;
                return Pass::Cut;
            }
            Pass::Go
        })
    }

    fn change<T>(&self, point: &'static str, change: impl FnOnce(&mut Gate) -> T) -> T {
        let result = change(self.gates.lock().entry(point).or_default());
        self.changed.send_modify(|count| *count += 1);
        result
    }

    async fn wait(&self, point: &'static str, what: &str, limit: Duration, until: impl Fn(&Gate) -> bool) {
        let mut changed = self.changed.subscribe();
        let reached = async {
            while !self.gates.lock().get(point).is_some_and(&until) {
                let _ = changed.changed().await;
            }
        };
        if tokio::time::timeout(limit, reached).await.is_err() {
            panic!("point {point} of server {} was not {what} within {limit:?}", self.server);
        }
    }
}

/// Counts a waiter out, also when its task is aborted.
struct Waiting<'a> {
    inner: &'a Inner,
    point: &'static str,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.inner.change(self.point, |gate| gate.waiting -= 1);
    }
}

/// A point that is held until this is released or dropped.
#[derive(Debug)]
#[must_use = "dropping it releases the point"]
pub struct Hold {
    inner: Arc<Inner>,
    point: &'static str,
}

impl Hold {
    /// Waits until the server has come to the point.
    ///
    /// # Panics
    /// If that takes longer than any working server needs, naming the point and the server.
    pub async fn reached(&self) {
        self.reached_within(REACH_LIMIT).await;
    }

    /// As [`Hold::reached`], with a limit of the test's own.
    ///
    /// # Panics
    /// As [`Hold::reached`].
    pub async fn reached_within(&self, limit: Duration) {
        self.inner.wait(self.point, "reached", limit, |gate| gate.waiting > 0).await;
    }

    /// Lets the server go on.
    pub fn release(self) {}

    /// Cuts the server off as it goes on.
    pub fn cut(self) {
        self.inner.change(self.point, |gate| gate.cuts += gate.waiting.max(1));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.inner.change(self.point, |gate| gate.hold = false);
    }
}
