//! The key queue, case by case and in random histories, on a [`Bench`] that has what it asks to be stored become durable when
//! a test says so.
//!
//! | file | has |
//! |---|---|
//! | this one | the bench |
//! | `turns` | what starts next: the order within a key, and that keys do not hold each other up |
//! | `latest_state` | `LatestState`: what a run covers, and what is left to the next one |
//! | `failures` | runs that failed, were interrupted, or ask to be called later: pauses, attempts, dead letters |
//! | `cancelling` | requests that an operator cancels, whatever is under way just then |
//! | `loading` | what a new owner finds of the one before it |
//! | `parking` | copies out of the log, and the low watermark that they let rise |
//! | `missing` | a bounded memory: what does not fit is left in the log, and read again |
//! | `next_layout` | a slot whose requests go to the next layout |
//! | `histories` | random histories, held against a naive reader of the log |

mod cancelling;
mod failures;
mod histories;
mod latest_state;
mod loading;
mod missing;
mod next_layout;
mod parking;
mod turns;

use super::*;
use crate::driver::HookNumber;

const NOW: Timestamp = Timestamp(1_000_000);
const HEAD: Revision = Revision(1_000_000);

fn id(revision: u64) -> RequestId {
    RequestId { revision: Revision(revision), sequence: 0, hook: HookNumber(1) }
}

fn policy(attempts: Option<u32>) -> RetryPolicy {
    RetryPolicy { attempts, first: Duration::from_secs(1), max: Duration::from_secs(8) }
}

/// A queue with the commands that it gave.
struct Bench {
    queue: SlotQueue<u64>,
    out: Vec<Command<u64>>,
    now: Timestamp,
}

impl Bench {
    fn new(delivery: Delivery) -> Bench {
        Bench::bounded(delivery, 1_000)
    }

    fn bounded(delivery: Delivery, bound: usize) -> Bench {
        let mut queue = SlotQueue::loading(delivery, policy(Some(3)), bound);
        let mut out = Vec::new();
        queue.activate(NOW, Revision(0), false, &mut out);
        Bench { queue, out, now: NOW }
    }

    fn request(&mut self, revision: u64, key: &str) {
        self.queue.request(id(revision), key, revision, &mut self.out);
        self.queue.passed(Revision(revision));
    }

    fn start(&mut self) -> Option<Started<u64>> {
        self.start_at(HEAD)
    }

    fn start_at(&mut self, snapshot: Revision) -> Option<Started<u64>> {
        self.queue.start(snapshot, true, &mut self.out)
    }

    fn end(&mut self, started: &Started<u64>, end: RunEnd) {
        self.queue.ended(started.key, started.run, end, self.now, 0.0, &mut self.out);
    }

    /// Everything that was asked to be stored becomes durable; says what it was.
    fn store(&mut self) -> Vec<Item<u64>> {
        let mut stored = Vec::new();
        while !self.out.is_empty() {
            for command in std::mem::take(&mut self.out) {
                if let Command::Settle { item, ticket } = command {
                    self.queue.settled(ticket, &mut self.out);
                    stored.push(item);
                }
            }
        }
        stored
    }

    fn run(&mut self, end: RunEnd) -> RequestId {
        let started = self.start().expect("something can start");
        self.end(&started, end);
        self.store();
        started.request
    }

    fn names(&mut self) -> Vec<(String, u64)> {
        std::iter::from_fn(|| self.start()).map(|run| (run.name.to_string(), run.request.revision.0)).collect()
    }
}

fn failed() -> RunEnd {
    RunEnd::Failed("no".to_owned())
}
