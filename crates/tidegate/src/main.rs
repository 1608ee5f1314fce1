//! The `tidegate` command with the hooks that Tidegate ships.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::run(tidegate::Registry::shipped())
}
