//! (documentation follows)
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod change;
mod clock;
pub mod cluster_hook;
mod core;
mod document;
pub mod driver;
mod entity;
mod error;
mod feed;
mod float_check;
mod local_hook;
mod metrics;
mod path;
mod record;
mod record_search;
mod revision;
mod snapshot;
mod state;
pub mod testing;
mod transaction;
mod tree;

pub use change::{Applied, Change};
pub use clock::{Clock, ManualClock, SystemClock};
pub use cluster_hook::*;
pub use document::Document;
pub use driver::{Driver, DriverError, RecordId, RequestId, ServerName};
pub use entity::{Entity, EntityId, Parent, Ref, Root};
pub use error::{OpenError, QueryError, ReadError, WaitError, WriteError};
pub use feed::{Feed, FeedItem};
pub use local_hook::{BoxError, LocalCall, LocalHook, LocalHookError, LocalHookHandle, Scope};
pub use metrics::StateMetrics;
pub use path::{DEPTH_MAX, ID_BYTES_MAX, Path, PathError};
pub use record::{IndexDeclaration, IndexKey, Record, RecordCursor, RecordPage, RecordQuery, Retain, Retention};
pub use record_search::{PAGE_MAX, RecordPageOf, RecordSearch, Stored};
pub use revision::{Attributes, Epoch, Revision, SubmissionId, Timestamp};
pub use snapshot::Snapshot;
pub use state::{Committed, Initialise, State, StateOptions, TransactionBuilder};
pub use transaction::{Transaction, TransactionError};
