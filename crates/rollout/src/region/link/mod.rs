//! What a region's agent and the control plane say to each other.
//!
//! An agent watches its own subtree and reports into it, and knows nothing else of the state tree.
//! [`StateLink`] is the link within one process, [`HttpLink`] the one over a network. The trait has nothing in it that
//! could not be sent over a connection: a watch begins at a position and can be resumed there, and a report is a
//! whole document that may be sent twice.
//!
//! # Invariants
//! - A watch gives everything first, or what came after the place where it was resumed; never a gap.
//! - Who reports says as whom: a report of one that no longer hosts the region is refused, with the reason.
//! - A document that this release can't read is named, and what it is about stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tidegate_api::agent::{HostClaim, HostGrant};
use tidegate_state::{Epoch, Revision};

use super::hosting::Holder;
use crate::entities::{Assignment, Report};

mod http;
mod state;
pub mod wire;

pub use http::{HttpLink, HttpLinkOptions};
pub use state::{StateLink, StateWatch};

/// A place in the control plane's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which log.
    pub epoch: Epoch,
    /// How far in it.
    pub revision: Revision,
}

impl Position {
    /// Whether this is an earlier place in the same log.
    #[must_use]
    pub fn is_before(self, other: Position) -> bool {
        self.epoch == other.epoch && self.revision < other.revision
    }
}

/// What a watch gives.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkItem {
    /// All there is, as of this position: the start of a watch, and whenever the log no longer
    /// reaches back to where one was.
    Snapshot {
        /// Where this is in the log.
        position: Position,
        /// What is wanted, by store. A store that is not here is not to be held.
        assignments: BTreeMap<String, Assignment>,
        /// Stores whose assignment is there and can't be read: they stay as they are.
        unreadable: BTreeSet<String>,
        /// What the region last reported, by store.
        reports: BTreeMap<String, Report>,
    },
    /// One store's assignment changed, or is gone.
    Change {
        /// Where this is in the log.
        position: Position,
        /// The store.
        store: String,
        /// What is wanted of it now; `None`: nothing.
        assignment: Option<Assignment>,
    },
    /// Nothing that concerns the region has happened up to here.
    Nothing {
        /// Where this is in the log.
        position: Position,
    },
    /// The control plane does not know this region (any more). The region goes on serving what it
    /// has until it is told otherwise, and its reports are refused.
    Removed {
        /// Where this is in the log.
        position: Position,
    },
}

impl LinkItem {
    /// Where in the log this was said.
    #[must_use]
    pub fn position(&self) -> Position {
        match self {
            LinkItem::Snapshot { position, .. }
            | LinkItem::Change { position, .. }
            | LinkItem::Nothing { position }
            | LinkItem::Removed { position } => *position,
        }
    }
}

/// Why something could not be said or heard.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The control plane can't be reached now. Try again.
    #[error("the control plane can't be reached: {why}")]
    Unavailable {
        /// What happened.
        why: String,
    },
    /// It does not let this agent in now. What the agent holds is not for it to drop. Try again: the token may be replaced.
    #[error("the control plane does not let this agent in: {why}")]
    NotLetIn {
        /// Its reason.
        why: String,
    },
    /// It was heard and refused. Trying again does not help by itself.
    #[error("the control plane refused: {why}")]
    Refused {
        /// Its reason.
        why: String,
    },
    /// Another agent hosts the region. Claim it again, and say nothing else until that is granted.
    #[error("the control plane refused: the region is hosted by {by}")]
    Replaced {
        /// Who hosts it, in words.
        by: String,
        /// Where that one answers reads.
        address: Option<String>,
    },
}

/// An open watch.
#[async_trait]
pub trait AssignmentWatch: Send {
    /// Waits for the next item. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// The watch is over and another must be opened, at the last position.
    async fn next(&mut self) -> Result<LinkItem, LinkError>;
}

/// A region's link to the control plane.
#[async_trait]
pub trait RegionLink: Send + Sync + 'static {
    /// The region that this link speaks for.
    fn region(&self) -> &str;

    /// Takes the region's lease or renews it, and says that the agent lives.
    ///
    /// # Errors
    /// See [`LinkError`].
    async fn host(&self, claim: &HostClaim) -> Result<HostGrant, LinkError>;

    /// Lets go of the lease: the agent stops in order. One that is not held any more is let go of already.
    ///
    /// # Errors
    /// See [`LinkError`].
    async fn release(&self, holder: Holder) -> Result<(), LinkError>;

    /// Returns when the region may be taken: nobody hosts it, or the lease of who does is let go of or has run out. What
    /// knows is a snapshot, so that a claim may be refused all the same. A link that can't know never returns, as without
    /// this method; the region is then claimed with every heartbeat.
    async fn freed(&self) {
        std::future::pending().await
    }

    /// Begins to watch what is wanted of the region: everything first, or, where `from` is a place
    /// that the log still reaches back to, what came after it.
    ///
    /// # Errors
    /// See [`LinkError`].
    async fn watch(&self, from: Option<Position>) -> Result<Box<dyn AssignmentWatch>, LinkError>;

    /// Replaces the region's report on one store, or removes it once nothing of the store is left.
    ///
    /// # Errors
    /// See [`LinkError`].
    async fn report(&self, holder: Holder, store: &str, report: Option<Report>) -> Result<(), LinkError>;
}
