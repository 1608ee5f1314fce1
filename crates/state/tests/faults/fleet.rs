//! The servers of a run, their database, and what can be done to them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tidegate_state::Revision;
use tidegate_state::driver::StoredState;
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::testing::history::{HistoryEvent, Recorder};
use tidegate_state::testing::linter::lint;
use tidegate_state::testing::postgres::{PostgresServer, Stop};
use tidegate_state::testing::proxy::{Direction, Proxy};

use super::aim::{Aim, Hit, HitAt};
use super::evidence::Evidence;
use super::kept;
use super::plan::{Action, Silent};
use super::server::{Contents, ORDERS, Orders};
use super::serving::Serving;
use super::settings::Settings;
use super::verdict::{self, Verdict};

/// How long a server may take for what it is told.
const LIMIT: Duration = Duration::from_secs(180);
/// How long a server may take to say which of two things is so.
const EITHER_LIMIT: Duration = Duration::from_secs(5);
/// How long before a database with a lost server lets go of its locks. Well below the lease.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_millis(750);

/// How long the runs of a server take that is to have no room.
const CROWDED_MS: u64 = 400;

/// A server's process.
struct Process {
    orders: Orders,
    child: Child,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Process {
    fn start(orders: &Orders) -> Process {
        let errors = std::fs::File::options()
            .create(true)
            .append(true)
            .open(orders.folder.join(format!("{}.log", orders.name())))
            .unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["server::serves_until_it_is_told_to_leave", "--exact", "--nocapture", "--test-threads=1"])
            .env(ORDERS, serde_json::to_string(orders).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The harness's own lines are not the server's.
                if let Some((_, said)) = line.split_once('@') {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        let input = child.stdin.take().unwrap();
        Process { orders: orders.clone(), child, input, lines }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        // It may have ended by itself; then its log says why, and the next answer does not come.
        let _ = kill_process(pid, signal);
    }

    /// Waits for what it says that begins with `answer`.
    fn hear(&mut self, answer: &str) -> Result<String, String> {
        let name = self.orders.name();
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(said) if said.starts_with("unsettled") || said.starts_with("untold") => {
                    return Err(format!("{name}: {said}"));
                }
                Ok(said) => {
                    if let Some(rest) = said.strip_prefix(answer) {
                        return Ok(rest.trim().to_owned());
                    }
                }
                Err(_) => return Err(format!("{name} did not say {answer:?} within {LIMIT:?}; see its log")),
            }
        }
    }

    /// Waits for either, and says whether it was the first.
    fn hear_either(&mut self, one: &str, other: &str) -> bool {
        let until = Instant::now() + EITHER_LIMIT;
        while let Ok(said) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if said == one || said == other {
                return said == one;
            }
        }
        false
    }

    fn tell(&mut self, line: &str) -> Result<(), String> {
        writeln!(self.input, "{line}").map_err(|error| format!("{} is gone at {line:?}: {error}", self.orders.name()))
    }

    /// Tells it something and waits for the answer that begins with `answer`.
    fn ask(&mut self, line: &str, answer: &str) -> Result<String, String> {
        self.tell(line)?;
        self.hear(answer)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The cluster of a run.
pub(crate) struct Fleet {
    pub(crate) database: PostgresServer,
    pub(crate) schema: String,
    proxies: Vec<Proxy>,
    orders: Vec<Orders>,
    processes: Vec<Option<Process>>,
    recorder: Recorder,
    faults: usize,
    hits: BTreeMap<Aim, usize>,
    spread_within: Option<Duration>,
    /// What is compacted away is kept.
    keeps: bool,
    folder: PathBuf,
    /// Where the folder is, unless the settings name one.
    temporary: Option<tempfile::TempDir>,
}

impl Fleet {
    /// Starts a database, with these settings, and all servers.
    pub(crate) async fn start(settings: &Settings, database: &'static [&'static str]) -> Fleet {
        let temporary = if settings.folder.is_none() { Some(tempfile::tempdir().unwrap()) } else { None };
        let folder = temporary.as_ref().map(|folder| folder.path().to_owned());
        let folder = settings.folder.clone().or(folder).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        let database = tokio::task::spawn_blocking(|| PostgresServer::start(database)).await.unwrap().unwrap();
        let schema = database.fresh_schema();
        let keeps = settings.serving.traces;
        if keeps {
            kept::begin(&database.url(), &schema).await;
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, database.port()));
        let mut proxies = Vec::new();
        let mut orders = Vec::new();
        for number in 0..settings.servers {
            let proxy = Proxy::start(address).await.unwrap();
            orders.push(Orders {
                number,
                url: database.url_at(proxy.port()),
                schema: schema.clone(),
                folder: folder.clone(),
                seed: settings.seed,
                lease_ms: u64::try_from(settings.lease.as_millis()).unwrap(),
                lock_limit_ms: u64::try_from(LOCK_LIMIT.as_millis()).unwrap(),
                writers: settings.writers,
                towers: settings.towers,
                aimed: settings.aimed,
                serving: settings.serving.clone(),
            });
            proxies.push(proxy);
        }
        let recorder = Recorder::to_file(&folder.join("controller.history")).unwrap();
        let begins = |orders: &Orders| settings.begin_with.is_none_or(|first| orders.number < first);
        let processes = orders.iter().map(|orders| begins(orders).then(|| Process::start(orders))).collect();
        Fleet {
            database,
            schema,
            proxies,
            orders,
            processes,
            recorder,
            faults: 0,
            hits: BTreeMap::new(),
            spread_within: settings.spread_within,
            keeps,
            folder,
            temporary,
        }
    }

    /// Hands it to what blocks: children and the database are waited for so, and the proxies go on meanwhile.
    pub(crate) async fn drive<T: Send + 'static>(
        mut self,
        drive: impl FnOnce(&mut Fleet) -> T + Send + 'static,
    ) -> (Fleet, T) {
        let driven = tokio::task::spawn_blocking(move || {
            let done = drive(&mut self);
            (self, done)
        });
        driven.await.unwrap()
    }

    pub(crate) fn servers(&self) -> usize {
        self.orders.len()
    }

    /// Notes a fault that is not one of the actions.
    pub(crate) fn note(&mut self, what: String) {
        self.faults += 1;
        self.recorder.write("controller", HistoryEvent::Fault { what });
    }

    /// Writes down what is done.
    fn record(&mut self, action: Action) {
        if action.is_fault() {
            self.faults += 1;
        }
        self.recorder.write("controller", HistoryEvent::Fault { what: format!("{action:?}") });
        if let Action::Kill(server) | Action::Stop(server) = action {
            let server = self.orders[server].server_name();
            self.recorder.write("controller", HistoryEvent::Halted { server });
        }
    }

    pub(crate) fn do_to(&mut self, action: Action) {
        if let Action::Hit(server, told) = action {
            return self.hit(server, told);
        }
        self.record(action);
        match action {
            Action::Hit(..) => {}
            Action::Kill(server) => {
                if let Some(mut process) = self.processes[server].take() {
                    let _ = process.child.kill();
                    let _ = process.child.wait();
                }
            }
            Action::Start(server) => {
                // One that drains is waited for: it is about to leave.
                self.gone(server);
                self.processes[server] = Some(Process::start(&self.orders[server]));
            }
            Action::Stop(server) => self.signal(server, Signal::STOP),
            Action::Continue(server) => self.signal(server, Signal::CONT),
            Action::Drain(server) => self.signal(server, Signal::TERM),
            Action::StopDatabase { crash } => {
                self.database.stop(if crash { Stop::Immediate } else { Stop::Fast });
            }
            Action::StartDatabase => self.database.resume().unwrap(),
            Action::Cut(server) => self.proxies[server].cut(),
            Action::Silence(server, way) => match way {
                Silent::ToDatabase => self.proxies[server].silence(Direction::Upstream),
                Silent::FromDatabase => self.proxies[server].silence(Direction::Downstream),
                Silent::Both => self.proxies[server].silence_both(),
            },
            Action::Resume(server) => self.proxies[server].resume(),
            Action::Withdraw(server) => self.tell(server, "withdraw"),
            Action::Declare(server) => self.tell(server, "declare"),
            Action::Crowd(server) => self.tell(server, &format!("pace {CROWDED_MS}")),
            Action::Relieve(server) => self.tell(server, "pace 0"),
            Action::Slots { hook, count } => {
                for server in 0..self.servers() {
                    let hook = &mut self.orders[server].serving.hooks[hook];
                    hook.version += 1;
                    hook.slots = count;
                    let line = format!("change {}", serde_json::to_string(hook).unwrap());
                    self.tell(server, &line);
                }
            }
        }
    }

    /// Lets a server hit itself at a point of its work; where it does not come there, it is hit wherever it is.
    fn hit(&mut self, server: usize, told: HitAt) {
        if !self.hits_itself(server, told) {
            self.do_to(match told.hit {
                Hit::Stop => Action::Stop(server),
                Hit::Kill => Action::Kill(server),
            });
        }
    }

    /// Lets a server hit itself at a point of its work, and says whether it came there.
    pub(crate) fn hits_itself(&mut self, server: usize, told: HitAt) -> bool {
        let line = format!("hit {}", serde_json::to_string(&told).unwrap());
        if !self.ask_either(server, &line, "at", "missed") {
            return false;
        }
        *self.hits.entry(told.aim).or_default() += 1;
        let what = format!("server-{server} is hit at {:?}", told.aim);
        self.recorder.write("controller", HistoryEvent::Fault { what });
        match told.hit {
            // A second signal would stop it again after it was let go on.
            Hit::Stop => self.record(Action::Stop(server)),
            Hit::Kill => self.do_to(Action::Kill(server)),
        }
        true
    }

    /// Tells a server something, and says whether it answers the first and not the second.
    pub(crate) fn ask_either(&mut self, server: usize, line: &str, one: &str, other: &str) -> bool {
        let Some(process) = &mut self.processes[server] else { return false };
        process.tell(line).is_ok() && process.hear_either(one, other)
    }

    /// The servers whose processes have ended by themselves.
    pub(crate) fn ended(&mut self) -> Vec<String> {
        let ended = |process: &mut Process| process.child.try_wait().is_ok_and(|status| status.is_some());
        self.processes
            .iter_mut()
            .flatten()
            .filter_map(|process| ended(process).then(|| process.orders.name()))
            .collect()
    }

    /// What a server serves from its next start on.
    pub(crate) fn serving(&mut self, server: usize) -> &mut Serving {
        &mut self.orders[server].serving
    }

    /// Tells a server something, if it is up.
    pub(crate) fn tell(&mut self, server: usize, line: &str) {
        if let Some(process) = &mut self.processes[server] {
            // One that is about to leave hears nothing any more.
            let _ = process.tell(line);
        }
    }

    /// Waits until a server that is leaving has left.
    pub(crate) fn gone(&mut self, server: usize) {
        if let Some(mut process) = self.processes[server].take() {
            let until = Instant::now() + LIMIT;
            while process.child.try_wait().unwrap().is_none() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// What a server has written to its log.
    pub(crate) fn log(&self, server: usize) -> String {
        let name = format!("{}.log", self.orders[server].name());
        std::fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// The memory that a server's process holds, in bytes, where the system says so.
    pub(crate) fn memory(&self, server: usize) -> Option<u64> {
        let process = self.processes[server].as_ref()?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
    }

    /// Closes every server's connections to the database, and refuses new ones.
    pub(crate) fn shut_out(&self) {
        self.proxies.iter().for_each(Proxy::close);
    }

    /// Servers may connect again.
    pub(crate) fn let_in(&self) {
        self.proxies.iter().for_each(Proxy::resume);
    }

    /// `kill -9` of all servers at once; each is gone when this ends.
    pub(crate) fn kill_all(&mut self) {
        for process in self.processes.iter().flatten() {
            process.signal(Signal::KILL);
        }
        for server in 0..self.servers() {
            self.do_to(Action::Kill(server));
        }
    }

    fn signal(&self, server: usize, signal: Signal) {
        if let Some(process) = &self.processes[server] {
            process.signal(signal);
        }
    }

    /// Tells a server something and waits for the answer that begins with `answer`.
    pub(crate) fn ask(&mut self, server: usize, line: &str, answer: &str) -> Result<String, String> {
        self.processes[server].as_mut().ok_or("it is down")?.ask(line, answer)
    }

    /// Waits until a server has told the line that begins with `said` by itself.
    pub(crate) fn hear(&mut self, server: usize, said: &str) -> Result<(), String> {
        self.processes[server].as_mut().ok_or("it is down")?.hear(said).map(|_| ())
    }

    /// Waits until every server has told the line that begins with `said` by itself.
    pub(crate) fn hear_all(&mut self, said: &str) -> Result<(), String> {
        self.processes.iter_mut().flatten().try_for_each(|process| process.hear(said).map(|_| ()))
    }

    /// Tells all servers something at once, and waits for the answers.
    pub(crate) fn ask_all(&mut self, line: &str, answer: &str) -> Result<(), String> {
        for process in self.processes.iter_mut().flatten() {
            process.tell(line)?;
        }
        self.hear_all(answer)
    }

    /// No more faults and no more writers; waits until every request is done, and asks every server what its tree holds.
    pub(crate) fn come_to_rest(&mut self) -> Result<Vec<Contents>, String> {
        for server in 0..self.processes.len() {
            let ended = self.processes[server]
                .as_mut()
                .is_none_or(|process| process.child.try_wait().is_ok_and(|status| status.is_some()));
            if ended {
                self.processes[server] = Some(Process::start(&self.orders[server]));
            }
        }
        self.come_to_rest_as_it_is()
    }

    /// The same with the servers that are up, the others left alone.
    pub(crate) fn come_to_rest_as_it_is(&mut self) -> Result<Vec<Contents>, String> {
        for process in self.processes.iter().flatten() {
            process.signal(Signal::CONT);
        }
        for process in self.processes.iter_mut().flatten() {
            process.ask("quiet", "quiet")?;
        }
        for process in self.processes.iter_mut().flatten() {
            process.ask("settle", "settled")?;
        }
        let mut told = Vec::new();
        for process in self.processes.iter_mut().flatten() {
            let contents = process.ask("tell", "contents")?;
            told.push(serde_json::from_str(&contents).map_err(|error| error.to_string())?);
        }
        for process in self.processes.iter_mut().flatten() {
            process.signal(Signal::TERM);
            process.child.wait().map_err(|error| error.to_string())?;
        }
        Ok(told)
    }

    /// All that is stored.
    async fn stored(&self) -> StoredState {
        let options = PostgresOptions::in_schema(self.schema.clone());
        let store = PostgresStore::new(&self.database.url(), options).unwrap();
        store.driver().stored().await.unwrap()
    }

    /// Gathers what was left behind, and judges it.
    pub(crate) async fn judge(self, told: Result<Vec<Contents>, String>) -> (Verdict, Evidence) {
        let left = self.stored().await;
        let linted = lint(&left, &kept::declarations()).iter().map(ToString::to_string).collect();
        let compacted = left.meta.compacted;
        let stored = if self.keeps && compacted > Revision::ZERO {
            kept::put_back(&self.database.url(), &self.schema).await;
            self.stored().await
        } else {
            left
        };
        let (history, answers) = Evidence::read(&self.orders, &self.folder);
        let evidence = Evidence {
            seed: self.orders.first().map_or(0, |orders| orders.seed),
            history,
            answers,
            stored,
            linted,
            compacted,
            hits: self.hits,
            spread_within: self.spread_within,
            told,
            faults: self.faults,
        };
        let verdict = verdict::judge(&evidence);
        if !verdict.is_sound() {
            // What would have to be looked at outlives the run.
            if let Some(temporary) = self.temporary {
                let _ = temporary.keep();
            }
            println!("the histories and logs are in {}", self.folder.display());
        }
        (verdict, evidence)
    }
}
