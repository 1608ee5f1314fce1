//! Low watermarks: what lies at or below them is never read again, so they stay below all that is still to be done.

use std::time::Duration;

use crate::cluster_hook::points;
use crate::driver::{Call, Fence, Settle, Settled, StoredState};
use crate::testing::history::HistoryEvent;
use crate::{Outcome, QueueFilter, RequestState, Revision, Run};

use super::Case;
use super::support::{Probe, World, per_store, plain_key};

/// Watermarks are raised when they have a thousand revisions to go, or after seconds.
const LATER: u64 = 1_100;

/// When what failed is tried again, at the latest.
const BACKOFF: Duration = Duration::from_secs(60);

/// Servers that write entities behind all the time, and compact the log as far as it goes where that is wanted.
async fn upkept(case: &Case, compacts: bool) -> World {
    World::configured(&case.upkept(), 3, move |_, mut options| {
        options.log_keep = Duration::ZERO;
        options.entities_behind = Duration::from_millis(20);
        options.compact_every = if compacts { 1 } else { u64::MAX };
        options
    })
    .await
}

fn watermark(stored: &StoredState) -> Revision {
    stored.slots[0].watermark
}

async fn compacted_to(world: &World, revision: Revision) {
    // The log is kept for what is younger than the clock.
    world.cluster.advance(Duration::from_millis(10));
    let compacted = || async { world.cluster.meta().await.compacted >= revision };
    world.eventually("the log is compacted", compacted).await;
}

/// Changes two keys by turns, so many times.
async fn change(world: &World, times: u64) {
    let id = |value: u64| if value.is_multiple_of(2) { "x" } else { "y" };
    futures::future::join_all((0..times).map(|value| world.set_beside_others(2, id(value), value + 1_000))).await;
}

/// An old request fails and waits for its time above a thousand later ones that are acknowledged. Then its owner is gone:
/// before or after the watermark is raised past it, before or after what lies below the watermark is compacted away.
async fn gone_around_a_raise(case: &Case, killed: bool, raised: bool, compacted: bool) {
    let told = format!("killed: {killed}, raised: {raised}, compacted: {compacted}");
    let answer = |run: &Run| match (plain_key(run.key().as_str()), run.attempt()) {
        ("slow", 1) => Outcome::fail("not yet"),
        _ => Outcome::Done,
    };
    let mut world = upkept(case, compacted).await;
    let (earlier, first, second) = (Probe::new(), Probe::answering(answer), Probe::answering(answer));
    let registration = per_store("hook").slots(1).backoff(BACKOFF, BACKOFF);
    // A life before leaves a watermark, and something to compact below it.
    world.register(0, &registration, 8, &earlier).await;
    for value in 1..=20 {
        world.set(2, "earlier", value).await;
    }
    assert!(world.hooks_finish(2).await.finished);
    world.close(0).await;
    world.restart(0).await;
    world.register(0, &registration, 8, &first).await;
    world.spread("hook", 1).await;
    world.register(1, &registration, 8, &second).await;
    first.hold("slow");
    let slow = world.set(2, "slow", 1).await;
    first.started("slow", 1).await;
    change(&world, LATER).await;
    first.until("the others run", |probe| probe.seen().len() as u64 == LATER + 1).await;
    let stored = world.cluster.stored().await;
    assert!(watermark(&stored) < slow, "{told}");
    assert!(watermark(&stored) > Revision::ZERO, "{told}");
    if compacted {
        compacted_to(&world, watermark(&stored)).await;
    }
    let raise = world.cluster.points(0).hold(points::SLOT_BEFORE_WATERMARK);
    first.release("slow");
    raise.reached().await;
    let set_aside = || async {
        let stored = world.cluster.stored().await;
        assert!(watermark(&stored) < slow, "{told}: nothing is on record of it yet");
        stored.exceptions.iter().any(|exception| exception.request.revision == slow)
    };
    world.eventually("it is on record that it waits", set_aside).await;
    let mut stale = Some(raise);
    if raised {
        stale = None;
        let is_raised = || async { world.cluster.leases().await.1[0].watermark > slow };
        world.eventually("the watermark is raised", is_raised).await;
        if compacted {
            compacted_to(&world, slow).await;
        }
    }
    first.hold("going");
    world.set(2, "going", 1).await;
    first.started("going", 1).await;
    let row = world.cluster.stored().await.slots[0].clone();
    let points = world.cluster.points(0).clone();
    let mut holds = None;
    if killed {
        world.kill(0);
        stale = None;
    } else {
        holds = Some((points.hold(points::SLOT_BEFORE_HEARTBEAT), points.hold(points::SLOT_BEFORE_LAPSE)));
    }
    let leased = world.cluster.points(1).hold(points::SLOT_LEASED);
    world.step(Duration::from_secs(12)).await;
    leased.reached().await;
    if !killed {
        // What it had sent arrives now, and something that would reach further.
        let fence = Fence { slot: row.slot, token: row.token };
        let head = world.cluster.server(2).flush().await.unwrap();
        let driver = world.cluster.store().driver(crate::driver::Faults::new());
        let raise = Settle::Watermark { fence, to: head };
        assert_eq!(driver.settle(vec![raise]).await.unwrap(), [Settled::Refused], "{told}");
        if let Some(raise) = stale.take() {
            raise.release();
            let is_told = |line: &crate::testing::history::Line| {
                line.server == "server-0" && matches!(line.event, HistoryEvent::SlotLost { .. })
            };
            let told = || async { world.recorder.lines().iter().any(is_told) };
            world.eventually("it is told that its token is void", told).await;
        }
    }
    assert_eq!(watermark(&world.cluster.stored().await), row.watermark, "{told}");
    let _ = world.cluster.faults(1).take_calls();
    leased.release();
    second.started("going", 1).await;
    let pages = world.cluster.faults(1).take_calls().get(&Call::Pending).copied();
    assert!(!raised || pages == Some(1), "{told}: {pages:?} pages, and all but a few requests are below the watermark");
    let list = world.cluster.server(2).queue().list(QueueFilter::all()).await.unwrap();
    let entry = list.iter().find(|entry| plain_key(&entry.key) == "slow").unwrap();
    assert!(matches!(entry.state, RequestState::BackingOff(_)), "{told}: {entry:?}");
    assert_eq!((entry.request.revision, entry.attempts), (slow, 1), "{told}");
    drop(holds);
    first.release("going");
    world.step(BACKOFF).await;
    assert!(world.hooks_finish(2).await.finished, "{told}");
    let again: Vec<_> = second.seen().iter().map(|seen| (seen.key.clone(), seen.attempt, seen.after)).collect();
    assert_eq!(again, [("going".to_owned(), 1, Some(1)), ("slow".to_owned(), 2, Some(1))], "{told}");
    assert_eq!(first.seen().len() as u64, LATER + 2, "{told}");
    world.finish().await;
}

/// K47: the low watermark stays below what runs on, and what fails and waits; nothing is lost or repeated, wherever its
/// owner is killed.
pub async fn k47_the_low_watermark_stays_below_what_runs_on(case: Case) {
    for (raised, compacted) in [(false, false), (false, true), (true, false), (true, true)] {
        gone_around_a_raise(&case, true, raised, compacted).await;
    }
}

/// K47: the same where the owner is held past its lease, and then goes on to raise the watermark: that is refused.
pub async fn k47_a_stale_owner_does_not_raise_the_watermark(case: Case) {
    for (raised, compacted) in [(false, false), (false, true), (true, false), (true, true)] {
        gone_around_a_raise(&case, false, raised, compacted).await;
    }
}

/// K47: what a take-over and a start read does not grow with what was ever run.
pub async fn k47_what_a_take_over_and_a_start_read_does_not_grow(case: Case) {
    let mut world = upkept(&case, true).await;
    let probe = Probe::new();
    let registration = per_store("hook").slots(1);
    for server in [0, 1] {
        world.register(server, &registration, 8, &probe).await;
        world.spread("hook", 1).await;
    }
    let (mut owner, mut successor) = (0, 1);
    for round in 1..=4 {
        change(&world, 1_500).await;
        assert!(world.hooks_finish(2).await.finished);
        let head = world.cluster.server(2).flush().await.unwrap();
        compacted_to(&world, Revision(head.0 - 1_000)).await;
        let _ = world.cluster.faults(successor).take_calls();
        world.kill(owner);
        world.step(Duration::from_secs(12)).await;
        world.set(2, "next", round).await;
        probe.started("next", usize::try_from(round).unwrap()).await;
        let calls = world.cluster.faults(successor).take_calls();
        let pages = calls[&Call::Pending];
        assert!(pages <= 3, "{pages} pages of requests were read in round {round}");
        let _ = world.cluster.faults(owner).take_calls();
        world.restart(owner).await;
        let calls = world.cluster.faults(owner).take_calls();
        let pages = calls.get(&Call::ReadLog).copied().unwrap_or(0);
        assert!(pages <= 4, "{pages} pages of the log were read by the start in round {round}");
        let kept = world.cluster.stored().await.log.len();
        assert!(kept <= 1_010, "{kept} rows of the log are kept in round {round}");
        world.register(owner, &registration, 8, &probe).await;
        (owner, successor) = (successor, owner);
    }
    assert_eq!(probe.seen().len(), 4 * 1_501);
    world.finish().await;
}
