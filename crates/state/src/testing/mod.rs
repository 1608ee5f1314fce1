//! For tests of what builds on this crate, and of drivers: several servers on one store, named points at which a test
//! holds or cuts them, and suites that every driver has to pass.

mod cluster;
pub mod conformance;
pub mod driver_contract;
pub mod history;
pub mod linter;
pub mod points;
pub mod postgres;
pub mod proxy;
mod store;

pub use cluster::{Cluster, ClusterBuilder, START};
pub use store::{StoreFactory, StoreKind, Tamper, TestStore};
