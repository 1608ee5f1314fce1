//! Until when this server's lease holds, for runs that are about to begin: they are elsewhere than who renews it.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::revision::Timestamp;

/// The end of the lease, by the machine's own monotonic clock and by the driver's.
pub(crate) struct LeaseEnd {
    clock: Arc<dyn Clock>,
    end: Mutex<Option<(Instant, Timestamp)>>,
}

impl LeaseEnd {
    /// Of a server without a lease.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> LeaseEnd {
        LeaseEnd { clock, end: Mutex::new(None) }
    }

    /// The lease holds until then.
    pub(crate) fn renewed(&self, until: Instant, until_by_clock: Timestamp) {
        *self.end.lock() = Some((until, until_by_clock));
    }

    /// Whether it holds by both clocks.
    pub(crate) fn holds(&self) -> bool {
        let end = *self.end.lock();
        end.is_some_and(|(until, by_clock)| Instant::now() < until && self.clock.now() < by_clock)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn k06_a_lease_holds_until_the_first_of_both_clocks_says_that_it_has_ended() {
        let clock = Arc::new(ManualClock::new(Timestamp(1_000)));
        let lease = LeaseEnd::new(clock.clone());
        assert!(!lease.holds(), "before there is one");
        let later = Instant::now() + Duration::from_secs(1_000);
        lease.renewed(later, Timestamp(2_000));
        assert!(lease.holds());
        lease.renewed(Instant::now(), Timestamp(2_000));
        assert!(!lease.holds(), "by the machine's own clock");
        lease.renewed(later, Timestamp(2_000));
        clock.advance(Duration::from_secs(1));
        assert!(!lease.holds(), "by the driver's clock");
    }
}
