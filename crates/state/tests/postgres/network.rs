//! Networks that fail without saying so.

use std::time::Duration;

use tidegate_state::testing::points::name as point;
use tidegate_state::testing::proxy::Direction;

use super::support::*;

/// D13: packets vanish and nothing is closed: a write is told of it within its limit, and once they get through again
/// writer and tail go on by themselves and miss nothing; a server that had seen no change before does as well.
async fn d13_half_open_connections_are_noticed_and_made_anew() {
    let schema = shared().fresh_schema();
    let proxy = proxy_to(shared()).await;
    let (through, direct) = (store(&shared().url_at(proxy.port()), &schema), store(&shared().url(), &schema));
    let limited = |mut options: tidegate_state::StateOptions| {
        options.write_limit = Duration::from_secs(1);
        options
    };
    let (beside, _) = open(&direct, "beside").await;
    let (cut_off, _) = open_with(&through, "cut-off", limited).await;
    let (fresh, _) = open_with(&through, "fresh", limited).await;
    for direction in [Direction::Upstream, Direction::Downstream] {
        increment(&cut_off, "n").await.unwrap();
        proxy.silence(direction);
        let told = put(&cut_off, "m", 1).await;
        assert!(told.as_ref().is_err(), "{told:?}");
        for _ in 0..20 {
            increment(&beside, "n").await.unwrap();
        }
        let at = beside.snapshot().revision();
        assert!(cut_off.snapshot().revision() < at && fresh.snapshot().revision() < at);
        // Nobody writes or flushes there: they notice by their own limits.
        proxy.resume();
        arrives(&cut_off, at).await;
        arrives(&fresh, at).await;
        increment(&cut_off, "n").await.unwrap();
    }
    assert_eq!(value(&cut_off, "n"), Some(44));
    agree_and_close(&direct, vec![beside, cut_off, fresh]).await;
}

/// D16, for real: the answer of a commit is lost on the way, and the connection with it: the submission counts once.
async fn d16_a_commit_whose_answer_is_lost_on_the_way_counts_once() {
    let schema = shared().fresh_schema();
    let proxy = proxy_to(shared()).await;
    let (through, direct) = (store(&shared().url_at(proxy.port()), &schema), store(&shared().url(), &schema));
    let (state, points) = open(&through, "server").await;
    let (beside, _) = open(&direct, "beside").await;
    increment(&state, "n").await.unwrap();
    for n in 2..=5 {
        let hold = points.hold(point::COMMIT_BEFORE_COMMIT);
        let writer = state.clone();
        let writing = tokio::spawn(async move { increment(&writer, "n").await });
        hold.reached().await;
        proxy.silence(Direction::Downstream);
        hold.release();
        // It is committed, and nobody is told.
        eventually("the commit can be seen", async || {
            beside.flush_within(LIMIT).await.unwrap();
            value(&beside, "n") == Some(n)
        })
        .await;
        proxy.cut();
        proxy.resume();
        assert_eq!(writing.await.unwrap().unwrap().value, n);
    }
    agree_and_close(&direct, vec![beside, state]).await;
}

super::with_postgres! {
    d13_half_open_connections_are_noticed_and_made_anew,
    d16_a_commit_whose_answer_is_lost_on_the_way_counts_once,
}
