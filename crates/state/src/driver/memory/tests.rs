//! The contract on the memory driver, and what only it can play.

use super::*;
use crate::driver::{DriverError, SlotToken};
use crate::testing::driver_contract::Subject;

crate::driver_contract_tests!((Subject::new(|clock| MemoryStore::with_clock(clock).driver()), ()));

fn subject() -> (Subject, MemoryStore) {
    let mut store = None;
    let subject = Subject::new(|clock| {
        let made = MemoryStore::with_clock(clock);
        store.insert(made).driver()
    });
    (subject, store.unwrap())
}

#[tokio::test]
async fn d08_a_store_made_anew_has_another_epoch_even_with_the_same_head() {
    let (subject, store) = subject();
    subject.put(2, &[]).await;
    let old = subject.driver.meta().await.unwrap();
    store.drop_and_recreate();
    subject.put(2, &[]).await;
    let new = subject.driver.meta().await.unwrap();
    assert_eq!(new.head, old.head);
    assert_ne!((new.epoch, new.installation), (old.epoch, old.installation));
    let noticed = subject.driver.read_log(old.epoch, old.head, 10).await;
    assert!(matches!(noticed, Err(DriverError::EpochChanged { .. })));
}

#[tokio::test]
async fn d35_a_restored_backup_has_a_new_epoch_and_tokens_above_all_that_were_given_out() {
    let (subject, store) = subject();
    subject.put(2, &[]).await;
    let backup = store.backup();
    let id = subject.join(1).await;
    let lost = subject.take(id, crate::testing::driver_contract::slot(0)).await.unwrap();
    subject.put(5, &[]).await;
    store.restore(backup.clone());
    let meta = subject.driver.meta().await.unwrap();
    assert_eq!(meta.head, Revision(2));
    assert_ne!(meta.epoch, backup.meta.epoch);
    let id = subject.join(2).await;
    assert!(subject.take(id, lost.slot).await.unwrap().token > lost.token);
}

#[tokio::test]
async fn d37_a_store_that_was_put_back_is_noticed_and_goes_on_under_a_new_epoch_once_confirmed() {
    let (subject, store) = subject();
    subject.put(2, &[]).await;
    let backup = store.backup();
    let seen = subject.put(5, &[]).await;
    let epoch = subject.epoch().await;
    store.set_back_to(backup);
    let told = subject.driver.read_log(epoch, seen, 10).await;
    assert!(matches!(told, Err(DriverError::SetBack { .. })));
    assert_ne!(subject.begin_epoch(SlotToken(77)).await, epoch);
    let id = subject.join(1).await;
    let fence = subject.take(id, crate::testing::driver_contract::slot(0)).await.unwrap();
    assert_eq!(fence.token, SlotToken(78));
}

#[tokio::test]
async fn u04_damage_that_a_test_plants_is_stored_and_a_gap_is_not_read_over() {
    let (subject, store) = subject();
    subject.put(5, &[]).await;
    store.tamper(|state| {
        state.log.remove(2);
    });
    assert_eq!(subject.driver.stored().await.unwrap().log.len(), 4);
    let read = subject.driver.read_log(subject.epoch().await, Revision(0), 10).await;
    assert!(matches!(read, Err(DriverError::Damaged(_))), "{read:?}");
}

#[tokio::test]
async fn d09_an_absent_store_answers_every_call_as_unavailable_and_then_goes_on() {
    let (subject, store) = subject();
    subject.put(1, &[]).await;
    let epoch = subject.epoch().await;
    let begun = subject.driver.begin(epoch, Revision(1), 10).await.unwrap();
    store.faults().set_absent(true);
    let refused = begun.session.commit(Batch::default()).await;
    assert!(matches!(refused, Err(CommitError::NotCommitted(DriverError::Unavailable(_)))));
    assert!(subject.driver.begin(epoch, Revision(1), 10).await.is_err());
    assert!(subject.driver.read_log(epoch, Revision(0), 10).await.is_err());
    let waiting = tokio::spawn({
        let driver = subject.driver.clone();
        async move { driver.wait_for_news(Revision(1), Duration::from_secs(600)).await }
    });
    store.faults().set_absent(false);
    subject.put(1, &[]).await;
    waiting.await.unwrap();
}
