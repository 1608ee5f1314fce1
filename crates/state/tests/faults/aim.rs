//! Faults that hit a server at one point of its work: it is told beforehand, comes to the point, says so, and is stopped,
//! killed or held there. By chance alone a fault would hardly ever meet a lock, a receipt or a compaction.

use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use tidegate_state::cluster_hook::points;
use tidegate_state::testing::history::{HistoryEvent, Recorder};
use tidegate_state::testing::points::{Hold, Points, name as point};
use tokio::sync::oneshot;

use super::server::say;

/// How long a server has to come to a point. Under load it is at each within a moment, unless it is cut off.
const REACH_LIMIT: Duration = Duration::from_millis(1_500);
/// How long after that a held server waits at most to be let go.
const HOLD_LIMIT: Duration = Duration::from_millis(500);
/// How long a server that goes on is kept from noticing that its lease has ended, until what it sends late is answered.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(50);

/// Where a server is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Aim {
    /// It holds the write lock.
    WriteLock,
    /// Its commit is about to be sent, under the write lock.
    Commit,
    /// It has found that its lease holds and that a run may begin, and the run begins when its slot is another's.
    Start,
    /// It owns slots with runs going, and one has ended whose writes are about to be sent with the receipt.
    Completion,
    /// The same with receipts alone.
    Receipt,
    /// It writes the entities behind.
    Entities,
    /// It compacts.
    Compaction,
    /// It prunes records.
    Pruning,
}

impl Aim {
    pub(crate) const ALL: [Aim; 8] = [
        Aim::WriteLock,
        Aim::Completion,
        Aim::Entities,
        Aim::Receipt,
        Aim::Compaction,
        Aim::Start,
        Aim::Commit,
        Aim::Pruning,
    ];

    fn point(self) -> &'static str {
        match self {
            Aim::WriteLock => point::COMMIT_LOCKED,
            Aim::Commit => point::COMMIT_BEFORE_COMMIT,
            Aim::Start => points::RUN_STARTING,
            Aim::Completion => points::RUN_BEFORE_COMPLETION,
            Aim::Receipt => points::RUN_BEFORE_RECEIPT,
            Aim::Entities => point::UPKEEP_BEFORE_ENTITIES,
            Aim::Compaction => point::UPKEEP_COMPACTION,
            Aim::Pruning => point::UPKEEP_PRUNING,
        }
    }

    /// Whether the point lies before what is to be hit, so that it is hit a moment after it.
    fn is_before(self) -> bool {
        matches!(self, Aim::Entities | Aim::Compaction | Aim::Pruning)
    }

    /// Whether what a stopped server sends when it goes on is late.
    fn is_late(self) -> bool {
        matches!(self, Aim::Completion | Aim::Receipt)
    }
}

/// What a server does to itself at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hit {
    Stop,
    Kill,
}

/// What a server is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HitAt {
    pub(crate) aim: Aim,
    pub(crate) hit: Hit,
    /// How long after a point that lies before what is meant, in microseconds.
    pub(crate) after_us: u64,
}

/// Comes to the point; says `missed` where it does not.
async fn reach(points: &Points, aim: Aim) -> Option<Hold> {
    let hold = points.hold(aim.point());
    if tokio::time::timeout(REACH_LIMIT, hold.reached_within(REACH_LIMIT * 2)).await.is_err() {
        say("missed");
        return None;
    }
    Some(hold)
}

/// Comes to the point and hits itself; says `at`, or `missed` where it does not come there.
pub(crate) async fn hit(points: Points, recorder: Recorder, told: HitAt) {
    let Some(hold) = reach(&points, told.aim).await else { return };
    // Whoever wakes up from a stop may notice at once that its lease is over, or send first what it was about to send: here it
    // is the second, which the database has to refuse.
    let unaware = [points::SLOT_BEFORE_HEARTBEAT, points::SLOT_BEFORE_LAPSE];
    let unaware = told.aim.is_late().then(|| unaware.map(|point| points.hold(point)));
    let refused_before = refused(&recorder);
    let hold = if told.aim.is_before() {
        drop(hold);
        tokio::time::sleep(Duration::from_micros(told.after_us)).await;
        None
    } else {
        Some(hold)
    };
    say("at");
    let signal = match told.hit {
        Hit::Stop => Signal::STOP,
        Hit::Kill => Signal::KILL,
    };
    kill_process(getpid(), signal).unwrap();
    // From here on it goes on.
    drop(hold);
    if let Some(unaware) = unaware {
        let answered = async {
            while refused(&recorder) == refused_before {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(ANSWER_LIMIT, answered).await;
        drop(unaware);
    }
}

fn refused(recorder: &Recorder) -> usize {
    let is_refused = |event: &HistoryEvent| matches!(event, HistoryEvent::Receipt { durable: false, .. });
    recorder.lines().iter().filter(|line| is_refused(&line.event)).count()
}

/// Comes to the point, says `at`, and is held there until it may go on; says `missed` where it does not come there.
pub(crate) async fn hold(points: Points, aim: Aim, go: oneshot::Receiver<()>) {
    let Some(_hold) = reach(&points, aim).await else { return };
    say("at");
    let _ = tokio::time::timeout(HOLD_LIMIT, go).await;
}
