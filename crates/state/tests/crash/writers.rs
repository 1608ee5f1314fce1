//! The process that is killed: many writers on one store, each noting what was acknowledged to it in a file that
//! outlives it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::driver::{
    Batch, Driver, HookNumber, LogEntry, LogRow, Receipt, ReceiptOutcome, RecordId, RecordRow, RecordWrite, RequestId,
    ServerId, ServerLoad, ServerRow, Settle, Settled, SlotId, StoredDocument,
};
use tidegate_state::{IndexDeclaration, IndexKey, Path, Retain, Revision, SubmissionId, Timestamp};

/// Names the folder of the store to a process that is to write until it is killed.
pub(crate) const FOLDER: &str = "TIDEGATE_CRASH_FOLDER";

/// How many tasks commit side by side.
pub(crate) const WRITERS: usize = 16;

/// The hook whose requests are settled while others commit.
pub(crate) const HOOK: HookNumber = HookNumber(1);

/// The store's file.
pub(crate) fn store_in(folder: &FilePath) -> std::path::PathBuf {
    folder.join("store.db")
}

/// What was acknowledged: `commit REVISION SUBMISSION` and `receipt REVISION`, a line each.
pub(crate) fn acknowledged_in(folder: &FilePath) -> std::path::PathBuf {
    folder.join("acknowledged")
}

/// The one kind of record that the writers append.
pub(crate) fn declaration() -> IndexDeclaration {
    IndexDeclaration { kind: "entry".into(), indexes: vec!["by-number".to_owned()], retain: Retain::FOREVER }
}

/// A transaction that puts an entity and appends a record.
pub(crate) fn batch(head: Revision, at: Timestamp, submission: SubmissionId, padding: usize) -> Batch {
    let revision = head.next();
    let document = StoredDocument { format: 1, json: format!("{{\"text\":\"{}\"}}", "x".repeat(padding)).into() };
    let entry = LogEntry::Change {
        path: Path::root().child("things", &(revision.0 % 50).to_string()).unwrap(),
        before: None,
        after: Some(document.clone()),
        hooks: vec![HOOK],
    };
    let row =
        LogRow { revision, submission, at, server: "crash".into(), attributes: Arc::default(), entries: vec![entry] };
    let record = RecordRow {
        kind: "entry".into(),
        id: RecordId { revision, sequence: 0 },
        closed: true,
        at,
        document,
        keys: vec![IndexKey::new().number(revision.0.cast_signed()).into_bytes()],
    };
    Batch { rows: vec![Arc::new(row)], records: vec![RecordWrite::Append(record)], ..Batch::default() }
}

fn note(file: &File, line: &str) {
    // One write to a file opened for append: a kill leaves whole lines, or one without its end.
    (&mut &*file).write_all(line.as_bytes()).unwrap();
}

async fn commit_for_ever(driver: Arc<dyn Driver>, acknowledged: Arc<File>, writer: usize) {
    let meta = driver.meta().await.unwrap();
    let mut seen = meta.head;
    for number in 0usize.. {
        let begun = driver.begin(meta.epoch, seen, usize::MAX).await.unwrap();
        seen = begun.rows.last().map_or(seen, |row| row.revision);
        let submission = SubmissionId::random();
        let batch = batch(seen, begun.session.now(), submission, 20 + (number * writer) % 3_000);
        seen = batch.rows[0].revision;
        begun.session.commit(batch).await.unwrap();
        note(&acknowledged, &format!("commit {seen} {submission}\n"));
    }
}

async fn settle_for_ever(driver: Arc<dyn Driver>, acknowledged: Arc<File>) {
    let id = ServerId(uuid::Uuid::new_v4());
    let lease_until = driver.clock().now().after(Duration::from_secs(600));
    let row = ServerRow {
        id,
        name: "crash".into(),
        lease_until,
        draining: false,
        hooks: Vec::new(),
        load: ServerLoad::default(),
        applied: Revision::ZERO,
    };
    driver.join(row).await.unwrap();
    // A slot of its own each time: the one of the process before is leased for long.
    let meta = driver.meta().await.unwrap();
    let slot = SlotId { hook: HOOK, slot: u32::try_from(meta.head.0).unwrap() };
    let fence = driver.take_slots(id, &[slot]).await.unwrap()[0];
    let mut settled = meta.head;
    loop {
        driver.wait_for_news(settled, Duration::from_secs(10)).await;
        let page = driver.read_log(meta.epoch, settled, 1_000).await.unwrap();
        let Some(last) = page.rows.last() else { continue };
        settled = last.revision;
        let requests = page.rows.iter().map(|row| RequestId { revision: row.revision, sequence: 0, hook: HOOK });
        let items: Vec<Settle> = requests
            .map(|request| Settle::Receipt(Receipt { request, fence, outcome: ReceiptOutcome::Done }))
            .collect();
        let answers = driver.settle(items).await.unwrap();
        assert!(answers.iter().all(|answer| *answer == Settled::Durable));
        for row in &page.rows {
            note(&acknowledged, &format!("receipt {}\n", row.revision));
        }
    }
}

/// Not a test by itself: what the tests start as a process, to be killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = FilePath::new(&folder);
    let driver = SqliteStore::open(store_in(folder), SqliteOptions::default()).unwrap().driver();
    driver.open(&[declaration()]).await.unwrap();
    let acknowledged = OpenOptions::new().create(true).append(true).open(acknowledged_in(folder)).unwrap();
    let acknowledged = Arc::new(acknowledged);
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        tasks.spawn(commit_for_ever(driver.clone(), acknowledged.clone(), writer));
    }
    tasks.spawn(settle_for_ever(driver, acknowledged));
    // None of them ends; a panic of one is told to the parent by an exit before the kill.
    tasks.join_next().await.unwrap().unwrap();
}
