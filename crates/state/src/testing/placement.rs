//! Slots that a test wants at certain servers, in place of an even spread.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::driver::{HookNumber, ServerName, SlotId};

/// Which server is to lease which slot. One for all servers of a cluster, so that they agree at every moment. The default
/// places nothing, and outside tests there is no other.
///
/// A slot that is placed is out of the even spread for as long as the server that it is placed at lives and runs the hook.
/// Otherwise it is passed on as every slot is: the one before stops starting, releases it when its runs have ended, and the
/// other one leases it.
#[derive(Debug, Clone, Default)]
pub struct Placement(Option<Arc<Mutex<HashMap<SlotId, ServerName>>>>);

impl Placement {
    /// Slots spread evenly.
    #[must_use]
    pub const fn none() -> Placement {
        Placement(None)
    }

    /// Slots can be placed.
    #[must_use]
    pub fn new() -> Placement {
        Placement(Some(Arc::default()))
    }

    /// Places a slot at the server of this name.
    ///
    /// # Panics
    /// If the servers were made without a placement.
    pub fn place(&self, slot: SlotId, server: ServerName) {
        let placed = self.0.as_ref().expect("the servers were made with a placement (testing::Cluster does)");
        placed.lock().insert(slot, server);
    }

    /// The slots of a hook that are placed.
    pub(crate) fn of(&self, hook: HookNumber) -> Vec<(SlotId, ServerName)> {
        let Some(placed) = &self.0 else { return Vec::new() };
        let placed = placed.lock();
        placed.iter().filter(|(slot, _)| slot.hook == hook).map(|(slot, server)| (*slot, server.clone())).collect()
    }
}
