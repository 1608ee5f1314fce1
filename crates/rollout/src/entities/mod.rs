//! What rollout keeps in the state tree, one entity per file.
//!
//! | path | entity | only writer |
//! |---|---|---|
//! | `/stores/{s}` | [`Store`] | users (the version counter: starting a push) |
//! | `/stores/{s}/schemas/{n}` | [`RegisteredSchema`] | rollout |
//! | `/stores/{s}/versions/{n}` | [`Version`] | rollout |
//! | `/stores/{s}/versions/{n}/manifests/manifest` | [`VersionManifest`] | rollout |
//! | `/stores/{s}/pushes/{id}` | [`Push`] | rollout |
//! | `/stores/{s}/pushes/{id}/client/client` | [`PushClient`] | the push client, through the API |
//! | `/stores/{s}/pushes/{id}/gates/{gate}` | [`Gate`] | rollout |
//! | `/stores/{s}/pushes/{id}/gates/{gate}/calls/{hook}` | [`Call`] | asked by rollout, answered by `lifecycle-call` |
//! | `/stores/{s}/registrations/{id}` | [`SchemaRegistration`] | begun by users, then rollout |
//! | `…/gates/{gate}`, `…/calls/{hook}` below it | [`RegistrationGate`], [`RegistrationCall`] | as those of a push |
//! | `/stores/{s}/wake/{cause}` | [`Wake`] | fan-out |
//! | `/push-names/{id}` | [`PushName`] | starting a push |
//! | `/freezes/{id}` | [`Freeze`] | users |
//! | `/regions/{r}` | [`Region`] | users |
//! | `/regions/{r}/assignments/{s}` | [`Assignment`] | rollout |
//! | `/regions/{r}/reports/{s}` | [`Report`] | the region's agent |
//! | `/regions/{r}/heartbeats/agent` | [`AgentHeartbeat`] | the region's agent |
//! | `/regions/{r}/hosts/host` | [`RegionHosting`] | agents, by the rules of [`crate::region::hosting`] |
//! | `/garbage/{id}` | [`Garbage`] | rollout |
//! | `/uptime/control-plane`, `…/marks/last` | [`Uptime`], [`UptimeMark`] | the uptime hook |
//! | `/artifact-store/source` | [`SourceStore`] | the first server |
//! | `/version-floor/stores` | [`VersionFloor`] | restores |
//!
//! Nothing here decides anything: decisions are in [`crate::controller`], users' actions in [`crate::operations`].

mod assignment;
mod freeze;
mod garbage;
mod gate;
mod hosting;
mod push;
mod push_client;
mod push_name;
mod push_region;
mod region;
mod registration;
mod report;
mod schema;
mod source_store;
mod store;
mod uptime;
mod version;
mod version_floor;
mod wake;

pub use assignment::{ArtifactId, Assignment, EmbeddedPermission, Held};
pub use freeze::{Freeze, FreezeScope};
pub use garbage::{Garbage, GarbageKind, GarbageState};
pub use gate::{Call, Gate, Turn};
pub use hosting::{RegionHostNode, RegionHosting};
pub use push::{
    Alarm, EndedBy, GoingBack, Kill, Override, Phase, Push, PushClock, PushEnd, PushState, PushStatus, SchemaProgress,
    WrapUp,
};
pub use push_client::{BuildPhase, BuildProgress, PushClient};
pub use push_name::PushName;
pub use push_region::{Milestone, RegionFailure, RegionPush, RegionState};
pub use region::{AgentHeartbeat, Availability, Region};
pub use registration::{RegistrationCall, RegistrationGate, RegistrationState, SchemaRegistration};
pub use report::{
    EmbeddedCounts, EmbeddedVersionCounts, FailureKind, HeldReport, IngestionStatus, PAST_PINS_MAX, PastPin, Pin,
    Report,
};
pub use schema::RegisteredSchema;
pub use source_store::SourceStore;
pub use store::{EmbeddedSwap, Freshness, Limits, OnNewPush, Retention, SchemaMode, Store};
pub use uptime::{Gap, Uptime, UptimeMark};
pub use version::{RegionVersion, RolledBack, Version, VersionData, VersionManifest, VersionStatus};
pub use version_floor::VersionFloor;
pub use wake::Wake;
