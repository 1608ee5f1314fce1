//! Hooks of a store that was restored from a backup: what was lost runs no more, and no number is taken for its namesake.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::driver::RequestId;
use crate::feed::FeedItem;
use crate::revision::{Epoch, Revision, SubmissionId};
use crate::{Outcome, Run, Transaction, TransactionError};

use super::super::within;
use super::Case;
use super::support::{Probe, Store, World, per_store, store};

/// A run, by all that names it to the world.
#[derive(Debug, Clone)]
struct Named {
    epoch: Epoch,
    request: RequestId,
    idempotency_key: String,
    token: u64,
}

/// Something outside that takes no token lower than it has seen.
#[derive(Clone, Default)]
struct Resource(Arc<Mutex<(u64, Vec<Named>)>>);

impl Resource {
    /// Whether it took the write.
    fn write(&self, run: &Run) -> bool {
        let mut inner = self.0.lock();
        let token = run.token().0;
        if token < inner.0 {
            return false;
        }
        inner.0 = token;
        let idempotency_key = run.idempotency_key();
        inner.1.push(Named { epoch: run.epoch(), request: run.request(), idempotency_key, token });
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
}

/// Two servers with a hook; one request is pending at the backup, fifty are made and run afterwards, one of them is still
/// running when the backup is restored.
async fn restored(case: &Case) -> Restored {
    let mut world = World::new(case, 2).await;
    let (probe, resource) = (Probe::new(), Resource::default());
    let outside = resource.clone();
    probe.answer(move |run| if outside.write(run) { Outcome::Done } else { Outcome::fail("its token is too low") });
    world.register_everywhere(&per_store("hook").attempts(1), 64, &probe).await;
    world.spread("hook", 2).await;
    for value in 0..5 {
        world.set(0, format!("before-{value}"), value).await;
    }
    world.hooks_finish(0).await;
    probe.hold("pending");
    world.set(0, "pending", 1).await;
    probe.started("pending", 1).await;
    let backup = world.cluster.store().back_up().await.unwrap();
    for value in 0..49 {
        world.set(0, format!("lost-{value}"), value).await;
    }
    probe
        .until("what will be lost has run", |probe| {
            probe.seen().iter().filter(|seen| seen.key.starts_with("lost-")).count() == 49
        })
        .await;
    probe.hold("lost-running");
    let lost = SubmissionId::random();
    let write = world.cluster.server(0).transaction().submission(lost);
    let put = |tx: &mut Transaction| tx.put(&store("lost-running"), Store { value: 1 });
    let old_head = write.write::<_, TransactionError, _>(put).await.unwrap().revision;
    probe.started("lost-running", 1).await;
    for server in world.cluster.running() {
        server.flush().await.unwrap();
    }
    let old_epoch = world.cluster.server(0).snapshot().epoch();
    world.cluster.store().restore(backup).await.unwrap();
    for server in world.cluster.running() {
        server.flush().await.unwrap();
        assert_ne!(server.snapshot().epoch(), old_epoch);
    }
    Restored { world, probe, resource, old_epoch, old_head, lost }
}

/// D35: after a restore no hook runs for what was lost, what was pending at the backup runs, and what had run before it
/// does not run again.
pub async fn d35_hooks_run_for_what_the_backup_has(case: Case) {
    let Restored { world, probe, old_epoch, .. } = restored(&case).await;
    let started = probe.seen().len();
    // The run of the old epoch ends only when that of the new one has begun.
    probe.until("what was pending starts again", |probe| probe.seen_of("pending").len() == 2).await;
    probe.release("pending");
    probe.release("lost-running");
    world.set(1, "after", 1).await;
    assert!(world.hooks_finish(1).await.finished);
    let after: Vec<String> =
        probe.seen()[started.min(probe.seen().len())..].iter().map(|seen| seen.key.clone()).collect();
    let may: HashSet<&str> = ["pending", "after"].into();
    assert!(after.iter().all(|key| may.contains(key.as_str())), "{after:?}");
    let stored = world.cluster.stored().await;
    assert_ne!(stored.meta.epoch, old_epoch);
    assert!(!stored.log.iter().any(|row| format!("{row:?}").contains("lost-")), "nothing of it remains");
    world.finish_over_epochs().await;
}

/// D36: revisions and requests of the lost part are given out again for other contents, and nothing that is known by them
/// is taken for its namesake; a resource takes the first token of the new epoch, and none of the old one any more.
pub async fn d36_numbers_of_two_epochs_are_not_confused(case: Case) {
    let Restored { world, probe, resource, old_epoch, old_head, lost } = restored(&case).await;
    let before = resource.taken();
    probe.release("pending");
    for value in 0..60 {
        world.set(1, format!("new-{value}"), value).await;
    }
    world.cluster.server(0).flush().await.unwrap();
    assert!(world.cluster.server(0).snapshot().revision() > old_head);
    probe
        .until("the new ones run", |probe| {
            probe.ended_of("pending") >= 1 && (0..60).all(|value| probe.ended_of(&format!("new-{value}")) >= 1)
        })
        .await;
    let taken = resource.taken();
    let (old, new): (Vec<Named>, Vec<Named>) = taken.into_iter().partition(|named| named.epoch == old_epoch);
    // Whatever of the old epoch ran late was refused by its token.
    assert_eq!(old.len(), before.len());
    assert!(new.len() >= 60, "each token of the new epoch was taken");
    let highest = old.iter().map(|named| named.token).max().unwrap();
    assert!(new.iter().all(|named| named.token > highest), "above {highest}");
    let old_requests: HashSet<RequestId> = old.iter().map(|named| named.request).collect();
    assert!(new.iter().any(|named| old_requests.contains(&named.request)), "numbers coincide");
    let old_keys: HashSet<&String> = old.iter().map(|named| &named.idempotency_key).collect();
    assert!(!new.iter().any(|named| old_keys.contains(&named.idempotency_key)));
    // The run that was lost with its request comes too late for the resource, and for the tree.
    probe.release("lost-running");
    probe.until("it ends", |probe| probe.ended_of("lost-running") >= 1).await;
    assert_eq!(resource.taken().iter().filter(|named| named.epoch == old_epoch).count(), old.len());
    assert!(world.hooks_finish(1).await.finished);
    for server in world.cluster.running() {
        server.flush().await.unwrap();
        assert!(!server.snapshot().contains(store("lost-running").path()));
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
