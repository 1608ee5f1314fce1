//! X15: a foreign transaction that has read every table stays open while servers write, run, fail, run again and compact. It
//! keeps the database from cleaning up, and must keep servers from nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use tidegate_state::testing::history::{HistoryEvent, Line};

use super::by_answers;
use super::chaos::{OURS, Sql, nanoseconds};
use super::evidence::Evidence;
use super::fleet::Fleet;
use super::plan::Action;
use super::settings::Settings;
use super::verdict::Verdict;

/// How often it is looked whether somebody waits, and how far upkeep is.
const LOOK: Duration = Duration::from_millis(100);
/// The most memory that a server may hold, in bytes.
const MEMORY_MAX: u64 = 512 << 20;
/// The most revisions that a start may have to read: what the written-behind entities lack.
const START_READS_MAX: u64 = 20_000;
/// The most revisions that a take-over may have to read: those above the lowest watermark. One that stands still is passed by
/// copying what waits into the exceptions, 20 000 revisions later.
const TAKE_OVER_READS_MAX: u64 = 30_000;
/// The most that one revision may take in the log and among the receipts, indexes included, in bytes.
const REVISION_BYTES_MAX: u64 = 4_096;
/// How long compaction may take to catch up once nothing holds it.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);
/// How often what was deleted is cleaned up, and how far apart, before its room has to be in use again.
const VACUUM_ROUNDS: usize = 2;
const VACUUM_PAUSE: Duration = Duration::from_secs(1);
/// The most of what is written then that may take new room.
const NEW_ROOM_MAX: f64 = 0.5;
/// The tables that commits and receipts write to: nothing there is ever updated, and compaction alone deletes.
const APPENDED: [&str; 3] = ["changes", "receipt_blocks", "records"];

/// How long the foreign transaction is open, and how long it is written after it has closed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    held: Duration,
    after: Duration,
    /// How many changes are made meanwhile at least, however long that takes.
    changes: u64,
}

impl Size {
    /// The size of the case, or a small one of it.
    pub(crate) fn of(long: bool) -> Size {
        let (held, after, changes) = if long { (1_200, 60, 60_000) } else { (12, 2, 0) };
        Size { held: Duration::from_secs(held), after: Duration::from_secs(after), changes }
    }

    /// Settings of such a run.
    pub(crate) fn settings(self, settings: Settings) -> Settings {
        let mut settings = Settings { writers: 4, ..settings.planned("held") };
        settings.serving.unlucky = true;
        settings.serving.log_keep_ms = Some(1_000);
        settings
    }
}

/// What is counted of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Table {
    inserted: u64,
    updated: u64,
    deleted: u64,
    dead: u64,
    /// With its indexes.
    bytes: u64,
}

/// What was seen while it was open, and after.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Sessions of servers that waited for the foreign one.
    waited: Vec<String>,
    start_reads_max: u64,
    take_over_reads_max: u64,
    memory_max: u64,
    /// When it was open, by the machine's clock.
    from: u64,
    until: u64,
    /// The head, and how far the log was compacted, right before it closed.
    head: u64,
    compacted: u64,
    /// What a server's metrics say of it: for how long it has been open, and the dead rows of the log.
    oldest_seconds: i64,
    dead: i64,
    /// A server's log names its connection.
    is_warned_of: bool,
    tables: BTreeMap<String, Table>,
    /// The tables right after two rounds of vacuum, and when it had been written for a while after that.
    vacuumed: BTreeMap<String, Table>,
    written_on: BTreeMap<String, Table>,
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "head {}, compacted to {}; a start reads {} revisions at most, a take-over {}; {} MiB of memory at most",
            self.head,
            self.compacted,
            self.start_reads_max,
            self.take_over_reads_max,
            self.memory_max >> 20
        )?;
        writeln!(
            formatter,
            "| table | inserted | updated | deleted | dead | KiB while held | vacuumed | written on |"
        )?;
        writeln!(formatter, "|---|---|---|---|---|---|---|---|")?;
        for (name, table) in &self.tables {
            let later = |tables: &BTreeMap<String, Table>| tables.get(name).map_or(0, |table| table.bytes >> 10);
            let Table { inserted, updated, deleted, dead, bytes } = table;
            let (vacuumed, written_on, held) = (later(&self.vacuumed), later(&self.written_on), bytes >> 10);
            writeln!(
                formatter,
                "| {name} | {inserted} | {updated} | {deleted} | {dead} | {held} | {vacuumed} | {written_on} |"
            )?;
        }
        Ok(())
    }
}

/// What the run shows beside its verdict.
pub(crate) struct Found {
    pub(crate) verdict: Verdict,
    pub(crate) evidence: Evidence,
    pub(crate) seen: Seen,
}

/// Makes the run and judges it.
pub(crate) async fn run(settings: &Settings, size: Size) -> Found {
    let fleet = Fleet::start(settings, &[]).await;
    let (fleet, (told, seen)) = fleet
        .drive(move |fleet| {
            let mut seen = Seen::default();
            let held = hold(fleet, size, &mut seen);
            let told = fleet.come_to_rest();
            (held.and(told), seen)
        })
        .await;
    let (verdict, evidence) = fleet.judge(told).await;
    Found { verdict, evidence, seen }
}

fn hold(fleet: &mut Fleet, size: Size, seen: &mut Seen) -> Result<(), String> {
    fleet.hear_all("up")?;
    let mut foreign = Sql::connect(fleet)?;
    let mut sql = Sql::connect(fleet)?;
    let schema = fleet.schema.clone();
    let names = sql.text(&format!("SELECT string_agg(tablename, ',') FROM pg_tables WHERE schemaname = '{schema}'"))?;
    foreign.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()")?;
    for name in names.iter().flat_map(|names| names.split(',')) {
        foreign.run(&format!("SELECT count(*) FROM {schema}.{name}"))?;
    }
    let pid = foreign.text("SELECT pg_backend_pid()::text")?.unwrap_or_default();
    fleet.note("a foreign transaction is open".to_owned());
    seen.from = nanoseconds();
    let began = Instant::now();
    let mut restarted = false;
    while began.elapsed() < size.held || number(&mut sql, &things_changed(&schema))? < size.changes {
        if began.elapsed() > size.held * 3 {
            return Err(format!("not {} changes within {:?}", size.changes, began.elapsed()));
        }
        look(fleet, &mut sql, &pid, seen)?;
        if !restarted && began.elapsed() > size.held / 2 {
            // A start and a taking over, with all that was left behind.
            restarted = true;
            fleet.do_to(Action::Drain(2));
            fleet.do_to(Action::Start(2));
            fleet.hear(2, "up")?;
        }
        std::thread::sleep(LOOK);
    }
    let told = fleet.ask(0, "burden", "burden")?;
    (seen.oldest_seconds, seen.dead) = serde_json::from_str(&told).map_err(|error| error.to_string())?;
    let names_it =
        |line: &str| line.contains("a transaction has been open") && line.contains(&format!("process {pid},"));
    seen.is_warned_of = (0..fleet.servers()).any(|server| fleet.log(server).lines().any(names_it));
    seen.tables = tables(&mut sql, &schema)?;
    seen.head = number(&mut sql, &format!("SELECT max(revision)::text FROM {schema}.changes"))?;
    seen.compacted = number(&mut sql, &format!("SELECT compacted::text FROM {schema}.meta"))?;
    seen.until = nanoseconds();
    foreign.run("ROLLBACK")?;
    fleet.note("the foreign transaction is closed".to_owned());
    let until = Instant::now() + CATCH_UP_LIMIT;
    while number(&mut sql, &format!("SELECT compacted::text FROM {schema}.meta"))? < seen.head {
        if Instant::now() > until {
            return Err(format!("the log is not compacted to {} within {CATCH_UP_LIMIT:?}", seen.head));
        }
        std::thread::sleep(LOOK);
    }
    for round in 0..VACUUM_ROUNDS {
        if round > 0 {
            // What one round found to be unused is used again once nobody can be reading it any more.
            std::thread::sleep(VACUUM_PAUSE);
        }
        for name in APPENDED {
            sql.run(&format!("VACUUM (TRUNCATE false) {schema}.{name}"))?;
        }
    }
    seen.vacuumed = tables(&mut sql, &schema)?;
    std::thread::sleep(size.after);
    seen.written_on = tables(&mut sql, &schema)?;
    Ok(())
}

/// How many changes of things have been asked to be run, about: each has asked for a run of one of the hooks.
fn things_changed(schema: &str) -> String {
    format!("SELECT (count(*) / 2)::text FROM {schema}.records")
}

fn number(sql: &mut Sql, statement: &str) -> Result<u64, String> {
    let text = sql.text(statement)?;
    text.unwrap_or_default().parse().map_err(|error| format!("{statement}: {error}"))
}

fn look(fleet: &Fleet, sql: &mut Sql, foreign: &str, seen: &mut Seen) -> Result<(), String> {
    let schema = &fleet.schema;
    let waited = sql.text(&format!(
        "SELECT string_agg(application_name || ': ' || query, '; ') FROM pg_stat_activity \
         WHERE {OURS} AND {foreign} = ANY (pg_blocking_pids(pid))"
    ))?;
    seen.waited.extend(waited);
    let retired = i64::MAX;
    let start = number(
        sql,
        &format!("SELECT ((SELECT max(revision) FROM {schema}.changes) - at)::text FROM {schema}.entities_mark"),
    )?;
    let take_over = number(
        sql,
        &format!(
            "SELECT coalesce((SELECT max(revision) FROM {schema}.changes) - min(watermark), 0)::text \
             FROM {schema}.slots WHERE watermark < {retired}"
        ),
    )?;
    seen.start_reads_max = seen.start_reads_max.max(start);
    seen.take_over_reads_max = seen.take_over_reads_max.max(take_over);
    let memory = (0..fleet.servers()).filter_map(|server| fleet.memory(server)).max();
    seen.memory_max = seen.memory_max.max(memory.unwrap_or(0));
    Ok(())
}

fn tables(sql: &mut Sql, schema: &str) -> Result<BTreeMap<String, Table>, String> {
    let text = sql.text(&format!(
        "SELECT string_agg(concat_ws(',', relname, n_tup_ins, n_tup_upd, n_tup_del, n_dead_tup, \
                                     pg_total_relation_size(relid)), ';') \
         FROM pg_stat_user_tables WHERE schemaname = '{schema}'"
    ))?;
    let text = text.unwrap_or_default();
    let of = |row: &str| {
        let mut fields = row.split(',');
        let name = fields.next()?.to_owned();
        let mut count = || fields.next()?.parse().ok();
        let (inserted, updated, deleted, dead) = (count()?, count()?, count()?, count()?);
        Some((name, Table { inserted, updated, deleted, dead, bytes: count()? }))
    };
    text.split(';').map(|row| of(row).ok_or_else(|| format!("{row:?} is no row of counts"))).collect()
}

/// What is wrong with how servers bore the foreign transaction.
pub(crate) fn broken(found: &Found, lease: Duration) -> Vec<String> {
    let seen = &found.seen;
    let mut broken = badly_borne(seen);
    let standstill = standstill(&found.evidence.history, seen.from, seen.until);
    if standstill > lease {
        broken.push(format!("nothing was acknowledged for {standstill:?}"));
    }
    let lost = |line: &&Line| matches!(line.event, HistoryEvent::SlotLost { .. });
    broken.extend(found.evidence.history.iter().filter(lost).map(|line| format!("a lease has ended: {line:?}")));
    if by_answers::changes(&found.evidence) == 0 {
        broken.push("nothing was changed".to_owned());
    }
    broken
}

/// The longest time without an acknowledgement.
fn standstill(history: &[Line], from: u64, until: u64) -> Duration {
    let acknowledged = |line: &&Line| matches!(line.event, HistoryEvent::Receipt { durable: true, .. });
    let times = history.iter().filter(acknowledged).map(|line| line.at).filter(|at| (from..until).contains(at));
    let mut last = from;
    let mut longest = 0;
    for at in times.chain([until]) {
        longest = longest.max(at - last);
        last = at;
    }
    Duration::from_nanos(longest)
}

fn badly_borne(seen: &Seen) -> Vec<String> {
    let mut found = seen.waited.iter().map(|who| format!("it was waited for: {who}")).collect::<Vec<_>>();
    let bounds = [
        ("revisions that a start reads", seen.start_reads_max, START_READS_MAX),
        ("revisions that a take-over reads", seen.take_over_reads_max, TAKE_OVER_READS_MAX),
        ("bytes of memory", seen.memory_max, MEMORY_MAX),
    ];
    for (what, is, most) in bounds {
        if is > most {
            found.push(format!("{what}: {is}, and {most} are allowed"));
        }
    }
    if seen.oldest_seconds == 0 || seen.dead == 0 {
        found.push(format!("metrics: the oldest transaction {} s, {} dead rows", seen.oldest_seconds, seen.dead));
    }
    if !seen.is_warned_of {
        found.push("no warning names the connection of the transaction".to_owned());
    }
    if seen.compacted == 0 {
        found.push("nothing was compacted while it was open".to_owned());
    }
    let of = |tables: &BTreeMap<String, Table>, name: &str| tables.get(name).copied().unwrap_or_default();
    for name in APPENDED {
        let table = of(&seen.tables, name);
        // What compaction removed: rows of the log, one for each revision at most, and the receipts of those.
        let removed = match name {
            "changes" => seen.compacted,
            "receipt_blocks" => table.inserted,
            _ => 0,
        };
        // How many are dead is an estimate.
        if table.updated > 0 || table.deleted > removed || table.dead > table.deleted + table.deleted / 10 + 100 {
            found.push(format!(
                "{name} has dead rows that are not of compaction, which is at {}: {table:?}",
                seen.compacted
            ));
        }
        let (vacuumed, written_on) = (of(&seen.vacuumed, name), of(&seen.written_on, name));
        let bytes = |table: Table| table.bytes as f64;
        let without_reuse =
            bytes(table) / table.inserted.max(1) as f64 * (written_on.inserted - vacuumed.inserted) as f64;
        if name != "records" && bytes(written_on) - bytes(vacuumed) > without_reuse * NEW_ROOM_MAX {
            found.push(format!("{name} grew after two rounds of vacuum: {vacuumed:?}, and then {written_on:?}"));
        }
    }
    let bytes = of(&seen.tables, "changes").bytes + of(&seen.tables, "receipt_blocks").bytes;
    if bytes > seen.head * REVISION_BYTES_MAX {
        found.push(format!("log and receipts take {bytes} bytes for {} revisions", seen.head));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn borne() -> Seen {
        let changes = Table { inserted: 1_000, updated: 0, deleted: 600, dead: 600, bytes: 1 << 20 };
        let receipts = Table { inserted: 900, updated: 0, deleted: 500, dead: 500, bytes: 1 << 18 };
        let records = Table { inserted: 900, bytes: 1 << 18, ..Table::default() };
        let tables: BTreeMap<String, Table> =
            [("changes", changes), ("receipt_blocks", receipts), ("records", records)]
                .map(|(name, table)| (name.to_owned(), table))
                .into();
        Seen {
            head: 1_000,
            compacted: 600,
            oldest_seconds: 12,
            dead: 600,
            is_warned_of: true,
            vacuumed: tables.clone(),
            written_on: tables.clone(),
            tables,
            ..Seen::default()
        }
    }

    #[test]
    fn x15_whoever_waits_and_whatever_grows_or_dies_is_found() {
        assert_eq!(badly_borne(&borne()), Vec::<String>::new());
        let broken = |break_it: &dyn Fn(&mut Seen)| {
            let mut seen = borne();
            break_it(&mut seen);
            badly_borne(&seen).len()
        };
        assert_eq!(broken(&|seen| seen.waited.push("tidegate-commit: DELETE".to_owned())), 1);
        assert_eq!(broken(&|seen| seen.is_warned_of = false), 1);
        assert_eq!(broken(&|seen| seen.dead = 0), 1);
        assert_eq!(broken(&|seen| seen.memory_max = MEMORY_MAX + 1), 1);
        assert_eq!(broken(&|seen| seen.take_over_reads_max = TAKE_OVER_READS_MAX + 1), 1);
        assert_eq!(broken(&|seen| seen.tables.get_mut("receipt_blocks").unwrap().updated = 1), 1);
        assert_eq!(broken(&|seen| seen.tables.get_mut("changes").unwrap().dead = 800), 1);
        assert_eq!(broken(&|seen| seen.tables.get_mut("records").unwrap().deleted = 1), 1);
        let grown = |bytes| {
            broken(&move |seen: &mut Seen| {
                let changes = seen.written_on.get_mut("changes").unwrap();
                (changes.inserted, changes.bytes) = (changes.inserted + 100, changes.bytes + bytes);
            })
        };
        assert_eq!((grown(8 << 10), grown(80 << 10)), (0, 1), "a hundred rows take 100 KiB");
        assert_eq!(broken(&|seen| seen.tables.get_mut("changes").unwrap().bytes = 1 << 30), 1);
    }
}
