//! What every route shares: connections, errors, extractors, guards.

pub(crate) mod address;
mod converse;
pub(crate) mod errors;
pub(crate) mod extract;
pub(crate) mod guard;
pub(crate) mod metrics;
pub(crate) mod serve;
pub(crate) mod shares;
pub(crate) mod tls;
mod unstalled;
