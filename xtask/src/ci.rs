//! `cargo xtask ci`: what `main` always passes.

use crate::process::{self, cargo};
use crate::{test, tools};

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    process::run(cargo().args(["fmt", "--all", "--check"]))?;
    process::run(cargo().args(["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let mut documentation = cargo();
    documentation.args(["doc", "--release", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    process::run(&mut documentation)?;
    tools::deny()?;
    test::run(arguments)?;
    process::run(cargo().args(["run", "--release", "--quiet", "--", "demo", "--once", "--output", "json"]))
}
