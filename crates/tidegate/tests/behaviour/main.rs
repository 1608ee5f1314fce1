//! What the command does as a process: its exit codes, its words, and that it survives being killed.
#![allow(clippy::unwrap_used)]

mod access;
mod agent;
mod backup;
mod commands;
mod demo;
mod hostile;
mod kill;
mod outage;
mod process;
mod processes;
mod queued;
mod takeover;
mod zones;
