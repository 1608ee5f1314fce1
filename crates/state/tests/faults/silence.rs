//! X9: what a server sends, or is sent, vanishes without a word: one server's, everybody's, one way only.

use std::time::{Duration, Instant};

use tidegate_state::testing::history::{HistoryEvent, Line};

use super::chaos::{OURS, Sql, nanoseconds};
use super::evidence::Evidence;
use super::fleet::{Fleet, LOCK_LIMIT};
use super::plan::{Action, Silent};
use super::settings::Settings;
use super::verdict::Verdict;

/// The time in which all that the first server sends and is sent vanishes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    from: u64,
    until: u64,
    lease: Duration,
}

/// What the run shows beside its verdict.
pub(crate) struct Found {
    pub(crate) verdict: Verdict,
    pub(crate) evidence: Evidence,
    pub(crate) window: Window,
    /// Transactions that the database still held open for servers that had been silent for longer than the limit, and
    /// connections beyond those that servers have.
    pub(crate) lingering: Vec<String>,
}

/// How long each silence is in the long form.
const LONG: Duration = Duration::from_secs(20);
/// How many connections a server has at most.
const CONNECTIONS_MAX: usize = 5;
/// How long after packets travel again there may be more: those that had been given up have to be closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(100);

/// Makes the run and judges it.
pub(crate) async fn run(settings: &Settings) -> Found {
    let (lease, long, fleet) = (settings.lease, settings.long, Fleet::start(settings, &[]).await);
    let (fleet, (told, window, lingering)) = fleet
        .drive(move |fleet| {
            let mut window = Window { from: 0, until: 0, lease };
            let mut lingering = Vec::new();
            let length = |leases: u32| if long { LONG } else { lease * leases };
            let begun = fleet.hear_all("up").and_then(|()| fleet.ask(0, "reach", "reached"));
            window.from = nanoseconds();
            hold(fleet, length(3), &[(0, Silent::Both)], &mut lingering);
            window.until = nanoseconds();
            let all: Vec<(usize, Silent)> = (0..fleet.servers()).map(|server| (server, Silent::Both)).collect();
            hold(fleet, length(2), &all, &mut lingering);
            hold(fleet, length(2), &[(0, Silent::ToDatabase)], &mut lingering);
            hold(fleet, length(2), &[(1, Silent::FromDatabase)], &mut lingering);
            let told = fleet.come_to_rest();
            (begun.and(told), window, lingering)
        })
        .await;
    let (verdict, evidence) = fleet.judge(told).await;
    Found { verdict, evidence, window, lingering }
}

fn hold(fleet: &mut Fleet, long: Duration, silent: &[(usize, Silent)], lingering: &mut Vec<String>) {
    for (server, way) in silent {
        fleet.do_to(Action::Silence(*server, *way));
    }
    std::thread::sleep(long);
    let looked = Sql::connect(fleet).and_then(|mut sql| {
        let limit = LOCK_LIMIT.as_secs_f64() + 1.0;
        let statement = format!(
            "SELECT string_agg(application_name || ': ' || query, '; ') FROM pg_stat_activity \
             WHERE {OURS} AND now() - xact_start > interval '{limit} s'"
        );
        let open = sql.text(&statement)?;
        lingering.extend(open.map(|open| format!("in a transaction for longer than {limit} s: {open}")));
        let count = connections(&mut sql)?;
        // What a server that hears nothing has given up is not known to be over; of the others there are no more than ever.
        let allowed = CONNECTIONS_MAX * (fleet.servers() + silent.len());
        if count > allowed {
            lingering.push(format!("{count} connections of {} servers amid {silent:?}", fleet.servers()));
        }
        for (server, _) in silent {
            fleet.do_to(Action::Resume(*server));
        }
        let until = Instant::now() + CLOSE_LIMIT;
        while connections(&mut sql)? > CONNECTIONS_MAX * fleet.servers() {
            if Instant::now() > until {
                lingering.push(format!(
                    "more than {CONNECTIONS_MAX} connections of a server, {CLOSE_LIMIT:?} after {silent:?}"
                ));
                break;
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    });
    lingering.extend(looked.err());
}

/// How many connections servers have to the database.
fn connections(sql: &mut Sql) -> Result<usize, String> {
    let count = sql.text(&format!("SELECT count(*)::text FROM pg_stat_activity WHERE {OURS}"))?;
    count.and_then(|count| count.parse().ok()).ok_or_else(|| "connections can't be counted".to_owned())
}

/// What breaks the rules of a server that is cut off: others take its slots over, and it starts nothing once its lease, by
/// its own clock, has run out.
pub(crate) fn broken(history: &[Line], window: Window) -> Vec<String> {
    let within = |line: &&Line| (window.from..window.until).contains(&line.at);
    let mut found = Vec::new();
    let taken = |line: &Line| line.server != "server-0" && matches!(line.event, HistoryEvent::SlotLeased { .. });
    if !history.iter().filter(within).any(taken) {
        found.push("nobody took over a slot of the server that was cut off".to_owned());
    }
    let lapsed = window.from + u64::try_from(window.lease.as_nanos()).unwrap();
    let late = |line: &&Line| {
        line.server == "server-0" && line.at > lapsed && matches!(line.event, HistoryEvent::RunStarted { .. })
    };
    found.extend(history.iter().filter(within).filter(late).map(|line| format!("started without a lease: {line:?}")));
    found
}
