//! C14: what a later release writes.

use serde::{Deserialize, Serialize};
use tidegate_client::api::{PushPhase, PushStatus};
use tidegate_rollout::entities::Store;
use tidegate_state::{Entity, Ref, TransactionError};

use crate::world::World;

/// A push as a later release writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct LaterPush(serde_json::Map<String, serde_json::Value>);

impl Entity for LaterPush {
    const COLLECTION: &'static str = "pushes";
    type Parent = Store;
    type Id = String;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c14_a_status_that_this_release_does_not_know_is_shown_as_unknown_and_left_alone() {
    let world = World::start().await;
    world.store().await;
    world.push("p1", &world.rows("one.csv", 5, "one-")).await;
    let place = Ref::<Store>::root("s").unwrap().child::<LaterPush>("p1").unwrap();
    let state = world.server.as_ref().unwrap().state().clone();
    let written = state.write({
        let place = place.clone();
        move |transaction| -> Result<(), TransactionError> {
            let mut push = (*transaction.require(&place)?).clone();
            push.0.insert("state".into(), serde_json::json!({ "mirrored": { "to": "another planet" } }));
            transaction.put(&place, push)
        }
    });
    written.await.unwrap();
    let before = state.snapshot().document(place.path()).unwrap().json().to_owned();

    let listed = world.client.pushes(None, None).await.unwrap();
    assert_eq!((listed[0].state.push.as_str(), listed[0].state.status), ("p1", PushStatus::Unknown));
    assert!(listed[0].created_at > 0);
    let shown = world.client.push("p1").await.unwrap();
    assert_eq!((shown.state.status, shown.state.phase), (PushStatus::Unknown, PushPhase::Unknown));
    assert_eq!(shown.state.version, Some(1));
    assert!(shown.state.reason.unwrap().contains("later release"));
    // What it serves is read as before, and the store is shown.
    assert_eq!(world.client.get("s", "k1", Some("b")).await.unwrap().version, 1);
    assert_eq!(world.client.store("s").await.unwrap().serving.len(), 3);
    // What would change it is refused.
    assert!(world.client.kill_push("p1", "no").await.is_err());
    assert_eq!(state.snapshot().document(place.path()).unwrap().json(), before);
    world.end().await;
}
