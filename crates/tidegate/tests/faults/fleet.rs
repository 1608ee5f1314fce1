//! The processes of a run, how they reach each other, and what can be done to them.
//!
//! ```text
//! readers ─▶ agent-a, node-a, agent-b, …        push clients
//!               │ proxies                          │
//!               ▼                                  ▼
//!            server-0, server-1, … ◀───────────────┘
//!               │ proxies
//!               ▼
//!            PostgreSQL
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tidegate_api::{LimitsPatch, StorePatch};
use tidegate_client::{Client, Options};
use tidegate_state::testing::postgres::{PostgresServer, Stop};
use tidegate_state::testing::proxy::{Direction, Proxy};
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::evidence::{Downtime, Place, now};
use super::guarantees::history_file;
use super::plan::{Fault, Part, Silent};
use super::process::{PATIENCE, POLL, Process, Program, free_port};
use super::settings::Settings;

/// The schema that the servers share.
pub(crate) const SCHEMA: &str = "faults";

/// A store that nobody pushes to; it is changed to see whether a server commits.
pub(crate) const PROBE: &str = "probe";

/// Gates that do what the push's id says, in the second region.
const DECIDE: &str = r#"#!/bin/sh
cat > /dev/null
case "$TIDEGATE_FUNCTION $TIDEGATE_REGION $TIDEGATE_PUSH" in
    "pre_store_version_swap b "*-abort) echo '{"outcome": "abort", "reason": "as planned"}' ;;
    "post_store_version_swap b "*-roll-back) echo '{"outcome": "rollback", "reason": "as planned"}' ;;
    *) echo '{"outcome": "proceed"}' ;;
esac
"#;

/// All that runs.
pub(crate) struct Fleet {
    database: Arc<Mutex<PostgresServer>>,
    parts: BTreeMap<Part, Arc<Mutex<Process>>>,
    programs: BTreeMap<Part, Program>,
    /// What a server's connections to the database, or an agent's to the servers, go through.
    links: BTreeMap<Part, Vec<Proxy>>,
    places: Vec<Place>,
    downtimes: parking_lot::Mutex<Vec<Downtime>>,
    /// Tells whoever runs a push client to kill it.
    pub(crate) kill_client: Notify,
    probes: AtomicU64,
}

impl Fleet {
    /// Lays everything out and starts it. Ends once all servers are ready, agents and nodes not yet.
    pub(crate) async fn start(settings: &Settings, folder: &Path) -> Fleet {
        let database = tokio::task::spawn_blocking(|| PostgresServer::start(&[])).await.unwrap().unwrap();
        let mut layout = Layout::new(settings, folder, &database);
        layout.lay_out(&database).await;
        let Layout { programs, links, places, .. } = layout;
        let parts = programs.iter().map(|(part, program)| (*part, Arc::new(Mutex::new(Process::new(program.clone())))));
        let fleet = Fleet {
            database: Arc::new(Mutex::new(database)),
            parts: parts.collect(),
            programs,
            links,
            places,
            downtimes: parking_lot::Mutex::default(),
            kill_client: Notify::new(),
            probes: AtomicU64::new(0),
        };
        fleet.start_all(|part| matches!(part, Part::Server(_))).await;
        fleet
    }

    /// Starts all of a kind at once.
    pub(crate) async fn start_all(&self, which: impl Fn(Part) -> bool) {
        let started = self.parts.iter().filter(|(part, _)| which(**part));
        let started = started.map(|(_, process)| async move { process.lock().await.start().await });
        for started in futures::future::join_all(started).await {
            started.unwrap();
        }
    }

    /// Ends all of them in order, those that need others before those. Says what did not end well.
    pub(crate) async fn leave(&self) -> Vec<String> {
        let mut trouble = Vec::new();
        for process in self.parts.values().rev() {
            trouble.extend(process.lock().await.leave().await.err());
        }
        trouble
    }

    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// The address of each place.
    pub(crate) fn place_urls(&self) -> Vec<String> {
        let readable = self.programs.iter().filter(|(part, _)| !matches!(part, Part::Server(_)));
        readable.map(|(_, program)| program.url()).collect()
    }

    fn place_of(&self, part: Part) -> Option<usize> {
        self.places.iter().position(|place| place.name == self.programs[&part].name)
    }

    pub(crate) fn downtimes(&self) -> Vec<Downtime> {
        self.downtimes.lock().clone()
    }

    pub(crate) fn server_urls(&self) -> Vec<String> {
        let servers = self.programs.iter().filter(|(part, _)| matches!(part, Part::Server(_)));
        servers.map(|(_, program)| program.url()).collect()
    }

    /// A client of one server that gives up soon, so that whoever uses it can ask another.
    pub(crate) fn client(&self, server: usize) -> Client {
        let mut options = Options::new(self.programs[&Part::Server(server)].url());
        options.patience = Duration::from_secs(1);
        options.request_limit = Duration::from_secs(5);
        Client::with_options(options).unwrap()
    }

    pub(crate) async fn database_url(&self) -> String {
        self.database.lock().await.url()
    }

    /// Does it, waits as long as it lasts, undoes it, and waits until what was hit works again. Ends with how long that took
    /// from the end of the fault on; nothing where nothing has to recover by itself.
    pub(crate) async fn inflict(&self, fault: Fault) -> Result<Option<Duration>, String> {
        match fault {
            Fault::Kill { part, dead } => {
                let mut process = self.parts[&part].lock().await;
                let from = now();
                process.kill().await;
                tokio::time::sleep(dead).await;
                let ended = Instant::now();
                process.start().await?;
                self.note_downtime(part, from);
                self.until_works(part, &process).await?;
                Ok(Some(ended.elapsed()))
            }
            Fault::Stop { part, stopped } => {
                let mut process = self.parts[&part].lock().await;
                let from = now();
                process.signal(Signal::STOP);
                tokio::time::sleep(stopped).await;
                let ended = Instant::now();
                process.signal(Signal::CONT);
                process.until_ready().await?;
                self.note_downtime(part, from);
                self.until_works(part, &process).await?;
                Ok(Some(ended.elapsed()))
            }
            Fault::Drain { part } => {
                let mut process = self.parts[&part].lock().await;
                let from = now();
                let left = process.leave().await;
                let ended = Instant::now();
                process.start().await?;
                self.note_downtime(part, from);
                left?;
                self.until_works(part, &process).await?;
                Ok(Some(ended.elapsed()))
            }
            Fault::Database { crash, down } => {
                let database = Arc::clone(&self.database).lock_owned().await;
                let how = if crash { Stop::Immediate } else { Stop::Fast };
                let stopping = tokio::task::spawn_blocking(move || {
                    database.stop(how);
                    database
                });
                let database = stopping.await.map_err(|error| error.to_string())?;
                tokio::time::sleep(down).await;
                let resuming = tokio::task::spawn_blocking(move || database.resume());
                resuming.await.map_err(|error| error.to_string())??;
                let ended = Instant::now();
                for (number, _) in self.server_urls().iter().enumerate() {
                    self.until_commits(number).await?;
                }
                Ok(Some(ended.elapsed()))
            }
            Fault::Cut { part } => {
                let process = self.parts[&part].lock().await;
                self.links[&part].iter().for_each(Proxy::cut);
                let ended = Instant::now();
                self.until_works(part, &process).await?;
                Ok(Some(ended.elapsed()))
            }
            Fault::Silence { part, way, silent } => {
                let process = self.parts[&part].lock().await;
                for link in &self.links[&part] {
                    match way {
                        Silent::Sent => link.silence(Direction::Upstream),
                        Silent::Received => link.silence(Direction::Downstream),
                        Silent::Both => link.silence_both(),
                    }
                }
                tokio::time::sleep(silent).await;
                self.links[&part].iter().for_each(Proxy::resume);
                let ended = Instant::now();
                self.until_works(part, &process).await?;
                Ok(Some(ended.elapsed()))
            }
            Fault::Client => {
                self.kill_client.notify_waiters();
                Ok(None)
            }
        }
    }

    /// What is read there could not be, from before the fault until now.
    fn note_downtime(&self, part: Part, from: u64) {
        if let Some(place) = self.place_of(part) {
            self.downtimes.lock().push(Downtime { place, from, until: now() });
        }
    }

    /// A server works once it commits, an agent once it hosts its region, a node once it answers.
    async fn until_works(&self, part: Part, process: &Process) -> Result<(), String> {
        match part {
            Part::Server(number) => self.until_commits(number).await,
            Part::Node(_) => Ok(()),
            Part::Agent(_) => {
                let until = Instant::now() + PATIENCE;
                // Without the control plane it says more than that.
                while process.answers("/readyz").await.as_deref() != Some("ready\n") {
                    if Instant::now() > until {
                        return Err(format!("{} did not host its region within {PATIENCE:?}", process.program.name));
                    }
                    tokio::time::sleep(POLL).await;
                }
                Ok(())
            }
        }
    }

    async fn until_commits(&self, server: usize) -> Result<(), String> {
        let client = self.client(server);
        let until = Instant::now() + PATIENCE;
        loop {
            // Never the same twice, so that there is something to commit.
            let silence_ms = Some(600_000 + self.probes.fetch_add(1, Ordering::Relaxed));
            let limits = Some(LimitsPatch { silence_ms, ..LimitsPatch::default() });
            let error = match client.update_store(PROBE, &StorePatch { limits, ..StorePatch::default() }).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if Instant::now() > until {
                return Err(format!("server-{server} did not commit within {PATIENCE:?}: {error}"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Which processes there are, on which ports and with which files.
struct Layout<'a> {
    settings: &'a Settings,
    folder: &'a Path,
    target: SocketAddr,
    programs: BTreeMap<Part, Program>,
    links: BTreeMap<Part, Vec<Proxy>>,
    places: Vec<Place>,
}

impl<'a> Layout<'a> {
    fn new(settings: &'a Settings, folder: &'a Path, database: &PostgresServer) -> Layout<'a> {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, database.port()));
        let (programs, links) = (BTreeMap::new(), BTreeMap::new());
        Layout { settings, folder, target, programs, links, places: Vec::new() }
    }

    async fn lay_out(&mut self, database: &PostgresServer) {
        let decide = self.write("decide", DECIDE);
        std::fs::set_permissions(&decide, std::fs::Permissions::from_mode(0o755)).unwrap();
        let artifacts = self.folder.join("artifacts");
        std::fs::create_dir_all(&artifacts).unwrap();
        let artifacts = reqwest::Url::from_directory_path(&artifacts).unwrap().to_string();
        for number in 0..self.settings.servers {
            let name = format!("server-{number}");
            let proxy = Proxy::start(self.target).await.unwrap();
            let config = self.write(&format!("{name}.toml"), &self.configuration(number, &name, &decide));
            let (config, artifacts) = (config.to_str().unwrap().to_owned(), artifacts.clone());
            let words = ["server", "--config", &config, "--artifacts", &artifacts];
            let url = database.url_at(proxy.port());
            self.add(Part::Server(number), &name, &words, "/readyz").database = Some(url);
            self.links.insert(Part::Server(number), vec![proxy]);
        }
        let lease = format!("{}s", self.settings.lease.as_secs());
        for (number, region) in self.settings.regions().iter().enumerate() {
            let mut proxies = Vec::new();
            for server in 0..self.settings.servers {
                let port = self.programs[&Part::Server(server)].port;
                proxies.push(Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.unwrap());
            }
            let urls = proxies.iter().map(|proxy| format!("http://127.0.0.1:{}", proxy.port()));
            let urls = urls.collect::<Vec<_>>().join(",");
            let name = format!("agent-{region}");
            let mut words = vec!["agent", "--region", region, "--name", &name, "--control-plane", &urls];
            words.extend(["--nodes", "1", "--lease", &lease]);
            self.add(Part::Agent(number), &name, &words, "/healthz");
            self.links.insert(Part::Agent(number), proxies);
        }
        for (number, region) in self.settings.regions().iter().enumerate() {
            let (name, agent) = (format!("node-{region}"), self.programs[&Part::Agent(number)].url());
            self.add(Part::Node(number), &name, &["node", "--name", &name, "--agent", &agent], "/healthz");
        }
        for (part, program) in &self.programs {
            if let Part::Agent(region) | Part::Node(region) = part {
                let region = self.settings.regions()[*region].to_owned();
                self.places.push(Place { name: program.name.clone(), region });
            }
        }
    }

    fn add(&mut self, part: Part, name: &str, words: &[&str], ready: &'static str) -> &mut Program {
        let port = free_port();
        let mut arguments: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
        arguments.extend(["--listen".into(), format!("127.0.0.1:{port}").into()]);
        arguments.extend(["--data".into(), self.folder.join(name).into()]);
        let log = self.folder.join(format!("{name}.log"));
        let program = Program { name: name.to_owned(), port, arguments, database: None, ready, log };
        self.programs.entry(part).insert_entry(program).into_mut()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.folder.join(name);
        std::fs::write(&file, text).unwrap();
        file
    }

    fn configuration(&self, number: usize, name: &str, decide: &Path) -> String {
        let mut text = format!(
            "[server]\nname = \"{name}\"\nschema = \"{SCHEMA}\"\nlease_seconds = {}\nhistory_file = {:?}\n\n[hooks]\nwait_interval = \"1s\"\n\n\
             [hooks.config.region-order]\norder = \"{}\"\ndelay = \"100ms\"\n\n[hooks.config.exec]\nprogram = \"{}\"\n\
             functions = \"pre-swap, post-swap\"\n",
            self.settings.lease.as_secs(),
            history_file(self.folder, number),
            self.settings.regions().join(", "),
            decide.display()
        );
        for region in self.settings.regions() {
            write!(text, "\n[[regions]]\nname = \"{region}\"\nagent = true\n").unwrap();
        }
        text
    }
}
