//! Contracting the tables to this build's format, once nothing of the release before is left.
//!
//! While a server of that release is there, this one writes what that one reads. Who is there is who leases: one that has
//! registered no hook leases nothing and is not seen here: it reads and writes on until then, and is refused from then on.
//!
//! # Invariants
//! - Leases that end because the database was away, or because an epoch began, are no leaving. So nobody of the release before
//!   was seen for a while, at every look, before it counts as gone.
//! - What is judged when the tables are contracted is what heartbeats and joins have committed by then, and no commit and no
//!   joining goes on beside it.

use std::time::{Duration, Instant};

use super::super::DriverError;
use super::connection::{Call, values};
use super::driver::PostgresDriver;
use super::entities::as_driver_error;
use super::schema::FORMAT;
use super::session::write_lock_call;
use super::settlement::clock_time;
use super::slots::ORDER;
use crate::revision::Epoch;

/// The condition that a live server does not know this build's format.
macro_rules! older_is_there {
    () => {
        concat!(
            "EXISTS (SELECT FROM servers o WHERE o.lease_until > ",
            clock_time!("$1"),
            " AND NOT EXISTS (SELECT FROM server_formats f WHERE f.server = o.id AND f.format >= $2::integer))"
        )
    };
}

const LOOK: &str = concat!("SELECT ", older_is_there!());

/// A heartbeat that has begun before is waited for.
const SERVERS: &str = "SELECT FROM servers ORDER BY id FOR SHARE";

const CONTRACT: &str =
    concat!("UPDATE meta SET format = $2 WHERE format < $2 AND epoch = $3 AND NOT ", older_is_there!());

/// Since when a server has seen nobody of the release before, at every look in this epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Alone {
    /// It has not looked, or has seen somebody.
    #[default]
    No,
    Since(Instant, Epoch),
}

impl Alone {
    /// What a look at this moment makes of it.
    fn next(self, epoch: Epoch, is_alone: bool, at: Instant) -> Alone {
        match self {
            _ if !is_alone => Alone::No,
            Alone::Since(begun, before) if before == epoch => Alone::Since(begun, epoch),
            Alone::No | Alone::Since(..) => Alone::Since(at, epoch),
        }
    }

    /// Whether that has been so for long enough.
    fn is_over(self, at: Instant, after: Duration) -> bool {
        match self {
            Alone::No => false,
            Alone::Since(begun, _) => at - begun >= after,
        }
    }
}

/// Looks whether the release before is still there, and contracts the tables when it has gone.
pub(super) async fn contract(driver: &PostgresDriver, epoch: Epoch) -> Result<(), DriverError> {
    let shared = driver.shared();
    let given = || values![shared.now_given(), FORMAT.cast_signed()];
    let rows = driver.read(vec![Call::new(LOOK, given())]).await?;
    let is_alone = !rows[0].first().is_none_or(|row| row.get(0));
    let at = Instant::now();
    {
        let mut alone = driver.links.alone.lock();
        *alone = alone.next(epoch, is_alone, at);
        if !alone.is_over(at, shared.options.contract_after) {
            return Ok(());
        }
        // Should it fail, others have waited behind it: not again before that time has passed once more.
        *alone = Alone::No;
    }
    let mut contract = given();
    contract.push(Box::new(epoch.0));
    // In the order in which taking slots locks, so that nobody waits for both of these.
    let calls = vec![
        write_lock_call(shared),
        Call::plain(ORDER),
        Call::plain("SELECT FROM meta FOR NO KEY UPDATE"),
        Call::plain(SERVERS),
        Call::new(CONTRACT, contract),
    ];
    let (transaction, _) = driver.links.upkeep.begin(calls).await?;
    transaction.commit(Vec::new()).await.map_err(as_driver_error).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d39_the_release_before_is_gone_once_it_was_not_seen_for_a_while() {
        let (epoch, other) = (Epoch(uuid::Uuid::from_u128(1)), Epoch(uuid::Uuid::from_u128(2)));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let looks = |looks: &[(u64, Epoch, bool)]| {
            let alone = looks.iter().fold(Alone::No, |alone, look| alone.next(look.1, look.2, at(look.0)));
            looks.last().is_some_and(|last| alone.is_over(at(last.0), Duration::from_secs(120)))
        };
        let is_alone = true;
        assert!(!looks(&[]));
        assert!(!looks(&[(0, epoch, is_alone)]), "its lease may have ended while the database was away");
        assert!(!looks(&[(0, epoch, is_alone), (60, epoch, is_alone)]));
        assert!(looks(&[(0, epoch, is_alone), (60, epoch, is_alone), (120, epoch, is_alone)]));
        assert!(!looks(&[(0, epoch, is_alone), (60, epoch, false), (120, epoch, is_alone)]), "it was there in between");
        assert!(
            !looks(&[(0, epoch, is_alone), (60, other, is_alone), (120, other, is_alone)]),
            "all leases have ended"
        );
    }
}
