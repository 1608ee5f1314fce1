//! Processes of a run that have left its process group (`setsid`, a daemon's double fork): found by a mark that the run's
//! environment has, and that everything it starts inherits, whoever its parent is by then. One that clears its
//! environment is not found. On systems without `/proc` none is.

#[cfg(target_os = "linux")]
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable that carries the mark.
pub(super) const MARK: &str = "TIDEGATE_RUN";

/// How often all processes are looked through, for what was started meanwhile.
#[cfg(target_os = "linux")]
const ROUNDS: usize = 3;

/// Kills every process that has this mark, and says how many that were. Reads all of `/proc`, so it takes a few
/// milliseconds.
#[cfg(target_os = "linux")]
pub(super) fn kill(mark: &str) -> usize {
    let entry = format!("{MARK}={mark}");
    let mut killed = 0;
    for _ in 0..ROUNDS {
        let found = marked(&entry).filter(|pid| kill_marked(*pid, &entry)).count();
        killed += found;
        if found == 0 {
            break;
        }
    }
    killed
}

/// None can be found here.
#[cfg(not(target_os = "linux"))]
pub(super) fn kill(_: &str) -> usize {
    0
}

#[cfg(target_os = "linux")]
fn marked(entry: &str) -> impl Iterator<Item = Pid> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| has_mark(*pid, entry)).filter_map(Pid::from_raw)
}

/// What can't be read is another user's, or has ended.
#[cfg(target_os = "linux")]
fn has_mark(pid: i32, entry: &str) -> bool {
    let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment.split(|byte| *byte == 0).any(|found| found == entry.as_bytes())
}

/// The process is held by a descriptor while its mark is looked at, so that its id can't become somebody else's in between.
#[cfg(target_os = "linux")]
fn kill_marked(pid: Pid, entry: &str) -> bool {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    has_mark(pid.as_raw_nonzero().get(), entry) && pidfd_send_signal(&process, Signal::KILL).is_ok()
}
