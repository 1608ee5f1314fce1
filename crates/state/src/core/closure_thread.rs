//! The thread on which closures run. A closure that does not come back in time is left behind with its thread, and the
//! committer goes on with a fresh one: a writer's mistake costs its own transaction and nobody else's.
//!
//! Invariant: what an abandoned thread still does has no effect; it works on copies that nobody looks at any more.

use std::cell::Cell;
use std::sync::{Arc, mpsc};

use super::group::Group;

thread_local! {
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// Whether the caller runs within a transaction's closure.
pub(crate) fn within_transaction() -> bool {
    WITHIN.get()
}

/// A thread that runs one group after the other. Dropping it lets the thread end, when it comes back.
pub(super) struct ClosureThread {
    groups: mpsc::Sender<Arc<Group>>,
}

impl ClosureThread {
    pub(super) fn spawn() -> std::io::Result<ClosureThread> {
        let (groups, queue) = mpsc::channel::<Arc<Group>>();
        std::thread::Builder::new().name("state-closures".to_owned()).spawn(move || {
            WITHIN.set(true);
            while let Ok(group) = queue.recv() {
                group.work();
            }
        })?;
        Ok(ClosureThread { groups })
    }

    /// Hands over a group; false if the thread has ended.
    pub(super) fn run(&self, group: Arc<Group>) -> bool {
        self.groups.send(group).is_ok()
    }
}
