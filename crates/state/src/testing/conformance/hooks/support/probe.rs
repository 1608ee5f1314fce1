//! A hook that does as its case tells it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{LIMIT, Store, plain_key, store};
use crate::driver::RequestId;
use crate::{ClusterHook, Outcome, Revision, Run};

/// One run, as the hook saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) server: String,
    /// As the case names it.
    pub(crate) key: String,
    pub(crate) request: RequestId,
    pub(crate) attempt: u32,
    pub(crate) token: u64,
    pub(crate) snapshot: Revision,
    /// `value` of the changed store before and after the change; with `LatestState` what the snapshot has.
    pub(crate) before: Option<u64>,
    pub(crate) after: Option<u64>,
}

type Answer = dyn Fn(&Run) -> Outcome + Send + Sync;

/// A hook that notes its runs, can be held by key, and answers as it is told.
#[derive(Clone)]
pub(crate) struct Probe(Arc<ProbeInner>);

struct ProbeInner {
    seen: Mutex<Vec<Seen>>,
    ended: Mutex<Vec<Seen>>,
    answer: Mutex<Arc<Answer>>,
    held: Mutex<HashMap<String, tokio::sync::watch::Sender<bool>>>,
    changed: tokio::sync::watch::Sender<u64>,
    pause: Mutex<Option<Duration>>,
}

impl Probe {
    pub(crate) fn new() -> Probe {
        Probe(Arc::new(ProbeInner {
            seen: Mutex::default(),
            ended: Mutex::default(),
            answer: Mutex::new(Arc::new(|_| Outcome::Done)),
            held: Mutex::default(),
            changed: tokio::sync::watch::Sender::new(0),
            pause: Mutex::default(),
        }))
    }

    pub(crate) fn answering(answer: impl Fn(&Run) -> Outcome + Send + Sync + 'static) -> Probe {
        let probe = Probe::new();
        probe.answer(answer);
        probe
    }

    pub(crate) fn answer(&self, answer: impl Fn(&Run) -> Outcome + Send + Sync + 'static) {
        *self.0.answer.lock() = Arc::new(answer);
    }

    /// Every run takes up to this long, by the machine's clock.
    pub(crate) fn pause(&self, most: Duration) {
        *self.0.pause.lock() = Some(most);
    }

    /// Runs of this key do not return until they are let go.
    pub(crate) fn hold(&self, key: &str) {
        self.0.held.lock().insert(key.to_owned(), tokio::sync::watch::Sender::new(true));
    }

    pub(crate) fn release(&self, key: &str) {
        if let Some(held) = self.0.held.lock().remove(key) {
            held.send_replace(false);
        }
    }

    /// Holds those of this key that run now until the result is dropped, and no others any more.
    pub(crate) fn keep_held(&self, key: &str) -> Option<tokio::sync::watch::Sender<bool>> {
        self.0.held.lock().remove(key)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.0.seen.lock().clone()
    }

    pub(crate) fn seen_of(&self, key: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.key == key).collect()
    }

    pub(crate) fn ended_of(&self, key: &str) -> usize {
        self.0.ended.lock().iter().filter(|seen| seen.key == key).count()
    }

    /// Waits until what was seen satisfies a condition.
    pub(crate) async fn until(&self, what: &str, mut reached: impl FnMut(&Probe) -> bool) {
        let mut changed = self.0.changed.subscribe();
        let waiting = async {
            while !reached(self) {
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(LIMIT, waiting).await.is_err() {
            panic!("{what}: not within {LIMIT:?}; seen: {:#?}", self.seen());
        }
    }

    pub(crate) async fn started(&self, key: &str, times: usize) {
        self.until(&format!("{times} starts of {key}"), |probe| probe.seen_of(key).len() >= times).await;
    }
}

#[async_trait]
impl ClusterHook for Probe {
    async fn run(&self, run: Run) -> Outcome {
        let value = |change: Option<std::sync::Arc<Store>>| change.map(|store| store.value);
        let (before, after) = match run.change() {
            Some(change) if change.path.collection() == "stores" => {
                (value(change.before().unwrap()), value(change.after().unwrap()))
            }
            Some(_) => (None, None),
            None => {
                (None, run.id("store").and_then(|id| run.snapshot().get(&store(&id)).unwrap().map(|store| store.value)))
            }
        };
        let seen = Seen {
            server: run.state().server().to_string(),
            key: plain_key(run.key().as_str()).to_owned(),
            request: run.request(),
            attempt: run.attempt(),
            token: run.token().0,
            snapshot: run.snapshot().revision(),
            before,
            after,
        };
        let held = self.0.held.lock().get(&seen.key).map(tokio::sync::watch::Sender::subscribe);
        self.0.seen.lock().push(seen.clone());
        self.0.changed.send_modify(|count| *count += 1);
        if let Some(mut held) = held {
            let _ = held.wait_for(|held| !held).await;
        }
        let pause = *self.0.pause.lock();
        if let Some(most) = pause {
            tokio::time::sleep(most.mul_f64(rand::random_range(0.0..1.0))).await;
        }
        let answer = self.0.answer.lock().clone();
        let outcome = answer(&run);
        self.0.ended.lock().push(seen);
        self.0.changed.send_modify(|count| *count += 1);
        outcome
    }
}
