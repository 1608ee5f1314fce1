//! C17, C18: break glass.

use std::time::Duration;

use tidegate_rollout::engine::Engine;
use tidegate_rollout::region::agent::RegionAgent;
use tidegate_rollout::region::pin::{PinRefused, PinRequest, Pinned};

use crate::support::{Fault, On, STORE, World, key};

fn request(version: u64) -> PinRequest {
    PinRequest { version, reason: "prices are wrong".to_owned(), by: "ann".to_owned() }
}

fn agent(world: &World) -> &RegionAgent {
    world.agent.as_ref().unwrap()
}

async fn pin(world: &World, version: u64) -> Result<Pinned, PinRefused> {
    agent(world).pin(STORE, request(version)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_a_pin_works_with_the_control_plane_gone_survives_a_restart_and_wins_until_it_is_lifted() {
    let mut world = World::serving(2, &[1, 2], 2).await;
    world.add_version(3, 200, 4).await;
    world.link.cut(true);
    let pinned = pin(&world, 1).await.unwrap();
    assert_eq!((pinned.nodes, pinned.of_nodes, pinned.serving, pinned.replaced), (2, 2, true, None));
    assert!(world.nodes.iter().all(|node| node.read(STORE, 5) == Ok(1)));
    world.restart_agent().await;
    assert_eq!(agent(&world).pins()[STORE].pin.as_ref().unwrap(), &pinned.pin);
    assert!(world.nodes.iter().all(|node| node.read(STORE, 5) == Ok(1)));
    // The control plane is back, and wants something else.
    world.assign(&[2, 3], Some(3));
    world.link.cut(false);
    world.until_later("the pin is reported", |world| world.report().pin.is_some()).await;
    let report = world.report();
    let reported = report.pin.as_ref().unwrap();
    assert_eq!((reported.version, &*reported.by, &*reported.reason), (1, "ann", "prices are wrong"));
    assert_eq!(report.serving, Some(1));
    world.until_later("version 3 is held", |world| world.report().versions.contains_key(&3)).await;
    assert!(world.nodes.iter().all(|node| node.read(STORE, 5) == Ok(1)), "what is pinned is not dropped");
    let lifted = agent(&world).unpin(STORE, "bob").await.unwrap();
    assert!(lifted.ended.contains("bob"), "{lifted:?}");
    world.until_later("it does what it is told", |world| world.report().serving == Some(3)).await;
    let report = world.report();
    assert_eq!((report.pin, report.past_pins.len()), (None, 1));
    world.until_later("version 1 is let go", |world| !world.report().versions.contains_key(&1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c18_what_is_not_held_and_what_has_no_reason_is_refused() {
    let world = World::serving(2, &[1, 2], 2).await;
    let refused = pin(&world, 7).await.unwrap_err();
    assert!(refused.to_string().contains("version 7") && refused.to_string().contains("versions 1, 2"), "{refused}");
    let silent = PinRequest { reason: " ".to_owned(), ..request(1) };
    assert_eq!(agent(&world).pin(STORE, silent).await, Err(PinRefused::ReasonMissing));
    let unknown = agent(&world).pin("t", request(1)).await.unwrap_err();
    assert_eq!(unknown, PinRefused::NoSuchStore { store: "t".to_owned(), known: vec![STORE.to_owned()] });
    assert_eq!(agent(&world).unpin(STORE, "ann").await, Err(PinRefused::NotPinned { store: STORE.to_owned() }));
    assert!(world.nodes.iter().all(|node| node.read(STORE, 5) == Ok(2)));
    assert_eq!(world.report().pin, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c18_a_damaged_version_is_refused_and_one_whole_node_is_enough() {
    let world = World::serving(2, &[1, 2], 2).await;
    world.link.cut(true);
    for node in &world.nodes {
        node.once(On::Verify, [Fault::Digest("another".to_owned())]);
    }
    let refused = pin(&world, 1).await.unwrap_err().to_string();
    for part in ["node-1", "node-2", "another", "holds version 2"] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    assert!(world.nodes.iter().all(|node| node.read(STORE, 5) == Ok(2)));
    // It is loaded again from the region's own copy, with nobody else needed.
    world
        .until_later("it is whole again", |world| {
            world.nodes.iter().all(|node| node.calls(On::Load, STORE) == 3 && node.calls(On::Verify, STORE) >= 4)
        })
        .await;
    world.nodes[1].engine().drop_version(&key(STORE), 1).await.unwrap();
    world.pass(world.options.limits.observe_every).await;
    let pinned = loop {
        match pin(&world, 1).await {
            Ok(pinned) => break pinned,
            Err(error) => assert!(matches!(error, PinRefused::NotHeld { .. }), "{error}"),
        }
    };
    assert!(pinned.nodes >= 1, "{pinned:?}");
    world
        .until_later("the other node follows", |world| world.nodes.iter().all(|node| node.read(STORE, 5) == Ok(1)))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c18_a_second_pin_takes_the_first_ones_place_and_both_are_on_record() {
    let world = World::serving(2, &[1, 2], 2).await;
    let first = pin(&world, 1).await.unwrap();
    world.clock.advance(Duration::from_secs(5));
    let second = pin(&world, 2).await.unwrap();
    assert_eq!(second.replaced, Some(first.pin.clone()));
    world
        .until_later("both are reported", |world| {
            let report = world.report();
            report.pin.as_ref() == Some(&second.pin) && report.past_pins.iter().any(|past| past.pin == first.pin)
        })
        .await;
    assert!(world.nodes.iter().all(|node| node.read(STORE, 5) == Ok(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c18_a_pin_wins_over_a_rollback() {
    let world = World::serving(2, &[1, 2], 2).await;
    pin(&world, 2).await.unwrap();
    world.assign(&[1, 2], Some(1));
    let generation = world.assignment(&[1], None).generation - 1;
    world.until_later("the word was heard", |world| world.report().generation >= generation).await;
    world.pass(world.options.limits.observe_every).await;
    assert_eq!(world.report().serving, Some(2));
    assert!(world.nodes.iter().all(|node| node.read(STORE, 5) == Ok(2)));
    agent(&world).unpin(STORE, "ann").await.unwrap();
    world.until_later("it goes back", |world| world.report().serving == Some(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_what_is_pinned_stays_where_the_store_is_deleted() {
    let world = World::serving(1, &[1, 2], 2).await;
    pin(&world, 1).await.unwrap();
    world.link.assign(STORE, None);
    world.pass(world.options.limits.observe_every).await;
    world.pass(world.options.limits.observe_every).await;
    assert_eq!(world.nodes[0].read(STORE, 5), Ok(1));
    agent(&world).unpin(STORE, "ann").await.unwrap();
    world.until_later("it is let go", |world| world.nodes[0].serves(STORE).is_none()).await;
}
