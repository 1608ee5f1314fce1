//! The write lock, and who is thrown out of it.

use std::time::{Duration, Instant};

use tidegate_state::testing::points::name as point;
use tidegate_state::testing::proxy::Direction;
use tidegate_state::{OpenError, State, StateOptions};

use super::support::*;

/// How much longer than the lock limit others may wait for a holder that was cut off: one commit, and a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// D15: A holds the lock with its revision taken, B writes, C follows: C never has B's before A's; when A is cut or thrown out,
/// B's takes its place.
async fn d15_revisions_come_in_order_when_a_holder_commits_is_cut_or_thrown_out() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let (a, points) = open(&store, "a").await;
    let (b, _) = open(&store, "b").await;
    let (c, _) = open(&store, "c").await;
    for round in ["commits", "is cut", "is thrown out"] {
        let hold = points.hold(point::COMMIT_BEFORE_COMMIT);
        let (holder, waiter) = (a.clone(), b.clone());
        let by_a = tokio::spawn(async move { increment(&holder, "n").await });
        hold.reached().await;
        let head = c.snapshot().revision();
        let by_b = tokio::spawn(async move { increment(&waiter, "n").await });
        match round {
            "commits" => hold.release(),
            "is cut" => hold.cut(),
            _ => {
                // It does not move: the database throws it out, and B goes on while it is still held.
                let written = by_b.await.unwrap().unwrap();
                assert_eq!(written.revision, head.next());
                hold.release();
                let written_by_a = by_a.await.unwrap().unwrap();
                assert_eq!(written_by_a.value, written.value + 1, "it ran again at the head");
                arrives(&c, written_by_a.revision).await;
                continue;
            }
        }
        let (by_a, by_b) = (by_a.await.unwrap().unwrap(), by_b.await.unwrap().unwrap());
        assert_ne!(by_a.revision, by_b.revision);
        assert_eq!(
            by_a.value + by_b.value,
            2 * by_a.value.min(by_b.value) + 1,
            "each read the other, or was read by it"
        );
        assert_eq!(by_a.revision < by_b.revision, by_a.value < by_b.value);
        arrives(&c, by_a.revision.max(by_b.revision)).await;
    }
    assert_eq!(value(&c, "n"), Some(6));
    agree_and_close(&store, vec![a, b, c]).await;
}

/// D32: the holder of the write lock is cut off, before its commit is sent or on the way of it: the database throws it out by
/// its own limits, others write again within the lock limit, and it recovers by itself, one effect at most.
async fn d32_a_holder_that_is_cut_off_is_thrown_out() {
    let schema = shared().fresh_schema();
    let proxy = proxy_to(shared()).await;
    let (through, direct) = (store(&shared().url_at(proxy.port()), &schema), store(&shared().url(), &schema));
    let (cut_off, points) = open(&through, "cut-off").await;
    let (beside, _) = open(&direct, "beside").await;
    let mut expected = 0;
    for (place, direction) in [
        (point::COMMIT_LOCKED, Direction::Upstream),
        (point::COMMIT_BEFORE_COMMIT, Direction::Upstream),
        (point::COMMIT_LOCKED, Direction::Downstream),
    ] {
        let hold = points.hold(place);
        let writer = cut_off.clone();
        let writing = tokio::spawn(async move { increment(&writer, "n").await });
        hold.reached().await;
        proxy.silence(direction);
        hold.release();
        let started = Instant::now();
        let written = increment(&beside, "m").await.unwrap();
        let waited = started.elapsed();
        assert!(waited < LOCK_LIMIT + SLACK, "others waited {waited:?} for the lock");
        expected += 1;
        assert_eq!(written.value, expected);
        proxy.resume();
        assert_eq!(writing.await.unwrap().unwrap().value, expected, "{place}: one effect");
    }
    agree_and_close(&direct, vec![cut_off, beside]).await;
}

/// D32: the holder of the write lock stands still, is thrown out, and its tail has brought what others have committed since when
/// it goes on: its transaction runs again at the head, and is not refused.
async fn d32_a_holder_that_was_thrown_out_and_has_caught_up_writes_all_the_same() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let (held, points) = open(&store, "held").await;
    let (beside, _) = open(&store, "beside").await;
    for _ in 0..2 {
        let hold = points.hold(point::COMMIT_LOCKED);
        let writer = held.clone();
        let writing = tokio::spawn(async move { increment(&writer, "n").await });
        hold.reached().await;
        let written = increment(&beside, "n").await.unwrap();
        arrives(&held, written.revision).await;
        hold.release();
        assert_eq!(writing.await.unwrap().unwrap().value, written.value + 1, "it ran at the head");
    }
    agree_and_close(&store, vec![held, beside]).await;
}

/// D32: a lock limit that is not well below the lease is refused at the start.
async fn d32_a_lock_limit_near_the_lease_is_refused() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let mut options = StateOptions::new("server");
    options.lease = LOCK_LIMIT * 2;
    let refused = State::open(store.driver(), options).await;
    let Err(OpenError::Options(why)) = refused else { panic!("{:?}", refused.map(|_| ())) };
    assert!(why.contains("lease") && why.contains("3 times"), "{why}");
}

super::with_postgres! {
    d15_revisions_come_in_order_when_a_holder_commits_is_cut_or_thrown_out,
    d32_a_holder_that_is_cut_off_is_thrown_out,
    d32_a_holder_that_was_thrown_out_and_has_caught_up_writes_all_the_same,
    d32_a_lock_limit_near_the_lease_is_refused,
}
