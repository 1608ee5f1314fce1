//! Cluster hooks (section K), and what the linter says of what they leave behind (U4).
//!
//! Leases are by the store's clock, which a case steps: each step waits until every server whose lease holds has renewed it,
//! however long its store takes for that. Servers share nothing but their store.

mod all_died;
mod believing;
mod caps;
mod compaction;
mod completion;
mod delivery;
mod fairness;
mod faults;
mod joining;
mod lapsed;
mod layouts;
mod linter;
mod load;
mod moving;
mod operators;
mod passing;
mod registrations;
mod restored;
mod starting;
mod statements;
mod support;
mod turns;
mod versions;
mod waiting;
mod watermarks;

pub use all_died::*;
pub use believing::*;
pub use caps::*;
pub use compaction::*;
pub use completion::*;
pub use delivery::*;
pub use fairness::*;
pub use faults::*;
pub use joining::*;
pub use lapsed::*;
pub use layouts::*;
pub use linter::*;
pub use load::*;
pub use moving::*;
pub use operators::*;
pub use passing::*;
pub use registrations::*;
pub use restored::*;
pub use starting::*;
pub use statements::*;
pub use turns::*;
pub use versions::*;
pub use waiting::*;
pub use watermarks::*;

use super::Case;
