//! Regions: engines, agents, links and reads, on real folders and small real artifacts.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod clients;
mod damage;
mod engines;
mod faults;
mod fleet;
mod hosting;
mod links;
mod lost_loads;
mod pins;
mod restarts;
mod rollouts;
mod support;
