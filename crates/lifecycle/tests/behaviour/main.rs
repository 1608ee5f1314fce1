//! How lifecycle hooks behave, on real servers of a state tree in memory.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod calls;
mod configuration;
mod health_check;
mod pauses_and_events;
mod validation;
mod world;
