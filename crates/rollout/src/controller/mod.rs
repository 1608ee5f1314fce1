//! The rollout controller: computes what is to be done for one store, and does nothing itself.
//!
//! [`next`] is a pure function from everything that is known about a store ([`PushView`]) and the time to a [`Plan`]:
//! entities to write, calls to make, and when to look again. It is **level-triggered**: it never asks what has happened,
//! only how things stand, so that a restart, a hand-over to another server, a lost wake-up and a duplicate one all take the
//! same path. A cluster hook runs it ([`crate::RolloutHooks`]) inside the transaction that carries the plan out, on what
//! that transaction reads; a user's operation runs it in its own, so that what a user asked for has begun when the answer
//! arrives.
//!
//! Who does which step:
//!
//! | step | decided in | done by |
//! |---|---|---|
//! | a push's turn comes, or it is superseded | `queue` | the plan |
//! | build, upload | – | the push client |
//! | start, schema, creation, swap and end gates | `start`, `schema`, `region`, `end`, by [`tidegate_lifecycle::next_round`] | `lifecycle-call` |
//! | copy, load, verify, swap | [`crate::entities::Assignment`], written by `assignment` | the region's agent |
//! | a schema that is registered without a push | `registration` | `lifecycle-call`, the plan |
//! | going back | `rollback` | the region's agent |
//! | limits, silence, kill | `limits` | the plan |
//! | the status of a version, retention | `version`, `retention` | the plan, the clean-up hook |
//!
//! # Invariants
//! - A push that has ended never changes its end; `post_end` is told once, after everything else.
//! - A region is told to serve a version only when it has reported that enough of its nodes hold it.
//! - A version that was rolled back is never a target again, and is held nowhere it does not serve.
//! - Going back asks no gate and minds no freeze; going forward minds both.
//! - A region that failed, is silent or waits stops no other.
//! - What a region serves is never dropped there.
//! - A plan computed from what its own writes lead to is empty: the controller comes to rest.

mod assignment;
mod embedded;
mod end;
mod gates;
mod gather;
mod holds;
mod late;
mod limits;
mod plan;
mod planner;
mod queue;
mod region;
mod registration;
mod retention;
mod rollback;
mod schema;
mod start;
mod swap;
mod version;
mod view;

pub use gather::{Source, apply, gates as gates_of, gather};
pub use holds::{Hold, HoldKind, holds};
pub use plan::{CallWrite, Plan, Write};
pub use queue::{Way, way_of_new_push};
pub(crate) use region::time_text;
pub use registration::{
    RegistrationPlan, RegistrationView, apply_registration, gather_registration, next_registration,
};
pub use version::overall_status;
pub use view::{GateFacts, HookSettings, PushFacts, PushView, RegionFacts};

use tidegate_lifecycle::Registry;
use tidegate_state::{Timestamp, Transaction, TransactionError};

use self::planner::Planner;
use crate::entities::{EndedBy, PushStatus};

/// What is to be done for a store, given all that is known about it. Pure: the same view and time give the same plan.
#[must_use]
pub fn next(view: &PushView, now: Timestamp) -> Plan {
    let mut planner = Planner::new(view, now);
    planner.settle();
    planner.plan(view)
}

/// Ends a push from outside the controller: its client says that its input is bad. What that leads to for regions, parts
/// and gates is the same as for every other end. A push that has ended stays as it is.
pub(crate) fn finish_push(
    transaction: &mut Transaction,
    registry: &Registry,
    store: &str,
    push: &str,
    status: PushStatus,
    by: EndedBy,
    reason: String,
) -> Result<(), TransactionError> {
    let Some(view) = gather(transaction, registry, store)? else { return Ok(()) };
    let mut planner = Planner::new(&view, transaction.now());
    planner.with_push(push, |step| step.finish(status, Some(by), reason));
    let plan = planner.plan(&view);
    apply(transaction, store, plan)
}
