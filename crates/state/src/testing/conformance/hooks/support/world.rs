//! A cluster whose runs are written down, and steps of its clock that no live lease misses.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::super::Case;
use super::{Effect, LIMIT, Ledger, Probe, Store, Trace, effect, store};
use crate::driver::{HookNumber, LogEntry, RequestId};
use crate::testing::Cluster;
use crate::testing::conformance::agree;
use crate::testing::history::{Expectation, HistoryEvent, Recorder, check, moves};
use crate::{
    HookHandle, Record, Ref, Registration, RegistrationEntity, Revision, Transaction, TransactionError, WaitForHooks,
};

/// A cluster whose runs are written down, and checked at the end.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) recorder: Recorder,
    case: Case,
    handles: Vec<(usize, HookHandle)>,
}

impl World {
    pub(crate) async fn new(case: &Case, servers: usize) -> World {
        World::configured(case, servers, |_, options| options).await
    }

    pub(crate) async fn configured(
        case: &Case,
        servers: usize,
        configure: impl Fn(usize, crate::StateOptions) -> crate::StateOptions + Send + Sync + 'static,
    ) -> World {
        let recorder = Recorder::in_memory();
        let shared = recorder.clone();
        let builder = Cluster::builder().servers(servers).configure(move |index, mut options| {
            options.recorder = shared.clone();
            options.drain_limit = Duration::from_secs(10);
            configure(index, options.record::<Ledger>().record::<Trace>())
        });
        let cluster = case.open(builder).await;
        World { cluster, recorder, case: case.clone(), handles: Vec::new() }
    }

    /// Registers a hook on a server.
    pub(crate) async fn register(&mut self, server: usize, registration: &Registration, room: u32, probe: &Probe) {
        let earlier_lives = self.lives_of(server).await;
        let handler = Arc::new(probe.clone());
        let handle = self.cluster.server(server).register(registration.clone(), room, handler).await.unwrap();
        let is_first = self.handles.iter().all(|(of, _)| *of != server);
        self.handles.push((server, handle));
        if is_first && !self.cluster.faults(server).is_absent() {
            // Before the clock may be stepped: it would miss a step while it is still joining.
            let joined = || async { self.lives_of(server).await.iter().any(|id| !earlier_lives.contains(id)) };
            self.eventually("the server joins", joined).await;
        }
    }

    /// The ids under which a server has joined, in this life and the ones before it.
    async fn lives_of(&self, server: usize) -> Vec<crate::driver::ServerId> {
        let name = self.cluster.server(server).server();
        let (rows, _) = self.cluster.leases().await;
        rows.into_iter().filter(|row| row.name == *name).map(|row| row.id).collect()
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

    /// Kills a server, and starts it again once its lease has ended.
    pub(crate) async fn kill_and_restart(&mut self, server: usize) {
        self.kill(server);
        self.step(Duration::from_secs(12)).await;
        self.restart(server).await;
    }

    pub(crate) async fn close(&mut self, server: usize) {
        self.cluster.close(server).await;
        self.handles.retain(|(of, _)| *of != server);
    }

    /// Lets a server hand over all that it leases of its only hook, while it lives on, and then run the hook again.
    pub(crate) async fn hand_over(&mut self, server: usize, registration: &Registration, room: u32, probe: &Probe) {
        self.handles.retain(|(of, _)| *of != server);
        let state = self.cluster.server(server).clone();
        let handed_over = || async {
            let view = state.cluster().await.unwrap();
            !view.slots.iter().any(|slot| slot.owner.as_ref() == Some(state.server()))
        };
        self.eventually("its slots are handed over", handed_over).await;
        let handle = state.register(registration.clone(), room, Arc::new(probe.clone())).await.unwrap();
        self.handles.push((server, handle));
    }

    /// The key that a store's id makes: the id as it is in its path.
    pub(crate) fn key(&self, id: &str) -> String {
        super::key_of(&self.case.id(id))
    }

    /// A store, by an id that is awkward in that variant.
    pub(crate) fn store(&self, id: &str) -> Ref<Store> {
        store(&self.case.id(id))
    }

    /// What [`super::counted`] writes for a store.
    pub(crate) fn effect(&self, id: &str) -> Ref<Effect> {
        effect(&self.case.id(id))
    }

    /// Sets a store's value through a server; says at which revision.
    pub(crate) async fn set(&self, server: usize, id: impl Into<String>, value: u64) -> Revision {
        let entity = self.store(&id.into());
        let closure = move |tx: &mut Transaction| tx.put(&entity, Store { value });
        self.case.write(self.cluster.server(server), closure).await.revision
    }

    /// As [`World::set`], beside other writes of the same store: repeating it might undo theirs.
    pub(crate) async fn set_beside_others(&self, server: usize, id: impl Into<String>, value: u64) -> Revision {
        let entity = self.store(&id.into());
        let closure = move |tx: &mut Transaction| tx.put(&entity, Store { value });
        let committed = self.cluster.server(server).write::<_, TransactionError, _>(closure).await;
        committed.unwrap().revision
    }

    pub(crate) async fn delete(&self, server: usize, id: &str) -> Revision {
        let entity = self.store(id);
        let closure = move |tx: &mut Transaction| tx.delete(&entity).map(|_| ());
        self.case.write(self.cluster.server(server), closure).await.revision
    }

    /// Steps the clock in parts that leave live servers the time to renew their leases.
    pub(crate) async fn step(&self, by: Duration) {
        self.cluster.step(by).await;
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

    /// As [`World::eventually`], for what takes some time by the servers' clock as well.
    pub(crate) async fn eventually_as_time_passes<F, Fut>(&self, what: &str, mut holds: F)
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = bool>,
    {
        self.eventually(what, || {
            let holds = holds();
            async move {
                self.step(Duration::from_millis(100)).await;
                holds.await
            }
        })
        .await;
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

    /// So far no slot has come to a server that had had it before: none goes to and fro.
    pub(crate) fn none_came_back(&self) {
        let mut leased = HashSet::new();
        let lines = self.recorder.lines();
        for (line, slot) in moves(&lines) {
            assert!(leased.insert((&line.server, slot)), "{slot:?} came back to {}", line.server);
        }
    }

    pub(crate) async fn hooks_finish(&self, server: usize) -> crate::HooksReport {
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

    /// Ends the cluster and checks what is stored. A history is of one epoch: two give the same numbers to requests.
    pub(crate) async fn finish_over_epochs(self) {
        drop(self.handles);
        self.cluster.finish().await;
    }

    async fn finish_with(self, expectation: Expectation) {
        let lines = self.recorder.lines();
        if let Some(stored) = &expectation.stored {
            let found = crate::testing::linter::lint(stored, &[]);
            assert!(found.is_empty(), "{found:#?}");
        }
        let violations = check(&lines, &expectation);
        assert!(violations.is_empty(), "{}", report(&violations, &lines));
        agree(&self.cluster, None).await;
        drop(self.handles);
        self.cluster.finish().await;
    }
}

fn report(violations: &[crate::testing::history::HistoryViolation], lines: &[crate::testing::history::Line]) -> String {
    let mut text = String::from("the history has violations:\n");
    for violation in violations.iter().take(20) {
        text.push_str(&format!("{violation}\n"));
        for line in &violation.lines {
            text.push_str(&format!("    {line}: {:?}\n", lines[*line]));
        }
    }
    text
}
