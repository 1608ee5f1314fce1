//! What the command does as a process: its exit codes, its words, and that it survives being killed.
#![allow(clippy::unwrap_used)]

mod agent;
mod commands;
mod demo;
mod kill;
mod process;
