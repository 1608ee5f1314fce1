//! How long keys stand still: the time in which a request of a key waits and no run of the key goes, while some server that
//! runs the hook has room. What is judged is the recorded history, against a bound of the protocol.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tidegate_state::RequestId;
use tidegate_state::driver::{HookNumber, LogEntry, StoredState};
use tidegate_state::testing::history::{HistoryEvent, Line};

use super::verdict::key_of;

/// How long a key may stand still because its slot passes from one live server to another.
pub(crate) const HAND_OVER_LIMIT: Duration = Duration::from_secs(2);

/// A request, as the log has it.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) request: RequestId,
    pub(crate) key: String,
    /// When its change was committed, in nanoseconds of the machine's clock.
    pub(crate) at: u64,
}

/// The requests of a run whose end is in the history: a server that was killed before it heard of a receipt tells of none.
pub(crate) fn asked(stored: &StoredState, history: &[Line]) -> Vec<Asked> {
    let told: HashSet<RequestId> = history
        .iter()
        .filter_map(|line| match &line.event {
            HistoryEvent::Receipt { request, durable: true, .. } => Some(*request),
            _ => None,
        })
        .collect();
    let mut found = Vec::new();
    for row in &stored.log {
        for (sequence, entry) in row.entries.iter().enumerate() {
            let LogEntry::Change { path, hooks, .. } = entry else { continue };
            for hook in hooks {
                let sequence = u32::try_from(sequence).unwrap();
                let request = RequestId { revision: row.revision, sequence, hook: *hook };
                if told.contains(&request) {
                    let at = u64::try_from(row.at.0).unwrap() * 1_000_000;
                    found.push(Asked { request, key: key_of(path), at });
                }
            }
        }
    }
    found.sort_by_key(|asked| asked.request);
    found
}

/// What is looked at.
pub(crate) struct Judged<'a> {
    pub(crate) history: &'a [Line],
    /// In order of their requests.
    pub(crate) asked: &'a [Asked],
    /// The names of the hooks.
    pub(crate) hooks: &'a [&'a str],
    /// How many runs of a hook a server runs at once.
    pub(crate) room: usize,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The longest time for which a key stood still while a willing server had room.
    pub(crate) longest: Duration,
    pub(crate) broken: Vec<String>,
}

/// The number of a server, by its name.
pub(crate) fn number_of(server: &str) -> Option<usize> {
    server.strip_prefix("server-")?.split('-').next()?.parse().ok()
}

/// What was done to a server, as the controller wrote it down: the verb, and the server's number.
pub(crate) fn done_to(what: &str) -> Option<(&str, usize)> {
    let (verb, rest) = what.split_once('(')?;
    Some((verb, rest.trim_end_matches(')').parse().ok()?))
}

#[derive(Default)]
struct Server {
    /// It is up, joined, and declares its hooks.
    willing: bool,
    running: HashMap<HookNumber, BTreeSet<String>>,
}

#[derive(Default)]
struct KeyState {
    pending: BTreeSet<RequestId>,
    running: Option<usize>,
    /// How much time with room there had been when it came to stand still.
    still: Option<u64>,
}

/// Time in which a willing server has room for runs of one hook.
#[derive(Default)]
struct Room {
    total: u64,
    since: Option<u64>,
}

impl Room {
    fn upto(&self, at: u64) -> u64 {
        self.total + self.since.map_or(0, |since| at.saturating_sub(since))
    }

    fn set(&mut self, at: u64, there_is: bool) {
        self.total = self.upto(at);
        self.since = there_is.then_some(at);
    }
}

struct Sweep<'a> {
    judged: &'a Judged<'a>,
    limit: Duration,
    servers: BTreeMap<usize, Server>,
    keys: HashMap<(HookNumber, String), KeyState>,
    rooms: HashMap<HookNumber, Room>,
    found: Found,
}

/// Finds the keys that stood still for longer than this while a willing server had room.
pub(crate) fn find(judged: &Judged<'_>, limit: Duration) -> Found {
    let named: HashMap<HookNumber, &str> = judged
        .history
        .iter()
        .filter_map(|line| match &line.event {
            HistoryEvent::RunStarted { request, hook, .. } => Some((request.hook, hook.as_str())),
            _ => None,
        })
        .filter(|(_, name)| judged.hooks.contains(name))
        .collect();
    let rooms = named.keys().map(|hook| (*hook, Room::default())).collect();
    let (servers, keys, found) = (BTreeMap::new(), HashMap::new(), Found::default());
    let mut sweep = Sweep { judged, limit, servers, keys, rooms, found };
    let mut asked: Vec<&Asked> = judged.asked.iter().filter(|asked| named.contains_key(&asked.request.hook)).collect();
    asked.sort_by_key(|asked| asked.at);
    let mut asked = asked.into_iter().peekable();
    for line in judged.history {
        while let Some(next) = asked.next_if(|next| next.at <= line.at) {
            sweep.ask(next);
        }
        sweep.take(line);
    }
    let end = judged.history.last().map_or(0, |line| line.at);
    let left: Vec<(HookNumber, String)> = sweep.keys.keys().cloned().collect();
    for key in left {
        sweep.goes_on(&key, end);
    }
    sweep.found
}

impl Sweep<'_> {
    fn ask(&mut self, asked: &Asked) {
        let key = (asked.request.hook, asked.key.clone());
        self.keys.entry(key.clone()).or_default().pending.insert(asked.request);
        self.stands(&key, asked.at);
    }

    fn take(&mut self, line: &Line) {
        let server = number_of(&line.server);
        match (&line.event, server) {
            (HistoryEvent::Joined { .. }, Some(server)) => self.willing(server, true, line.at),
            (HistoryEvent::RunStarted { request, key, .. }, Some(server)) if self.rooms.contains_key(&request.hook) => {
                let key = (request.hook, key.clone());
                self.goes_on(&key, line.at);
                let own = self.servers.entry(server).or_default();
                own.running.entry(request.hook).or_default().insert(key.1.clone());
                self.keys.entry(key).or_default().running = Some(server);
                self.look_for_room(line.at);
            }
            (HistoryEvent::RunEnded { request, key, .. }, Some(server)) if self.rooms.contains_key(&request.hook) => {
                let key = (request.hook, key.clone());
                if let Some(own) = self.servers.get_mut(&server) {
                    own.running.entry(request.hook).or_default().remove(&key.1);
                }
                if let Some(state) = self.keys.get_mut(&key).filter(|state| state.running == Some(server)) {
                    state.running = None;
                }
                self.stands(&key, line.at);
                self.look_for_room(line.at);
            }
            (HistoryEvent::Receipt { request, durable: true, .. }, _) => {
                let Some(key) = self.key_of(*request) else { return };
                let pending = &mut self.keys.entry(key.clone()).or_default().pending;
                pending.remove(request);
                if pending.is_empty() {
                    self.goes_on(&key, line.at);
                }
            }
            (HistoryEvent::Fault { what }, None) => match done_to(what) {
                Some(("Kill" | "Stop", server)) => self.ends(server, line.at),
                Some(("Drain" | "Withdraw", server)) => self.willing(server, false, line.at),
                Some(("Declare", server)) => self.willing(server, true, line.at),
                _ => {}
            },
            _ => {}
        }
    }

    /// The key that has this request waiting.
    fn key_of(&self, request: RequestId) -> Option<(HookNumber, String)> {
        let asked = self.judged.asked.binary_search_by_key(&request, |asked| asked.request).ok()?;
        let key = (request.hook, self.judged.asked[asked].key.clone());
        self.keys.contains_key(&key).then_some(key)
    }

    fn willing(&mut self, server: usize, willing: bool, at: u64) {
        self.servers.entry(server).or_default().willing = willing;
        self.look_for_room(at);
    }

    /// Nothing that it runs goes on.
    fn ends(&mut self, server: usize, at: u64) {
        let own = std::mem::take(self.servers.entry(server).or_default());
        for (hook, keys) in own.running {
            for key in keys {
                let key = (hook, key);
                if let Some(state) = self.keys.get_mut(&key).filter(|state| state.running == Some(server)) {
                    state.running = None;
                }
                self.stands(&key, at);
            }
        }
        self.look_for_room(at);
    }

    fn look_for_room(&mut self, at: u64) {
        for (hook, room) in &mut self.rooms {
            let has_room = |server: &Server| {
                server.willing && server.running.get(hook).map_or(0, BTreeSet::len) < self.judged.room
            };
            room.set(at, self.servers.values().any(has_room));
        }
    }

    /// From now on it stands still, if it does.
    fn stands(&mut self, key: &(HookNumber, String), at: u64) {
        let room = self.rooms.get(&key.0).map_or(0, |room| room.upto(at));
        let Some(state) = self.keys.get_mut(key) else { return };
        if state.running.is_none() && !state.pending.is_empty() && state.still.is_none() {
            state.still = Some(room);
        }
    }

    /// It goes on now, if it stood still.
    fn goes_on(&mut self, key: &(HookNumber, String), at: u64) {
        let room = self.rooms.get(&key.0).map_or(0, |room| room.upto(at));
        let Some(state) = self.keys.get_mut(key) else { return };
        let Some(began) = state.still.take() else { return };
        let stood = Duration::from_nanos(room.saturating_sub(began));
        self.found.longest = self.found.longest.max(stood);
        if stood > self.limit {
            let request = state.pending.first();
            self.found.broken.push(format!(
                "key {} of hook {} stood still for {stood:?} with room elsewhere, until {at}; its request was {request:?}",
                key.1, key.0.0
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_state::Delivery;
    use tidegate_state::Revision;
    use tidegate_state::driver::{ReceiptOutcome, ServerId};
    use tidegate_state::testing::history::{RunOutcome, fence};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(4);

    fn request(revision: u64) -> RequestId {
        RequestId { revision: Revision(revision), sequence: 0, hook: HookNumber(1) }
    }

    fn line(seconds: u64, server: &str, event: HistoryEvent) -> Line {
        Line { at: seconds * 1_000_000_000, server: server.to_owned(), event }
    }

    fn joined(seconds: u64, server: usize) -> Line {
        let id = ServerId(uuid::Uuid::from_u128(server as u128));
        line(seconds, &format!("server-{server}"), HistoryEvent::Joined { id })
    }

    fn fault(seconds: u64, what: &str) -> Line {
        line(seconds, "controller", HistoryEvent::Fault { what: what.to_owned() })
    }

    /// A run of key `k`, from and until these seconds, with its receipt.
    fn run(from: u64, until: u64, server: usize, revision: u64) -> [Line; 3] {
        let (hook, key, fence, token) = ("every".to_owned(), "k".to_owned(), fence(1, 0, 1), revision);
        let name = format!("server-{server}");
        let started = HistoryEvent::RunStarted {
            hook: hook.clone(),
            version: 1,
            delivery: Delivery::EveryChange,
            key: key.clone(),
            fence,
            token,
            request: request(revision),
            attempt: 1,
            snapshot: Revision(revision),
        };
        let ended = HistoryEvent::RunEnded { hook, key, token, request: request(revision), outcome: RunOutcome::Done };
        let outcome = ReceiptOutcome::Done;
        let receipt = HistoryEvent::Receipt { request: request(revision), fence, outcome, durable: true };
        [line(from, &name, started), line(until, &name, ended), line(until, &name, receipt)]
    }

    fn found(history: &[Line], asked_at: &[(u64, u64)], room: usize) -> Found {
        let asked: Vec<Asked> = asked_at
            .iter()
            .map(|(seconds, revision)| Asked {
                request: request(*revision),
                key: "k".to_owned(),
                at: seconds * 1_000_000_000,
            })
            .collect();
        find(&Judged { history, asked: &asked, hooks: &["every"], room }, LIMIT)
    }

    #[test]
    fn x17_a_key_that_waits_too_long_with_room_elsewhere_is_found() {
        let history = [vec![joined(0, 0)], run(16, 17, 0, 5).to_vec()].concat();
        let found = found(&history, &[(10, 5)], 1);
        assert_eq!(found.longest, Duration::from_secs(6));
        assert_eq!(found.broken.len(), 1);
    }

    #[test]
    fn x17_a_key_that_runs_on_and_on_does_not_stand_still() {
        let history = [vec![joined(0, 0)], run(10, 30, 0, 5).to_vec(), run(31, 32, 0, 6).to_vec()].concat();
        let found = found(&history, &[(9, 5), (11, 6)], 2);
        assert_eq!((found.longest, found.broken.len()), (Duration::from_secs(1), 0));
    }

    #[test]
    fn x17_where_nobody_has_room_nobody_stands_still() {
        let other = |seconds, revision| {
            let mut lines = run(seconds, seconds + 10, 0, revision);
            for line in &mut lines {
                if let HistoryEvent::RunStarted { key, .. } | HistoryEvent::RunEnded { key, .. } = &mut line.event {
                    *key = "other".to_owned();
                }
            }
            lines.to_vec()
        };
        let history = [vec![joined(0, 0)], other(10, 4), run(20, 21, 0, 5).to_vec()].concat();
        assert_eq!(found(&history, &[(10, 5)], 1).broken.len(), 0);
        assert_eq!(found(&history, &[(10, 5)], 2).broken.len(), 1, "the same with room for two");
    }

    #[test]
    fn x17_a_server_that_drains_is_withdrawn_or_stopped_has_no_room() {
        for what in ["Drain(0)", "Withdraw(0)", "Stop(0)"] {
            let history = [vec![joined(0, 0), fault(10, what)], run(20, 21, 0, 5).to_vec()].concat();
            assert_eq!(found(&history, &[(11, 5)], 1).broken.len(), 0, "{what}");
        }
        let back = [vec![joined(0, 0), fault(10, "Withdraw(0)"), fault(11, "Declare(0)")], run(20, 21, 0, 5).to_vec()];
        assert_eq!(found(&back.concat(), &[(11, 5)], 1).broken.len(), 1, "withdrawn and back");
    }

    #[test]
    fn x17_what_a_killed_server_ran_stands_still_from_then_on() {
        let cut = run(9, 9, 0, 5)[..1].to_vec();
        let killed = [vec![joined(0, 0), joined(0, 1)], cut, vec![fault(10, "Kill(0)")], run(19, 20, 1, 5).to_vec()];
        let found = found(&killed.concat(), &[(8, 5)], 2);
        assert_eq!((found.longest, found.broken.len()), (Duration::from_secs(9), 1));
    }

    #[test]
    fn x17_a_key_that_never_runs_again_is_found() {
        let history = [vec![joined(0, 0)], run(5, 6, 0, 4).to_vec(), vec![joined(30, 1)]].concat();
        assert_eq!(found(&history, &[(4, 4), (10, 5)], 1).broken.len(), 1);
    }
}
