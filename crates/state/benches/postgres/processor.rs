//! What a part takes of the processor: unlike a rate it says much on a machine that does other work too.

use crate::server::Server;

/// The interface has 100 ticks in a second (proc(5)).
const TICK_MICROSECONDS: u64 = 10_000;

/// What was used so far, in microseconds.
pub(crate) struct ProcessorTime<'server> {
    server: &'server Server,
    own: Option<u64>,
    database: Option<u64>,
}

impl ProcessorTime<'_> {
    pub(crate) fn begin(server: &Server) -> ProcessorTime<'_> {
        ProcessorTime { server, own: own(), database: database(server) }
    }

    /// What each of so many changes took since then, in words.
    pub(crate) fn per_change(self, changes: f64) -> String {
        let told = |before: Option<u64>, after: Option<u64>| {
            before.zip(after).map(|(before, after)| after.saturating_sub(before) as f64 / changes)
        };
        match (told(self.own, own()), told(self.database, database(self.server))) {
            (Some(own), Some(database)) => {
                format!("{own:.1} µs of processor time per change in this process, {database:.1} µs in the database")
            }
            (Some(own), None) => format!("{own:.1} µs of processor time per change in this process"),
            (None, _) => "the system does not say how much of the processor that took".to_owned(),
        }
    }
}

fn own() -> Option<u64> {
    Some(Stat::read("self")?.itself)
}

/// All processes of the server, those that have ended too; none of a server that is not this run's own.
fn database(server: &Server) -> Option<u64> {
    let postmaster = server.process()?;
    let stat = Stat::read(&postmaster.to_string())?;
    let mut sum = stat.itself + stat.ended_children;
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let child = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).and_then(Stat::read);
        sum += child.filter(|child| child.parent == postmaster).map_or(0, |child| child.itself);
    }
    Some(sum)
}

struct Stat {
    parent: u64,
    itself: u64,
    ended_children: u64,
}

impl Stat {
    /// None where the process is gone, or the system has no such files.
    fn read(process: &str) -> Option<Stat> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // After the name: state, parent; fields 14 to 17 are user and system time, of itself and of children that ended.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let time = |user: usize| Some((field(user)? + field(user + 1)?) * TICK_MICROSECONDS);
        Some(Stat { parent: field(4)?, itself: time(14)?, ended_children: time(16)? })
    }
}
