//! Store lifecycle hooks: the contract of VIP-4, what runs it, and the hooks that Tidegate ships.
//!
//! A *hook* is asked at moments of a push ([`Function`], fourteen of them) and says whether the push goes on, waits, ends
//! or goes back. One of your own implements [`StoreLifecycleHooks`] and is added to the [`Registry`] of a build:
//!
//! ```
//! use std::sync::Arc;
//!
//! use async_trait::async_trait;
//! use tidegate_lifecycle::{
//!     Answer, Context, HookError, Registry, Settings, StoreLifecycleHooks, StoreVersionLifecycleEventOutcome as Outcome,
//! };
//!
//! /// Swaps a region only while few enough orders are open there.
//! struct OpenOrders {
//!     limit: u64,
//! }
//!
//! #[async_trait]
//! impl StoreLifecycleHooks for OpenOrders {
//!     async fn pre_store_version_swap(&self, context: &Context) -> Result<Answer<Outcome>, HookError> {
//!         let open = open_orders(context.region.as_deref().unwrap_or_default()).await?;
//!         if open <= self.limit {
//!             return Ok(Outcome::Proceed.into());
//!         }
//!         // The measured value next to its limit: people read this while a push waits.
//!         let reason = format!("{open} orders open (limit {})", self.limit);
//!         Ok(Outcome::Wait { reason, ask_again_at: None }.into())
//!     }
//! }
//!
//! async fn open_orders(_region: &str) -> Result<u64, HookError> {
//!     Ok(7) // where one would ask the order system; an error counts as the hook's `on_failure`
//! }
//!
//! // `[hooks.config.open-orders] limit = 10`, clipped, is what the factory gets.
//! let registry = Registry::shipped().with("open-orders", |settings| {
//!     let limit = Settings(settings).whole("limit")?.unwrap_or(100);
//!     Ok(Arc::new(OpenOrders { limit }))
//! });
//! assert!(registry.names().any(|name| name == "open-orders"));
//! ```
//!
//! # How it fits together
//!
//! Whoever drives pushes keeps a [`GateState`] per function (and region) and asks the pure [`next_round`] what to do. It
//! never calls a hook: what is to be asked becomes an entity ([`CallSite`]), which a cluster hook of this crate
//! ([`Lifecycle::register`]) picks up on one server, runs on a bounded pool ([`pool`]), and answers in the transaction
//! that acknowledges it. That change wakes the driver of the push again.
//!
//! | part | where |
//! |---|---|
//! | functions, outcomes, context, the trait | [`Function`], [`Answer`], [`Context`], [`StoreLifecycleHooks`] |
//! | rounds, severity, waiting, retries: pure | [`gate`] |
//! | settings: read, judged, published, merged with a store's overrides | [`HooksFile`], [`Lifecycle::publish`], [`Lifecycle::validate_overrides`], [`HooksConfiguration`] |
//! | calls, their records, pauses, events | [`call`], [`pause`], [`event`] |
//! | what is counted | [`LifecycleMetrics`] |
//! | the hooks that come with it | [`hooks`] |
//!
//! # Invariants
//!
//! 1. A gate opens only when every enforced hook has proceeded in one and the same round, or by an operator's word that is
//!    on record. No failure, time-out, crash or missing hook ever opens one, unless its `on_failure` says `proceed`.
//! 2. An answer counts once: it commits with the acknowledgement of its run, for exactly the attempt that the gate waits
//!    for. Whatever comes later, or from a server that has lost its lease, is recorded as stale and changes nothing.
//! 3. A call that comes again after a crash has the same attempt, memo and idempotency key, and a higher fencing token.
//! 4. There is at most one call of one hook for one store at a time; other stores and other hooks are not held up by it.
//! 5. A hook can cost a server a bounded number of threads, and never a step that needs no hook.
//! 6. Configuration that decides outcomes is state: it is the same on every server, whole, and has a generation. A setting
//!    is judged by its hook before it comes into force, and an old one is never a reason to refuse an unrelated update.
//! 7. What is only observed (mode `observe`) changes nothing but records and metrics.
//! 8. This crate knows no entity of pushes or regions: what a hook is told about those comes from a [`ContextSource`].
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
pub use lifecycle::{CALL_HOOK, EVENT_HOOK, Lifecycle, LifecycleOptions, call_hooks};
pub use metrics::LifecycleMetrics;
pub use pool::PoolOptions;
pub use publishing::{FirstPublished, PublishError, Published, differences};
pub use source::ContextSource;
pub use validation::{OVERRIDE_BYTES_MAX, OVERRIDES_MAX, OverrideUpdate, Surroundings};
