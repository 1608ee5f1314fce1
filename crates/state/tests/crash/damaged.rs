//! Entities that were damaged by hand, seen by whole servers: those that are up serve on, a start never takes the damage
//! over.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::driver::{Driver, DriverError};
use tidegate_state::{
    Entity, OpenError, Ref, Revision, Root, State, StateOptions, Timestamp, Transaction, TransactionError,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Store {
    owner: String,
}

impl Entity for Store {
    const COLLECTION: &'static str = "stores";
    type Parent = Root;
    type Id = u64;
}

fn options(name: &str) -> StateOptions {
    StateOptions { entities_behind: Duration::from_millis(5), ..StateOptions::new(name.to_owned()) }
}

async fn write(state: &State, from: u64, to: u64) {
    for number in from..to {
        let put = move |tx: &mut Transaction| tx.put(&Ref::root(number)?, Store { owner: number.to_string() });
        let put = move |tx: &mut Transaction| -> Result<(), TransactionError> { put(tx) };
        state.write(put).await.unwrap();
    }
}

/// Waits until the stored entities stand for a revision, then compacts the log as far as it goes.
async fn compact(driver: &dyn Driver, revision: Revision) -> Revision {
    for _ in 0..2_000 {
        let stands_for = driver.stored().await.unwrap().tree.revision;
        if stands_for >= revision {
            return driver
                .compact(driver.meta().await.unwrap().epoch, Timestamp(i64::MAX), Revision(u64::MAX), usize::MAX)
                .await
                .unwrap();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the entities were not written behind within 10 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d43_a_start_takes_no_damaged_entities_over_and_a_server_that_is_up_mends_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = SqliteStore::open(&path, SqliteOptions::default()).unwrap();
    let driver: Arc<dyn Driver> = store.driver();
    let up = State::open(driver.clone(), options("up")).await.unwrap();
    write(&up, 0, 20).await;
    assert!(compact(&*driver, Revision(20)).await > Revision(0));
    store.tamper_sql("UPDATE entities SET document = '{\"owner\":\"nobody\"}' WHERE path = '/stores/7'").await.unwrap();

    // The start finds the damage, and the server that is up mends it as it looks after what is written behind.
    let late = State::open(driver.clone(), options("late")).await.unwrap();
    let seven: Ref<Store> = Ref::root(7u64).unwrap();
    assert_eq!(late.snapshot().require(&seven).unwrap().owner, "7");
    assert_eq!(up.snapshot().require(&seven).unwrap().owner, "7", "it served on, unharmed");
    assert_eq!(up.snapshot().roots::<Store>().count(), late.snapshot().roots::<Store>().count());

    // All at once: nobody is left who could mend it.
    write(&up, 2_000, 2_001).await;
    let head = up.flush().await.unwrap();
    compact(&*driver, head).await;
    late.close().await;
    up.close().await;
    store.tamper_sql("DELETE FROM entities WHERE path = '/stores/7'").await.unwrap();
    let refused = State::open(driver.clone(), options("up")).await.map(|_| ());
    match refused {
        Err(OpenError::Driver(DriverError::Damaged(message))) => assert!(message.contains("backup"), "{message}"),
        other => panic!("{other:?}"),
    }
}
