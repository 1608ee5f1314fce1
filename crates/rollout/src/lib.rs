//! Stores, versions, pushes and regions: the rollout controller, region agents and engines.
//!
//! A *push* brings a *version* of a *store*'s data to every *region*, past the lifecycle hooks that operators enabled. What
//! users want and what was observed are entities in the state tree ([`entities`]); a pure function computes what is to be
//! done next ([`controller`]); cluster hooks carry that out, whichever server is alive ([`RolloutHooks`]); a region's agent
//! makes its nodes do what its assignment says ([`region`], [`engine`]). Users act through [`Operations`]:
//!
//! ```
//! use std::sync::Arc;
//!
//! use tidegate_lifecycle::Registry;
//! use tidegate_rollout::entities::{Availability, PushStatus, Region};
//! use tidegate_rollout::operations::{NewStore, Operations, OperatorAction, StartPush};
//! use tidegate_state::testing::{Cluster, StoreKind};
//!
//! # let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let cluster = Cluster::builder()
//!     .configure(|_, options| options.record::<OperatorAction>())
//!     .open(&StoreKind::Memory)
//!     .await;
//! let operations = Operations::new(cluster.server(0).clone(), Arc::new(Registry::shipped()));
//!
//! let region = Region {
//!     nodes: 2,
//!     enough: 2, // how many nodes must hold a version before it counts as ingested
//!     shares_source: false,
//!     agent: false,
//!     availability: Availability::Available,
//!     added_at: cluster.server(0).now(),
//! };
//! operations.register_region("eu", region, "ada").await?;
//! operations.create_store(NewStore::new("airports", ["icao"]), "ada", |store| store.allow_empty = true).await?;
//!
//! let request = StartPush {
//!     id: "2026-01-01".into(),
//!     store: "airports".into(),
//!     pushed_by: "ada".into(),
//!     ..StartPush::default()
//! };
//! let accepted = operations.start_push(request.clone()).await?;
//! assert_eq!((accepted.push.version, accepted.push.status()), (1, PushStatus::Started));
//!
//! // The same id is the same push; a second one is refused, with the reason and what to do.
//! assert!(!operations.start_push(request.clone()).await?.created);
//! let second = StartPush { id: "another".into(), ..request };
//! let refused = operations.start_push(second).await.unwrap_err().body();
//! assert_eq!(refused.code, "push_running");
//! # cluster.finish().await;
//! # Ok::<(), tidegate_rollout::OperationError>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The way of a push
//!
//! ```text
//! start gate → build → schema gate → parts → complete ─┐
//!   per region: creation gate → created (assignment) → ingestion → swap gate → swap → round after the swap → done
//!                                        embedded gates, beside ┘
//! all done → end gate → COMPLETED → post_end, once, however it ended
//! ```
//!
//! Everything that a step needs is in the tree. A server that dies, a call that comes twice, a report that comes late and a
//! wake-up that is lost all lead to the same state, because nothing but how things stand is ever looked at.
//!
//! # Invariants
//!
//! 1. **One writer per entity** (the table in [`entities`]). What several could write is split, so that nobody's word is
//!    lost: what a region should do, and what it says it does.
//! 2. **A region serves what its assignment says**, and nothing that it never said. It is told to serve a version only once
//!    it has reported that enough of its nodes hold it.
//! 3. **An end is final.** No late kill, report or answer changes how a push ended; `post_end` takes effect once.
//! 4. **Going back is complete and idempotent**: pointers only, no gate, no freeze, no data moved. What was rolled back is
//!    never a target again; its data can be released as a new version.
//! 5. **Nobody holds up anybody else**: not one region another, not one store another, not a hook the controller.
//! 6. **What serves is never dropped**, and the way back stays loaded until retention lets it go.
//! 7. **A plan is computed and committed in one transaction**, from what that transaction reads.
//! 8. **Limits count time in which someone could have been heard.** Time with no server up is nobody's silence.
//! 9. **A version number, and a push id over all stores, means one thing for ever**, as long as anything remembers it.
//! 10. **Bytes go last**: nothing is removed that anything refers to, and what is being removed can't be referred to.
//!
//! # Where to change what
//!
//! | to change | look at |
//! |---|---|
//! | when a step is taken | [`controller`], one file per phase |
//! | what a user may do, and what a refusal says | [`operations`] |
//! | what hooks are told | [`context`] |
//! | what wakes the controller | [`hooks`] |
//! | how a region carries out its assignment | [`region`] |
//! | what nodes hold data in | [`engine`] |

pub mod context;
pub mod controller;
pub mod engine;
pub mod entities;
pub mod freshness;
pub mod hooks;
pub mod job_status;
pub mod metrics;
pub mod operations;
pub mod region;

pub use context::{PushContexts, RegistrationContexts};
pub use hooks::{ArtifactRemover, RolloutDependencies, RolloutHooks};
pub use metrics::RolloutMetrics;
pub use operations::{OperationError, Operations};
