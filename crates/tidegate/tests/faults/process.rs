//! One process of a run: `tidegate server`, `agent` or `node`, kept at one port, with its output in a file.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tidegate_state::testing::HeldPort;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;

/// How long anything that is waited for may take at the very most; a bound on failure, not a measurement.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How often what is waited for is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// The command, with nothing of this process's own settings.
pub(crate) fn tidegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("TIDEGATE_") && name != "TIDEGATE_LOG") {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1").kill_on_drop(true);
    command
}

/// A port that nothing listens on, and that is given to nobody else while its process is down.
pub(crate) fn free_port() -> u16 {
    HeldPort::new().unwrap().for_good()
}

/// What is started, again and again, at the same port.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) arguments: Vec<OsString>,
    /// A server's; not shown on the command line.
    pub(crate) database: Option<String>,
    /// The path that answers 200 once the process does its work.
    pub(crate) ready: &'static str,
    pub(crate) log: PathBuf,
}

impl Program {
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// A process, or the place of one that is down.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) program: Program,
    http: reqwest::Client,
    running: Option<(Child, ChildStdin)>,
}

impl Process {
    pub(crate) fn new(program: Program) -> Process {
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(Duration::from_secs(5));
        Process { program, http: http.build().unwrap(), running: None }
    }

    fn spawn(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.program.log).unwrap();
        let mut command = tidegate();
        if let Some(database) = &self.program.database {
            command.env("TIDEGATE_DATABASE", database);
        }
        command.args(["--until-input-ends", "--output", "json"]).args(&self.program.arguments);
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        self.running = Some((child, input));
    }

    /// Starts it, and again should it end, as a service manager would: a server whose database goes while it starts ends.
    pub(crate) async fn start(&mut self) -> Result<(), String> {
        assert!(self.running.is_none(), "{} runs", self.program.name);
        self.spawn();
        self.until_ready().await
    }

    /// Waits until it answers.
    pub(crate) async fn until_ready(&mut self) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.answers(self.program.ready).await.is_some() {
                return Ok(());
            }
            if self.running.as_mut().is_none_or(|(child, _)| child.try_wait().unwrap().is_some()) {
                tokio::time::sleep(POLL * 10).await;
                self.spawn();
            }
            if Instant::now() > until {
                return Err(format!("{} was not ready within {PATIENCE:?}", self.program.name));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What it answers at a path, if it answers 200.
    pub(crate) async fn answers(&self, path: &str) -> Option<String> {
        let answer = self.http.get(format!("{}{path}", self.program.url())).send().await.ok()?;
        if answer.status() != 200 { None } else { answer.text().await.ok() }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.running.as_ref().and_then(|(child, _)| child.id());
        if let Some(pid) = id.and_then(|id| Pid::from_raw(i32::try_from(id).unwrap())) {
            // It may have ended by itself; then its log says why.
            let _ = kill_process(pid, signal);
        }
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            child.kill().await.unwrap();
        }
    }

    /// SIGTERM, and waits until it has left; an error if it has to be killed, or fails.
    pub(crate) async fn leave(&mut self) -> Result<(), String> {
        self.signal(Signal::TERM);
        let Some((mut child, _input)) = self.running.take() else { return Ok(()) };
        let name = &self.program.name;
        match tokio::time::timeout(PATIENCE, child.wait()).await {
            Ok(ended) => {
                let status = ended.map_err(|error| format!("{name}: {error}"))?;
                if status.success() { Ok(()) } else { Err(format!("{name} was told to leave and ended with {status}")) }
            }
            Err(_) => Err(format!("{name} was told to leave and had not within {PATIENCE:?}")),
        }
    }
}
