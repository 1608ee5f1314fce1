//! One server of a run: a process that writes, runs hooks, and is killed, stopped and cut off.
//!
//! It is told what to be by a variable, is spoken to by lines on its standard input, and answers by lines that begin with
//! `@`. What it submits and is answered goes to a file line by line, so that a kill loses nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::testing::history::Recorder;
use tidegate_state::testing::points::Points;
use tidegate_state::{
    QueueEntry, QueueFilter, Ref, RequestState, Snapshot, State, StateOptions, SubmissionId, Transaction,
    TransactionError, WaitForHooks, WriteError,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::aim::{self, Aim, HitAt};
use super::builds::{Build, SECOND};
use super::serving::{HookOrders, Hooks, Serving};
use super::towers::{self, Playing, Tower};
use super::workload::{Count, Effect, Thing, operation};

/// Holds the [`Orders`] of a process that is to be a server.
pub(crate) const ORDERS: &str = "TIDEGATE_FAULTS_ORDERS";

/// How long a writer rests between two operations.
const REST: Duration = Duration::from_millis(40);
/// How many things one transaction puts or deletes, where there are many.
const AT_ONCE: u64 = 250;
/// How long it is tried to find out what became of a submission.
const RESOLVE_LIMIT: Duration = Duration::from_secs(60);
/// How long everything may take to come to rest once faults have stopped.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// What a server is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) number: usize,
    pub(crate) url: String,
    pub(crate) schema: String,
    pub(crate) folder: PathBuf,
    pub(crate) seed: u64,
    pub(crate) lease_ms: u64,
    pub(crate) lock_limit_ms: u64,
    /// How many writers it has that never rest for long.
    pub(crate) writers: u64,
    /// How many towers are played.
    pub(crate) towers: u64,
    /// It has points at which it can be hit.
    pub(crate) aimed: bool,
    pub(crate) serving: Serving,
}

impl Orders {
    /// The name of its files, whatever its build.
    pub(crate) fn name(&self) -> String {
        format!("server-{}", self.number)
    }

    /// The name that it goes by.
    pub(crate) fn server_name(&self) -> String {
        match self.serving.build {
            Build::One => self.name(),
            Build::Two => format!("{}{SECOND}", self.name()),
        }
    }

    pub(crate) fn history(&self) -> PathBuf {
        self.folder.join(format!("{}.history", self.name()))
    }

    pub(crate) fn answers(&self) -> PathBuf {
        self.folder.join(format!("{}.answers", self.name()))
    }
}

/// One line of a server's file of answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub(crate) enum AnswerLine {
    /// About to be submitted; a process that dies now never learns the answer.
    Submitted { number: u64, submission: SubmissionId },
    /// What came back.
    Answered { submission: SubmissionId, answer: Answer },
    /// What became of a submission whose answer was that nobody knows.
    Resolved { submission: SubmissionId, revision: Option<u64> },
}

/// What a writer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Committed {
        revision: u64,
    },
    Unchanged,
    Rejected,
    /// Certainly not committed.
    Failed,
    Unknown,
}

/// What a tree holds, to be compared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Contents {
    pub(crate) things: BTreeMap<u64, u64>,
    pub(crate) counts: BTreeMap<String, u64>,
}

/// An unfinished request, as a server lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) request: String,
    pub(crate) hook: String,
    pub(crate) attempts: u32,
    pub(crate) runs_nowhere: bool,
    pub(crate) needs_version: Option<u32>,
}

fn listed(entries: &[QueueEntry]) -> Vec<Listed> {
    let listed = entries.iter().map(|entry| Listed {
        request: entry.request.to_string(),
        hook: entry.hook.to_string(),
        attempts: entry.attempts,
        runs_nowhere: entry.state == RequestState::NoServer,
        needs_version: entry.needs_version,
    });
    listed.collect()
}

fn contents(snapshot: &Snapshot) -> Contents {
    let things = snapshot.roots::<Thing>().map(|item| item.map(|(thing, value)| (thing.id(), value.value)));
    let counts = snapshot.roots::<Count>().map(|item| item.map(|(count, value)| (count.id(), value.runs)));
    Contents { things: things.collect::<Result<_, _>>().unwrap(), counts: counts.collect::<Result<_, _>>().unwrap() }
}

/// The numbers of the operations of the processes before it are not used again.
fn next_number(path: &Path) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let numbers = text.lines().filter_map(|line| match serde_json::from_str(line) {
        Ok(AnswerLine::Submitted { number, .. }) => Some(number),
        _ => None,
    });
    numbers.max().map_or(0, |number| number + 1)
}

fn note(file: &File, line: &AnswerLine) {
    let mut text = serde_json::to_string(line).unwrap();
    text.push('\n');
    // One write, so that a line is whole or cut at its end.
    (&mut &*file).write_all(text.as_bytes()).unwrap();
}

pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Who listened may be gone, and then nobody misses the line.
    let _ = writeln!(out, "@{line}").and_then(|()| out.flush());
}

/// Where a server's operations come from, and where they are written down.
#[derive(Clone)]
struct Writer {
    state: State,
    orders: Arc<Orders>,
    numbers: Arc<AtomicU64>,
    file: Arc<File>,
}

impl Writer {
    async fn write(&self) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let operation = operation(self.orders.seed, self.orders.number, number);
        let build = self.orders.serving.build;
        let submission = SubmissionId::random();
        note(&self.file, &AnswerLine::Submitted { number, submission });
        let written = self.state.transaction().submission(submission).write(move |tx| operation.apply(build, tx)).await;
        let answer = match written {
            Ok(committed) if committed.changed => Answer::Committed { revision: committed.revision.0 },
            Ok(_) => Answer::Unchanged,
            Err(WriteError::Rejected(_)) => Answer::Rejected,
            Err(WriteError::Unknown { .. }) => Answer::Unknown,
            Err(_) => Answer::Failed,
        };
        note(&self.file, &AnswerLine::Answered { submission, answer });
        if answer == Answer::Unknown {
            let _ = tokio::time::timeout(RESOLVE_LIMIT, self.resolve(submission)).await;
        }
    }

    /// Finds out what became of a submission. Its commit may still be under way, under the write lock: what is not in the log
    /// after another transaction went through that lock never will be.
    async fn resolve(&self, submission: SubmissionId) {
        loop {
            let nothing = |_: &mut Transaction| Ok::<(), TransactionError>(());
            if self.state.write(nothing).await.is_ok()
                && let Ok(found) = self.state.find_submission(submission).await
            {
                let revision = found.map(|revision| revision.0);
                return note(&self.file, &AnswerLine::Resolved { submission, revision });
            }
            tokio::time::sleep(REST).await;
        }
    }

    async fn write_on(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.write().await;
            tokio::time::sleep(REST).await;
        }
    }

    /// Things of these ids, whether they were there or not, beside the operations.
    async fn fill(&self, ids: std::ops::Range<u64>) {
        let mut from = ids.start;
        while from < ids.end {
            let until = ids.end.min(from + AT_ONCE);
            let put = move |transaction: &mut Transaction| -> Result<(), TransactionError> {
                (from..until).try_for_each(|id| transaction.put(&Ref::root(id)?, Thing { value: id }))
            };
            match self.state.write(put).await {
                Ok(_) => from = until,
                Err(error) => eprintln!("not filled yet: {error}"),
            }
        }
    }

    /// Deletes things of these ids, with all below them.
    async fn fell(&self, ids: std::ops::Range<u64>) {
        let delete = move |transaction: &mut Transaction| -> Result<(), TransactionError> {
            ids.clone().try_for_each(|id| transaction.delete(&Ref::<Thing>::root(id)?).map(|_| ()))
        };
        while let Err(error) = self.state.write(delete.clone()).await {
            eprintln!("not felled yet: {error}");
            tokio::time::sleep(REST).await;
        }
    }

    /// So many operations at once.
    async fn burst(&self, count: usize) {
        futures::future::join_all((0..count).map(|_| self.write())).await;
    }
}

async fn open(orders: &Orders, points: &Points, recorder: &Recorder) -> State {
    let options = PostgresOptions {
        lock_limit: Duration::from_millis(orders.lock_limit_ms),
        ..PostgresOptions::in_schema(orders.schema.clone())
    };
    let store = PostgresStore::new(&orders.url, options).unwrap();
    loop {
        let mut options = StateOptions::new(orders.server_name()).record::<Effect>();
        orders.serving.set(&mut options);
        options.lease = Duration::from_millis(orders.lease_ms);
        options.poll = Duration::from_millis(200);
        options.recorder = recorder.clone();
        options.points = points.clone();
        match State::open(store.driver(), options).await {
            Ok(state) => return state,
            // The database may be down just now; a service manager would start the server again.
            Err(error) => eprintln!("not open yet: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Plays, and sets up the towers that nobody has set up: with the hook registered, that asks for the first moves.
async fn play(state: &State, towers: u64) -> Option<tidegate_state::HookHandle> {
    if towers == 0 {
        return None;
    }
    let handle = loop {
        match state.register(towers::registration(), 8, Arc::new(Playing)).await {
            Ok(handle) => break handle,
            Err(error) => eprintln!("not registered yet: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    loop {
        let set_up = state.write(move |transaction| -> Result<(), TransactionError> {
            for tower in 0..towers {
                let tower = Ref::<Tower>::root(tower)?;
                if transaction.get(&tower)?.is_none() {
                    transaction.put(&tower, Tower::new())?;
                }
            }
            Ok(())
        });
        match set_up.await {
            Ok(_) => return Some(handle),
            Err(error) => eprintln!("not set up yet: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn serve(orders: Orders) {
    let points = if orders.aimed { Points::new(orders.server_name()) } else { Points::none() };
    let recorder = Recorder::to_file(&orders.history()).unwrap();
    let state = open(&orders, &points, &recorder).await;
    let mut hooks = Hooks::declare(&state, orders.serving.clone()).await;
    let playing = play(&state, orders.towers).await;
    let orders = Arc::new(orders);
    let numbers = Arc::new(AtomicU64::new(next_number(&orders.answers())));
    let file = Arc::new(File::options().create(true).append(true).open(orders.answers()).unwrap());
    let stop = CancellationToken::new();
    let mut writers = tokio::task::JoinSet::new();
    let writer = Writer { state: state.clone(), orders: orders.clone(), numbers, file };
    for _ in 0..orders.writers {
        writers.spawn(writer.clone().write_on(stop.clone()));
    }
    say("up");
    let (lines, mut told) = mpsc::channel::<String>(16);
    // Reading waits without end, so it has a thread of its own.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut hits = tokio::task::JoinSet::new();
    let mut held: Option<oneshot::Sender<()>> = None;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    loop {
        let line = tokio::select! {
            line = told.recv() => line,
            _ = terminate.recv() => Some("leave".to_owned()),
        };
        match line.as_deref() {
            Some(line) if line.starts_with("burst ") => {
                writer.burst(line.trim_start_matches("burst ").parse().unwrap()).await;
                say("burst");
            }
            Some("quiet") => {
                stop.cancel();
                while writers.join_next().await.is_some() {}
                say("quiet");
            }
            // Everything that was asked for by now, whatever is written meanwhile.
            Some("reach") => {
                let reached = WaitForHooks::all().until(state.snapshot().revision()).limit(SETTLE_LIMIT);
                match state.wait_for_hooks(reached).await {
                    Ok(_) => say("reached"),
                    Err(error) => say(&format!("unsettled {error}")),
                }
            }
            Some("settle") => {
                let settled = state.wait_for_hooks(WaitForHooks::all().limit(SETTLE_LIMIT)).await;
                match settled {
                    Ok(_) => {}
                    Err(error) => say(&format!("unsettled {error}")),
                }
                say("settled");
            }
            Some("tell") => match state.flush_within(Duration::from_secs(30)).await {
                Ok(_) => say(&format!("contents {}", serde_json::to_string(&contents(&state.snapshot())).unwrap())),
                Err(error) => say(&format!("untold {error}")),
            },
            Some(line) if line.starts_with("fill ") => {
                writer.fill(0..line.trim_start_matches("fill ").parse().unwrap()).await;
                say("filled");
            }
            Some(line) if line.starts_with("fell ") => {
                writer.fell(0..line.trim_start_matches("fell ").parse().unwrap()).await;
                say("felled");
            }
            Some(line) if line.starts_with("pace ") => hooks.pace(line.trim_start_matches("pace ").parse().unwrap()),
            Some(line) if line.starts_with("change ") => {
                let hook: HookOrders = serde_json::from_str(line.trim_start_matches("change ")).unwrap();
                hooks.change(hook).await;
            }
            Some("burden") => {
                let metrics = state.metrics();
                let told = (metrics.oldest_transaction_seconds(), metrics.dead_rows("changes"));
                say(&format!("burden {}", serde_json::to_string(&told).unwrap()));
            }
            Some(line) if line.starts_with("hit ") => {
                let told: HitAt = serde_json::from_str(line.trim_start_matches("hit ")).unwrap();
                hits.spawn(aim::hit(points.clone(), recorder.clone(), told));
            }
            Some(line) if line.starts_with("hold ") => {
                let told: Aim = serde_json::from_str(line.trim_start_matches("hold ")).unwrap();
                let (go, goes) = oneshot::channel();
                held = Some(go);
                hits.spawn(aim::hold(points.clone(), told, goes));
            }
            // Who is held no longer is not there to hear it.
            Some("go") => drop(held.take()),
            Some("withdraw") => hooks.withdraw(),
            Some("declare") => hooks.declare_again().await,
            Some("list") => match state.queue().list(QueueFilter::all()).await {
                Ok(entries) => say(&format!("listed {}", serde_json::to_string(&listed(&entries)).unwrap())),
                Err(error) => say(&format!("untold {error}")),
            },
            // The end of the input is the end of who started this.
            Some("leave") | None => {
                stop.cancel();
                while writers.join_next().await.is_some() {}
                drop((hooks, playing));
                state.close().await;
                return;
            }
            Some(other) => panic!("{other:?} is nothing that a server is told"),
        }
    }
}

/// Not a test by itself: what a run starts as a process.
#[test]
fn serves_until_it_is_told_to_leave() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let orders: Orders = serde_json::from_str(&orders).unwrap();
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(orders));
}
