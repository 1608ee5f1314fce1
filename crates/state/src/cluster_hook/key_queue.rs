//! The keys of one leased slot: which request of which key may start when, as a pure state machine. Events go in by
//! methods; what is to be stored or signalled comes out as [`Command`]s.
//!
//! Invariants:
//! 1. Of a key at most one run goes, and the next one starts only when it is durable how the one before ended.
//! 2. Within a key, requests start in the order of the log.
//! 3. A key that waits, backs off or is dead holds up no other key; ready keys take turns.
//! 4. `LatestState`: a run covers every request of its key at or below its snapshot; a request above it gets a further run.
//! 5. The low watermark is never above a request that has neither a durable receipt nor a durable exception.
//! 6. Memory is bounded: what does not fit is left in the log, from `missing_from` on, and nothing of a key is taken in
//!    while something earlier of it is missing.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;

use super::registration::Delivery;
use crate::driver::{ExceptionState, ReceiptOutcome, RequestAction, RequestId};
use crate::revision::{Revision, Timestamp};

/// How many servers may die while a request may have been running before it is a dead letter.
pub(crate) const DEATHS_MAX: u32 = 5;
/// From so many deaths on, a request runs alone among the suspects of its server, so that bystanders are not blamed.
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
        snapshot: Revision,
        /// The operator's action that cancelled it.
        cancelled: Option<RequestId>,
    },
    /// So many items must become durable first.
    Settling { outstanding: u32, then: Then },
    /// The first request waits for a time.
    Until { at: Timestamp, why: Why },
    /// The first request is a dead letter.
    Dead,
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
    /// Requests of keys that are not in memory are missing.
    closed: bool,
    rereading: Option<Reread>,
    /// The last reread took nothing in; so many requests were in memory then.
    barren: Option<usize>,
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
            closed: false,
            rereading: None,
            barren: None,
            loading: true,
        }
    }

    // ---- loading -------------------------------------------------------------------------------------------------

    /// A request that the slot's exceptions name. Before any [`SlotQueue::request`].
    pub(crate) fn load_exception(
        &mut self,
        request: RequestId,
        key: &str,
        state: ExceptionState,
        (attempts, deaths): (u32, u32),
        error: Option<String>,
        cause: P,
    ) {
        let index = self.index_of(key);
        let key = self.key_mut(index);
        if key.held.iter().any(|held| held.request == request) {
            return;
        }
        key.held.push(Held { request, state, attempts, deaths, error });
        let at = key.queue.partition_point(|entry| entry.id < request);
        key.queue.insert(at, Entry { id: request, cause, stored: true, parking: false });
    }

    /// Ends the loading: everything up to `head` was given. `crashed` says that the owner before did not release the
    /// slot, so the first requests of the keys may have been running when it died.
    pub(crate) fn activate(&mut self, now: Timestamp, head: Revision, crashed: bool, out: &mut Vec<Command<P>>) {
        self.loading = false;
        self.position = self.position.max(head);
        for index in 0..self.keys.len() {
            let at = index_from(index);
            let Some(key) = self.keys[index].as_mut() else { continue };
            let held = std::mem::take(&mut key.held);
            let governing = match self.delivery {
                Delivery::EveryChange => {
                    key.queue.front().and_then(|front| held.iter().find(|held| held.request == front.id))
                }
                Delivery::LatestState => {
                    held.iter().filter(|held| held.state != ExceptionState::Parked).max_by_key(|held| held.request)
                }
            };
            let newer = governing.is_some_and(|held| key.queue.back().is_some_and(|last| last.id > held.request));
            let revived = self.delivery == Delivery::LatestState && newer;
            let state = governing.map(|held| held.state.clone());
            if let Some(held) = governing {
                (key.attempts, key.deaths, key.error) = (held.attempts, held.deaths, held.error.clone());
            }
            let phase = match state {
                Some(ExceptionState::Dead) if revived => {
                    (key.attempts, key.deaths, key.error) = (0, 0, None);
                    Phase::Ready
                }
                Some(ExceptionState::Dead) => Phase::Dead,
                Some(ExceptionState::Waiting { .. }) if revived => Phase::Ready,
                Some(ExceptionState::Waiting { until }) if until > now => Phase::Until { at: until, why: Why::RetryAt },
                Some(ExceptionState::BackingOff { until }) if until > now => {
                    Phase::Until { at: until, why: Why::BackingOff }
                }
                Some(
                    ExceptionState::Waiting { .. }
                    | ExceptionState::BackingOff { .. }
                    | ExceptionState::Parked
                    | ExceptionState::Started,
                )
                | None => Phase::Ready,
            };
            match phase {
                _ if key.queue.is_empty() => key.phase = Phase::Idle,
                Phase::Ready => {
                    if crashed {
                        // Only a start mark is certain to say that it ran; without one a request is a suspect once.
                        key.deaths = match (&state, key.deaths) {
                            (Some(ExceptionState::Started), deaths) => deaths + 1,
                            (_, 0) => 1,
                            (_, deaths) => deaths,
                        };
                    }
                    if key.deaths >= DEATHS_MAX {
                        let error = format!(
                            "{} servers died while it may have been running, so it is not given to another one",
                            key.deaths
                        );
                        self.hold_dead_now(at, error, out);
                    } else {
                        self.make_ready(at);
                    }
                }
                Phase::Until { at: until, .. } => {
                    key.phase = phase;
                    self.timers.insert((until, at));
                }
                Phase::Dead | Phase::Idle | Phase::Running { .. } | Phase::Settling { .. } => key.phase = phase,
            }
        }
        for index in 0..self.keys.len() {
            if self.keys[index].as_ref().is_some_and(|key| !matches!(key.phase, Phase::Settling { .. })) {
                self.act_on_deferred(index_from(index), out);
            }
        }
    }

    fn hold_dead_now(&mut self, index: KeyIndex, error: String, out: &mut Vec<Command<P>>) {
        let covered = match self.delivery {
            Delivery::EveryChange => 1,
            Delivery::LatestState => self.key(index).queue.len(),
        };
        self.key_mut(index).error = Some(error);
        self.settle_held(index, covered, ExceptionState::Dead, Then::HoldDead { covered }, out);
    }

    // ---- requests and actions --------------------------------------------------------------------------------------

    /// Whether nothing of this request is to be taken in, since it is there already.
    fn knows(&self, key: &Key<P>, id: RequestId) -> bool {
        self.open.contains(&id) || key.queue.binary_search_by(|entry| entry.id.cmp(&id)).is_ok()
    }

    /// A request of the slot, in the order of the log.
    pub(crate) fn request(&mut self, id: RequestId, key: &str, cause: P, out: &mut Vec<Command<P>>) {
        let index = match self.by_name.get(key) {
            Some(&index) => {
                let key = self.key(index);
                if self.loading && self.knows(key, id) {
                    return;
                }
                if key.closed {
                    self.leave_out(id, Some(index));
                    return;
                }
                Some(index)
            }
            None if self.closed => {
                self.leave_out(id, None);
                return;
            }
            None => None,
        };
        if self.total >= self.bound && !self.make_room(index, false) {
            self.leave_out(id, index);
            return;
        }
        let index = index.unwrap_or_else(|| self.index_of(key));
        // Making room may have cut this very key.
        if self.key(index).closed {
            self.leave_out(id, Some(index));
            return;
        }
        self.take_in(index, id, cause);
        if !self.loading {
            self.noticed(index, id, out);
        }
    }

    fn take_in(&mut self, index: KeyIndex, id: RequestId, cause: P) {
        let key = self.key_mut(index);
        let at = if key.queue.back().is_none_or(|last| last.id < id) {
            key.queue.len()
        } else {
            key.queue.partition_point(|entry| entry.id < id)
        };
        key.queue.insert(at, Entry { id, cause, stored: false, parking: false });
        self.total += 1;
        self.open.insert(id);
    }

    /// What a new request does to its key's phase.
    fn noticed(&mut self, index: KeyIndex, id: RequestId, out: &mut Vec<Command<P>>) {
        let latest = self.delivery == Delivery::LatestState;
        let key = self.key_mut(index);
        match &mut key.phase {
            Phase::Idle => self.make_ready(index),
            Phase::Until { why: Why::RetryAt, .. } if latest => self.make_ready(index),
            Phase::Dead if latest => self.revive(index, out),
            Phase::Running { covered, snapshot, cancelled: None, .. } if latest && id.revision <= *snapshot => {
                // The run reads a snapshot that has the change, if all before it are covered as well.
                if *covered + 1 == key.queue.len() {
                    *covered += 1;
                }
            }
            Phase::Ready | Phase::Running { .. } | Phase::Settling { .. } | Phase::Until { .. } | Phase::Dead => {}
        }
    }

    /// A dead `LatestState` key gets another life: the letter becomes an ordinary waiting request.
    fn revive(&mut self, index: KeyIndex, out: &mut Vec<Command<P>>) {
        let key = self.key_mut(index);
        (key.attempts, key.deaths, key.error, key.marked) = (0, 0, None, false);
        self.settle_front(index, ExceptionState::Parked, Then::Ready { marked: false }, out);
    }

    /// An operator acted on a request, by an entry of the log that is `id` itself. Ignored where the request is not (or
    /// no longer) what the action is for.
    pub(crate) fn act(&mut self, id: RequestId, target: RequestId, action: RequestAction, out: &mut Vec<Command<P>>) {
        let found = self.keys.iter().enumerate().find_map(|(index, key)| {
            let key = key.as_ref()?;
            let at = key.queue.binary_search_by(|entry| entry.id.cmp(&target)).ok()?;
            Some((index_from(index), at))
        });
        let Some((index, at)) = found else { return };
        if self.loading {
            self.open.insert(id);
            self.key_mut(index).deferred.push((id, target, action));
            return;
        }
        let key = self.key_mut(index);
        match (&mut key.phase, action) {
            (Phase::Settling { .. }, _) => {
                key.deferred.push((id, target, action));
                self.open.insert(id);
            }
            (Phase::Dead, RequestAction::Retry) if at == 0 => {
                (key.attempts, key.deaths, key.error, key.marked) = (0, 0, None, false);
                self.settle_front(index, ExceptionState::Parked, Then::Ready { marked: false }, out);
                self.action_receipt(index, id, out);
            }
            (Phase::Running { covered, run, cancelled, .. }, RequestAction::Cancel)
                if at < *covered && cancelled.is_none() =>
            {
                // The action is finished together with the run, so that a crash in between does not lose it.
                *cancelled = Some(id);
                out.push(Command::Cancel { key: index, run: *run });
                self.open.insert(id);
            }
            // It came too late, or twice. On record as seen, so that no later owner takes it for a new one.
            (_, RequestAction::Retry) => self.side(index, id, action_done(id), out),
            (Phase::Running { covered, .. }, RequestAction::Discard | RequestAction::Cancel) if at < *covered => {
                self.side(index, id, action_done(id), out);
            }
            (
                Phase::Idle | Phase::Ready | Phase::Until { .. } | Phase::Dead | Phase::Running { .. },
                RequestAction::Discard | RequestAction::Cancel,
            ) => {
                let outcome = match action {
                    RequestAction::Cancel => ReceiptOutcome::Cancelled,
                    RequestAction::Discard | RequestAction::Retry => ReceiptOutcome::Discarded,
                };
                let blocking = at == 0 && !matches!(key.phase, Phase::Running { .. });
                let receipt = Item::Receipt { request: target, outcome };
                if blocking {
                    self.set_phase(index, Phase::Settling { outstanding: 1, then: Then::Finish { covered: 1 } });
                    out.push(Command::Settle { item: receipt, ticket: phase_ticket(index, target) });
                    self.action_receipt(index, id, out);
                } else {
                    let entry = key.queue.remove(at);
                    self.total -= usize::from(entry.is_some_and(|entry| !entry.stored));
                    self.side(index, target, receipt, out);
                    self.side(index, id, action_done(id), out);
                }
            }
        }
    }

    /// Whether the slot has this request and would heed an action on it.
    pub(crate) fn has(&self, request: RequestId) -> bool {
        self.keys.iter().flatten().any(|key| key.queue.binary_search_by(|entry| entry.id.cmp(&request)).is_ok())
    }

    /// An action that a key's phase waits for.
    fn action_receipt(&mut self, index: KeyIndex, id: RequestId, out: &mut Vec<Command<P>>) {
        self.open.insert(id);
        if let Phase::Settling { outstanding, .. } = &mut self.key_mut(index).phase {
            *outstanding += 1;
        }
        out.push(Command::Settle { item: action_done(id), ticket: phase_ticket(index, id) });
    }

    fn side(&mut self, index: KeyIndex, request: RequestId, item: Item<P>, out: &mut Vec<Command<P>>) {
        self.open.insert(request);
        out.push(Command::Settle { item, ticket: Ticket { key: index, request, kind: TicketKind::Side } });
    }

    // ---- runs ------------------------------------------------------------------------------------------------------

    /// The next run to start: the first request of the key whose turn it is. `snapshot` is what the run will read;
    /// `isolated_allowed` says that no other request that is suspected of killing servers is running.
    pub(crate) fn start(
        &mut self,
        snapshot: Revision,
        isolated_allowed: bool,
        out: &mut Vec<Command<P>>,
    ) -> Option<Started<P>> {
        if isolated_allowed {
            for index in std::mem::take(&mut self.set_aside) {
                self.ready.push_back(index);
            }
        }
        let mut turns = self.ready.len();
        while turns > 0 && self.counter < RUNS_MAX {
            turns -= 1;
            let index = self.ready.pop_front()?;
            let latest = self.delivery == Delivery::LatestState;
            let others_isolated = self.isolated > 0;
            let key = self.key_mut(index);
            key.in_ready = false;
            if key.phase != Phase::Ready {
                if key.phase == Phase::Idle {
                    self.forget_if_idle(index);
                }
                continue;
            }
            let Some(front) = key.queue.front() else { continue };
            if front.id.revision > snapshot {
                key.in_ready = true;
                self.ready.push_back(index);
                continue;
            }
            if key.deaths > 0 && !key.marked {
                let isolated = key.deaths >= DEATHS_ISOLATED;
                if isolated && (!isolated_allowed || others_isolated) {
                    key.in_ready = true;
                    self.set_aside.push(index);
                    continue;
                }
                key.isolated = isolated;
                self.isolated += usize::from(isolated);
                self.settle_front(index, ExceptionState::Started, Then::Ready { marked: true }, out);
                continue;
            }
            let covered =
                if latest { key.queue.iter().take_while(|entry| entry.id.revision <= snapshot).count() } else { 1 };
            let (name, attempt) = (key.name.clone(), key.attempts.saturating_add(1));
            let lead = &key.queue[covered - 1];
            let (request, cause) = (lead.id, lead.cause.clone());
            self.counter += 1;
            let run = self.counter;
            self.set_phase(index, Phase::Running { run, lead: request, covered, snapshot, cancelled: None });
            return Some(Started { key: index, run, name, request, cause, attempt });
        }
        None
    }

    /// The requests that a run's end finishes or holds, the one that it was given last; and whether an operator has
    /// cancelled it. None if this is not the run that goes.
    pub(crate) fn covered(&self, index: KeyIndex, run: u32) -> Option<(Vec<RequestId>, bool)> {
        let key = self.keys.get(index as usize)?.as_ref()?;
        match &key.phase {
            Phase::Running { run: going, covered, cancelled, .. } if *going == run => {
                Some((key.queue.iter().take(*covered).map(|entry| entry.id).collect(), cancelled.is_some()))
            }
            Phase::Idle
            | Phase::Ready
            | Phase::Running { .. }
            | Phase::Settling { .. }
            | Phase::Until { .. }
            | Phase::Dead => None,
        }
    }

    /// What a run's request was asked by; for exceptions that commit together with writes.
    pub(crate) fn cause(&self, index: KeyIndex, request: RequestId) -> Option<&P> {
        let key = self.keys.get(index as usize)?.as_ref()?;
        key.queue.iter().find(|entry| entry.id == request).map(|entry| &entry.cause)
    }

    /// A run has ended. `jitter` from 0 to 1 is for its backoff.
    pub(crate) fn ended(
        &mut self,
        index: KeyIndex,
        run: u32,
        end: RunEnd,
        now: Timestamp,
        jitter: f64,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(key) = self.keys.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Phase::Running { run: going, lead, covered, ref cancelled, .. } = key.phase else { return };
        if going != run {
            return;
        }
        if let Some(action) = *cancelled {
            self.settle_receipts(index, covered, |_| ReceiptOutcome::Cancelled, out);
            self.action_receipt(index, action, out);
            return;
        }
        match end {
            RunEnd::Done => {
                let outcome = |id| if id == lead { ReceiptOutcome::Done } else { ReceiptOutcome::Coalesced };
                self.settle_receipts(index, covered, outcome, out);
            }
            RunEnd::RetryAt(at) => {
                (key.attempts, key.deaths, key.error) = (0, 0, None);
                let then = Then::HoldUntil { covered, at, why: Why::RetryAt };
                self.settle_held(index, covered, ExceptionState::Waiting { until: at }, then, out);
            }
            RunEnd::Failed(error) => {
                key.attempts = key.attempts.saturating_add(1);
                key.error = Some(error);
                let failed = key.attempts;
                if self.retry.attempts.is_some_and(|attempts| failed >= attempts) {
                    self.settle_held(index, covered, ExceptionState::Dead, Then::HoldDead { covered }, out);
                } else {
                    let at = now.after(self.retry.delay(failed, jitter));
                    let then = Then::HoldUntil { covered, at, why: Why::BackingOff };
                    self.settle_held(index, covered, ExceptionState::BackingOff { until: at }, then, out);
                }
            }
            RunEnd::Interrupted => self.make_ready(index),
        }
    }

    /// A run's end was committed together with its writes; everything that it covers is durable.
    pub(crate) fn committed(
        &mut self,
        index: KeyIndex,
        run: u32,
        retry_at: Option<Timestamp>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(key) = self.keys.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Phase::Running { run: going, covered, .. } = key.phase else { return };
        if going != run {
            return;
        }
        let then = match retry_at {
            None => Then::Finish { covered },
            Some(at) => {
                (key.attempts, key.deaths, key.error) = (0, 0, None);
                Then::HoldUntil { covered, at, why: Why::RetryAt }
            }
        };
        self.set_phase(index, Phase::Settling { outstanding: 0, then });
        self.advance(index, then, out);
    }

    /// An item is durable.
    pub(crate) fn settled(&mut self, ticket: Ticket, out: &mut Vec<Command<P>>) {
        match ticket.kind {
            TicketKind::Side => self.close(ticket.request),
            TicketKind::Park => {
                self.close(ticket.request);
                if let Some(key) = self.keys.get_mut(ticket.key as usize).and_then(Option::as_mut)
                    && let Ok(at) = key.queue.binary_search_by(|entry| entry.id.cmp(&ticket.request))
                {
                    self.total -= usize::from(!key.queue[at].stored);
                    key.queue[at].stored = true;
                }
            }
            TicketKind::Phase => {
                let Some(key) = self.keys.get_mut(ticket.key as usize).and_then(Option::as_mut) else { return };
                let Phase::Settling { outstanding, then } = &mut key.phase else { return };
                *outstanding = outstanding.saturating_sub(1);
                let (left, then) = (*outstanding, *then);
                // Receipts of actions are no entries of the queue, and are closed here.
                if key.queue.binary_search_by(|entry| entry.id.cmp(&ticket.request)).is_err() {
                    self.open.remove(&ticket.request);
                }
                if left == 0 {
                    self.advance(ticket.key, then, out);
                }
            }
        }
    }

    /// All that a key waited for is durable.
    fn advance(&mut self, index: KeyIndex, then: Then, out: &mut Vec<Command<P>>) {
        if self.key(index).closed {
            self.barren = None;
        }
        let latest = self.delivery == Delivery::LatestState;
        match then {
            Then::Finish { covered } => {
                self.pop(index, covered);
                let key = self.key_mut(index);
                (key.attempts, key.deaths, key.error) = (0, 0, None);
                self.next(index);
            }
            Then::HoldUntil { covered, at, why } => {
                self.pop(index, covered - 1);
                self.front_is_stored(index);
                let newer = self.key(index).queue.len() > 1;
                if latest && newer && why == Why::RetryAt {
                    self.make_ready(index);
                } else {
                    self.set_phase(index, Phase::Until { at, why });
                    self.timers.insert((at, index));
                }
            }
            Then::HoldDead { covered } => {
                self.pop(index, covered - 1);
                self.front_is_stored(index);
                self.set_phase(index, Phase::Dead);
                if latest && self.key(index).queue.len() > 1 {
                    self.revive(index, out);
                }
            }
            Then::Ready { marked } => {
                self.front_is_stored(index);
                self.make_ready(index);
                let key = self.key_mut(index);
                key.marked = marked;
                if marked {
                    // A marked suspect goes first, so that no time passes in which it is blamed without running.
                    self.ready.retain(|ready| *ready != index);
                    self.ready.push_front(index);
                }
            }
        }
        self.act_on_deferred(index, out);
    }

    fn act_on_deferred(&mut self, index: KeyIndex, out: &mut Vec<Command<P>>) {
        let deferred = match self.keys[index as usize].as_mut() {
            Some(key) if !key.deferred.is_empty() => std::mem::take(&mut key.deferred),
            Some(_) | None => return,
        };
        for (id, target, action) in deferred {
            self.open.remove(&id);
            self.act(id, target, action, out);
        }
    }

    /// It has a durable receipt or exception.
    fn close(&mut self, request: RequestId) {
        self.open.remove(&request);
        if let Some(reread) = &mut self.rereading {
            reread.finished.insert(request);
        }
    }

    fn pop(&mut self, index: KeyIndex, count: usize) {
        for _ in 0..count {
            let Some(entry) = self.key_mut(index).queue.pop_front() else { return };
            self.total -= usize::from(!entry.stored);
            self.close(entry.id);
        }
    }

    fn front_is_stored(&mut self, index: KeyIndex) {
        if let Some(front) = self.key_mut(index).queue.front_mut() {
            let (id, was_stored) = (front.id, front.stored);
            front.stored = true;
            self.total -= usize::from(!was_stored);
            self.close(id);
        }
    }

    /// The key's next request may start, if there is one.
    fn next(&mut self, index: KeyIndex) {
        let key = self.key_mut(index);
        key.marked = false;
        if key.queue.is_empty() {
            self.set_phase(index, Phase::Idle);
            self.forget_if_idle(index);
        } else {
            self.make_ready(index);
        }
    }

    fn forget_if_idle(&mut self, index: KeyIndex) {
        let key = self.key(index);
        let idle = key.phase == Phase::Idle && key.queue.is_empty() && key.deferred.is_empty();
        if idle && !key.closed && !key.in_ready {
            let name = key.name.clone();
            self.by_name.remove(&name);
            self.keys[index as usize] = None;
            self.free.push(index);
        }
    }

    fn settle_receipts(
        &mut self,
        index: KeyIndex,
        covered: usize,
        outcome: impl Fn(RequestId) -> ReceiptOutcome,
        out: &mut Vec<Command<P>>,
    ) {
        let outstanding = count(covered);
        let key = self.key(index);
        for entry in key.queue.iter().take(covered) {
            let item = Item::Receipt { request: entry.id, outcome: outcome(entry.id) };
            out.push(Command::Settle { item, ticket: phase_ticket(index, entry.id) });
        }
        self.set_phase(index, Phase::Settling { outstanding, then: Then::Finish { covered } });
    }

    /// Of the covered requests the last is held as an exception, which stands for the others too.
    fn settle_held(
        &mut self,
        index: KeyIndex,
        covered: usize,
        state: ExceptionState,
        then: Then,
        out: &mut Vec<Command<P>>,
    ) {
        let key = self.key(index);
        for entry in key.queue.iter().take(covered - 1) {
            let item = Item::Receipt { request: entry.id, outcome: ReceiptOutcome::Coalesced };
            out.push(Command::Settle { item, ticket: phase_ticket(index, entry.id) });
        }
        let entry = &key.queue[covered - 1];
        let item = Item::Exception {
            request: entry.id,
            state,
            attempts: key.attempts,
            deaths: key.deaths,
            error: key.error.clone(),
            cause: entry.cause.clone(),
        };
        out.push(Command::Settle { item, ticket: phase_ticket(index, entry.id) });
        self.set_phase(index, Phase::Settling { outstanding: count(covered), then });
    }

    fn settle_front(&mut self, index: KeyIndex, state: ExceptionState, then: Then, out: &mut Vec<Command<P>>) {
        let covered = 1;
        self.settle_held(index, covered, state, then, out);
    }

    fn make_ready(&mut self, index: KeyIndex) {
        self.set_phase(index, Phase::Ready);
        let key = self.key_mut(index);
        if !key.in_ready {
            key.in_ready = true;
            self.ready.push_back(index);
        }
    }

    fn set_phase(&mut self, index: KeyIndex, phase: Phase) {
        let key = self.keys[index as usize].as_mut().expect("phases are set of live keys only");
        let was = std::mem::replace(&mut key.phase, phase);
        let now_running = matches!(key.phase, Phase::Running { .. });
        let now_settling = matches!(key.phase, Phase::Settling { .. });
        let was_running = matches!(was, Phase::Running { .. });
        self.running = self.running + usize::from(now_running) - usize::from(was_running);
        self.settling = self.settling + usize::from(now_settling) - usize::from(matches!(was, Phase::Settling { .. }));
        // From its start mark to the end of its run the suspect is the only one.
        let about_to_run =
            matches!(key.phase, Phase::Settling { then: Then::Ready { marked: true }, .. } | Phase::Ready)
                && !was_running;
        if key.isolated && !about_to_run && !now_running {
            key.isolated = false;
            self.isolated -= 1;
        }
    }

    // ---- time, parking and memory ------------------------------------------------------------------------------------

    /// Requests whose time has come may start.
    pub(crate) fn wake(&mut self, now: Timestamp) {
        while let Some(&(at, index)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(key) = self.keys[index as usize].as_ref() else { continue };
            if matches!(key.phase, Phase::Until { at: until, .. } if until <= now) {
                self.barren = None;
                self.make_ready(index);
            }
        }
    }

    /// When [`SlotQueue::wake`] has something to do next.
    pub(crate) fn next_timer(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Copies requests that stand behind a dead letter or a wait, and came at or before `until`, out of the log, so that
    /// the watermark can pass them. At most `most` at once.
    pub(crate) fn park(&mut self, until: Revision, most: usize, out: &mut Vec<Command<P>>) {
        if self.open.first().is_none_or(|first| first.revision > until) {
            return;
        }
        let mut left = most;
        for (index, key) in self.keys.iter_mut().enumerate() {
            let Some(key) = key else { continue };
            if !matches!(key.phase, Phase::Dead | Phase::Until { .. }) {
                continue;
            }
            for entry in &mut key.queue {
                if entry.stored || entry.parking || entry.id.revision > until {
                    continue;
                }
                if left == 0 {
                    return;
                }
                left -= 1;
                entry.parking = true;
                let item = Item::Exception {
                    request: entry.id,
                    state: ExceptionState::Parked,
                    attempts: 0,
                    deaths: 0,
                    error: None,
                    cause: entry.cause.clone(),
                };
                let ticket = Ticket { key: index_from(index), request: entry.id, kind: TicketKind::Park };
                out.push(Command::Settle { item, ticket });
            }
        }
    }

    /// Copies everything that is left out of the log, for the slots of the next layout to take over. Nothing may be
    /// running or being stored, and nothing missing. Gives the requests with their keys.
    pub(crate) fn drain_all(&self) -> Vec<(Arc<str>, Item<P>)> {
        let mut items = Vec::new();
        for key in self.keys.iter().flatten() {
            for (at, entry) in key.queue.iter().enumerate() {
                let governs = match self.delivery {
                    Delivery::EveryChange => at == 0,
                    Delivery::LatestState => entry.stored,
                };
                let state = match (&key.phase, governs) {
                    (Phase::Until { at, why: Why::RetryAt }, true) => ExceptionState::Waiting { until: *at },
                    (Phase::Until { at, why: Why::BackingOff }, true) => ExceptionState::BackingOff { until: *at },
                    (Phase::Dead, true) => ExceptionState::Dead,
                    (_, true | false) => ExceptionState::Parked,
                };
                let (attempts, deaths, error) =
                    if governs { (key.attempts, key.deaths, key.error.clone()) } else { (0, 0, None) };
                let cause = entry.cause.clone();
                items.push((
                    key.name.clone(),
                    Item::Exception { request: entry.id, state, attempts, deaths, error, cause },
                ));
            }
        }
        items
    }

    /// Leaves a request of the tail in the log.
    fn leave_out(&mut self, id: RequestId, index: Option<KeyIndex>) {
        self.missing_from = Some(self.missing_from.map_or(id, |from| from.min(id)));
        match index {
            Some(index) => {
                let key = self.key_mut(index);
                key.closed = true;
                key.tail_last = Some(id);
            }
            None => {
                self.closed = true;
                if let Some(reread) = &mut self.rereading {
                    reread.tail_last = Some(id);
                }
            }
        }
    }

    /// Leaves a request that was read again in the log once more.
    fn leave_out_again(&mut self, id: RequestId, index: Option<KeyIndex>) {
        let Some(reread) = &mut self.rereading else { return };
        reread.missing = Some(reread.missing.map_or(id, |from| from.min(id)));
        match index {
            Some(index) => self.key_mut(index).left_out = true,
            None => reread.left_out = true,
        }
    }

    /// Cuts a key that stands still, or the one with the most requests, if that makes room for one of another. Says
    /// whether there is room.
    fn make_room(&mut self, wanted: Option<KeyIndex>, thoroughly: bool) -> bool {
        // Once requests of unknown keys are missing, looking for the longest key with each further one would not pay.
        if self.closed && !thoroughly {
            return false;
        }
        let own = wanted.map_or(0, |index| self.key(index).queue.len());
        let longest = self
            .keys
            .iter()
            .enumerate()
            .filter_map(|(index, key)| {
                let key = key.as_ref()?;
                let other = wanted.is_none_or(|wanted| wanted as usize != index);
                Some((other && key.is_blocked() && key.queue.len() > 1, key.queue.len(), index))
            })
            .max();
        let Some((blocked, length, index)) = longest else { return false };
        if !blocked && length <= SHORT.max(own + 1) {
            return false;
        }
        let key = self.keys[index].as_mut().expect("found among live keys");
        let kept = match key.phase {
            Phase::Running { covered, .. } => covered.max(length / 2),
            Phase::Settling { then: Then::Finish { covered } | Then::HoldDead { covered }, .. }
            | Phase::Settling { then: Then::HoldUntil { covered, .. }, .. } => covered.max(length / 2),
            Phase::Until { .. } | Phase::Dead => 1,
            Phase::Settling { then: Then::Ready { .. }, .. } | Phase::Idle | Phase::Ready => length / 2,
        };
        let mut cut = false;
        while key.queue.len() > kept.max(1) && key.queue.back().is_some_and(|last| !last.stored && !last.parking) {
            let Some(entry) = key.queue.pop_back() else { break };
            self.total -= 1;
            self.open.remove(&entry.id);
            self.missing_from = Some(self.missing_from.map_or(entry.id, |from| from.min(entry.id)));
            key.closed = true;
            // Should the log be read again right now, it may be past this one.
            key.tail_last = key.tail_last.max(Some(entry.id));
            key.left_out = true;
            if let Some(reread) = &mut self.rereading {
                reread.missing = Some(reread.missing.map_or(entry.id, |from| from.min(entry.id)));
            }
            cut = true;
        }
        cut
    }

    /// From where the log is to be read again, if there is something missing that could run, and room for it.
    pub(crate) fn wants_reread(&self) -> Option<Revision> {
        let missing = self.missing_from.filter(|_| self.rereading.is_none() && !self.loading)?;
        // A pass that found no room is not repeated before something has gone.
        if self.barren.is_some_and(|total| self.total >= total) {
            return None;
        }
        let hungry = |key: &Key<P>| key.closed && !key.is_blocked() && key.queue.len() <= 1;
        let wanted = self.closed && self.total <= self.bound / 2 || self.keys.iter().flatten().any(hungry);
        wanted.then(|| Revision(missing.revision.0.saturating_sub(1)))
    }

    /// The log is read again from where [`SlotQueue::wants_reread`] said.
    pub(crate) fn reread_begins(&mut self) {
        self.rereading = Some(Reread::default());
        self.barren = None;
        for key in self.keys.iter_mut().flatten() {
            key.left_out = false;
            key.tail_last = None;
        }
    }

    /// A request that was read again; `finished` has those with receipts.
    pub(crate) fn reread(
        &mut self,
        id: RequestId,
        key: &str,
        cause: P,
        finished: &HashSet<RequestId>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(reread) = &self.rereading else { return };
        if self.open.contains(&id) || finished.contains(&id) || reread.finished.contains(&id) {
            return;
        }
        let index = self.by_name.get(key).copied();
        let again = match index {
            Some(index) => {
                let key = self.key(index);
                if !key.closed || self.knows(key, id) {
                    return;
                }
                // What stands behind a wait or a dead letter would only fill the memory.
                key.left_out || key.is_blocked() && !key.queue.is_empty()
            }
            None => reread.left_out,
        };
        // An absent key that nothing is missing of can't have an unfinished request, so it is a closed slot's.
        if index.is_none() && !self.closed {
            return;
        }
        if again || self.total >= self.bound && !self.make_room(index, true) {
            self.leave_out_again(id, index);
            return;
        }
        let index = index.unwrap_or_else(|| self.index_of(key));
        // Until the reread is over the tail must not overtake it.
        self.key_mut(index).closed = true;
        if let Some(reread) = &mut self.rereading {
            reread.accepted = true;
        }
        self.take_in(index, id, cause);
        self.noticed(index, id, out);
    }

    /// The log was read again up to `read_to`. What the tail brought above that and was left out stays missing.
    pub(crate) fn reread_ends(&mut self, read_to: Revision) {
        let Some(reread) = self.rereading.take() else { return };
        let above = |last: Option<RequestId>| last.filter(|last| last.revision > read_to);
        let mut missing = reread.missing;
        let mut also_missing = |last: Option<RequestId>| {
            if let Some(last) = above(last) {
                let first = RequestId { revision: read_to.next(), sequence: 0, hook: last.hook };
                missing = Some(missing.map_or(first, |from| from.min(first)));
            }
        };
        also_missing(reread.tail_last);
        self.barren = (!reread.accepted).then_some(self.total);
        self.closed = reread.left_out || above(reread.tail_last).is_some();
        for key in self.keys.iter_mut().flatten() {
            also_missing(key.tail_last);
            key.closed = key.left_out || above(key.tail_last).is_some();
        }
        self.missing_from = missing;
        for index in 0..self.keys.len() {
            if self.keys[index].is_some() {
                self.forget_if_idle(index_from(index));
            }
        }
    }

    /// The log could not be read again; what is missing stays so.
    pub(crate) fn reread_failed(&mut self) {
        self.rereading = None;
    }

    /// The slot has looked at every row up to here.
    pub(crate) fn passed(&mut self, revision: Revision) {
        self.position = self.position.max(revision);
    }

    /// Every request of the slot at or below this has a durable receipt or exception.
    pub(crate) fn watermark(&self) -> Revision {
        let below = |id: &RequestId| Revision(id.revision.0.saturating_sub(1));
        let open = self.open.first().map_or(self.position, below);
        let missing = self.missing_from.as_ref().map_or(self.position, below);
        self.position.min(open).min(missing)
    }

    /// Sets how many requests are kept in memory.
    pub(crate) fn set_bound(&mut self, bound: usize) {
        self.bound = bound.max(1);
    }

    // ---- views -------------------------------------------------------------------------------------------------------

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
        !self.ready.is_empty() || !self.set_aside.is_empty()
    }

    /// Keys that could start now.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Requests in memory.
    pub(crate) fn len(&self) -> usize {
        self.total
    }

    /// How many suspects of killing servers are marked or running.
    pub(crate) fn isolated(&self) -> usize {
        self.isolated
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

    // ---- keys --------------------------------------------------------------------------------------------------------

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
#[path = "key_queue_tests.rs"]
mod tests;
