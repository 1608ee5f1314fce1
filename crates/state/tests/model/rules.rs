//! What has to hold: rules on what happened, kept beside the state while it goes on, and rules on what is stored.

use stateright::Property;

use crate::protocol::{SlotProtocol, State};
use crate::requests::{Request, Requests};
use crate::store::{Exception, Store, Token};

/// A rule on something that happens. The first that was broken stays on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    TokensRise,
    TokensStayVoid,
    OnlyWhileTheTokenHolds,
    OneReceipt,
    EffectsOnce,
    RunsOfAKeyDoNotOverlap,
    RunsOfAKeyDoNotGoBack,
    NextAfterReceipt,
    AcknowledgedStaysSo,
    NoSecondStart,
    SeenBeforeAcknowledged,
}

pub(crate) const LOST: &str =
    "G1, G3: when nothing is left to do, every request is done or dead, or waits behind a dead one";
pub(crate) const WATERMARK: &str = "G3: a watermark is never above a request with neither receipt nor exception";
pub(crate) const DONE: &str = "all can be done";

impl Rule {
    const ALL: [Rule; 11] = [
        Rule::TokensRise,
        Rule::TokensStayVoid,
        Rule::OnlyWhileTheTokenHolds,
        Rule::OneReceipt,
        Rule::EffectsOnce,
        Rule::RunsOfAKeyDoNotOverlap,
        Rule::RunsOfAKeyDoNotGoBack,
        Rule::NextAfterReceipt,
        Rule::AcknowledgedStaysSo,
        Rule::NoSecondStart,
        Rule::SeenBeforeAcknowledged,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Rule::TokensRise => "tokens are given once, and rise",
            Rule::TokensStayVoid => "a token that ceased to hold never holds again",
            Rule::OnlyWhileTheTokenHolds => "G5: nothing is stored under a token that does not hold",
            Rule::OneReceipt => "G5: at most one receipt for a request",
            Rule::EffectsOnce => "G5: what a run writes with its receipt is there once",
            Rule::RunsOfAKeyDoNotOverlap => "G7: runs of a key whose tokens hold do not overlap",
            Rule::RunsOfAKeyDoNotGoBack => "G7: from run to run of a key neither revisions nor tokens fall",
            Rule::NextAfterReceipt => "G7: a run starts when all requests of its key before it have receipts",
            Rule::AcknowledgedStaysSo => "G4: an acknowledged request does not start again",
            Rule::NoSecondStart => "G4: without a fault, a wait or a hand-back nothing starts twice",
            Rule::SeenBeforeAcknowledged => "G6: a change is acknowledged by runs only whose snapshot has it",
        }
    }
}

/// What happened so far, as far as the rules ask for it. No part of the protocol reads it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct History {
    broken: u16,
    voided: Requests,
    effects: Requests,
    started: Requests,
    /// It waited, failed or was handed back, so it may start again.
    pub(crate) may_start_again: Requests,
    /// A crash, or the end of a lease.
    pub(crate) faulty: bool,
    last: [(Request, Token); 2],
}

/// A run that starts.
pub(crate) struct Start {
    pub(crate) key: usize,
    pub(crate) covered: Requests,
    /// All requests of its key that the log has.
    pub(crate) of_key: Requests,
    pub(crate) slot: usize,
    pub(crate) token: Token,
    /// The tokens of other runs of the key that are going.
    pub(crate) beside: Vec<Token>,
}

impl History {
    pub(crate) fn must(&mut self, holds: bool, rule: Rule) {
        if !holds {
            self.broken |= 1 << rule as u16;
        }
    }

    pub(crate) fn gave(&mut self, token: Token, highest: Token) {
        self.must(token > highest, Rule::TokensRise);
    }

    pub(crate) fn effect(&mut self, request: Request) {
        self.must(!self.effects.has(request), Rule::EffectsOnce);
        self.effects.insert(request);
    }

    /// What is asked of starts under a token that holds; others are a stale owner's, whose ends are refused.
    pub(crate) fn start(&mut self, start: &Start, store: &Store) {
        if !store.holds(start.slot, start.token) {
            return;
        }
        let lead = start.covered.last().unwrap_or(0);
        let acknowledged = store.acknowledged();
        let open_before = start.of_key.without(start.covered).without(acknowledged).first();
        self.must(open_before.is_none_or(|request| request > lead), Rule::NextAfterReceipt);
        self.must(start.covered.and(acknowledged).is_empty(), Rule::AcknowledgedStaysSo);
        let overlaps = start.beside.iter().any(|token| store.holds(start.slot, *token));
        self.must(!overlaps, Rule::RunsOfAKeyDoNotOverlap);
        let again = start.covered.and(self.started).without(self.may_start_again);
        self.must(self.faulty || again.is_empty(), Rule::NoSecondStart);
        self.started = self.started.or(start.covered);
        let last = &mut self.last[start.key];
        let goes_back = lead < last.0 || start.token < last.1;
        *last = (lead, start.token);
        self.must(!goes_back, Rule::RunsOfAKeyDoNotGoBack);
    }

    /// After every step.
    pub(crate) fn step(&mut self, store: &Store) {
        let holding: Requests = store
            .slots
            .iter()
            .enumerate()
            .filter_map(|(slot, row)| store.holds(slot, row.token).then_some(row.token))
            .collect();
        self.must(self.voided.and(holding).is_empty(), Rule::TokensStayVoid);
        let given: Requests = (1..=store.token_counter).collect();
        self.voided = self.voided.or(given.without(holding));
    }
}

pub(crate) fn properties() -> Vec<Property<SlotProtocol>> {
    // A property is a plain function, so each rule needs one of its own.
    fn kept<const RULE: usize>(_: &SlotProtocol, state: &State) -> bool {
        state.history.broken & (1 << Rule::ALL[RULE] as u16) == 0
    }
    let kept: [fn(&SlotProtocol, &State) -> bool; 11] = [
        kept::<0>, kept::<1>, kept::<2>, kept::<3>, kept::<4>, kept::<5>, kept::<6>, kept::<7>, kept::<8>, kept::<9>,
        kept::<10>,
    ];
    let rules = Rule::ALL.iter().zip(kept).map(|(rule, kept)| Property::always(rule.name(), kept));
    let stored = [
        Property::always(WATERMARK, |model: &SlotProtocol, state: &State| watermark_is_low(model, &state.store)),
        Property::always(LOST, |model: &SlotProtocol, state: &State| {
            is_finished(model, &state.store) || !model.is_at_rest(state)
        }),
        Property::sometimes(DONE, |model: &SlotProtocol, state: &State| {
            state.store.acknowledged().iter().count() == model.size.log.len()
        }),
    ];
    rules.chain(stored).collect()
}

fn watermark_is_low(model: &SlotProtocol, store: &Store) -> bool {
    (1..=store.head).all(|request| {
        let kept = store.receipts[usize::from(request)].is_some() || store.exceptions[usize::from(request)].is_some();
        kept || request > store.slots[model.size.slot_of(model.size.key_of(request))].watermark
    })
}

fn is_finished(model: &SlotProtocol, store: &Store) -> bool {
    let is_dead = |request: Request| store.exceptions[usize::from(request)] == Some(Exception::Dead);
    (1..=model.size.requests()).all(|request| {
        let key = model.size.key_of(request);
        let stands_behind =
            |request| !model.size.latest && (1..request).any(|r| model.size.key_of(r) == key && is_dead(r));
        store.receipts[usize::from(request)].is_some() || is_dead(request) || stands_behind(request)
    })
}
