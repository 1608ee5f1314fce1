//! What a server knows: how far its tail is, and of each slot that it leases what an owner keeps in memory.

use crate::requests::{Request, Requests};
use crate::size::Size;
use crate::store::{Body, Exception, Life, Store, Token};
use crate::variants::Variant;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    /// It believes that the lease of this life holds.
    pub(crate) member: Option<Life>,
    /// Every row up to here was taken in.
    pub(crate) position: Request,
    pub(crate) slots: Vec<Option<Held>>,
    /// What [`Variant::ReadsBeforeTaking`] has read.
    pub(crate) peeked: Option<(usize, Held)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub(crate) token: Token,
    pub(crate) stage: Stage,
    /// Requests in memory that are not known to be finished.
    pub(crate) queue: Requests,
    /// Those of them that have an exception, durably.
    pub(crate) stored: Requests,
    /// Those that are being copied out of the log.
    pub(crate) parking: Requests,
    pub(crate) phases: Vec<Phase>,
    pub(crate) stopping: bool,
    /// Rows were skipped, so nothing may be said about them.
    pub(crate) skipped: bool,
    /// The last watermark that was sent.
    pub(crate) watermark: Request,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// What is pending has not been read.
    Leased,
    /// It has been read, up to this row; what the tail brings above it is kept.
    Read {
        to: Request,
        buffered: Requests,
    },
    Active,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// The first request of the key may start, if there is one.
    Ready,
    Running {
        covered: Requests,
        snapshot: Request,
        committing: bool,
    },
    /// How it ended is being stored.
    Settling,
    Waiting,
    Dead,
}

impl Server {
    pub(crate) fn new(slots: usize, position: Request) -> Server {
        Server { member: None, position, slots: vec![None; slots], peeked: None }
    }

    /// Nothing that it leased is its own any more.
    pub(crate) fn lose_all(&mut self) {
        self.member = None;
        self.peeked = None;
        self.slots.iter_mut().for_each(|slot| *slot = None);
    }
}

impl Held {
    pub(crate) fn leased(token: Token, watermark: Request, size: &Size) -> Held {
        Held {
            token,
            stage: Stage::Leased,
            queue: Requests::default(),
            stored: Requests::default(),
            parking: Requests::default(),
            phases: vec![Phase::Ready; size.keys()],
            stopping: false,
            skipped: false,
            watermark,
        }
    }

    /// Reads what is pending: the log without receipts above the watermark, and the exceptions.
    pub(crate) fn read(&mut self, slot: usize, store: &Store, size: &Size, variant: Variant) {
        let above: Requests = (store.slots[slot].watermark + 1..=store.head).collect();
        let acknowledged =
            if variant == Variant::RecoveryIgnoresReceipts { Requests::default() } else { store.acknowledged() };
        let exception = |request: Request| store.exceptions[usize::from(request)];
        let with_exception: Requests = (1..=store.head).filter(|request| exception(*request).is_some()).collect();
        self.stored = size.of_slot(slot, with_exception);
        self.queue = size.of_slot(slot, above.without(acknowledged)).or(self.stored);
        for key in 0..size.keys() {
            let queue = size.of_key(key, self.queue);
            let governs = if size.latest {
                queue.iter().rev().find(|request| !matches!(exception(*request), None | Some(Exception::Parked)))
            } else {
                queue.first()
            };
            let newer = size.latest && governs < queue.last();
            self.phases[key] = match governs.and_then(exception) {
                Some(Exception::Waiting) if !newer => Phase::Waiting,
                Some(Exception::Dead) if !newer => Phase::Dead,
                Some(Exception::Waiting | Exception::Dead | Exception::Parked) | None => Phase::Ready,
            };
        }
        self.stage = Stage::Read { to: store.head, buffered: Requests::default() };
    }

    /// Begins to run once all that was read has been applied here. What is to be sent comes out.
    pub(crate) fn activate(&mut self, position: Request, size: &Size, variant: Variant) -> Vec<Body> {
        let mut out = Vec::new();
        if let Stage::Read { to, buffered } = self.stage
            && to <= position
        {
            self.stage = Stage::Active;
            for request in buffered.iter().filter(|request| *request > to) {
                out.extend(self.request(request, size, variant));
            }
        }
        out
    }

    /// The tail brings a request.
    pub(crate) fn request(&mut self, request: Request, size: &Size, variant: Variant) -> Option<Body> {
        match &mut self.stage {
            Stage::Leased => return None,
            Stage::Read { buffered, .. } => {
                buffered.insert(request);
                return None;
            }
            Stage::Active => {}
        }
        self.queue.insert(request);
        let key = size.key_of(request);
        match &mut self.phases[key] {
            Phase::Waiting if size.latest => self.phases[key] = Phase::Ready,
            Phase::Dead if size.latest => return Some(self.revive(key, size)),
            Phase::Running { covered, snapshot, committing } if size.latest => {
                let in_time = request <= *snapshot || variant == Variant::AcknowledgesWhatCameAfter;
                if in_time && (!*committing || variant == Variant::CoversWhileCommitting) {
                    covered.insert(request);
                }
            }
            Phase::Ready | Phase::Running { .. } | Phase::Settling | Phase::Waiting | Phase::Dead => {}
        }
        None
    }

    /// A dead key of `LatestState` gets another life.
    fn revive(&mut self, key: usize, size: &Size) -> Body {
        let first = size.of_key(key, self.queue).first().expect("a dead key has its dead letter");
        self.phases[key] = Phase::Settling;
        let held = Some((first, Exception::Parked));
        Body::End { key, receipts: Requests::default(), held, snapshot: first, writes: false }
    }

    /// Which requests a run would cover that starts now.
    pub(crate) fn may_start(&self, key: usize, size: &Size, variant: Variant) -> Option<Requests> {
        let queue = size.of_key(key, self.queue);
        let parking = variant != Variant::StartsWhileParking && !queue.and(self.parking).is_empty();
        let ready = self.stage == Stage::Active && !self.stopping && self.phases[key] == Phase::Ready;
        let first = queue.first().filter(|_| ready && !parking)?;
        Some(if size.latest { queue } else { [first].into_iter().collect() })
    }

    /// Something that was sent is durable. What is to be sent next comes out.
    pub(crate) fn settled(&mut self, body: &Body, size: &Size) -> Option<Body> {
        match body {
            Body::End { key, receipts, held, .. } => {
                let finished = match self.phases[*key] {
                    Phase::Running { covered, .. } => covered,
                    Phase::Ready | Phase::Settling | Phase::Waiting | Phase::Dead => *receipts,
                };
                self.finish(finished);
                let Some((request, exception)) = *held else {
                    self.phases[*key] = Phase::Ready;
                    return None;
                };
                self.stored.insert(request);
                let newer = size.latest && size.of_key(*key, self.queue).last() > Some(request);
                self.phases[*key] = match exception {
                    Exception::Waiting if !newer => Phase::Waiting,
                    Exception::Dead if newer => return Some(self.revive(*key, size)),
                    Exception::Dead => Phase::Dead,
                    Exception::Waiting | Exception::Parked => Phase::Ready,
                };
            }
            Body::Park(request) => {
                self.parking = self.parking.without([*request].into_iter().collect());
                if self.queue.has(*request) {
                    self.stored.insert(*request);
                }
            }
            Body::Watermark(_) | Body::Release => {}
        }
        None
    }

    pub(crate) fn finish(&mut self, finished: Requests) {
        self.queue = self.queue.without(finished);
        self.stored = self.stored.without(finished);
    }

    /// Every request at or below this has a receipt or an exception.
    pub(crate) fn low_watermark(&self, position: Request, variant: Variant) -> Request {
        let open = self.queue.without(self.stored).first();
        let below = open.filter(|_| variant != Variant::WatermarkTooHigh).map_or(position, |request| request - 1);
        below.min(position)
    }

    /// Nothing runs, and nothing that its key waits for is on its way.
    pub(crate) fn is_quiet(&self, variant: Variant) -> bool {
        let runs = |phase: &Phase| match phase {
            Phase::Running { committing, .. } => *committing || variant != Variant::ReleasesWithRunsGoing,
            Phase::Settling => true,
            Phase::Ready | Phase::Waiting | Phase::Dead => false,
        };
        !self.phases.iter().any(runs)
    }
}
