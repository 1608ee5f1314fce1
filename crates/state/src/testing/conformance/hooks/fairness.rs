//! A key with far more requests than a server keeps in memory, and others beside it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cluster_hook::metrics::label;
use crate::driver::{LogEntry, RequestId};
use crate::{
    ClusterHook, HookHandle, Outcome, Registration, Run, StateOptions, Transaction, TransactionError, WaitForHooks,
};

use super::super::within;
use super::Case;
use super::support::{LIMIT, Store, Version, World, plain_key};

const IN_MEMORY: usize = 1_000;
const OTHERS: usize = 999;
/// How many requests one transaction makes.
const PART: usize = 1_000;

const MANY: &str = "many";

/// A hook that notes whose turn it is, and runs nothing while it is closed.
#[derive(Clone)]
struct Turns(Arc<TurnsInner>);

struct TurnsInner {
    open: watch::Sender<bool>,
    noted: Mutex<Noted>,
    /// How many requests of other keys have run.
    others: watch::Sender<usize>,
}

#[derive(Default)]
struct Noted {
    /// In order of their starts. What runs again after a death is noted once.
    many: Vec<RequestId>,
    others: HashSet<RequestId>,
    of_key: HashMap<String, Vec<RequestId>>,
    /// The most requests that were in memory at once.
    in_memory: i64,
}

#[async_trait]
impl ClusterHook for Turns {
    async fn run(&self, run: Run) -> Outcome {
        let _ = self.0.open.subscribe().wait_for(|open| *open).await;
        let in_memory = run.state().metrics().hooks.queued.get_or_create(&label(run.hook())).get();
        let request = run.request();
        let mut noted = self.0.noted.lock();
        noted.in_memory = noted.in_memory.max(in_memory);
        match plain_key(run.key().as_str()) {
            MANY if noted.many.last() != Some(&request) => noted.many.push(request),
            MANY => {}
            other => {
                if noted.others.insert(request) {
                    noted.of_key.entry(other.to_owned()).or_default().push(request);
                }
            }
        }
        self.0.others.send_replace(noted.others.len());
        Outcome::Done
    }
}

impl Turns {
    fn new() -> Turns {
        let noted = Mutex::default();
        Turns(Arc::new(TurnsInner { open: watch::Sender::new(false), noted, others: watch::Sender::new(0) }))
    }

    /// Opens the hook until each of the other keys has had so many turns: the one with many has not had a thousand meanwhile.
    async fn take_turns(&self, times: usize, what: &str) {
        let before = self.0.noted.lock().many.len();
        self.0.open.send_replace(true);
        let mut others = self.0.others.subscribe();
        let done = others.wait_for(|others| *others == OTHERS * times);
        match tokio::time::timeout(LIMIT, done).await {
            Ok(done) => drop(done.unwrap()),
            Err(_) => panic!("{what}: {} turns of others within {LIMIT:?}", self.0.noted.lock().others.len()),
        }
        self.0.open.send_replace(false);
        let meanwhile = self.0.noted.lock().many.len() - before;
        assert!(
            meanwhile <= 1_000,
            "{what}: the key with many had {meanwhile} turns before each of the others had one"
        );
    }
}

fn bounded(options: StateOptions) -> StateOptions {
    StateOptions { hook_requests_in_memory: IN_MEMORY, ..options }
}

/// A server that runs one at a time, and has few in memory; a second one that asks for runs.
struct Busy {
    world: World,
    turns: Turns,
    handles: Vec<HookHandle>,
}

impl Busy {
    async fn new(case: &Case) -> Busy {
        let world = World::configured(case, 2, |_, options| bounded(options)).await;
        let mut busy = Busy { world, turns: Turns::new(), handles: Vec::new() };
        busy.register(0).await;
        busy.world.spread("hook", 1).await;
        busy
    }

    async fn register(&mut self, server: usize) {
        let hook = Registration::new("hook", 1).on("/stores/{store}/versions/{version}").key("{store}").slots(4);
        let state = self.world.cluster.server(server).clone();
        self.handles.push(state.register(hook, 1, Arc::new(self.turns.clone())).await.unwrap());
        let joined = within("the server joins", async { state.member().wait_for(Option::is_some).await.map(|_| ()) });
        joined.await.unwrap();
    }

    /// So many requests of one key.
    async fn ask_many(&self, many: usize) {
        let store = self.world.store(MANY);
        let numbers: Vec<u64> = (1..=many as u64).collect();
        for part in numbers.chunks(PART) {
            let (store, part) = (store.clone(), part.to_vec());
            self.write(move |tx| {
                tx.put(&store, Store { value: 0 })?;
                part.iter().try_for_each(|number| tx.put(&store.child::<Version>(*number)?, Version { value: 0 }))
            })
            .await;
        }
    }

    /// One request of each other key.
    async fn ask_others(&self, number: u64) {
        let stores: Vec<_> = (0..OTHERS).map(|other| self.world.store(&format!("other-{other}"))).collect();
        self.write(move |tx| {
            for store in &stores {
                tx.put(store, Store { value: 0 })?;
                tx.put(&store.child::<Version>(number)?, Version { value: 0 })?;
            }
            Ok(())
        })
        .await;
    }

    async fn write(&self, put: impl Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static) {
        let written = within("the write", self.world.cluster.server(1).write::<_, TransactionError, _>(put)).await;
        written.unwrap();
    }

    /// One key has so many requests waiting, and each other one gets one.
    async fn take_turns_as_they_come(&self, many: usize) {
        self.ask_many(many).await;
        self.ask_others(1).await;
        self.world.cluster.server(0).flush().await.unwrap();
        self.turns.take_turns(1, "as they come in").await;
    }

    /// What was asked for of the key with many, in order.
    async fn asked(&self) -> Vec<RequestId> {
        let versions = self.world.store(MANY).path().to_string() + "/versions/";
        let mut asked = Vec::new();
        for row in self.world.cluster.stored().await.log {
            for (sequence, entry) in (0..).zip(&row.entries) {
                let LogEntry::Change { path, hooks, .. } = entry else { continue };
                if let (true, [hook]) = (path.as_str().starts_with(&versions), hooks.as_slice()) {
                    asked.push(RequestId { revision: row.revision, sequence, hook: *hook });
                }
            }
        }
        asked
    }

    /// None was missed or out of order, as far as they have run; says how many of the key with many have.
    async fn check(&self, of_each_other: usize) -> usize {
        let asked = self.asked().await;
        let noted = self.turns.0.noted.lock();
        let ran = noted.many.len();
        let differs = noted.many.iter().zip(&asked).position(|(ran, asked)| ran != asked);
        assert_eq!((differs, ran <= asked.len()), (None, true), "none is missed, none out of order");
        for (key, requests) in &noted.of_key {
            assert!(requests.len() == of_each_other && requests.is_sorted(), "{key}: {requests:?}");
        }
        assert_eq!(noted.of_key.len(), OTHERS);
        let in_memory = usize::try_from(noted.in_memory).unwrap();
        assert!(in_memory > 0 && in_memory <= IN_MEMORY, "{in_memory} in memory");
        ran
    }
}

/// K50: one key has 100 000 requests waiting, and 999 others get one each, on a server that runs one at a time and has at most
/// 1 000 in memory: keys take turns, also right after a start and after a take-over.
pub async fn k50_keys_take_turns_beside_one_with_a_hundred_thousand_requests(case: Case) {
    let mut busy = Busy::new(&case).await;
    busy.take_turns_as_they_come(100_000).await;

    busy.ask_others(2).await;
    busy.world.kill(0);
    busy.world.cluster.advance(Duration::from_secs(11));
    busy.world.restart(0).await;
    busy.register(0).await;
    busy.turns.take_turns(2, "after a start").await;

    busy.ask_others(3).await;
    busy.world.kill(0);
    busy.world.cluster.advance(Duration::from_secs(11));
    busy.register(1).await;
    busy.turns.take_turns(3, "after a take-over").await;

    let ran = busy.check(3).await;
    assert!(ran < 100_000 - 1_000, "it has many to the end");
    busy.handles.clear();
    busy.turns.0.open.send_replace(true);
    busy.world.finish_waiting().await;
}

/// K50: what a server has left in the log, having no room for it in memory, is read in time: of a key with a few times as many
/// requests as that every one runs, in order.
pub async fn k50_all_that_did_not_fit_into_memory_runs_in_its_order(case: Case) {
    const REQUESTS: usize = 3 * IN_MEMORY;
    let mut busy = Busy::new(&case).await;
    busy.take_turns_as_they_come(REQUESTS).await;
    busy.turns.0.open.send_replace(true);
    let all = WaitForHooks::all().limit(LIMIT);
    assert!(busy.world.cluster.server(1).wait_for_hooks(all).await.unwrap().finished);
    assert_eq!(busy.check(1).await, REQUESTS);
    busy.handles.clear();
    busy.world.finish().await;
}
