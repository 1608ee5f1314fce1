//! One method per route, a file per subject.

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
