//! X10: a whole server on SQLite, hooks on, under sixteen writers, killed at random again and again. Nobody helps it up: it is
//! started, and killed again, at times before it is up. In the end the same checker looks at what its lives left behind that
//! looks at runs of many servers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::driver::{LogEntry, ReceiptOutcome, RequestId, StoredState};
use tidegate_state::testing::history::{Expectation, Recorder, check};
use tidegate_state::testing::linter::lint;
use tidegate_state::{
    ClusterHook, Entity, HookHandle, IndexDeclaration, IndexKey, Outcome, Record, Ref, Registration, Root, Run, State,
    StateOptions, SubmissionId, Transaction, TransactionError, WaitForHooks,
};

use crate::killed::seed;
use crate::writers::{WRITERS, store_in};

/// Names the folder to a process that is to write and run until it is killed.
const FOLDER: &str = "TIDEGATE_CRASH_HOOKED";
/// How often it is killed: by hand, and otherwise.
const LONG_KILLS: u64 = 300;
const KILLS: u64 = 30;
/// How many things there are; each is a key of both hooks.
const THINGS: u64 = 60;
/// What the process says when its hooks are registered and its writers write.
const UP: &str = "@up";
/// How long the last life may take to run what is left.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Thing {
    value: u64,
}

impl Entity for Thing {
    const COLLECTION: &'static str = "things";
    type Parent = Root;
    type Id = u64;
}

/// How often the runs of a hook for a key took effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Count {
    runs: u64,
}

impl Entity for Count {
    const COLLECTION: &'static str = "counts";
    type Parent = Root;
    type Id = String;
}

/// One run that took effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Effect {
    request: String,
    hook: String,
    key: String,
    token: u64,
}

impl Record for Effect {
    const KIND: &'static str = "effect";
    const INDEXES: &'static [&'static str] = &["hook"];

    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().text(&self.hook)]
    }
}

/// Counts itself, and appends a record: all with its receipt, or nothing.
struct Counting;

#[async_trait::async_trait]
impl ClusterHook for Counting {
    async fn run(&self, run: Run) -> Outcome {
        // Some are always going on when the kill comes.
        tokio::time::sleep(Duration::from_millis(run.request().revision.0 % 5)).await;
        let (hook, key) = (run.hook().to_owned(), run.key().as_str().to_owned());
        let effect =
            Effect { request: run.request().to_string(), hook: hook.clone(), key: key.clone(), token: run.token().0 };
        Outcome::done_with(move |transaction: &mut Transaction| {
            let count: Ref<Count> = Ref::root(format!("{hook}.{key}"))?;
            let runs = transaction.get(&count)?.map_or(0, |count| count.runs);
            transaction.put(&count, Count { runs: runs + 1 })?;
            transaction.append(&effect).map(|_| ())
        })
    }
}

fn history_in(folder: &Path) -> PathBuf {
    folder.join("history")
}

/// What was acknowledged: `REVISION SUBMISSION`, a line each.
fn acknowledged_in(folder: &Path) -> PathBuf {
    folder.join("acknowledged")
}

async fn open(folder: &Path) -> (State, Vec<HookHandle>) {
    let driver = SqliteStore::open(store_in(folder), SqliteOptions::default()).unwrap().driver();
    let mut options = StateOptions::new("hooked").record::<Effect>();
    options.recorder = Recorder::to_file(&history_in(folder)).unwrap();
    // Written behind so often that many a kill comes amid it.
    options.entities_behind = Duration::from_millis(50);
    let state = State::open(driver, options).await.unwrap();
    let mut hooks = Vec::new();
    for name in ["every", "latest"] {
        let begun = Registration::new(name, 1).on("/things/{thing}").key("{thing}").slots(8).attempts_unlimited();
        let registration = if name == "every" { begun.every_change() } else { begun.latest_state() };
        hooks.push(state.register(registration, 8, Arc::new(Counting)).await.unwrap());
    }
    (state, hooks)
}

async fn write_for_ever(state: State, numbers: Arc<AtomicU64>, acknowledged: Arc<File>) {
    loop {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let submission = SubmissionId::random();
        let put = move |transaction: &mut Transaction| -> Result<(), TransactionError> {
            let thing = Ref::<Thing>::root(number % THINGS)?;
            if number.is_multiple_of(11) {
                return transaction.delete(&thing).map(|_| ());
            }
            transaction.put(&thing, Thing { value: number })
        };
        let committed = state.transaction().submission(submission).write(put).await.unwrap();
        if committed.changed {
            // One write to a file opened for append: a kill leaves whole lines, or one without its end.
            (&mut &*acknowledged).write_all(format!("{} {submission}\n", committed.revision.0).as_bytes()).unwrap();
        }
    }
}

/// Not a test by itself: what the test starts as a process, to be killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_runs_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let (state, _hooks) = open(folder).await;
    // No value is put twice, by no life.
    let begin = state.snapshot().revision().0 * 1_000_000;
    let numbers = Arc::new(AtomicU64::new(begin));
    let acknowledged = OpenOptions::new().create(true).append(true).open(acknowledged_in(folder)).unwrap();
    let acknowledged = Arc::new(acknowledged);
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(write_for_ever(state.clone(), numbers.clone(), acknowledged.clone()));
    }
    println!("\n{UP}");
    // None of them ends; a panic of one is told to the parent by an exit before the kill.
    writers.join_next().await.unwrap().unwrap();
}

fn start(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hooked::writes_and_runs_until_it_is_killed", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Lets a life go on for a while after it is up, or for a while at all, and kills it.
fn live(folder: &Path, is_up: bool, wait: Duration) {
    let mut child = start(folder);
    if is_up {
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == UP), "it did not come up by itself");
    }
    std::thread::sleep(wait);
    assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The kills of a run: whether the process is up by then, and how long it goes on.
fn plan(seed: u64, kills: u64) -> Vec<(bool, Duration)> {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut draw = || {
        let is_up = random.random_bool(0.8);
        let wait = if is_up { random.random_range(10..250) } else { random.random_range(1..60) };
        (is_up, Duration::from_millis(wait))
    };
    (0..kills).map(|_| draw()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x10_kill_9_amid_writers_and_runs_loses_nothing_and_needs_no_help() {
    let long = std::env::var("TIDEGATE_FAULTS_LONG").is_ok_and(|long| long == "yes");
    let kills = plan(seed(), if long { LONG_KILLS } else { KILLS });
    let folder = tempfile::tempdir().unwrap();
    for (is_up, wait) in &kills {
        live(folder.path(), *is_up, *wait);
        if store_in(folder.path()).exists() {
            let report: String = rusqlite::Connection::open(store_in(folder.path()))
                .unwrap()
                .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                .unwrap();
            assert_eq!(report, "ok");
        }
    }
    let (state, hooks) = open(folder.path()).await;
    let settled = state.wait_for_hooks(WaitForHooks::all().limit(SETTLE_LIMIT)).await.unwrap();
    assert!(settled.dead.is_empty(), "no request is to blame for a kill: {:?}", settled.dead);
    let stored = state.driver().stored().await.unwrap();
    let names: HashMap<u32, String> = hooks.iter().map(|hook| (hook.number().0, hook.name().to_owned())).collect();
    drop(hooks);
    state.close().await;
    let (told, broken) = broken(folder.path(), &stored, &names);
    println!("{} kills: {told}", kills.len());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// What was done, and what must not be.
fn broken(folder: &Path, stored: &StoredState, names: &HashMap<u32, String>) -> (String, Vec<String>) {
    let history = Recorder::read_file(&history_in(folder)).unwrap();
    let mut keys: HashMap<RequestId, String> = HashMap::new();
    let mut changes: BTreeMap<String, u64> = BTreeMap::new();
    for row in &stored.log {
        for (sequence, entry) in row.entries.iter().enumerate() {
            let LogEntry::Change { path, hooks, .. } = entry else { continue };
            for hook in hooks {
                let sequence = u32::try_from(sequence).unwrap();
                keys.insert(RequestId { revision: row.revision, sequence, hook: *hook }, path.id().into_owned());
                *changes.entry(format!("{}.{}", names[&hook.0], path.id())).or_default() += 1;
            }
        }
    }
    let effects: Vec<Effect> =
        stored.records.iter().map(|row| serde_json::from_str(&row.document.json).unwrap()).collect();
    let by_text: HashMap<String, RequestId> = keys.keys().map(|request| (request.to_string(), *request)).collect();
    let records = effects.iter().filter_map(|effect| Some((*by_text.get(&effect.request)?, effect.token))).collect();
    let expectation = Expectation { stored: Some(stored.clone()), keys, records, ..Expectation::default() };
    let mut found: Vec<String> = check(&history, &expectation).iter().map(ToString::to_string).collect();
    let declaration = IndexDeclaration {
        kind: Effect::KIND.into(),
        indexes: Effect::INDEXES.iter().map(|index| (*index).to_owned()).collect(),
        retain: Effect::RETENTION,
    };
    found.extend(lint(stored, &[declaration]).iter().map(|found| format!("linter: {found}")));
    found.extend(miscounted(stored, &effects, &changes));
    let there: HashSet<String> = stored.log.iter().map(|row| format!("{} {}", row.revision, row.submission)).collect();
    let text = std::fs::read_to_string(acknowledged_in(folder)).unwrap();
    // A line without its end was being written when the process was killed.
    let whole: Vec<&str> = text.rfind('\n').map_or("", |end| &text[..end]).lines().collect();
    found.extend(
        whole.iter().filter(|line| !there.contains(**line)).map(|line| format!("{line} was acknowledged and is lost")),
    );
    if whole.len() < 100 || effects.len() < 100 {
        found.push("hardly anything happened".to_owned());
    }
    (format!("{} commits acknowledged, {} runs took effect", whole.len(), effects.len()), found)
}

/// Each run took effect once: with every change a run, as often as there were changes; with the latest state, as often as
/// there are receipts.
fn miscounted(stored: &StoredState, effects: &[Effect], changes: &BTreeMap<String, u64>) -> Vec<String> {
    let mut recorded: BTreeMap<String, u64> = BTreeMap::new();
    for effect in effects {
        *recorded.entry(format!("{}.{}", effect.hook, effect.key)).or_default() += 1;
    }
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    for row in &stored.log {
        for entry in &row.entries {
            if let LogEntry::Change { path, after: Some(after), .. } = entry
                && path.collection() == Count::COLLECTION
            {
                counted.insert(path.id().into_owned(), serde_json::from_str::<Count>(&after.json).unwrap().runs);
            }
        }
    }
    let done = stored.receipts.iter().filter(|receipt| receipt.outcome == ReceiptOutcome::Done).count();
    let mut found = Vec::new();
    if done != effects.len() {
        found.push(format!("{done} receipts of runs, and {} records of them", effects.len()));
    }
    for (name, asked) in changes {
        let of = |map: &BTreeMap<String, u64>| map.get(name).copied().unwrap_or(0);
        let (recorded, counted) = (of(&recorded), of(&counted));
        let expected = if name.starts_with("every") { recorded == *asked } else { (1..=*asked).contains(&recorded) };
        if recorded != counted || !expected {
            found.push(format!("{name}: {asked} changes, {recorded} records, counted {counted}"));
        }
    }
    found
}
