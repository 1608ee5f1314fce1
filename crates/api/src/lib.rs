//! What travels between Tidegate's server, its clients and its command line, and what a version
//! of a dataset looks like on disk.
//!
//! Types only: no I/O, no clock, no behaviour beyond parsing and printing. Every type derives
//! `serde` and the schema of the OpenAPI description, so that the description cannot drift from
//! what is sent.
//!
//! | module | has |
//! |---|---|
//! | [`manifest`] | the manifest of an artifact: parts, schema, statistics |
//! | [`access`] | tokens, roles and the audit trail |
//! | [`error`] | the one shape of errors |
//! | [`store`] | stores, their schemas, versions and hook settings |
//! | [`push`] | starting, feeding and following a push |
//! | [`upload`] | sending the parts of a push |
//! | [`view`] | a push as people see it: regions, gates, who holds what and why |
//! | [`freeze`] | freezes |
//! | [`pause`] | gates that are held for a person |
//! | [`job`] | the status of a push in the words of VIP-4's `/job` |
//! | [`agent`] | who hosts a region |
//! | [`region`] | regions and what they hold and serve |
//! | [`read`] | look-ups, one by one and in batches |
//! | [`config`] | the hooks configuration in force |
//! | [`cluster`] | servers, what they lease, and what waits |
//! | [`queue`] | requests of cluster hooks |
//! | [`watch`] | events of the watch streams |
//! | [`sse`] | the text form that they travel in |
//!
//! # Compatibility
//!
//! A newer server may send fields that an older client does not know: they are ignored. Words of
//! an enumeration that a reader does not know are read as its `Unknown` variant where it has one,
//! so that an older client can still show the rest. Times are [`EpochMs`]. Optional fields that
//! are absent are left out.

pub mod access;
pub mod agent;
pub mod cluster;
pub mod config;
pub mod error;
pub mod freeze;
pub mod job;
pub mod manifest;
pub mod pause;
pub mod push;
pub mod queue;
pub mod read;
pub mod region;
pub mod sse;
pub mod store;
pub mod upload;
pub mod view;
pub mod watch;

pub use access::{
    AuditChange, AuditEntity, AuditField, AuditOutcome, AuditPage, AuditView, Role, TokenCreate, TokenCreated,
    TokenStatus, TokenView,
};
pub use agent::{HostClaim, HostGrant, HostNode, HostView, PinView};
pub use cluster::{
    ClusterHookView, ClusterView, ServerHookView, ServerStatus, ServerView, SetBackConfirm, SetBackConfirmed,
};
pub use config::{
    ConfigView, HookSettingsView, HooksConfigUpdate, HooksConfigView, ServerConfigView, Setting, SettingOrigin,
};
pub use error::{ErrorBody, code};
pub use freeze::{FreezeRequest, FreezeScope, FreezeView};
pub use job::{ExecutionStatus, JobStatus};
pub use pause::{PauseAnswerRequest, PauseAnswerView, PauseView};
pub use push::{
    ClientPhase, EndedBy, FailRequest, HeartbeatRequest, InputFault, KillRequest, ProceedRequest, PushAccepted,
    PushPhase, PushStart, PushState, PushStatus, PushSummary, RegisterSchemaRequest, RegisteredSchema,
};
pub use queue::{QueueAction, QueueEntryState, QueueEntryView};
pub use read::{BatchAnswer, BatchRequest, KeyAnswer, KeyValue};
pub use region::{AvailabilityRequest, HeldVersionView, RegionSettings, RegionStoreView, RegionView};
pub use store::{
    EmbeddedSwap, Freshness, Limits, LimitsPatch, OnNewPush, OverridesUpdate, OverridesView, RollbackAnswer,
    RollbackRequest, SchemaMode, SchemaView, StoreCreate, StorePatch, StoreView, VersionStatus, VersionView,
};
pub use upload::{ArtifactStoreView, PartSentRequest, PartUploadRequest, PartUploadView, PartView, PartsView};
pub use view::{
    ArtifactView, CallView, ClientView, EmbeddedCounts, ExplainView, GateStatus, GateView, HoldKind, HoldView,
    HookAnswerView, LimitView, Mode, OverrideView, Progress, PushRegionView, PushView, RegionFailure, RegionStage,
    Verdict,
};
pub use watch::{ChangedEntity, EntityDocument, WatchEvent};

/// A time in milliseconds since 1970-01-01T00:00:00Z, by the clock of the control plane's store.
pub type EpochMs = u64;
