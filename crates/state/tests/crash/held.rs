//! kill -9 at one point of a commit: what was told to nobody is there whole, under the revision that it would have been
//! told, or not at all. The process that is killed is this binary, started again with a point in its environment.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::testing::points::{Points, name as point};
use tidegate_state::{
    Entity, IndexKey, Record, Ref, Revision, Root, State, StateOptions, SubmissionId, Transaction, TransactionError,
};

use crate::writers::{FOLDER, store_in};

/// Names the point at which the process is to be held, until it is killed.
const POINT: &str = "TIDEGATE_CRASH_POINT";

/// What the process says when it is there, before the submission that is under way and the last revision it was told.
const HELD: &str = "held: ";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    number: u64,
}

impl Entity for Note {
    const COLLECTION: &'static str = "notes";
    type Parent = Root;
    type Id = u64;
}

/// One with each transaction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    number: u64,
}

impl Record for Entry {
    const KIND: &'static str = "entry";
    const INDEXES: &'static [&'static str] = &["by-number"];

    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().number(self.number.cast_signed())]
    }
}

async fn open(folder: &Path, points: Points) -> State {
    let driver = SqliteStore::open(store_in(folder), SqliteOptions::default()).unwrap().driver();
    let mut options = StateOptions::new("crash").record::<Entry>();
    options.points = points;
    State::open(driver, options).await.unwrap()
}

/// Two entities and a record.
async fn write(state: &State, number: u64, submission: SubmissionId) -> Revision {
    let closure = move |tx: &mut Transaction| {
        for note in [number, number + 1_000] {
            tx.put(&Ref::<Note>::root(note)?, Note { number })?;
        }
        tx.append(&Entry { number }).map(|_| ())
    };
    let written = state.transaction().submission(submission).write::<_, TransactionError, _>(closure).await;
    written.unwrap().revision
}

/// Not a test by itself: what the tests start as a process, to be killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_until_it_is_held() {
    let (Some(folder), Ok(name)) = (std::env::var_os(FOLDER), std::env::var(POINT)) else { return };
    let place = [point::COMMIT_BEFORE_COMMIT, point::COMMIT_AFTER_COMMIT].into_iter().find(|place| *place == name);
    let points = Points::new("crash");
    let state = open(Path::new(&folder), points.clone()).await;
    let mut told = Revision::ZERO;
    for number in 1..=5 {
        told = write(&state, number, SubmissionId::random()).await;
    }
    let hold = points.hold(place.unwrap());
    let submission = SubmissionId::random();
    let writing = tokio::spawn(async move { write(&state, 6, submission).await });
    hold.reached().await;
    println!("\n{HELD}{submission} {}", told.0);
    writing.await.unwrap();
}

/// Lets a process come to a point of its sixth commit, and kills it there. Gives the submission, and the revision that it
/// would have been told.
fn killed_at(folder: &Path, place: &str) -> (SubmissionId, Revision) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "held::commits_until_it_is_held", "--nocapture"])
        .env(FOLDER, folder)
        .env(POINT, place)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.find_map(|line| line.unwrap().strip_prefix(HELD).map(str::to_owned));
    let said = said.unwrap_or_else(|| panic!("it ended before it came to {place}: {:?}", child.wait()));
    child.kill().unwrap();
    child.wait().unwrap();
    let (submission, told) = said.split_once(' ').unwrap();
    (SubmissionId(submission.parse().unwrap()), Revision(told.parse::<u64>().unwrap()).next())
}

/// Opens the file as any start does; says at which revision the submission is, after looking whether all of it is there,
/// or nothing of it.
async fn found(folder: &Path, submission: SubmissionId) -> Option<Revision> {
    let state = open(folder, Points::none()).await;
    let report: String = rusqlite::Connection::open(store_in(folder))
        .unwrap()
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(report, "ok");
    let revision = state.find_submission(submission).await.unwrap();
    let snapshot = state.snapshot();
    let stored = state.driver().stored().await.unwrap();
    let numbers = if revision.is_some() { 1..=6 } else { 1..=5 };
    let notes: Vec<u64> = snapshot.roots::<Note>().map(|note| note.unwrap().0.id()).collect();
    assert_eq!(notes, numbers.clone().chain(numbers.clone().map(|number| number + 1_000)).collect::<Vec<_>>());
    let records: Vec<u64> =
        stored.records.iter().map(|row| serde_json::from_str::<Entry>(&row.document.json).unwrap().number).collect();
    assert_eq!(records, numbers.collect::<Vec<_>>());
    assert_eq!(stored.log.iter().filter(|row| row.submission == submission).count(), usize::from(revision.is_some()));
    // And it goes on.
    let next = write(&state, 7, SubmissionId::random()).await;
    assert_eq!(next, stored.meta.head.next());
    state.close().await;
    revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d31_killed_before_the_acknowledgement_it_is_there_once_under_its_revision() {
    let folder = tempfile::tempdir().unwrap();
    let (submission, revision) = killed_at(folder.path(), point::COMMIT_AFTER_COMMIT);
    assert_eq!(found(folder.path(), submission).await, Some(revision));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d31_killed_before_it_is_durable_it_is_absent() {
    let folder = tempfile::tempdir().unwrap();
    let (submission, _) = killed_at(folder.path(), point::COMMIT_BEFORE_COMMIT);
    assert_eq!(found(folder.path(), submission).await, None);
}
