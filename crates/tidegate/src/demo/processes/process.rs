//! One process of the demo: this very program, with another command.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tidegate_api::ErrorBody;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::failure::Failure;

/// How long a process may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a process may take to end in order; then it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// The longest answer of a process that is ready, in bytes.
const READY_BYTES_MAX: u64 = 64 * 1024;

/// The longest piece of output that is held in memory, in bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// How many of its last lines a failure names.
const LINES_NAMED: usize = 8;

/// What the program takes from the environment, but for the level of its log, is what the demo says and nothing else.
const VARIABLES: &str = "TIDEGATE_";
const LOG_VARIABLE: &str = "TIDEGATE_LOG";

/// What a process is started with.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// What it is called, such as `agent-a`; its output is kept under this name.
    pub(super) name: String,
    /// Its command line.
    pub(super) arguments: Vec<OsString>,
    /// The database, which is not shown on the command line: there may be a password in it.
    pub(super) database: Option<String>,
    /// Where its output is kept.
    pub(super) log: PathBuf,
}

/// A process that runs.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Its end tells the process to end. Nothing is ever written.
    input: ChildStdin,
    keeping: JoinHandle<()>,
    /// Where it answers.
    pub(super) url: String,
}

/// What a process says when it is ready.
#[derive(Debug, Deserialize)]
struct Ready {
    url: String,
}

impl Process {
    /// Starts a process, and waits until it says that it is ready. A token that it shows goes to `tokens` and not into its
    /// log.
    pub(super) async fn start(plan: &Plan, tokens: mpsc::Sender<String>) -> Result<Process, Failure> {
        let did_not_start = |why: String| fallen(plan, "did not start", &why);
        let program = std::env::current_exe().map_err(|error| did_not_start(error.to_string()))?;
        let log = OpenOptions::new().create(true).append(true).open(&plan.log).await;
        let log = log.map_err(|error| did_not_start(error.to_string()))?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with(VARIABLES) && name != LOG_VARIABLE) {
                command.env_remove(name);
            }
        }
        if let Some(database) = &plan.database {
            command.env("TIDEGATE_DATABASE", database);
        }
        command
            .args(["--until-input-ends", "--output", "json"])
            .args(&plan.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C goes to the whole group of the terminal, and the parts are to end in order.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| did_not_start(error.to_string()))?;
        let (Some(input), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(did_not_start("it has no pipes".to_owned()));
        };
        let keeping = tokio::spawn(keep(stderr, log, tokens));
        let failure = match tokio::time::timeout(READY_LIMIT, ready(stdout)).await {
            Ok(Some(Ready { url })) => return Ok(Process { child, input, keeping, url }),
            Ok(None) => None,
            Err(_) => Some(format!("it was not ready within {} s", READY_LIMIT.as_secs())),
        };
        drop(input);
        let status = end(&mut child, keeping).await;
        Err(did_not_start(failure.unwrap_or(status)))
    }

    /// Its id, while it runs.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until it ends by itself.
    pub(super) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends it in order.
    pub(super) async fn stop(self) {
        let Process { mut child, input, keeping, .. } = self;
        drop(input);
        end(&mut child, keeping).await;
    }
}

/// Waits until a process has ended that was told to, and says how it did.
async fn end(child: &mut Child, keeping: JoinHandle<()>) -> String {
    let status = match tokio::time::timeout(STOP_LIMIT, child.wait()).await {
        Ok(Ok(status)) => format!("it ended with {status}"),
        Ok(Err(error)) => error.to_string(),
        Err(_) => {
            let killed = child.kill().await;
            let within = STOP_LIMIT.as_secs();
            killed.map_or_else(
                |error| error.to_string(),
                |()| format!("it did not end within {within} s, and was killed"),
            )
        }
    };
    // Its output has ended with it.
    if let Err(error) = keeping.await {
        tracing::error!(%error, "the output of a process could not be kept");
    }
    status
}

/// Reads the one value that a process prints when it is ready; nothing, if it ends before.
async fn ready(stdout: ChildStdout) -> Option<Ready> {
    let mut lines = BufReader::new(stdout.take(READY_BYTES_MAX));
    let mut text = String::new();
    while lines.read_line(&mut text).await.is_ok_and(|bytes| bytes > 0) {
        if let Ok(ready) = serde_json::from_str(&text) {
            return Some(ready);
        }
    }
    None
}

/// Keeps what a process says, but for tokens. It is read to its end also when it can't be written, so that the process is
/// never held up by it.
async fn keep(stderr: ChildStderr, mut log: File, tokens: mpsc::Sender<String>) {
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.starts_with(b"tg_") {
            // Whoever wanted it has it already, or there is nobody.
            let _ = tokens.try_send(String::from_utf8_lossy(&line).trim().to_owned());
            line = b"(it is not kept here)\n".to_vec();
        }
        let written = match log.write_all(&line).await {
            Ok(()) => log.flush().await,
            failed => failed,
        };
        if let Err(error) = written {
            tracing::warn!(%error, "the output of a process could not be kept");
        }
    }
}

/// A failure of a process: what it said last is in it, and where all of it is.
pub(super) fn fallen(plan: &Plan, what: &str, why: &str) -> Failure {
    let said = last_lines(&plan.log);
    let what = format!("the demo's process {} {what}", plan.name);
    let follows = "The demo ends, and all of its processes with it.";
    let kept = format!("What it said is in {}.", plan.log.display());
    // One that has failed says why in the shape of errors.
    if let Some(Ok(body)) = said.last().map(|line| serde_json::from_str::<ErrorBody>(line)) {
        return Failure::new(what, body.why, follows, &format!("{} {kept}", body.countermeasures));
    }
    let said =
        if said.is_empty() { "It said nothing.".to_owned() } else { format!("It said last:\n{}", said.join("\n")) };
    Failure::new(what, format!("{why}. {said}"), follows, &format!("Read why, and start the demo again. {kept}"))
}

fn last_lines(log: &Path) -> Vec<String> {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_NAMED)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_the_reason_that_the_process_gave_or_what_it_said_last() {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan {
            name: "server-1".to_owned(),
            arguments: Vec::new(),
            database: None,
            log: folder.path().join("server-1.log"),
        };
        let why = || fallen(&plan, "did not start", "it ended with exit status: 1").why().to_owned();
        assert_eq!(why(), "it ended with exit status: 1. It said nothing.");
        std::fs::write(&plan.log, "one\ntwo\n").unwrap();
        assert_eq!(why(), "it ended with exit status: 1. It said last:\none\ntwo");
        let body = ErrorBody::new("failed", "the server did not start", "The port is taken.", "None.", "Free it.");
        std::fs::write(&plan.log, format!("one\n{}\n", serde_json::to_string(&body).unwrap())).unwrap();
        assert_eq!(why(), "The port is taken.");
    }
}
