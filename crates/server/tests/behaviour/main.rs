//! A real server on a free port, spoken to by the real client.
#![allow(clippy::unwrap_used)]

mod agents;
mod config;
mod errors;
mod faults;
mod guards;
mod job;
mod nodes;
mod page;
mod protocol;
mod watch;
mod world;
