//! One run of a program: its own process group, bounded output, and an end, whatever it does.
//!
//! A run that does not end by itself is killed with its group, and with what has left the group as far as the system lets
//! it be found ([`stray`]). What a program that has ended leaves in the background is ended too where it holds the
//! program's output open; else it is the program's own affair.
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
use uuid::Uuid;

use super::stray;

/// How long a killed program may take to be gone.
const REAP_LIMIT: Duration = Duration::from_secs(5);
/// How often to look whether a program that was told to end has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long the output of a program that has ended is still read, where something else holds it open.
const HELD_OPEN: Duration = Duration::from_millis(500);

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
struct Group {
    leader: Option<Pid>,
    /// What its processes carry in their environment.
    mark: String,
}

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.leader {
            // The only error there can be is that nobody is left in it, which is what is wanted.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Ends when the group's leader has exited; leaves it to be reaped.
    async fn leader_exits(&self) {
        let Some(leader) = self.leader else { return };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        while matches!(waitid(WaitId::Pid(leader), look), Ok(None)) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Group {
    /// Kills all that is left of it, whether or not it is in the group any more.
    async fn kill(&self) {
        self.signal(Signal::KILL);
        let mark = self.mark.clone();
        if let Ok(strays @ 1..) = tokio::task::spawn_blocking(move || stray::kill(&mark)).await {
            tracing::debug!(strays, "processes that had left the group of a program were killed");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.leader.is_none() {
            return;
        }
        self.signal(Signal::KILL);
        let mark = std::mem::take(&mut self.mark);
        // Nobody can wait here, and the runtime may be on its way out.
        let _ = std::thread::Builder::new().name("exec-strays".to_owned()).spawn(move || stray::kill(&mark));
    }
}

/// Runs a program to its end.
///
/// # Errors
/// A text: it can't be started, prints too much, or does not end in time. Nothing of it remains then.
pub(super) async fn run(program: &Program<'_>, input: Vec<u8>, limits: &Limits) -> Result<Output, String> {
    let path = program.path;
    let mark = Uuid::new_v4().to_string();
    let mut command = Command::new(path);
    command
        .args(program.arguments)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|value| ("PATH", value)))
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .env(stray::MARK, &mark)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{path} could not be started: {error}"))?;
    // Declared after the child and so dropped before it: the group is signalled while the child is not yet reaped.
    let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut group = Group { leader, mark };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let deadline = Instant::now() + limits.timeout;
    let (mut printed, mut complained) = (Vec::new(), Vec::new());
    let finished = {
        let write = async move {
            if let Some(mut stdin) = stdin {
                // A program that does not want to read its input, or not all of it, need not.
                let _ = stdin.write_all(&input).await;
            }
        };
        let read = async {
            let read = read_bounded(stdout, &mut printed, limits.stdout_bytes_max);
            tokio::try_join!(read, read_end(stderr, &mut complained, limits.stderr_bytes_kept)).map(|_| ())
        };
        tokio::pin!(write, read);
        let work = async {
            // Whoever never reads its input must not hold up the rest, so writing is never waited for.
            tokio::select! {
                read = &mut read => read,
                () = write => read.as_mut().await,
            }
        };
        let held_open = async {
            group.leader_exits().await;
            tokio::time::sleep(HELD_OPEN).await;
        };
        let work = async {
            tokio::select! {
                biased;
                read = work => read,
                // It has ended and said what it had to say.
                () = held_open => {
                    group.kill().await;
                    Ok(())
                }
            }
        };
        let read_all = tokio::time::timeout_at(deadline, work).await;
        match read_all {
            Ok(Err(TooMuch)) => Finished::TooMuch,
            Ok(Ok(())) => match tokio::time::timeout_at(deadline, child.wait()).await {
                Ok(status) => Finished::Exited(status),
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
        Finished::Exited(status) => {
            // Reaped: from now on its id may belong to somebody else.
            group.leader = None;
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
            let how = if ended { "ended on TERM" } else { "was killed, with what it had started," };
            let (timeout, grace) = (limits.timeout.as_millis(), limits.grace.as_millis());
            let complained = super::quoted_end(&complained);
            Err(format!("{path} did not end within {timeout} ms and {how} within the grace of {grace} ms{complained}"))
        }
    }
}

enum Finished {
    Exited(std::io::Result<ExitStatus>),
    TooMuch,
    Late { ended: bool },
}

/// The program printed more than it may.
struct TooMuch;

/// Kills what is left of the group, then reaps its leader.
async fn end(child: &mut Child, group: &mut Group) {
    group.kill().await;
    match tokio::time::timeout(REAP_LIMIT, child.wait()).await {
        Ok(_) => group.leader = None,
        Err(_) => tracing::warn!(group = ?group.leader, "a program that was killed has not ended; it stays behind"),
    }
}

/// Reads to the end; what was read stays where the reading is cut off.
async fn read_bounded(
    pipe: Option<impl AsyncRead + Unpin>,
    bytes: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<(), TooMuch> {
    let Some(pipe) = pipe else { return Ok(()) };
    // One byte beyond the bound tells "exactly the bound" from "more". A pipe that fails has ended.
    let _ = pipe.take(bytes_max as u64 + 1).read_to_end(bytes).await;
    if bytes.len() > bytes_max { Err(TooMuch) } else { Ok(()) }
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
