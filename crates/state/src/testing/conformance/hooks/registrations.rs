//! Registrations as data: what a transaction asks for, whoever commits it and whatever code that server has.

use std::time::Duration;

use crate::driver::LogEntry;
use crate::testing::points::name as point;
use crate::{Outcome, PatternError, Ref, RegisterError, Registration, Transaction, TransactionError, WriteError};

use super::super::drivers::expect_few_statements;
use super::Case;
use super::moving::key_per_slot;
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

/// How many runs the transaction of a revision asks for.
async fn asked_at(world: &World, revision: crate::Revision) -> usize {
    let stored = world.cluster.stored().await;
    let row = stored.log.iter().find(|row| row.revision == revision).unwrap();
    let asked = |entry: &LogEntry| match entry {
        LogEntry::Change { hooks, .. } => hooks.len(),
        LogEntry::Existing { .. } | LogEntry::Action { .. } => 0,
    };
    row.entries.iter().map(asked).sum()
}

/// K4: one transaction asks for all its runs at once, in as many statements for fifty entities as for one.
pub async fn k04_one_transaction_asks_for_all_its_runs_at_once(case: Case) {
    // Given hooks on one server, and another that writes: what that one sends is for its writes.
    let mut world = World::new(&case, 2).await;
    let (one, other, versions) = (Probe::answering(|_| Outcome::fail("no")), Probe::new(), Probe::new());
    world.register(0, &per_store("one").attempts(1), 64, &one).await;
    world.register(0, &per_store("other"), 64, &other).await;
    let registration = Registration::new("versions", 1).on("/stores/{store}/versions/*").key("{store}");
    world.register(0, &registration, 64, &versions).await;
    let single = vec![world.store("single")];
    let many = stores(&world, 50);
    let first = many[0].clone();
    for stores in [single, many] {
        let count = stores.len();
        // When it has nothing to catch up with, and touches so many entities in scope of two hooks.
        world.cluster.server(1).flush().await.unwrap();
        let _ = world.cluster.faults(1).take_calls();
        let put = move |tx: &mut Transaction| stores.iter().try_for_each(|store| tx.put(store, Store { value: 1 }));
        let revision = write(&world, 1, put).await;
        // Then two runs are asked for each, and it has sent no more for many than for one.
        expect_few_statements(&world.cluster, 1, &format!("{count} entities in scope of two hooks"));
        assert_eq!(asked_at(&world, revision).await, 2 * count);
    }
    write(&world, 1, move |tx| {
        (0..20_u64).try_for_each(|number| tx.put(&first.child::<Version>(number).unwrap(), Version { value: 1 }))
    })
    .await;
    world.hooks_finish(0).await;
    assert_eq!((one.seen().len(), other.seen().len(), versions.seen().len()), (51, 51, 20));
    world.cluster.server(1).flush().await.unwrap();
    let _ = world.cluster.faults(1).take_calls();
    let first = world.store("k0");
    let revision = write(&world, 1, move |tx| tx.delete(&first).map(|_| ())).await;
    expect_few_statements(&world.cluster, 1, "the deletion of a store with 20 versions");
    assert_eq!(asked_at(&world, revision).await, 22, "its own two, and one for each version");
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

/// K37: two patterns share a key: runs of one key never overlap, whichever pattern made them, and are in one order, or
/// coalesced, over both; also those of a server that is killed amid it.
pub async fn k37_two_patterns_share_a_key(case: Case) {
    const CHANGES: u64 = 100;
    let mut world = World::new(&case, 3).await;
    // One key in each slot, so that every server has some.
    let keys = key_per_slot(&world, 5);
    let all: Vec<Ref<Store>> = keys.iter().map(|key| world.store(key)).collect();
    let put_all = |value: u64| {
        let all = all.clone();
        move |tx: &mut Transaction| all.iter().try_for_each(|store| tx.put(store, Store { value }))
    };
    write(&world, 0, put_all(0)).await;
    let (every, latest) = (Probe::new(), Probe::new());
    let registration = |name: &str| {
        Registration::new(name, 1).on("/stores/{store}").on("/stores/{store}/versions/*").key("{store}").slots(5)
    };
    world.register_everywhere(&registration("every"), 4, &every).await;
    world.register_everywhere(&registration("latest").latest_state(), 4, &latest).await;
    world.spread("every", 3).await;
    world.spread("latest", 3).await;
    let mut of_the_killed = Vec::new();
    let mut last = crate::Revision::ZERO;
    // A change of all keys through the one pattern, then one of all through the other.
    for value in 1..=CHANGES {
        write(&world, 0, put_all(value)).await;
        let stores = all.clone();
        let versions = move |tx: &mut Transaction| {
            stores.iter().try_for_each(|store| tx.put(&store.child::<Version>(value).unwrap(), Version { value }))
        };
        last = write(&world, 1, versions).await;
        if value == CHANGES / 2 {
            for key in &keys {
                if world.cluster.owner_of("latest", &world.key(key)).await == Some(2) {
                    of_the_killed.push(key.as_str());
                }
            }
            world.kill(2);
        }
    }
    // Nobody runs those until the lease of their slots has ended.
    let before: Vec<usize> = of_the_killed.iter().map(|key| latest.seen_of(key).len()).collect();
    world.step(Duration::from_secs(12)).await;
    assert!(world.hooks_finish(0).await.finished);
    for key in &keys {
        let seen = every.seen_of(key);
        let mut revisions: Vec<_> = seen.iter().map(|seen| seen.request.revision).collect();
        assert!(revisions.is_sorted(), "one order over both patterns");
        revisions.dedup();
        assert_eq!(revisions.len() as u64, 2 * CHANGES, "{key}");
        assert!(latest.seen_of(key).last().unwrap().snapshot >= last, "{key}: the last run has seen the last change");
    }
    assert!(!of_the_killed.is_empty());
    for (key, before) in of_the_killed.iter().zip(before) {
        let further = latest.seen_of(key).len() - before;
        assert!(further <= 5, "{key}: {further} runs for {CHANGES} changes that nobody had run");
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
