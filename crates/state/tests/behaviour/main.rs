//! What the crate does, as its acceptance cases have it: the conformance suite on each driver, and what is one driver's.
#![allow(clippy::unwrap_used)]

mod backups;
mod cluster_kit;
mod snapshots;
mod so_far;

use tidegate_state::testing::StoreKind;
use tidegate_state::testing::conformance::Variants;

tidegate_state::state_conformance!(memory, StoreKind::Memory, Variants::All);
tidegate_state::state_conformance!(sqlite, StoreKind::Sqlite, Variants::Drawn);
