//! What takes several servers to do: a clock that moves on under live leases, and a slot that moves between servers.

use std::time::Duration;

use tokio::time::Instant;

use super::Cluster;
use crate::clock::Clock;
use crate::cluster_hook::RegistrationEntity;
use crate::driver::{ServerRow, SlotId, SlotRow};
use crate::entity::Ref;

/// How long live servers may take to renew their leases, or a slot to move. Only a failure takes as long.
const LIMIT: Duration = Duration::from_secs(30);
/// How often the store is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(5);

impl Cluster {
    /// Moves the clock on in parts that leave live servers the time to renew their leases, however long their store takes
    /// for that. The lease of one that is killed, absent or held before its heartbeat ends where it is stepped past.
    /// [`Cluster::advance`] moves it in one go, past all leases if it is so far.
    ///
    /// # Panics
    /// If a live server does not renew its lease.
    pub async fn step(&self, by: Duration) {
        let shortest = self.servers.iter().map(|server| server.lease).min().unwrap_or(by);
        let part = (shortest / 5).max(Duration::from_millis(1));
        let mut left = by;
        while !left.is_zero() {
            let next = left.min(part);
            left -= next;
            self.advance(next);
            self.leases_renewed().await;
        }
    }

    /// Waits until every server whose lease still holds, and that can renew it, has done so at the clock's present time.
    async fn leases_renewed(&self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let now = self.clock.now();
            let (rows, _) = self.leases().await;
            let late: Vec<&str> = self
                .servers
                .iter()
                .filter(|server| {
                    let held = server.points.held().iter().any(|point| point.ends_with("-heartbeat"));
                    server.state.is_some() && !held && !server.faults.is_absent()
                })
                .filter(|server| {
                    // A killed server's row stays beside that of its next life.
                    let mut own =
                        rows.iter().filter(|row| *row.name == *server.name && row.lease_until > now).peekable();
                    own.peek().is_some() && !own.any(|row| row.lease_until.since(now) >= server.lease.mul_f64(0.7))
                })
                .map(|server| server.name.as_str())
                .collect();
            if late.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{late:?} did not renew their leases within {LIMIT:?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Moves the slot of a hook's key to a server, from whichever leases it, and returns when it is leased there. It passes on
    /// as it does when servers share slots out: the one before starts nothing more in it, releases it when its runs have
    /// ended, and the other one leases it; no lease has to run out. It stays there, whatever an even spread would have, for
    /// as long as that server lives and runs the hook.
    ///
    /// # Panics
    /// If the hook is not registered, or the server does not run it; if the slot does not come, naming the servers. That
    /// is so where a run in it does not end.
    pub async fn move_slot(&self, hook: &str, key: &str, to: usize) {
        self.move_slot_within(hook, key, to, LIMIT).await;
    }

    /// As [`Cluster::move_slot`], with a limit of the test's own.
    ///
    /// # Panics
    /// As [`Cluster::move_slot`].
    pub async fn move_slot_within(&self, hook: &str, key: &str, to: usize, limit: Duration) {
        let slot = self.slot_of(hook, key);
        let name = &self.servers[to].name;
        self.placement.place(slot, name.as_str().into());
        let deadline = Instant::now() + limit;
        loop {
            let (rows, slots) = self.leases().await;
            let owner = owner_of(slot, &rows, &slots, self.clock.now());
            if owner == Some(name.as_str()) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the slot of key {key} of hook {hook} did not move from {} to {name} within {limit:?}",
                owner.unwrap_or("nobody")
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The index of the server that leases the slot of a hook's key, if one does.
    ///
    /// # Panics
    /// If the hook is not registered.
    pub async fn owner_of(&self, hook: &str, key: &str) -> Option<usize> {
        let slot = self.slot_of(hook, key);
        let (rows, slots) = self.leases().await;
        let owner = owner_of(slot, &rows, &slots, self.clock.now())?;
        self.servers.iter().position(|server| server.name == owner)
    }

    fn slot_of(&self, hook: &str, key: &str) -> SlotId {
        let at: Ref<RegistrationEntity> = Ref::root(hook).unwrap_or_else(|error| panic!("{hook}: {error}"));
        let found = self.servers.iter().filter_map(|server| server.state.as_ref()).find_map(|state| {
            let registration = state.snapshot().get(&at).ok()??.clone();
            let layout = *registration.layouts.last()?;
            Some(layout.slot_of(registration.number(), key))
        });
        found.unwrap_or_else(|| panic!("no server has the registration of hook {hook}"))
    }
}

fn owner_of<'a>(slot: SlotId, rows: &'a [ServerRow], slots: &[SlotRow], now: crate::Timestamp) -> Option<&'a str> {
    let owner = slots.iter().find(|row| row.slot == slot)?.owner;
    rows.iter().find(|row| Some(row.id) == owner && row.lease_until > now).map(|row| &*row.name)
}
