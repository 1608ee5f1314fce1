//! How far a long piece of work is, and how to stop it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a long piece of work is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first pass over the input: schema and digest.
    Inferring,
    /// Parsing the input and sorting it; `done` and `total` are bytes of input.
    Reading,
    /// Writing sorted parts; `done` and `total` are records.
    Writing,
    /// Copying parts between stores; `done` and `total` are bytes.
    Copying,
    /// Reading parts to check their digests; `done` and `total` are bytes.
    Verifying,
    /// Writing a node's index; `done` and `total` are records.
    Indexing,
    /// Comparing two versions; `done` and `total` are records.
    Comparing,
}

/// A report on the progress of a long piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// How much of it is done, in the unit that the phase names.
    pub done: u64,
    /// How much there is to do, in the same unit.
    pub total: u64,
    /// Records seen in this phase so far; 0 where the phase does not look at records.
    pub records: u64,
}

/// Where progress is reported to. It is called often (about once per MiB or thousand records),
/// from the threads that do the work, and must be quick.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Reports to nobody.
pub fn quiet(_: Progress) {}

/// A flag that stops a long piece of work soon after it was raised. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not raised.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag, for good.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the flag is raised.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
