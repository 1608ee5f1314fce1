//! `cargo xtask bench`: the benchmarks of all crates. Each prints medians, and beside every figure the baseline of the same
//! run that it is a ratio of, since the disks and neighbours of a machine change from hour to hour.

use crate::process::{self, cargo};

pub(crate) fn run(names: &[String]) -> Result<(), String> {
    let mut command = cargo();
    command.args(["bench", "--workspace"]);
    if names.is_empty() {
        command.arg("--benches");
    }
    for name in names {
        command.args(["--bench", name]);
    }
    process::run(&mut command)
}
