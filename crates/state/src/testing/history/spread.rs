//! G8: how slots, and the keys that ran, spread over the servers that run a hook. Looked at whenever nothing has joined,
//! left, or gone wrong for a named time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::checker::{Checker, Rule};
use super::{HistoryEvent, Line};
use crate::cluster_hook::slots::is_permit;
use crate::driver::{HookNumber, ServerId, SlotId, SlotToken};

/// Of fewer keys chance may leave a server with less than half of an even share.
const KEYS_MIN: usize = 300;

/// What a server declared of a hook.
#[derive(Debug, Clone, Copy)]
struct Declared {
    version: u32,
    room: u32,
}

/// Who is in the cluster, who declares what, and who owns which slot.
#[derive(Default)]
struct Cluster<'a> {
    members: BTreeMap<&'a str, ServerId>,
    declared: HashMap<&'a str, HashMap<HookNumber, Declared>>,
    owned: HashMap<SlotId, (ServerId, SlotToken)>,
    crowded: HashMap<HookNumber, u64>,
    /// When something last joined, left or went wrong.
    disturbed: u64,
}

impl<'a> Cluster<'a> {
    /// Whether a line is about something that moves slots.
    fn is_disturbance(event: &HistoryEvent) -> bool {
        match event {
            HistoryEvent::Joined { .. }
            | HistoryEvent::Left { .. }
            | HistoryEvent::Declared { .. }
            | HistoryEvent::Withdrawn { .. }
            | HistoryEvent::Halted { .. }
            | HistoryEvent::LeaseEnded { .. }
            | HistoryEvent::SlotLost { .. }
            | HistoryEvent::Fault { .. } => true,
            HistoryEvent::RunStarted { .. }
            | HistoryEvent::RunEnded { .. }
            | HistoryEvent::Crowded { .. }
            | HistoryEvent::SlotLeased { .. }
            | HistoryEvent::SlotReleased { .. }
            | HistoryEvent::Receipt { .. }
            | HistoryEvent::Held { .. }
            | HistoryEvent::Committed { .. }
            | HistoryEvent::Acted { .. } => false,
        }
    }

    fn take(&mut self, line: &'a Line) {
        if Cluster::is_disturbance(&line.event) {
            self.disturbed = line.at;
        }
        match &line.event {
            HistoryEvent::Joined { id } => {
                self.members.insert(&line.server, *id);
            }
            HistoryEvent::Left { id } | HistoryEvent::LeaseEnded { id } => {
                self.members.retain(|_, member| member != id)
            }
            HistoryEvent::Halted { server } => {
                self.members.remove(server.as_str());
            }
            HistoryEvent::Declared { hook, version, room } => {
                let declared = Declared { version: *version, room: *room };
                self.declared.entry(&line.server).or_default().insert(*hook, declared);
            }
            HistoryEvent::Withdrawn { hook } => {
                self.declared.entry(&line.server).or_default().remove(hook);
            }
            HistoryEvent::Crowded { hook } => {
                self.crowded.insert(*hook, line.at);
            }
            HistoryEvent::SlotLeased { id, fence } if !is_permit(fence.slot) => {
                self.owned.insert(fence.slot, (*id, fence.token));
            }
            HistoryEvent::SlotReleased { fence } | HistoryEvent::SlotLost { fence } => {
                let Some((owner, _)) = self.owned.get(&fence.slot).copied().filter(|(_, token)| *token == fence.token)
                else {
                    return;
                };
                self.owned.remove(&fence.slot);
                let is_lost = matches!(line.event, HistoryEvent::SlotLost { .. });
                if is_lost && !self.owned.values().any(|(id, _)| *id == owner) {
                    // Its lease has ended: it is a member again when it has joined anew.
                    self.members.retain(|_, member| *member != owner);
                }
            }
            _ => {}
        }
    }

    /// Those that are to share a hook's slots.
    fn willing(&self, hook: HookNumber) -> BTreeMap<&'a str, ServerId> {
        let of = |server: &str| self.declared.get(server)?.get(&hook).copied();
        let newest = self.declared.keys().filter_map(|server| Some(of(server)?.version)).max();
        let is_willing = |server: &str| of(server).is_some_and(|own| own.room > 0 && Some(own.version) >= newest);
        self.members.iter().filter(|(server, _)| is_willing(server)).map(|(server, id)| (*server, *id)).collect()
    }

    fn hooks(&self) -> BTreeSet<HookNumber> {
        self.declared.values().flat_map(HashMap::keys).copied().collect()
    }

    /// The hooks that can be looked at by now, with those that are to share the slots.
    fn rested(&self, at: u64, within: Duration) -> Vec<(HookNumber, BTreeMap<&'a str, ServerId>)> {
        let within = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
        let long_ago = |then: u64| at.saturating_sub(then) > within;
        if !long_ago(self.disturbed) {
            return Vec::new();
        }
        let calm = self.hooks().into_iter().filter(|hook| self.crowded.get(hook).is_none_or(|then| long_ago(*then)));
        calm.map(|hook| (hook, self.willing(hook))).filter(|(_, willing)| willing.len() > 1).collect()
    }
}

/// Looks at the cluster at the end of every stretch in which nothing joined, left or went wrong.
fn at_rest<'a>(lines: &'a [Line], mut look: impl FnMut(usize, u64, &Cluster<'a>)) {
    let mut cluster = Cluster::default();
    for (place, line) in lines.iter().enumerate() {
        if Cluster::is_disturbance(&line.event) {
            look(place, line.at, &cluster);
        }
        cluster.take(line);
    }
    if let Some(last) = lines.last() {
        look(lines.len() - 1, last.at, &cluster);
    }
}

/// How many times a hook's slots can be looked at in a history: nothing had joined, left or gone wrong for that long.
#[must_use]
pub fn looks(lines: &[Line], within: Duration) -> usize {
    let mut count = 0;
    at_rest(lines, |_, at, cluster| count += cluster.rested(at, within).len());
    count
}

impl Checker<'_> {
    /// G8.
    pub(super) fn spread(&mut self) {
        let Some(within) = self.expectation.spread_within else { return };
        let lines = self.lines;
        let mut found: Vec<(usize, String)> = Vec::new();
        at_rest(lines, |place, at, cluster| {
            for (hook, willing) in cluster.rested(at, within) {
                let mut owned: BTreeMap<&str, usize> = willing.keys().map(|server| (*server, 0)).collect();
                for (id, _) in cluster.owned.iter().filter(|(slot, _)| slot.hook == hook).map(|(_, owner)| owner) {
                    match willing.iter().find(|(_, member)| *member == id) {
                        Some((server, _)) => *owned.entry(*server).or_default() += 1,
                        None => {
                            found.push((place, format!("a slot of hook {} is owned by {}, not willing", hook.0, id.0)))
                        }
                    }
                }
                let is_capped = self.cap(hook).is_some_and(|cap| cap < willing.len());
                let (most, least) = (owned.values().max().copied(), owned.values().min().copied());
                // With fewer permits than servers only so many share the slots.
                if !is_capped && most.unwrap_or(0) > least.unwrap_or(0) + 1 {
                    found.push((place, format!("slots of hook {} are spread unevenly: {owned:?}", hook.0)));
                }
            }
        });
        for (line, what) in found {
            self.violation(Rule::Uneven, &[line], what);
        }
        self.spread_of_keys();
    }

    /// Of the keys that ran, no server that was there throughout ran less than half of an even share.
    fn spread_of_keys(&mut self) {
        let crowded: HashSet<HookNumber> = self
            .lines
            .iter()
            .filter_map(|line| if let HistoryEvent::Crowded { hook } = &line.event { Some(*hook) } else { None })
            .collect();
        let mut ran: BTreeMap<HookNumber, BTreeMap<&str, HashSet<&str>>> = BTreeMap::new();
        let mut first = None;
        for line in self.lines {
            if let HistoryEvent::RunStarted { request, key, .. } = &line.event {
                first = first.or(Some(line.at));
                ran.entry(request.hook).or_default().entry(&line.server).or_default().insert(key);
            }
        }
        let throughout = first.map(|first| there_throughout(self.lines, first)).unwrap_or_default();
        let mut found = Vec::new();
        for (hook, by_server) in ran.iter().filter(|(hook, _)| !crowded.contains(hook)) {
            let keys: HashSet<&str> = by_server.values().flatten().copied().collect();
            let declares = |server: &str| throughout.get(server).is_some_and(|hooks| hooks.contains(hook));
            let servers =
                throughout.keys().filter(|server| declares(server)).chain(by_server.keys()).collect::<BTreeSet<_>>();
            if keys.len() < KEYS_MIN {
                continue;
            }
            for server in throughout.keys().filter(|server| declares(server)) {
                let own = by_server.get(server).map_or(0, HashSet::len);
                if own * servers.len() * 2 < keys.len() {
                    found.push(format!(
                        "{server} ran {own} of {} keys of hook {} that {} servers shared",
                        keys.len(),
                        hook.0,
                        servers.len()
                    ));
                }
            }
        }
        for what in found {
            self.violation(Rule::Uneven, &[], what);
        }
    }
}

/// The servers that were in the cluster from before a time on and to the end, with the hooks that they never withdrew.
fn there_throughout(lines: &[Line], from: u64) -> HashMap<&str, HashSet<HookNumber>> {
    let mut there: HashMap<&str, HashSet<HookNumber>> = HashMap::new();
    let mut members: HashSet<&str> = HashSet::new();
    for line in lines {
        let server = line.server.as_str();
        match &line.event {
            HistoryEvent::Joined { .. } if line.at <= from => {
                members.insert(server);
            }
            HistoryEvent::Declared { hook, .. } if line.at <= from => {
                there.entry(server).or_default().insert(*hook);
            }
            HistoryEvent::Withdrawn { hook } => {
                there.entry(server).or_default().remove(hook);
            }
            // At the end all leave; before, who goes is not there throughout.
            HistoryEvent::SlotLost { .. } | HistoryEvent::Left { .. } if runs_after(lines, line.at) => {
                members.remove(server);
            }
            HistoryEvent::Halted { server } => {
                members.remove(server.as_str());
            }
            _ => {}
        }
    }
    there.retain(|server, _| members.contains(server));
    there
}

fn runs_after(lines: &[Line], at: u64) -> bool {
    lines.iter().rev().take_while(|line| line.at > at).any(|line| matches!(line.event, HistoryEvent::RunStarted { .. }))
}
