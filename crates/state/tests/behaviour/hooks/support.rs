//! What the K cases share: small entities, hooks that note their runs, and steps of the clock that no live lease misses.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate_state::driver::{HookNumber, LogEntry, RequestId};
use tidegate_state::testing::history::{Expectation, HistoryEvent, Recorder, check};
use tidegate_state::testing::{Cluster, StoreKind};
use tidegate_state::{
    ClusterHook, Entity, HookHandle, IndexKey, Outcome, Record, Ref, Registration, RegistrationEntity, Revision, Root,
    Run, Transaction, TransactionError, WaitForHooks, WriteError,
};

/// How long a test waits for what is about to happen. Only a failure takes as long.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Store {
    pub(crate) value: u64,
}
impl Entity for Store {
    const COLLECTION: &'static str = "stores";
    type Parent = Root;
    type Id = String;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) value: u64,
}
impl Entity for Version {
    const COLLECTION: &'static str = "versions";
    type Parent = Store;
    type Id = u64;
}

/// What hooks write: one per store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Effect {
    pub(crate) count: u64,
    pub(crate) last: u64,
}
impl Entity for Effect {
    const COLLECTION: &'static str = "effects";
    type Parent = Root;
    type Id = String;
}

/// One per run that was acknowledged with writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) request: RequestId,
    pub(crate) token: u64,
}
impl Record for Ledger {
    const KIND: &'static str = "ledger";
    const INDEXES: &'static [&'static str] = &["request"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().number(i64::try_from(self.request.revision.0).unwrap())]
    }
}

pub(crate) fn store(id: &str) -> Ref<Store> {
    Ref::root(id).unwrap()
}

pub(crate) fn effect(id: &str) -> Ref<Effect> {
    Ref::root(id).unwrap()
}

/// One run, as the hook saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) server: String,
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
            key: run.key().to_string(),
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

/// A cluster whose runs are written down, and checked at the end.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) recorder: Recorder,
    handles: Vec<(usize, HookHandle)>,
}

impl World {
    pub(crate) async fn new(kind: StoreKind, servers: usize) -> World {
        World::configured(kind, servers, |_, options| options).await
    }

    pub(crate) async fn configured(
        kind: StoreKind,
        servers: usize,
        configure: impl Fn(usize, tidegate_state::StateOptions) -> tidegate_state::StateOptions + Send + Sync + 'static,
    ) -> World {
        let recorder = Recorder::in_memory();
        let shared = recorder.clone();
        let cluster = Cluster::builder()
            .servers(servers)
            .configure(move |index, mut options| {
                options.recorder = shared.clone();
                options.drain_limit = Duration::from_secs(10);
                configure(index, options.record::<Ledger>())
            })
            .open(&kind)
            .await;
        World { cluster, recorder, handles: Vec::new() }
    }

    /// Registers a hook on a server.
    pub(crate) async fn register(&mut self, server: usize, registration: &Registration, room: u32, probe: &Probe) {
        let handler = Arc::new(probe.clone());
        let handle = self.cluster.server(server).register(registration.clone(), room, handler).await.unwrap();
        self.handles.push((server, handle));
    }

    pub(crate) async fn register_everywhere(&mut self, registration: &Registration, room: u32, probe: &Probe) {
        for server in 0..self.cluster.len() {
            self.register(server, registration, room, probe).await;
        }
    }

    pub(crate) fn kill(&mut self, server: usize) {
        self.cluster.kill(server);
        self.handles.retain(|(of, _)| *of != server);
        let what = format!("server-{server} is killed");
        self.recorder.write("test", HistoryEvent::Fault { what });
    }

    pub(crate) async fn restart(&mut self, server: usize) {
        self.cluster.restart(server).await;
    }

    pub(crate) async fn close(&mut self, server: usize) {
        self.cluster.close(server).await;
        self.handles.retain(|(of, _)| *of != server);
    }

    /// Sets a store's value through a server; says at which revision.
    pub(crate) async fn set(&self, server: usize, id: impl Into<String>, value: u64) -> Revision {
        let entity = store(&id.into());
        let closure = move |tx: &mut Transaction| tx.put(&entity, Store { value });
        let committed: Result<_, WriteError<TransactionError>> = self.cluster.server(server).write(closure).await;
        committed.unwrap().revision
    }

    pub(crate) async fn delete(&self, server: usize, id: &str) -> Revision {
        let entity = store(id);
        let closure = move |tx: &mut Transaction| tx.delete(&entity).map(|_| ());
        let committed: Result<_, WriteError<TransactionError>> = self.cluster.server(server).write(closure).await;
        committed.unwrap().revision
    }

    /// Steps the clock in parts that leave live servers the time to renew their leases.
    pub(crate) async fn step(&self, by: Duration) {
        let part = Duration::from_secs(2);
        let mut left = by;
        while !left.is_zero() {
            let next = left.min(part);
            left -= next;
            self.cluster.advance(next);
            self.leases_renewed().await;
        }
    }

    /// Waits until every server whose lease still holds, and that can renew it, has done so at the clock's present time.
    async fn leases_renewed(&self) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let now = self.cluster.clock().now_at();
            let running: Vec<String> = self.cluster.running().iter().map(|state| state.server().to_string()).collect();
            let stored = self.cluster.stored().await;
            let fresh = |name: &str| {
                stored.servers.iter().any(|row| {
                    &*row.name == name && row.lease_until > now && row.lease_until.since(now) >= Duration::from_secs(7)
                })
            };
            let late = stored.servers.iter().any(|row| {
                let index: usize = row.name.trim_start_matches("server-").parse().unwrap_or(usize::MAX);
                let held = index < self.cluster.len()
                    && self.cluster.points(index).held().iter().any(|point| point.ends_with("-heartbeat"));
                let absent = index < self.cluster.len() && self.cluster.faults(index).is_absent();
                running.contains(&row.name.to_string())
                    && !held
                    && !absent
                    && row.lease_until > now
                    // A killed server's row stays beside that of its next life.
                    && !fresh(&row.name)
            });
            if !late {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "leases were not renewed within {LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a condition on the cluster holds.
    pub(crate) async fn eventually<F, Fut>(&self, what: &str, mut holds: F)
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = bool>,
    {
        let deadline = tokio::time::Instant::now() + LIMIT;
        while !holds().await {
            assert!(tokio::time::Instant::now() < deadline, "{what}: not within {LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the hook's slots are spread over so many servers, and all leased.
    pub(crate) async fn spread(&self, hook: &str, over: usize) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let running = self.cluster.running();
            let view = running[0].cluster().await.unwrap();
            let spread = view.spread(hook);
            let slots = view.slots.iter().filter(|slot| slot.hook == hook && !slot.is_permit).count();
            let leased: usize = spread.values().sum();
            let counts: Vec<usize> = spread.values().copied().filter(|count| *count > 0).collect();
            let even = counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0) <= 1;
            if slots > 0 && leased == slots && counts.len() == over.min(slots) && even {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "slots of {hook} are spread {spread:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn hooks_finish(&self, server: usize) -> tidegate_state::HooksReport {
        self.cluster.server(server).wait_for_hooks(WaitForHooks::all().limit(LIMIT)).await.unwrap()
    }

    /// What a history of this world is checked against.
    pub(crate) async fn expectation(&self) -> Expectation {
        let stored = self.cluster.stored().await;
        let running = self.cluster.running();
        let snapshot = match running.first() {
            Some(state) => {
                state.flush().await.unwrap();
                state.snapshot()
            }
            None => self.cluster.latecomer().await.snapshot(),
        };
        let mut expectation = Expectation::default();
        let mut names: HashMap<HookNumber, String> = HashMap::new();
        for registration in snapshot.roots::<RegistrationEntity>() {
            let (path, entity) = registration.unwrap();
            names.insert(entity.number(), path.id());
            if let Some(attempts) = entity.attempts() {
                expectation.attempts.insert(entity.number(), attempts);
            }
            if let Some(cap) = entity.runs_in_cluster() {
                expectation.caps.insert(entity.number(), cap as usize);
            }
        }
        // Keys of the cases here: the store's id, encoded as in its path.
        for row in &stored.log {
            for (sequence, entry) in row.entries.iter().enumerate() {
                let (path, hooks) = match entry {
                    LogEntry::Change { path, hooks, .. } => (path, hooks.clone()),
                    LogEntry::Existing { path, hook } => (path, vec![*hook]),
                    LogEntry::Action { .. } => continue,
                };
                let key = path.as_str().split('/').nth(2).unwrap().to_owned();
                for hook in hooks {
                    let id = RequestId { revision: row.revision, sequence: u32::try_from(sequence).unwrap(), hook };
                    expectation.keys.insert(id, key.clone());
                }
            }
        }
        for row in stored.records.iter().filter(|row| &*row.kind == Ledger::KIND) {
            let ledger: Ledger = serde_json::from_str(&row.document.json).unwrap();
            expectation.records.push((ledger.request, ledger.token));
        }
        expectation.stored = Some(stored);
        expectation
    }

    /// Checks the history and the stored state, and ends the cluster.
    pub(crate) async fn finish(self) {
        let expectation = self.expectation().await;
        self.finish_with(expectation).await;
    }

    /// As [`World::finish`], where requests still wait on purpose.
    pub(crate) async fn finish_waiting(self) {
        let mut expectation = self.expectation().await;
        expectation.may_wait = true;
        self.finish_with(expectation).await;
    }

    /// As [`World::finish`], against an expectation of the case's own.
    pub(crate) async fn finish_checked(self, expectation: Expectation) {
        self.finish_with(expectation).await;
    }

    async fn finish_with(self, expectation: Expectation) {
        let lines = self.recorder.lines();
        if let Some(stored) = &expectation.stored {
            let found = tidegate_state::testing::linter::lint(stored, &[]);
            assert!(found.is_empty(), "{found:#?}");
        }
        let violations = check(&lines, &expectation);
        assert!(violations.is_empty(), "{}", report(&violations, &lines));
        drop(self.handles);
        self.cluster.finish().await;
    }
}

fn report(
    violations: &[tidegate_state::testing::history::HistoryViolation],
    lines: &[tidegate_state::testing::history::Line],
) -> String {
    let mut text = String::from("the history has violations:\n");
    for violation in violations.iter().take(20) {
        text.push_str(&format!("{violation}\n"));
        for line in &violation.lines {
            text.push_str(&format!("    {line}: {:?}\n", lines[*line]));
        }
    }
    text
}

/// A clock's time, without importing its trait everywhere.
trait NowAt {
    fn now_at(&self) -> tidegate_state::Timestamp;
}

impl NowAt for tidegate_state::ManualClock {
    fn now_at(&self) -> tidegate_state::Timestamp {
        tidegate_state::Clock::now(self)
    }
}

/// The registration that most cases use: one key per store.
pub(crate) fn per_store(name: &str) -> Registration {
    Registration::new(name, 1)
        .on("/stores/{store}")
        .key("{store}")
        .slots(8)
        .backoff(Duration::from_secs(1), Duration::from_secs(60))
}

/// An outcome that counts in the tree and appends a ledger record, both with the acknowledgement.
pub(crate) fn counted(run: &Run) -> Outcome {
    let (id, request, token) = (run.id("store").unwrap(), run.request(), run.token().0);
    Outcome::done_with(move |tx| {
        let path = effect(&id);
        let count = tx.get(&path)?.map_or(0, |effect| effect.count);
        tx.put(&path, Effect { count: count + 1, last: request.revision.0 })?;
        tx.append(&Ledger { request, token })?;
        Ok(())
    })
}
