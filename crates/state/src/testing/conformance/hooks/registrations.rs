//! Registrations as data: what a transaction asks for, whoever commits it and whatever code that server has.

use std::time::Duration;

use crate::driver::LogEntry;
use crate::testing::points::name as point;
use crate::{Outcome, PatternError, Ref, RegisterError, Registration, Transaction, TransactionError, WriteError};

use super::Case;
use super::support::{Probe, Store, Version, World, effect, per_store};

async fn write<F>(world: &World, server: usize, closure: F) -> crate::Revision
where
    F: Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static,
{
    let written: Result<_, WriteError<TransactionError>> = world.cluster.server(server).write(closure).await;
    written.unwrap().revision
}

/// So many stores, from `k0` on.
fn stores(world: &World, count: usize) -> Vec<Ref<Store>> {
    (0..count).map(|number| world.store(&format!("k{number}"))).collect()
}

/// K4: one transaction asks for all its runs at once.
pub async fn k04_one_transaction_asks_for_all_its_runs_at_once(case: Case) {
    let mut world = World::new(&case, 1).await;
    let (one, other, versions) = (Probe::answering(|_| Outcome::fail("no")), Probe::new(), Probe::new());
    world.register(0, &per_store("one").attempts(1), 64, &one).await;
    world.register(0, &per_store("other"), 64, &other).await;
    let registration = Registration::new("versions", 1).on("/stores/{store}/versions/*").key("{store}");
    world.register(0, &registration, 64, &versions).await;
    let stores = stores(&world, 50);
    let first = stores[0].clone();
    let put = move |tx: &mut Transaction| stores.iter().try_for_each(|store| tx.put(store, Store { value: 1 }));
    let revision = write(&world, 0, put).await;
    let stored = world.cluster.stored().await;
    let row = stored.log.iter().find(|row| row.revision == revision).unwrap();
    let asked: usize = row
        .entries
        .iter()
        .map(|entry| match entry {
            LogEntry::Change { hooks, .. } => hooks.len(),
            LogEntry::Existing { .. } | LogEntry::Action { .. } => 0,
        })
        .sum();
    assert_eq!(asked, 100);
    write(&world, 0, move |tx| {
        (0..20_u64).try_for_each(|number| tx.put(&first.child::<Version>(number).unwrap(), Version { value: 1 }))
    })
    .await;
    world.hooks_finish(0).await;
    assert_eq!((one.seen().len(), other.seen().len(), versions.seen().len()), (50, 50, 20));
    world.delete(0, "k0").await;
    world.hooks_finish(0).await;
    assert_eq!(versions.seen().len(), 40, "one for each version that went with its store");
    world.finish_waiting().await;
}

/// K6: what was missed while nobody ran the hook is given whole.
pub async fn k06_what_was_missed_while_nobody_ran_the_hook_is_given_whole(case: Case) {
    let case = case.upkept();
    let mut world = World::configured(&case, 2, |_, mut options| {
        options.log_keep = Duration::ZERO;
        options.compact_every = 1;
        options.entities_behind = Duration::from_millis(20);
        options
    })
    .await;
    world.cluster.server(0).register_only(per_store("hook")).await.unwrap();
    world.set(0, "a", 1).await;
    world.set(0, "a", 2).await;
    world.delete(0, "a").await;
    // Others run, and the log is compacted as far as it goes.
    let other = Probe::new();
    world.register(1, &per_store("other").slots(1), 4, &other).await;
    for value in 1..=20 {
        world.set(0, "b", value).await;
        world.cluster.advance(Duration::from_millis(10));
    }
    world
        .eventually("entities are written behind", || async {
            let stored = world.cluster.stored().await;
            stored.tree.revision == stored.meta.head
        })
        .await;
    let probe = Probe::new();
    world.register(1, &per_store("hook"), 4, &probe).await;
    probe.started("a", 3).await;
    world.hooks_finish(0).await;
    let seen: Vec<_> = probe.seen_of("a").iter().map(|seen| (seen.before, seen.after)).collect();
    assert_eq!(seen, [(None, Some(1)), (Some(1), Some(2)), (Some(2), None)]);
    world.finish_waiting().await;
}

/// K22: a server without the code makes the request all the same.
pub async fn k22_a_server_without_the_code_makes_the_request_all_the_same(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::new();
    world.register(0, &per_store("hook"), 4, &probe).await;
    world.cluster.server(1).flush().await.unwrap();
    world.set(1, "a", 1).await;
    probe.started("a", 1).await;
    assert_eq!(probe.seen()[0].server, "server-0");
    world.hooks_finish(1).await;
    world.finish().await;
}

/// K35: matching is done at the head by the registration alone.
pub async fn k35_matching_is_done_at_the_head_by_the_registration_alone(case: Case) {
    let mut world = World::new(&case, 2).await;
    let a = world.store("a");
    write(&world, 0, move |tx| {
        tx.put(&a, Store { value: 1 })?;
        (0..3_u64).try_for_each(|number| tx.put(&a.child::<Version>(number).unwrap(), Version { value: 1 }))
    })
    .await;
    world.cluster.server(1).flush().await.unwrap();
    let tail = world.cluster.points(1).hold(point::TAIL_BEFORE_APPLY);
    let probe = Probe::new();
    let registration = Registration::new("hook", 1).on("/stores/{store}/versions/*").key("{store}");
    world.register(0, &registration, 4, &probe).await;
    // Its tail has not brought the registration.
    world.delete(1, "a").await;
    tail.release();
    probe.started("a", 3).await;
    world.hooks_finish(1).await;
    assert_eq!(probe.seen().len(), 3);
    world.finish().await;
}

/// K36: bad registrations are refused.
pub async fn k36_bad_registrations_are_refused(case: Case) {
    let world = World::new(&case, 1).await;
    let state = world.cluster.server(0);
    let before = state.snapshot().revision();
    for bad in [
        Registration::new("bad", 1).on("/stores/{store").key("{store}"),
        Registration::new("bad", 1).on("/stores/{store}").on("/regions/{region}").key("{store}"),
        Registration::new("bad", 1).on("/stores/{store}").key("{a}{b}"),
    ] {
        let refused = state.register_only(bad).await;
        assert!(
            matches!(
                refused,
                Err(RegisterError::Pattern(
                    PatternError::Segment { .. } | PatternError::Unbound { .. } | PatternError::Template { .. }
                ))
            ),
            "{refused:?}"
        );
    }
    assert_eq!(state.flush().await.unwrap(), before);
    world.finish().await;
}

/// K37: two patterns share a key.
pub async fn k37_two_patterns_share_a_key(case: Case) {
    let mut world = World::new(&case, 3).await;
    for key in 0..5 {
        world.set(0, format!("k{key}"), 1).await;
    }
    let (every, latest) = (Probe::new(), Probe::new());
    let registration = |name: &str| {
        Registration::new(name, 1).on("/stores/{store}").on("/stores/{store}/versions/*").key("{store}").slots(5)
    };
    world.register_everywhere(&registration("every"), 4, &every).await;
    world.register_everywhere(&registration("latest").latest_state(), 4, &latest).await;
    world.spread("every", 3).await;
    let mut last = crate::Revision(0);
    for value in 2..=31_u64 {
        for key in 0..5 {
            let id = format!("k{key}");
            world.set(0, id.as_str(), value).await;
            let path = world.store(&id).child::<Version>(value).unwrap();
            last = write(&world, 1, move |tx| tx.put(&path, Version { value })).await;
        }
        if value == 15 {
            world.kill(2);
        }
    }
    world.step(Duration::from_secs(12)).await;
    world.hooks_finish(0).await;
    for key in 0..5 {
        let seen = every.seen_of(&format!("k{key}"));
        let mut revisions: Vec<_> = seen.iter().map(|seen| seen.request.revision).collect();
        assert!(revisions.is_sorted(), "one order over both patterns");
        revisions.dedup();
        assert_eq!(revisions.len(), 60);
        assert!(latest.seen_of(&format!("k{key}")).last().unwrap().snapshot.0 + 10 >= last.0);
    }
    world.finish().await;
}

/// K41: a fan out hook writes beside all that are concerned.
pub async fn k41_a_fan_out_hook_writes_beside_all_that_are_concerned(case: Case) {
    for place in
        [point::COMMIT_BEFORE_LOCK, point::COMMIT_LOCKED, point::COMMIT_BEFORE_COMMIT, point::COMMIT_AFTER_COMMIT]
    {
        fan_out(&case, place).await;
    }
}

async fn fan_out(case: &Case, place: &'static str) {
    let mut world = World::new(case, 2).await;
    let stores = stores(&world, 500);
    let all = stores.clone();
    write(&world, 0, move |tx| all.iter().try_for_each(|store| tx.put(store, Store { value: 1 }))).await;
    write(&world, 0, |tx| tx.put(&effect("region"), super::support::Effect { count: 0, last: 0 })).await;
    let each = Probe::new();
    world.register(1, &per_store("each").latest_state(), 16, &each).await;
    let fan_out = Probe::answering(move |run| {
        // What its snapshot has: it may cover a change that it was not given.
        let value = run.snapshot().require(&effect("region")).unwrap().count;
        let stores = stores.clone();
        Outcome::done_with(move |tx| stores.iter().try_for_each(|store| tx.put(store, Store { value })))
    });
    let registration = Registration::new("fan-out", 1).on("/effects/region").key("all").latest_state().slots(1);
    world.register(0, &registration, 1, &fan_out).await;
    world.cluster.points(0).cut(place, 1);
    for count in [2, 3] {
        write(&world, 1, move |tx| tx.put(&effect("region"), super::support::Effect { count, last: 0 })).await;
    }
    world.hooks_finish(1).await;
    for number in 0..500 {
        let seen = each.seen_of(&format!("k{number}"));
        assert_eq!(seen.last().unwrap().after, Some(3), "k{number}");
    }
    // The keys of this case are not all made from the second segment.
    let mut expectation = world.expectation().await;
    expectation.keys.clear();
    world.finish_checked(expectation).await;
}
