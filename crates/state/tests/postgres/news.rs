//! Notifications are hints.

use std::time::Duration;

use super::support::*;

fn kill_listeners(schema: &str) -> String {
    format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tidegate-watch {schema}'")
}

/// D14: the listening connection is killed again and again, and nonsense, doubled, early notifications and those of another
/// schema come: changes arrive, flush is exact, and there is no error and no gap.
async fn d14_notifications_lost_doubled_early_and_of_nonsense() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let (writer, _) = open(&store, "writer").await;
    let (reader, _) = open(&store, "reader").await;
    for payload in ["nonsense", "", "999999999", "-1", "1", "1", "99999999999999999999"] {
        sql(&store, &format!("NOTIFY tidegate_{schema}, '{payload}'")).await;
        sql(&store, &format!("NOTIFY tidegate_{schema}_other, '{payload}'")).await;
        let at = increment(&writer, "n").await.unwrap().revision;
        arrives(&reader, at).await;
    }
    for _ in 0..5 {
        sql(&store, &kill_listeners(&schema)).await;
        let at = increment(&writer, "n").await.unwrap().revision;
        arrives(&reader, at).await;
        let at = increment(&writer, "n").await.unwrap().revision;
        reader.flush_within(LIMIT).await.unwrap();
        assert!(reader.snapshot().revision() >= at, "flush is exact without the poll");
    }
    assert_eq!(value(&reader, "n"), Some(17));
    agree_and_close(&store, vec![writer, reader]).await;
}

/// D14: without any notification the poll finds changes, and flush does not wait for it.
async fn d14_notifications_never_delivered() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let slow = |mut options: tidegate_state::StateOptions| {
        options.poll = Duration::from_secs(3_600);
        options
    };
    let (writer, _) = open(&store, "writer").await;
    let (flushed, _) = open_with(&store, "flushed", slow).await;
    let (polling, _) = open(&store, "polling").await;
    // No connection that listens lives for long enough to be told.
    let killing = tokio::spawn({
        let (store, schema) = (store.clone(), schema.clone());
        async move {
            loop {
                sql(&store, &kill_listeners(&schema)).await;
            }
        }
    });
    let at = increment(&writer, "n").await.unwrap().revision;
    arrives(&polling, at).await;
    flushed.flush_within(LIMIT).await.unwrap();
    assert!(flushed.snapshot().revision() >= at);
    killing.abort();
    agree_and_close(&store, vec![writer, flushed, polling]).await;
}

/// D40: two installations in two schemas of one database: the lock of one does not hold up the other, and neither wakes or
/// applies the other's.
async fn d40_two_installations_in_one_database() {
    let (first, second) = (shared().fresh_schema(), shared().fresh_schema());
    let (one, other) = (store(&shared().url(), &first), store(&shared().url(), &second));
    let (holding, points) = open(&one, "server").await;
    let (free, _) = open(&other, "server").await;
    let hold = points.hold(tidegate_state::testing::points::name::COMMIT_LOCKED);
    let writer = holding.clone();
    let writing = tokio::spawn(async move { put(&writer, "n", 1).await });
    hold.reached().await;
    for n in 0..5 {
        put(&free, "n", n).await.unwrap();
    }
    hold.release();
    writing.await.unwrap().unwrap();
    assert_ne!(holding.snapshot().epoch(), free.snapshot().epoch());
    assert_eq!((holding.snapshot().revision().0, free.snapshot().revision().0), (1, 5));
    assert_eq!((value(&holding, "n"), value(&free, "n")), (Some(1), Some(4)));
    agree_and_close(&one, vec![holding]).await;
    agree_and_close(&other, vec![free]).await;
}

super::with_postgres! {
    d14_notifications_lost_doubled_early_and_of_nonsense,
    d14_notifications_never_delivered,
    d40_two_installations_in_one_database,
}
