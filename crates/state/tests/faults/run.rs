//! One run: starts the database, the proxies and the servers, injects what the plan says, lets everything come to rest, and
//! hands over what was left behind.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::testing::history::{HistoryEvent, Recorder};
use tidegate_state::testing::postgres::{PostgresServer, Stop};
use tidegate_state::testing::proxy::{Direction, Proxy};

use super::evidence::Evidence;
use super::plan::{Action, Silent, plan};
use super::server::{Contents, ORDERS, Orders};
use super::settings::Settings;
use super::verdict::{self, Verdict};

/// How long a server may take for what it is told.
const LIMIT: Duration = Duration::from_secs(180);
/// How long before a database with a lost server lets go of its locks. Well below the lease.
const LOCK_LIMIT: Duration = Duration::from_millis(750);

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

    /// Tells it something and waits for the answer that begins with `answer`.
    fn ask(&mut self, line: &str, answer: &str) -> Result<String, String> {
        let name = self.orders.name();
        writeln!(self.input, "{line}").map_err(|error| format!("{name} is gone at {line:?}: {error}"))?;
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
                Err(_) => return Err(format!("{name} did not answer {line:?} within {LIMIT:?}; see its log")),
            }
        }
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
struct Fleet {
    database: PostgresServer,
    proxies: Vec<Proxy>,
    orders: Vec<Orders>,
    processes: Vec<Option<Process>>,
    recorder: Recorder,
    faults: usize,
}

impl Fleet {
    fn do_to(&mut self, action: Action) {
        if action.is_fault() {
            self.faults += 1;
        }
        self.recorder.write("controller", HistoryEvent::Fault { what: format!("{action:?}") });
        match action {
            Action::Kill(server) => {
                if let Some(mut process) = self.processes[server].take() {
                    let _ = process.child.kill();
                    let _ = process.child.wait();
                }
            }
            Action::Start(server) => {
                // One that drains is waited for: it is about to leave.
                if let Some(mut process) = self.processes[server].take() {
                    let until = Instant::now() + LIMIT;
                    while process.child.try_wait().unwrap().is_none() && Instant::now() < until {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
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
        }
    }

    fn signal(&self, server: usize, signal: Signal) {
        if let Some(process) = &self.processes[server] {
            process.signal(signal);
        }
    }

    /// No more faults and no more writers; waits until every request is done, and asks every server what its tree holds.
    fn come_to_rest(&mut self) -> Result<Vec<Contents>, String> {
        for server in 0..self.processes.len() {
            let ended = self.processes[server]
                .as_mut()
                .is_none_or(|process| process.child.try_wait().is_ok_and(|status| status.is_some()));
            if ended {
                self.processes[server] = Some(Process::start(&self.orders[server]));
            }
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
}

/// Makes a run and judges it.
pub(crate) async fn run(settings: &Settings) -> Verdict {
    let temporary = tempfile::tempdir().unwrap();
    let folder = settings.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder).unwrap();
    let database = tokio::task::spawn_blocking(|| PostgresServer::start(&[])).await.unwrap().unwrap();
    let schema = database.fresh_schema();
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
        });
        proxies.push(proxy);
    }
    let recorder = Recorder::to_file(&folder.join("controller.history")).unwrap();
    let processes = orders.iter().map(|orders| Some(Process::start(orders))).collect();
    let mut fleet = Fleet { database, proxies, orders: orders.clone(), processes, recorder, faults: 0 };
    let length = Duration::from_secs(settings.seconds);
    let actions = plan(settings.seed, &settings.kinds, settings.servers, settings.every, settings.lease, length);

    // Children and the database are waited for by blocking; the proxies go on meanwhile.
    let (fleet, told) = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        for (at, action) in actions.into_iter().chain([(length, Action::StartDatabase)]) {
            std::thread::sleep(at.saturating_sub(started.elapsed()));
            // The last one only waits for the end.
            if at < length {
                fleet.do_to(action);
            }
        }
        let told = fleet.come_to_rest();
        (fleet, told)
    })
    .await
    .unwrap();

    let store = PostgresStore::new(&fleet.database.url(), PostgresOptions::in_schema(schema)).unwrap();
    let stored = store.driver().stored().await.unwrap();
    let evidence = Evidence::gather(&orders, &folder, stored, told, fleet.faults);
    let verdict = verdict::judge(&evidence);
    if !verdict.is_sound() {
        // What would have to be looked at outlives the run.
        let kept = temporary.keep();
        println!("the histories and logs are in {}", settings.folder.as_ref().unwrap_or(&kept).display());
    }
    verdict
}
