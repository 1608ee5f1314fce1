//! Two servers that both believe that they own a slot: whatever the one whose lease has ended still does is refused, and
//! the other goes on as if there were no such server.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cluster_hook::points;
use crate::driver::{
    DriverError, Exception, ExceptionState, Faults, Fence, Receipt, ReceiptOutcome, RequestedChange, ServerRow, Settle,
    Settled, StoredState,
};
use crate::testing::history::{HistoryEvent, Line};
use crate::{Outcome, RequestState, Run, Timestamp, Transaction, TransactionError, WriteError};

use super::super::within;
use super::Case;
use super::faults::count_of;
use super::support::{Effect, Probe, World, counted, effect, per_store, plain_key};

/// How the run of the server whose lease has ended ends.
const ENDS: [(&str, fn(&Run) -> Outcome); 5] = [
    ("done", |_| Outcome::Done),
    ("done with writes", counted),
    ("failed for the last time", |_| Outcome::fail("no")),
    ("a later time", |run| Outcome::RetryAt(Timestamp(run.now().0 + 600_000))),
    ("a later time with writes", |run| {
        let put = |tx: &mut Transaction| tx.put(&effect("later"), Effect { count: 1, last: 1 });
        Outcome::retry_at_with(Timestamp(run.now().0 + 600_000), put)
    }),
];

/// What the hook's code on the first server goes through.
struct Stale {
    run: Mutex<Option<Run>>,
    changed: tokio::sync::watch::Sender<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Waits,
    Runs,
    GoesOn,
    /// It was told that what it wrote in mid-run is refused.
    IsRefused,
}

impl Stale {
    async fn until(&self, step: Step) {
        let mut changed = self.changed.subscribe();
        within("a step of the run", changed.wait_for(|now| *now >= step)).await.unwrap();
    }

    /// Of key `a` the first run is held, writes in mid-run, and ends as it is told; all others are done.
    async fn run(&self, run: Run, end: fn(&Run) -> Outcome) -> Outcome {
        if plain_key(run.key().as_str()) != "a" || *self.changed.borrow() != Step::Waits {
            return Outcome::Done;
        }
        *self.run.lock() = Some(run.clone());
        self.changed.send_replace(Step::Runs);
        self.until(Step::GoesOn).await;
        let put = |tx: &mut Transaction| tx.put(&effect("mid-run"), Effect { count: 1, last: 1 });
        let written = run.write::<_, TransactionError, _>(put).await;
        assert!(matches!(written, Err(WriteError::Fenced)), "{written:?}");
        self.changed.send_replace(Step::IsRefused);
        end(&run)
    }
}

/// What the second server has, whatever the first one does: the slot, and what is on record of its requests.
fn owned(stored: &StoredState) -> String {
    let row = &stored.slots[0];
    format!("{row:?} {:?} {:?} {:?}", stored.receipts, stored.exceptions, stored.meta.head)
}

/// Everything that a driver can be asked to do for a token, under one that no longer holds.
async fn refused_by_the_driver(world: &World, run: &Run, row: ServerRow) {
    let driver = world.cluster.store().driver(Faults::new());
    let (fence, request) = (run.fence, run.request());
    let head = world.cluster.server(2).flush().await.unwrap();
    let change = RequestedChange {
        path: run.path().clone(),
        before: None,
        after: None,
        at: run.now(),
        attributes: Arc::new(run.attributes().clone()),
    };
    let exception = Exception {
        request,
        slot: fence.slot,
        state: ExceptionState::Dead,
        attempts: 1,
        deaths: 0,
        error: Some("no".into()),
        change,
    };
    let items = vec![
        Settle::Receipt(Receipt { request, fence, outcome: ReceiptOutcome::Done }),
        Settle::Exception { exception: Box::new(exception), fence },
        Settle::Watermark { fence, to: head },
    ];
    assert_eq!(driver.settle(items).await.unwrap(), [Settled::Refused; 3]);
    driver.release_slots(&[fence]).await.unwrap();
    let later = world.cluster.server(2).now().after(Duration::from_secs(60));
    let renewed = driver.heartbeat(ServerRow { lease_until: later, ..row }).await;
    assert!(matches!(renewed, Err(DriverError::LeaseLapsed)), "{renewed:?}");
}

async fn goes_on_past_its_lease(case: &Case, cut_off: bool, what: &str, end: fn(&Run) -> Outcome) {
    let told = format!("cut off: {cut_off}, {what}");
    let mut world = World::new(case, 3).await;
    let second = Probe::answering(counted);
    let registration = per_store("hook").slots(1).attempts(1);
    let stale = Arc::new(Stale { run: Mutex::default(), changed: tokio::sync::watch::Sender::new(Step::Waits) });
    let code = stale.clone();
    let hook = move |run: Run| {
        let code = code.clone();
        async move { code.run(run, end).await }
    };
    let _handle = world.cluster.server(0).register(registration.clone(), 8, Arc::new(hook)).await.unwrap();
    world.spread("hook", 1).await;
    world.register(1, &registration, 8, &second).await;
    second.hold("a");
    world.set(2, "a", 1).await;
    stale.until(Step::Runs).await;
    let run = stale.run.lock().take().unwrap();
    let row = world.cluster.stored().await.servers.into_iter().find(|row| &*row.name == "server-0").unwrap();
    let server = world.cluster.points(0).clone();
    // In either way it does not know that its lease has ended; cut off, its clock is held besides.
    let heartbeat = (!cut_off).then(|| server.hold(points::SLOT_BEFORE_HEARTBEAT));
    let lapse = server.hold(points::SLOT_BEFORE_LAPSE);
    world.cluster.faults(0).set_absent(cut_off);
    world.step(Duration::from_secs(12)).await;
    second.started("a", 1).await;
    world.cluster.faults(0).set_absent(false);
    let before = owned(&world.cluster.stored().await);
    refused_by_the_driver(&world, &run, row).await;
    assert_eq!(owned(&world.cluster.stored().await), before, "{told}");
    stale.changed.send_replace(Step::GoesOn);
    stale.until(Step::IsRefused).await;
    let is_refused = |line: &Line| match &line.event {
        HistoryEvent::Receipt { fence, durable: false, .. } | HistoryEvent::Held { fence, durable: false, .. } => {
            line.server == "server-0" && *fence == run.fence
        }
        _ => false,
    };
    let refused = || async { world.recorder.lines().iter().any(is_refused) };
    world.eventually(&format!("{told}: its end is refused"), refused).await;
    assert_eq!(owned(&world.cluster.stored().await), before, "{told}");
    let list = world.cluster.server(2).queue().list(crate::QueueFilter::all()).await.unwrap();
    let stands: Vec<_> = list.iter().map(|entry| (entry.attempts, entry.deaths, entry.state.clone())).collect();
    assert_eq!(stands, [(0, 1, RequestState::Waiting)], "{told}: as after any end of a lease");
    // It joins anew, and works.
    drop((heartbeat, lapse));
    let joined = |line: &Line| line.server == "server-0" && matches!(line.event, HistoryEvent::Joined { .. });
    let again = || async { world.recorder.lines().iter().filter(|line| joined(line)).count() == 2 };
    world.eventually(&format!("{told}: it joins anew"), again).await;
    second.release("a");
    world.set(2, "b", 1).await;
    assert!(world.hooks_finish(2).await.finished, "{told}");
    let seen = second.seen_of("a");
    assert_eq!((seen.len(), seen[0].attempt), (1, 1), "{told}");
    let stored = world.cluster.stored().await;
    let receipts: Vec<Fence> = stored
        .receipts
        .iter()
        .filter(|receipt| receipt.request == run.request())
        .map(|receipt| receipt.fence)
        .collect();
    assert!(matches!(receipts[..], [fence] if fence.token.0 == seen[0].token >> 24), "{told}: {receipts:?}");
    assert_eq!(count_of(&world, 2, "a").await, 1, "{told}");
    for trace in ["mid-run", "later"] {
        assert!(!world.cluster.server(2).snapshot().contains(effect(trace).path()), "{told}: {trace}");
    }
    world.finish().await;
}

/// K48: a server is stopped past its lease, or cut off with its clock held, while it runs a key that another runs by then.
/// It writes in mid-run, ends its run in every way, raises the watermark, releases the slot and renews its lease: all of
/// that is refused, and changes nothing for the other.
pub async fn k48_what_a_server_does_past_its_lease_is_refused(case: Case) {
    for cut_off in [false, true] {
        for (what, end) in ENDS {
            goes_on_past_its_lease(&case, cut_off, what, end).await;
        }
    }
}
