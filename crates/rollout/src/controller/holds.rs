//! What holds a push: the same answer for its clock, for the reason of a limit, and for people who ask.

use std::fmt;

use tidegate_lifecycle::{GateStep, Outcomes, next_round};
use tidegate_state::Timestamp;

use super::region::{pin_text, time_text};
use super::view::{PushFacts, PushView};
use crate::entities::{Gate, IngestionStatus, Phase, PushState, RegionState};

/// Something that holds a push or one of its regions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// What kind of thing.
    pub kind: HoldKind,
    /// The region that is held; absent for the push itself.
    pub region: Option<String>,
    /// The gate's short name, where a gate holds.
    pub gate: Option<String>,
    /// The hook, the freeze's id, or the push that is waited for.
    pub by: Option<String>,
    /// Why, for people.
    pub reason: String,
    /// Since when.
    pub since: Option<Timestamp>,
    /// When something happens by itself, at the latest.
    pub until: Option<Timestamp>,
    /// Whether the push's clock does not run for it.
    pub stops_clock: bool,
}

/// What kind of thing holds a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldKind {
    /// A hook's answer, or that it has not answered.
    Gate,
    /// A freeze.
    Freeze,
    /// The region copies, loads, swaps, or waits for its embedded clients.
    Region,
    /// The push client builds or uploads.
    Client,
    /// An earlier push.
    Queue,
}

impl fmt::Display for Hold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(region) = &self.region {
            write!(formatter, "{region}: ")?;
        }
        if let Some(gate) = &self.gate {
            write!(formatter, "{gate}: ")?;
        }
        formatter.write_str(&self.reason)
    }
}

/// Everything that holds a push at the moment. Empty for one that has ended.
#[must_use]
pub fn holds(view: &PushView, id: &str, now: Timestamp) -> Vec<Hold> {
    view.pushes.get(id).map(|facts| holds_of(view, id, facts, now)).unwrap_or_default()
}

pub(super) fn holds_of(view: &PushView, id: &str, facts: &PushFacts, now: Timestamp) -> Vec<Hold> {
    let mut holds = Vec::new();
    match &facts.push.state {
        PushState::Queued => holds.extend(queue_hold(view, id, facts)),
        PushState::Running(phase) => {
            match phase {
                Phase::Build | Phase::Upload => holds.push(client_hold(view, facts, phase)),
                Phase::Start | Phase::Schema | Phase::Regions | Phase::End | Phase::GoingBack(_) => {}
            }
            if !matches!(phase, Phase::GoingBack(_)) {
                holds.extend(gate_holds(view, facts, now));
            }
            if matches!(phase, Phase::Regions | Phase::GoingBack(_)) {
                holds.extend(region_holds(view, facts));
            }
        }
        // Regions that come late hold nothing but themselves.
        PushState::Ended { .. } => {}
    }
    holds
}

fn queue_hold(view: &PushView, id: &str, facts: &PushFacts) -> Option<Hold> {
    let other = view.pushes.iter().find(|(other, facts)| *other != id && facts.push.phase().is_some());
    let reason = match other {
        Some((other, _)) => format!("waits for push {other} to end"),
        None => "waits until the push before it has been wrapped up".to_owned(),
    };
    Some(Hold {
        kind: HoldKind::Queue,
        region: None,
        gate: None,
        by: other.map(|(other, _)| other.clone()),
        reason,
        since: Some(facts.push.created_at),
        until: None,
        stops_clock: false,
    })
}

fn client_hold(view: &PushView, facts: &PushFacts, phase: &Phase) -> Hold {
    let heard = facts.client.as_ref().map_or(facts.push.created_at, |client| client.heard_at);
    let what = if *phase == Phase::Build { "builds" } else { "uploads" };
    let limit = std::time::Duration::from_millis(view.store.limits.client_ms);
    Hold {
        kind: HoldKind::Client,
        region: None,
        gate: None,
        by: None,
        reason: format!("the push client {what}; last heard of at {}", time_text(heard)),
        since: Some(heard),
        until: Some(heard.after(limit)),
        stops_clock: false,
    }
}

fn gate_holds(view: &PushView, facts: &PushFacts, now: Timestamp) -> Vec<Hold> {
    let mut holds = Vec::new();
    for gate in facts.gates.values() {
        let state = &gate.gate.state;
        // A gate that a region has left behind it undecided holds nothing any more.
        let region = state.region.as_ref().and_then(|region| facts.push.regions.get(region));
        let is_past = region.is_some_and(|region| region.state.is_at_rest());
        if state.function.outcomes() == Outcomes::None || state.is_decided() || is_past {
            continue;
        }
        let mut state = state.clone();
        for call in gate.calls.values() {
            if let tidegate_lifecycle::CallState::Answered { request, answer } = &call.state {
                state.record(request, answer);
            }
        }
        let step = next_round(&state, view.hooks.of(state.function), now, view.hooks.wait_interval);
        if let GateStep::Waiting { until, reason, hook, stops_clock } = step {
            holds.push(Hold {
                kind: HoldKind::Gate,
                region: state.region.clone(),
                gate: Some(state.function.short_name().to_owned()),
                by: Some(hook),
                reason,
                since: Some(gate.gate.asked_at),
                until,
                stops_clock,
            });
        }
    }
    holds
}

fn region_holds(view: &PushView, facts: &PushFacts) -> Vec<Hold> {
    let mut holds = Vec::new();
    for (name, region) in &facts.push.regions {
        let hold = |kind: HoldKind, by: Option<String>, reason: String, since: Timestamp, stops_clock: bool| Hold {
            kind,
            region: Some(name.clone()),
            gate: None,
            by,
            reason,
            since: Some(since),
            until: None,
            stops_clock,
        };
        let reported = view.regions.get(name).and_then(|facts_of| facts_of.reported(&view.store, facts.push.version));
        match &region.state {
            RegionState::Ingesting { since } => {
                let reason = match reported {
                    Some(IngestionStatus::Progress { bytes, of }) => format!("ingests, {bytes} of {of} bytes"),
                    Some(IngestionStatus::Completed | IngestionStatus::Failed { .. } | IngestionStatus::Started) => {
                        "ingests".to_owned()
                    }
                    None => "has not taken up its assignment".to_owned(),
                };
                holds.push(hold(HoldKind::Region, None, reason, *since, false));
            }
            RegionState::Ingested { since } => {
                let overridden = facts
                    .push
                    .overrides
                    .contains_key(&Gate::id(tidegate_lifecycle::Function::PreStoreVersionSwap, Some(name)));
                if let Some((id, freeze)) = view.freeze_of(name).filter(|_| !overridden) {
                    let reason = format!("frozen by {}: {} (freeze {id})", freeze.by, freeze.reason);
                    holds.push(hold(HoldKind::Freeze, Some(id.clone()), reason, freeze.at, true));
                } else if reported != Some(&IngestionStatus::Completed) {
                    let reason = "no longer has enough nodes that hold it".to_owned();
                    holds.push(hold(HoldKind::Region, None, reason, *since, false));
                } else if let Some(reason) = clients_behind(view, facts, name) {
                    holds.push(hold(HoldKind::Region, None, reason, *since, false));
                }
            }
            RegionState::Swapping { since } => {
                let reason = "was told to swap and has not confirmed it".to_owned();
                holds.push(hold(HoldKind::Region, None, reason, *since, false));
            }
            RegionState::GoingBack { since } => {
                let facts_of = view.regions.get(name).and_then(|facts_of| facts_of.current_report(&view.store));
                let pin = facts_of.and_then(|report| report.pin.as_ref());
                let pinned = pin.filter(|pin| Some(pin.version) != region.previous);
                let pinned = pinned.map_or(String::new(), |pin| format!(": {}", pin_text(pin)));
                let reason = format!("was told to go back and has not confirmed it{pinned}");
                holds.push(hold(HoldKind::Region, None, reason, *since, false));
            }
            RegionState::Waiting
            | RegionState::Baking { .. }
            | RegionState::Done { .. }
            | RegionState::Failed(_)
            | RegionState::LeftOut { .. }
            | RegionState::Stopped { .. } => {}
        }
    }
    holds
}

fn clients_behind(view: &PushView, facts: &PushFacts, region: &str) -> Option<String> {
    let report = view.regions.get(region)?.current_report(&view.store)?;
    let counts = report.embedded.versions.get(&facts.push.version).copied().unwrap_or_default();
    let (ready, word) = match view.store.embedded_swap {
        crate::entities::EmbeddedSwap::Alone => (counts.serving, "serve"),
        crate::entities::EmbeddedSwap::WithRegion => (counts.ingested, "hold"),
    };
    (ready < report.embedded.live)
        .then(|| format!("waits for embedded clients: {ready} of {} {word} it", report.embedded.live))
}
