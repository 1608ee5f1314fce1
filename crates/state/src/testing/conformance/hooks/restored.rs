//! Hooks of a store that was restored from a backup: what was lost runs no more, and no number is taken for its namesake.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::driver::RequestId;
use crate::feed::FeedItem;
use crate::revision::{Epoch, Revision, SubmissionId};
use crate::{Outcome, Run, Transaction, TransactionError};

use super::super::within;
use super::Case;
use super::support::{Probe, Store, World, per_store};

/// A run, by all that names it to the world.
#[derive(Debug, Clone)]
struct Named {
    epoch: Epoch,
    key: String,
    request: RequestId,
    idempotency_key: String,
    token: u64,
}

/// Something outside that takes no token lower than it has seen, for each key.
#[derive(Clone, Default)]
struct Resource(Arc<Mutex<(HashMap<String, u64>, Vec<Named>)>>);

impl Resource {
    /// Whether it took the write.
    fn write(&self, run: &Run) -> bool {
        let mut inner = self.0.lock();
        let (key, token) = (run.key().to_string(), run.token().0);
        let seen = inner.0.entry(key.clone()).or_default();
        if token < *seen {
            return false;
        }
        *seen = token;
        let idempotency_key = run.idempotency_key();
        inner.1.push(Named { epoch: run.epoch(), key, request: run.request(), idempotency_key, token });
        true
    }

    fn taken(&self) -> Vec<Named> {
        self.0.lock().1.clone()
    }
}

struct Restored {
    world: World,
    probe: Probe,
    resource: Resource,
    old_epoch: Epoch,
    /// The last revision that was lost.
    old_head: Revision,
    /// A submission that was lost.
    lost: SubmissionId,
    /// Holds the runs of the keys "pending" and "running" that went at the restore, and none that began afterwards.
    held: Held,
}

type Held = [Option<tokio::sync::watch::Sender<bool>>; 2];

/// What values tell: whether a change is from before the backup, was lost, or was made afterwards.
const LOST: u64 = 1_000;
const NEW: u64 = 2_000;

fn key(number: u64) -> String {
    format!("k{}", number % 20)
}

/// Two servers with a hook; one request is pending at the backup, fifty are made and run afterwards, the last of them is
/// still running when the backup is restored.
async fn restored(case: &Case) -> Restored {
    let mut world = World::new(case, 2).await;
    let (probe, resource) = (Probe::new(), Resource::default());
    let outside = resource.clone();
    probe.answer(move |run| if outside.write(run) { Outcome::Done } else { Outcome::fail("its token is too low") });
    world.register_everywhere(&per_store("hook").attempts(1), 64, &probe).await;
    world.spread("hook", 2).await;
    for value in 0..5 {
        world.set(0, key(value), value).await;
    }
    world.hooks_finish(0).await;
    probe.hold("pending");
    world.set(0, "pending", 1).await;
    probe.started("pending", 1).await;
    let backup = world.cluster.store().back_up().await.unwrap();
    for value in 0..49 {
        world.set(0, key(value), LOST + value).await;
    }
    probe.until("what will be lost has run", |probe| (29..49).all(|value| has_run(probe, LOST + value))).await;
    probe.hold("running");
    let lost = SubmissionId::random();
    let write = world.cluster.server(0).transaction().submission(lost);
    let target = world.store("running");
    let put = move |tx: &mut Transaction| tx.put(&target, Store { value: LOST });
    let old_head = write.write::<_, TransactionError, _>(put).await.unwrap().revision;
    probe.started("running", 1).await;
    for server in world.cluster.running() {
        server.flush().await.unwrap();
    }
    let old_epoch = world.cluster.server(0).snapshot().epoch();
    let held = ["pending", "running"].map(|key| probe.keep_held(key));
    world.cluster.store().restore(backup).await.unwrap();
    for server in world.cluster.running() {
        server.flush().await.unwrap();
        assert_ne!(server.snapshot().epoch(), old_epoch);
    }
    Restored { world, probe, resource, old_epoch, old_head, lost, held }
}

/// Whether a run for this value, the last of its key, was there, and every run of the key has ended.
fn has_run(probe: &Probe, value: u64) -> bool {
    let seen = probe.seen_of(&key(value));
    seen.iter().any(|seen| seen.after == Some(value)) && probe.ended_of(&key(value)) == seen.len()
}

/// D35: after a restore no hook runs for what was lost, what was pending at the backup runs, and what had run before it
/// does not run again.
pub async fn d35_hooks_run_for_what_the_backup_has(case: Case) {
    let Restored { world, probe, old_epoch, held, .. } = restored(&case).await;
    let before: Vec<usize> = (0..20).map(|number| probe.seen_of(&key(number)).len()).collect();
    // The run of the old epoch still goes when that of the new one begins.
    probe.started("pending", 2).await;
    probe.until("it ends", |probe| probe.ended_of("pending") == 1).await;
    drop(held);
    world.set(1, "after", NEW).await;
    assert!(world.hooks_finish(1).await.finished);
    let after: Vec<usize> = (0..20).map(|number| probe.seen_of(&key(number)).len()).collect();
    assert_eq!(before, after, "nothing else runs");
    assert_eq!((probe.seen_of("running").len(), probe.seen_of("after").len()), (1, 1));
    let stored = world.cluster.stored().await;
    assert_ne!(stored.meta.epoch, old_epoch);
    let lost = format!("\"value\":{}", LOST / 100);
    assert!(!stored.log.iter().any(|row| format!("{row:?}").contains(&lost)), "nothing of it remains");
    world.finish_over_epochs().await;
}

/// D36: revisions and requests of the lost part are given out again for other contents, and nothing that is known by them
/// is taken for its namesake; a resource takes the first token of the new epoch, and none of the old one any more.
pub async fn d36_numbers_of_two_epochs_are_not_confused(case: Case) {
    let Restored { world, resource, old_epoch, old_head, lost, held, .. } = restored(&case).await;
    let of_old = |resource: &Resource| -> Vec<Named> {
        resource.taken().into_iter().filter(|named| named.epoch == old_epoch).collect()
    };
    let before = of_old(&resource).len();
    for value in 0..60 {
        world.set(1, key(value), NEW + value).await;
    }
    world.set(1, "running", NEW).await;
    world.cluster.server(0).flush().await.unwrap();
    assert!(world.cluster.server(0).snapshot().revision() > old_head);
    assert!(world.hooks_finish(0).await.finished, "no token of the new epoch was refused");
    // The runs that were lost with their requests come too late for the resource, and for the tree, if they come at all:
    // they are told to end, and made to after a while.
    drop(held);
    world.set(0, "late", NEW).await;
    assert!(world.hooks_finish(0).await.finished);
    let old = of_old(&resource);
    assert_eq!(old.len(), before, "none of the old epoch is taken any more");
    let new: Vec<Named> = resource.taken().into_iter().filter(|named| named.epoch != old_epoch).collect();
    assert_eq!(new.len(), 63);
    for named in &new {
        let highest = old.iter().filter(|old| old.key == named.key).map(|old| old.token).max().unwrap_or(0);
        assert!(named.token > highest, "{named:?} is above {highest}");
    }
    let old_requests: HashSet<RequestId> = old.iter().map(|named| named.request).collect();
    assert!(new.iter().any(|named| old_requests.contains(&named.request)), "numbers coincide");
    let old_keys: HashSet<&String> = old.iter().map(|named| &named.idempotency_key).collect();
    assert!(!new.iter().any(|named| old_keys.contains(&named.idempotency_key)));
    for server in world.cluster.running() {
        server.flush().await.unwrap();
        assert_eq!(server.snapshot().require(&world.store("running")).unwrap().value, NEW);
        assert_eq!(server.find_submission(lost).await.unwrap(), None);
        let mut resumed = server.changes(Some((old_epoch, old_head)));
        let item = within("a watch that resumes by the old numbers", resumed.next()).await;
        assert!(matches!(item, Some(FeedItem::Snapshot(_))), "{item:?}");
        let here = server.snapshot();
        let mut resumed = server.changes(Some((here.epoch(), old_head)));
        match within("a watch that resumes by the new ones", resumed.next()).await {
            Some(FeedItem::Transaction(applied)) => assert_eq!(applied.revision, old_head.next()),
            Some(FeedItem::Snapshot(snapshot)) => assert_eq!(snapshot.epoch(), here.epoch()),
            None => panic!("a watch goes on"),
        }
    }
    world.step(Duration::from_secs(2)).await;
    world.finish_over_epochs().await;
}
