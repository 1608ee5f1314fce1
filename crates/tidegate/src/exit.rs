//! Exit codes, the same for people's scripts and for schedulers.

/// What the process ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; for a push: COMPLETED.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The server could not be reached.
    Unreachable = 3,
    /// The push ended ERROR.
    PushError = 10,
    /// The push ended ABORTED.
    PushAborted = 11,
    /// The push ended ROLLED_BACK.
    PushRolledBack = 12,
    /// The push ended KILLED.
    PushKilled = 13,
    /// The push had not ended within `--timeout`.
    PushTimedOut = 14,
    /// The command was interrupted (Ctrl-C), as shells count it.
    Interrupted = 130,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        std::process::ExitCode::from(exit as u8)
    }
}
