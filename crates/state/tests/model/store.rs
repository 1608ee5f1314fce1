//! What is stored: the log, receipts, exceptions, the rows of slots, tokens and leases. And what is on its way there.

use crate::requests::{Request, Requests};
use crate::rules::{History, Rule};
use crate::variants::Variant;

/// One life of a server's membership: another one each time it joins.
pub(crate) type Life = u8;
pub(crate) type Token = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Exception {
    Waiting,
    Dead,
    Parked,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct SlotRow {
    pub(crate) owner: Option<Life>,
    pub(crate) token: Token,
    pub(crate) watermark: Request,
}

/// Something that an owner has sent under a token. It may arrive late, after others, or when its sender is dead.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Message {
    pub(crate) slot: usize,
    pub(crate) token: Token,
    pub(crate) body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Body {
    /// How a run ended; `writes` commit together with it.
    End {
        key: usize,
        receipts: Requests,
        held: Option<(Request, Exception)>,
        snapshot: Request,
        writes: bool,
    },
    /// A request that waits behind another is copied out of the log.
    Park(Request),
    Watermark(Request),
    Release,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    /// The revision of the newest row.
    pub(crate) head: Request,
    /// Under which token each request was acknowledged.
    pub(crate) receipts: Vec<Option<Token>>,
    pub(crate) exceptions: Vec<Option<Exception>>,
    pub(crate) slots: Vec<SlotRow>,
    pub(crate) token_counter: Token,
    pub(crate) lives: Life,
    /// The lives whose lease is not over.
    pub(crate) live: Requests,
}

impl Message {
    /// Whether it stores an exception, which one of a later run may have to replace.
    pub(crate) fn excepts(&self) -> bool {
        matches!(self.body, Body::Park(_) | Body::End { held: Some(_), .. })
    }
}

impl Store {
    pub(crate) fn new(requests: usize, slots: usize) -> Store {
        Store {
            head: 0,
            receipts: vec![None; requests + 1],
            exceptions: vec![None; requests + 1],
            slots: vec![SlotRow::default(); slots],
            token_counter: 0,
            lives: 0,
            live: Requests::default(),
        }
    }

    pub(crate) fn holds(&self, slot: usize, token: Token) -> bool {
        let row = &self.slots[slot];
        row.token == token && row.owner.is_some_and(|owner| self.live.has(owner))
    }

    pub(crate) fn is_free(&self, slot: usize) -> bool {
        self.slots[slot].owner.is_none_or(|owner| !self.live.has(owner))
    }

    pub(crate) fn acknowledged(&self) -> Requests {
        (1..=self.head).filter(|request| self.receipts[usize::from(*request)].is_some()).collect()
    }

    /// Up to where the log may be compacted.
    pub(crate) fn watermark_min(&self) -> Request {
        self.slots.iter().map(|row| row.watermark).min().unwrap_or(0)
    }

    pub(crate) fn join(&mut self) -> Life {
        self.lives += 1;
        self.live.insert(self.lives);
        self.lives
    }

    /// Leases a slot that is free.
    pub(crate) fn take(&mut self, slot: usize, life: Life, variant: Variant, history: &mut History) -> Token {
        let raised = variant != Variant::TokenIsNotRaised || self.slots[slot].token == 0;
        let token = if raised { self.token_counter + 1 } else { self.slots[slot].token };
        history.gave(token, self.token_counter);
        self.token_counter = self.token_counter.max(token);
        self.slots[slot].owner = Some(life);
        self.slots[slot].token = token;
        token
    }

    /// Takes a message in, and says whether it counts.
    pub(crate) fn receive(&mut self, message: &Message, variant: Variant, history: &mut History) -> bool {
        let Message { slot, token, ref body } = *message;
        let holds = self.holds(slot, token);
        if let Body::End { receipts, writes: true, .. } = body
            && receipts.iter().all(|request| self.receipts[usize::from(request)] == Some(token))
            && variant != Variant::CompletionSentAnew
        {
            // One submission, one effect: it is found by its id.
            return true;
        }
        let fenced = match body {
            Body::End { writes: true, .. } => variant != Variant::EffectsAreNotFenced,
            Body::End { writes: false, .. } => variant != Variant::ReceiptsWithoutToken,
            Body::Park(_) | Body::Watermark(_) | Body::Release => true,
        };
        if fenced && !holds {
            return false;
        }
        history.must(holds, Rule::OnlyWhileTheTokenHolds);
        match body {
            Body::End { receipts, held, snapshot, writes, .. } => {
                for request in receipts.iter() {
                    history.must(request <= *snapshot, Rule::SeenBeforeAcknowledged);
                    let receipt = &mut self.receipts[usize::from(request)];
                    history.must(receipt.is_none_or(|earlier| earlier == token), Rule::OneReceipt);
                    receipt.get_or_insert(token);
                    self.exceptions[usize::from(request)] = None;
                    if *writes {
                        history.effect(request);
                    }
                }
                if let Some((request, exception)) = held {
                    self.except(*request, *exception);
                }
            }
            Body::Park(request) => self.except(*request, Exception::Parked),
            Body::Watermark(to) => self.slots[slot].watermark = self.slots[slot].watermark.max(*to),
            Body::Release => self.slots[slot].owner = None,
        }
        true
    }

    /// A receipt wins over an exception.
    fn except(&mut self, request: Request, exception: Exception) {
        if self.receipts[usize::from(request)].is_none() {
            self.exceptions[usize::from(request)] = Some(exception);
        }
    }
}
