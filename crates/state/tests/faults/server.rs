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
use tidegate_state::{Snapshot, State, StateOptions, SubmissionId, WaitForHooks, WriteError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::workload::{Count, Counting, Effect, Thing, operation, registrations};

/// Holds the [`Orders`] of a process that is to be a server.
pub(crate) const ORDERS: &str = "TIDEGATE_FAULTS_ORDERS";

/// How many writers a server has.
const WRITERS: u64 = 4;
/// How long a writer rests between two operations.
const REST: Duration = Duration::from_millis(40);
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
}

impl Orders {
    pub(crate) fn name(&self) -> String {
        format!("server-{}", self.number)
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

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Who listened may be gone, and then nobody misses the line.
    let _ = writeln!(out, "@{line}").and_then(|()| out.flush());
}

async fn write_on(
    state: State,
    orders: Arc<Orders>,
    numbers: Arc<AtomicU64>,
    file: Arc<File>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let operation = operation(orders.seed, orders.number, number);
        let submission = SubmissionId::random();
        note(&file, &AnswerLine::Submitted { number, submission });
        let written = state.transaction().submission(submission).write(move |tx| operation.apply(tx)).await;
        let answer = match written {
            Ok(committed) if committed.changed => Answer::Committed { revision: committed.revision.0 },
            Ok(_) => Answer::Unchanged,
            Err(WriteError::Rejected(_)) => Answer::Rejected,
            Err(WriteError::Unknown { .. }) => Answer::Unknown,
            Err(_) => Answer::Failed,
        };
        note(&file, &AnswerLine::Answered { submission, answer });
        tokio::time::sleep(REST).await;
    }
}

async fn open(orders: &Orders) -> State {
    let options = PostgresOptions {
        lock_limit: Duration::from_millis(orders.lock_limit_ms),
        ..PostgresOptions::in_schema(orders.schema.clone())
    };
    let store = PostgresStore::new(&orders.url, options).unwrap();
    loop {
        let mut options = StateOptions::new(orders.name()).record::<Effect>();
        options.lease = Duration::from_millis(orders.lease_ms);
        options.poll = Duration::from_millis(200);
        options.recorder = Recorder::to_file(&orders.history()).unwrap();
        match State::open(store.driver(), options).await {
            Ok(state) => return state,
            // The database may be down just now; a service manager would start the server again.
            Err(error) => eprintln!("not open yet: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Registers both hooks, however often the database goes away meanwhile.
async fn register(state: &State) -> Vec<tidegate_state::HookHandle> {
    let mut handles = Vec::new();
    for registration in registrations() {
        loop {
            match state.register(registration.clone(), 8, Arc::new(Counting)).await {
                Ok(handle) => break handles.push(handle),
                Err(error) => eprintln!("not registered yet: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    handles
}

async fn serve(orders: Orders) {
    let state = open(&orders).await;
    let handles = register(&state).await;
    let orders = Arc::new(orders);
    let numbers = Arc::new(AtomicU64::new(next_number(&orders.answers())));
    let file = Arc::new(File::options().create(true).append(true).open(orders.answers()).unwrap());
    let stop = CancellationToken::new();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(write_on(state.clone(), orders.clone(), numbers.clone(), file.clone(), stop.clone()));
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
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    loop {
        let line = tokio::select! {
            line = told.recv() => line,
            _ = terminate.recv() => Some("leave".to_owned()),
        };
        match line.as_deref() {
            Some("quiet") => {
                stop.cancel();
                while writers.join_next().await.is_some() {}
                say("quiet");
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
            // The end of the input is the end of who started this.
            Some("leave") | None => {
                stop.cancel();
                while writers.join_next().await.is_some() {}
                drop(handles);
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
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(orders));
}
