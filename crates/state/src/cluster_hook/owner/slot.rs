//! A slot that this server leases, from when it was taken to when it is given back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::FixedState;

use crate::cluster_hook::cause::Cause;
use crate::cluster_hook::key_queue::SlotQueue;
use crate::cluster_hook::run::RunControl;
use crate::driver::{Fence, RequestAction, RequestId};
use crate::revision::Revision;

/// Why a slot is being given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Others are to have it; its runs may go on for the hand-over limit, then it stays.
    Balance,
    /// It must go, however long its runs take: the hook was withdrawn, this build is too old, the server drains, or the
    /// feed lost its place.
    Must,
}

/// A slot that this server leases.
pub(super) struct Slot {
    pub(super) fence: Fence,
    pub(super) state: SlotState,
    pub(super) runs: HashMap<u32, Arc<RunControl>, FixedState>,
    /// Items on their way to be stored.
    pub(super) outstanding: usize,
    /// Commits of runs' writes on their way.
    pub(super) commits: usize,
    pub(super) stopping: Option<(Reason, Instant)>,
    /// The final watermark has been sent.
    pub(super) last_raise: bool,
    pub(super) watermark: Revision,
    pub(super) raised: Instant,
    /// Not to be given up for balance before this.
    pub(super) stays_until: Option<Instant>,
    pub(super) retiring: Retiring,
}

/// How far a slot of an old layout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retiring {
    No,
    /// What is left is to go to the next layout's slots once nothing runs.
    Due,
    /// It has been handed over, and the watermark is to say that nothing belongs here any more.
    Handed,
    /// The watermark says so.
    Left,
}

pub(super) enum SlotState {
    /// What is pending is being read; what the tail brings meanwhile is kept.
    Loading {
        queue: Box<SlotQueue<Arc<Cause>>>,
        buffered: Vec<Intake>,
        crashed: bool,
        read: Option<Revision>,
    },
    Active(Box<SlotQueue<Arc<Cause>>>),
    /// Rows of the log have passed it by, so it can't say up to where everything is settled: no watermark is raised, what
    /// runs comes to its end, and then it is released.
    Skipped(Box<SlotQueue<Arc<Cause>>>),
    Releasing,
    /// Leased to count runs by, not to run anything.
    Permit,
}

/// Something that the tail brought for a slot that is being loaded.
pub(super) enum Intake {
    Request { id: RequestId, key: Arc<str>, cause: Arc<Cause> },
    Act { id: RequestId, target: RequestId, action: RequestAction },
}

impl Slot {
    pub(super) fn queue(&self) -> Option<&SlotQueue<Arc<Cause>>> {
        match &self.state {
            SlotState::Active(queue) | SlotState::Skipped(queue) => Some(queue),
            SlotState::Loading { .. } | SlotState::Releasing | SlotState::Permit => None,
        }
    }

    pub(super) fn queue_mut(&mut self) -> Option<&mut SlotQueue<Arc<Cause>>> {
        match &mut self.state {
            SlotState::Active(queue) | SlotState::Skipped(queue) => Some(queue),
            SlotState::Loading { .. } | SlotState::Releasing | SlotState::Permit => None,
        }
    }

    /// The queue, where every row up to the owner's position was taken in.
    pub(super) fn whole_queue_mut(&mut self) -> Option<&mut SlotQueue<Arc<Cause>>> {
        match &mut self.state {
            SlotState::Active(queue) => Some(queue),
            SlotState::Skipped(_) | SlotState::Loading { .. } | SlotState::Releasing | SlotState::Permit => None,
        }
    }

    /// What is left of it belongs to slots of the next layout. Whatever is stored of it now would take it back to a slot
    /// that nobody leases any more; what is to happen to it is read from the log by its next owner.
    pub(super) fn has_handed_over(&self) -> bool {
        matches!(self.retiring, Retiring::Handed | Retiring::Left)
    }

    /// Rows of the log have passed it by.
    pub(super) fn skip_rows(&mut self) {
        if self.retiring == Retiring::Due {
            // What it would hand over is not all there is.
            self.retiring = Retiring::No;
        }
        self.state = match std::mem::replace(&mut self.state, SlotState::Releasing) {
            SlotState::Loading { queue, .. } | SlotState::Active(queue) | SlotState::Skipped(queue) => {
                SlotState::Skipped(queue)
            }
            state @ (SlotState::Releasing | SlotState::Permit) => state,
        };
    }

    /// Nothing runs, and nothing is on its way to be stored.
    pub(super) fn is_quiet(&self) -> bool {
        self.outstanding == 0
            && self.commits == 0
            && self.runs.is_empty()
            && match &self.state {
                SlotState::Active(queue) | SlotState::Skipped(queue) => queue.is_quiet(),
                SlotState::Loading { .. } | SlotState::Permit => true,
                SlotState::Releasing => false,
            }
    }
}
