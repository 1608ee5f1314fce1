//! The keys of one leased slot: which request of which key may start when, as a pure state machine. Events go in by
//! methods; what is to be stored or signalled comes out as [`Command`]s.
//!
//! Invariants:
//! 1. Of a key at most one run goes, and the next one starts only when it is durable how the one before ended.
//! 2. Within a key, requests start in the order of the log, and none while one of them is being copied out of it.
//! 3. A key that waits, backs off or is dead holds up no other key; ready keys take turns.
//! 4. `LatestState`: a run covers every request of its key at or below its snapshot; a request above it gets a further run,
//!    and so does one that comes up once the run's end is being committed with its writes.
//! 5. The low watermark is never above a request that has neither a durable receipt nor a durable exception.
//! 6. Memory is bounded: what does not fit is left in the log, from `missing_from` on, and nothing of a key is taken in
//!    while something earlier of it is missing.
//! 7. Once something of a slot has gone to the next layout, nothing starts in it any more, under whatever lease: it might
//!    overtake an earlier request of its key. The next layout begins when all of it has gone.

mod loading;
mod missing;
mod parking;
mod phases;
mod requests;
mod runs;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;

use super::registration::Delivery;
use crate::driver::{ExceptionState, ReceiptOutcome, RequestAction, RequestId};
use crate::revision::{Revision, Timestamp};

/// How many servers may die while a request may have been running before it is a dead letter.
pub(crate) const DEATHS_MAX: u32 = 5;
/// From so many deaths on, a request runs alone among the suspects of its server, and on none that has only just come up,
/// so that bystanders are not blamed, nor requests for what servers die of anyway.
const DEATHS_ISOLATED: u32 = 2;
/// A key with no more requests than this in memory is not cut to make room for others.
const SHORT: usize = 4;

/// A key's place in its slot's memory. Given to another key once it has nothing left to do.
pub(crate) type KeyIndex = u32;

/// How failed runs are repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetryPolicy {
    /// Failed runs until a dead letter; none is unlimited.
    pub(crate) attempts: Option<u32>,
    pub(crate) first: Duration,
    pub(crate) max: Duration,
}

impl RetryPolicy {
    /// How long after the `failed`-th failed run in a row the next one starts. `jitter` from 0 to 1 takes off up to a
    /// quarter.
    pub(crate) fn delay(self, failed: u32, jitter: f64) -> Duration {
        let doubled =
            self.first.saturating_mul(1_u32.checked_shl(failed.saturating_sub(1).min(31)).unwrap_or(u32::MAX));
        doubled.min(self.max).mul_f64(1.0 - 0.25 * jitter.clamp(0.0, 1.0))
    }
}

/// Something to store durably under the slot's token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item<P> {
    Receipt { request: RequestId, outcome: ReceiptOutcome },
    Exception { request: RequestId, state: ExceptionState, attempts: u32, deaths: u32, error: Option<String>, cause: P },
}

/// What an [`Item`] was for; given back when it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    key: KeyIndex,
    request: RequestId,
    kind: TicketKind,
}

impl Ticket {
    /// The key that the item is of.
    pub(crate) fn key(self) -> KeyIndex {
        self.key
    }

    #[cfg(test)]
    pub(crate) fn request(self) -> RequestId {
        self.request
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TicketKind {
    /// The key waits for it.
    Phase,
    /// Nothing waits for it but the watermark.
    Side,
    /// A waiting request is copied out of the log.
    Park,
}

/// What the machine asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command<P> {
    /// Store this, then call [`SlotQueue::settled`].
    Settle { item: Item<P>, ticket: Ticket },
    /// An operator cancelled this run: signal it, and accept nothing that it still returns.
    Cancel { key: KeyIndex, run: u32 },
}

/// A run to be started.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Started<P> {
    pub(crate) key: KeyIndex,
    /// The run's number under this token, from 1.
    pub(crate) run: u32,
    pub(crate) name: Arc<str>,
    pub(crate) request: RequestId,
    pub(crate) cause: P,
    /// From 1.
    pub(crate) attempt: u32,
}

/// How a run ended, as far as the queue is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunEnd {
    Done,
    /// Not a failure.
    RetryAt(Timestamp),
    Failed(String),
    /// Handed back; no attempt is counted.
    Interrupted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    RetryAt,
    BackingOff,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Nothing in memory to run (something may be missing).
    Idle,
    /// The first request may start.
    Ready,
    /// A run goes; it covers so many requests from the front.
    Running {
        run: u32,
        /// The request that the run was given.
        lead: RequestId,
        covered: usize,
        stage: Stage,
        /// The operator's action that cancelled it.
        cancelled: Option<Cancelled>,
    },
    /// So many items must become durable first.
    Settling { outstanding: u32, then: Then },
    /// The first request waits for a time.
    Until { at: Timestamp, why: Why },
    /// The first request is a dead letter.
    Dead,
}

/// An operator's action that cancels a run, and the request that it lets go of. With the latest state that stands for all
/// before it; what the run covers besides is newer, and gets a run of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cancelled {
    action: RequestId,
    target: RequestId,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It goes, on this snapshot, and covers whatever comes up at or below it (`LatestState`).
    Going { snapshot: Revision },
    /// Its end is being committed together with its writes. What that settles is sent, so nothing joins it any more.
    Committing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// So many requests from the front are finished.
    Finish { covered: usize },
    /// Of so many requests from the front the last one stays, stored as an exception, and waits.
    HoldUntil { covered: usize, at: Timestamp, why: Why },
    /// Of so many requests from the front the last one stays as a dead letter.
    HoldDead { covered: usize },
    /// The first request may start.
    Ready { marked: bool },
}

#[derive(Debug, Clone)]
struct Entry<P> {
    id: RequestId,
    cause: P,
    /// It has an exception, durably.
    stored: bool,
    /// It is being copied out of the log.
    parking: bool,
}

#[derive(Debug)]
struct Key<P> {
    name: Arc<str>,
    queue: VecDeque<Entry<P>>,
    phase: Phase,
    /// Runs of the first request (`LatestState`: of the key) that failed in a row.
    attempts: u32,
    deaths: u32,
    error: Option<String>,
    /// The start mark of a suspect is durable.
    marked: bool,
    /// It runs, or is about to, as the one suspect that may.
    isolated: bool,
    in_ready: bool,
    /// Requests of it are missing, so none is taken in from the tail.
    closed: bool,
    /// During a reread: a request that was read had to be left in the log again.
    left_out: bool,
    /// During a reread: the last request that the tail brought, which was left in the log.
    tail_last: Option<RequestId>,
    /// So many of its requests are being copied out of the log. None of it starts meanwhile: the copy would land after
    /// what the run has stored, and take its place.
    parking: usize,
    /// Actions on requests whose outcome is being stored right now.
    deferred: Vec<(RequestId, RequestId, RequestAction)>,
    /// While loading: what the exceptions say.
    held: Vec<Held>,
}

impl<P> Key<P> {
    /// The first request waits for a time or for an operator, and what is behind it waits with it.
    fn is_blocked(&self) -> bool {
        matches!(self.phase, Phase::Until { .. } | Phase::Dead)
    }

    /// Its last request is neither its only one nor copied out of the log, so that leaving it there makes room.
    fn can_be_cut(&self) -> bool {
        self.queue.len() > 1 && self.queue.back().is_some_and(|last| !last.stored && !last.parking)
    }
}

#[derive(Debug, Clone)]
struct Held {
    request: RequestId,
    state: ExceptionState,
    attempts: u32,
    deaths: u32,
    error: Option<String>,
}

/// The log being read again.
#[derive(Debug, Default)]
struct Reread {
    /// The first request that had to be left in the log again.
    missing: Option<RequestId>,
    /// Requests of keys that are not in memory had to be left in the log again.
    left_out: bool,
    /// The last request of a key not in memory that the tail brought.
    tail_last: Option<RequestId>,
    /// Something was taken in.
    accepted: bool,
    /// What became durable since it began, and so may be missing among the receipts that were read.
    finished: HashSet<RequestId, FixedState>,
}

/// The keys of one slot. `P` is what a run is given besides: the change.
#[derive(Debug)]
pub(crate) struct SlotQueue<P> {
    delivery: Delivery,
    retry: RetryPolicy,
    keys: Vec<Option<Key<P>>>,
    free: Vec<KeyIndex>,
    by_name: HashMap<Arc<str>, KeyIndex, FixedState>,
    ready: VecDeque<KeyIndex>,
    set_aside: Vec<KeyIndex>,
    timers: BTreeSet<(Timestamp, KeyIndex)>,
    /// Requests and actions that have neither a durable receipt nor a durable exception.
    open: BTreeSet<RequestId>,
    /// Every row up to here was looked at.
    position: Revision,
    counter: u32,
    running: usize,
    settling: usize,
    isolated: usize,
    /// Requests in memory without an exception; those with one are kept whatever the bound.
    total: usize,
    bound: usize,
    missing_from: Option<RequestId>,
    /// Operators' actions on requests that are left in the log, for when those are read again. As many as operators make.
    missing_actions: BTreeMap<RequestId, Vec<(RequestId, RequestAction)>>,
    /// Requests of keys that are not in memory are missing.
    closed: bool,
    rereading: Option<Reread>,
    /// The last reread took nothing in; so many requests were in memory then.
    barren: Option<usize>,
    /// Nothing is to be missing, since the slot is to hand over all that is left of it.
    emptying: bool,
    /// What has gone to the next layout already, under a lease before this one. Not of this slot any more, whatever the log
    /// says.
    handed_over: HashSet<RequestId, FixedState>,
    /// What finished requests were asked by, for the caller to let go of.
    spent: Vec<P>,
    loading: bool,
}

impl<P: Clone> SlotQueue<P> {
    /// A slot that is being loaded: give it its exceptions and the log's requests, then [`SlotQueue::activate`] it.
    pub(crate) fn loading(delivery: Delivery, retry: RetryPolicy, bound: usize) -> Self {
        SlotQueue {
            delivery,
            retry,
            keys: Vec::new(),
            free: Vec::new(),
            by_name: HashMap::default(),
            ready: VecDeque::new(),
            set_aside: Vec::new(),
            timers: BTreeSet::new(),
            open: BTreeSet::new(),
            position: Revision::ZERO,
            counter: 0,
            running: 0,
            settling: 0,
            isolated: 0,
            total: 0,
            bound: bound.max(1),
            missing_from: None,
            missing_actions: BTreeMap::new(),
            closed: false,
            rereading: None,
            barren: None,
            emptying: false,
            handed_over: HashSet::default(),
            spent: Vec::new(),
            loading: true,
        }
    }

    /// Whether nothing runs and nothing is being stored that a key waits for.
    pub(crate) fn is_quiet(&self) -> bool {
        self.running == 0 && self.settling == 0
    }

    /// Whether requests of the slot are left in the log.
    pub(crate) fn is_missing_some(&self) -> bool {
        self.missing_from.is_some() || self.rereading.is_some()
    }

    /// Whether [`SlotQueue::start`] is worth a try.
    pub(crate) fn may_have_something_to_start(&self) -> bool {
        !self.is_partly_handed_over() && (!self.ready.is_empty() || !self.set_aside.is_empty())
    }

    /// Keys that could start now.
    pub(crate) fn ready(&self) -> usize {
        if self.is_partly_handed_over() { 0 } else { self.ready.len() }
    }

    /// What requests were asked by that have finished in [`SlotQueue::settled`] and [`SlotQueue::committed`] since the last
    /// call.
    pub(crate) fn take_spent(&mut self, into: &mut Vec<P>) {
        into.append(&mut self.spent);
    }

    /// Requests in memory.
    pub(crate) fn len(&self) -> usize {
        self.total
    }

    /// How many suspects of killing servers are marked or running.
    pub(crate) fn isolated(&self) -> usize {
        self.isolated
    }

    /// Whether something of the key waits for an item to be durable: its next request, mostly.
    pub(crate) fn awaits(&self, ticket: Ticket) -> bool {
        let Some(key) = self.keys.get(ticket.key as usize).and_then(Option::as_ref) else { return false };
        match (ticket.kind, &key.phase) {
            (TicketKind::Side, _) => false,
            (TicketKind::Phase, Phase::Settling { then: Then::Finish { covered }, .. }) => {
                key.queue.len() > *covered || !key.deferred.is_empty()
            }
            (TicketKind::Phase | TicketKind::Park, _) => true,
        }
    }

    /// Whether the token's run counter is used up: the slot is to be leased anew.
    pub(crate) fn is_worn_out(&self) -> bool {
        self.counter >= RUNS_MAX
    }

    /// The runs that go, by key and number.
    pub(crate) fn runs(&self) -> Vec<(KeyIndex, u32)> {
        let runs = self.keys.iter().enumerate().filter_map(|(index, key)| match key.as_ref()?.phase {
            Phase::Running { run, .. } => Some((index_from(index), run)),
            Phase::Idle | Phase::Ready | Phase::Settling { .. } | Phase::Until { .. } | Phase::Dead => None,
        });
        runs.collect()
    }

    /// The requests that are running.
    pub(crate) fn running_requests(&self) -> Vec<RequestId> {
        let mut requests = Vec::new();
        for key in self.keys.iter().flatten() {
            if let Phase::Running { covered, .. } = key.phase {
                requests.extend(key.queue.iter().take(covered).map(|entry| entry.id));
            }
        }
        requests
    }

    /// Whether some of what was in the slot is in the next layout already: nothing starts here any more, and what is left
    /// is to follow.
    fn is_partly_handed_over(&self) -> bool {
        !self.handed_over.is_empty()
    }

    /// Whether nothing of a key starts by itself, so that what is left of it only takes room.
    fn is_at_rest(&self, key: &Key<P>) -> bool {
        key.is_blocked() || self.is_partly_handed_over() && matches!(key.phase, Phase::Ready | Phase::Idle)
    }

    fn key(&self, index: KeyIndex) -> &Key<P> {
        self.keys[index as usize].as_ref().expect("an index in use belongs to a live key")
    }

    fn key_mut(&mut self, index: KeyIndex) -> &mut Key<P> {
        self.keys[index as usize].as_mut().expect("an index in use belongs to a live key")
    }

    fn index_of(&mut self, name: &str) -> KeyIndex {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        let name: Arc<str> = name.into();
        let key = Key {
            name: name.clone(),
            queue: VecDeque::new(),
            phase: Phase::Idle,
            attempts: 0,
            deaths: 0,
            error: None,
            marked: false,
            isolated: false,
            in_ready: false,
            closed: false,
            left_out: false,
            tail_last: None,
            parking: 0,
            deferred: Vec::new(),
            held: Vec::new(),
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.keys[index as usize] = Some(key);
                index
            }
            None => {
                self.keys.push(Some(key));
                index_from(self.keys.len() - 1)
            }
        };
        self.by_name.insert(name, index);
        index
    }
}

/// Runs under one token: their number takes the lower 24 bits of the fencing token.
pub(crate) const RUNS_MAX: u32 = (1 << 24) - 1;

fn phase_ticket(key: KeyIndex, request: RequestId) -> Ticket {
    Ticket { key, request, kind: TicketKind::Phase }
}

/// The receipt of an operator's action: it has been carried out.
fn action_done<P>(id: RequestId) -> Item<P> {
    Item::Receipt { request: id, outcome: ReceiptOutcome::Done }
}

fn index_from(index: usize) -> KeyIndex {
    u32::try_from(index).expect("memory ends long before four thousand million keys")
}

fn count(covered: usize) -> u32 {
    u32::try_from(covered).expect("memory ends long before four thousand million requests")
}

#[cfg(test)]
mod tests;
