//! The story's facts: what `demo --output json` prints, and what decides whether every step ended as told.

use std::collections::BTreeMap;

use serde::Serialize;
use tidegate_api::{CallView, EpochMs, PushStatus, PushView, VersionStatus};

use super::application::Reads;

/// Everything that the demo did.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Facts {
    /// Whether every step ended as told.
    pub(crate) as_told: bool,
    /// What did not, in words.
    pub(crate) deviations: Vec<String>,
    /// The pushes in order.
    pub(crate) pushes: Vec<PushFacts>,
}

/// One push.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PushFacts {
    pub(crate) id: String,
    pub(crate) version: Option<u64>,
    pub(crate) status: &'static str,
    pub(crate) ended_by: Option<&'static str>,
    pub(crate) reason: Option<String>,
    pub(crate) version_status: Option<VersionStatus>,
    pub(crate) started_at: EpochMs,
    pub(crate) ended_at: Option<EpochMs>,
    pub(crate) regions: BTreeMap<String, RegionFacts>,
    pub(crate) calls: Vec<CallFacts>,
    pub(crate) reads: Reads,
}

/// One region in a push.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RegionFacts {
    /// The version that it served when the push had ended.
    pub(crate) version: Option<u64>,
    /// When each status was reached, in epoch milliseconds.
    pub(crate) times: BTreeMap<String, EpochMs>,
}

/// One call of a hook.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CallFacts {
    pub(crate) hook: String,
    pub(crate) function: String,
    pub(crate) region: Option<String>,
    pub(crate) attempt: u32,
    pub(crate) outcome: Option<&'static str>,
    pub(crate) reason: Option<String>,
    pub(crate) failed: Option<String>,
}

impl PushFacts {
    pub(crate) fn new(view: &PushView, calls: Vec<CallView>, reads: Reads) -> Self {
        PushFacts {
            id: view.state.push.clone(),
            version: view.state.version,
            status: view.state.status.word(),
            ended_by: view.state.ended_by.map(tidegate_api::EndedBy::word),
            reason: view.state.reason.clone(),
            version_status: view.version_status,
            started_at: view.created_at,
            ended_at: view.ended_at,
            regions: view
                .regions
                .iter()
                .map(|region| {
                    let facts = RegionFacts { version: region.serving, times: region.times.clone() };
                    (region.region.clone(), facts)
                })
                .collect(),
            calls: calls
                .into_iter()
                .map(|call| CallFacts {
                    hook: call.hook,
                    function: call.function,
                    region: call.region,
                    attempt: call.attempt,
                    outcome: call.verdict.map(tidegate_api::Verdict::word),
                    reason: call.reason,
                    failed: call.failed,
                })
                .collect(),
            reads,
        }
    }
}

/// How a push is to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    pub(crate) status: PushStatus,
    /// The version that every region then serves.
    pub(crate) serving: u64,
    /// What the reason has to name.
    pub(crate) reason_names: &'static [&'static str],
    /// Regions swap one after the other, at least so many milliseconds apart; none: no region swaps for good.
    pub(crate) apart_ms: Option<u64>,
}

/// What of a push is not as told, in words; nothing if all is.
pub(crate) fn deviations(facts: &PushFacts, told: &Told) -> Vec<String> {
    let mut found = Vec::new();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            found.push(format!("push {}: {what}", facts.id));
        }
    };
    expect(facts.status == told.status.word(), format!("ended {} and not {}", facts.status, told.status.word()));
    for (region, state) in &facts.regions {
        expect(
            state.version == Some(told.serving),
            format!("{region} serves {:?} and not {}", state.version, told.serving),
        );
    }
    let reason = facts.reason.as_deref().unwrap_or("");
    for name in told.reason_names {
        expect(reason.contains(name), format!("the reason does not name {name:?}: {reason}"));
    }
    expect(facts.reads.failed == 0, format!("{} of {} reads failed", facts.reads.failed, facts.reads.made));
    if let Some(apart_ms) = told.apart_ms {
        let swapped: Vec<Option<EpochMs>> =
            facts.regions.values().map(|region| region.times.get("ONLINE").copied()).collect();
        for pair in swapped.windows(2) {
            let apart = matches!(pair, [Some(first), Some(second)] if *second >= first + apart_ms);
            expect(apart, format!("the regions swapped at {swapped:?}, which is not {apart_ms} ms apart"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> PushFacts {
        let region = |at| RegionFacts { version: Some(1), times: BTreeMap::from([("ONLINE".to_owned(), at)]) };
        PushFacts {
            id: "p".to_owned(),
            version: Some(1),
            status: "COMPLETED",
            ended_by: None,
            reason: None,
            version_status: Some(VersionStatus::Online),
            started_at: 0,
            ended_at: Some(9_000),
            regions: BTreeMap::from([("a".to_owned(), region(1_000)), ("b".to_owned(), region(4_000))]),
            calls: Vec::new(),
            reads: Reads { made: 10, failed: 0 },
        }
    }

    const TOLD: Told = Told { status: PushStatus::Completed, serving: 1, reason_names: &[], apart_ms: Some(3_000) };

    #[test]
    fn a_push_that_ended_as_told_has_no_deviation() {
        assert_eq!(deviations(&facts(), &TOLD), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_deviation_is_named() {
        let told = Told { status: PushStatus::Aborted, serving: 2, reason_names: &["tz"], apart_ms: Some(3_001) };
        let mut facts = facts();
        facts.reads.failed = 1;
        let found = deviations(&facts, &told).join("\n");
        for part in [
            "and not ABORTED",
            "a serves Some(1) and not 2",
            "does not name \"tz\"",
            "1 of 10 reads failed",
            "3001 ms apart",
        ] {
            assert!(found.contains(part), "{part} in {found}");
        }
    }
}
