//! Entities written behind by several servers.

use std::time::Duration;

use tidegate_state::testing::points::name as point;
use tidegate_state::{OpenError, State, StateOptions};

use super::support::*;

/// D42: the server that writes entities behind is stopped before it, and killed there: another goes on; a start at that moment
/// and one after it have the whole tree, and commits never waited.
async fn d42_another_server_goes_on_writing_behind() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let (first, points) = open(&store, "first").await;
    let (second, points_of_second) = open(&store, "second").await;
    let hold = points.hold(point::UPKEEP_BEFORE_ENTITIES);
    increment(&first, "n").await.unwrap();
    hold.reached().await;
    for _ in 0..20 {
        increment(&second, "n").await.unwrap();
    }
    let head = second.snapshot().revision();
    let behind = async || store.driver().stored().await.unwrap().tree.revision;
    eventually("the second writes behind", async || behind().await >= head).await;
    // The one that was held comes late, with less than there is.
    hold.release();
    increment(&second, "n").await.unwrap();
    let head = second.snapshot().revision();
    eventually("one of them writes behind", async || behind().await >= head).await;
    // The second stops, so that the first takes over; the first is killed, and the second is there again.
    let hold = points.hold(point::UPKEEP_BEFORE_ENTITIES);
    let hold_of_second = points_of_second.hold(point::UPKEEP_BEFORE_ENTITIES);
    increment(&second, "n").await.unwrap();
    hold_of_second.reached().await;
    hold.reached().await;
    drop(first);
    drop(hold);
    drop(hold_of_second);
    let head = second.snapshot().revision();
    eventually("the second goes on", async || behind().await >= head).await;
    agree_and_close(&store, vec![second]).await;
}

/// D43: a row of the entities is changed by hand: servers that are up serve on, a start never takes it over. Where the log was
/// compacted a server that is up writes the table anew; without one the start is refused and says which path.
async fn d43_damaged_entities_are_never_taken_over() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let no_log = |mut options: StateOptions| {
        options.log_keep = Duration::ZERO;
        options.compact_every = 1;
        options
    };
    let damage = format!("UPDATE {schema}.entities SET document = '{{\"n\": 77}}' WHERE path = '/counters/n'");
    let (state, _) = open(&store, "server").await;
    for _ in 0..5 {
        increment(&state, "n").await.unwrap();
    }
    let head = state.snapshot().revision();
    let stored = async || store.driver().stored().await.unwrap();
    eventually("entities are written behind", async || stored().await.tree.revision >= head).await;
    state.close().await;
    // The log reaches back: the table is rebuilt from it.
    sql(&store, &damage).await;
    let (state, _) = open_with(&store, "server", no_log).await;
    assert_eq!(value(&state, "n"), Some(5));
    increment(&state, "n").await.unwrap();
    eventually("the log is compacted", async || stored().await.meta.compacted.0 > 0).await;
    eventually("entities are written behind", async || stored().await.tree.revision.0 >= 6).await;
    sql(&store, &damage).await;
    // A server that is up has the whole tree.
    let (late, _) = open(&store, "late").await;
    assert_eq!((value(&state, "n"), value(&late, "n")), (Some(6), Some(6)));
    late.close().await;
    state.close().await;
    sql(&store, &damage).await;
    let mut options = StateOptions::new("alone");
    options.lease = LEASE;
    let refused = State::open(store.driver(), options).await;
    let Err(OpenError::Driver(error)) = refused else { panic!("{:?}", refused.map(|_| ())) };
    assert!(error.to_string().contains("/counters/n") && error.to_string().contains("backup"), "{error}");
}

super::with_postgres! {
    d42_another_server_goes_on_writing_behind,
    d43_damaged_entities_are_never_taken_over,
}
