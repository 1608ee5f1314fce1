//! What is not finished, read from the store: the log above the low watermarks without receipts, and the exceptions. Any
//! server can tell, also one that leases nothing and lacks the hooks' code.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::balance::is_willing;
use super::matcher::{Definitions, Matcher};
use super::owner::load_entries::{Entry, entries};
use super::registration::Delivery;
use crate::core::Core;
use crate::driver::{
    DriverError, Exception, ExceptionState, HookNumber, RequestAction, RequestId, ServerName, ServerRow, SlotId,
    SlotRow,
};
use crate::path::Path;
use crate::revision::{Revision, Timestamp};

/// How many rows that ask for runs are read at once.
const ROWS_AT_ONCE: usize = 1_000;

/// Where an unfinished request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestState {
    /// It waits for its turn.
    Waiting,
    /// It is running on the server that was asked; what runs on another server shows as waiting, with its owner.
    Running,
    /// Its hook asked to be run again at this time.
    RetryAt(Timestamp),
    /// It failed, and runs again at this time.
    BackingOff(Timestamp),
    /// Its attempts are used up; it waits for an operator (with `LatestState`, or for the next change of its key).
    Dead,
    /// It waits behind this dead letter of its key.
    PausedBehind(RequestId),
    /// No live server runs the hook in the definition version that is needed, or the registration was removed.
    NoServer,
}

impl fmt::Display for RequestState {
    /// As the end of a sentence that begins with the request.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestState::Waiting => formatter.write_str("waits for its turn"),
            RequestState::Running => formatter.write_str("is running"),
            RequestState::RetryAt(_) => formatter.write_str("runs again by itself at the time that its hook asked for"),
            RequestState::BackingOff(_) => formatter.write_str("failed and is tried again by itself"),
            RequestState::Dead => formatter.write_str("is dead"),
            RequestState::PausedBehind(letter) => write!(formatter, "waits behind the dead letter {letter}"),
            RequestState::NoServer => formatter.write_str("waits for a server that runs its hook"),
        }
    }
}

/// One request that is not finished.
#[derive(Debug, Clone)]
pub struct QueueEntry {
    /// The request.
    pub request: RequestId,
    /// The hook's name.
    pub hook: Arc<str>,
    /// Its key.
    pub key: String,
    /// The entity whose change asked for the run.
    pub path: Path,
    /// Where it stands.
    pub state: RequestState,
    /// How many of its runs have failed.
    pub attempts: u32,
    /// How many servers died while it may have been running.
    pub deaths: u32,
    /// The last failed run's error.
    pub error: Option<String>,
    /// When its change was committed.
    pub since: Timestamp,
    /// The server that leases its key's slot.
    pub owner: Option<ServerName>,
    /// Set where no live server has the code that it needs: the lowest definition version that has.
    pub needs_version: Option<u32>,
}

/// Which unfinished requests are asked for.
#[derive(Debug, Clone, Default)]
pub struct QueueFilter {
    /// Of this hook alone.
    pub hook: Option<String>,
    /// Of this key alone.
    pub key: Option<String>,
    /// At or below this revision alone.
    pub until: Option<Revision>,
    /// At most so many; none for all.
    pub limit: Option<usize>,
}

impl QueueFilter {
    /// All of them.
    #[must_use]
    pub fn all() -> QueueFilter {
        QueueFilter::default()
    }

    /// Of this hook alone.
    #[must_use]
    pub fn hook(mut self, name: impl Into<String>) -> Self {
        self.hook = Some(name.into());
        self
    }

    /// Of this key alone.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// At or below this revision alone.
    #[must_use]
    pub fn until(mut self, revision: Revision) -> Self {
        self.until = Some(revision);
        self
    }

    /// At most so many, the oldest of each hook first.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }
}

/// The cluster as of one moment, for telling where requests stand.
struct Cluster {
    servers: Vec<ServerRow>,
    slots: HashMap<SlotId, SlotRow>,
    now: Timestamp,
}

impl Cluster {
    async fn read(core: &Core) -> Result<Cluster, DriverError> {
        let (servers, slots) = core.driver.cluster().await?;
        let slots = slots.into_iter().map(|row| (row.slot, row)).collect();
        Ok(Cluster { servers, slots, now: core.clock.now() })
    }

    fn owner(&self, slot: SlotId) -> Option<ServerName> {
        let owner = self.slots.get(&slot)?.owner?;
        let server = self.servers.iter().find(|server| server.id == owner && server.lease_until > self.now)?;
        Some(server.name.clone())
    }

    fn someone_runs(&self, hook: HookNumber, version: u32) -> bool {
        // One that drains still finishes what it has.
        self.servers.iter().any(|server| {
            let mut server = server.clone();
            server.draining = false;
            is_willing(&server, hook, version, self.now)
        })
    }

    fn watermark(&self, slot: SlotId) -> Revision {
        self.slots.get(&slot).map_or(Revision::ZERO, |row| row.watermark)
    }

    /// The lowest revision above which requests of the hook may be unfinished without an exception.
    fn lowest(&self, definitions: &Definitions) -> Revision {
        let number = definitions.entity.number;
        let slots = definitions.layouts().iter().flat_map(|layout| {
            let since = layout.since;
            layout.slots(number).map(move |slot| (slot, since))
        });
        slots.map(|(slot, since)| self.watermark(slot).max(since)).min().unwrap_or(Revision::ZERO)
    }
}

struct Found {
    request: RequestId,
    slot: SlotId,
    path: Path,
    at: Timestamp,
    exception: Option<Exception>,
}

type ByKey = Vec<(String, Vec<Found>)>;

/// How much is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// All that is not finished.
    All,
    /// Enough to know of a request that neither is dead nor stands behind a dead letter; all if there is none.
    UntilOneIsOpen,
}

/// What is not finished, and how far the log was read for that.
pub(crate) struct Unfinished {
    /// Hook by hook, in order of the log within each key.
    pub(crate) entries: Vec<QueueEntry>,
    /// A slot of each hook that was asked about, and the revision up to which it was.
    read: Vec<(SlotId, Revision)>,
}

impl Unfinished {
    /// Whether none of the hooks was asked for a run since: hooks are read one after the other, and a run of a later one
    /// may have asked for one of an earlier one, and ended, in between.
    pub(crate) async fn nothing_since(&self, core: &Core) -> Result<bool, DriverError> {
        for (slot, read_to) in &self.read {
            if !core.driver.pending(*slot, *read_to, 1).await?.rows.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What is not finished, as far as it is asked for.
pub(crate) async fn unfinished(
    core: &Core,
    filter: &QueueFilter,
    running: &HashSet<RequestId>,
    depth: Depth,
) -> Result<Unfinished, DriverError> {
    let snapshot = core.snapshot();
    let matcher = Matcher::of(snapshot.tree());
    let cluster = Cluster::read(core).await?;
    let mut listed = Vec::new();
    let mut read = Vec::new();
    let mut hooks: Vec<&Arc<Definitions>> = matcher.all().collect();
    hooks.sort_by_key(|definitions| definitions.entity.number);
    for definitions in hooks {
        if filter.hook.as_ref().is_some_and(|hook| **hook != *definitions.name) {
            continue;
        }
        let most = filter.limit.map_or(usize::MAX, |limit| limit.saturating_sub(listed.len()));
        if most == 0 {
            break;
        }
        // An action that was carried out between two reads is known after one more round, so this ends.
        let mut carried_out = HashSet::new();
        let (keys, read_to) = loop {
            let looked = unfinished_of(core, definitions, &cluster, filter, (most, depth), &mut carried_out).await?;
            if let Some(found) = looked {
                break found;
            }
        };
        read.push(read_to);
        for (key, found) in keys {
            list_key(definitions, &cluster, &key, found, running, &mut listed);
        }
        if let Some(limit) = filter.limit {
            listed.truncate(limit);
        }
    }
    Ok(Unfinished { entries: listed, read })
}

/// The unfinished requests of one hook by key, with one of its slots and how far the log was read. Stops early where `most`
/// are enough. None if an operator's action that is not among `carried_out` was carried out on one of the exceptions: they
/// were read before the log, and may show what it has changed.
async fn unfinished_of(
    core: &Core,
    definitions: &Definitions,
    cluster: &Cluster,
    filter: &QueueFilter,
    (most, depth): (usize, Depth),
    carried_out: &mut HashSet<RequestId>,
) -> Result<Option<(ByKey, (SlotId, Revision))>, DriverError> {
    let number = definitions.entity.number;
    let wanted = |id: RequestId, key: &str| {
        filter.until.is_none_or(|until| id.revision <= until) && filter.key.as_ref().is_none_or(|wanted| wanted == key)
    };
    let mut by_key: HashMap<String, Vec<Found>> = HashMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut add = |key: &str, found: Found| match by_key.get_mut(key) {
        Some(there) => there.push(found),
        None => {
            order.push(key.to_owned());
            by_key.insert(key.to_owned(), vec![found]);
        }
    };
    let mut excepted: HashSet<RequestId> = HashSet::new();
    let mut dead: HashSet<String> = HashSet::new();
    let mut some_open = false;
    let mut is_stale = false;
    let mut count = 0;
    for exception in core.driver.exceptions(Some(number)).await? {
        let Some(key) = definitions.key_of(&exception.change.path, exception.request.revision) else { continue };
        let key = key.into_owned();
        excepted.insert(exception.request);
        if exception.state == ExceptionState::Dead {
            dead.insert(key.clone());
        }
        if wanted(exception.request, &key) {
            count += 1;
            let (path, at) = (exception.change.path.clone(), exception.change.at);
            let (request, slot) = (exception.request, exception.slot);
            add(&key, Found { request, slot, path, at, exception: Some(exception) });
        }
    }
    let first = definitions.entity.current_layout().slot(number, 0);
    let mut after = cluster.lowest(definitions);
    let mut let_go: HashSet<RequestId> = HashSet::new();
    let mut retried: HashSet<RequestId> = HashSet::new();
    loop {
        let pending = core.driver.pending(first, after, ROWS_AT_ONCE).await?;
        let finished: HashSet<RequestId> = pending.receipts.iter().copied().collect();
        for row in &pending.rows {
            for entry in entries(row, number, definitions) {
                match entry {
                    Entry::Request { id, slot, key, path, documents: _ } => {
                        let settled = id.revision <= cluster.watermark(slot);
                        if settled || finished.contains(&id) || excepted.contains(&id) || !wanted(id, &key) {
                            continue;
                        }
                        count += 1;
                        some_open |= !dead.contains(&*key);
                        let path = path.clone();
                        add(&key, Found { request: id, slot, path, at: row.at, exception: None });
                    }
                    Entry::Act { id, target, .. } if finished.contains(&id) => {
                        is_stale |= excepted.contains(&target) && carried_out.insert(id);
                    }
                    Entry::Act { target, action, .. } => {
                        match action {
                            RequestAction::Discard | RequestAction::Cancel => let_go.insert(target),
                            RequestAction::Retry => retried.insert(target),
                        };
                    }
                }
            }
        }
        let past = filter.until.is_some_and(|until| pending.read_to >= until);
        after = pending.read_to;
        if after >= pending.head || past || count >= most || depth == Depth::UntilOneIsOpen && some_open {
            break;
        }
    }
    if is_stale {
        return Ok(None);
    }
    let mut keys = Vec::with_capacity(order.len());
    for key in order {
        let Some(mut found) = by_key.remove(&key) else { continue };
        found.retain(|found| !let_go.contains(&found.request));
        // A letter that an operator wants to run again is dead no longer, though its owner has not heard of it yet.
        for found in found.iter_mut().filter(|found| retried.contains(&found.request)) {
            if let Some(exception) =
                found.exception.as_mut().filter(|exception| exception.state == ExceptionState::Dead)
            {
                exception.state = ExceptionState::Parked;
            }
        }
        found.sort_by_key(|found| found.request);
        if !found.is_empty() {
            keys.push((key, found));
        }
    }
    Ok(Some((keys, (first, after))))
}

fn list_key(
    definitions: &Definitions,
    cluster: &Cluster,
    key: &str,
    found: Vec<Found>,
    running: &HashSet<RequestId>,
    listed: &mut Vec<QueueEntry>,
) {
    let entity = &definitions.entity;
    let served = !entity.removed && cluster.someone_runs(entity.number, entity.version());
    let every_change = entity.delivery() == Delivery::EveryChange;
    let last = found.last().map(|found| found.request);
    let mut dead_before: Option<RequestId> = None;
    for found in found {
        let superseded = !every_change && last != Some(found.request);
        let exception = found.exception.as_ref();
        let state = match exception.map(|exception| &exception.state) {
            _ if running.contains(&found.request) => RequestState::Running,
            Some(ExceptionState::Dead) if !superseded => RequestState::Dead,
            _ if every_change && dead_before.is_some() => {
                RequestState::PausedBehind(dead_before.expect("it was just found to be there"))
            }
            _ if !served => RequestState::NoServer,
            Some(ExceptionState::Waiting { until }) if *until > cluster.now && !superseded => {
                RequestState::RetryAt(*until)
            }
            Some(ExceptionState::BackingOff { until }) if *until > cluster.now => RequestState::BackingOff(*until),
            Some(
                ExceptionState::Waiting { .. }
                | ExceptionState::BackingOff { .. }
                | ExceptionState::Dead
                | ExceptionState::Parked
                | ExceptionState::Started,
            )
            | None => RequestState::Waiting,
        };
        if state == RequestState::Dead {
            dead_before = Some(found.request);
        }
        listed.push(QueueEntry {
            request: found.request,
            hook: definitions.name.clone(),
            key: key.to_owned(),
            path: found.path,
            attempts: exception.map_or(0, |exception| exception.attempts),
            deaths: exception.map_or(0, |exception| exception.deaths),
            error: exception.and_then(|exception| exception.error.clone()),
            since: found.at,
            owner: cluster.owner(found.slot),
            needs_version: (!served).then_some(entity.version()),
            state,
        });
    }
}
