//! Tools that `ci` needs beyond the toolchain, installed once under the user's cache folder.

use std::path::PathBuf;
use std::process::Command;

use crate::process::{cargo, root, run};

const CARGO_DENY_VERSION: &str = "0.20.2";

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("TIDEGATE_TOOLS") {
        return folder.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("tidegate/tools")
}

/// Installs what is missing.
pub(crate) fn install() -> Result<(), String> {
    if folder().join("bin/cargo-deny").exists() {
        return Ok(());
    }
    let mut command = cargo();
    // Away from the workspace, so that neither its profile nor its target folder is used.
    command.current_dir(std::env::temp_dir()).env_remove("CARGO_TARGET_DIR");
    // It runs for a moment, and an optimised build of it takes minutes.
    command
        .args(["install", "cargo-deny", "--debug", "--locked", "--version", CARGO_DENY_VERSION, "--root"])
        .arg(folder());
    run(&mut command)
}

/// Checks sources, licences and forbidden crates against `deny.toml`.
pub(crate) fn deny() -> Result<(), String> {
    install()?;
    let mut command = Command::new(folder().join("bin/cargo-deny"));
    command.current_dir(root()).args(["--workspace", "check", "bans", "licenses", "sources"]);
    run(&mut command)
}
