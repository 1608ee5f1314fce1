//! Waiting, failing, and what operators do to requests; registrations that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::driver::{LogEntry, ReceiptOutcome};
use crate::{
    Attributes, Outcome, QueueError, QueueFilter, RequestState, Timestamp, Transaction, TransactionError, WaitError,
    WaitForHooks, WriteError,
};

use super::Case;
use super::support::{LIMIT, Probe, SHORT, Store, World, counted, effect, per_store, plain_key, store};

async fn list(world: &World, server: usize) -> Vec<crate::QueueEntry> {
    world.cluster.server(server).queue().list(QueueFilter::all()).await.unwrap()
}

/// K18: waiting is no failure and a change brings latest state forward.
pub async fn k18_waiting_is_no_failure_and_a_change_brings_latest_state_forward(case: Case) {
    let mut world = World::new(&case, 2).await;
    let until = |run: &crate::Run| Timestamp(run.now().0 + 100_000);
    let a = world.store("a");
    let answer = move |run: &crate::Run| match run.snapshot().get(&a).unwrap().map(|store| store.value) {
        Some(1) => Outcome::RetryAt(until(run)),
        Some(2) => Outcome::fail("backs off"),
        _ => Outcome::Done,
    };
    let latest = Probe::answering(answer);
    world.register(0, &per_store("latest").latest_state(), 4, &latest).await;
    world.set(1, "a", 1).await;
    world
        .eventually("it waits for its time", || async {
            list(&world, 1).await.iter().any(|entry| matches!(entry.state, RequestState::RetryAt(_)))
        })
        .await;
    assert_eq!(list(&world, 1).await[0].attempts, 0);
    world.set(1, "a", 2).await;
    latest.started("a", 2).await;
    world
        .eventually("it backs off", || async {
            list(&world, 1).await.iter().any(|entry| matches!(entry.state, RequestState::BackingOff(_)))
        })
        .await;
    world.set(1, "a", 3).await;
    world.cluster.server(0).flush().await.unwrap();
    assert_eq!(latest.seen().len(), 2, "a change does not end a backoff");
    world.step(Duration::from_secs(2)).await;
    latest.started("a", 3).await;
    world.hooks_finish(1).await;
    assert_eq!(latest.seen_of("a")[2].attempt, 2);
    world.finish().await;
}

/// K19: dead letters are handled through any server.
pub async fn k19_dead_letters_are_handled_through_any_server(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe =
        Probe::answering(
            |run| if plain_key(run.key().as_str()) == "bad" { Outcome::fail("bad") } else { Outcome::Done },
        );
    world.register(0, &per_store("hook").attempts(1).slots(1), 4, &probe).await;
    world.set(1, "bad", 1).await;
    world.set(1, "bad", 2).await;
    world.set(1, "good", 1).await;
    probe.started("good", 1).await;
    let report = world.hooks_finish(1).await;
    assert_eq!((report.dead.len(), report.paused.len(), report.finished), (1, 1, false));
    let (letter, behind) = (report.dead[0].request, report.paused[0].request);
    assert_eq!(report.paused[0].state, RequestState::PausedBehind(letter));
    assert_eq!(report.dead[0].error.as_deref(), Some("bad"));
    assert!(matches!(world.cluster.server(1).queue().retry(behind, "operator").await, Err(QueueError::NotDead { .. })));
    probe.answer(|_| Outcome::Done);
    let (one, two) = (world.cluster.server(1).clone(), world.cluster.server(0).clone());
    let (first, second) = tokio::join!(async { one.queue().retry(letter, "one").await.is_ok() }, async {
        two.queue().retry(letter, "two").await.is_ok()
    });
    assert!(first || second);
    world.hooks_finish(1).await;
    let seen: Vec<_> = probe.seen_of("bad").iter().map(|seen| (seen.after.unwrap(), seen.attempt)).collect();
    assert_eq!(seen, [(1, 1), (1, 1), (2, 1)]);
    assert!(matches!(
        world.cluster.server(1).queue().retry(letter, "operator").await,
        Err(QueueError::NotThere { .. })
    ));
    // Discarded: gone, on record, and what was behind it runs.
    probe.answer(|run| {
        let value = run.change().unwrap().after::<Store>().unwrap().unwrap().value;
        if value == 7 { Outcome::fail("bad") } else { Outcome::Done }
    });
    world.set(1, "bad", 7).await;
    world.set(1, "bad", 8).await;
    let report = world.hooks_finish(1).await;
    let letter = report.dead[0].request;
    let at = world.cluster.server(1).queue().discard(letter, "operator").await.unwrap();
    assert!(world.hooks_finish(1).await.finished);
    assert_eq!(probe.seen_of("bad").last().unwrap().after, Some(8));
    let stored = world.cluster.stored().await;
    let row = stored.log.iter().find(|row| row.revision == at).unwrap();
    assert_eq!(row.attributes.get("by").map(String::as_str), Some("operator"));
    world.finish().await;
}

/// K19: a dead latest state key is revived by the next change.
pub async fn k19_a_dead_latest_state_key_is_revived_by_the_next_change(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::answering(|_| Outcome::fail("bad"));
    world.register(0, &per_store("hook").latest_state().attempts(1), 4, &probe).await;
    world.set(1, "a", 1).await;
    let report = world.hooks_finish(1).await;
    let letter = report.dead[0].request;
    probe.answer(|_| Outcome::Done);
    world.set(1, "a", 2).await;
    probe.started("a", 2).await;
    assert!(world.hooks_finish(1).await.finished);
    let seen = probe.seen_of("a");
    assert_eq!((seen.len(), seen[1].attempt, seen[1].after), (2, 1, Some(2)));
    assert!(world.cluster.server(1).queue().retry(letter, "operator").await.is_err());
    world.finish().await;
}

/// K20: a waiting and a running request are cancelled through a server that does not own the slot. The waiting one never
/// runs; the running one gets its signal, nothing of it is stored although the token holds, and the next of its key starts
/// when it has ended. Both are on record with who did it, and neither runs again when its server has died.
pub async fn k20_waiting_and_running_requests_are_cancelled(case: Case) {
    let mut world = World::new(&case, 2).await;
    let started: Arc<Mutex<Vec<(String, crate::driver::RequestId)>>> = Arc::default();
    let (noted, first) = (started.clone(), world.store("a"));
    let hook = move |run: crate::Run| {
        noted.lock().push((plain_key(run.key().as_str()).to_owned(), run.request()));
        let is_first = run.path() == first.path() && noted.lock().len() == 1;
        async move {
            if is_first {
                // It goes on until it is told to end, and then writes all the same.
                run.cancelled().cancelled().await;
            }
            let count = u64::from(is_first);
            Outcome::done_with(move |tx| tx.put(&effect("cancelled"), super::support::Effect { count, last: 0 }))
        }
    };
    let handle = world.cluster.server(0).register(per_store("hook"), 1, Arc::new(hook.clone())).await.unwrap();
    world.set(1, "a", 1).await;
    let has_started = |times: usize| {
        let is = started.lock().len() == times;
        std::future::ready(is)
    };
    world.eventually("it runs", || has_started(1)).await;
    world.set(1, "a", 2).await;
    world.set(1, "b", 1).await;
    let entries = list(&world, 1).await;
    let id_of = |key: &str, place: usize| {
        entries.iter().filter(|entry| plain_key(&entry.key) == key).nth(place).unwrap().request
    };
    let (running, next, waiting) = (id_of("a", 0), id_of("a", 1), id_of("b", 0));
    let queue = world.cluster.server(1).clone();
    let mut actions = Vec::new();
    for request in [waiting, running] {
        actions.push(queue.queue().cancel(request, "operator").await.unwrap());
    }
    world.hooks_finish(1).await;
    let ran = |key: &str| -> Vec<_> {
        started.lock().iter().filter(|(of, _)| of == key).map(|(_, request)| *request).collect()
    };
    assert_eq!((ran("a"), ran("b")), (vec![running, next], vec![]));
    let is_settled = || async {
        let receipts = world.cluster.stored().await.receipts;
        let outcomes = [waiting, running].map(|request| {
            let receipt = receipts.iter().find(|receipt| receipt.request == request);
            receipt.map(|receipt| receipt.outcome)
        });
        outcomes == [Some(ReceiptOutcome::Cancelled); 2]
    };
    world.eventually("both are on record as cancelled", is_settled).await;
    let stored = world.cluster.stored().await;
    let entries = stored.log.iter().flat_map(|row| &row.entries);
    let written: Vec<_> = entries
        .filter_map(|entry| match entry {
            LogEntry::Change { path, after, .. } if path == effect("cancelled").path() => after.clone(),
            LogEntry::Change { .. } | LogEntry::Existing { .. } | LogEntry::Action { .. } => None,
        })
        .collect();
    assert_eq!(written.len(), 1, "{written:?}");
    assert!(written[0].json.contains("\"count\":0"), "of the next run, and not of the cancelled one: {written:?}");
    for action in actions {
        let row = stored.log.iter().find(|row| row.revision == action).unwrap();
        assert_eq!(row.attributes.get("by").map(String::as_str), Some("operator"));
    }
    drop(handle);
    world.kill_and_restart(0).await;
    let _handle = world.cluster.server(0).register(per_store("hook"), 1, Arc::new(hook)).await.unwrap();
    world.set(1, "c", 1).await;
    world.hooks_finish(1).await;
    assert_eq!((ran("a").len(), ran("b").len(), ran("c").len()), (2, 0, 1), "neither runs again");
    world.finish().await;
}

/// K23: a hook that begins with what exists runs once for each.
pub async fn k23_a_hook_that_begins_with_what_exists_runs_once_for_each(case: Case) {
    let mut world = World::new(&case, 3).await;
    for number in 0..700 {
        let (state, entity) = (world.cluster.server(0).clone(), world.store(&format!("k{number}")));
        if number % 50 == 0 {
            let fifty: Vec<_> = (number..number + 50).map(|other| world.store(&format!("k{other}"))).collect();
            let done: Result<_, WriteError<TransactionError>> = state
                .write(move |tx: &mut Transaction| {
                    for other in &fifty {
                        tx.put(other, Store { value: 1 })?;
                    }
                    tx.put(&entity, Store { value: 1 })
                })
                .await;
            done.unwrap();
        }
    }
    let (existing, now) = (Probe::new(), Probe::new());
    world.register(0, &per_store("now"), 8, &now).await;
    let writer = world.cluster.server(2).clone();
    let changes: Vec<_> = (2..40).map(|value: u64| (value, world.store(&format!("k{}", value * 17 % 700)))).collect();
    let writing = tokio::spawn(async move {
        for (value, entity) in changes {
            let done: Result<_, WriteError<TransactionError>> =
                writer.write(move |tx: &mut Transaction| tx.put(&entity, Store { value })).await;
            done.unwrap();
        }
    });
    let registration = per_store("existing").from_existing();
    for server in 0..3 {
        world.register(server, &registration, 8, &existing).await;
    }
    writing.await.unwrap();
    world
        .eventually("what exists has been asked for", || async {
            world.cluster.server(1).flush().await.unwrap();
            existing.seen().len() >= 700
        })
        .await;
    world.hooks_finish(1).await;
    for number in 0..700 {
        let seen = existing.seen_of(&format!("k{number}"));
        let asked = seen.iter().filter(|seen| seen.before.is_none()).count();
        assert_eq!(asked, 1, "k{number}: {seen:#?}");
        assert!(seen[0].before.is_none(), "what exists comes before what changes");
    }
    assert!(now.seen().iter().all(|seen| seen.before.is_some()), "nothing for what existed");
    world.finish().await;
}

/// Changes forty of a thousand stores, by turns through two servers.
async fn change_some(world: &World, from: u64) {
    let writes = (from..from + 40).map(|value| {
        let (server, id) = ((value % 2) as usize, format!("k{}", value * 17 % 1_000));
        world.set_beside_others(server, id, value)
    });
    futures::future::join_all(writes).await;
}

/// K23: what exists is asked for, in `EveryChange` for each entity and in `LatestState` for each key, while two servers write;
/// every server is killed amid it, and the asking goes on where it stopped: once for each, and each change too.
pub async fn k23_what_exists_is_asked_for_once_although_every_server_dies(case: Case) {
    const EXISTING: usize = 1_000;
    let mut world = World::new(&case, 3).await;
    let all: Vec<_> = (0..EXISTING).map(|number| world.store(&format!("k{number}"))).collect();
    let put = move |tx: &mut Transaction| all.iter().try_for_each(|store| tx.put(store, Store { value: 1 }));
    world.cluster.server(0).write::<_, TransactionError, _>(put).await.unwrap();
    let registrations = [per_store("every").from_existing(), per_store("latest").latest_state().from_existing()];
    let probes = [Probe::answering(counted), Probe::new()];
    for (registration, probe) in registrations.iter().zip(&probes) {
        world.register_everywhere(registration, 16, probe).await;
    }
    change_some(&world, 10).await;
    probes[0].until("some of them have run", |probe| probe.seen().len() >= 50).await;
    for server in 0..3 {
        world.kill(server);
    }
    world.cluster.advance(Duration::from_secs(12));
    let again = [Probe::answering(counted), Probe::new()];
    for server in 0..3 {
        world.restart(server).await;
        for (registration, probe) in registrations.iter().zip(&again) {
            world.register(server, registration, 16, probe).await;
        }
    }
    change_some(&world, 100).await;
    assert!(world.hooks_finish(1).await.finished);
    let stored = world.cluster.stored().await;
    let mut asked: BTreeMap<(u32, String), usize> = BTreeMap::new();
    for entry in stored.log.iter().flat_map(|row| &row.entries) {
        if let LogEntry::Existing { path, hook } = entry {
            *asked.entry((hook.0, path.to_string())).or_default() += 1;
        }
    }
    assert!(asked.values().all(|times| *times == 1), "asked for once");
    for (number, probe) in probes.iter().enumerate() {
        let seen: Vec<_> = probe.seen().into_iter().chain(again[number].seen()).collect();
        let keys: BTreeSet<String> = seen.iter().map(|seen| seen.key.clone()).collect();
        assert_eq!(keys.len(), EXISTING, "each that exists has run");
    }
    assert_eq!(asked.len(), 2 * EXISTING);
    world.finish().await;
}

/// K25: a removed registration keeps what waits.
pub async fn k25_a_removed_registration_keeps_what_waits(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::new();
    world.register(0, &per_store("hook"), 1, &probe).await;
    probe.hold("a");
    world.set(1, "a", 1).await;
    probe.started("a", 1).await;
    world.set(1, "b", 1).await;
    assert!(world.cluster.server(1).unregister("hook").await.unwrap());
    assert!(!world.cluster.server(1).unregister("hook").await.unwrap());
    world.set(1, "c", 1).await;
    // Until the other server has seen it, it starts what waits.
    world
        .eventually("slots in which nothing runs are given up", || async {
            world.cluster.stored().await.slots.iter().any(|row| row.owner.is_none())
        })
        .await;
    probe.release("a");
    world
        .eventually("the running one is finished", || async {
            list(&world, 1).await.iter().all(|entry| plain_key(&entry.key) == "b")
        })
        .await;
    let waiting = list(&world, 1).await;
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].state, RequestState::NoServer);
    assert!(probe.seen_of("c").is_empty());
    // Whoever leases them from here on does so under higher tokens than all before.
    world
        .eventually("the slots are given up", || async {
            world.cluster.stored().await.slots.iter().all(|row| row.owner.is_none())
        })
        .await;
    world.cluster.server(1).register_only(per_store("hook")).await.unwrap();
    probe.started("b", 1).await;
    world.hooks_finish(1).await;
    assert!(probe.seen_of("b")[0].token > probe.seen_of("a")[0].token);
    world.finish().await;
}

/// K26: a hook writes what triggers itself and two others, four deep and along several trees at once, while every server runs
/// one at a time of each: all is done, and each change that is written has its requests.
pub async fn k26_hooks_that_trigger_hooks_do_not_deadlock(case: Case) {
    const DEEP: usize = 4;
    const TREES: [&str; 3] = ["xa", "xb", "xc"];
    let mut world = World::new(&case, 2).await;
    let itself = Probe::answering(|run| {
        let id = run.id("store").unwrap();
        // Ids are longer by one "x" at each depth, in front.
        let depth = id.chars().take_while(|letter| *letter == 'x').count();
        if depth > DEEP {
            return Outcome::Done;
        }
        Outcome::done_with(move |tx| tx.put(&store(&format!("x{id}")), Store { value: depth as u64 }))
    });
    // One of the others writes, too, in nobody's scope.
    let (counts, looks) = (Probe::answering(counted), Probe::new());
    let hooks = [("itself", &itself), ("counts", &counts), ("looks", &looks)];
    for (name, probe) in hooks {
        world.register_everywhere(&per_store(name), 1, probe).await;
    }
    for tree in TREES {
        world.set(0, tree, 1).await;
    }
    assert!(world.hooks_finish(1).await.finished);
    let stored = world.cluster.stored().await;
    let mut changes = Vec::new();
    for row in &stored.log {
        for entry in &row.entries {
            if let LogEntry::Change { path, hooks, .. } = entry
                && path.collection() == "stores"
            {
                assert_eq!(hooks.len(), 3, "{path} asks for a run of each hook");
                changes.push(row.revision);
            }
        }
    }
    changes.sort_unstable();
    assert_eq!(changes.len(), TREES.len() * (DEEP + 1));
    for (name, probe) in hooks {
        let mut ran: Vec<_> = probe.seen().iter().map(|seen| seen.request.revision).collect();
        ran.sort_unstable();
        assert_eq!(ran, changes, "{name} has run once for each change");
    }
    world.finish().await;
}

/// K32: attributes reach the run and what it writes.
pub async fn k32_attributes_reach_the_run_and_what_it_writes(case: Case) {
    let mut world = World::new(&case, 2).await;
    let noted = Arc::new(Mutex::new(Vec::new()));
    let seen = noted.clone();
    let (a, b) = (world.store("a"), world.store("b"));
    let probe = Probe::answering(move |run| {
        seen.lock().push(run.attributes().clone());
        if plain_key(run.key().as_str()) == "b" {
            return Outcome::Done;
        }
        let b = b.clone();
        Outcome::done_with(move |tx| tx.put(&b, Store { value: 1 }))
    });
    world.register(0, &per_store("hook"), 4, &probe).await;
    let attributes: Attributes = [("user".to_owned(), "me".to_owned())].into();
    let written: Result<_, WriteError<TransactionError>> = world
        .cluster
        .server(1)
        .transaction()
        .attributes(attributes.clone())
        .write(move |tx: &mut Transaction| tx.put(&a, Store { value: 1 }))
        .await;
    let revision = written.unwrap().revision;
    world.hooks_finish(1).await;
    let noted = noted.lock().clone();
    assert_eq!(noted[0], attributes);
    assert_eq!(noted[1].get("user").map(String::as_str), Some("me"));
    assert_eq!(noted[1].get("hook").map(String::as_str), Some("hook"));
    assert!(noted[1].get("hook-request").unwrap().starts_with(&format!("{revision}.")));
    assert_eq!(noted[1].get("hook-run"), Some(&probe.seen()[0].token.to_string()));
    world.finish().await;
}

/// K33: waiting for hooks says what is not finished and keeps its limit.
pub async fn k33_waiting_for_hooks_says_what_is_not_finished_and_keeps_its_limit(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::new();
    world.register(0, &per_store("hook"), 4, &probe).await;
    probe.hold("a");
    let revision = world.set(1, "a", 1).await;
    let later = world.set(1, "b", 1).await;
    let state = world.cluster.server(1).clone();
    state.flush().await.unwrap();
    let wait = WaitForHooks::all().limit(LIMIT);
    assert!(state.wait_for_hooks(wait.clone().key(world.key("b"))).await.unwrap().finished);
    assert!(state.wait_for_hooks(wait.hook("other")).await.unwrap().finished);
    let short = WaitForHooks::all().limit(SHORT);
    match state.wait_for_hooks(short.until(revision)).await {
        Err(WaitError::HooksTimedOut { unfinished, .. }) => {
            assert!(unfinished.contains(&format!("hook {}", world.key("a"))), "{unfinished}")
        }
        other => panic!("{other:?}"),
    }
    probe.release("a");
    assert!(state.wait_for_hooks(WaitForHooks::all().until(later)).await.unwrap().finished);
    // Nobody runs this one yet, so nobody asks for what is there.
    let existing = per_store("existing").from_existing();
    state.register_only(existing.clone()).await.unwrap();
    let wait = WaitForHooks::all().hook("existing");
    match state.wait_for_hooks(wait.clone().limit(SHORT)).await {
        Err(WaitError::HooksTimedOut { unfinished, .. }) => assert!(unfinished.contains("existing"), "{unfinished}"),
        other => panic!("{other:?}"),
    }
    assert!(state.wait_for_hooks(WaitForHooks::all().hook("hook").limit(LIMIT)).await.unwrap().finished);
    let second = Probe::new();
    world.register(0, &existing, 4, &second).await;
    assert!(state.wait_for_hooks(wait.limit(LIMIT)).await.unwrap().finished);
    assert_eq!(second.seen().len(), 2, "both stores were there before it");
    world.finish().await;
}

/// K42: unlimited attempts never make a dead letter.
pub async fn k42_unlimited_attempts_never_make_a_dead_letter(case: Case) {
    let mut world = World::new(&case, 1).await;
    let probe = Probe::answering(|run| if run.attempt() <= 100 { Outcome::fail("again") } else { Outcome::Done });
    let registration =
        per_store("hook").attempts_unlimited().backoff(Duration::from_millis(100), Duration::from_secs(1));
    world.register(0, &registration, 4, &probe).await;
    world.set(0, "a", 1).await;
    for attempt in 1..=100 {
        probe.started("a", attempt).await;
        world
            .eventually("it backs off", || async {
                let entries = list(&world, 0).await;
                assert!(!entries.iter().any(|entry| entry.state == RequestState::Dead));
                entries.iter().any(|entry| entry.attempts as usize == attempt && entry.error.is_some())
            })
            .await;
        world.step(Duration::from_secs(1)).await;
    }
    probe.started("a", 101).await;
    assert!(world.hooks_finish(0).await.finished);
    world.finish().await;
}
