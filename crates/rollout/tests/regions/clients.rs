//! Embedded clients as the region's agent sees them: E1 to E4.

use std::sync::Arc;
use std::time::Duration;

use tidegate_rollout::entities::{EmbeddedPermission, EmbeddedVersionCounts};
use tidegate_rollout::region::clients::scripted::ScriptedClients;

use crate::support::{STORE, World, key};

const NAMES: [&str; 3] = ["one", "two", "three"];
const GRACE: Duration = Duration::from_secs(300);

/// A region with three clients that serve version 1, as the region does; and version 2 at the source.
async fn with_clients() -> (World, ScriptedClients) {
    let world = World::new(2, 2).await;
    let clients = ScriptedClients::new(Arc::new(world.clock.clone()), GRACE);
    let mut world = world.with_clients(Arc::new(clients.clone()));
    for name in NAMES {
        clients.register(&key(STORE), name);
    }
    world.start().await;
    assign(&world, &[(1, EmbeddedPermission::Serve)], Some(1));
    world.until_serving(Some(1)).await;
    world.until("clients may load version 1", |_| told(&clients, 1) == Some(EmbeddedPermission::Serve)).await;
    for name in NAMES {
        assert!(clients.ingest(&key(STORE), name, 1));
    }
    assert!(NAMES.iter().all(|name| serving(&clients, name) == Some(1)));
    (world, clients)
}

fn assign(world: &World, hold: &[(u64, EmbeddedPermission)], serve: Option<u64>) {
    let versions: Vec<u64> = hold.iter().map(|(version, _)| *version).collect();
    let mut assignment = world.assignment(&versions, serve);
    for (version, permission) in hold {
        assignment.hold.get_mut(version).unwrap().embedded = *permission;
    }
    world.link.assign(STORE, Some(assignment));
}

fn told(clients: &ScriptedClients, version: u64) -> Option<EmbeddedPermission> {
    clients.orders(&key(STORE))?.versions.get(&version).map(|version| version.permission)
}

fn serving(clients: &ScriptedClients, name: &str) -> Option<u64> {
    clients.client(&key(STORE), name)?.serving
}

fn counts(world: &World, version: u64) -> EmbeddedVersionCounts {
    world.report().embedded.versions.get(&version).copied().unwrap_or_default()
}

use EmbeddedPermission::{Ingest, None as Nothing, Serve};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e1_in_the_default_mode_each_client_serves_by_itself_and_the_region_only_when_told() {
    let (world, clients) = with_clients().await;
    assign(&world, &[(1, Serve), (2, Serve)], Some(1));
    world.until("clients may serve version 2", |_| told(&clients, 2) == Some(Serve)).await;
    for (number, name) in NAMES.iter().enumerate() {
        assert!(clients.ingest(&key(STORE), name, 2));
        assert_eq!(serving(&clients, name), Some(2), "by itself, once it has it");
        let done = u32::try_from(number + 1).unwrap();
        world
            .until("the report counts it", |world| {
                counts(world, 2) == EmbeddedVersionCounts { ingested: done, serving: done }
            })
            .await;
        assert_eq!(world.report().serving, Some(1), "the region waits for the control plane's word");
    }
    assert_eq!(world.report().embedded.live, 3);
    assign(&world, &[(1, Serve), (2, Serve)], Some(2));
    world.until_serving(Some(2)).await;
    assert!(NAMES.iter().all(|name| serving(&clients, name) == Some(2)));
    // Nobody was told to stop in between.
    let orders = clients.history(&key(STORE));
    let of_two: Vec<_> =
        orders.iter().filter_map(|orders| orders.versions.get(&2)).map(|version| version.permission).collect();
    assert!(of_two.iter().all(|permission| *permission == Serve), "{of_two:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2_clients_that_swap_with_the_region_never_run_ahead_of_it() {
    let (world, clients) = with_clients().await;
    assign(&world, &[(1, Serve), (2, Ingest)], Some(1));
    world.until("clients may load version 2", |_| told(&clients, 2) == Some(Ingest)).await;
    for name in NAMES {
        assert!(clients.ingest(&key(STORE), name, 2));
        assert_eq!(serving(&clients, name), Some(1), "it holds version 2 and does not serve it");
    }
    world.until("all have it", |world| counts(world, 2) == EmbeddedVersionCounts { ingested: 3, serving: 0 }).await;
    // The control plane says both at once: the region swaps, and clients with it.
    assign(&world, &[(1, Serve), (2, Serve)], Some(2));
    world.until("all serve it", |world| counts(world, 2) == EmbeddedVersionCounts { ingested: 3, serving: 3 }).await;
    assert!(world.nodes.iter().all(|node| node.serves(STORE) == Some(2)));
    for orders in clients.history(&key(STORE)) {
        let may_serve = orders.versions.get(&2).is_some_and(|version| version.permission == Serve);
        assert!(!may_serve || orders.region_serves == Some(2), "told to serve ahead of the region: {orders:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e3_clients_do_not_start_before_they_may_while_the_regions_nodes_ingest() {
    let (world, clients) = with_clients().await;
    assign(&world, &[(1, Serve), (2, Nothing)], Some(1));
    world.until_ingested(2).await;
    assert_eq!(told(&clients, 2), None);
    for name in NAMES {
        assert!(!clients.ingest(&key(STORE), name, 2), "it may not");
    }
    assert_eq!(counts(&world, 2), EmbeddedVersionCounts::default());
    assign(&world, &[(1, Serve), (2, Serve)], Some(1));
    world.until("they may", |_| told(&clients, 2) == Some(Serve)).await;
    for name in NAMES {
        assert!(clients.ingest(&key(STORE), name, 2));
    }
    world.until("all serve it", |world| counts(world, 2) == EmbeddedVersionCounts { ingested: 3, serving: 3 }).await;
    assign(&world, &[(1, Serve), (2, Serve)], Some(2));
    world.until_serving(Some(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e4_no_client_serves_before_its_regions_gate_is_open() {
    let (world, clients) = with_clients().await;
    // The gate is closed: the version is held, and clients have no permission, however often that is said.
    for _ in 0..3 {
        assign(&world, &[(1, Serve), (2, Nothing)], Some(1));
        world.until_ingested(2).await;
        world.pass(world.options.limits.observe_every).await;
    }
    assert!(NAMES.iter().all(|name| serving(&clients, name) == Some(1)));
    assert!(clients.history(&key(STORE)).iter().all(|orders| !orders.versions.contains_key(&2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e5_a_client_that_is_silent_counts_until_its_grace_time_is_over() {
    let (world, clients) = with_clients().await;
    assign(&world, &[(1, Serve), (2, Serve)], Some(1));
    world.until("clients may serve version 2", |_| told(&clients, 2) == Some(Serve)).await;
    for name in ["one", "two"] {
        clients.ingest(&key(STORE), name, 2);
    }
    clients.fall_silent(&key(STORE), "three");
    world.until("two of three serve it", |world| counts(world, 2).serving == 2).await;
    world.pass(GRACE - Duration::from_millis(1)).await;
    let within = world.report().embedded;
    assert_eq!((within.live, within.dead), (3, 0), "the region's swap still waits for it");
    world.pass(Duration::from_millis(1)).await;
    world.until("it is counted as dead", |world| world.report().embedded.dead == 1).await;
    let after = world.report().embedded;
    assert_eq!((after.live, after.versions[&2].serving), (2, 2), "all that count serve it");
    // It is back: it counts again, and holds the swap up again.
    clients.register_again(&key(STORE), "three");
    world.until("it counts again", |world| world.report().embedded.live == 3).await;
    assert_eq!((world.report().embedded.dead, counts(&world, 2).serving), (0, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e7_a_client_that_restarts_serves_and_resumes_nothing_that_is_not_allowed_any_more() {
    let (world, clients) = with_clients().await;
    assign(&world, &[(1, Serve), (2, Serve)], Some(1));
    world.until("clients may serve version 2", |_| told(&clients, 2) == Some(Serve)).await;
    // One serves it, two is in the middle of it, when both die.
    assert!(clients.ingest(&key(STORE), "one", 2) && clients.begin(&key(STORE), "two", 2));
    assert_eq!(serving(&clients, "one"), Some(2));
    for name in ["one", "two"] {
        clients.fall_silent(&key(STORE), name);
    }
    // Meanwhile the version is rolled back, ends in error or is killed: in each case it is no longer held.
    assign(&world, &[(1, Serve)], Some(1));
    world.until("nobody may load version 2", |_| told(&clients, 2).is_none()).await;
    for name in ["one", "two"] {
        clients.restart(&key(STORE), name);
        clients.register_again(&key(STORE), name);
        let client = clients.client(&key(STORE), name).unwrap();
        assert_eq!(client.serving, Some(1), "{name} serves what the region serves");
        assert!(!client.ingested.contains(&2) && client.unfinished.is_empty(), "{name}: {client:?}");
        assert!(!clients.ingest(&key(STORE), name, 2), "{name} may not load it");
    }
    world.until("no client has it", |world| counts(world, 2) == EmbeddedVersionCounts::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e7_a_client_that_restarts_resumes_what_is_still_allowed() {
    let (world, clients) = with_clients().await;
    assign(&world, &[(1, Serve), (2, Serve)], Some(1));
    world.until("clients may serve version 2", |_| told(&clients, 2) == Some(Serve)).await;
    assert!(clients.begin(&key(STORE), "one", 2));
    clients.fall_silent(&key(STORE), "one");
    clients.restart(&key(STORE), "one");
    clients.register_again(&key(STORE), "one");
    assert!(clients.ingest(&key(STORE), "one", 2));
    let client = clients.client(&key(STORE), "one").unwrap();
    assert_eq!((client.serving, client.loads.as_slice()), (Some(2), [1, 2].as_slice()), "begun once, and resumed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e10_a_client_that_restarts_with_nobody_there_serves_its_own_copy_and_registers_later() {
    let (mut world, clients) = with_clients().await;
    clients.fall_silent(&key(STORE), "one");
    world.link.cut(true);
    world.stop().await;
    clients.restart(&key(STORE), "one");
    assert_eq!(serving(&clients, "one"), Some(1), "its local copy");
    // Everything is back, a version further; the client has not heard of it yet.
    world.link.cut(false);
    world.restart_agent().await;
    assign(&world, &[(1, Serve), (2, Serve)], Some(1));
    world.until("clients may serve version 2", |_| told(&clients, 2) == Some(Serve)).await;
    assert!(clients.client(&key(STORE), "one").unwrap().silent_since.is_some());
    clients.register_again(&key(STORE), "one");
    assert!(clients.ingest(&key(STORE), "one", 2));
    world.until("it counts", |world| counts(world, 2).serving == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e9_permission_that_is_said_again_starts_nothing_again() {
    let (mut world, clients) = with_clients().await;
    assign(&world, &[(1, Serve), (2, Serve)], Some(1));
    world.until("clients may serve version 2", |_| told(&clients, 2) == Some(Serve)).await;
    for name in NAMES {
        clients.ingest(&key(STORE), name, 2);
    }
    let said = clients.history(&key(STORE));
    assign(&world, &[(1, Serve), (2, Serve)], Some(1));
    world.pass(world.options.limits.observe_every).await;
    world.restart_agent().await;
    world.pass(world.options.limits.observe_every).await;
    assert_eq!(clients.history(&key(STORE)), said);
    assert!(NAMES.iter().all(|name| clients.client(&key(STORE), name).unwrap().loads == [1, 2]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e8_a_rollback_takes_clients_back_without_loading_anything() {
    let (world, clients) = with_clients().await;
    assign(&world, &[(1, Serve), (2, Serve)], Some(1));
    world.until("clients may serve version 2", |_| told(&clients, 2) == Some(Serve)).await;
    for name in NAMES {
        clients.ingest(&key(STORE), name, 2);
    }
    assign(&world, &[(1, Serve), (2, Nothing)], Some(1));
    world.until("all are back", |world| counts(world, 1).serving == 3).await;
    assert!(NAMES.iter().all(|name| clients.client(&key(STORE), name).unwrap().loads == [1, 2]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e8_a_client_that_has_dropped_the_earlier_version_loads_it_again_and_the_region_does_not_wait() {
    let (world, clients) = with_clients().await;
    assign(&world, &[(1, Serve), (2, Serve)], Some(1));
    world.until("clients may serve version 2", |_| told(&clients, 2) == Some(Serve)).await;
    for name in NAMES {
        clients.ingest(&key(STORE), name, 2);
    }
    // The region keeps version 1 as its way back; its clients do not.
    assign(&world, &[(1, Nothing), (2, Serve)], Some(2));
    world.until_serving(Some(2)).await;
    world.until("clients have let go of version 1", |world| counts(world, 1).ingested == 0).await;
    assign(&world, &[(1, Serve), (2, Nothing)], Some(1));
    world.until_serving(Some(1)).await;
    assert!(NAMES.iter().all(|name| serving(&clients, name) == Some(2)), "the region went back without them");
    world.until("they may load version 1", |_| told(&clients, 1) == Some(Serve)).await;
    for name in NAMES {
        assert!(clients.ingest(&key(STORE), name, 1));
    }
    world.until("all are back, and say so", |world| counts(world, 1).serving == 3).await;
    assert!(NAMES.iter().all(|name| clients.client(&key(STORE), name).unwrap().loads == [1, 2, 1]));
}
