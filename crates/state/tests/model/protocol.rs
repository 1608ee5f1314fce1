//! The protocol as steps: whatever can happen next in a state, and what it leads to.

use stateright::{Model, Property};

use crate::requests::{Request, Requests};
use crate::rules::{self, History, Start};
use crate::server::{Held, Phase, Server, Stage};
use crate::size::{Limits, Size};
use crate::store::{Body, Exception, Life, Message, Store};
use crate::variants::Variant;

#[derive(Clone, Debug)]
pub(crate) struct SlotProtocol {
    pub(crate) size: Size,
    pub(crate) variant: Variant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) servers: Vec<Server>,
    /// Sent and not answered. What a server has sent outlives it.
    pub(crate) sent: Vec<Message>,
    /// Copies of what was sent again, whose answers nobody waits for.
    pub(crate) late: Vec<Message>,
    pub(crate) left: Limits,
    pub(crate) history: History,
}

/// One step. Numbers are servers, slots and keys, in this order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// A writer commits the next change, and with it the request.
    Commit,
    TakeIn(usize),
    /// The log is compacted past a server, which loads the tree anew.
    Reload(usize),
    Join(usize),
    Peek(usize, usize),
    Take(usize, usize),
    ReadPending(usize, usize),
    Start(usize, usize, usize, Request),
    End(usize, usize, usize, RunEnd),
    /// A time has come.
    Wake(usize, usize, usize),
    Park(usize, usize, Request),
    RaiseWatermark(usize, usize),
    StopSlot(usize, usize),
    Release(usize, usize),
    /// The store takes in something that was sent, and answers.
    Receive(Message),
    /// Whether it was stored is not known, so it is sent again.
    Resend(Message),
    /// The store takes in something that was sent again meanwhile.
    ReceiveLate(Message),
    EndLease(Life),
    Heartbeat(usize),
    /// A server's lease ends by its own clock.
    Lapse(usize),
    Crash(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunEnd {
    Done,
    DoneWithWrites,
    RetryAt,
    FailedForGood,
    Interrupted,
}

impl SlotProtocol {
    /// Whether nothing can happen any more.
    pub(crate) fn is_at_rest(&self, state: &State) -> bool {
        if state.store.head < self.size.requests() || !state.sent.is_empty() {
            return false;
        }
        let mut actions = Vec::new();
        self.actions(state, &mut actions);
        actions.is_empty()
    }

    fn actions_of_slot(&self, state: &State, server: usize, slot: usize, held: &Held, actions: &mut Vec<Action>) {
        let position = state.servers[server].position;
        let left = &state.left;
        if held.stage == Stage::Leased && !held.stopping {
            actions.push(Action::ReadPending(server, slot));
        }
        if !held.stopping && left.moves > 0 {
            actions.push(Action::StopSlot(server, slot));
        }
        for key in 0..self.size.keys() {
            if held.may_start(key, &self.size, self.variant).is_some() {
                // A server's tree may be ahead of what its owner has taken in.
                let ahead = if self.size.latest { state.store.head } else { position };
                actions.extend((position..=ahead).map(|snapshot| Action::Start(server, slot, key, snapshot)));
            }
            match held.phases[key] {
                Phase::Running { committing: false, .. } => {
                    actions.push(Action::End(server, slot, key, RunEnd::Done));
                    if self.size.writes {
                        actions.push(Action::End(server, slot, key, RunEnd::DoneWithWrites));
                    }
                    if left.failures > 0 {
                        actions.push(Action::End(server, slot, key, RunEnd::RetryAt));
                        actions.push(Action::End(server, slot, key, RunEnd::FailedForGood));
                    }
                    if held.stopping {
                        actions.push(Action::End(server, slot, key, RunEnd::Interrupted));
                    }
                }
                Phase::Waiting => actions.push(Action::Wake(server, slot, key)),
                Phase::Running { .. } | Phase::Ready | Phase::Settling | Phase::Dead => {}
            }
            if self.size.upkeep && matches!(held.phases[key], Phase::Waiting | Phase::Dead) {
                let unstored = self.size.of_key(key, held.queue).without(held.stored).without(held.parking);
                actions.extend(unstored.iter().map(|request| Action::Park(server, slot, request)));
            }
        }
        let told = !held.skipped || self.variant == Variant::RaisesPastSkippedRows;
        let raises = held.stage == Stage::Active && told && (self.size.upkeep || held.stopping);
        if raises && held.low_watermark(position, self.variant) > held.watermark {
            actions.push(Action::RaiseWatermark(server, slot));
        }
        let outstanding = state.sent.iter().any(|message| (message.slot, message.token) == (slot, held.token));
        if held.stopping && !outstanding && held.is_quiet(self.variant) {
            actions.push(Action::Release(server, slot));
        }
    }

    fn ended(&self, state: &mut State, server: usize, slot: usize, key: usize, end: RunEnd) {
        let held = state.servers[server].slots[slot].as_mut().expect("it runs there");
        let Phase::Running { covered, snapshot, .. } = held.phases[key] else { unreachable!("it runs") };
        let last = covered.last().expect("a run covers a request");
        let exception = match end {
            RunEnd::Done | RunEnd::DoneWithWrites => None,
            RunEnd::RetryAt => Some((last, Exception::Waiting)),
            RunEnd::FailedForGood => Some((last, Exception::Dead)),
            RunEnd::Interrupted => {
                held.phases[key] = Phase::Ready;
                state.history.may_start_again = state.history.may_start_again.or(covered);
                return;
            }
        };
        let writes = end == RunEnd::DoneWithWrites;
        held.phases[key] =
            if writes { Phase::Running { covered, snapshot, committing: true } } else { Phase::Settling };
        let mut receipts = covered;
        let mut held_as = exception;
        if exception.is_some() {
            receipts = covered.without([last].into_iter().collect());
            state.left.failures -= 1;
            state.history.may_start_again = state.history.may_start_again.or(covered);
        }
        if end == RunEnd::FailedForGood && self.variant == Variant::DeadLetterWithoutException {
            held.phases[key] = Phase::Dead;
            held.stored.insert(last);
            held_as = None;
        }
        if end == RunEnd::Done && self.variant == Variant::StartsBeforeReceipt {
            held.phases[key] = Phase::Ready;
            held.finish(covered);
        }
        let token = held.token;
        if held_as.is_some() || !receipts.is_empty() {
            let body = Body::End { key, receipts, held: held_as, snapshot, writes };
            state.sent.push(Message { slot, token, body });
        }
    }

    fn receive(&self, state: &mut State, message: &Message) {
        let counts = state.store.receive(message, self.variant, &mut state.history);
        state.sent.retain(|sent| sent != message);
        let Message { slot, token, ref body } = *message;
        let ours = |held: &Option<Held>| held.as_ref().is_some_and(|held| held.token == token);
        let Some(server) = state.servers.iter_mut().find(|server| ours(&server.slots[slot])) else { return };
        let held = &mut server.slots[slot];
        if !counts || *body == Body::Release {
            *held = None;
            return;
        }
        let next = held.as_mut().and_then(|held| held.settled(body, &self.size));
        state.sent.extend(next.map(|body| Message { slot, token, body }));
    }

    /// What a server's tail brings to its slots.
    fn take_in(&self, state: &mut State, server: usize) {
        let server = &mut state.servers[server];
        server.position += 1;
        let slot = self.size.slot_of(self.size.key_of(server.position));
        let body = server.slots[slot].as_mut().and_then(|held| held.request(server.position, &self.size, self.variant));
        let token = server.slots[slot].as_ref().map(|held| held.token);
        state.sent.extend(body.zip(token).map(|(body, token)| Message { slot, token, body }));
    }

    fn activate(&self, state: &mut State, server: usize) {
        let position = state.servers[server].position;
        for (slot, held) in state.servers[server].slots.iter_mut().enumerate() {
            let Some(held) = held else { continue };
            let bodies = held.activate(position, &self.size, self.variant);
            state.sent.extend(bodies.into_iter().map(|body| Message { slot, token: held.token, body }));
        }
    }

    fn start(&self, state: &mut State, server: usize, slot: usize, key: usize, snapshot: Request) {
        let beside = state.servers.iter().enumerate().filter(|(other, _)| *other != server);
        let beside = beside.filter_map(|(_, other)| other.slots[slot].as_ref());
        let beside = beside.filter(|held| matches!(held.phases[key], Phase::Running { .. })).map(|held| held.token);
        let beside = beside.collect();
        let held = state.servers[server].slots[slot].as_mut().expect("it holds the slot");
        let covered = held.may_start(key, &self.size, self.variant).expect("it may start");
        held.phases[key] = Phase::Running { covered, snapshot, committing: false };
        let of_key = self.size.of_key(key, (1..=state.store.head).collect());
        let start = Start { key, covered, of_key, slot, token: held.token, beside };
        state.history.start(&start, &state.store);
    }
}

impl Model for SlotProtocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            store: Store::new(self.size.log.len(), self.size.slots),
            servers: vec![Server::new(self.size.slots, 0); self.size.servers],
            sent: Vec::new(),
            late: Vec::new(),
            left: self.size.limits,
            history: History::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let State { store, servers, sent, late, left, .. } = state;
        if store.head < self.size.requests() {
            actions.push(Action::Commit);
        }
        for (at, server) in servers.iter().enumerate() {
            if server.position < store.watermark_min() {
                actions.push(Action::Reload(at));
            }
            // Where it holds no slot nothing comes of it, and it may as well be later.
            if server.position < store.head && server.slots.iter().any(Option::is_some) {
                actions.push(Action::TakeIn(at));
            }
            let Some(life) = server.member else {
                actions.push(Action::Join(at));
                continue;
            };
            if !store.live.has(life) {
                actions.push(Action::Heartbeat(at));
            } else if left.lapses > 0 {
                actions.push(Action::Lapse(at));
            }
            if left.crashes > 0 {
                actions.push(Action::Crash(at));
            }
            for slot in 0..self.size.slots {
                match &server.slots[slot] {
                    Some(held) => self.actions_of_slot(state, at, slot, held, actions),
                    None if self.variant == Variant::ReadsBeforeTaking && server.peeked.is_none() => {
                        actions.push(Action::Peek(at, slot));
                    }
                    None if store.is_free(slot) && store.live.has(life) => actions.push(Action::Take(at, slot)),
                    None => {}
                }
            }
        }
        for life in store.live.iter() {
            let believed = servers.iter().any(|server| server.member == Some(life));
            if !believed || left.lapses > 0 {
                actions.push(Action::EndLease(life));
            }
        }
        for message in sent {
            actions.push(Action::Receive(message.clone()));
            if left.resends > 0 && !message.excepts() {
                actions.push(Action::Resend(message.clone()));
            }
        }
        actions.extend(late.iter().cloned().map(Action::ReceiveLate));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        let state = &mut next;
        let held = |state: &State, server: usize, slot: usize| {
            state.servers[server].slots[slot].clone().expect("it holds the slot")
        };
        match action {
            Action::Commit => state.store.head += 1,
            Action::TakeIn(server) => {
                self.take_in(state, server);
                self.activate(state, server);
            }
            Action::Reload(server) => {
                state.servers[server].position = state.store.head;
                for held in state.servers[server].slots.iter_mut().flatten() {
                    (held.stopping, held.skipped) = (true, true);
                }
                self.activate(state, server);
            }
            Action::Join(server) => state.servers[server].member = Some(state.store.join()),
            Action::Peek(server, slot) => {
                let mut peeked = Held::leased(0, 0, &self.size);
                peeked.read(slot, &state.store, &self.size, self.variant);
                state.servers[server].peeked = Some((slot, peeked));
            }
            Action::Take(server, slot) => {
                let life = state.servers[server].member?;
                let token = state.store.take(slot, life, self.variant, &mut state.history);
                let watermark = state.store.slots[slot].watermark;
                let peeked = state.servers[server].peeked.take().filter(|(of, _)| *of == slot);
                let held = match peeked {
                    Some((_, peeked)) => Held { token, watermark, ..peeked },
                    None => Held::leased(token, watermark, &self.size),
                };
                state.servers[server].slots[slot] = Some(held);
                self.activate(state, server);
            }
            Action::ReadPending(server, slot) => {
                let mut held = held(state, server, slot);
                held.read(slot, &state.store, &self.size, self.variant);
                state.servers[server].slots[slot] = Some(held);
                self.activate(state, server);
            }
            Action::Start(server, slot, key, snapshot) => self.start(state, server, slot, key, snapshot),
            Action::End(server, slot, key, end) => self.ended(state, server, slot, key, end),
            Action::Wake(server, slot, key) => {
                state.servers[server].slots[slot].as_mut()?.phases[key] = Phase::Ready;
            }
            Action::Park(server, slot, request) => {
                let held = state.servers[server].slots[slot].as_mut()?;
                held.parking.insert(request);
                state.sent.push(Message { slot, token: held.token, body: Body::Park(request) });
            }
            Action::RaiseWatermark(server, slot) => {
                let position = state.servers[server].position;
                let held = state.servers[server].slots[slot].as_mut()?;
                held.watermark = held.low_watermark(position, self.variant);
                let body = Body::Watermark(held.watermark);
                state.sent.push(Message { slot, token: held.token, body });
            }
            Action::StopSlot(server, slot) => {
                state.servers[server].slots[slot].as_mut()?.stopping = true;
                state.left.moves -= 1;
            }
            Action::Release(server, slot) => {
                let token = held(state, server, slot).token;
                state.sent.push(Message { slot, token, body: Body::Release });
            }
            Action::Receive(message) => self.receive(state, &message),
            Action::Resend(message) => {
                state.late.push(message);
                state.left.resends -= 1;
            }
            Action::ReceiveLate(message) => {
                let _ = state.store.receive(&message, self.variant, &mut state.history);
                state.late.retain(|late| *late != message);
            }
            Action::EndLease(life) => {
                state.store.live = state.store.live.without([life].into_iter().collect::<Requests>());
                if state.servers.iter().any(|server| server.member == Some(life)) {
                    state.left.lapses -= 1;
                    state.history.faulty = true;
                }
            }
            Action::Heartbeat(server) => {
                let life = state.servers[server].member?;
                if self.variant == Variant::RenewsLapsedLease {
                    state.store.live.insert(life);
                } else {
                    state.servers[server].lose_all();
                }
            }
            Action::Lapse(server) => {
                state.servers[server].lose_all();
                state.left.lapses -= 1;
                state.history.faulty = true;
            }
            Action::Crash(server) => {
                state.servers[server] = Server::new(self.size.slots, state.store.head);
                state.left.crashes -= 1;
                state.history.faulty = true;
            }
        }
        state.sent.sort_unstable();
        state.history.step(&state.store);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<SlotProtocol>> {
        rules::properties()
    }
}
