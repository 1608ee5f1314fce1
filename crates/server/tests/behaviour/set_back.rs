//! A database that was put back to an older state behind the servers' backs: C21, D36, D37.

use std::path::Path;
use std::time::Duration;

use tidegate_client::api::{AuditOutcome, ClientPhase, HeartbeatRequest, PushStatus, StoreCreate, code};
use tidegate_client::{AuditQuery, Client};
use tidegate_server::backup::versions::ABOVE_UNKNOWN;
use tidegate_server::{Handle, Server};
use tidegate_state::backup::{Backup, unheard};
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::testing::postgres;

use crate::faults::until_served;
use crate::world::{LIMIT, World, assert_error, options};

fn store(name: &str) -> StoreCreate {
    StoreCreate { name: name.to_owned(), key_columns: vec!["k".to_owned()], ..StoreCreate::default() }
}

/// The server says what has happened and what to do, and lets nobody change anything.
async fn assert_waits(world: &World, url: &str) {
    let (status, ready) = world.raw(reqwest::Client::new().get(format!("{url}/readyz"))).await;
    assert_eq!((status, ready["code"].as_str()), (503, Some(code::SET_BACK)), "{ready}");
    assert_error(&ready, "readyz");
    assert_eq!(ready["retryable"], false);
    assert!(ready["countermeasures"].as_str().unwrap().contains("tidegate cluster confirm-set-back"), "{ready}");
    let client = Client::new(url).unwrap();
    let refused = client.create_store(&store("late")).await.unwrap_err();
    assert_eq!(refused.code(), Some(code::SET_BACK), "{refused}");
    assert!(!refused.body().unwrap().retryable);
    // What is not in the audit trail is refused by the state itself.
    let heartbeat = HeartbeatRequest { phase: ClientPhase::Building, bytes: 0, of: None, records: 0 };
    let refused = client.heartbeat("p1", &heartbeat).await.unwrap_err();
    assert!([Some(code::SET_BACK), Some(code::PUSH_ENDED)].contains(&refused.code()), "{refused}");
    // Reads go on.
    assert!(client.store("s").await.is_ok());
}

/// Puts an older file in the place of the database, as somebody would by hand.
fn copy_over(from: &Path, to: &Path) {
    for beside in ["-wal", "-shm"] {
        let mut path = to.as_os_str().to_owned();
        path.push(beside);
        // There is none after a server that was shut down in order.
        let _ = std::fs::remove_file(path);
    }
    std::fs::copy(from, to).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c21_d36_d37_given_an_older_file_when_the_server_starts_then_an_admin_has_to_confirm_it() {
    let mut world = World::start().await;
    world.store().await;
    assert_eq!(world.push("p1", &world.rows("one.csv", 40, "one-")).await.state.version, Some(1));
    let file = world.folder.path().join("data").join("state.sqlite");
    let older = world.folder.path().join("older.sqlite");
    world.server.take().unwrap().shutdown().await;
    std::fs::copy(&file, &older).unwrap();
    world.server = Some(Server::start(options(world.folder.path())).await.unwrap());
    world.client = Client::new(&world.url()).unwrap();
    assert_eq!(world.push("p2", &world.rows("two.csv", 40, "two-")).await.state.version, Some(2));
    until_served(&world, "a", 2).await;

    world.server.take().unwrap().shutdown().await;
    copy_over(&older, &file);
    world.server = Some(Server::start(options(world.folder.path())).await.unwrap());
    world.client = Client::new(&world.url()).unwrap();
    assert_waits(&world, &world.url()).await;
    world.restart().await;
    assert_waits(&world, &world.url()).await;
    // No region obeys what it was told before.
    assert_eq!(world.client.get("s", "k0", Some("a")).await.unwrap().version, 2);

    let refused = world.client.confirm_set_back(" ").await.unwrap_err();
    assert_eq!(refused.code(), Some(code::INVALID));
    world.client.confirm_set_back("the disk was replaced").await.unwrap();
    tokio::time::timeout(LIMIT, world.client.is_ready()).await.unwrap().unwrap();
    let again = world.client.confirm_set_back("again").await.unwrap_err();
    assert_eq!(again.code(), Some(code::REFUSED));
    let third = world.push("p3", &world.rows("three.csv", 40, "three-")).await.state;
    assert_eq!(third.status, PushStatus::Completed);
    assert!(third.version.unwrap() > ABOVE_UNKNOWN, "2 was given out: {third:?}");
    until_served(&world, "a", third.version.unwrap()).await;
    let trail = world.client.audit(&AuditQuery::default()).await.unwrap().entries;
    let route = "POST /v1/cluster/confirm-set-back";
    let done = trail.iter().filter(|entry| entry.route == route && entry.outcome == AuditOutcome::Done);
    assert_eq!(done.count(), 1, "{trail:?}");

    world.restart().await;
    tokio::time::timeout(LIMIT, world.client.is_ready()).await.unwrap().unwrap();
    world.end().await;
}

async fn until_stopped(server: &Handle) {
    let stopped = async {
        while server.state().writes_stopped().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, stopped).await.expect("it does not notice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c21_d37_given_servers_that_are_up_when_the_database_is_put_back_then_one_confirmation_is_for_all() {
    if postgres::skipped().is_some() {
        return;
    }
    let database = postgres::shared().unwrap();
    let schema = database.fresh_schema();
    let shared = |options: &mut tidegate_server::Options| {
        options.database = Some(database.url());
        options.schema = Some(schema.clone());
    };
    let world = World::start_with(shared).await;
    let artifacts = format!("file://{}", world.folder.path().join("data").join("artifacts").display());
    let second = || {
        let mut options = options(&world.folder.path().join("second"));
        shared(&mut options);
        options.artifacts = Some(artifacts.clone());
        options.config.server.name = Some("second".to_owned());
        Server::start(options)
    };
    let mut other = second().await.unwrap();
    world.store().await;
    world.push("p1", &world.rows("one.csv", 40, "one-")).await;
    let by_hand = PostgresStore::new(&database.url(), PostgresOptions::in_schema(schema.clone())).unwrap();
    let file = world.folder.path().join("older.backup");
    by_hand.backup(&file, unheard()).await.unwrap();
    world.push("p2", &world.rows("two.csv", 40, "two-")).await;
    other.state().flush().await.unwrap();

    by_hand.set_back_to(&Backup::read(&file).unwrap()).await.unwrap();
    let first = world.server.as_ref().unwrap();
    for server in [first, &other] {
        until_stopped(server).await;
        assert_waits(&world, &server.url()).await;
    }
    other.shutdown().await;
    other = second().await.unwrap();
    assert_waits(&world, &other.url()).await;

    let epoch = first.state().snapshot().epoch();
    let client = Client::new(&other.url()).unwrap();
    client.confirm_set_back("a stand-by was behind").await.unwrap();
    for server in [first, &other] {
        tokio::time::timeout(LIMIT, server.state().writes_resumed()).await.unwrap();
        assert_ne!(server.state().snapshot().epoch(), epoch);
    }
    client.create_store(&store("later")).await.unwrap();
    let third = world.push("p3", &world.rows("three.csv", 40, "three-")).await.state;
    assert!(third.version.unwrap() > ABOVE_UNKNOWN, "{third:?}");
    other.shutdown().await;
    world.end().await;
}
