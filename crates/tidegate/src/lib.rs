//! The `tidegate` command, as a library: builds with hooks of one's own call [`run`] with their registry.
//!
//! ```no_run
//! use tidegate::{Registry, run};
//!
//! fn main() -> std::process::ExitCode {
//!     run(Registry::shipped())
//! }
//! ```
//!
//! Invariants: results go to standard output and everything else to standard error; `--output json` prints one JSON value;
//! an [`Exit`] code means the same for every command; text from elsewhere is never obeyed by the terminal.
#![cfg_attr(test, allow(clippy::unwrap_used))]
// Both panic when their stream is closed. Results go through `output::Output`, everything else through `output::say`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod arguments;
mod commands;
mod connection;
mod demo;
mod exit;
mod failure;
mod output;
mod parent;
mod stop;

use std::process::ExitCode;

use clap::Parser;
pub use exit::Exit;
pub use tidegate_lifecycle::Registry;

use crate::arguments::{Arguments, ColorChoice, usage};
use crate::output::{Output, Style, say};
use crate::parent::Parent;

/// Runs the command line with these hooks, and gives the code to end with.
#[must_use]
pub fn run(registry: Registry) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help and version are no errors, and go to standard output.
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return Exit::Done.into();
        }
        Err(error) => {
            let style = Style::for_stream(ColorChoice::Auto, &std::io::stderr());
            let words: Vec<_> = std::env::args_os().collect();
            say(&usage::explain(&error, &words, style.rich));
            return Exit::Usage.into();
        }
    };
    start_log(if arguments.is_order_to_agent() { "error" } else { "warn" });
    let output = Output::new(&arguments.global);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: no thread could be started: {error}"));
            return Exit::Failed.into();
        }
    };
    let parent = match Parent::watch(arguments.global.until_input_ends) {
        Ok(parent) => parent,
        Err(error) => {
            say(&format!("error: no thread could be started: {error}"));
            return Exit::Failed.into();
        }
    };
    let exit = match runtime.block_on(commands::run(arguments, registry, parent, output)) {
        Ok(exit) => exit,
        Err(failure) => {
            failure.print(output);
            failure.exit()
        }
    };
    // What still runs is a hook that blocks its thread at most, which must not keep the process.
    runtime.shutdown_background();
    exit.into()
}

/// Logs go to standard error, as `TIDEGATE_LOG` says (`info`, `tidegate_rollout=debug`, …), else from this level on. A line
/// that can't be written (closed, or on a full disk) is lost, and nothing else: the subscriber's own complaint about it
/// would be printed there too, and panic in whatever task has logged.
fn start_log(default: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("TIDEGATE_LOG").unwrap_or_else(|_| {
        // What it has to say of a certificate is in the error as well.
        EnvFilter::new(format!("{default},rustls_platform_verifier=off"))
    });
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .try_init();
}
