//! What a server of a run serves: its build, its hooks with their slots, its room, how long its runs take, and how that
//! changes while it is up.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate_state::{ClusterHook, HookHandle, Outcome, Ref, RequestId, Run, State, StateOptions, Transaction};

use super::builds::Build;
use super::workload::{Count, EVERY, Effect, LATEST, PLAIN, Trace, registration};

/// How long a run that is not told otherwise takes at most.
const PACE_MAX: u64 = 20;
/// How soon what failed since the database is away is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// What is open for longer is warned of, where compaction is due throughout.
const LONG: Duration = Duration::from_secs(2);
/// How much later a run is wanted again where some are.
const LATER: Duration = Duration::from_secs(1);

/// A hook as a server's code has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HookOrders {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) slots: u32,
    pub(crate) patterns: Vec<String>,
    /// How many of its runs go at once in the cluster.
    pub(crate) cap: Option<u32>,
}

impl HookOrders {
    /// Version 1 of a hook on every thing.
    pub(crate) fn first(name: &str, slots: u32) -> HookOrders {
        HookOrders { name: name.to_owned(), version: 1, slots, patterns: vec!["/things/{thing}".to_owned()], cap: None }
    }
}

/// What a server serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Serving {
    pub(crate) build: Build,
    pub(crate) hooks: Vec<HookOrders>,
    /// How many runs of each hook go at once.
    pub(crate) room: u32,
    /// How long each run takes, in milliseconds; 0: drawn from its request.
    pub(crate) pace_ms: u64,
    /// Some runs fail at first, and some are wanted again a moment later.
    pub(crate) unlucky: bool,
    /// How long log rows are kept, in milliseconds, where compaction is due throughout.
    pub(crate) log_keep_ms: Option<u64>,
    /// Runs leave traces, which are pruned throughout.
    pub(crate) traces: bool,
}

impl Default for Serving {
    fn default() -> Serving {
        let slots = 32;
        Serving {
            build: Build::One,
            hooks: vec![HookOrders::first(EVERY, slots), HookOrders::first(LATEST, slots)],
            room: 8,
            pace_ms: 0,
            unlucky: false,
            log_keep_ms: None,
            traces: false,
        }
    }
}

impl Serving {
    /// Sets what depends on it in a server's options.
    pub(crate) fn set(&self, options: &mut StateOptions) {
        if let Some(keep) = self.log_keep_ms {
            options.log_keep = Duration::from_millis(keep);
            options.entities_behind = Duration::from_millis(300);
            options.compact_every = 1;
            options.long_transaction = LONG;
        }
        if self.traces {
            *options = options.clone().record::<Trace>();
        }
    }
}

/// The hooks that a server runs.
pub(crate) struct Hooks {
    state: State,
    serving: Serving,
    counting: Arc<Counting>,
    handles: BTreeMap<String, HookHandle>,
}

impl Hooks {
    /// Registers all of them, however often the database goes away meanwhile.
    pub(crate) async fn declare(state: &State, serving: Serving) -> Hooks {
        let counting = Arc::new(Counting {
            pace_ms: AtomicU64::new(serving.pace_ms),
            unlucky: serving.unlucky,
            traces: serving.traces,
            wanted_later: Mutex::default(),
        });
        let mut hooks = Hooks { state: state.clone(), serving, counting, handles: BTreeMap::new() };
        hooks.declare_again().await;
        hooks
    }

    /// Runs none of them any more.
    pub(crate) fn withdraw(&mut self) {
        self.handles.clear();
    }

    /// Runs again what was withdrawn.
    pub(crate) async fn declare_again(&mut self) {
        for hook in &self.serving.hooks {
            if self.handles.contains_key(&hook.name) {
                continue;
            }
            let handle = loop {
                let registered = self.state.register(registration(hook), self.serving.room, self.counting.clone());
                match registered.await {
                    Ok(handle) => break handle,
                    Err(error) => eprintln!("not registered yet: {error}"),
                }
                tokio::time::sleep(AGAIN).await;
            };
            self.handles.insert(hook.name.clone(), handle);
        }
    }

    /// Has a hook in another version from now on.
    pub(crate) async fn change(&mut self, hook: HookOrders) {
        let withdrawn = self.handles.is_empty();
        self.handles.remove(&hook.name);
        if let Some(there) = self.serving.hooks.iter_mut().find(|there| there.name == hook.name) {
            *there = hook;
        }
        if !withdrawn {
            self.declare_again().await;
        }
    }

    /// Runs take so long from now on; 0: drawn from their requests.
    pub(crate) fn pace(&self, milliseconds: u64) {
        self.counting.pace_ms.store(milliseconds, Ordering::Relaxed);
    }
}

/// Takes a moment, counts itself, and appends a record: all with its receipt, or nothing.
struct Counting {
    pace_ms: AtomicU64,
    unlucky: bool,
    traces: bool,
    /// What this process has asked for again at a later time.
    wanted_later: Mutex<HashSet<RequestId>>,
}

#[async_trait::async_trait]
impl ClusterHook for Counting {
    async fn run(&self, run: Run) -> Outcome {
        // The work of a hook: some of it is always going on when a fault comes.
        let milliseconds = match self.pace_ms.load(Ordering::Relaxed) {
            0 => run.request().revision.0 % PACE_MAX,
            pace => pace,
        };
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        if self.unlucky {
            match run.request().revision.0 % 16 {
                0 if run.attempt() == 1 => return Outcome::fail("as planned"),
                1 if self.wanted_later.lock().insert(run.request()) => return Outcome::RetryAt(run.now().after(LATER)),
                _ => {}
            }
        }
        let (hook, key) = (run.hook().to_owned(), run.key().as_str().to_owned());
        if hook == PLAIN {
            return Outcome::Done;
        }
        let trace = self.traces.then(|| Trace { key: key.clone() });
        let effect =
            Effect { request: run.request().to_string(), hook: hook.clone(), key: key.clone(), token: run.token().0 };
        Outcome::done_with(move |transaction: &mut Transaction| {
            let count: Ref<Count> = Ref::root(format!("{hook}.{key}"))?;
            let runs = transaction.get(&count)?.map_or(0, |count| count.runs);
            transaction.put(&count, Count { runs: runs + 1 })?;
            if let Some(trace) = &trace {
                transaction.append(trace)?;
            }
            transaction.append(&effect).map(|_| ())
        })
    }
}
