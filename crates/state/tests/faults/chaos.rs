//! The public chaos set of PostgreSQL job queues, one kind after the other on one cluster that writes throughout: what each
//! costs is told as requests lost, the longest time without an acknowledgement, and the time to the first one after it.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use tidegate_state::testing::history::{HistoryEvent, Line};
use tidegate_state::testing::postgres::Stop;
use tokio::runtime::Handle;
use tokio_postgres::{Client, NoTls};

use super::evidence::Evidence;
use super::fleet::Fleet;
use super::settings::Settings;
use super::verdict::{Verdict, unanswered};

/// How long what is held is held.
const HELD: Duration = Duration::from_secs(3);
/// How long writers are left alone after each kind.
const CALM: Duration = Duration::from_secs(2);
/// How long the database may take to recover.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// How many connections the database allows: so few that all of them can be held.
const DATABASE: &[&str] = &["max_connections = 60"];
/// How many readers read all the time.
const READERS: usize = 4;

/// The connections of servers, whatever they are for.
pub(crate) const OURS: &str = "application_name LIKE 'tidegate-%'";

/// A kind of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chaos {
    /// The database is stopped in order and started again.
    DatabaseRestart,
    /// All sessions of servers are ended.
    BackendKill,
    /// All sessions are closed, and all connections that the database allows are somebody else's.
    PoolExhaustion,
    /// `kill -9` of one of the database's processes: it ends all sessions and recovers.
    CrashRecovery,
    /// All sessions are ended, again and again.
    RepeatedKills,
    /// A transaction that nobody ends keeps what was deleted from being cleaned up.
    HeldXmin,
    /// Others read whole tables all the time.
    ActiveReaders,
}

impl Chaos {
    const ALL: [(Chaos, &'static str); 7] = [
        (Chaos::DatabaseRestart, "database restart"),
        (Chaos::BackendKill, "backend kill"),
        (Chaos::PoolExhaustion, "pool exhaustion"),
        (Chaos::CrashRecovery, "crash recovery"),
        (Chaos::RepeatedKills, "repeated kills"),
        (Chaos::HeldXmin, "held xmin"),
        (Chaos::ActiveReaders, "active readers"),
    ];

    fn inflict(self, fleet: &Fleet) -> Result<(), String> {
        let end_all = format!("SELECT count(pg_terminate_backend(pid))::text FROM pg_stat_activity WHERE {OURS}");
        match self {
            Chaos::DatabaseRestart => {
                fleet.database.stop(Stop::Fast);
                fleet.database.resume()
            }
            Chaos::BackendKill => Sql::connect(fleet)?.run(&end_all),
            Chaos::PoolExhaustion => {
                let mut sql = Sql::connect(fleet)?;
                let until = SystemTime::now() + CONNECT_LIMIT;
                let mut held = Vec::new();
                // Servers want theirs back at once, so they are kept out until all are taken.
                fleet.shut_out();
                loop {
                    while let Ok(taken) = Sql::try_connect(fleet) {
                        held.push(taken);
                    }
                    let left = sql.text(&format!("SELECT count(*)::text FROM pg_stat_activity WHERE {OURS}"))?;
                    if left.as_deref() == Some("0") {
                        break;
                    }
                    if SystemTime::now() > until {
                        fleet.let_in();
                        return Err(format!("servers kept {left:?} connections, and {} were held", held.len()));
                    }
                }
                fleet.let_in();
                std::thread::sleep(HELD);
                Ok(())
            }
            Chaos::CrashRecovery => {
                let statement = format!("SELECT min(pid)::text FROM pg_stat_activity WHERE {OURS}");
                let pid = Sql::connect(fleet)?.text(&statement)?.ok_or("no server is connected")?;
                let pid = pid.parse().ok().and_then(Pid::from_raw).ok_or("no process")?;
                kill_process(pid, Signal::KILL).map_err(|error| error.to_string())
            }
            Chaos::RepeatedKills => {
                let mut sql = Sql::connect(fleet)?;
                for _ in 0..10 {
                    sql.run(&end_all)?;
                    std::thread::sleep(HELD / 10);
                }
                Ok(())
            }
            Chaos::HeldXmin => {
                let mut sql = Sql::connect(fleet)?;
                sql.run("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
                sql.run(&format!("SELECT pg_current_xact_id()::text, count(*) FROM {}.changes", fleet.schema))?;
                std::thread::sleep(HELD);
                sql.run("ROLLBACK")
            }
            Chaos::ActiveReaders => {
                let until = SystemTime::now() + HELD;
                let mut readers = Vec::new();
                for _ in 0..READERS {
                    readers.push(Sql::connect(fleet)?);
                }
                let mut tables = ["changes", "receipt_blocks", "entities", "records"].iter().cycle();
                while SystemTime::now() < until {
                    let statements: Vec<String> = readers
                        .iter()
                        .map(|_| format!("SELECT max(t::text) FROM {}.{} t", fleet.schema, tables.next().unwrap()))
                        .collect();
                    // All at once.
                    let read =
                        readers.iter().zip(&statements).map(|(sql, statement)| sql.client.batch_execute(statement));
                    Handle::current()
                        .block_on(futures::future::try_join_all(read))
                        .map_err(|error| error.to_string())?;
                }
                Ok(())
            }
        }
    }
}

/// When a kind was inflicted, in nanoseconds of the machine's clock.
#[derive(Debug, Clone, Copy)]
struct Mark {
    name: &'static str,
    begun: u64,
    ended: u64,
    /// Until writers were left alone.
    until: u64,
}

/// What one kind cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) name: &'static str,
    /// Requests that were made by then and have no receipt.
    pub(crate) lost: usize,
    /// The longest time without an acknowledgement from its beginning until writers were left alone again.
    pub(crate) standstill: Duration,
    /// From its end to the first acknowledgement after it.
    pub(crate) recovered: Option<Duration>,
}

/// Makes the run and judges it.
pub(crate) async fn run(settings: &Settings) -> (Verdict, Vec<Cost>) {
    let fleet = Fleet::start(settings, DATABASE).await;
    let (fleet, (told, marks)) = fleet
        .drive(|fleet| {
            let mut marks = Vec::new();
            let inflicted = inflict_all(fleet, &mut marks);
            let told = fleet.come_to_rest();
            (inflicted.and(told), marks)
        })
        .await;
    let (verdict, evidence) = fleet.judge(told).await;
    let costs = marks.iter().map(|mark| cost(&evidence, *mark)).collect();
    (verdict, costs)
}

fn inflict_all(fleet: &mut Fleet, marks: &mut Vec<Mark>) -> Result<(), String> {
    fleet.hear_all("up")?;
    fleet.ask(0, "reach", "reached")?;
    for (chaos, name) in Chaos::ALL {
        fleet.note(name.to_owned());
        let begun = nanoseconds();
        chaos.inflict(fleet).map_err(|why| format!("{name}: {why}"))?;
        let ended = nanoseconds();
        std::thread::sleep(CALM);
        marks.push(Mark { name, begun, ended, until: nanoseconds() });
    }
    Ok(())
}

fn cost(evidence: &Evidence, mark: Mark) -> Cost {
    let acknowledged = |line: &Line| matches!(line.event, HistoryEvent::Receipt { durable: true, .. });
    let times: Vec<u64> = evidence.history.iter().filter(|line| acknowledged(line)).map(|line| line.at).collect();
    let within = times.iter().copied().filter(|at| (mark.begun..mark.until).contains(at));
    let first = times.iter().copied().filter(|at| *at >= mark.ended).min();
    // What stands still when writers are left alone stands still until it goes on.
    let end = first.map_or(mark.until, |first| first.max(mark.until));
    let mut last = mark.begun;
    let mut longest = 0;
    for at in within.chain([end]) {
        longest = longest.max(at - last);
        last = at;
    }
    Cost {
        name: mark.name,
        lost: unanswered(evidence, mark.begun / 1_000_000, mark.until / 1_000_000),
        standstill: Duration::from_nanos(longest),
        recovered: first.map(|first| Duration::from_nanos(first - mark.ended)),
    }
}

/// The table of a run.
pub(crate) fn table(costs: &[Cost]) -> String {
    let mut text =
        String::from("| chaos | requests lost | longest standstill | recovered within |\n|---|---|---|---|\n");
    for cost in costs {
        let recovered = cost.recovered.map_or("never".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()));
        let standstill = cost.standstill.as_secs_f64();
        writeln!(text, "| {} | {} | {standstill:.2} s | {recovered} |", cost.name, cost.lost).unwrap();
    }
    text
}

/// The machine's time, as histories have it.
pub(crate) fn nanoseconds() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// A session of nobody's server, used from a thread that may block.
pub(crate) struct Sql {
    client: Client,
}

impl Sql {
    /// Connects once the database takes connections: it may be recovering.
    pub(crate) fn connect(fleet: &Fleet) -> Result<Sql, String> {
        let until = SystemTime::now() + CONNECT_LIMIT;
        loop {
            match Sql::try_connect(fleet) {
                Err(_) if SystemTime::now() < until => std::thread::sleep(Duration::from_millis(50)),
                connected => return connected,
            }
        }
    }

    fn try_connect(fleet: &Fleet) -> Result<Sql, String> {
        let url = fleet.database.url();
        let connected = Handle::current().block_on(tokio_postgres::connect(&url, NoTls));
        let (client, connection) = connected.map_err(|error| error.to_string())?;
        // It ends with the client.
        tokio::spawn(connection);
        Ok(Sql { client })
    }

    pub(crate) fn run(&mut self, statement: &str) -> Result<(), String> {
        Handle::current().block_on(self.client.batch_execute(statement)).map_err(|error| format!("{error:?}"))
    }

    /// The one text that a statement gives, if any.
    pub(crate) fn text(&mut self, statement: &str) -> Result<Option<String>, String> {
        let row = Handle::current().block_on(self.client.query_one(statement, &[]));
        row.and_then(|row| row.try_get(0)).map_err(|error| format!("{error:?}"))
    }
}
