//! The contract on the SQLite driver, and what only a file can suffer.

use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::backup::Backup;
use crate::clock::ManualClock;
use crate::driver::RESTORED_TOKENS_ABOVE;
use crate::driver::format::Formats;
use crate::driver::{Batch, CommitError, RecordWrite, Settle, Settled};
use crate::record::{IndexKey, RecordQuery};
use crate::revision::Timestamp;
use crate::testing::damages::{DUMP, Damage, damages};
use crate::testing::driver_contract::{self as contract, Subject};

crate::driver_contract_tests!(subject());

/// The same with a tail so short that nearly every read comes from the file.
mod with_a_short_tail {
    use super::*;

    crate::driver_contract_tests!({
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("store.db");
        let subject = Subject::new(|clock| {
            let options = SqliteOptions { tail_rows_max: 2, readers: 1, ..SqliteOptions::with_clock(clock) };
            SqliteStore::open(path, options).unwrap().driver()
        });
        (subject, folder)
    });
}

fn subject() -> (Subject, TempDir) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let subject = Subject::new(|clock| SqliteStore::open(path, SqliteOptions::with_clock(clock)).unwrap().driver());
    (subject, folder)
}

struct Opened {
    store: SqliteStore,
    subject: Subject,
}

fn open(path: &std::path::Path) -> Opened {
    let mut store = None;
    let subject = Subject::new(|clock| {
        let options = SqliteOptions { mend_limit: Duration::ZERO, ..SqliteOptions::with_clock(clock) };
        let opened = SqliteStore::open(path, options).unwrap();
        store.insert(opened).driver()
    });
    Opened { store: store.unwrap(), subject }
}

#[tokio::test]
async fn d31_all_that_is_stored_is_there_after_a_close() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let opened = open(&path);
    contract::upkeep::u04_all_that_is_stored_can_be_read(opened.subject.clone()).await;
    let mut before = opened.subject.driver.stored().await.unwrap();
    drop(opened);
    assert!(!folder.path().join("store.db-wal").exists(), "a close ends the write-ahead log");
    let opened = open(&path);
    let after = opened.subject.driver.stored().await.unwrap();
    // All but the leases: who held them has gone with its process.
    before.servers.iter_mut().for_each(|server| server.lease_until = Timestamp(0));
    assert_eq!(format!("{after:?}"), format!("{before:?}"));

    let old = before.slots[0].clone();
    let fence = crate::driver::Fence { slot: old.slot, token: old.token };
    assert_eq!(opened.subject.settle_one(Settle::Watermark { fence, to: Revision(1) }).await, Settled::Refused);
    let id = opened.subject.join(2).await;
    assert!(opened.subject.take(id, old.slot).await.unwrap().token > old.token);
}

#[tokio::test]
async fn d29_a_second_opening_is_refused_naming_the_holder_and_harms_nothing() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let opened = open(&path);
    let refused = SqliteStore::open(&path, SqliteOptions::default()).map(|_| ());
    let Err(DriverError::Held(message)) = refused else { panic!("{refused:?}") };
    assert!(message.contains(&std::process::id().to_string()), "{message}");
    opened.subject.put(1, &[]).await;
    drop(opened);
    open(&path).subject.put(1, &[]).await;
}

#[tokio::test]
async fn d11_what_can_not_be_opened_says_why_and_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let open = |path: &std::path::Path| SqliteStore::open(path, SqliteOptions::default()).map(|_| ()).unwrap_err();
    let error = open(&folder.path().join("nowhere/store.db"));
    assert!(matches!(&error, DriverError::Configuration(text) if text.contains("nowhere")), "{error}");

    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "not a database, but longer than a header of one hundred bytes. ".repeat(3)).unwrap();
    let error = open(&text);
    assert!(matches!(&error, DriverError::Configuration(text) if text.contains("not a SQLite database")), "{error}");

    let foreign = folder.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE songs (title TEXT)").unwrap();
    let error = open(&foreign);
    assert!(matches!(&error, DriverError::Configuration(text) if text.contains("songs")), "{error}");
    let bytes = std::fs::read(&foreign).unwrap();
    open(&foreign);
    assert_eq!(std::fs::read(&foreign).unwrap(), bytes);
}

#[tokio::test]
async fn d05_a_newer_format_is_refused_and_nothing_is_written() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    drop(open(&path));
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 9").unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let refused = SqliteStore::open(&path, SqliteOptions::default()).map(|_| ());
    assert!(matches!(refused, Err(DriverError::NewerFormat { found: 9, known: 1 })), "{refused:?}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn d39_a_file_two_releases_old_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    drop(open(&path));
    let bytes = std::fs::read(&path).unwrap();
    let opened_by = |oldest, newest| {
        let connection = schema::open_reader(&path).unwrap();
        schema::check_format(&connection, &path, Formats { oldest, newest })
    };
    assert_eq!(opened_by(1, 1).unwrap(), 1);
    assert_eq!(opened_by(1, 2).unwrap(), 1, "the release after it takes it over");
    let refused = opened_by(2, 3).unwrap_err();
    assert!(matches!(refused, DriverError::OlderFormat { found: 1, oldest: 2 }), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[tokio::test]
async fn d04_a_start_that_ended_between_migration_and_initialisation_is_completed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    drop(open(&path));
    rusqlite::Connection::open(&path).unwrap().execute_batch("DELETE FROM meta").unwrap();
    let opened = open(&path);
    assert_eq!(opened.subject.put(1, &[]).await, Revision(1));
}

#[tokio::test]
async fn d30_a_full_store_refuses_writes_reads_on_and_goes_on_with_room_again() {
    let folder = TempDir::new().unwrap();
    let opened = open(&folder.path().join("store.db"));
    let subject = &opened.subject;
    for round in 0..5 {
        let before = subject.put(3, &[]).await;
        let id = subject.join(round).await;
        let fence = subject.take(id, contract::slot(round as u32)).await.unwrap();
        let used = std::fs::metadata(opened.store.path()).unwrap().len().max(200 << 10);
        opened.store.set_bytes_max(Some(used)).await.unwrap();
        let large = |head: Revision, now| {
            let mut row = (*contract::row(head.next(), now, &[])).clone();
            row.attributes = Arc::new([("large".to_owned(), "x".repeat(8 << 20))].into());
            Batch { rows: vec![Arc::new(row)], ..Batch::default() }
        };
        let refused = subject.commit(large).await;
        assert!(matches!(refused, Err(CommitError::NotCommitted(DriverError::Full(_)))), "{refused:?}");
        assert_eq!(subject.head().await, before);
        let page = subject.driver.read_log(subject.epoch().await, Revision(0), 1_000).await.unwrap();
        assert_eq!(page.rows.last().unwrap().revision, before);
        // What needs no room goes on: the token still holds.
        assert_eq!(subject.settle_one(Settle::Watermark { fence, to: before }).await, Settled::Durable);
        opened.store.set_bytes_max(None).await.unwrap();
        assert_eq!(subject.put(1, &[]).await, before.next());
        subject.commit(large).await.unwrap();
    }
}

#[tokio::test]
async fn d30_work_that_fails_harms_nothing_that_shares_its_transaction() {
    let folder = TempDir::new().unwrap();
    let opened = open(&folder.path().join("store.db"));
    let subject = &opened.subject;
    subject.put(40, &[contract::HOOK]).await;
    let id = subject.join(1).await;
    let fence = subject.take(id, contract::slot(0)).await.unwrap();
    // Many at once: a lapsed heartbeat, a batch with a closed record, and settlements around them.
    let mut tasks = Vec::new();
    for number in 1..=40u64 {
        let subject = subject.clone();
        tasks.push(tokio::spawn(async move {
            match number % 4 {
                0 => {
                    let unknown = contract::server(999, Timestamp(0));
                    let refused = subject.driver.heartbeat(unknown).await;
                    assert!(matches!(refused, Err(DriverError::LeaseLapsed)));
                }
                1 => {
                    let renewed = contract::server(1, subject.clock.now());
                    subject.driver.heartbeat(renewed).await.unwrap();
                }
                2 => {
                    let refused = subject
                        .commit(|head, now| {
                            let id = crate::driver::RecordId { revision: Revision(1), sequence: 0 };
                            let missing = contract::record(id, now, "a", 1);
                            Batch { records: vec![RecordWrite::Update(missing)], ..contract::append(head, now, &[], 0) }
                        })
                        .await;
                    assert!(matches!(refused, Err(CommitError::NotCommitted(_))), "{refused:?}");
                }
                _ => {
                    let item = Settle::Receipt(contract::receipt(number, fence));
                    assert_eq!(subject.settle_one(item).await, Settled::Durable);
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let stored = subject.driver.stored().await.unwrap();
    assert_eq!(stored.meta.head, Revision(40));
    assert_eq!(stored.receipts.len(), 10);
}

#[tokio::test]
async fn d35_a_backup_is_one_revision_and_comes_back_under_a_new_epoch() {
    let folder = TempDir::new().unwrap();
    let backup = folder.path().join("backup.db");
    let opened = open(&folder.path().join("store.db"));
    let subject = &opened.subject;
    contract::upkeep::u04_all_that_is_stored_can_be_read(subject.clone()).await;
    let expected = subject.driver.stored().await.unwrap();
    opened.store.backup(&backup).await.unwrap();
    assert!(opened.store.backup(&backup).await.is_err(), "a backup replaces nothing");
    let second = subject.join(2).await;
    let lost = subject.take(second, contract::slot(1)).await.unwrap();
    let seen = subject.put(50, &[contract::HOOK]).await;

    let read = Arc::new(Backup::read(&backup).unwrap());
    opened.store.restore(read.clone()).await.unwrap();
    let restored = subject.driver.stored().await.unwrap();
    assert_eq!((restored.log, restored.tree.entities), (expected.log.clone(), expected.tree.entities.clone()));
    assert_eq!((&restored.receipts, &restored.exceptions), (&expected.receipts, &expected.exceptions));
    assert_eq!((&restored.records, &restored.index_entries), (&expected.records, &expected.index_entries));
    assert!(restored.servers.is_empty() && restored.slots.iter().all(|slot| slot.owner.is_none()));
    assert_eq!(restored.meta.installation, expected.meta.installation);
    assert_ne!(restored.meta.epoch, expected.meta.epoch);
    let told = subject.driver.read_log(expected.meta.epoch, seen, 10).await;
    assert!(matches!(told, Err(DriverError::EpochChanged { .. })));
    let id = subject.join(3).await;
    assert!(subject.take(id, contract::slot(1)).await.unwrap().token > lost.token);
    subject.put(60, &[]).await;
    assert_eq!(subject.driver.load().await.unwrap().entities, expected.tree.entities);

    // On a new machine nobody knows what was given out after the backup.
    let elsewhere = open(&folder.path().join("elsewhere.db"));
    elsewhere.store.restore(read).await.unwrap();
    let id = elsewhere.subject.join(1).await;
    let fence = elsewhere.subject.take(id, contract::slot(0)).await.unwrap();
    assert!(fence.token.0 > RESTORED_TOKENS_ABOVE);
}

#[tokio::test]
async fn d37_a_file_that_was_put_back_is_told_by_its_head() {
    let folder = TempDir::new().unwrap();
    let backup = folder.path().join("backup.db");
    let opened = open(&folder.path().join("store.db"));
    let subject = &opened.subject;
    subject.put(3, &[]).await;
    opened.store.backup(&backup).await.unwrap();
    let seen = subject.put(3, &[]).await;
    let epoch = subject.epoch().await;
    opened.store.set_back_to(Arc::new(Backup::read(&backup).unwrap())).await.unwrap();
    let told = subject.driver.begin(epoch, seen, 10).await.map(|_| ());
    assert!(matches!(told, Err(DriverError::SetBack { head: Revision(3), .. })), "{told:?}");
}

#[tokio::test]
async fn d08_a_store_made_anew_has_another_epoch_even_with_the_same_head() {
    let folder = TempDir::new().unwrap();
    let opened = open(&folder.path().join("store.db"));
    let subject = &opened.subject;
    subject.put(2, &[]).await;
    let old = subject.driver.meta().await.unwrap();
    opened.store.drop_and_recreate().await.unwrap();
    subject.put(2, &[]).await;
    let new = subject.driver.meta().await.unwrap();
    assert_eq!(new.head, old.head);
    assert_ne!((new.epoch, new.installation), (old.epoch, old.installation));
}

#[tokio::test]
async fn d43_damaged_entities_are_rebuilt_from_the_log_or_refused_with_their_paths() {
    let folder = TempDir::new().unwrap();
    for (number, Damage { what, sql, named }) in
        damages("/things/2", "{}", ("meta", "entities_at")).into_iter().enumerate()
    {
        let path = folder.path().join(format!("{number}.db"));
        let opened = open(&path);
        opened.subject.put(4, &[]).await;
        opened.subject.write_behind(Revision(0), Revision(2)).await;
        opened.store.tamper_sql(DUMP).await.unwrap();
        opened.subject.write_behind(Revision(2), Revision(3)).await;
        opened.store.tamper_sql(&sql).await.unwrap();
        drop(opened);
        // The log reaches back to the beginning: the tree is whole, at the head, and stored so.
        let opened = open(&path);
        for _ in 0..2 {
            let tree = opened.subject.driver.load().await.unwrap();
            let expected: Vec<_> = (1..=4).map(|revision| contract::entity(Revision(revision))).collect();
            assert_eq!((tree.revision, tree.entities), (Revision(4), expected), "{what}");
        }
        // It is compacted: refused, and it says what to do.
        opened
            .subject
            .driver
            .compact(opened.subject.epoch().await, Timestamp(i64::MAX), Revision(2), 10)
            .await
            .unwrap();
        opened.store.tamper_sql(&sql).await.unwrap();
        let damaged = opened.store.driver().load().await;
        let Err(DriverError::Damaged(message)) = damaged else { panic!("{what}: {damaged:?}") };
        assert!(message.contains("backup") && message.contains(&named), "{what}: {message}");
    }
}

#[tokio::test]
async fn d43_where_the_log_is_compacted_a_server_that_is_up_writes_damaged_entities_anew() {
    let folder = TempDir::new().unwrap();
    let opened = open(&folder.path().join("store.db"));
    let subject = &opened.subject;
    subject.put(6, &[]).await;
    subject.write_behind(Revision(0), Revision(4)).await;
    subject.driver.compact(subject.epoch().await, Timestamp(i64::MAX), Revision(2), 10).await.unwrap();
    opened.store.tamper_sql("DELETE FROM entities WHERE path = '/things/2'").await.unwrap();
    let told = subject.driver.load().await;
    assert!(matches!(told, Err(DriverError::Damaged(_))), "{told:?}");
    // The server that is up learns of it as it goes on writing behind, and nothing is compacted meanwhile.
    let told = subject.driver.write_entities(subject.epoch().await, Revision(4), Revision(5), vec![], vec![]).await;
    assert!(matches!(told, Err(DriverError::Damaged(_))), "{told:?}");
    assert_eq!(
        subject.driver.compact(subject.epoch().await, Timestamp(i64::MAX), Revision(9), 10).await.unwrap(),
        Revision(2)
    );
    let entities: Vec<_> = (1..=5).map(|revision| contract::entity(Revision(revision))).collect();
    let older = crate::driver::StoredTree { revision: Revision(1), entities: vec![] };
    assert!(
        subject.driver.replace_entities(subject.epoch().await, older).await.is_err(),
        "the log could not complete it"
    );
    let tree = crate::driver::StoredTree { revision: Revision(5), entities: entities.clone() };
    subject.driver.replace_entities(subject.epoch().await, tree).await.unwrap();
    let loaded = subject.driver.load().await.unwrap();
    assert_eq!((loaded.revision, loaded.entities), (Revision(5), entities));
    let older = crate::driver::StoredTree { revision: Revision(3), entities: vec![] };
    subject.driver.replace_entities(subject.epoch().await, older).await.unwrap();
    assert_eq!(subject.driver.load().await.unwrap().revision, Revision(5), "no row goes back");
    subject.write_behind(Revision(5), Revision(6)).await;
}

#[tokio::test]
async fn d43_rows_that_are_put_back_from_an_old_dump_are_noticed() {
    let folder = TempDir::new().unwrap();
    let opened = open(&folder.path().join("store.db"));
    let subject = &opened.subject;
    subject.put(4, &[]).await;
    subject.write_behind(Revision(0), Revision(2)).await;
    opened.store.tamper_sql("CREATE TABLE dump AS SELECT * FROM entities").await.unwrap();
    let mut changed = contract::entity(Revision(2));
    changed.document = contract::document("changed");
    changed.revision = Revision(3);
    subject
        .driver
        .write_entities(subject.epoch().await, Revision(2), Revision(3), vec![changed], vec![])
        .await
        .unwrap();
    let replace = "DELETE FROM entities; INSERT INTO entities SELECT * FROM dump; DROP TABLE dump";
    opened.store.tamper_sql(replace).await.unwrap();
    let tree = subject.driver.load().await.unwrap();
    assert_eq!((tree.revision, tree.entities.len()), (Revision(4), 4), "rebuilt");
}

#[tokio::test]
async fn u04_damage_that_a_test_plants_is_stored_and_a_gap_is_not_read_over() {
    let folder = TempDir::new().unwrap();
    let opened = open(&folder.path().join("store.db"));
    opened.subject.put(5, &[]).await;
    opened
        .store
        .tamper(|state| {
            state.log.remove(2);
        })
        .await
        .unwrap();
    assert_eq!(opened.subject.driver.stored().await.unwrap().log.len(), 4);
    let read = opened.subject.driver.read_log(opened.subject.epoch().await, Revision(0), 10).await;
    assert!(matches!(read, Err(DriverError::Damaged(_))), "{read:?}");
}

#[tokio::test]
async fn r06_every_page_is_a_search_in_one_index_without_sorting() {
    let folder = TempDir::new().unwrap();
    let opened = open(&folder.path().join("store.db"));
    opened.subject.driver.open(&[contract::declaration(None)]).await.unwrap();
    let kinds = opened.store.0.shared.known.lock().kinds.clone();
    let connection = schema::open_reader(opened.store.path()).unwrap();
    let cursor = crate::record::RecordCursor {
        key: IndexKey::new().text("a").into_bytes(),
        id: crate::driver::RecordId { revision: Revision(1), sequence: 0 },
    };
    for cursor in [None, Some(cursor)] {
        for prefix in [IndexKey::new(), IndexKey::new().text("a")] {
            for backwards in [false, true] {
                let query = RecordQuery {
                    kind: "run".into(),
                    index: "by-owner".to_owned(),
                    prefix: prefix.clone(),
                    cursor: cursor.clone(),
                    backwards,
                    limit: 50,
                };
                let (sql, values) = records::page_statement(&kinds, &query).unwrap();
                let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
                let plan: Vec<String> = statement
                    .query_map(rusqlite::params_from_iter(values), |row| row.get(3))
                    .unwrap()
                    .collect::<rusqlite::Result<_>>()
                    .unwrap();
                assert_eq!(plan.len(), 2, "{plan:?}");
                assert!(plan[0].starts_with("SEARCH e USING PRIMARY KEY (kind=? AND number=?"), "{plan:?}");
                assert!(plan[1].starts_with("SEARCH r USING INDEX"), "{plan:?}");
            }
        }
    }
}

#[tokio::test]
async fn d23_rows_older_than_what_is_in_memory_are_read_from_the_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    open(&path).subject.put(30, &[contract::HOOK]).await;
    let clock = Arc::new(ManualClock::new(Timestamp(0)));
    let options = SqliteOptions { tail_rows_max: 4, ..SqliteOptions::with_clock(clock) };
    let driver = SqliteStore::open(&path, options).unwrap().driver();
    let epoch = driver.meta().await.unwrap().epoch;
    let page = driver.read_log(epoch, Revision(3), 5).await.unwrap();
    assert_eq!(page.rows.iter().map(|row| row.revision.0).collect::<Vec<_>>(), [4, 5, 6, 7, 8]);
    let begun = driver.begin(epoch, Revision(10), 100).await.unwrap();
    assert_eq!(begun.rows.len(), 20);
    drop(begun);
    let pending = driver.pending(contract::slot(0), Revision(20), 100).await.unwrap();
    assert_eq!((pending.rows.len(), pending.read_to), (10, Revision(30)));
}
