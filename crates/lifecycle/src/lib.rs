//! Store lifecycle hooks: the contract of VIP-4, the hooks that Tidegate ships, and what runs them.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod call;
pub mod configuration;
pub mod context;
mod contract;
mod delivery;
pub mod event;
mod function;
pub mod gate;
pub mod hooks;
mod hooks_file;
mod judgement;
mod lifecycle;
pub mod metrics;
mod outcome;
pub mod pause;
pub mod pool;
mod publishing;
mod registry;
mod runner;
pub mod setting;
mod source;
mod validation;
mod wording;

pub use call::{CallRecord, CallRequest, CallSite, CallState, FailureKind, RecordedAnswer};
pub use configuration::{EffectiveHook, HooksConfiguration, Mode, OnFailure, Refusal};
pub use context::{
    Context, FieldStatistics, GoldenValue, RegionPushStatus, RegionStatus, Sample, SampledRecord, VersionStatistics,
};
pub use contract::{HookError, StoreLifecycleHooks, ValidationContext};
pub use event::{Event, EventStream};
pub use function::{Function, FunctionScope, Outcomes};
pub use gate::{GateState, GateStep, Override, Recorded, Refused, RoundAnswer, next_round};
pub use outcome::{
    Answer, AnswerDocument, EVENT_BYTES_MAX, EVENTS_MAX, EventDraft, MEMO_BYTES_MAX, PauseRequest, REASON_BYTES_MAX,
    StoreLifecycleEventOutcome, StoreVersionLifecycleEventOutcome, Verdict,
};
pub use pause::{Actor, Pause, PauseAnswer, PauseError, PauseView};
pub use registry::{Factory, HookDescriptor, HookKey, Registry};
pub use setting::{SettingError, Settings};

pub use delivery::{EventSink, LogSink};
pub use hooks_file::HooksFile;
pub use lifecycle::{CALL_HOOK, EVENT_HOOK, Lifecycle, LifecycleOptions};
pub use metrics::LifecycleMetrics;
pub use pool::PoolOptions;
pub use publishing::{FirstPublished, PublishError, Published, differences};
pub use source::ContextSource;
pub use validation::{OVERRIDE_BYTES_MAX, OVERRIDES_MAX, OverrideUpdate, Surroundings};
