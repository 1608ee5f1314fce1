//! A backup's file: what is refused of it, that it says what it was given, and that it comes back with what was written
//! in it.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tempfile::TempDir;

use serde::{Deserialize, Serialize};
use tidegate_state::backup::{Backup, BackupError, OnEntity};
use tidegate_state::driver::SlotToken;
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::testing::driver_contract::{self as contract, Subject};
use tidegate_state::{DriverError, Entity, Ref, Root, State, StateOptions, Timestamp, Transaction, TransactionError};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Counter {
    n: u64,
}

impl Entity for Counter {
    const COLLECTION: &'static str = "counters";
    type Parent = Root;
    type Id = String;
}

struct Kit {
    folder: TempDir,
    store: SqliteStore,
    subject: Subject,
}

impl Kit {
    /// A store with something in every table.
    async fn filled() -> Kit {
        let folder = TempDir::new().unwrap();
        let mut opened = None;
        let path = folder.path().join("store.db");
        let subject = Subject::new(|clock| {
            let store = SqliteStore::open(path, SqliteOptions::with_clock(clock)).unwrap();
            opened.insert(store).driver()
        });
        contract::upkeep::u04_all_that_is_stored_can_be_read(subject.clone()).await;
        Kit { folder, store: opened.unwrap(), subject }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The names of all files in the folder that are no database.
    fn files(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with("store.db"));
        names.sort();
        names
    }
}

#[tokio::test]
async fn d35_a_backup_says_whose_it_is_and_of_which_revision() {
    let kit = Kit::filled().await;
    let written = kit.store.backup(kit.path("b")).await.unwrap();
    let meta = kit.subject.driver.meta().await.unwrap();
    let header = &written.header;
    assert_eq!((header.installation, header.epoch), (meta.installation, meta.epoch));
    assert_eq!((header.revision, header.compacted, &*header.driver), (meta.head, meta.compacted, "sqlite"));
    assert_eq!(&Backup::header_of(&kit.path("b")).unwrap(), header);
    assert_eq!(Backup::read(&kit.path("b")).unwrap().header(), header);
    let bytes = std::fs::read(kit.path("b")).unwrap();
    assert_eq!(bytes.len() as u64, written.bytes);
    assert!(bytes.starts_with(b"tidegate backup\n{\"format\":1,"));
    assert_eq!(kit.files(), ["b"]);
}

#[tokio::test]
async fn d35_every_byte_that_is_changed_or_missing_is_noticed() {
    let kit = Kit::filled().await;
    kit.store.backup(kit.path("b")).await.unwrap();
    let whole = std::fs::read(kit.path("b")).unwrap();
    let damaged = kit.path("damaged");
    for place in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        std::fs::write(&damaged, bytes).unwrap();
        let read = Backup::read(&damaged);
        assert!(
            matches!(
                read,
                Err(BackupError::Damaged { .. } | BackupError::NotABackup { .. } | BackupError::NewerFormat { .. })
            ),
            "byte {place}: {read:?}"
        );
    }
    for length in (0..whole.len()).step_by(7) {
        std::fs::write(&damaged, &whole[..length]).unwrap();
        let read = Backup::read(&damaged);
        assert!(
            matches!(read, Err(BackupError::Damaged { .. } | BackupError::NotABackup { .. })),
            "{length} bytes: {read:?}"
        );
    }
    let longer = [&whole[..], b"x"].concat();
    std::fs::write(&damaged, longer).unwrap();
    assert!(matches!(Backup::read(&damaged), Err(BackupError::Damaged { .. })));
}

#[tokio::test]
async fn d35_other_files_and_newer_formats_are_refused_by_name() {
    let kit = Kit::filled().await;
    let path = kit.path("b");
    let absent = Backup::read(&path);
    assert!(matches!(&absent, Err(BackupError::File { path: named, .. }) if *named == path), "{absent:?}");
    for other in [&b""[..], b"SQLite format 3\0 and so on and on and on and on and on", b"tidegate backup\n"] {
        std::fs::write(&path, other).unwrap();
        let read = Backup::read(&path);
        assert!(matches!(&read, Err(BackupError::NotABackup { path: named, .. }) if *named == path), "{read:?}");
    }
    let newer = [&b"tidegate backup\n{\"format\":2,\"else\":1}\n"[..], &[0; 200]].concat();
    std::fs::write(&path, newer).unwrap();
    let read = Backup::read(&path);
    assert!(matches!(read, Err(BackupError::NewerFormat { found: 2, known: 1, .. })), "{read:?}");
}

#[tokio::test]
async fn d35_a_backup_replaces_nothing_and_a_failed_one_leaves_nothing() {
    let kit = Kit::filled().await;
    std::fs::write(kit.path("b"), "mine").unwrap();
    let refused = kit.store.backup(kit.path("b")).await;
    assert!(matches!(refused, Err(BackupError::Exists { .. })), "{refused:?}");
    assert_eq!(std::fs::read(kit.path("b")).unwrap(), b"mine");
    let nowhere = kit.store.backup(kit.path("absent/b")).await;
    assert!(matches!(nowhere, Err(BackupError::File { .. })), "{nowhere:?}");
    // A damaged store is not backed up as if it were whole.
    kit.store.tamper_sql("UPDATE entities SET document = '{}'").await.unwrap();
    let damaged = kit.store.backup(kit.path("c")).await;
    assert!(matches!(damaged, Err(BackupError::Driver(DriverError::Damaged(_)))), "{damaged:?}");
    assert_eq!(kit.files(), ["b"]);
}

#[tokio::test]
async fn d35_a_backup_opened_in_memory_is_restored_with_what_was_written_there() {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(folder.path().join("store.db"), SqliteOptions::default()).unwrap();
    let state = State::open(store.driver(), StateOptions::new("a")).await.unwrap();
    let counter: Ref<Counter> = Ref::root("c").unwrap();
    let put = |n| {
        let counter = counter.clone();
        move |tx: &mut Transaction| -> Result<(), TransactionError> { tx.put(&counter, Counter { n }) }
    };
    let first = state.write(put(1)).await.unwrap().revision;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = seen.clone();
    let on_entity: OnEntity = Box::new(move |path, document| {
        heard.lock().push((path.to_string(), document.map(|document| document.json.to_string())));
    });
    let to = folder.path().join("b");
    let database = folder.path().join("store.db");
    let written = SqliteStore::back_up_file(&database, &to, Timestamp(5), on_entity).await.unwrap();
    assert_eq!((written.header.revision, written.header.taken_at), (first, Timestamp(5)));
    let last = seen.lock().iter().rev().find(|(path, _)| path == "/counters/c").cloned();
    assert_eq!(last.unwrap().1.as_deref(), Some("{\"n\":1}"));
    state.write(put(2)).await.unwrap();

    let opened = Backup::read(&to).unwrap().open(StateOptions::new("restore")).await.unwrap();
    assert_eq!(opened.state().snapshot().require(&counter).unwrap().n, 1);
    opened.state().write(put(7)).await.unwrap();
    let backup = opened.close().await;
    store.restore(Arc::new(backup)).await.unwrap();
    state.flush().await.unwrap();
    assert_eq!(state.snapshot().require(&counter).unwrap().n, 7);
    assert_eq!(state.snapshot().revision(), first.next());
    assert_ne!(state.snapshot().epoch(), written.header.epoch);
    state.close().await;
    let found = tidegate_state::testing::linter::lint(&store.driver().stored().await.unwrap(), &[]);
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test]
async fn d35_a_store_that_knows_nothing_of_the_installation_gives_out_tokens_far_above() {
    let kit = Kit::filled().await;
    kit.store.backup(kit.path("b")).await.unwrap();
    let backup = Arc::new(Backup::read(&kit.path("b")).unwrap().with_tokens_above(SlotToken(1 << 40)));
    let elsewhere = SqliteStore::open(kit.path("other.db"), SqliteOptions::default()).unwrap();
    // Somebody else's installation: it has a head, and knows nothing all the same.
    let state = State::open(elsewhere.driver(), StateOptions::new("other")).await.unwrap();
    let counter: Ref<Counter> = Ref::root("c").unwrap();
    let put = move |tx: &mut Transaction| -> Result<(), TransactionError> { tx.put(&counter, Counter { n: 1 }) };
    state.write(put).await.unwrap();
    state.close().await;
    elsewhere.restore(backup.clone()).await.unwrap();
    assert!(elsewhere.token_counter() > SlotToken(1 << 40));
    let once = elsewhere.token_counter();
    elsewhere.restore(backup).await.unwrap();
    assert_eq!(elsewhere.token_counter(), once, "it knows by now");
}
