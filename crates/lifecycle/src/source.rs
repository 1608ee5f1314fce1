//! Where contexts come from: whoever owns pushes and regions says what a call is about.

use std::collections::BTreeMap;
use std::error::Error;

use tidegate_state::{Path, Snapshot, Timestamp};

use crate::call::CallRequest;
use crate::context::Context;

/// Fills in what a hook is told about a push. Pure: all that it says comes from the snapshot and the time.
pub trait ContextSource: Send + Sync + 'static {
    /// The context of a call: everything but `function`, `store`, `region`, `config`, `attempt`, `memo`, `pause`, `now`,
    /// `timeout_ms`, `idempotency_key` and `fencing_token`, which the runner sets. None where nobody waits for the answer
    /// any more (the push has ended, the gate is decided); the hook is not called then.
    ///
    /// # Errors
    /// What could not be read. The call is tried again later.
    fn context(
        &self,
        snapshot: &Snapshot,
        call: &Path,
        request: &CallRequest,
        now: Timestamp,
    ) -> Result<Option<Context>, Box<dyn Error + Send + Sync>>;

    /// The store's overrides, by `<hook>.<key>`.
    ///
    /// # Errors
    /// What could not be read. The call is tried again later.
    fn overrides(
        &self,
        snapshot: &Snapshot,
        store: &str,
    ) -> Result<BTreeMap<String, String>, Box<dyn Error + Send + Sync>>;
}
