//! Which slot a key belongs to. The same on every server, build, machine and driver, for good.
//!
//! A slot's number holds its layout's generation and its place in the layout, so that slots of two layouts of one hook
//! are never taken for each other: a hook whose number of slots changes gets a layout of the next generation, which
//! nobody leases until every slot of the one before is retired.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::driver::{HookNumber, SlotId};
use crate::revision::Revision;

/// The most slots that a hook can have.
pub const SLOTS_MAX: u32 = 4_096;

/// Slots from here on are permits of a cluster-wide cap: leased like slots, but no key belongs to them.
const PERMITS: u32 = 1 << 31;

/// The watermark of a slot that no request belongs to any more, and of permits: nothing waits for it, ever.
pub(crate) const RETIRED: Revision = Revision(i64::MAX as u64);

/// How many slots a hook has, and for which requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotLayout {
    /// Rises by one with each change of the number of slots.
    pub generation: u32,
    /// How many slots.
    pub count: u32,
    /// Requests above this revision belong to it.
    pub since: Revision,
    /// Requests above this revision belong to the next layout; none for the current one.
    pub until: Option<Revision>,
}

impl SlotLayout {
    /// The slot of a key.
    pub(crate) fn slot_of(self, hook: HookNumber, key: &str) -> SlotId {
        self.slot(hook, slot_index(key, self.count))
    }

    /// The slot at a place.
    pub(crate) fn slot(self, hook: HookNumber, index: u32) -> SlotId {
        SlotId { hook, slot: self.generation * SLOTS_MAX + index }
    }

    /// All its slots.
    pub(crate) fn slots(self, hook: HookNumber) -> impl Iterator<Item = SlotId> {
        (0..self.count).map(move |index| self.slot(hook, index))
    }

    /// Whether a slot is one of this layout.
    pub(crate) fn contains(self, slot: SlotId) -> bool {
        !is_permit(slot) && slot.slot / SLOTS_MAX == self.generation && slot.slot % SLOTS_MAX < self.count
    }
}

/// The place of a key among so many slots: xxh3 of its text, modulo the number.
#[must_use]
pub fn slot_index(key: &str, count: u32) -> u32 {
    u32::try_from(xxh3_64(key.as_bytes()) % u64::from(count.max(1))).expect("a remainder of a u32 is one")
}

/// A permit of a hook with a cap.
pub(crate) fn permit(hook: HookNumber, index: u32) -> SlotId {
    SlotId { hook, slot: PERMITS | index }
}

/// Whether a slot is a permit.
pub(crate) fn is_permit(slot: SlotId) -> bool {
    slot.slot & PERMITS != 0
}

#[cfg(test)]
mod table;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_two_layouts_and_permits_are_never_the_same() {
        let hook = HookNumber(3);
        let old = SlotLayout { generation: 0, count: 4, since: Revision(1), until: Some(Revision(9)) };
        let new = SlotLayout { generation: 1, count: 64, since: Revision(9), until: None };
        for slot in old.slots(hook) {
            assert!(old.contains(slot) && !new.contains(slot) && !is_permit(slot));
        }
        assert!(is_permit(permit(hook, 0)) && !old.contains(permit(hook, 0)));
    }
}
