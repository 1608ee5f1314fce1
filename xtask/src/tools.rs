//! What tests and `ci` need beyond the toolchain: a database server, and tools under the user's cache folder.

use std::path::{Path, PathBuf};
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

/// Sees to it that there is a PostgreSQL whose programs the tests can start: installs the distribution's package where this
/// user may, and else says what to install. Tests that need it are skipped then, each with the reason.
pub(crate) fn postgres() -> Result<(), String> {
    if has_postgres() {
        return Ok(());
    }
    let says = "install PostgreSQL 15 or later (on Debian and Ubuntu the package `postgresql`, with its `initdb` and \
                `postgres` in the PATH, in /usr/lib/postgresql/*/bin, or where PG_BIN says)";
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.trim_ascii() == b"0");
    if !is_root || Command::new("apt-get").arg("--version").output().is_err() {
        eprintln!("xtask: tests of the PostgreSQL driver will be skipped: {says}");
        return Ok(());
    }
    let install = "apt-get update -q && apt-get install -q -y --no-install-recommends postgresql";
    run(Command::new("sh").args(["-c", install]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    if has_postgres() { Ok(()) } else { Err(format!("the package `postgresql` has no initdb; {says}")) }
}

fn has_postgres() -> bool {
    let in_folder = |folder: &Path| folder.join("initdb").exists() && folder.join("postgres").exists();
    let named = std::env::var_os("PG_BIN").is_some_and(|folder| in_folder(Path::new(&folder)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    named
        || std::env::split_paths(&path).any(|folder| in_folder(&folder))
        || versions.into_iter().any(|version| in_folder(&version.path().join("bin")))
}

/// Installs what is missing.
pub(crate) fn install() -> Result<(), String> {
    postgres()?;
    cargo_deny()
}

fn cargo_deny() -> Result<(), String> {
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
    cargo_deny()?;
    let mut command = Command::new(folder().join("bin/cargo-deny"));
    command.current_dir(root()).args(["--workspace", "check", "bans", "licenses", "sources"]);
    run(&mut command)
}
