//! A region's part in a push in the words of VIP-4's `/job`.

use std::time::Duration;

use tidegate_api::ExecutionStatus;
use tidegate_state::Timestamp;

use crate::controller::{PushView, RegionFacts};
use crate::entities::{FailureKind, IngestionStatus, Milestone, RegionPush, RegionState};

/// How long nothing may be heard of a region that is at work before its status is UNKNOWN. Agents say every ten seconds
/// that they live.
const STALE: Duration = Duration::from_secs(60);

/// A region's job status: NOT_CREATED without an assignment, STARTED once it is assigned, PROGRESS while it copies or
/// loads, COMPLETED once it has ingested (whatever it serves), ERROR or the kind of failure, UNKNOWN while it is silent.
#[must_use]
pub fn region_job_status(
    view: &PushView,
    version: u64,
    name: &str,
    part: &RegionPush,
    now: Timestamp,
) -> ExecutionStatus {
    let reached = |milestone| part.reached.get(&milestone).copied();
    if let RegionState::Failed(failure) = &part.state {
        return match failure.kind {
            FailureKind::DiskFull => ExecutionStatus::DvcIngestionErrorDiskFull,
            FailureKind::MemoryLimitReached => ExecutionStatus::DvcIngestionErrorMemoryLimitReached,
            FailureKind::TooManyDeadInstances => ExecutionStatus::DvcIngestionErrorTooManyDeadInstances,
            FailureKind::DataDamaged | FailureKind::SwapRefused | FailureKind::Silent | FailureKind::Other => {
                ExecutionStatus::Error
            }
        };
    }
    let Some(assigned) = reached(Milestone::Assigned) else { return ExecutionStatus::NotCreated };
    if reached(Milestone::Ingested).is_some() {
        return ExecutionStatus::Completed;
    }
    if matches!(part.state, RegionState::Stopped { .. }) {
        return ExecutionStatus::Error;
    }
    let region = view.regions.get(name);
    let heard = region.and_then(RegionFacts::heard_at).map_or(assigned, |heard| heard.max(assigned));
    if view.uptime.listened(heard, now) > STALE {
        return ExecutionStatus::Unknown;
    }
    match region.and_then(|region| region.reported(&view.store, version)) {
        Some(IngestionStatus::Progress { .. }) => ExecutionStatus::Progress,
        _ if reached(Milestone::Progress).is_some() => ExecutionStatus::Progress,
        _ => ExecutionStatus::Started,
    }
}
