//! Who leases what: the rules of servers, slots and tokens, apart from where their rows are stored.
//!
//! Both drivers in this crate keep one of these under their write order and store what [`LeaseChanges`] says, so that a
//! rule of invariants 3 and 4 is written once.

use std::collections::BTreeMap;

use super::{DriverError, Fence, ServerId, ServerRow, SlotId, SlotRow, SlotToken};
use crate::revision::{Revision, Timestamp};

/// The rows of servers and slots, and the token counter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leases {
    servers: BTreeMap<ServerId, ServerRow>,
    slots: BTreeMap<SlotId, SlotRow>,
    token_counter: SlotToken,
}

/// The rows that an operation has changed, for a driver to store, and for a copy to follow.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeaseChanges {
    pub(crate) servers: Vec<ServerRow>,
    pub(crate) servers_gone: Vec<ServerId>,
    pub(crate) slots: Vec<SlotRow>,
    pub(crate) token_counter: Option<SlotToken>,
}

impl Leases {
    pub(crate) fn new(servers: Vec<ServerRow>, slots: Vec<SlotRow>, token_counter: SlotToken) -> Self {
        Leases {
            servers: servers.into_iter().map(|server| (server.id, server)).collect(),
            slots: slots.into_iter().map(|slot| (slot.slot, slot)).collect(),
            token_counter,
        }
    }

    pub(crate) fn rows(&self) -> (Vec<ServerRow>, Vec<SlotRow>) {
        (self.servers.values().cloned().collect(), self.slots.values().cloned().collect())
    }

    pub(crate) fn token_counter(&self) -> SlotToken {
        self.token_counter
    }

    /// Brings a copy to the state that the changes came from.
    pub(crate) fn follow(&mut self, changes: &LeaseChanges) {
        for server in &changes.servers {
            self.servers.insert(server.id, server.clone());
        }
        for id in &changes.servers_gone {
            self.servers.remove(id);
        }
        for slot in &changes.slots {
            self.slots.insert(slot.slot, slot.clone());
        }
        if let Some(counter) = changes.token_counter {
            self.token_counter = counter;
        }
    }

    fn lives(&self, server: ServerId, now: Timestamp) -> bool {
        self.servers.get(&server).is_some_and(|row| row.lease_until > now)
    }

    /// A token holds while its slot has not passed on and its owner's lease is not over.
    pub(crate) fn holds(&self, fence: &Fence, now: Timestamp) -> bool {
        self.slots
            .get(&fence.slot)
            .is_some_and(|row| row.token == fence.token && row.owner.is_some_and(|owner| self.lives(owner, now)))
    }

    /// The lowest watermark of all slots; none if there is no slot.
    pub(crate) fn watermark_min(&self) -> Option<Revision> {
        self.slots.values().map(|slot| slot.watermark).min()
    }

    /// Enters a server. One that comes under the id that it had before owns nothing any more: the tokens that it held
    /// while its lease was over must not come back to life.
    pub(crate) fn join(&mut self, server: ServerRow, now: Timestamp) -> LeaseChanges {
        let mut changes = self.leave(server.id);
        // Rows of dead servers go once nothing names them; a slot of theirs passes on with its next owner.
        let forgotten: Vec<ServerId> = self
            .servers
            .values()
            .filter(|row| row.lease_until <= now && !self.slots.values().any(|slot| slot.owner == Some(row.id)))
            .map(|row| row.id)
            .collect();
        for id in forgotten {
            self.servers.remove(&id);
            changes.servers_gone.push(id);
        }
        changes.servers_gone.retain(|id| *id != server.id);
        self.servers.insert(server.id, server.clone());
        changes.servers.push(server);
        changes
    }

    /// Renews a lease. A heartbeat that lands late neither takes back what a later one has renewed nor lets a server that
    /// drains have slots again.
    pub(crate) fn heartbeat(&mut self, server: ServerRow, now: Timestamp) -> Result<LeaseChanges, DriverError> {
        let Some(there) = self.servers.get(&server.id).filter(|there| there.lease_until > now) else {
            return Err(DriverError::LeaseLapsed);
        };
        let server = ServerRow {
            lease_until: server.lease_until.max(there.lease_until),
            draining: server.draining || there.draining,
            ..server
        };
        self.servers.insert(server.id, server.clone());
        Ok(LeaseChanges { servers: vec![server], ..LeaseChanges::default() })
    }

    /// Removes a server and frees what it leased; the last tokens stay in the slots' rows.
    pub(crate) fn leave(&mut self, server: ServerId) -> LeaseChanges {
        let mut changes = LeaseChanges::default();
        if self.servers.remove(&server).is_some() {
            changes.servers_gone.push(server);
        }
        for slot in self.slots.values_mut().filter(|slot| slot.owner == Some(server)) {
            slot.owner = None;
            changes.slots.push(slot.clone());
        }
        changes
    }

    /// Leases the slots that are free, each under a token above all before it. `compacted` is where a slot that never was
    /// begins: below it there is no log that could ask for a run.
    pub(crate) fn take(
        &mut self,
        server: ServerId,
        wanted: &[SlotId],
        compacted: Revision,
        now: Timestamp,
    ) -> Result<(Vec<Fence>, LeaseChanges), DriverError> {
        if !self.lives(server, now) {
            return Err(DriverError::LeaseLapsed);
        }
        let mut changes = LeaseChanges::default();
        let mut fences = Vec::new();
        if self.servers.get(&server).is_some_and(|row| row.draining) {
            return Ok((fences, changes));
        }
        for wanted in wanted {
            let known = self.slots.get(wanted);
            if known.and_then(|row| row.owner).is_some_and(|owner| self.lives(owner, now)) {
                continue;
            }
            let watermark = known.map_or(compacted, |row| row.watermark);
            let token = SlotToken(self.token_counter.0 + 1);
            self.token_counter = token;
            changes.token_counter = Some(token);
            let row = SlotRow { slot: *wanted, owner: Some(server), token, watermark };
            self.slots.insert(*wanted, row.clone());
            changes.slots.push(row);
            fences.push(Fence { slot: *wanted, token });
        }
        Ok((fences, changes))
    }

    pub(crate) fn release(&mut self, fences: &[Fence], now: Timestamp) -> LeaseChanges {
        let mut changes = LeaseChanges::default();
        for fence in fences {
            if !self.holds(fence, now) {
                continue;
            }
            if let Some(row) = self.slots.get_mut(&fence.slot) {
                row.owner = None;
                changes.slots.push(row.clone());
            }
        }
        changes
    }

    /// Raises a watermark; the caller has checked the token. Never lowers it.
    pub(crate) fn raise(&mut self, slot: SlotId, to: Revision) -> Option<SlotRow> {
        let row = self.slots.get_mut(&slot)?;
        (row.watermark < to).then(|| {
            row.watermark = to;
            row.clone()
        })
    }

    /// Frees every slot, forgets every server, and puts the counter above `above`: for a new epoch.
    pub(crate) fn begin_epoch(&mut self, above: SlotToken) -> LeaseChanges {
        let servers_gone = self.servers.keys().copied().collect();
        self.servers.clear();
        for slot in self.slots.values_mut() {
            slot.owner = None;
        }
        self.token_counter = self.token_counter.max(above);
        LeaseChanges {
            servers: Vec::new(),
            servers_gone,
            slots: self.slots.values().cloned().collect(),
            token_counter: Some(self.token_counter),
        }
    }
}
