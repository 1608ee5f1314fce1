//! The audit trail: who changed what.

use tidegate_client::AuditQuery;
use tidegate_client::api::{AuditOutcome, PushStart, Role, StoreCreate, StorePatch};

use crate::world::{LIMIT, World};

fn store(name: &str) -> StoreCreate {
    StoreCreate { name: name.to_owned(), key_columns: vec!["k".to_owned()], ..StoreCreate::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_in_the_trail_with_who_made_it_whatever_the_caller_says() {
    let world = World::guarded().await;
    let operator = world.token("the operator", Role::Operator, None).await;
    let http = reqwest::Client::new();
    let create = http
        .post(format!("{}/v1/stores", world.url()))
        .bearer_auth(&operator.secret)
        .header("tidegate-user", "somebody else")
        .header("x-request-id", "request-7")
        .json(&serde_json::json!({"name": "s", "key_columns": ["k"]}));
    assert_eq!(world.raw(create).await.0, 201);
    let start = PushStart {
        id: "p".to_owned(),
        store: "s".to_owned(),
        pushed_by: Some("somebody else".to_owned()),
        ..PushStart::default()
    };
    world.client_with(&operator.secret).start_push(&start).await.unwrap();
    assert_eq!(world.client.push("p").await.unwrap().pushed_by, "the operator");

    let page = world.client.audit(&AuditQuery { store: Some("s".to_owned()), ..AuditQuery::default() }).await.unwrap();
    let routes: Vec<&str> = page.entries.iter().map(|entry| entry.route.as_str()).collect();
    assert_eq!(routes, ["POST /v1/pushes", "POST /v1/stores"]);
    let created = &page.entries[1];
    assert_eq!((created.user.as_str(), created.role), ("the operator", Some(Role::Operator)));
    assert_eq!(created.token.as_ref(), Some(&operator.token.id));
    assert_eq!((created.request.as_str(), created.target.as_str()), ("request-7", "/v1/stores"));
    assert_eq!((created.outcome, created.status), (AuditOutcome::Done, None));

    // The change itself says so, too.
    let mut events = world.client.watch(Some("/stores/s"), None);
    events.next().await.unwrap();
    let patch = StorePatch { retention: Some(5), ..StorePatch::default() };
    world.client_with(&operator.secret).update_store("s", &patch).await.unwrap();
    let attributes = async {
        loop {
            if let Some(tidegate_client::api::WatchEvent::Change { attributes, changes, .. }) =
                events.next().await.unwrap()
                && changes.iter().any(|change| change.path == "/stores/s")
                && attributes.contains_key("user")
            {
                return attributes;
            }
        }
    };
    let attributes = tokio::time::timeout(LIMIT, attributes).await.unwrap();
    assert_eq!((&*attributes["user"], &attributes["token"]), ("the operator", &operator.token.id));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_is_kept_and_who_was_not_let_in_is_counted_alone() {
    let world = World::guarded().await;
    let operator = world.client_with(&world.token("the operator", Role::Operator, None).await.secret);
    let viewer = world.client_with(&world.token("the viewer", Role::Viewer, None).await.secret);
    operator.create_store(&store("s")).await.unwrap();
    operator.create_store(&store("s")).await.unwrap_err();
    viewer.create_store(&store("s")).await.unwrap_err();
    // A refusal is noted behind the answer.
    let query = AuditQuery { user: Some("the operator".to_owned()), ..AuditQuery::default() };
    let both = async {
        loop {
            let page = world.client.audit(&query).await.unwrap();
            if page.entries.len() == 2 {
                return page.entries;
            }
            tokio::task::yield_now().await;
        }
    };
    let entries = tokio::time::timeout(LIMIT, both).await.unwrap();
    assert_eq!((entries[0].outcome, entries[0].status), (AuditOutcome::Refused, Some(409)));
    assert_eq!(entries[1].outcome, AuditOutcome::Done);
    let query = AuditQuery { user: Some("the viewer".to_owned()), ..AuditQuery::default() };
    assert!(world.client.audit(&query).await.unwrap().entries.is_empty());
    let metrics = world.client.metrics().await.unwrap();
    assert!(metrics.contains("access_refused_total{reason=\"role\"} 1"), "{metrics}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_has_pages_and_conditions() {
    let world = World::guarded().await;
    let other = world.client_with(&world.token("other", Role::Operator, None).await.secret);
    let before = world.client.audit(&AuditQuery::default()).await.unwrap().entries.len();
    for number in 0..5 {
        world.client.create_store(&store(&format!("s{number}"))).await.unwrap();
    }
    let patch = StorePatch { retention: Some(5), ..StorePatch::default() };
    other.update_store("s0", &patch).await.unwrap();

    let mut pages = Vec::new();
    let mut query = AuditQuery { limit: Some(2), ..AuditQuery::default() };
    loop {
        let page = world.client.audit(&query).await.unwrap();
        assert!(page.entries.len() <= 2);
        pages.extend(page.entries);
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    assert_eq!(pages.len(), before + 6);
    assert!(pages.windows(2).all(|pair| pair[0].at >= pair[1].at));
    let whole = world.client.audit(&AuditQuery::default()).await.unwrap().entries;
    assert_eq!(pages, whole);

    let count = |query: AuditQuery| {
        let client = world.client.clone();
        async move { client.audit(&query).await.unwrap().entries.len() }
    };
    let (s0, by) = (Some("s0".to_owned()), |user: &str| Some(user.to_owned()));
    assert_eq!(count(AuditQuery { store: s0.clone(), ..AuditQuery::default() }).await, 2);
    assert_eq!(count(AuditQuery { store: s0.clone(), user: by("other"), ..AuditQuery::default() }).await, 1);
    assert_eq!(count(AuditQuery { user: by("other"), ..AuditQuery::default() }).await, 1);
    assert_eq!(count(AuditQuery { user: by("nobody"), ..AuditQuery::default() }).await, 0);
    let newest = whole[0].at;
    assert!(count(AuditQuery { since: Some(newest), ..AuditQuery::default() }).await >= 1);
    assert_eq!(count(AuditQuery { since: Some(newest + 60_000), ..AuditQuery::default() }).await, 0);
    let wrong = AuditQuery { after: Some("nonsense".to_owned()), ..AuditQuery::default() };
    assert!(world.client.audit(&wrong).await.is_err());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_transaction_of_the_servers_own_is_in_the_trail_too() {
    let world = World::guarded().await;
    world.client.publish_hooks_toml("[hooks]\nwait_interval = \"7s\"\n").await.unwrap();
    let made = world.token("somebody", Role::Viewer, None).await;
    world.client.revoke_token(&made.token.id, None).await.unwrap();
    let entries = world.client.audit(&AuditQuery::default()).await.unwrap().entries;
    let routes: Vec<&str> = entries.iter().map(|entry| entry.route.as_str()).collect();
    assert_eq!(routes, ["DELETE /v1/tokens/{token}", "POST /v1/tokens", "PUT /v1/config/hooks"]);
    assert!(entries.iter().all(|entry| entry.outcome == AuditOutcome::Done && entry.user == "admin"));
    world.end().await;
}
