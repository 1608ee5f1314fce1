//! What the owner is asked to do, and what comes back to it of what it has begun.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::settle;
use crate::cluster_hook::key_queue::KeyIndex;
use crate::cluster_hook::run::ClusterHook;
use crate::cluster_hook::runner::Ended;
use crate::driver::{
    DriverError, Exception, Fence, HookNumber, Pending, RequestId, ServerId, ServerRow, Settled, SlotId, SlotRow,
    SlotToken,
};
use crate::revision::Timestamp;

/// What the owner is asked to do.
pub(crate) enum Order {
    /// This server runs a hook from now on.
    Declare { number: HookNumber, hook: Declared, done: oneshot::Sender<()> },
    /// This server runs a hook no longer: its slots pass on.
    Withdraw { number: HookNumber },
    /// Hand everything back, interrupting what has not ended at the limit, and leave.
    Drain { limit: Duration, done: oneshot::Sender<()> },
    /// Which requests are running here, of one hook or of all.
    Running { done: oneshot::Sender<Vec<RequestId>> },
}

/// A hook with its code, as this server declares it.
#[derive(Clone)]
pub(crate) struct Declared {
    pub(crate) name: Arc<str>,
    pub(crate) version: u32,
    pub(crate) room: u32,
    pub(crate) handler: Arc<dyn ClusterHook>,
}

/// What comes back to the owner.
pub(crate) enum Event {
    Order(Order),
    Ended(Vec<Ended>),
    Polled { hook: HookNumber, slowest: Duration },
    Committed { slot: SlotId, token: SlotToken, key: KeyIndex, run: u32, retry_at: Option<Timestamp>, end: CommitEnd },
    Settled { tags: Vec<settle::Tag>, results: Option<Vec<Settled>> },
    Heartbeat { server: ServerId, sent: Instant, until: Timestamp, draining: bool, result: Result<(), DriverError> },
    Joined { server: ServerId, sent: Instant, until: Timestamp, result: Result<(), DriverError> },
    Lapsed { server: ServerId },
    View { server: ServerId, servers: Vec<ServerRow>, slots: Vec<SlotRow>, taken: bool },
    ViewFailed { taken: bool },
    Page { load: u64, exceptions: Option<Vec<Exception>>, pending: Pending },
    LoadFailed { load: u64 },
    RereadPage { hook: HookNumber, pending: Pending },
    RereadFailed { hook: HookNumber },
    Released { fences: Vec<Fence>, result: Result<(), DriverError> },
    CaughtUp { hook: HookNumber },
    Left,
}

/// How the commit of a run's writes went.
pub(crate) enum CommitEnd {
    Committed,
    /// The writes were refused: a failed run.
    Rejected(String),
    /// The token no longer holds.
    Fenced,
    /// This server is closing.
    Closed,
}
