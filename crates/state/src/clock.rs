//! The clock belongs to the driver: leases, retry times and `now` inside hooks are read from it, so that tests can
//! hold and step it, and so that servers with clocks of their own agree (PostgreSQL: the database's clock).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::revision::Timestamp;

/// Where a driver reads the time, and how its servers wait for a time to come.
pub trait Clock: Send + Sync + 'static {
    /// The time now. May be stepped back; what must only rise (revisions, tokens) never depends on it.
    fn now(&self) -> Timestamp;

    /// Ends when `now()` has reached `at`. Dropping the future cancels the wait.
    fn sleep_until(&self, at: Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    fn sleep_until(&self, at: Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let wait = at.since(self.now());
        Box::pin(tokio::time::sleep(wait))
    }
}

/// A clock that stands still until a test steps it.
#[derive(Debug, Clone)]
pub struct ManualClock {
    now: Arc<watch::Sender<Timestamp>>,
}

impl ManualClock {
    /// A clock that stands at `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        ManualClock { now: Arc::new(watch::Sender::new(start)) }
    }

    /// Moves the clock on, and wakes what waited for a time that has now come.
    pub fn advance(&self, by: Duration) {
        self.now.send_modify(|now| *now = now.after(by));
    }

    /// Sets the clock, back too.
    pub fn set(&self, to: Timestamp) {
        self.now.send_replace(to);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.borrow()
    }

    fn sleep_until(&self, at: Timestamp) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut now = self.now.subscribe();
        Box::pin(async move {
            // The sender lives as long as a clock does; if all are gone, nobody is left to wait for the time.
            let _ = now.wait_for(|now| *now >= at).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn d34_a_manual_clock_wakes_exactly_what_it_has_reached() {
        let clock = ManualClock::new(Timestamp(1_000));
        let early = clock.sleep_until(Timestamp(1_500));
        let mut late = clock.sleep_until(Timestamp(2_500));
        clock.advance(Duration::from_secs(1));
        early.await;
        assert!(futures::poll!(&mut late).is_pending());
        clock.set(Timestamp(500));
        assert!(futures::poll!(&mut late).is_pending());
    }
}
