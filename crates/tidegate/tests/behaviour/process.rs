//! Starts the command as a process, on free ports and in folders that go with the test.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate_state::testing::HeldPort;

/// How long anything that is waited for may take at the very most; a bound on failure, not a measurement.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The command, talking to no server in particular.
pub(crate) fn tidegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for name in ["URL", "CONFIG", "DATA", "LISTEN", "ADVERTISE", "TOKEN", "TOKEN_FILE", "CA"] {
        command.env_remove(format!("TIDEGATE_{name}"));
    }
    command.env("NO_COLOR", "1");
    command.stdin(Stdio::null());
    command
}

/// A port that nothing listens on, and that is given to nobody else.
pub(crate) fn free_port() -> u16 {
    HeldPort::new().unwrap().for_good()
}

/// Status and body of what is answered at a port; status 0 where nobody answers.
pub(crate) fn get(port: u16, path: &str) -> (u16, String) {
    ask(port, "GET", path)
}

/// The same of a request with another method, and without a body.
pub(crate) fn ask(port: u16, method: &str, path: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return (0, String::new()) };
    // Version 1.0, so that the body comes as it is.
    let request = format!("{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.set_read_timeout(Some(PATIENCE));
    if stream.write_all(request.as_bytes()).is_err() || stream.read_to_string(&mut answer).is_err() {
        return (0, String::new());
    }
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

/// Waits until something holds; `log` is shown if that takes too long.
pub(crate) fn until(what: &str, log: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}\n{}", log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a server that runs says that it is ready. One that has ended never will be.
pub(crate) fn is_ready(child: &mut Child, port: u16) -> bool {
    assert_eq!(child.try_wait().unwrap(), None, "the server has ended");
    get(port, "/readyz").0 == 200
}

/// A server in a folder of its own, on a port that it keeps when it is started again.
pub(crate) struct Server {
    folder: tempfile::TempDir,
    config: Option<String>,
    port: u16,
    child: Option<Child>,
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::start_with(None)
    }

    /// With a configuration file of this content.
    pub(crate) fn start_with(config: Option<&str>) -> Server {
        let port = free_port();
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server { folder, config: config.map(str::to_owned), port, child: None };
        server.restart();
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder for the test's own files.
    pub(crate) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it (again), and returns once it says that it is ready.
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "the server runs");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut command = tidegate();
        command.arg("server").arg("--data").arg(self.data()).args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        if let Some(config) = &self.config {
            let file = self.folder.path().join("tidegate.toml");
            std::fs::write(&file, config).unwrap();
            command.arg("--config").arg(file);
        }
        self.child = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        self.wait_until_ready();
    }

    /// Starts it again with a log, of this much, that nobody takes.
    pub(crate) fn restart_with_closed_log(&mut self, level: &str) {
        let mut command = tidegate();
        command.arg("server").arg("--data").arg(self.data()).args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        command.env("TIDEGATE_LOG", level).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stderr.take());
        self.child = Some(child);
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        let (port, log) = (self.port, self.log());
        let child = self.child.as_mut().expect("it was started");
        let text = || std::fs::read_to_string(&log).unwrap_or_default();
        until("the server is ready", text, || is_ready(child, port));
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    /// What the server printed, for a failing test.
    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// A command that talks to this server.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tidegate();
        command.env("TIDEGATE_URL", self.url()).args(arguments);
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that has to end well, and gives what it prints as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.command(arguments).args(["--output", "json"]).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}\n{}", describe(&output), self.log_text());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", describe(&output)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}", self.log_text());
        }
    }
}

/// Everything that a process left behind, for a failing test.
pub(crate) fn describe(output: &Output) -> String {
    let mut text = format!("{}\n", output.status);
    let _ = writeln!(text, "stdout: {}", String::from_utf8_lossy(&output.stdout));
    let _ = writeln!(text, "stderr: {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A small CSV with `rows` rows; `generation` makes its values differ.
pub(crate) fn write_csv(path: &Path, rows: usize, generation: usize) {
    let mut text = String::from("id,name,amount\n");
    for row in 0..rows {
        let _ = writeln!(text, "k{row},name {row} of {generation},{}", row * 7 + generation);
    }
    std::fs::write(path, text).unwrap();
}
