//! Why a push is where it is, and what happens next.

use std::time::Duration;

use tidegate_api::{ExplainView, HoldKind, HoldView, LimitView, PushStatus};
use tidegate_rollout::controller::{Hold, HoldKind as Kind, holds};
use tidegate_rollout::entities::{Phase, PushState};
use tidegate_state::Timestamp;

use super::push::{Found, push_state};
use super::{Scene, ms, words};

/// Everything that holds a push, with what happens then.
pub(crate) fn hold_views(found: &Found, now: Timestamp) -> Vec<HoldView> {
    let mut holds = holds(&found.facts, &found.id, now);
    // What waits for something comes before what will move at any moment.
    holds.sort_by_key(|hold| match hold.kind {
        Kind::Gate if hold.until.is_none() => 2,
        Kind::Region | Kind::Client => 1,
        _ => 0,
    });
    let view = |hold: Hold| HoldView {
        then: what_then(&hold, found),
        kind: words::hold_kind(hold.kind),
        region: hold.region,
        gate: hold.gate,
        by: hold.by,
        reason: hold.reason,
        since: hold.since.map(ms),
        until: hold.until.map(ms),
    };
    holds.into_iter().map(view).collect()
}

fn what_then(hold: &Hold, found: &Found) -> String {
    let limit = |ms: u64| duration(Duration::from_millis(ms));
    let limits = &found.facts.store.limits;
    match words::hold_kind(hold.kind) {
        HoldKind::Gate => match hold.until {
            Some(_) => "The gate is asked again.".to_owned(),
            None => "The hook's answer is awaited; a call that takes too long is cut off and \
                     counts as failed."
                .to_owned(),
        },
        HoldKind::Freeze => {
            "Somebody has to lift the freeze, or to push past it with `tidegate push proceed`.".to_owned()
        }
        HoldKind::Region => format!(
            "The region goes on by itself; after {} without a word from it, it counts as failed.",
            limit(limits.region_ms)
        ),
        HoldKind::Client => format!(
            "The client goes on by itself; after {} without a word from it, the push ends as \
             ERROR (limit).",
            limit(limits.client_ms)
        ),
        HoldKind::Queue => "It starts as soon as that push has ended.".to_owned(),
        HoldKind::Unknown => "It goes on by itself.".to_owned(),
    }
}

/// Regions of the push in which another version is pinned: they hold nobody up, and rest.
fn pinned(found: &Found) -> impl Iterator<Item = HoldView> {
    let (facts, push) = (&found.facts, &found.push().push);
    push.regions.keys().filter_map(|name| {
        let pin = facts.regions.get(name)?.pinned_to_another(&facts.store, push.version)?;
        Some(HoldView {
            kind: HoldKind::Region,
            region: Some(name.clone()),
            gate: None,
            by: Some(pin.by.clone()),
            reason: format!("version {} is pinned there by {}: {}", pin.version, pin.by, pin.reason),
            since: Some(ms(pin.at)),
            until: None,
            then: "It keeps that version until the pin is lifted there (`tidegate agent unpin`).".to_owned(),
        })
    })
}

impl Scene<'_> {
    /// Why a push is where it is.
    pub(crate) fn explain(&self, found: &Found) -> ExplainView {
        let holds = hold_views(found, self.now);
        let push = &found.push().push;
        let state = push_state(&found.reference, push);
        let next_hold = holds.iter().filter(|hold| hold.until.is_some()).min_by_key(|hold| hold.until);
        let (summary, next, next_at) = match &push.state {
            PushState::Ended { end, .. } => (
                ended(state.status, end.by.map(|by| words::ended_by(by).word()), &end.reason),
                "Nothing: the push has ended.".to_owned(),
                None,
            ),
            PushState::Queued | PushState::Running(_) => {
                let next = next_hold.or_else(|| holds.first());
                (
                    summary(&push.state, &holds),
                    next.map_or_else(|| "The push goes on by itself at once.".to_owned(), |hold| hold.then.clone()),
                    next_hold.and_then(|hold| hold.until),
                )
            }
        };
        let holds = holds.into_iter().chain(pinned(found)).collect();
        ExplainView { state, now: ms(self.now), summary, limits: self.limits(found), holds, next, next_at }
    }

    fn limits(&self, found: &Found) -> Vec<LimitView> {
        let push = &found.push().push;
        if push.end().is_some() {
            return Vec::new();
        }
        let limits = &found.facts.store.limits;
        let used = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut views = vec![LimitView {
            name: "push limit".to_owned(),
            region: None,
            used_ms: used(push.clock.counted(self.now)),
            limit_ms: limits.push_ms,
            then: "The push ends as ERROR (limit).".to_owned(),
        }];
        if push.needs_client() {
            let heard = found.push().client.as_ref().map(|client| client.heard_at);
            let since = heard.unwrap_or(push.created_at).max(push.created_at);
            views.push(LimitView {
                name: "silence limit of the push client".to_owned(),
                region: None,
                used_ms: used(found.facts.uptime.listened(since, self.now)),
                limit_ms: limits.client_ms,
                then: "The push ends as ERROR (limit).".to_owned(),
            });
        }
        if let Some(Phase::GoingBack(back)) = push.phase() {
            let limit = Duration::from_millis(limits.confirmation_ms);
            let left = back.until.since(self.now);
            views.push(LimitView {
                name: "confirmation limit of the rollback".to_owned(),
                region: None,
                used_ms: used(limit.saturating_sub(left)),
                limit_ms: limits.confirmation_ms,
                then: "The push ends, and regions that have not confirmed are named.".to_owned(),
            });
        }
        for (name, region) in &push.regions {
            let facts = found.facts.regions.get(name);
            if region.state.is_at_rest() || push.completed_at.is_none() {
                continue;
            }
            if let Some(heard) = facts.and_then(|facts| facts.heard_at()) {
                views.push(LimitView {
                    name: "region limit".to_owned(),
                    region: Some(name.clone()),
                    used_ms: used(found.facts.uptime.listened(heard, self.now)),
                    limit_ms: limits.region_ms,
                    then: "The region counts as failed.".to_owned(),
                });
            }
        }
        views
    }
}

fn ended(status: PushStatus, by: Option<&str>, reason: &str) -> String {
    let by = by.map_or(String::new(), |by| format!(" ({by})"));
    if reason.is_empty() {
        format!("It has ended: {}{by}.", status.word())
    } else {
        format!("It has ended: {}{by}: {reason}", status.word())
    }
}

fn summary(state: &PushState, holds: &[HoldView]) -> String {
    let phase = match words::push_phase(state) {
        tidegate_api::PushPhase::Queued => "It waits for its turn",
        tidegate_api::PushPhase::Start => "Its start gate is asked",
        tidegate_api::PushPhase::Build => "Its client builds the artifact",
        tidegate_api::PushPhase::Schema => "The gate of its new schema is asked",
        tidegate_api::PushPhase::Upload => "Its client builds and sends parts",
        tidegate_api::PushPhase::Rollout => "Its regions take the version",
        tidegate_api::PushPhase::End => "Its end gate is asked",
        tidegate_api::PushPhase::RollingBack => "Its regions go back to what they served before",
        tidegate_api::PushPhase::Ended | tidegate_api::PushPhase::Unknown => "It has ended",
    };
    match holds {
        [] => format!("{phase}; nothing holds it."),
        [hold] => format!("{phase}; held by this: {}", described(hold)),
        [hold, rest @ ..] => format!("{phase}; held by this and {} more: {}", rest.len(), described(hold)),
    }
}

fn described(hold: &HoldView) -> String {
    let mut text = String::new();
    for part in [&hold.region, &hold.gate].into_iter().flatten() {
        text.push_str(part);
        text.push_str(": ");
    }
    text.push_str(&hold.reason);
    text
}

/// A length of time for people.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let texts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count} {unit}")).take(2).collect();
    if texts.is_empty() { format!("{} ms", duration.as_millis()) } else { texts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_their_two_largest_units() {
        let told = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!(told(30), "30 s");
        assert_eq!(told(600), "10 min");
        assert_eq!(told(14 * 86_400), "14 d");
        assert_eq!(told(90_061), "1 d 1 h");
        assert_eq!(duration(Duration::from_millis(40)), "40 ms");
    }
}
