//! The `tidegate` command with the hooks that Tidegate ships.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

/// Transactions and records are made on one thread and let go on another, all the time; the system's allocator takes twice as
/// long over that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tidegate::run(tidegate::Registry::shipped())
}
