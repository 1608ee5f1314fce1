//! One run of a program: its own process group, bounded output, and an end, whatever it does.
//!
//! Invariant: the program itself is waited for (reaped) last. Until then its process id, which is its group's id, can't
//! be given to another process, so signals to the group never reach a stranger.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How long a killed program may take to be gone.
const REAP_LIMIT: Duration = Duration::from_secs(5);
/// How often to look whether a program that was told to end has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What to run.
pub(super) struct Program<'a> {
    pub(super) path: &'a str,
    pub(super) arguments: &'a [String],
    pub(super) environment: Vec<(&'static str, String)>,
}

/// What a run may take.
pub(super) struct Limits {
    /// When the group gets TERM.
    pub(super) timeout: Duration,
    /// How long after that it gets KILL.
    pub(super) grace: Duration,
    /// The most it may print; more is a failure.
    pub(super) stdout_bytes_max: usize,
    /// How much of the end of its standard error is kept; it may write as much as it likes.
    pub(super) stderr_bytes_kept: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            timeout: Duration::from_secs(20),
            grace: Duration::from_secs(5),
            stdout_bytes_max: 64 * 1024,
            stderr_bytes_kept: 4 * 1024,
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With this code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// What a program that ended by itself left.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) ended: Ended,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// Ends a whole process group when the run that it belongs to is dropped half-way.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // The only error there can be is that nobody is left in it, which is what is wanted.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Ends when the group's leader has exited; leaves it to be reaped.
    async fn leader_exits(&self) {
        let Some(leader) = self.0 else { return };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        while matches!(waitid(WaitId::Pid(leader), look), Ok(None)) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Runs a program to its end.
///
/// # Errors
/// A text: it can't be started, prints too much, or does not end in time. Nothing of it remains then.
pub(super) async fn run(program: &Program<'_>, input: Vec<u8>, limits: &Limits) -> Result<Output, String> {
    let path = program.path;
    let mut command = Command::new(path);
    command
        .args(program.arguments)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|value| ("PATH", value)))
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{path} could not be started: {error}"))?;
    // Declared after the child and so dropped before it: the group is signalled while the child is not yet reaped.
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let deadline = Instant::now() + limits.timeout;
    let mut complained = Vec::new();
    let finished = {
        let write = async move {
            if let Some(mut stdin) = stdin {
                // A program that does not want to read its input, or not all of it, need not.
                let _ = stdin.write_all(&input).await;
            }
        };
        let read = async {
            let read = read_bounded(stdout, limits.stdout_bytes_max);
            tokio::try_join!(read, read_end(stderr, &mut complained, limits.stderr_bytes_kept))
                .map(|(stdout, ())| stdout)
        };
        tokio::pin!(write, read);
        let work = async {
            // Whoever never reads its input must not hold up the rest, so writing is never waited for.
            tokio::select! {
                printed = &mut read => printed,
                () = write => read.as_mut().await,
            }
        };
        let printed = tokio::time::timeout_at(deadline, work).await;
        match printed {
            Ok(Err(TooMuch)) => Finished::TooMuch,
            Ok(Ok(printed)) => match tokio::time::timeout_at(deadline, child.wait()).await {
                Ok(status) => Finished::Exited(printed, status),
                Err(_) => {
                    group.signal(Signal::TERM);
                    let ended = tokio::time::timeout(limits.grace, group.leader_exits()).await.is_ok();
                    Finished::Late { ended }
                }
            },
            Err(_) => {
                group.signal(Signal::TERM);
                let all = async {
                    let _ = read.await;
                    group.leader_exits().await;
                };
                Finished::Late { ended: tokio::time::timeout(limits.grace, all).await.is_ok() }
            }
        }
    };
    match finished {
        Finished::Exited(printed, status) => {
            // Reaped: from now on its id may belong to somebody else.
            group.0 = None;
            let status = status.map_err(|error| format!("{path} could not be waited for: {error}"))?;
            let ended = match (status.code(), status.signal()) {
                (Some(code), _) => Ended::Exit(code),
                (None, Some(signal)) => Ended::Signal(signal),
                (None, None) => return Err(format!("{path} ended with {status}, neither by exit nor by signal")),
            };
            Ok(Output { ended, stdout: printed, stderr: complained })
        }
        Finished::TooMuch => {
            end(&mut child, &mut group).await;
            Err(format!("{path} printed more than {} bytes", limits.stdout_bytes_max))
        }
        Finished::Late { ended } => {
            end(&mut child, &mut group).await;
            let how = if ended { "ended on TERM" } else { "was killed, with all that it had started," };
            let (timeout, grace) = (limits.timeout.as_millis(), limits.grace.as_millis());
            let complained = super::quoted_end(&complained);
            Err(format!("{path} did not end within {timeout} ms and {how} within the grace of {grace} ms{complained}"))
        }
    }
}

enum Finished {
    Exited(Vec<u8>, std::io::Result<ExitStatus>),
    TooMuch,
    Late { ended: bool },
}

/// The program printed more than it may.
struct TooMuch;

/// Kills what is left of the group, then reaps its leader.
async fn end(child: &mut Child, group: &mut Group) {
    group.signal(Signal::KILL);
    match tokio::time::timeout(REAP_LIMIT, child.wait()).await {
        Ok(_) => group.0 = None,
        Err(_) => tracing::warn!(group = ?group.0, "a program that was killed has not ended; it stays behind"),
    }
}

async fn read_bounded(pipe: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> Result<Vec<u8>, TooMuch> {
    let mut bytes = Vec::new();
    let Some(pipe) = pipe else { return Ok(bytes) };
    // One byte beyond the bound tells "exactly the bound" from "more". A pipe that fails has ended.
    let _ = pipe.take(bytes_max as u64 + 1).read_to_end(&mut bytes).await;
    if bytes.len() > bytes_max { Err(TooMuch) } else { Ok(bytes) }
}

/// Reads to the end, and keeps the last bytes.
async fn read_end(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>, bytes_kept: usize) -> Result<(), TooMuch> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut buffer = [0; 4_096];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        let surplus = kept.len().saturating_sub(bytes_kept);
        kept.drain(..surplus);
    }
    Ok(())
}
