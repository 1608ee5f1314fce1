//! Stores, versions, pushes and regions: the rollout controller, region agents and engines.

pub mod context;
pub mod controller;
pub mod entities;
pub mod freshness;
pub mod hooks;
pub mod job_status;
pub mod metrics;
pub mod operations;

pub use context::PushContexts;
pub use hooks::{ArtifactRemover, RolloutDependencies, RolloutHooks};
pub use metrics::RolloutMetrics;
pub use operations::{OperationError, Operations};

pub mod engine;
pub mod region;
