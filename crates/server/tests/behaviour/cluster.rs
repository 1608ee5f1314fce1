//! What `GET /v1/cluster`, and with it `tidegate cluster`, says: leases, slots, how far servers are behind, what waits.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_client::Client;
use tidegate_client::api::{ClusterHookView, ClusterView, ServerHookView, ServerStatus, ServerView};
use tidegate_server::{Handle, Server};
use tidegate_state::{ClusterHook, Entity, HookHandle, Outcome, Ref, Registration, Root, Run, State, TransactionError};
use tokio::sync::Semaphore;

use crate::several::Several;
use crate::world::{LIMIT, World};

const HOOK: &str = "probe";
const SLOTS: u64 = 4;
const ROOM: u32 = 8;

/// What the hook of these tests is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Thing {
    change: u32,
}

impl Entity for Thing {
    const COLLECTION: &'static str = "things";
    type Parent = Root;
    type Id = String;
}

async fn change(state: &State, thing: &str, change: u32) {
    let place: Ref<Thing> = Ref::root(thing).unwrap();
    let written =
        state.write(move |transaction| -> Result<(), TransactionError> { transaction.put(&place, Thing { change }) });
    written.await.unwrap();
}

/// Runs a hook that does as the id of the thing says; those that are held end with a permit.
async fn register(state: &State, held: &Arc<Semaphore>) -> HookHandle {
    let held = Arc::clone(held);
    let hook: Arc<dyn ClusterHook> = Arc::new(move |run: Run| {
        let held = Arc::clone(&held);
        async move {
            match run.id("thing").unwrap().as_str() {
                "dead" => Outcome::fail("it was told to fail"),
                "later" => Outcome::RetryAt(run.now().after(Duration::from_secs(3600))),
                "held" => {
                    held.acquire().await.unwrap().forget();
                    Outcome::Done
                }
                _ => Outcome::Done,
            }
        }
    });
    let slots = u32::try_from(SLOTS).unwrap();
    let registration =
        Registration::new(HOOK, 1).on("/things/{thing}").key("{thing}").every_change().attempts(1).slots(slots);
    state.register(registration, ROOM, hook).await.unwrap()
}

/// Asks until what is shown is so.
async fn until(client: &Client, what: &str, holds: impl Fn(&ClusterView) -> bool) -> ClusterView {
    let mut last = None;
    let looking = async {
        loop {
            let view = client.cluster().await.unwrap();
            if holds(&view) {
                return view;
            }
            last = Some(view);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(LIMIT, looking).await;
    found.unwrap_or_else(|_| panic!("{what} is not shown: {last:#?}"))
}

/// The hook of these tests, but for since when its oldest request waits.
fn probe(view: &ClusterView) -> Option<ClusterHookView> {
    let probe = view.hooks.iter().find(|hook| hook.hook == HOOK)?;
    Some(ClusterHookView { oldest: None, ..probe.clone() })
}

fn waits(free_slots: u64, (open, dead, paused, no_server): (u64, u64, u64, u64)) -> Option<ClusterHookView> {
    let hook = HOOK.to_owned();
    Some(ClusterHookView { hook, slots: SLOTS, free_slots, open, dead, paused, no_server, oldest: None })
}

fn server<'a>(view: &'a ClusterView, name: &str) -> &'a ServerView {
    view.servers.iter().find(|server| server.name == name).unwrap_or_else(|| panic!("{name} is not in {view:#?}"))
}

fn runs_probe(server: &ServerView) -> bool {
    server.hooks.contains(&ServerHookView { hook: HOOK.to_owned(), version: 1, room: ROOM })
}

/// How many slots of all hooks are leased.
fn leased(view: &ClusterView) -> u64 {
    view.hooks.iter().map(|hook| hook.slots - hook.free_slots).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k19_k40_the_cluster_shows_how_many_requests_of_a_hook_stand_how() {
    let world = World::start().await;
    let state = world.server.as_ref().unwrap().state().clone();
    let held = Arc::new(Semaphore::new(0));
    let hook = register(&state, &held).await;
    // Given a dead letter and two changes behind it, a run that goes and one behind it, one that waits for a time, and one
    // that is done,
    let before = state.now();
    change(&state, "dead", 1).await;
    let after = state.now();
    for (thing, number) in [("dead", 2), ("dead", 3), ("held", 1), ("held", 2), ("later", 1), ("done", 1)] {
        change(&state, thing, number).await;
    }
    // when the cluster is looked at, then each is counted once, and the one that is done not at all.
    let counted = waits(0, (3, 1, 2, 0));
    let view = until(&world.client, "what stands how", |view| probe(view) == counted).await;
    let oldest = view.hooks.iter().find(|hook| hook.hook == HOOK).unwrap().oldest.unwrap();
    let (before, after) = (u64::try_from(before.0).unwrap(), u64::try_from(after.0).unwrap());
    assert!((before..=after).contains(&oldest), "{oldest} is not from {before} to {after}");
    assert_eq!(view.driver, "sqlite");
    // Its one server leases every slot, and says that it runs the hook once it has renewed its lease.
    let view = until(&world.client, "the hook at its server", |view| {
        view.servers.len() == 1 && runs_probe(&view.servers[0]) && view.hooks.iter().all(|hook| hook.free_slots == 0)
    })
    .await;
    let own = &view.servers[0];
    assert!(own.answering && own.status == ServerStatus::Up, "{own:?}");
    assert_eq!(own.slots, leased(&view), "{view:#?}");
    assert!(own.lease_until > view.now.unwrap(), "{view:#?}");

    // When those that were held end, then they are gone from it.
    held.add_permits(2);
    until(&world.client, "that they have ended", |view| probe(view) == waits(0, (1, 1, 2, 0))).await;
    // When no server runs the hook any more, then its slots are free, and what could run waits for a server.
    drop(hook);
    let view = until(&world.client, "that nobody runs it", |view| {
        probe(view) == waits(SLOTS, (0, 1, 2, 1)) && !runs_probe(&view.servers[0])
    })
    .await;
    assert_eq!(view.servers[0].slots, leased(&view), "{view:#?}");
    world.end().await;
}

/// A server with a lease that a test can outlive.
async fn start(several: &Several, name: &str) -> Handle {
    let mut options = several.options(name, name);
    options.config.server.lease_seconds = Some(4);
    Server::start(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k19_k40_the_cluster_shows_what_a_server_that_died_held_and_how_far_it_is_behind() {
    let Some(several) = Several::new(None) else { return };
    let (first, second) = (start(&several, "first").await, start(&several, "second").await);
    let (client, state) = (Client::new(&second.url()).unwrap(), second.state().clone());
    // Given a hook that the first of two servers runs alone, a dead letter of it and one request that waits for a time,
    let hook = register(first.state(), &Arc::new(Semaphore::new(0))).await;
    for (thing, number) in [("dead", 1), ("dead", 2), ("dead", 3), ("later", 1)] {
        change(&state, thing, number).await;
    }
    // when the second one is asked, then it says so of the first, and what each of them leases.
    let view = until(&client, "both servers and the hook", |view| {
        probe(view) == waits(0, (1, 1, 2, 0))
            && view.servers.len() == 2
            && view.servers.iter().all(|server| server.status == ServerStatus::Up)
            && runs_probe(server(view, "first"))
    })
    .await;
    assert_eq!(view.driver, "postgres");
    let (one, other) = (server(&view, "first"), server(&view, "second"));
    assert!(!one.answering && other.answering, "{view:#?}");
    assert!(!other.hooks.iter().any(|hook| hook.hook == HOOK), "{other:?}");
    assert!(one.slots >= SLOTS, "{view:#?}");
    assert_eq!(one.slots + other.slots, leased(&view), "{view:#?}");
    assert!(view.servers.iter().all(|server| server.lease_until > view.now.unwrap()), "{view:#?}");

    // When the first one is killed, then its lease runs out, the hook's slots are free, and its requests wait for a server;
    // what the dead letter holds up goes on waiting for that.
    drop(first);
    let view = until(&client, "that the first one is gone", |view| {
        let slots = view.hooks.iter().filter(|hook| hook.hook != HOOK);
        probe(view) == waits(SLOTS, (0, 1, 2, 1))
            && server(view, "first").status == ServerStatus::Gone
            && server(view, "second").slots == slots.map(|hook| hook.slots).sum::<u64>()
    })
    .await;
    let one = server(&view, "first");
    assert_eq!(one.slots, 0, "{one:?}");
    assert!(one.lease_until <= view.now.unwrap(), "{view:#?}");
    assert_eq!(server(&view, "second").status, ServerStatus::Up);
    let applied = one.applied;
    let revision = view.revision;

    // When changes are made after that, then it falls behind by them, and the one that lives keeps up.
    for number in 1..=5 {
        change(&state, "done", number).await;
    }
    let view = until(&client, "that the second one keeps up", |view| {
        view.revision >= revision + 5 && server(view, "second").applied >= revision + 5
    })
    .await;
    let one = server(&view, "first");
    assert_eq!(one.applied, applied, "{one:?}");
    assert!(applied <= revision, "{applied} is beyond {revision}");
    assert_eq!(one.behind, view.revision - applied, "{view:#?}");
    assert!(one.behind >= 5, "{one:?}");
    assert!(server(&view, "second").behind <= view.revision - revision - 5, "{view:#?}");
    assert_eq!(probe(&view), waits(SLOTS, (0, 1, 2, 6)));
    drop(hook);
    several.end([second]).await;
}
