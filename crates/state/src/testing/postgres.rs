//! A private PostgreSQL for tests: its own data, its own port and socket, started when a test first needs it and gone
//! with the test's process, however that ends.
//!
//! The programs are looked for in `PG_BIN`, in `PATH` and where Debian puts them. As root the server runs as the user
//! `postgres` or `nobody`. Where there is none, what needs one is skipped, and says so in the table of skips
//! (`TIDEGATE_SKIP_LOG`).

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::HeldPort;
use crate::driver::postgres::PostgresOptions;

/// How long the server may take to start, or to stop once it has been made to.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a server may take to end before it is made to.
const STOP_LIMIT: Duration = Duration::from_secs(15);

const POLL: Duration = Duration::from_millis(10);

/// The oldest version that the driver works with.
const MAJOR_MIN: u32 = 15;

/// The user that may do everything, without a password from this machine.
pub const SUPERUSER: &str = "tidegate";

/// A user whose password is asked for; tests make it when they need it.
pub const PASSWORD_USER: &str = "guarded";

/// Outlives the test's process by as long as it takes to stop the server: its standard input ends with that process. A
/// line on it stops the server by the signal that the line names.
const SUPERVISOR: &str = r#"
"$1" -D "$2/data" -c config_file="$2/data/postgresql.conf" >>"$2/server.log" 2>&1 </dev/null &
server=$!
if read -r signal; then
    kill -s "$signal" "$server"
    wait "$server"
else
    kill -s QUIT "$server"
    (sleep 20; kill -s KILL "$server") >/dev/null 2>&1 &
    guard=$!
    wait "$server"
    kill "$guard"
    rm -rf "$2"
fi
"#;

/// A running server of the tests' own.
pub struct PostgresServer {
    programs: PathBuf,
    user: Option<(u32, u32)>,
    folder: PathBuf,
    port: HeldPort,
    supervisor: Mutex<Option<Child>>,
    schemas: AtomicU64,
}

impl std::fmt::Debug for PostgresServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PostgresServer")
            .field("folder", &self.folder)
            .field("port", &self.port.number())
            .finish()
    }
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended and what is committed is written down.
    Fast,
    /// As in a crash: it recovers when it starts again.
    Immediate,
}

/// The server that this process's tests share; the reason if there can be none.
pub fn shared() -> Result<&'static PostgresServer, &'static str> {
    static SHARED: OnceLock<Result<PostgresServer, String>> = OnceLock::new();
    SHARED.get_or_init(|| PostgresServer::start(&[])).as_ref().map_err(String::as_str)
}

/// Why tests that need PostgreSQL can't run here, if so. Noted in the table of skips, once for each process.
pub fn skipped() -> Option<&'static str> {
    static NOTED: OnceLock<()> = OnceLock::new();
    let reason = shared().err()?;
    NOTED.get_or_init(|| {
        // Written past the capture of test output: a skip has to be seen.
        let _ = writeln!(std::io::stderr(), "skipped: what needs PostgreSQL: {reason}");
        if let Some(log) = std::env::var_os("TIDEGATE_SKIP_LOG") {
            let program = std::env::current_exe().ok().and_then(|file| Some(file.file_stem()?.to_str()?.to_owned()));
            let line = format!("postgres ({})\t{reason}\n", program.unwrap_or_default());
            let written = std::fs::OpenOptions::new().append(true).create(true).open(log);
            let _ = written.and_then(|mut file| file.write_all(line.as_bytes()));
        }
    });
    Some(reason)
}

impl PostgresServer {
    /// Makes a data folder and starts a server on it, with further settings (`name = value`).
    ///
    /// # Errors
    /// What is missing or went wrong, and what to do.
    pub fn start(settings: &[&str]) -> Result<PostgresServer, String> {
        let programs = find_programs()?;
        let user = unprivileged_user()?;
        let folder =
            tempfile::Builder::new().prefix("tidegate-postgres-").tempdir().map_err(|error| error.to_string())?;
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(gid)).map_err(|error| error.to_string())?;
        }
        let server = PostgresServer {
            programs,
            user,
            port: HeldPort::new().map_err(|error| format!("no free port: {error}"))?,
            // The supervisor removes it.
            folder: folder.keep(),
            supervisor: Mutex::new(None),
            schemas: AtomicU64::new(0),
        };
        server.make_data()?;
        match server.configure(settings).and_then(|()| server.run()) {
            Ok(()) => Ok(server),
            Err(error) => {
                let _ = std::fs::remove_dir_all(&server.folder);
                Err(error)
            }
        }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env("LC_ALL", "C").process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn make_data(&self) -> Result<(), String> {
        let made = self
            .command(self.programs.join("initdb"))
            .args(["-A", "trust", "-U", SUPERUSER, "-E", "UTF8", "--no-instructions", "--no-sync", "-D"])
            .arg(self.folder.join("data"))
            .output()
            .map_err(|error| format!("initdb can't be run: {error}"))?;
        if !made.status.success() {
            return Err(format!("initdb failed: {}", String::from_utf8_lossy(&made.stderr).trim()));
        }
        let access = self.folder.join("data/pg_hba.conf");
        let trusted = std::fs::read_to_string(&access).map_err(|error| error.to_string())?;
        let guarded = format!("host all {PASSWORD_USER} 127.0.0.1/32 scram-sha-256\n{trusted}");
        std::fs::write(&access, guarded).map_err(|error| error.to_string())
    }

    fn configure(&self, settings: &[&str]) -> Result<(), String> {
        let fixed = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nmax_connections = 400\n\
             shared_buffers = '64MB'\nmax_wal_size = '4GB'\nlogging_collector = off\n\
             authentication_timeout = '2s'\n\
             log_line_prefix = '%m [%p] %a '\n",
            self.port.number(),
            self.folder.display()
        );
        std::fs::write(self.folder.join("data/postgresql.conf"), format!("{fixed}{}\n", settings.join("\n")))
            .map_err(|error| error.to_string())
    }

    /// Starts the server again after [`PostgresServer::stop`]. Waits until it takes connections.
    ///
    /// # Errors
    /// The end of its log.
    pub fn resume(&self) -> Result<(), String> {
        self.run()
    }

    fn run(&self) -> Result<(), String> {
        let mut running = self.supervisor.lock();
        let before = self.log().len();
        let mut supervisor = self
            .command("/bin/sh")
            .arg("-c")
            .arg(SUPERVISOR)
            .arg("supervisor")
            .arg(self.programs.join("postgres"))
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("the server can't be started: {error}"))?;
        let until = Instant::now() + START_LIMIT;
        loop {
            // The last line of this file says how far the server has come.
            let status = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
            if status.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
                *running = Some(supervisor);
                return Ok(());
            }
            let log = self.log();
            let told = log.get(before..).unwrap_or_default();
            // It says so when it has ended; a signal before it has begun would be lost.
            if told.contains("database system is shut down") || Instant::now() > until {
                end(&mut supervisor, b"QUIT\n", START_LIMIT);
                let lines: Vec<&str> = told.lines().rev().take(5).collect();
                let lines: Vec<&str> = lines.into_iter().rev().collect();
                return Err(format!("the server did not start: {}", lines.join(" | ")));
            }
            std::thread::sleep(POLL);
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default()
    }

    /// Stops the server, and waits until it has. [`PostgresServer::resume`] starts it again.
    pub fn stop(&self, how: Stop) {
        let Some(mut supervisor) = self.supervisor.lock().take() else { return };
        let line = match how {
            Stop::Fast => b"INT\n".as_slice(),
            Stop::Immediate => b"QUIT\n",
        };
        if !end(&mut supervisor, line, STOP_LIMIT) {
            // As a service manager does with a server that does not end: it waits for a client, say, that takes nothing.
            let status = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
            if let Some(pid) = status.lines().next() {
                let _ = self.command("/bin/sh").args(["-c", "kill -s QUIT \"$0\"", pid.trim()]).status();
            }
            end(&mut supervisor, b"", START_LIMIT);
        }
    }

    /// Its address over TCP.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_at(self.port.number())
    }

    /// Its address as seen through another port of this machine: a proxy's.
    #[must_use]
    pub fn url_at(&self, port: u16) -> String {
        format!("postgres://{SUPERUSER}@127.0.0.1:{port}/postgres?sslmode=disable")
    }

    /// Its address by its socket.
    #[must_use]
    pub fn socket_url(&self) -> String {
        format!("host={} port={} user={SUPERUSER} dbname=postgres", self.folder.display(), self.port.number())
    }

    /// The port that it listens on, on the loopback address.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where its socket, its log and its data are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A program that came with the server: `pgbench`, `psql`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// A schema that nobody else has.
    #[must_use]
    pub fn fresh_schema(&self) -> String {
        format!("t{}", self.schemas.fetch_add(1, Ordering::Relaxed))
    }

    /// Options for a store in a schema of its own, with limits as short as tests like them.
    #[must_use]
    pub fn test_options(&self) -> PostgresOptions {
        PostgresOptions {
            lock_limit: Duration::from_secs(3),
            mend_limit: Duration::from_secs(5),
            ..PostgresOptions::in_schema(self.fresh_schema())
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // Without a line the supervisor takes it that this process has ended.
        if let Some(mut supervisor) = self.supervisor.lock().take() {
            end(&mut supervisor, b"", START_LIMIT);
        }
    }
}

/// Tells the supervisor what to do, and says whether it has done it within the limit: if not, it is left to itself.
fn end(supervisor: &mut Child, line: &[u8], limit: Duration) -> bool {
    if let Some(mut input) = supervisor.stdin.take() {
        // It may have ended already.
        let _ = input.write_all(line);
    }
    let until = Instant::now() + limit;
    while matches!(supervisor.try_wait(), Ok(None)) {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// The folder with `initdb` and `postgres` of the newest version.
fn find_programs() -> Result<PathBuf, String> {
    let mut folders: Vec<PathBuf> = std::env::var_os("PG_BIN").map(PathBuf::from).into_iter().collect();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut packaged: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|versions| {
            versions
                .flatten()
                .filter_map(|version| Some((version.file_name().to_str()?.parse().ok()?, version.path().join("bin"))))
                .collect()
        })
        .unwrap_or_default();
    packaged.sort();
    folders.extend(packaged.into_iter().rev().map(|(_, folder)| folder));
    let mut too_old = None;
    for folder in folders {
        if !folder.join("initdb").exists() || !folder.join("postgres").exists() {
            continue;
        }
        match major_version(&folder.join("postgres")) {
            // A link in PATH: the server looks for the rest of it beside itself.
            Some(major) if major >= MAJOR_MIN => {
                let program = std::fs::canonicalize(folder.join("postgres")).map_err(|error| error.to_string())?;
                return Ok(program.parent().map_or(folder, Path::to_owned));
            }
            other => too_old = other.or(too_old),
        }
    }
    match too_old {
        Some(major) => Err(format!("PostgreSQL {major} is too old; install postgresql-{MAJOR_MIN} or later")),
        None => Err(format!(
            "no PostgreSQL server here; install one (apt-get install postgresql-{MAJOR_MIN}), or name the folder of \
             initdb and postgres in PG_BIN"
        )),
    }
}

fn major_version(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    version.split('.').next()?.parse().ok()
}

/// Whom the server runs as: it refuses to run as root.
fn unprivileged_user() -> Result<Option<(u32, u32)>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").map_err(|error| error.to_string())?;
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    match find("postgres").or_else(|| find("nobody")) {
        Some(user) => Ok(Some(user)),
        None => Err("PostgreSQL does not run as root, and there is no user postgres or nobody".to_owned()),
    }
}
