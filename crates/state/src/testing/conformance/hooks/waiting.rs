//! What waits for a time or behind a failure, and who waits for it.

use std::time::Duration;

use crate::cluster_hook::points;
use crate::{Outcome, QueueEntry, QueueFilter, RequestState, WaitError, WaitForHooks};

use super::Case;
use super::support::{LIMIT, Probe, SHORT, Store, World, per_store, plain_key};

/// For so long it asks to be left alone.
const LATER: Duration = Duration::from_secs(100);

async fn list(world: &World, server: usize) -> Vec<QueueEntry> {
    world.cluster.server(server).queue().list(QueueFilter::all()).await.unwrap()
}

/// K18: with `EveryChange` a change waits behind one that waits for a time, and behind one that backs off. Neither starts
/// before its time, and times and attempts are the same after the slot has passed on, and after every server has died.
pub async fn k18_every_change_waits_behind_and_times_and_attempts_survive(case: Case) {
    let mut world = World::new(&case, 3).await;
    let due = crate::testing::START.after(LATER);
    let answer = move |run: &crate::Run| {
        let is_first =
            || run.change().and_then(|change| change.after::<Store>().unwrap()).is_some_and(|it| it.value == 1);
        match (plain_key(run.key().as_str()), run.attempt()) {
            ("later", _) if run.now() < due => Outcome::RetryAt(due),
            ("fails", 1) if is_first() => Outcome::fail("not yet"),
            _ => Outcome::Done,
        }
    };
    let registration = per_store("hook").slots(1).attempts(3).backoff(LATER, LATER);
    let probes: Vec<Probe> = (0..2).map(|_| Probe::answering(answer)).collect();
    for (server, probe) in probes.iter().enumerate() {
        world.register(server, &registration, 8, probe).await;
    }
    world.cluster.move_slot("hook", &world.key("later"), 0).await;
    for value in [1, 2] {
        world.set(2, "later", value).await;
        world.set(2, "fails", value).await;
    }
    let facts = |entries: Vec<QueueEntry>| {
        let mut facts: Vec<_> = entries
            .into_iter()
            .map(|entry| (plain_key(&entry.key).to_owned(), entry.request, entry.state, entry.attempts))
            .collect();
        facts.sort_by_key(|(_, request, ..)| *request);
        facts
    };
    let stands = || async {
        let list = list(&world, 2).await;
        let is = |state: fn(&RequestState) -> bool| list.iter().filter(|entry| state(&entry.state)).count();
        let waits = is(|state| matches!(state, RequestState::RetryAt(_)));
        (list.len(), waits, is(|state| matches!(state, RequestState::BackingOff(_)))) == (4, 1, 1)
    };
    world.eventually("one waits for its time, one backs off, and one stands behind each", stands).await;
    let before = facts(list(&world, 2).await);
    let attempts: Vec<_> = before.iter().map(|(key, _, _, attempts)| (key.as_str(), *attempts)).collect();
    assert_eq!(attempts, [("later", 0), ("fails", 1), ("later", 0), ("fails", 0)], "to wait is no failure");
    world.cluster.move_slot("hook", &world.key("later"), 1).await;
    assert_eq!(facts(list(&world, 2).await), before, "after the slot has passed on");
    for server in 0..3 {
        world.kill(server);
    }
    world.cluster.advance(Duration::from_secs(11));
    for server in [2, 0] {
        world.restart(server).await;
    }
    let third = Probe::answering(answer);
    world.register(0, &registration, 8, &third).await;
    world.spread("hook", 1).await;
    assert_eq!(facts(list(&world, 2).await), before, "after every server has died");
    let times = before.iter().filter_map(|(_, _, state, _)| match state {
        RequestState::RetryAt(at) | RequestState::BackingOff(at) => Some(*at),
        _ => None,
    });
    let first_due = times.min().unwrap();
    world.step(first_due.since(world.cluster.server(2).now()) - Duration::from_millis(1)).await;
    let ran = |probe: &Probe| probe.seen().len();
    assert_eq!((ran(&probes[0]), ran(&probes[1]), ran(&third)), (2, 0, 0), "nothing before its time");
    world.step(LATER).await;
    assert!(world.hooks_finish(2).await.finished);
    for key in ["later", "fails"] {
        let seen: Vec<_> = third.seen_of(key).iter().map(|seen| (seen.after.unwrap(), seen.attempt)).collect();
        let first = if key == "later" { 1 } else { 2 };
        assert_eq!(seen, [(1, first), (2, 1)], "{key}");
    }
    world.finish().await;
}

/// K33: who waits is told what is dead, what stands behind it and what backs off, and is not told that all is finished while
/// a slot passes on with a request in it.
pub async fn k33_waiting_tells_of_letters_failures_and_slots_that_pass_on(case: Case) {
    let mut world = World::new(&case, 3).await;
    let answer = |run: &crate::Run| {
        let change = run.change().and_then(|change| change.after::<Store>().ok().flatten());
        let is_bad = plain_key(run.key().as_str()) == "bad" && change.is_some_and(|store| store.value == 1);
        if is_bad && run.attempt() == 1 { Outcome::fail("no") } else { Outcome::Done }
    };
    let probe = Probe::answering(answer);
    for server in [0, 1] {
        world.register(server, &per_store("once").slots(1).attempts(1), 8, &probe).await;
        world.register(server, &per_store("often").slots(1), 8, &probe).await;
    }
    for value in [1, 2] {
        world.set(2, "bad", value).await;
    }
    let state = world.cluster.server(2).clone();
    let once = WaitForHooks::all().hook("once").limit(LIMIT);
    let report = state.wait_for_hooks(once).await.unwrap();
    let keys = |entries: &[QueueEntry]| -> Vec<String> {
        entries.iter().map(|entry| plain_key(&entry.key).to_owned()).collect()
    };
    assert!(!report.finished);
    assert_eq!((keys(&report.dead), keys(&report.paused)), (vec!["bad".to_owned()], vec!["bad".to_owned()]));
    assert_eq!(report.paused[0].state, RequestState::PausedBehind(report.dead[0].request));
    let backs_off =
        || async { list(&world, 2).await.iter().any(|entry| matches!(entry.state, RequestState::BackingOff(_))) };
    world.eventually("the other hook backs off", backs_off).await;
    let often = || WaitForHooks::all().hook("often");
    match state.wait_for_hooks(often().limit(SHORT)).await {
        Err(WaitError::HooksTimedOut { unfinished, .. }) => assert!(unfinished.contains("often"), "{unfinished}"),
        other => panic!("{other:?}"),
    }
    world.step(Duration::from_secs(4)).await;
    assert!(state.wait_for_hooks(often().limit(LIMIT)).await.unwrap().finished);
    // The slot is nobody's when the request is made, and it is found by the next owner.
    let key = world.key("amid");
    let from = world.cluster.owner_of("often", &key).await.unwrap();
    let lease = world.cluster.points(1 - from).hold(points::SLOT_BEFORE_LEASE);
    let amid = async {
        lease.reached().await;
        world.set(2, "amid", 1).await;
        let wait = often().key(key.as_str());
        let waits = state.wait_for_hooks(wait.clone().limit(SHORT)).await;
        assert!(matches!(waits, Err(WaitError::HooksTimedOut { .. })), "{waits:?}");
        drop(lease);
        assert!(state.wait_for_hooks(wait.limit(LIMIT)).await.unwrap().finished);
    };
    tokio::join!(world.cluster.move_slot("often", &key, 1 - from), amid);
    let ran = probe.seen_of("amid");
    assert_eq!(ran.len(), 2, "once for each hook: {ran:#?}");
    world.finish_waiting().await;
}
