//! What every route shares: errors, extractors, guards.

pub(crate) mod errors;
pub(crate) mod extract;
pub(crate) mod guard;
pub(crate) mod metrics;
