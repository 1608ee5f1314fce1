//! When a request is made again, and after how long.

use std::time::{Duration, Instant};

use uuid::Uuid;

/// The longest pause between two attempts. A server that restarts is noticed within it.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// The longest pause before the second attempt.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Whether a request may be made again after it may have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It leads to the same state however often it is made.
    Always,
    /// Only if it surely did not arrive.
    UnlessSent,
}

/// Attempts of one request, and the time they may take together.
#[derive(Debug)]
pub(crate) struct Attempts {
    started: Instant,
    patience: Duration,
    failures: u32,
}

impl Attempts {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { started: Instant::now(), patience, failures: 0 }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Notes a failure. The pause until the next attempt, or `None` if the time is over.
    pub(crate) fn failed(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        let pause = pause(self.failures, random());
        let left = self.patience.checked_sub(self.started.elapsed())?;
        (!left.is_zero()).then(|| pause.min(left))
    }

    /// Notes that it works again: later failures start with short pauses and the full time.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::new(self.patience);
    }
}

/// The pause after so many failures: a random one between a half and the whole of a step that
/// doubles up to a bound, so that clients that lost the same server don't come back together.
fn pause(failures: u32, random: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let step = PAUSE_FIRST.saturating_mul(1 << doublings).min(PAUSE_MAX);
    let half = step / 2;
    let share = (random % 1024) as u32;
    half + half * share / 1024
}

/// Random bits from the operating system, by way of a random UUID.
fn random() -> u64 {
    (Uuid::new_v4().as_u128() & u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_are_never_zero() {
        for random in [0, 1, 511, 1023, u64::MAX] {
            let mut before = Duration::ZERO;
            for failures in 1..100 {
                let now = pause(failures, random);
                assert!(now >= PAUSE_FIRST / 2, "{now:?}");
                assert!(now <= PAUSE_MAX, "{now:?}");
                assert!(now >= before, "{failures}: {before:?} then {now:?}");
                before = now;
            }
        }
    }

    #[test]
    fn without_patience_there_is_one_attempt() {
        assert_eq!(Attempts::new(Duration::ZERO).failed(), None);
    }
}
