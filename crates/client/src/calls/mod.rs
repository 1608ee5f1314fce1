//! One method per route, a file per subject.

pub(crate) mod access;
mod cluster;
mod config;
mod direct;
mod pushes;
mod queue;
mod reads;
mod regions;
mod server;
mod steering;
mod stores;
