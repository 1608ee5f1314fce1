//! Servers that idle while keys of another wait that it has no room for: how long each does, by the recorded history. Slots
//! are what moves, so a server keeps the last one in which something waits: its keys run there already.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tidegate_state::driver::{HookNumber, SlotId};
use tidegate_state::slot_index;
use tidegate_state::testing::history::{HistoryEvent, Line};

use super::standstill::{Asked, done_to, number_of};

/// What is looked at: requests of as many keys, of one hook whose number of slots stays the same.
pub(crate) struct Judged<'a> {
    pub(crate) history: &'a [Line],
    pub(crate) asked: &'a [Asked],
    pub(crate) slots: u32,
    /// How many runs a server runs at once.
    pub(crate) room: usize,
}

#[derive(Default)]
struct Server {
    /// It is up and has joined.
    lives: bool,
    running: usize,
    /// Keys in its slots that have not run.
    waiting: usize,
    idles_since: Option<u64>,
}

/// The longest time for which a server ran nothing while more keys of another waited than that has room for; and those
/// that did so for longer than this.
pub(crate) fn find(judged: &Judged<'_>, limit: Duration) -> (Duration, Vec<String>) {
    let slot_of = |hook: HookNumber, key: &str| SlotId { hook, slot: slot_index(key, judged.slots) };
    let mut asked: Vec<&Asked> = judged.asked.iter().collect();
    asked.sort_by_key(|asked| asked.at);
    let mut asked = asked.into_iter().peekable();
    let mut servers: BTreeMap<usize, Server> = BTreeMap::new();
    let mut owners: HashMap<SlotId, usize> = HashMap::new();
    let mut waiting: HashMap<SlotId, HashSet<String>> = HashMap::new();
    let (mut longest, mut broken) = (Duration::ZERO, Vec::new());
    let mut idled = |number: usize, since: u64, until: u64| {
        let long = Duration::from_nanos(until - since);
        longest = longest.max(long);
        if long > limit {
            broken.push(format!("server {number} idled for {long:?} until {until}: keys waited elsewhere"));
        }
    };
    for line in judged.history {
        while let Some(next) = asked.next_if(|next| next.at <= line.at) {
            let slot = slot_of(next.request.hook, &next.key);
            waiting.entry(slot).or_default().insert(next.key.clone());
            if let Some(owner) = owners.get(&slot) {
                servers.entry(*owner).or_default().waiting += 1;
            }
        }
        let own = number_of(&line.server);
        match (&line.event, own) {
            (HistoryEvent::Joined { .. }, Some(own)) => servers.entry(own).or_default().lives = true,
            (HistoryEvent::SlotLeased { fence, .. }, Some(own)) => {
                let there = waiting.get(&fence.slot).map_or(0, HashSet::len);
                if let Some(before) = owners.insert(fence.slot, own) {
                    servers.entry(before).or_default().waiting -= there;
                }
                servers.entry(own).or_default().waiting += there;
            }
            (HistoryEvent::SlotReleased { fence } | HistoryEvent::SlotLost { fence }, Some(own)) => {
                if owners.get(&fence.slot) == Some(&own) {
                    owners.remove(&fence.slot);
                    servers.entry(own).or_default().waiting -= waiting.get(&fence.slot).map_or(0, HashSet::len);
                }
            }
            (HistoryEvent::RunStarted { fence, key, .. }, Some(own)) => {
                servers.entry(own).or_default().running += 1;
                let began = waiting.get_mut(&fence.slot).is_some_and(|keys| keys.remove(key));
                if began && let Some(owner) = owners.get(&fence.slot) {
                    servers.entry(*owner).or_default().waiting -= 1;
                }
            }
            (HistoryEvent::RunEnded { .. }, Some(own)) => servers.entry(own).or_default().running -= 1,
            (HistoryEvent::Fault { what }, None) => {
                if let Some(("Drain" | "Kill" | "Stop", own)) = done_to(what) {
                    servers.entry(own).or_default().lives = false;
                }
            }
            _ => {}
        }
        let can_give = |number: usize| {
            let waits = |slot: &SlotId| waiting.get(slot).is_some_and(|keys| !keys.is_empty());
            owners.iter().filter(|(slot, owner)| **owner == number && waits(slot)).count() > 1
        };
        let is_burdened = |number: usize, server: &Server| server.waiting > judged.room && can_give(number);
        let burdened: Vec<usize> = servers
            .iter()
            .filter(|(number, server)| is_burdened(**number, server))
            .map(|(number, _)| *number)
            .collect();
        for (number, server) in &mut servers {
            let idles = server.lives && server.running == 0 && burdened.iter().any(|other| other != number);
            match (idles, server.idles_since) {
                (true, None) => server.idles_since = Some(line.at),
                (false, Some(since)) => {
                    server.idles_since = None;
                    idled(*number, since, line.at);
                }
                _ => {}
            }
        }
    }
    let end = judged.history.last().map_or(0, |line| line.at);
    for (number, server) in servers {
        if let Some(since) = server.idles_since {
            idled(number, since, end);
        }
    }
    (longest, broken)
}

#[cfg(test)]
mod tests {
    use tidegate_state::driver::ServerId;
    use tidegate_state::testing::history::{RunOutcome, fence};
    use tidegate_state::{Delivery, RequestId, Revision};

    use super::*;

    fn line(seconds: u64, server: &str, event: HistoryEvent) -> Line {
        Line { at: seconds * 1_000_000_000, server: server.to_owned(), event }
    }

    fn request(revision: u64) -> RequestId {
        RequestId { revision: Revision(revision), sequence: 0, hook: HookNumber(1) }
    }

    /// Three keys, of which the last lies in another of two slots than the others.
    fn keys() -> [String; 3] {
        let of = |slot| (0..).map(|number| format!("k{number}")).filter(move |key| slot_index(key, 2) == slot);
        let (mut first, mut second) = (of(0), of(1));
        [first.next().unwrap(), first.next().unwrap(), second.next().unwrap()]
    }

    /// A run of one of them.
    fn run(from: u64, until: u64, server: &str, key: usize, token: u64) -> [Line; 2] {
        let (hook, key, request) = ("every".to_owned(), keys()[key].clone(), request(token));
        let started = HistoryEvent::RunStarted {
            hook: hook.clone(),
            version: 1,
            delivery: Delivery::EveryChange,
            key: key.clone(),
            fence: fence(1, slot_index(&key, 2), 1),
            token,
            request,
            attempt: 1,
            snapshot: Revision(token),
        };
        let ended = HistoryEvent::RunEnded { hook, key, token, request, outcome: RunOutcome::Done };
        [line(from, server, started), line(until, server, ended)]
    }

    /// Server 0 owns both slots, in which three keys wait from second 1 on; server 1 joins in second 2.
    fn found(then: &[Line]) -> (Duration, Vec<String>) {
        found_with(2, then)
    }

    fn found_with(slots: u32, then: &[Line]) -> (Duration, Vec<String>) {
        let id = |number| ServerId(uuid::Uuid::from_u128(number));
        let lease = |slot| line(0, "server-0", HistoryEvent::SlotLeased { id: id(1), fence: fence(1, slot, 1) });
        let mut history = vec![line(0, "server-0", HistoryEvent::Joined { id: id(1) })];
        history.extend((0..slots).map(lease));
        history.push(line(2, "server-1", HistoryEvent::Joined { id: id(2) }));
        history.extend_from_slice(then);
        let asked: Vec<Asked> = keys()
            .into_iter()
            .zip(1..)
            .map(|(key, revision)| Asked { request: request(revision), key, at: 1_000_000_000 })
            .collect();
        find(&Judged { history: &history, asked: &asked, slots, room: 1 }, Duration::from_secs(5))
    }

    #[test]
    fn x14_a_server_that_idles_for_long_while_keys_of_another_wait_is_found() {
        let others = [run(3, 12, "server-0", 0, 1), run(12, 13, "server-0", 1, 2)].concat();
        let (longest, broken) = found(&others);
        assert_eq!((longest, broken.len()), (Duration::from_secs(10), 1), "{broken:?}");
    }

    #[test]
    fn x14_one_idles_by_right_once_the_other_has_room_for_what_waits() {
        let others = [run(3, 4, "server-0", 0, 1), run(5, 20, "server-0", 1, 2)].concat();
        assert_eq!(found(&others).1.len(), 0);
    }

    #[test]
    fn x14_the_last_slot_in_which_something_waits_is_nobody_else_s() {
        let others = run(3, 12, "server-0", 0, 1);
        assert_eq!(found(&others).1.len(), 1);
        assert_eq!(found_with(1, &others).1.len(), 0);
    }

    #[test]
    fn x14_one_that_is_leaving_idles_by_right() {
        let drains = vec![line(3, "controller", HistoryEvent::Fault { what: "Drain(1)".to_owned() })];
        let others = [drains, run(3, 20, "server-0", 0, 1).to_vec()].concat();
        assert_eq!(found(&others).1.len(), 0);
    }
}
