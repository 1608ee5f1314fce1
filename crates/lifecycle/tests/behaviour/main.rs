//! How lifecycle hooks behave, on real servers of a state tree in memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod configuration;
mod health_check;
mod validation;
