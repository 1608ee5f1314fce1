//! The audit trail: who changed what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_client::AuditQuery;
use tidegate_client::api::{
    AuditChange, AuditEntity, AuditOutcome, AuditPage, AuditView, AvailabilityRequest, OverridesUpdate, PushStart,
    Role, RollbackRequest, StoreCreate, StorePatch,
};
use tidegate_lifecycle::{Registry, StoreLifecycleHooks};
use tidegate_server::ConfigFile;
use tidegate_server::access::config::Authentication;

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
async fn what_was_refused_is_kept_and_who_shows_no_token_is_counted_alone() {
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
    let entries = refused(&world, "the viewer", 1).await;
    assert_eq!((entries[0].status, entries[0].store.as_deref()), (Some(403), Some("s")));
    let before = world.client.audit(&AuditQuery::default()).await.unwrap().entries.len();
    let nobody = reqwest::Client::new().post(format!("{}/v1/stores", world.url())).json(&store("s"));
    assert_eq!(world.raw(nobody).await.0, 401);
    assert_eq!(world.client.audit(&AuditQuery::default()).await.unwrap().entries.len(), before);
    let metrics = world.client.metrics().await.unwrap();
    assert!(metrics.contains("access_refused_total{reason=\"role\"} 1"), "{metrics}");
    world.end().await;
}

/// The entries of a user of whom everything was refused, once there are so many: they are noted behind the answers.
async fn refused(world: &World, user: &str, count: usize) -> Vec<AuditView> {
    let query = AuditQuery { user: Some(user.to_owned()), ..AuditQuery::default() };
    let all = async {
        loop {
            let page = world.client.audit(&query).await.unwrap();
            if page.entries.len() >= count {
                return page.entries;
            }
            tokio::task::yield_now().await;
        }
    };
    let entries = tokio::time::timeout(LIMIT, all).await.unwrap();
    assert!(
        entries.len() == count && entries.iter().all(|entry| entry.outcome == AuditOutcome::Refused),
        "{entries:#?}"
    );
    entries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_token_or_freeze_is_named_and_whoever_may_ask_nothing_does_not_fill_the_trail() {
    let world = World::guarded().await;
    let token = world.token("the viewer", Role::Viewer, None).await;
    let secret = format!("tg_{}_{}", "0a".repeat(8), "0b".repeat(32));
    let http = reqwest::Client::new();
    let ask = async |path: &str, body: serde_json::Value, shown: &str| {
        world.raw(http.post(format!("{}{path}", world.url())).bearer_auth(shown).json(&body)).await.0
    };
    let region = serde_json::json!({"name": format!("mine {secret}"), "role": "region", "region": "b"});
    assert_eq!(ask("/v1/tokens", region, &token.secret).await, 403);
    let freeze = |scope: serde_json::Value| serde_json::json!({"id": "f", "scope": scope, "reason": "r"});
    assert_eq!(ask("/v1/freezes", freeze(serde_json::json!({"store": "s"})), &token.secret).await, 403);
    assert_eq!(ask("/v1/freezes", freeze(serde_json::json!({"region": "b"})), &token.secret).await, 403);
    let entries = refused(&world, "the viewer", 3).await;
    assert!(entries.iter().all(|entry| entry.status == Some(403)), "{entries:#?}");
    let scopes: BTreeSet<(&str, Option<&str>)> = entries
        .iter()
        .filter(|entry| entry.operation == "freeze")
        .map(|entry| the(entry, "freeze", "f"))
        .map(|freeze| (values(freeze, "scope").1.unwrap(), freeze.store.as_deref()))
        .collect();
    assert_eq!(scopes, [("region b", None), ("store s", Some("s"))].into());
    let named = &entries.iter().find(|entry| entry.operation == "create token").unwrap().entities[0];
    assert_eq!((named.kind.as_str(), named.change), ("token", AuditChange::Named));
    assert!(named.name.as_ref().unwrap().starts_with("mine tg_"), "{named:?}");
    assert_eq!((values(named, "role"), values(named, "region")), ((None, Some("region")), (None, Some("b"))));
    assert!(!format!("{entries:?}").contains(&"0b".repeat(32)), "{entries:#?}");
    // Asked for a region, the trail has both.
    let of_b = AuditQuery { region: Some("b".to_owned()), ..AuditQuery::default() };
    assert_eq!(world.client.audit(&of_b).await.unwrap().entries.len(), 2);
    // What is refused of whom may do it is named as well.
    let admin = world.token("an admin", Role::Admin, None).await;
    let same = serde_json::json!({"name": "the viewer", "role": "viewer", "team": "t"});
    assert_eq!(ask("/v1/tokens", same, &admin.secret).await, 422);
    let entries = refused(&world, "an admin", 1).await;
    assert_eq!(entries[0].entities[0].name.as_deref(), Some("the viewer"));

    // After a while nothing more of one token is kept, and it is said how much is not.
    for _ in 0..40 {
        assert_eq!(ask("/v1/tokens", serde_json::json!({"name": "x", "role": "admin"}), &token.secret).await, 403);
    }
    let many = AuditQuery { user: Some("the viewer".to_owned()), limit: Some(1000), ..AuditQuery::default() };
    let kept = world.client.audit(&many).await.unwrap().entries.len();
    assert!(kept < 40, "{kept}");
    let metrics = world.client.metrics().await.unwrap();
    assert!(metrics.contains("access_audit_left_out_total") && !metrics.contains("access_audit_left_out_total 0"));
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

/// A hook of one's own, whose settings nobody knows.
struct Mine;

impl StoreLifecycleHooks for Mine {}

fn with_own_hook(options: &mut tidegate_server::Options) {
    options.registry = Registry::shipped().with("mine", |_| Ok(Arc::new(Mine)));
    let hooks = "[hooks]\nenabled = [\"mine\", \"region-order\", \"health-check\"]\n";
    options.config = ConfigFile::parse(hooks, "The file").unwrap();
    options.config.access.authentication = Some(Authentication::Required);
}

async fn newest(world: &World) -> AuditView {
    let query = AuditQuery { limit: Some(1), ..AuditQuery::default() };
    world.client.audit(&query).await.unwrap().entries.remove(0)
}

fn the<'a>(entry: &'a AuditView, kind: &str, id: &str) -> &'a AuditEntity {
    let found = entry.entities.iter().find(|entity| entity.kind == kind && entity.id == id);
    found.unwrap_or_else(|| panic!("no {kind} {id}: {entry:#?}"))
}

fn values<'a>(entity: &'a AuditEntity, field: &str) -> (Option<&'a str>, Option<&'a str>) {
    let found = entity.fields.iter().find(|there| there.field == field);
    let found = found.unwrap_or_else(|| panic!("no {field}: {entity:#?}"));
    (found.before.as_deref(), found.after.as_deref())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_names_what_was_made_and_changed_from_what_to_what_and_why() {
    let world = World::guarded().await;
    world.store().await;
    let entry = newest(&world).await;
    let made = the(&entry, "store", "s");
    assert_eq!((entry.operation.as_str(), made.change), ("create store", AuditChange::Made));
    assert_eq!(values(made, "key_columns"), (None, Some("k")));
    assert_eq!(values(made, "partitions"), (None, Some("2")));

    let patch = StorePatch { retention: Some(5), ..StorePatch::default() };
    world.client.update_store("s", &patch).await.unwrap();
    let entry = newest(&world).await;
    let changed = the(&entry, "store", "s");
    assert_eq!(
        (entry.operation.as_str(), changed.change, changed.fields.len()),
        ("change store", AuditChange::Changed, 1)
    );
    assert_eq!(values(changed, "retention.versions").1, Some("5"));

    for (delay, before) in [("1h", None), ("2h", Some("1h"))] {
        let set = BTreeMap::from([("region-order.delay".to_owned(), delay.to_owned())]);
        world.client.set_overrides("s", &OverridesUpdate { set, unset: Vec::new() }).await.unwrap();
        let entry = newest(&world).await;
        assert_eq!(entry.operation, "set hook settings");
        assert_eq!(values(the(&entry, "store", "s"), "hooks.region-order.delay"), (before, Some(delay)));
    }

    world.push("p1", &world.rows("one.csv", 5, "x")).await;
    world.push("p2", &world.rows("two.csv", 5, "y")).await;
    let trail = world.client.audit(&AuditQuery { store: Some("s".to_owned()), ..AuditQuery::default() }).await.unwrap();
    // The first of each that is about the second push: a client asks again as long as it waits.
    let of = |operation: &str| {
        let about =
            |entry: &&AuditView| entry.entities.iter().any(|entity| (&*entity.kind, &*entity.id) == ("push", "p2"));
        let found = trail.entries.iter().rev().filter(about).find(|entry| entry.operation == operation);
        found.unwrap_or_else(|| panic!("no {operation}: {trail:#?}"))
    };
    let push = the(of("start push"), "push", "p2");
    assert_eq!((push.version, push.store.as_deref(), push.change), (Some(2), Some("s"), AuditChange::Made));
    assert_eq!(the(of("start push"), "version", "2").change, AuditChange::Made);
    assert_eq!(the(of("complete push"), "push", "p2").version, Some(2));

    world
        .client
        .roll_back_store("s", &RollbackRequest { reason: "bad rows".to_owned(), ..RollbackRequest::default() })
        .await
        .unwrap();
    let entry = newest(&world).await;
    assert_eq!((entry.operation.as_str(), entry.reason.as_deref()), ("roll back", Some("bad rows")));
    for region in ["a", "b", "c"] {
        let region = the(&entry, "region", region);
        assert_eq!((region.store.as_deref(), values(region, "serve")), (Some("s"), (Some("2"), Some("1"))));
    }
    assert_eq!(values(the(&entry, "version", "2"), "rolled_back"), (None, Some("true")));

    let start = PushStart { id: "p3".to_owned(), store: "s".to_owned(), ..PushStart::default() };
    world.client.start_push(&start).await.unwrap();
    world.client.kill_push("p3", "not this one").await.unwrap();
    let entry = newest(&world).await;
    assert_eq!((entry.operation.as_str(), entry.reason.as_deref()), ("kill push", Some("not this one")));
    assert_eq!(values(the(&entry, "push", "p3"), "status"), (Some("STARTED"), Some("KILLED")));

    // What changed nothing names what it was about all the same.
    world.client.kill_push("p3", "again").await.unwrap_err();
    let refused = async {
        loop {
            let entry = newest(&world).await;
            if entry.outcome == AuditOutcome::Refused {
                return entry;
            }
            tokio::task::yield_now().await;
        }
    };
    let refused = tokio::time::timeout(LIMIT, refused).await.unwrap();
    assert_eq!((refused.operation.as_str(), the(&refused, "push", "p3").change), ("kill push", AuditChange::Named));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_is_asked_for_a_region_and_names_tokens_regions_and_freezes() {
    let world = World::guarded().await;
    let token = world.token("of b", Role::Region, Some("b")).await.token;
    let entry = newest(&world).await;
    let made = the(&entry, "token", &token.id);
    assert_eq!((made.name.as_deref(), made.change), (Some("of b"), AuditChange::Made));
    assert_eq!((values(made, "role"), values(made, "region")), ((None, Some("region")), (None, Some("b"))));
    world.client.revoke_token(&token.id, Some("lost")).await.unwrap();
    let entry = newest(&world).await;
    assert_eq!(values(the(&entry, "token", &token.id), "revoked"), (None, Some("true")));
    assert_eq!((entry.operation.as_str(), entry.reason.as_deref()), ("revoke token", Some("lost")));

    let unavailable = AvailabilityRequest { available: false, reason: "power".to_owned() };
    world.client.mark_region("b", &unavailable).await.unwrap();
    let entry = newest(&world).await;
    assert_eq!(values(the(&entry, "region", "b"), "availability"), (Some("available"), Some("unavailable")));
    world.client.mark_region("a", &unavailable).await.unwrap();

    let of = |region: &str| AuditQuery { region: Some(region.to_owned()), ..AuditQuery::default() };
    let operations = |page: AuditPage| page.entries.into_iter().map(|entry| entry.operation).collect::<Vec<_>>();
    let found = operations(world.client.audit(&of("b")).await.unwrap());
    assert_eq!(found, ["mark region", "create token"]);
    assert_eq!(operations(world.client.audit(&of("a")).await.unwrap()), ["mark region"]);
    assert!(world.client.audit(&of("nowhere")).await.unwrap().entries.is_empty());
    // However few are asked for at once, page by page they all come.
    let (mut query, mut all) = (AuditQuery { limit: Some(1), ..of("b") }, Vec::new());
    loop {
        let page = world.client.audit(&query).await.unwrap();
        assert!(page.entries.len() <= 1);
        query.after.clone_from(&page.next);
        all.extend(operations(page));
        if query.after.is_none() {
            break;
        }
    }
    assert_eq!(all, found);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_ever_in_the_trail() {
    let mut world = World::start_with(with_own_hook).await;
    let admin = world.server.as_mut().unwrap().take_first_token().unwrap();
    world.client = world.client_with(&admin);
    world.store().await;
    let made = world.token("somebody", Role::Viewer, None).await;
    // Somebody pastes a token where a reason is asked for.
    let reason = format!("it was {} that leaked", made.secret);
    world.client.revoke_token(&made.token.id, Some(&reason)).await.unwrap();
    let set = [
        ("mine.password", "hunter2"),
        ("mine.mode", "observe"),
        ("health-check.url", "http://ada:pw7seven@127.0.0.1:1/ok?key=abc7seven"),
    ];
    let set = set.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    world.client.set_overrides("s", &OverridesUpdate { set, unset: Vec::new() }).await.unwrap();
    let entry = newest(&world).await;
    let store = the(&entry, "store", "s");
    let hidden = store.fields.iter().find(|field| field.field == "hooks.mine.password").unwrap();
    assert_eq!((hidden.hidden, &hidden.before, &hidden.after), (true, &None, &None));
    assert_eq!(values(store, "hooks.mine.mode"), (None, Some("observe")));
    assert_eq!(values(store, "hooks.health-check.url").1, Some("http://***@127.0.0.1:1/ok?***"));
    let toml = "[hooks]\nenabled = [\"mine\"]\n[hooks.config.mine]\npassword = \"hunter3\"\n";
    world.client.publish_hooks_toml(toml).await.unwrap();

    let state = world.server.as_ref().unwrap().state().clone();
    let mut secrets: Vec<String> = ["hunter2", "hunter3", "pw7seven", "abc7seven"].map(str::to_owned).into();
    for (secret, id) in [(&admin, None), (&made.secret, Some(&made.token.id))] {
        secrets.push(secret.rsplit('_').next().unwrap().to_owned());
        if let Some(id) = id {
            let path = tidegate_state::Path::root().child("tokens", id).unwrap();
            let document: serde_json::Value =
                serde_json::from_str(state.snapshot().document(&path).unwrap().json()).unwrap();
            secrets.push(document["digest"].as_str().unwrap().to_owned());
        }
    }
    let trail = serde_json::to_string(&world.client.audit(&AuditQuery::default()).await.unwrap()).unwrap();
    assert!(trail.contains("that leaked") && trail.contains("hooks.mine.password"), "{trail}");
    for secret in secrets {
        assert!(!trail.contains(&secret), "{secret} is in {trail}");
    }
    world.end().await;
}
