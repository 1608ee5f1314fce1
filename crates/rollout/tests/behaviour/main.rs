//! Behaviour of rollouts, by the acceptance cases whose ids the tests' names carry.
#![allow(clippy::unwrap_used)]

mod end_of_push;
mod failures;
mod gates;
mod linter;
mod operations;
mod outages;
mod pins;
mod property;
mod queue;
mod regions;
mod rollbacks;
mod servers;
mod simulator;
mod supersede;
mod unconfirmed;
mod world;
