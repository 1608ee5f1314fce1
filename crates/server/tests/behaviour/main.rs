//! A real server on a free port, spoken to by the real client.
#![allow(clippy::unwrap_used)]

mod access;
mod agents;
mod artifact_store;
mod audit;
mod certificates;
mod cluster;
mod config;
mod errors;
mod faults;
mod forwards;
mod guards;
mod job;
mod later;
mod manifests;
mod nodes;
mod page;
mod protocol;
mod region_access;
mod region_tls;
mod set_back;
mod several;
mod sign_in;
mod tls;
mod tokens;
mod watch;
mod world;
