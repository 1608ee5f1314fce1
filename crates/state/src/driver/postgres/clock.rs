//! The database's clock as this process reads it: an offset to the machine's monotonic clock, from the last answers.
//!
//! Leases are stored and judged by the database alone; the estimate is for `now` in hooks and for when to wake up.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::{Clock, SystemClock};
use crate::revision::Timestamp;

/// After so long the next answer counts, however long it took.
const SAMPLE_KEPT: Duration = Duration::from_secs(10);

/// A wait is looked at anew after so long at most, since the database's clock may be set.
const SLEEP_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
struct Sample {
    /// The database's time and the machine's at one moment.
    time: Timestamp,
    taken: Instant,
    /// How long the answer took; half of it is how wrong the sample may be.
    round_trip: Duration,
}

/// Clones are one clock.
#[derive(Debug, Clone, Default)]
pub(super) struct DatabaseClock(Arc<Mutex<Option<Sample>>>);

impl DatabaseClock {
    /// Takes in what the database said between two moments.
    pub(super) fn observe(&self, time: Timestamp, sent: Instant) {
        let now = Instant::now();
        let round_trip = now.duration_since(sent);
        let mut kept = self.0.lock();
        let better =
            kept.is_none_or(|kept| round_trip <= kept.round_trip || now.duration_since(kept.taken) > SAMPLE_KEPT);
        if better {
            *kept = Some(Sample { time, taken: sent + round_trip / 2, round_trip });
        }
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        match *self.0.lock() {
            Some(sample) => sample.time.after(sample.taken.elapsed()),
            // Before the first answer there is nothing that could be waited for.
            None => SystemClock.now(),
        }
    }

    fn sleep_until(&self, at: Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let clock = self.clone();
        Box::pin(async move {
            loop {
                // Also a time that has passed is waited for by the runtime: who waits for such ones again and again lets the
                // others run.
                tokio::time::sleep(at.since(clock.now()).min(SLEEP_MAX)).await;
                if at.since(clock.now()).is_zero() {
                    return;
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d34_the_estimate_follows_the_quickest_answer_and_runs_on_from_it() {
        let clock = DatabaseClock::default();
        let now = Instant::now();
        clock.observe(Timestamp(1_000_000), now);
        // An answer that took ten seconds says less than the one before.
        clock.observe(Timestamp(5_000_000), now.checked_sub(Duration::from_secs(8)).unwrap());
        let read = clock.now();
        assert!(read >= Timestamp(1_000_000) && read < Timestamp(2_000_000), "{read}");
    }
}
