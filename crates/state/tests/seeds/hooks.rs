//! The hooks of a cluster, and what their code does: it takes a while, fails, panics, asks to be run later, writes in
//! mid-run, and counts itself with its acknowledgement, each as the seed has it for the request and the run.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tidegate_state::driver::RequestId;
use tidegate_state::{
    ClusterHook, Entity, IndexKey, Outcome, Record, Ref, Registration, Root, Run, Timestamp, Transaction,
    TransactionError,
};
use tokio::sync::watch;

use super::operations::Thing;

/// What a panic that is planned says.
pub(crate) const PLANNED_PANIC: &str = "as the seed wants it";

/// After so many runs of a request the next one ends well, so that everything comes to rest.
const RUNS_MAX: u32 = 4;

/// How often the runs of a hook for a key took effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) runs: u64,
}

impl Entity for Count {
    const COLLECTION: &'static str = "counts";
    type Parent = Root;
    type Id = String;
}

/// What the hook for the latest state saw last of a thing; none when it was gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) value: Option<u64>,
}

impl Entity for Seen {
    const COLLECTION: &'static str = "seen";
    type Parent = Root;
    type Id = u64;
}

/// What a run writes before it ends, on condition that its token holds: that token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) token: u64,
}

impl Entity for Mark {
    const COLLECTION: &'static str = "marks";
    type Parent = Root;
    type Id = String;
}

/// One run that took effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Effect {
    pub(crate) request: RequestId,
    pub(crate) hook: String,
    pub(crate) key: String,
    pub(crate) token: u64,
    /// The request is finished with it, and not to be run again later.
    pub(crate) finished: bool,
}

impl Record for Effect {
    const KIND: &'static str = "effect";
    const INDEXES: &'static [&'static str] = &["hook"];

    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().text(&self.hook)]
    }
}

/// Which hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum HookKind {
    /// Is given every change of a thing.
    Every,
    /// Wants the latest state of a thing.
    Latest,
    /// Is triggered by what the others write.
    Chained,
}

impl HookKind {
    pub(crate) const ALL: [HookKind; 3] = [HookKind::Every, HookKind::Latest, HookKind::Chained];

    pub(crate) fn name(self) -> &'static str {
        match self {
            HookKind::Every => "every",
            HookKind::Latest => "latest",
            HookKind::Chained => "chained",
        }
    }

    pub(crate) fn named(name: &str) -> Option<HookKind> {
        HookKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A hook as a seed draws it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HookPlan {
    pub(crate) kind: HookKind,
    pub(crate) attempts: Option<u32>,
    pub(crate) cap: Option<u32>,
    pub(crate) from_existing: bool,
    /// What each definition version has, from 1.
    pub(crate) versions: Vec<VersionPlan>,
}

/// What differs between the definition versions of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VersionPlan {
    pub(crate) slots: u32,
    /// Parts of things ask for runs too.
    pub(crate) parts: bool,
}

impl HookPlan {
    /// None where the seed has no such hook.
    pub(crate) fn draw(kind: HookKind, random: &mut StdRng) -> Option<HookPlan> {
        let there = random.random_bool(0.75);
        let plan = HookPlan {
            kind,
            attempts: [None, Some(1), Some(2), Some(3)][random.random_range(0..4_usize)],
            cap: [None, None, None, Some(1), Some(2)][random.random_range(0..5_usize)],
            from_existing: random.random_bool(0.4),
            versions: (0..4)
                .map(|_| VersionPlan { slots: random.random_range(1..=6), parts: random.random_bool(0.5) })
                .collect(),
        };
        there.then_some(plan)
    }

    /// The registration of a definition version, from 1.
    pub(crate) fn registration(&self, version: u32) -> Registration {
        let definition = self.versions[version as usize - 1];
        let registration = Registration::new(self.kind.name(), version)
            .slots(definition.slots)
            .backoff(Duration::from_millis(500), Duration::from_secs(4));
        let registration = match self.kind {
            HookKind::Every => registration.on("/things/{thing}").key("{thing}").every_change(),
            HookKind::Latest => registration.on("/things/{thing}").key("{thing}").latest_state(),
            HookKind::Chained => registration.on("/counts/{count}").key("{count}").latest_state(),
        };
        let registration = match self.kind {
            HookKind::Every | HookKind::Latest if definition.parts => registration.on("/things/{thing}/parts/*"),
            HookKind::Every | HookKind::Latest | HookKind::Chained => registration,
        };
        let registration = match self.attempts {
            Some(attempts) => registration.attempts(attempts),
            None => registration.attempts_unlimited(),
        };
        let registration = if self.from_existing { registration.from_existing() } else { registration.from_now() };
        match self.cap {
            Some(cap) => registration.runs_in_cluster(cap),
            None => registration,
        }
    }
}

/// A fault in the hooks' code that a verdict has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    /// It counts itself in a transaction of its own, whose commit is not that of its acknowledgement.
    CountsOnItsOwn,
}

/// The code of all hooks, shared by all servers of a cluster.
pub(crate) struct Acting {
    seed: u64,
    flaw: Flaw,
    runs: Mutex<HashMap<RequestId, u32>>,
    progress: watch::Sender<u64>,
}

/// Whether a request's last run writes with its acknowledgement; otherwise a receipt alone says that it is done.
pub(crate) fn writes(seed: u64, kind: HookKind, request: RequestId) -> bool {
    // What was seen is what the others look at.
    kind != HookKind::Every || random_of(seed, request, u32::MAX).random_bool(0.7)
}

fn random_of(seed: u64, request: RequestId, run: u32) -> StdRng {
    let mixed = [request.revision.0, request.sequence.into(), request.hook.0.into(), run.into()]
        .into_iter()
        .fold(seed, |mixed, number| mixed.rotate_left(13).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number);
    StdRng::seed_from_u64(mixed)
}

impl Acting {
    pub(crate) fn new(seed: u64, flaw: Flaw) -> Acting {
        Acting { seed, flaw, runs: Mutex::default(), progress: watch::Sender::new(0) }
    }

    /// Starts and ends of runs so far; changes with each.
    pub(crate) fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    fn moved(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    async fn work(&self, run: &Run, random: &mut StdRng) {
        match random.random_range(0..10) {
            0..5 => {}
            5 | 6 => {
                for _ in 0..random.random_range(1..20) {
                    tokio::task::yield_now().await;
                }
            }
            7 | 8 => {
                let until = run.now().after(Duration::from_millis(random.random_range(100..3_000)));
                let time = run.state().clock().sleep_until(until);
                if random.random_bool(0.5) {
                    time.await;
                } else {
                    tokio::select! {
                        () = time => {}
                        () = run.cancelled().cancelled_owned() => {}
                    }
                }
            }
            _ => {
                let (name, token) = (name_of(run), run.token().0);
                // Refused when the token no longer holds; the outcome is then refused too.
                let written = run.write(move |transaction: &mut Transaction| -> Result<(), TransactionError> {
                    transaction.put(&Ref::<Mark>::root(name.clone())?, Mark { token })
                });
                let _ = written.await;
            }
        }
    }

    /// Before its last run a request may fail, or ask to be run later.
    fn not_yet(run: &Run, random: &mut StdRng) -> Option<Outcome> {
        let later = Timestamp(run.now().0 + random.random_range(0..5_000));
        match random.random_range(0..100) {
            0..15 => Some(Outcome::fail(PLANNED_PANIC)),
            15..18 => panic!("{PLANNED_PANIC}"),
            18..26 => Some(Outcome::RetryAt(later)),
            26..32 => {
                let effect = effect_of(run, false);
                Some(Outcome::retry_at_with(later, move |transaction| transaction.append(&effect).map(|_| ())))
            }
            32..35 => Some(Outcome::done_with(|_| Err(TransactionError::rejected(PLANNED_PANIC)))),
            _ => None,
        }
    }

    async fn count_on_its_own(run: &Run) {
        let name = name_of(run);
        let counted = run.state().write(move |transaction: &mut Transaction| count(transaction, &name));
        let _ = counted.await;
    }
}

fn name_of(run: &Run) -> String {
    format!("{}-{}", run.hook(), run.key())
}

fn effect_of(run: &Run, finished: bool) -> Effect {
    let (hook, key) = (run.hook().to_owned(), run.key().to_string());
    Effect { request: run.request(), hook, key, token: run.token().0, finished }
}

fn count(transaction: &mut Transaction, name: &str) -> Result<(), TransactionError> {
    let count: Ref<Count> = Ref::root(name)?;
    let runs = transaction.get(&count)?.map_or(0, |count| count.runs);
    transaction.put(&count, Count { runs: runs + 1 })
}

#[async_trait::async_trait]
impl ClusterHook for Acting {
    async fn run(&self, run: Run) -> Outcome {
        let number = {
            let mut runs = self.runs.lock();
            let number = runs.entry(run.request()).or_default();
            *number += 1;
            *number
        };
        self.moved();
        let mut random = random_of(self.seed, run.request(), number);
        self.work(&run, &mut random).await;
        self.moved();
        if number < RUNS_MAX
            && let Some(outcome) = Acting::not_yet(&run, &mut random)
        {
            return outcome;
        }
        let kind = HookKind::named(run.hook()).unwrap();
        if !writes(self.seed, kind, run.request()) {
            return Outcome::Done;
        }
        let effect = effect_of(&run, true);
        match kind {
            HookKind::Every => {
                let (name, flawed) = (name_of(&run), self.flaw == Flaw::CountsOnItsOwn);
                if flawed {
                    Acting::count_on_its_own(&run).await;
                }
                Outcome::done_with(move |transaction| {
                    if !flawed {
                        count(transaction, &name)?;
                    }
                    transaction.append(&effect).map(|_| ())
                })
            }
            HookKind::Latest => {
                let thing: Ref<Thing> = Ref::root(run.id("thing").unwrap().parse::<u64>().unwrap()).unwrap();
                let value = run.snapshot().get(&thing).unwrap().map(|thing| thing.value);
                Outcome::done_with(move |transaction| {
                    transaction.put(&Ref::<Seen>::root(thing.id())?, Seen { value })?;
                    transaction.append(&effect).map(|_| ())
                })
            }
            HookKind::Chained => Outcome::done_with(move |transaction| transaction.append(&effect).map(|_| ())),
        }
    }
}
