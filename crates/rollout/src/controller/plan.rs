//! What is to be done: a value, computed from the state and carried out in one transaction.

use tidegate_state::Timestamp;

use crate::entities::{Assignment, Call, Garbage, Gate, Push, RegisteredSchema, Version};

/// What the controller wants to change, and when it wants to look again although nothing has changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Entities to write or delete, parents before children. Committed together.
    pub writes: Vec<Write>,
    /// Calls to make: entities too, committed with the rest and carried out by `lifecycle-call`.
    pub calls: Vec<CallWrite>,
    /// When something is due by itself: a round, a limit, a retention.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.calls.is_empty()
    }
}

/// One entity to write or delete.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// A version.
    Version {
        /// Its number.
        number: u64,
        /// What to write.
        version: Box<Version>,
    },
    /// A version whose data and push are gone.
    RemoveVersion {
        /// Its number.
        number: u64,
    },
    /// A schema.
    Schema {
        /// Its number.
        number: u64,
        /// What to write.
        schema: Box<RegisteredSchema>,
    },
    /// A push.
    Push {
        /// Its id.
        id: String,
        /// What to write.
        push: Box<Push>,
    },
    /// A push that is no longer kept, with its gates and its name.
    RemovePush {
        /// Its id.
        id: String,
    },
    /// A gate.
    Gate {
        /// The push.
        push: String,
        /// The gate's id.
        id: String,
        /// What to write.
        gate: Box<Gate>,
    },
    /// An assignment.
    Assignment {
        /// The region.
        region: String,
        /// What to write.
        assignment: Box<Assignment>,
    },
    /// Something to be removed from the object store.
    Garbage {
        /// The entry's id.
        id: String,
        /// What to write.
        garbage: Box<Garbage>,
    },
}

/// A call to make.
#[derive(Debug, Clone, PartialEq)]
pub struct CallWrite {
    /// The push.
    pub push: String,
    /// The gate's id.
    pub gate: String,
    /// The hook.
    pub hook: String,
    /// What to write.
    pub call: Call,
}
