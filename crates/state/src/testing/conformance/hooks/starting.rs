//! A start from a table of entities that is far behind, with requests of hooks in the log after it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::driver::{LogEntry, RequestId};
use crate::testing::conformance::{Ended, Op, Oracle, agree, carry_out, dump, kind, script, within};
use crate::{Entity, Outcome, Ref, Registration, Revision, Root, Run, State, Transaction, WaitForHooks, WriteError};

use super::Case;
use super::support::{LIMIT, Probe, World, per_store};

/// How many changes the entities are behind.
const BEHIND: usize = 10_000;
/// How many transactions of the script make so many changes, and some more: a third of them is refused or changes nothing.
const TRANSACTIONS: usize = 12_000;
/// How many transactions wait for one commit.
const AT_ONCE: usize = 250;

/// What an older build wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OldThing {
    name: String,
}
impl Entity for OldThing {
    const COLLECTION: &'static str = "things";
    type Parent = Root;
    type Id = String;
}

/// The same in the current build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NewThing {
    title: String,
}
impl Entity for NewThing {
    const COLLECTION: &'static str = "things";
    const FORMAT: u32 = 2;
    type Parent = Root;
    type Id = String;
    fn upgrade(document: &mut Map<String, Value>, _from: u32) -> Result<(), String> {
        let name = document.remove("name").ok_or("it has no name")?;
        document.insert("title".to_owned(), name);
        Ok(())
    }
}

/// Carries transactions of a script out, many in one commit, in the oracle's order and with its answers.
async fn play(state: &State, oracle: &mut Oracle, revisions_before: u64, script: &[Vec<Op>]) {
    for group in script.chunks(AT_ONCE) {
        let mut writes = Vec::with_capacity(group.len());
        for ops in group {
            let (state, ops) = (state.clone(), ops.clone());
            let mut write = Box::pin(async move { state.write(move |tx: &mut Transaction| carry_out(&ops, tx)).await });
            // Polled once here: it is in the queue before the next one is.
            let first = futures::poll!(&mut write);
            writes.push((first, write));
        }
        for (ops, (first, write)) in group.iter().zip(writes) {
            let expected = oracle.apply(ops);
            let written = match first {
                std::task::Poll::Ready(written) => written,
                std::task::Poll::Pending => within("a write", write).await,
            };
            let ended = match written {
                Ok(committed) => {
                    assert_eq!(committed.revision, Revision(revisions_before + oracle.revision), "{ops:?}");
                    Ended::Done { changed: committed.changed }
                }
                Err(WriteError::Rejected(error)) => Ended::Refused(kind(&error)),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(ended, expected, "{ops:?}");
        }
    }
}

/// The requests of a log, each with its path.
fn requests(log: &[Arc<crate::driver::LogRow>]) -> BTreeMap<RequestId, String> {
    let mut found = BTreeMap::new();
    for row in log {
        for (sequence, entry) in (0..).zip(&row.entries) {
            if let LogEntry::Change { path, hooks, .. } = entry {
                let id = |hook: &crate::driver::HookNumber| RequestId { revision: row.revision, sequence, hook: *hook };
                found.extend(hooks.iter().map(|hook| (id(hook), path.to_string())));
            }
        }
    }
    found
}

/// D41: entities are ten thousand changes behind, whole subtrees that were deleted and put back and documents of an older
/// version among them; the log is compacted as far as it goes, every server dies, and one starts. It has the oracle's tree,
/// head and records, and each request that was in the log runs.
pub async fn d41_a_start_from_entities_far_behind_has_everything(case: Case) {
    let builder = case.upkept().configured(|_, mut options| {
        options.log_keep = Duration::ZERO;
        options.entities_behind = Duration::from_secs(3_600);
        options
    });
    let mut cluster = case.upkept().open(builder.servers(2)).await;
    let mut oracle = Oracle::default();
    let script = script(case.seed, TRANSACTIONS + 1_000, &|name| case.id(name));
    let (before, after) = script.split_at(1_000);
    play(cluster.server(0), &mut oracle, 0, before).await;
    let old: Vec<Ref<OldThing>> = (0..5).map(|number| Ref::root(case.id(&format!("t{number}"))).unwrap()).collect();
    let put_old = |things: Vec<Ref<OldThing>>, name: &'static str| {
        cluster.server(0).write(move |tx: &mut Transaction| {
            things.iter().try_for_each(|thing| tx.put(thing, OldThing { name: name.to_owned() }))
        })
    };
    put_old(old.clone(), "a").await.unwrap();
    cluster.server(0).core().write_entities().await.unwrap();
    // The hook is there, and nobody runs it yet.
    let registration = Registration::new("marks", 1).on("/stores/{store}/versions/*/marks/*").key("{store}").slots(4);
    cluster.server(0).register_only(registration.clone()).await.unwrap();
    play(cluster.server(0), &mut oracle, 2, after).await;
    put_old(old[..3].to_vec(), "b").await.unwrap();
    let expected_head = Revision(oracle.revision + 3);

    cluster.advance(Duration::from_secs(1));
    for server in 0..2 {
        cluster.server(server).flush_within(LIMIT).await.unwrap();
        cluster.server(server).core().compact().await.unwrap();
    }
    let stored = cluster.stored().await;
    assert_eq!(stored.meta.head, expected_head);
    assert!(stored.meta.compacted > Revision::ZERO, "what is behind the entities may go");
    assert!(stored.meta.compacted <= stored.tree.revision, "compaction took nothing that a start needs");
    let after = stored.log.iter().filter(|row| row.revision > stored.tree.revision).flat_map(|row| &row.entries);
    let behind = after.filter(|entry| matches!(entry, LogEntry::Change { .. })).count();
    assert!(behind >= BEHIND, "the entities are {behind} changes behind");
    let asked = requests(&stored.log);
    assert!(!asked.is_empty());

    cluster.restart_store().await;
    cluster.restart(1).await;
    let state = cluster.server(1).clone();
    assert_eq!(state.snapshot().revision(), expected_head);
    let mut expected = oracle.tree.clone();
    for (number, thing) in old.iter().enumerate() {
        let name = if number < 3 { "b" } else { "a" };
        expected.insert(thing.to_string(), format!("{{\"name\":\"{name}\"}}"));
        let new: Ref<NewThing> = Ref::parse(&thing.to_string()).unwrap();
        assert_eq!(state.snapshot().require(&new).unwrap().title, name);
    }
    let there = dump(&state.snapshot());
    let differs: Vec<_> = there.iter().filter(|(path, json)| expected.get(*path) != Some(json)).take(5).collect();
    assert!(there.len() == expected.len() && differs.is_empty(), "{differs:?}");
    let stored = cluster.stored().await;
    assert_eq!(stored.records.len(), oracle.records.len());
    let ran: Arc<Mutex<BTreeMap<RequestId, String>>> = Arc::default();
    let noted = ran.clone();
    let hook = move |run: Run| {
        noted.lock().insert(run.request(), run.path().to_string());
        std::future::ready(Outcome::Done)
    };
    let _handle = state.register(registration, 16, Arc::new(hook)).await.unwrap();
    let wait = WaitForHooks::all().limit(crate::testing::conformance::LIMIT);
    assert!(state.wait_for_hooks(wait).await.unwrap().finished);
    assert_eq!(*ran.lock(), asked, "no request is lost, and none is made up");
    agree(&cluster, Some(&expected)).await;
    cluster.finish().await;
}

/// D14: a server to which no hint of news comes runs what others ask for, by its poll.
pub async fn d14_runs_start_without_hints(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::new();
    world.register(1, &per_store("hook"), 4, &probe).await;
    world.spread("hook", 1).await;
    world.cluster.faults(1).set_deaf(true);
    for value in 1..=5 {
        world.set(0, "a", value).await;
        probe.started("a", usize::try_from(value).unwrap()).await;
    }
    assert!(world.hooks_finish(0).await.finished);
    world.finish().await;
}
