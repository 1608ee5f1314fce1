//! Entities written behind by several servers.

use tidegate_state::testing::points::name as point;

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

super::with_postgres! {
    d42_another_server_goes_on_writing_behind,
}
