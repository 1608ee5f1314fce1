//! The `tidegate` command with the hooks that Tidegate ships.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::run(tidegate::Registry::shipped())
}
