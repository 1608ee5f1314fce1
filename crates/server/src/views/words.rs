//! Words of rollout and lifecycle in the words of the API.

use tidegate_api as api;
use tidegate_lifecycle as lifecycle;
use tidegate_rollout::controller::HoldKind;
use tidegate_rollout::entities as rollout;

pub(crate) fn push_status(status: rollout::PushStatus) -> api::PushStatus {
    match status {
        rollout::PushStatus::Queued => api::PushStatus::Queued,
        rollout::PushStatus::Started => api::PushStatus::Started,
        rollout::PushStatus::Completed => api::PushStatus::Completed,
        rollout::PushStatus::Aborted => api::PushStatus::Aborted,
        rollout::PushStatus::RolledBack => api::PushStatus::RolledBack,
        rollout::PushStatus::Error => api::PushStatus::Error,
        rollout::PushStatus::Killed => api::PushStatus::Killed,
    }
}

pub(crate) fn push_phase(state: &rollout::PushState) -> api::PushPhase {
    match state {
        rollout::PushState::Queued => api::PushPhase::Queued,
        rollout::PushState::Ended { .. } => api::PushPhase::Ended,
        rollout::PushState::Running(phase) => match phase {
            rollout::Phase::Start => api::PushPhase::Start,
            rollout::Phase::Build => api::PushPhase::Build,
            rollout::Phase::Schema => api::PushPhase::Schema,
            rollout::Phase::Upload => api::PushPhase::Upload,
            rollout::Phase::Regions => api::PushPhase::Rollout,
            rollout::Phase::End => api::PushPhase::End,
            rollout::Phase::GoingBack(_) => api::PushPhase::RollingBack,
        },
    }
}

pub(crate) fn ended_by(by: rollout::EndedBy) -> api::EndedBy {
    match by {
        rollout::EndedBy::Gate => api::EndedBy::Gate,
        rollout::EndedBy::Region => api::EndedBy::Region,
        rollout::EndedBy::Limit => api::EndedBy::Limit,
        rollout::EndedBy::Input => api::EndedBy::Input,
        rollout::EndedBy::Fault => api::EndedBy::Fault,
        rollout::EndedBy::Operator => api::EndedBy::Operator,
        rollout::EndedBy::Superseded => api::EndedBy::Superseded,
    }
}

pub(crate) fn version_status(status: rollout::VersionStatus) -> api::VersionStatus {
    match status {
        rollout::VersionStatus::Started => api::VersionStatus::Started,
        rollout::VersionStatus::Pushed => api::VersionStatus::Pushed,
        rollout::VersionStatus::Online => api::VersionStatus::Online,
        rollout::VersionStatus::Error => api::VersionStatus::Error,
        rollout::VersionStatus::Killed => api::VersionStatus::Killed,
        rollout::VersionStatus::RolledBack => api::VersionStatus::RolledBack,
        rollout::VersionStatus::PartiallyOnline => api::VersionStatus::PartiallyOnline,
    }
}

pub(crate) fn failure_kind(kind: rollout::FailureKind) -> &'static str {
    match kind {
        rollout::FailureKind::DiskFull => "disk_full",
        rollout::FailureKind::MemoryLimitReached => "memory_limit_reached",
        rollout::FailureKind::TooManyDeadInstances => "too_many_dead_instances",
        rollout::FailureKind::DataDamaged => "data_damaged",
        rollout::FailureKind::SwapRefused => "swap_refused",
        rollout::FailureKind::Silent => "silent",
        rollout::FailureKind::Other => "other",
    }
}

pub(crate) fn verdict(verdict: lifecycle::Verdict) -> api::Verdict {
    match verdict {
        lifecycle::Verdict::Proceed => api::Verdict::Proceed,
        lifecycle::Verdict::Wait => api::Verdict::Wait,
        lifecycle::Verdict::Abort => api::Verdict::Abort,
        lifecycle::Verdict::Rollback => api::Verdict::Rollback,
    }
}

pub(crate) fn mode(mode: lifecycle::Mode) -> api::Mode {
    match mode {
        lifecycle::Mode::Enforce => api::Mode::Enforce,
        lifecycle::Mode::Observe => api::Mode::Observe,
        lifecycle::Mode::Off => api::Mode::Off,
    }
}

pub(crate) fn client_phase(phase: rollout::BuildPhase) -> api::ClientPhase {
    match phase {
        rollout::BuildPhase::Waiting => api::ClientPhase::Waiting,
        rollout::BuildPhase::Reading => api::ClientPhase::Inspecting,
        rollout::BuildPhase::Building => api::ClientPhase::Building,
        rollout::BuildPhase::Uploading | rollout::BuildPhase::Complete => api::ClientPhase::Uploading,
    }
}

pub(crate) fn build_phase(phase: api::ClientPhase) -> rollout::BuildPhase {
    match phase {
        api::ClientPhase::Waiting | api::ClientPhase::Unknown => rollout::BuildPhase::Waiting,
        api::ClientPhase::Inspecting => rollout::BuildPhase::Reading,
        api::ClientPhase::Building => rollout::BuildPhase::Building,
        api::ClientPhase::Uploading => rollout::BuildPhase::Uploading,
    }
}

pub(crate) fn hold_kind(kind: HoldKind) -> api::HoldKind {
    match kind {
        HoldKind::Gate => api::HoldKind::Gate,
        HoldKind::Freeze => api::HoldKind::Freeze,
        HoldKind::Region => api::HoldKind::Region,
        HoldKind::Client => api::HoldKind::Client,
        HoldKind::Queue => api::HoldKind::Queue,
    }
}

pub(crate) fn schema_mode(mode: rollout::SchemaMode) -> api::SchemaMode {
    match mode {
        rollout::SchemaMode::Compatible => api::SchemaMode::Compatible,
        rollout::SchemaMode::Any => api::SchemaMode::Any,
    }
}

pub(crate) fn on_new_push(setting: rollout::OnNewPush) -> api::OnNewPush {
    match setting {
        rollout::OnNewPush::Refuse => api::OnNewPush::Refuse,
        rollout::OnNewPush::Queue => api::OnNewPush::Queue,
        rollout::OnNewPush::Supersede => api::OnNewPush::Supersede,
    }
}

pub(crate) fn embedded_swap(setting: rollout::EmbeddedSwap) -> api::store::EmbeddedSwap {
    match setting {
        rollout::EmbeddedSwap::Alone => api::store::EmbeddedSwap::Alone,
        rollout::EmbeddedSwap::WithRegion => api::store::EmbeddedSwap::WithRegion,
    }
}
