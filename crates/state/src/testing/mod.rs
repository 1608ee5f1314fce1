//! For tests of what builds on this crate, and of drivers: several servers on one store, named points at which a test
//! holds or cuts them, and suites that every driver has to pass.
//!
//! A [`Cluster`] is for who builds on the library. It needs no database, no port and no sleep, two of them share nothing, and
//! [`Cluster::finish`] has the linter and the history checker look at what is left:
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use std::{sync::Arc, time::Duration};
//! use tidegate_state::testing::{Cluster, StoreKind, points::name as point};
//! use tidegate_state::*;
//!
//! #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
//! struct Job { done: bool }
//! impl Entity for Job {
//!     const COLLECTION: &'static str = "jobs";
//!     type Parent = Root;
//!     type Id = u64;
//! }
//! struct Finish;
//! #[async_trait::async_trait]
//! impl ClusterHook for Finish {
//!     async fn run(&self, run: Run) -> Outcome {
//!         let job = Ref::<Job>::from_path(run.path()).expect("the pattern names jobs");
//!         Outcome::done_with(move |tx: &mut Transaction| tx.update(&job, |job| job.done = true))
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
//! let cluster = Cluster::builder().servers(3).open(&StoreKind::Memory).await;
//! let finish = Registration::new("finish", 1).on("/jobs/{job}").key("{job}").latest_state();
//! let mut handles = Vec::new();
//! for state in cluster.running() {
//!     handles.push(state.register(finish.clone(), 2, Arc::new(Finish)).await?);
//! }
//! // The server that is to run it stands still before it has that acknowledged, and does not notice that its lease is over.
//! cluster.move_slot("finish", "7", 1).await;
//! let still = [point::RUN_BEFORE_COMPLETION, point::SLOT_BEFORE_HEARTBEAT, point::SLOT_BEFORE_LAPSE]
//!     .map(|at| cluster.points(1).hold(at));
//! let job: Ref<Job> = Ref::root(7_u64)?;
//! let target = job.clone();
//! cluster.server(0).write(move |tx: &mut Transaction| tx.create(&target, Job { done: false })).await?;
//! still[0].reached().await;
//! cluster.step(Duration::from_secs(15)).await;
//! // So another one runs it.
//! cluster.server(0).wait_for_hooks(WaitForHooks::all()).await?;
//! assert!(cluster.server(0).snapshot().require(&job)?.done);
//! drop(still);
//! cluster.finish().await;
//! # Ok::<(), BoxError>(()) })?;
//! # Ok::<(), BoxError>(())
//! ```
//!
//! The same test runs on SQLite and PostgreSQL with another [`StoreKind`].

mod cluster;
pub mod conformance;
pub mod damages;
pub mod driver_contract;
pub mod history;
pub mod linter;
pub mod placement;
pub mod points;
mod port;
pub mod postgres;
pub mod proxy;
mod steps;
mod store;

pub use cluster::{Cluster, ClusterBuilder, START};
pub use port::HeldPort;
pub use store::{StoreFactory, StoreKind, Tamper, TestStore};
