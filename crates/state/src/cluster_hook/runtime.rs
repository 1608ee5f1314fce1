//! What of a state runs cluster hooks.

use std::sync::Arc;
use std::time::Duration;

use crate::core::Core;
use crate::state::WeakState;

/// Runs the cluster hooks of one state.
pub(crate) struct Runtime;

impl Runtime {
    pub(crate) fn new(_core: Arc<Core>, _state: WeakState) -> Runtime {
        Runtime
    }

    /// Hands back what this server has, within the limit; ends all tasks.
    #[allow(clippy::unused_async)]
    pub(crate) async fn drain(&self, _limit: Duration) {}

    /// Ends all tasks at once.
    pub(crate) fn kill(&self) {}
}
