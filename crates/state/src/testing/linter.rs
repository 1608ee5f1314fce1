//! Lists every invariant of the stored state that does not hold. It only reads.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use crate::cluster_hook::matcher::{Definitions, Matcher};
use crate::cluster_hook::registration::RegistrationEntity;
use crate::cluster_hook::slots::{RETIRED, is_permit};
use crate::cluster_hook::{Delivery, SlotLayout};
use crate::driver::{
    ExceptionState, HookNumber, LogEntry, RecordId, RequestAction, RequestId, SlotId, SlotRow, StoredDocument,
    StoredState,
};
use crate::path::Path;
use crate::record::IndexDeclaration;
use crate::revision::Revision;

/// What must hold of a stored state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Invariant {
    /// The log has every revision from where it is compacted to up to the head, once, in order.
    LogWithoutGap,
    /// The log reaches back to every low watermark and to the revision that the entities stand for.
    LogWhole,
    /// The entities are what the log adds up to, and none lies under one that is not there.
    EntitiesAsLogged,
    /// A change names the hooks that the registrations before its transaction give.
    HooksAsRegistered,
    /// A receipt is of a request in the log, which is not beyond the head, and there is one at most.
    ReceiptOfRequest,
    /// What is at or below a slot's low watermark has a receipt or an exception.
    WatermarkBelowPending,
    /// A slot is there once, belongs to its hook, and is free or leased by a server there is.
    SlotOnceAndOwned,
    /// Tokens are unique, none is above the counter, and nothing was accepted under one above its slot's.
    TokensRise,
    /// An exception is of an unfinished request, in its key's slot, and only the first of a key waits, fails or is dead.
    ExceptionInPlace,
    /// A request that was set aside stands behind one that waits or is dead, or was put back by an operator.
    PausedBehindLetter,
    /// A record is there once, not beyond the head, has a key for each index of its kind that is complete, and stands in an
    /// index under each of its keys, and under nothing else.
    RecordIndexed,
}

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// The path or row.
    pub subject: String,
    /// What was found.
    pub found: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}: {}", self.invariant, self.subject, self.found)
    }
}

/// Lists what does not hold. Where the store does not tell which indexes of records are complete, `records` are the kinds that
/// were declared, and all of their indexes are; of other kinds the records are not checked for missing index entries.
#[must_use]
pub fn lint(stored: &StoredState, records: &[IndexDeclaration]) -> Vec<Violation> {
    let mut linter = Linter { stored, found: Vec::new(), slots: HashMap::new(), registrations: Matcher::default() };
    linter.log();
    linter.entities();
    linter.hooks();
    linter.slots();
    linter.receipts();
    linter.watermarks();
    linter.exceptions();
    linter.records(records);
    linter.found
}

struct Linter<'a> {
    stored: &'a StoredState,
    found: Vec<Violation>,
    slots: HashMap<SlotId, &'a SlotRow>,
    /// The registrations at the head.
    registrations: Matcher,
}

fn registration(document: Option<&StoredDocument>) -> Option<RegistrationEntity> {
    serde_json::from_str(&document?.json).ok()
}

impl<'a> Linter<'a> {
    fn add(&mut self, invariant: Invariant, subject: impl fmt::Display, found: impl Into<String>) {
        self.found.push(Violation { invariant, subject: subject.to_string(), found: found.into() });
    }

    fn log(&mut self) {
        let meta = &self.stored.meta;
        let mut expected = meta.compacted.next();
        // The newest row stays, whatever is compacted.
        if meta.compacted == meta.head {
            expected = meta.head;
        }
        for row in &self.stored.log {
            if row.revision != expected {
                let found = format!("found where {expected} should be");
                self.add(Invariant::LogWithoutGap, format!("log row {}", row.revision), found);
            }
            expected = row.revision.next();
        }
        if meta.head > Revision::ZERO && self.stored.log.last().map(|row| row.revision) != Some(meta.head) {
            self.add(Invariant::LogWithoutGap, format!("log row {}", meta.head), "the head is not in the log");
        }
        if self.stored.tree.revision > meta.head {
            let found = format!("the entities stand for it, and the head is {}", meta.head);
            self.add(Invariant::LogWithoutGap, format!("log row {}", self.stored.tree.revision), found);
        }
        if meta.compacted > self.stored.tree.revision {
            let found = format!("the entities stand for {} only", self.stored.tree.revision);
            self.add(Invariant::LogWhole, format!("log compacted to {}", meta.compacted), found);
        }
        for slot in &self.stored.slots {
            if slot.watermark < meta.compacted {
                let found = format!("the low watermark is {}", slot.watermark);
                let subject = format!("log compacted to {} and slot {:?}", meta.compacted, slot.slot);
                self.add(Invariant::LogWhole, subject, found);
            }
        }
    }

    fn entities(&mut self) {
        let tree = &self.stored.tree;
        let mut logged: BTreeMap<&Path, (Revision, Option<&StoredDocument>)> = BTreeMap::new();
        for row in self.stored.log.iter().filter(|row| row.revision <= tree.revision) {
            for entry in &row.entries {
                if let LogEntry::Change { path, after, .. } = entry {
                    logged.insert(path, (row.revision, after.as_ref()));
                }
            }
        }
        let mut there: HashSet<&Path> = HashSet::new();
        for entity in &tree.entities {
            if !there.insert(&entity.path) {
                self.add(Invariant::EntitiesAsLogged, &entity.path, "is there twice");
            }
            match logged.get(&entity.path) {
                Some((_, None)) => self.add(Invariant::EntitiesAsLogged, &entity.path, "was deleted by the log"),
                Some((revision, Some(document))) if **document != entity.document || *revision != entity.revision => {
                    let found = format!("is not as revision {revision} of the log has it");
                    self.add(Invariant::EntitiesAsLogged, &entity.path, found);
                }
                Some((_, Some(_))) => {}
                None if entity.revision > self.stored.meta.compacted => {
                    let found = format!("revision {} of the log does not have it", entity.revision);
                    self.add(Invariant::EntitiesAsLogged, &entity.path, found);
                }
                None => {}
            }
        }
        for (path, (revision, document)) in &logged {
            if document.is_some() && !there.contains(path) {
                let found = format!("is absent, and revision {revision} of the log has it");
                self.add(Invariant::EntitiesAsLogged, path, found);
            }
        }
        for entity in &tree.entities {
            if let Some(parent) = entity.path.parent().filter(|parent| parent.depth() > 0)
                && !there.contains(&parent)
            {
                self.add(Invariant::EntitiesAsLogged, &entity.path, format!("{parent} above it is absent"));
            }
        }
    }

    /// Replays registrations along the log. Those that the log does not reach back to are taken from the entities, where
    /// these did not change since.
    fn hooks(&mut self) {
        let compacted = self.stored.meta.compacted;
        let mut current: BTreeMap<String, RegistrationEntity> = BTreeMap::new();
        let mut unknown: HashSet<HookNumber> = HashSet::new();
        for entity in self.stored.tree.entities.iter().filter(|entity| Matcher::concerns(&entity.path)) {
            let Some(there) = registration(Some(&entity.document)) else { continue };
            if entity.revision <= compacted {
                current.insert(entity.path.id().into_owned(), there);
            } else if compacted > Revision::ZERO {
                // It may have been another before; from its first row in the log on it is known.
                unknown.insert(there.number);
            }
        }
        let mut matcher = compiled(&current);
        let mut found = Vec::new();
        for row in &self.stored.log {
            let mut changed = false;
            for entry in &row.entries {
                let LogEntry::Change { path, after, hooks, .. } = entry else { continue };
                let known = |hook: &HookNumber| !unknown.contains(hook);
                let expected: Vec<HookNumber> = matcher.hooks_for(path).into_iter().filter(known).collect();
                let mut named: Vec<HookNumber> = hooks.iter().copied().filter(known).collect();
                named.sort_unstable();
                if expected != named {
                    let numbers = |hooks: &[HookNumber]| hooks.iter().map(|hook| hook.0).collect::<Vec<_>>();
                    found.push((
                        format!("{path} in log row {}", row.revision),
                        format!(
                            "names hooks {:?}, and {:?} are registered for it",
                            numbers(&named),
                            numbers(&expected)
                        ),
                    ));
                }
                if Matcher::concerns(path) {
                    changed = true;
                    match registration(after.as_ref()) {
                        Some(there) => {
                            unknown.remove(&there.number);
                            current.insert(path.id().into_owned(), there);
                        }
                        None => {
                            current.remove(&*path.id());
                        }
                    }
                }
            }
            if changed {
                matcher = compiled(&current);
            }
        }
        for (subject, text) in found {
            self.add(Invariant::HooksAsRegistered, subject, text);
        }
        self.registrations = matcher;
    }

    fn slots(&mut self) {
        let stored = self.stored;
        let servers: HashSet<_> = stored.servers.iter().map(|server| server.id).collect();
        let mut tokens: HashMap<u64, SlotId> = HashMap::new();
        for row in &stored.slots {
            if self.slots.insert(row.slot, row).is_some() {
                self.add(Invariant::SlotOnceAndOwned, name(row.slot), "is there twice");
            }
            if let Some(owner) = row.owner
                && !servers.contains(&owner)
            {
                self.add(
                    Invariant::SlotOnceAndOwned,
                    name(row.slot),
                    format!("is leased by {}, which there is not", owner.0),
                );
            }
            if row.token > stored.token_counter {
                let found = format!("token {} is above the counter, {}", row.token.0, stored.token_counter.0);
                self.add(Invariant::TokensRise, name(row.slot), found);
            }
            if let Some(other) = tokens.insert(row.token.0, row.slot)
                && other != row.slot
            {
                self.add(
                    Invariant::TokensRise,
                    name(row.slot),
                    format!("has token {} of {}", row.token.0, name(other)),
                );
            }
            let registered = self.registrations.hook(row.slot.hook).is_some_and(|definitions| {
                is_permit(row.slot) || definitions.layouts().iter().any(|layout: &SlotLayout| layout.contains(row.slot))
            });
            if !registered {
                self.add(Invariant::SlotOnceAndOwned, name(row.slot), "belongs to no registered hook");
            }
        }
        let mut missing = Vec::new();
        for definitions in self.registrations.all() {
            for layout in definitions.layouts() {
                for slot in layout.slots(definitions.entity.number) {
                    if self.slots.contains_key(&slot) {
                        continue;
                    }
                    // One that was never leased has no row yet; then nothing of it is stored and the log is whole. But what the
                    // layout before hands over is there before the first lease.
                    let used = stored.receipts.iter().any(|receipt| receipt.fence.slot == slot)
                        || layout.generation == 0 && stored.exceptions.iter().any(|exception| exception.slot == slot);
                    if used || stored.meta.compacted > layout.since {
                        missing.push(slot);
                    }
                }
            }
        }
        for slot in missing {
            self.add(Invariant::SlotOnceAndOwned, name(slot), "is missing");
        }
    }

    fn requested(&self) -> HashMap<RequestId, Option<&'a Path>> {
        let mut requested: HashMap<RequestId, Option<&'a Path>> = HashMap::new();
        for row in &self.stored.log {
            for (sequence, entry) in row.entries.iter().enumerate() {
                let sequence = u32::try_from(sequence).unwrap_or(u32::MAX);
                let id = |hook| RequestId { revision: row.revision, sequence, hook };
                match entry {
                    LogEntry::Change { path, hooks, .. } => {
                        requested.extend(hooks.iter().map(|hook| (id(*hook), Some(path))));
                    }
                    LogEntry::Existing { path, hook } => {
                        requested.insert(id(*hook), Some(path));
                    }
                    LogEntry::Action { request, .. } => {
                        requested.insert(id(request.hook), None);
                    }
                }
            }
        }
        requested
    }

    fn receipts(&mut self) {
        let stored = self.stored;
        let requested = self.requested();
        let mut seen: HashSet<RequestId> = HashSet::new();
        for receipt in &stored.receipts {
            let subject = format!("receipt of {}", receipt.request);
            if !seen.insert(receipt.request) {
                self.add(Invariant::ReceiptOfRequest, &subject, "is there twice");
            }
            if receipt.request.revision > stored.meta.head {
                self.add(Invariant::ReceiptOfRequest, &subject, format!("is beyond the head, {}", stored.meta.head));
            } else if receipt.request.revision > stored.meta.compacted && !requested.contains_key(&receipt.request) {
                self.add(Invariant::ReceiptOfRequest, &subject, "no row of the log asks for it");
            }
            let token = self.slots.get(&receipt.fence.slot).map(|row| row.token);
            if token.is_none_or(|token| receipt.fence.token > token) {
                let found = format!("was accepted under token {}, above its slot's {token:?}", receipt.fence.token.0);
                self.add(Invariant::TokensRise, &subject, found);
            }
        }
    }

    fn watermarks(&mut self) {
        let stored = self.stored;
        let receipts: HashSet<RequestId> = stored.receipts.iter().map(|receipt| receipt.request).collect();
        let exceptions: HashSet<RequestId> = stored.exceptions.iter().map(|exception| exception.request).collect();
        let mut below = Vec::new();
        for (request, path) in self.requested() {
            let (Some(path), Some(definitions)) = (path, self.registrations.hook(request.hook)) else { continue };
            let Some((slot, _)) = definitions.slot_of(path, request) else { continue };
            let Some(row) = self.slots.get(&slot) else { continue };
            let passed = request.revision <= row.watermark && request.revision > stored.meta.compacted;
            if passed && !receipts.contains(&request) && !exceptions.contains(&request) {
                below.push((slot, row.watermark, request));
            }
        }
        below.sort_unstable();
        for (slot, watermark, request) in below {
            let mark = if watermark >= RETIRED { "its end".to_owned() } else { watermark.to_string() };
            let found = format!("the low watermark is {mark}, and {request} has neither receipt nor exception");
            self.add(Invariant::WatermarkBelowPending, name(slot), found);
        }
    }

    fn exceptions(&mut self) {
        let stored = self.stored;
        let receipts: HashSet<RequestId> = stored.receipts.iter().map(|receipt| receipt.request).collect();
        let retried: HashSet<RequestId> = stored
            .log
            .iter()
            .flat_map(|row| &row.entries)
            .filter_map(|entry| match entry {
                LogEntry::Action { request, action: RequestAction::Retry } => Some(*request),
                LogEntry::Action { .. } | LogEntry::Change { .. } | LogEntry::Existing { .. } => None,
            })
            .collect();
        let mut keys: BTreeMap<(HookNumber, String), Vec<(RequestId, &ExceptionState)>> = BTreeMap::new();
        let mut found = Vec::new();
        for exception in &stored.exceptions {
            let subject = format!("exception of {}", exception.request);
            if receipts.contains(&exception.request) {
                found.push((Invariant::ExceptionInPlace, subject.clone(), "it has a receipt too".to_owned()));
            }
            let Some(definitions) = self.registrations.hook(exception.request.hook) else {
                found.push((Invariant::ExceptionInPlace, subject, "its hook is not registered".to_owned()));
                continue;
            };
            let Some(key) = definitions.key_of(&exception.change.path, exception.request.revision) else { continue };
            if !in_place(definitions, exception.slot, &key) {
                let text = format!("its key {key} does not belong to {}", name(exception.slot));
                found.push((Invariant::ExceptionInPlace, subject, text));
            }
            if definitions.entity.delivery() == Delivery::EveryChange {
                let key = (exception.request.hook, key.into_owned());
                keys.entry(key).or_default().push((exception.request, &exception.state));
            }
        }
        for ((hook, key), mut requests) in keys {
            requests.sort_by_key(|(request, _)| *request);
            let layouts = self.registrations.hook(hook).map_or(1, |definitions| definitions.layouts().len());
            for (place, (request, state)) in requests.iter().enumerate() {
                let waits = !matches!(state, ExceptionState::Parked);
                if place > 0 && waits {
                    let text = format!("it is {state:?}, and {} of key {key} comes before it", requests[0].0);
                    found.push((Invariant::ExceptionInPlace, format!("exception of {request}"), text));
                }
                let reaches_back = request.revision > stored.meta.compacted;
                if place == 0 && !waits && !retried.contains(request) && layouts == 1 && reaches_back {
                    let text = format!("it was set aside, and nothing of key {key} before it waits or is dead");
                    found.push((Invariant::PausedBehindLetter, format!("exception of {request}"), text));
                }
            }
        }
        for (invariant, subject, text) in found {
            self.add(invariant, subject, text);
        }
    }

    fn records(&mut self, declared: &[IndexDeclaration]) {
        let stored = self.stored;
        let mut kinds: BTreeMap<&str, (Vec<&str>, usize)> = BTreeMap::new();
        for kind in declared {
            let indexes: Vec<&str> = kind.indexes.iter().map(String::as_str).collect();
            let complete = indexes.len();
            kinds.insert(&kind.kind, (indexes, complete));
        }
        for kind in &stored.record_kinds {
            let complete = usize::try_from(kind.complete).unwrap_or(usize::MAX);
            kinds.insert(&kind.kind, (kind.indexes.iter().map(|index| &**index).collect(), complete));
        }
        let mut seen = HashSet::new();
        let mut missing: HashSet<(&str, &str, &[u8], RecordId)> = HashSet::new();
        let mut found = Vec::new();
        for record in &stored.records {
            let subject = format!("record {} of kind {}", record.id, record.kind);
            if !seen.insert(record.id) {
                found.push((subject.clone(), "is there twice".to_owned()));
            }
            if record.id.revision > stored.meta.head {
                found.push((subject.clone(), format!("is beyond the head, {}", stored.meta.head)));
            }
            let Some((indexes, complete)) = kinds.get(&*record.kind) else { continue };
            let keys = record.keys.len();
            if keys < *complete || keys > indexes.len() {
                let text = format!("has {keys} keys, and of {} indexes {complete} are complete", indexes.len());
                found.push((subject, text));
            }
            let keyed = indexes.iter().zip(&record.keys);
            missing.extend(keyed.map(|(index, key)| (&*record.kind, *index, key.as_slice(), record.id)));
        }
        for entry in &stored.index_entries {
            let known = kinds.contains_key(&*entry.kind);
            if !missing.remove(&(&*entry.kind, &*entry.index, entry.key.as_slice(), entry.id))
                && (known || !seen.contains(&entry.id))
            {
                let text = if seen.contains(&entry.id) {
                    format!("record {} has another key, or the entry is there twice", entry.id)
                } else {
                    format!("there is no record {}", entry.id)
                };
                found.push((format!("entry in index {} of kind {}", entry.index, entry.kind), text));
            }
        }
        let mut missing: Vec<_> = missing.into_iter().collect();
        missing.sort_unstable();
        for (kind, index, _, id) in missing {
            found.push((format!("record {id} of kind {kind}"), format!("has no entry in index {index}")));
        }
        for (subject, text) in found {
            self.add(Invariant::RecordIndexed, subject, text);
        }
    }
}

fn compiled(registrations: &BTreeMap<String, RegistrationEntity>) -> Matcher {
    let mut matcher = Matcher::default();
    for (name, entity) in registrations {
        matcher.add(name, entity);
    }
    matcher
}

fn in_place(definitions: &Definitions, slot: SlotId, key: &str) -> bool {
    definitions.layouts().iter().any(|layout| layout.slot_of(definitions.entity.number, key) == slot)
}

fn name(slot: SlotId) -> String {
    format!("slot {} of hook {}", slot.slot, slot.hook.0)
}
