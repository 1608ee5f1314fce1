//! How much one caller may ask: a rate with a burst, for each of many callers, in bounded memory.
//!
//! A caller's whole state is one time: when it would have earned back all that it has asked for (the generic cell rate
//! algorithm). A caller whose time has come is as one that was never seen, and forgotten when there is no room.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Callers are spread over so many maps, so that they seldom wait for one another.
const SHARDS: usize = 16;

/// How many callers one map remembers.
const CALLERS_MAX: usize = 1_024;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// The bearer of this token.
    Token(String),
    /// Somebody at this address.
    Peer(IpAddr),
}

impl Who {
    /// Whoever has this address has the whole `/64` around it, with IPv6.
    pub(crate) fn peer(address: IpAddr) -> Self {
        Self::Peer(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
            v4 => v4,
        })
    }
}

/// One limit for each of many callers.
pub(crate) struct Buckets {
    started: Instant,
    /// What one request costs of a caller's time.
    cost: Duration,
    /// How far ahead of its time a caller may be.
    ahead_max: Duration,
    /// When each caller has earned back what it asked for, since `started`.
    shards: Box<[Mutex<HashMap<Who, Duration>>]>,
    hash: RandomState,
}

impl Buckets {
    /// A limit of `per_second` in the long run, and of `burst` at once.
    pub(crate) fn new(per_second: f64, burst: u32, started: Instant) -> Self {
        let cost = Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(Duration::from_secs(1));
        let shards = (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect();
        let ahead_max = cost.saturating_mul(burst.max(1));
        Self { started, cost, ahead_max, shards, hash: RandomState::new() }
    }

    /// Takes one; how long the caller has to wait if there is none.
    pub(crate) fn take(&self, who: Who, now: Instant) -> Result<(), Duration> {
        let now = now.saturating_duration_since(self.started);
        let place = (self.hash.hash_one(&who) % SHARDS as u64) as usize;
        let mut callers = self.shards[place].lock();
        let paid = callers.get(&who).copied().unwrap_or_default().max(now) + self.cost;
        let wait = paid.saturating_sub(now).saturating_sub(self.ahead_max);
        if !wait.is_zero() {
            return Err(wait);
        }
        if callers.len() >= CALLERS_MAX && !callers.contains_key(&who) {
            make_room(&mut callers, now);
        }
        callers.insert(who, paid);
        Ok(())
    }

    #[cfg(test)]
    fn remembered(&self) -> usize {
        self.shards.iter().map(|callers| callers.lock().len()).sum()
    }
}

/// Forgets those who have earned back everything; if that is nobody, whoever is closest to it.
fn make_room(callers: &mut HashMap<Who, Duration>, now: Duration) {
    callers.retain(|_, paid| *paid > now);
    if callers.len() >= CALLERS_MAX
        && let Some(first) = callers.iter().min_by_key(|(_, paid)| **paid).map(|(who, _)| who.clone())
    {
        callers.remove(&first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> Who {
        Who::peer(IpAddr::from(number.to_be_bytes()))
    }

    #[test]
    fn a_burst_passes_at_once_and_then_one_by_one_as_time_goes() {
        let start = Instant::now();
        let buckets = Buckets::new(10.0, 3, start);
        for _ in 0..3 {
            buckets.take(peer(1), start).unwrap();
        }
        let wait = buckets.take(peer(1), start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        // Asking in vain costs nothing: after the time that was named there is one, and no second.
        buckets.take(peer(1), start + wait).unwrap();
        buckets.take(peer(1), start + wait).unwrap_err();
        // Others are not concerned.
        buckets.take(peer(2), start).unwrap();
        // A long pause earns a burst and no more.
        let later = start + Duration::from_secs(3_600);
        for _ in 0..3 {
            buckets.take(peer(1), later).unwrap();
        }
        buckets.take(peer(1), later).unwrap_err();
    }

    #[test]
    fn memory_is_bounded_however_many_ask() {
        let start = Instant::now();
        let buckets = Buckets::new(1.0, 2, start);
        for number in 0..100_000 {
            buckets.take(peer(number), start).unwrap();
        }
        assert!(buckets.remembered() <= SHARDS * CALLERS_MAX, "{}", buckets.remembered());
    }

    #[test]
    fn an_address_is_its_whole_network_with_ipv6() {
        let who = |text: &str| Who::peer(text.parse().unwrap());
        assert_eq!(who("2001:db8::1"), who("2001:db8::ffff:1"));
        assert_ne!(who("2001:db8::1"), who("2001:db8:0:1::1"));
        assert_eq!(who("::ffff:192.0.2.1"), who("192.0.2.1"));
        assert_ne!(who("192.0.2.1"), who("192.0.2.2"));
    }
}
