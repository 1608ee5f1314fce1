//! The thread on which closures run. A closure that does not come back in time is left behind with its thread, and the
//! committer goes on with a fresh one: a writer's mistake costs its own transaction and nobody else's.
//!
//! Invariant: what an abandoned thread still does has no effect; it works on copies that nobody looks at any more.

use std::cell::Cell;
use std::sync::{Arc, mpsc};

use super::drafts::Drafts;
use super::group::Group;

/// What the thread is to do.
pub(super) enum Work {
    /// Under the write lock, at the head.
    Group(Arc<Group>),
    /// Ahead of it.
    Drafts(Arc<Drafts>),
}

thread_local! {
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// Whether the caller runs within a transaction's closure.
pub(crate) fn within_transaction() -> bool {
    WITHIN.get()
}

/// A thread that does one work after the other. Dropping it lets the thread end, when it comes back.
pub(super) struct ClosureThread {
    works: mpsc::Sender<Work>,
}

impl ClosureThread {
    pub(super) fn spawn() -> std::io::Result<ClosureThread> {
        let (works, queue) = mpsc::channel();
        std::thread::Builder::new().name("state-closures".to_owned()).spawn(move || {
            WITHIN.set(true);
            while let Ok(work) = queue.recv() {
                match work {
                    Work::Group(group) => group.work(),
                    Work::Drafts(drafts) => drafts.work(),
                }
            }
        })?;
        Ok(ClosureThread { works })
    }

    /// Hands over work; false if the thread has ended.
    pub(super) fn run(&self, work: Work) -> bool {
        self.works.send(work).is_ok()
    }
}
