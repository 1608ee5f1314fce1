//! kill -9 at random moments: every acknowledged commit and receipt is there, nothing is there in part, and the next
//! start needs no help.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::driver::{DriverError, StoredState};

use crate::writers::{FOLDER, acknowledged_in, declaration, store_in};

/// A whole server is killed more often, in `hooked`.
const KILLS: usize = 15;

pub(crate) fn seed() -> u64 {
    let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("seed: TIDEGATE_SEED={seed}");
    seed
}

fn start(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writers::writes_until_it_is_killed", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills the process after a while; it must not have ended by itself.
fn kill_after(mut child: Child, wait: Duration) {
    std::thread::sleep(wait);
    assert!(child.try_wait().unwrap().is_none(), "the writers ended before they were killed");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What the file says was acknowledged: submissions by revision, and requests with receipts.
fn acknowledged(folder: &Path) -> (BTreeMap<u64, String>, BTreeSet<u64>) {
    let text = std::fs::read_to_string(acknowledged_in(folder)).unwrap_or_default();
    let mut commits = BTreeMap::new();
    let mut receipts = BTreeSet::new();
    // A line without its end was being written when the process was killed.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        let mut words = line.split(' ');
        let kind = words.next().unwrap();
        let revision: u64 = words.next().unwrap().parse().unwrap();
        match kind {
            "commit" => assert_eq!(commits.insert(revision, words.next().unwrap().to_owned()), None, "{line}"),
            "receipt" => assert!(receipts.insert(revision), "{line}"),
            other => panic!("{other}"),
        }
    }
    (commits, receipts)
}

async fn check(folder: &Path) -> StoredState {
    let store = SqliteStore::open(store_in(folder), SqliteOptions::default()).unwrap();
    let driver = store.driver();
    driver.open(&[declaration()]).await.unwrap();
    let stored = driver.stored().await.unwrap();
    let report: String = rusqlite::Connection::open(store.path())
        .unwrap()
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(report, "ok");

    let (commits, receipts) = acknowledged(folder);
    let revisions: Vec<u64> = stored.log.iter().map(|row| row.revision.0).collect();
    assert_eq!(revisions, (1..=stored.meta.head.0).collect::<Vec<_>>(), "the log has no gap");
    for (revision, submission) in &commits {
        let row = stored.log.get(usize::try_from(*revision - 1).unwrap());
        let found = row.map(|row| row.submission.to_string());
        assert_eq!(found.as_ref(), Some(submission), "revision {revision} was acknowledged");
    }
    let records: Vec<u64> = stored.records.iter().map(|row| row.id.revision.0).collect();
    assert_eq!(records, revisions, "each transaction is there with its record, whole");
    assert_eq!(stored.index_entries.len(), records.len());
    let found: BTreeSet<u64> = stored.receipts.iter().map(|receipt| receipt.request.revision.0).collect();
    assert!(receipts.is_subset(&found), "receipts lost: {:?}", receipts.difference(&found));
    assert!(found.iter().all(|revision| *revision <= stored.meta.head.0), "a receipt for no request");
    let tokens: BTreeSet<u64> = stored.slots.iter().map(|slot| slot.token.0).collect();
    assert_eq!(tokens.len(), stored.slots.len(), "a token was given out twice");
    assert!(tokens.iter().all(|token| *token <= stored.token_counter.0));
    stored
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x10_kill_9_loses_no_acknowledged_commit_and_no_receipt() {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed());
    let folder = tempfile::tempdir().unwrap();
    let mut epoch = None;
    for _ in 0..KILLS {
        let wait = Duration::from_millis(random.random_range(30..350));
        let child = start(folder.path());
        kill_after(child, wait);
        let stored = check(folder.path()).await;
        assert_eq!(*epoch.get_or_insert(stored.meta.epoch), stored.meta.epoch);
    }
    let (commits, receipts) = acknowledged(folder.path());
    println!("{} commits and {} receipts were acknowledged over {KILLS} kills", commits.len(), receipts.len());
    assert!(commits.len() > KILLS && receipts.len() > KILLS, "the writers got somewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d04_kill_9_amid_the_first_start_leaves_nothing_or_all_of_it() {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed());
    for _ in 0..15 {
        let folder = tempfile::tempdir().unwrap();
        let child = start(folder.path());
        kill_after(child, Duration::from_micros(random.random_range(0..25_000)));
        check(folder.path()).await;
    }
}

#[tokio::test]
async fn d29_another_process_is_refused_while_the_first_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let child = start(folder.path());
    let limit = Instant::now() + Duration::from_secs(30);
    while acknowledged(folder.path()).0.is_empty() {
        assert!(Instant::now() < limit, "nothing was acknowledged within 30 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = SqliteStore::open(store_in(folder.path()), SqliteOptions::default()).map(|_| ());
    let Err(DriverError::Held(message)) = refused else { panic!("{refused:?}") };
    assert!(message.contains(&format!("process {}", child.id())), "{message}");
    let before = acknowledged(folder.path()).0.len();
    while acknowledged(folder.path()).0.len() <= before {
        assert!(Instant::now() < limit, "the first process stood still");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    kill_after(child, Duration::ZERO);
    check(folder.path()).await;
}
