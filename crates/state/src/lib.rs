//! A replicated tree of typed entities: read from snapshots without I/O, changed by serializable transactions, followed by
//! hooks. Local hooks run on every server; **cluster hooks** run on one, durably, in order per key, with their effects
//! counted once. The store is a library's choice (memory, one SQLite file, a PostgreSQL that servers share); there is no other
//! service to run.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use std::sync::Arc;
//! use tidegate_state::driver::memory::MemoryStore;
//! use tidegate_state::*;
//!
//! #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
//! struct Order { item: String, shipped: bool }
//! impl Entity for Order {
//!     const COLLECTION: &'static str = "orders";
//!     type Parent = Root;
//!     type Id = u64;
//! }
//!
//! /// Ships an order. Runs on one server of the cluster for each change of an order.
//! struct Ship;
//! #[async_trait::async_trait]
//! impl ClusterHook for Ship {
//!     async fn run(&self, run: Run) -> Outcome {
//!         let order = Ref::<Order>::from_path(run.path()).expect("the pattern names orders");
//!         // Call the carrier here, with `run.idempotency_key()` and `run.token()`.
//!         Outcome::done_with(move |tx: &mut Transaction| match tx.get(&order)? {
//!             Some(_) => tx.update(&order, |order| order.shipped = true),
//!             None => Ok(()),
//!         })
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
//! let store = MemoryStore::new();
//! let state = State::open(store.driver(), StateOptions::new("server-a")).await?;
//! let ship = Registration::new("ship", 1).on("/orders/{order}").key("{order}").latest_state();
//! let _hook = state.register(ship, 4, Arc::new(Ship)).await?;
//!
//! // A transaction: all or nothing, at the head of the log, however many servers write.
//! let order: Ref<Order> = Ref::root(7_u64)?;
//! let target = order.clone();
//! let committed = state.write(move |tx: &mut Transaction| {
//!     tx.create(&target, Order { item: "map".to_owned(), shipped: false })
//! }).await?;
//!
//! // A snapshot: the whole tree at one revision, immutable, read without a lock.
//! let snapshot = state.snapshot();
//! assert_eq!(snapshot.revision(), committed.revision);
//! assert_eq!(snapshot.require(&order)?.item, "map");
//!
//! state.wait_for_hooks(WaitForHooks::all()).await?;
//! assert!(state.snapshot().require(&order)?.shipped);
//! state.close().await;
//! # Ok::<(), BoxError>(()) })?;
//! # Ok::<(), BoxError>(())
//! ```
//!
//! # What it is made of
//!
//! | | |
//! |---|---|
//! | [`Entity`], [`Ref`], [`Path`] | a serde type with a collection, a parent type and a typed id: `/stores/airports/versions/7` |
//! | [`Snapshot`] | the tree at one revision; cheap to take, to clone and to hold |
//! | [`Transaction`] | what a [`State::write`] closure reads (at the head of the log) and writes: entities and records |
//! | [`Record`] | a typed row committed in the same transaction, outside every snapshot; for what grows without end |
//! | [`Change`], [`Feed`] | what transactions did, in order and without a gap |
//! | [`LocalHook`] | code that every server runs for each change in scope |
//! | [`ClusterHook`], [`Registration`] | code that one server of the cluster runs, requested in the transaction that makes the change |
//! | [`driver`] | what stores and orders: a contract, its drivers, and a public suite that a driver has to pass |
//! | [`testing`] | several servers in one process with an injected clock and named points, a linter, a history checker |
//!
//! # Invariants
//!
//! 1. Transactions of all servers are totally ordered and serializable; each that changes anything has a revision of its
//!    own, with no gap between two.
//! 2. A transaction is applied whole or leaves no trace: no revision, no change, no hook, no record. Writing an equal
//!    value is no change.
//! 3. Nothing is shown or answered before it is durable. One submission has at most one effect, also where the answer of
//!    its commit was lost.
//! 4. A server shows revisions in order. A snapshot never changes.
//! 5. An entity's parent exists: a write under an absent parent is refused, deleting takes the subtree.
//! 6. Fields that a build does not know outlive its read-modify-write; a document that can't be read is an error to who
//!    reads it, and to nobody else.
//! 7. A request for a cluster hook is in the log exactly when its change is.
//! 8. Revisions count within an [`Epoch`]; a store that was made anew or restored has another one, and is loaded anew.
//!
//! # Which store
//!
//! | driver | for | how |
//! |---|---|---|
//! | [`driver::memory`] | tests | the same semantics, an injected clock |
//! | [`driver::sqlite`] | one process: the embedded default | one file, one writer, group commit |
//! | [`driver::postgres`] | many servers on many machines | the database orders and stores; its clock is the cluster's; five connections a server |
//!
//! # Which hook
//!
//! | you want to | use |
//! |---|---|
//! | keep something in memory in step with the tree: an index, a cache, a connection per entity | a local hook |
//! | push changes to who is connected to this server | [`State::changes`] |
//! | do something in the world once for each change, in order: send, pay, write an audit trail | a cluster hook, every change |
//! | bring the world in line with the tree, again and again until it is: a controller | a cluster hook, latest state, attempts unlimited |
//! | start many things for one change | a cluster hook that writes an entity for each (a fan-out), and a second hook on those |
//!
//! A local hook that writes to the outside world does it once per server, and not at all if every server dies: that is
//! what cluster hooks are for.
//!
//! # What cluster hooks guarantee, and what it costs
//!
//! | | guarantee | cost |
//! |---|---|---|
//! | G1 | durable: request and change commit together | a number in the change's log row; no statement more |
//! | G2 | no phantoms: what was not committed makes no request | nothing |
//! | G3 | at least once, as long as a server that runs the hook eventually lives | the log is kept above what is not finished |
//! | G4 | usually once; twice only after a failure, a hand-back or the end of a lease | one heartbeat row per server |
//! | G5 | effects once: writes returned with the outcome commit together with the acknowledgement, fenced by a token | a receipt, appended in batches; the fence is checked under the write lock |
//! | G6 | a run's snapshot has its change | a run waits for its server's tail |
//! | G7 | per key: one at a time, in revision order | the next of a key waits for the durable receipt of the one before |
//! | G8 | spread over the servers that run the hook | keys hash to slots; a slot stands still while it moves |
//! | G9 | bounded attempts with backoff, then a dead letter; other keys go on | a row for each of the few that fail |
//! | G10 | a request waits for a server that has the code | nothing |
//!
//! A request whose runs kill servers is found: after five deaths it is a dead letter that says so, whatever attempts its
//! registration allows. From the second on it runs alone among such requests, and on a server that has been there for a
//! second, so that none is blamed for what its servers die of anyway.
//!
//! Not guaranteed: that a run's effects outside the tree happen once. Pass [`Run::token`] to what can refuse a lower one,
//! and [`Run::idempotency_key`] to what can tell a repetition.
//!
//! # Limits
//!
//! The tree is in every server's memory: about a million small entities, a few GiB. One committer at a time in the whole
//! cluster: thousands to tens of thousands of transactions a second, depending on the disk's flush and on how many wait
//! together. A closure runs under the cluster's lock, or ahead of it while another server has it ([`RunAhead`]), so it has a
//! time budget (250 ms by default; aim at microseconds). A document has at most 8 MiB, a record 32 MiB, a transaction 64 MiB
//! and 100 000 changes, attributes 64 KiB, an id 256 bytes, a path [`DEPTH_MAX`] levels and [`PATH_BYTES_MAX`] bytes, an entry
//! in an index of records [`INDEX_KEY_BYTES_MAX`].
//!
//! # When something else is the better choice
//!
//! - **etcd, Consul, ZooKeeper**: clients in many languages, or leader election and configuration alone. This is a library
//!   for servers in Rust that share a tree of types.
//! - **A database**: more data than fits in memory, or queries that no declared index serves.
//! - **A job queue**: work that is not about a change of shared state, or tens of thousands of jobs a second for many
//!   kinds of workers.
//! - **A workflow engine**: long procedures in code with their own history and timers. Here a procedure is state in the
//!   tree and a hook that takes the next step.
//! - **A message broker**: fan-out of streams to consumers that keep their own position for weeks.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backup;
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
mod working_tree;

pub use change::{Applied, Change};
pub use clock::{Clock, ManualClock, SystemClock};
pub use cluster_hook::*;
pub use document::Document;
pub use driver::{Driver, DriverError, RecordId, RequestId, ServerId, ServerName};
pub use entity::{Entity, EntityId, Parent, Ref, Root};
pub use error::{OpenError, QueryError, ReadError, WaitError, WriteError};
pub use feed::{Feed, FeedItem};
pub use local_hook::{BoxError, LocalCall, LocalHook, LocalHookError, LocalHookHandle, Scope};
pub use metrics::StateMetrics;
pub use path::{DEPTH_MAX, ID_BYTES_MAX, PATH_BYTES_MAX, Path, PathError};
pub use record::{
    INDEX_KEY_BYTES_MAX, IndexDeclaration, IndexKey, Record, RecordCursor, RecordKeys, RecordPage, RecordQuery, Retain,
    Retention,
};
pub use record_search::{PAGE_MAX, RecordPageOf, RecordSearch, Stored};
pub use revision::{Attributes, Epoch, Revision, SubmissionId, Timestamp};
pub use snapshot::Snapshot;
pub use state::{Committed, Initialise, RunAhead, State, StateOptions, TransactionBuilder};
pub use transaction::{Listing, Touched, Transaction, TransactionError};
