//! Cluster hooks: code that runs on one server of the cluster for a change, at least once, usually once, whatever dies.
//!
//! The request is written by the transaction that makes the change (`matcher`), so it is durable when the change is and
//! is not there when the change is not. A hook's keys hash to slots (`slots`), which servers lease (`balance`,
//! `owner`). The owner of a slot learns of requests from its tail, queues them per key (`key_queue`), runs the hook
//! (`runner`), and acknowledges in batches by receipts that count only while the slot's token holds.
//!
//! Invariants (the guarantees of the crate's first page follow from them):
//! 1. A request is an entry of the log and nothing else; a run without one does not happen (G1, G2).
//! 2. A request is over when it has a durable receipt; until then it is in the log above its slot's low watermark, or it
//!    has an exception. A watermark never passes a request that has neither (G3).
//! 3. A server starts runs of a slot only between having read what is pending, which it does after the lease was
//!    granted, and the end of that lease by its own clock, counted from the last renewal that it sent (G4, G7).
//! 4. Whatever an owner stores (receipts, exceptions, watermarks, writes of hooks) carries the slot's token, and the
//!    driver takes it only while that token holds (G5, G7).
//! 5. A run starts when this server has applied its request's revision (G6).
//! 6. A slot is released when its runs have ended and their ends are durable; only a drain's limit interrupts runs, and
//!    an interrupted run counts no attempt (G4, G9).
//! 7. A slot is leased only to a server that declares the hook, with the registration's definition version or a later
//!    one (G10).
//! 8. No lock and no transaction is held while a hook runs, and one hook's code never runs on the owner's own task in a
//!    way that could stop other keys.

pub(crate) mod balance;
pub(crate) mod cause;
pub(crate) mod key_queue;
pub(crate) mod lease_end;
pub(crate) mod matcher;
pub(crate) mod metrics;
pub(crate) mod owner;
pub(crate) mod pattern;
pub mod points;
pub(crate) mod queue;
pub(crate) mod registration;
pub(crate) mod run;
pub(crate) mod runner;
pub(crate) mod runtime;
pub(crate) mod selection;
pub(crate) mod slots;
pub(crate) mod standing;
pub(crate) mod template;

pub(crate) use owner::CommitEnd;
pub use pattern::{Pattern, PatternError};
pub use queue::{ATTRIBUTE_BY, ClusterView, HooksReport, Queue, QueueError, ServerView, SlotView, WaitForHooks};
pub use registration::{Delivery, RegisterError, Registration, RegistrationEntity, Start};
pub use run::{
    ATTRIBUTE_HOOK, ATTRIBUTE_REQUEST, ATTRIBUTE_RUN, ClusterHook, Completion, FencingToken, Key, Outcome, Run,
};
pub use runtime::HookHandle;
pub use selection::{HookNames, HookNamesError, HookSelection};
pub use slots::{SLOTS_MAX, SlotLayout, slot_index};
pub use standing::{QueueEntry, QueueFilter, RequestState};
