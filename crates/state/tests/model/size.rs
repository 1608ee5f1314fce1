//! How much of everything there is in a run of the checker. What is not in it is checked by another size.

use crate::requests::{Request, Requests};

#[derive(Clone, Debug)]
pub(crate) struct Size {
    /// The key of each change, in the order of the log. They are committed at any time.
    pub(crate) log: &'static [usize],
    pub(crate) slots: usize,
    pub(crate) servers: usize,
    /// `LatestState`, or `EveryChange`.
    pub(crate) latest: bool,
    /// Whether runs may end with writes.
    pub(crate) writes: bool,
    /// Whether watermarks are raised before a release too, and requests behind a wait copied out of the log.
    pub(crate) upkeep: bool,
    pub(crate) limits: Limits,
}

/// How often what need not happen may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Limits {
    /// A server's process ends, and another one starts in its place.
    pub(crate) crashes: u8,
    /// A lease ends that its owner believes in, or an owner gives up a lease that is not over.
    pub(crate) lapses: u8,
    /// A slot is given up, to spread or to drain.
    pub(crate) moves: u8,
    /// A run asks for a later time, or fails for good.
    pub(crate) failures: u8,
    /// Something is sent again, since its answer was lost or is late.
    pub(crate) resends: u8,
}

impl Limits {
    const NONE: Limits = Limits { crashes: 0, lapses: 0, moves: 0, failures: 0, resends: 0 };
}

impl Size {
    const fn base(log: &'static [usize], limits: Limits) -> Size {
        Size { log, slots: 1, servers: 2, latest: false, writes: false, upkeep: false, limits }
    }

    pub(crate) const fn moving() -> Size {
        Size::base(&[0, 0], Limits { moves: 2, resends: 1, ..Limits::NONE })
    }

    pub(crate) const fn two_slots() -> Size {
        Size { slots: 2, ..Size::base(&[0, 1], Limits { lapses: 1, ..Limits::NONE }) }
    }

    pub(crate) const fn zombies() -> Size {
        Size { writes: true, ..Size::base(&[0, 0], Limits { lapses: 1, resends: 1, ..Limits::NONE }) }
    }

    pub(crate) const fn crashing() -> Size {
        Size::base(&[0, 0], Limits { crashes: 2, failures: 1, ..Limits::NONE })
    }

    pub(crate) const fn waiting() -> Size {
        Size { upkeep: true, ..Size::base(&[0, 0], Limits { failures: 2, moves: 1, ..Limits::NONE }) }
    }

    pub(crate) const fn lagging() -> Size {
        Size::base(&[0, 0, 0], Limits { moves: 2, ..Limits::NONE })
    }

    pub(crate) const fn lapsing() -> Size {
        Size::base(&[0, 1, 0], Limits { lapses: 1, ..Limits::NONE })
    }

    pub(crate) const fn coalescing() -> Size {
        let limits = Limits { moves: 1, failures: 1, ..Limits::NONE };
        Size { latest: true, writes: true, ..Size::base(&[0, 0, 0], limits) }
    }

    pub(crate) const fn coalescing_over_faults() -> Size {
        let limits = Limits { crashes: 1, lapses: 1, failures: 1, ..Limits::NONE };
        Size { latest: true, ..Size::base(&[0, 0], limits) }
    }

    pub(crate) fn larger() -> Vec<Size> {
        let faults = Limits { crashes: 1, lapses: 1, ..Limits::NONE };
        vec![
            Size { log: &[0, 0, 1], ..Size::moving() },
            Size { log: &[0, 0, 1], limits: faults, ..Size::crashing() },
            Size { log: &[0, 1, 0], ..Size::two_slots() },
            Size { upkeep: true, limits: Limits { moves: 1, failures: 2, ..faults }, ..Size::waiting() },
            Size { log: &[0, 0, 0], ..Size::coalescing_over_faults() },
            Size { limits: Limits { moves: 1, resends: 1, ..faults }, ..Size::zombies() },
            Size { servers: 3, ..Size::lapsing() },
        ]
    }

    pub(crate) fn requests(&self) -> Request {
        Request::try_from(self.log.len()).expect("a size is small")
    }

    pub(crate) fn keys(&self) -> usize {
        self.log.iter().max().map_or(0, |key| key + 1)
    }

    pub(crate) fn key_of(&self, request: Request) -> usize {
        self.log[usize::from(request) - 1]
    }

    pub(crate) fn slot_of(&self, key: usize) -> usize {
        key % self.slots
    }

    pub(crate) fn of_key(&self, key: usize, among: Requests) -> Requests {
        among.iter().filter(|request| self.key_of(*request) == key).collect()
    }

    pub(crate) fn of_slot(&self, slot: usize, among: Requests) -> Requests {
        among.iter().filter(|request| self.slot_of(self.key_of(*request)) == slot).collect()
    }
}
