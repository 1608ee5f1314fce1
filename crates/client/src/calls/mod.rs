//! One method per route, a file per subject.

pub(crate) mod access;
mod config;
mod pushes;
mod queue;
mod reads;
mod regions;
mod server;
mod steering;
mod stores;
