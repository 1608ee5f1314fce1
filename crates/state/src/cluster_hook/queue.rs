//! What operators see and do: unfinished requests listed, retried, discarded and cancelled; waiting for hooks; who is in
//! the cluster and leases what. Through any server: actions are entries of the log, which every owner learns of.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::matcher::{Definitions, Matcher};
use super::slots::{SLOTS_MAX, is_permit};
use super::standing::{Depth, QueueEntry, QueueFilter, RequestState, unfinished};
use crate::driver::{DriverError, HookNumber, RequestAction, RequestId, ServerId, ServerName, SlotToken};
use crate::error::{WaitError, WriteError};
use crate::revision::{Attributes, Revision, SubmissionId, Timestamp};
use crate::state::State;
use crate::transaction::{Transaction, TransactionError};

/// The attribute of an operator's action that says who it was.
pub const ATTRIBUTE_BY: &str = "by";
/// How often waiting for hooks looks again, at first and at last.
const LOOK: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_millis(200);

/// Why an action on a request was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// There is no unfinished request of this id.
    #[error("request {request} is not there: it is finished, or never was")]
    NotThere {
        /// The request.
        request: RequestId,
    },
    /// Only a dead letter can be retried.
    #[error("request {request} is no dead letter, so it can't be retried: it {state}")]
    NotDead {
        /// The request.
        request: RequestId,
        /// Where it stands.
        state: RequestState,
    },
    /// A request that runs is cancelled, not discarded.
    #[error("request {request} is running; cancel it instead")]
    Running {
        /// The request.
        request: RequestId,
    },
    /// The store can't be asked.
    #[error("the store can't be asked: {0}")]
    Store(#[from] DriverError),
    /// The action could not be written.
    #[error("the action could not be written: {reason}")]
    Write {
        /// The write's own error.
        reason: String,
        /// Whether the same call may succeed later.
        retryable: bool,
    },
}

/// The unfinished requests of cluster hooks.
pub struct Queue<'a> {
    state: &'a State,
}

impl Queue<'_> {
    /// The unfinished requests, hook by hook and key by key, in order within a key.
    ///
    /// # Errors
    /// [`QueueError::Store`]
    pub async fn list(&self, filter: QueueFilter) -> Result<Vec<QueueEntry>, QueueError> {
        let running: HashSet<RequestId> = self.state.runtime().running_requests().await.into_iter().collect();
        Ok(unfinished(self.state.core(), &filter, &running, Depth::All).await?.entries)
    }

    /// Runs a dead letter again, its attempts counted afresh.
    ///
    /// # Errors
    /// [`QueueError`]
    pub async fn retry(&self, request: RequestId, by: &str) -> Result<Revision, QueueError> {
        let entry = self.entry(request).await?;
        if entry.state != RequestState::Dead {
            return Err(QueueError::NotDead { request, state: entry.state });
        }
        self.act(request, RequestAction::Retry, by).await
    }

    /// Lets go of a dead or waiting request for good.
    ///
    /// # Errors
    /// [`QueueError`]
    pub async fn discard(&self, request: RequestId, by: &str) -> Result<Revision, QueueError> {
        let entry = self.entry(request).await?;
        if entry.state == RequestState::Running {
            return Err(QueueError::Running { request });
        }
        self.act(request, RequestAction::Discard, by).await
    }

    /// Lets go of a waiting request, or signals a running one to end; nothing that it still returns is accepted.
    ///
    /// # Errors
    /// [`QueueError`]
    pub async fn cancel(&self, request: RequestId, by: &str) -> Result<Revision, QueueError> {
        self.entry(request).await?;
        self.act(request, RequestAction::Cancel, by).await
    }

    async fn entry(&self, request: RequestId) -> Result<QueueEntry, QueueError> {
        let entries = self.list(QueueFilter::all()).await?;
        entries.into_iter().find(|entry| entry.request == request).ok_or(QueueError::NotThere { request })
    }

    async fn act(&self, request: RequestId, action: RequestAction, by: &str) -> Result<Revision, QueueError> {
        let closure = move |transaction: &mut Transaction| -> Result<(), TransactionError> {
            transaction.act(request, action);
            Ok(())
        };
        let attributes: Attributes = [(ATTRIBUTE_BY.to_owned(), by.to_owned())].into();
        let id = SubmissionId::random();
        let committed = self.state.core().submit(closure, Arc::new(attributes), id, None).await;
        let committed = committed.map_err(|error: WriteError<TransactionError>| QueueError::Write {
            retryable: error.is_retryable(),
            reason: error.to_string(),
        })?;
        self.state
            .core()
            .options
            .recorder
            .write(self.state.server(), crate::testing::history::HistoryEvent::Acted { request });
        Ok(committed.revision)
    }
}

/// Which requests are waited for, and for how long.
#[derive(Debug, Clone)]
pub struct WaitForHooks {
    filter: QueueFilter,
    limit: Duration,
}

impl WaitForHooks {
    /// All requests, those too that come while it is waited, for up to 30 seconds.
    #[must_use]
    pub fn all() -> WaitForHooks {
        WaitForHooks { filter: QueueFilter::all(), limit: Duration::from_secs(30) }
    }

    /// Requests at or below this revision alone.
    #[must_use]
    pub fn until(mut self, revision: Revision) -> Self {
        self.filter.until = Some(revision);
        self
    }

    /// Requests of this hook alone.
    #[must_use]
    pub fn hook(mut self, name: impl Into<String>) -> Self {
        self.filter.hook = Some(name.into());
        self
    }

    /// Requests of this key alone.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.filter.key = Some(key.into());
        self
    }

    /// How long it is waited at most.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

/// What waiting for hooks found in the end.
#[derive(Debug, Clone)]
pub struct HooksReport {
    /// Whether everything is finished: nothing is dead or paused.
    pub finished: bool,
    /// Dead letters.
    pub dead: Vec<QueueEntry>,
    /// Requests that wait behind a dead letter.
    pub paused: Vec<QueueEntry>,
}

/// A server in the cluster.
#[derive(Debug, Clone)]
pub struct ServerView {
    /// Its id in its current life.
    pub id: ServerId,
    /// Its name.
    pub name: ServerName,
    /// Whether its lease holds.
    pub lives: bool,
    /// Until when, by the driver's clock.
    pub lease_until: Timestamp,
    /// It is leaving.
    pub draining: bool,
    /// The revision that it has applied.
    pub applied: Revision,
    /// The hooks that it runs: name (or number, where the registration is not known), definition version, room.
    pub hooks: Vec<(String, u32, u32)>,
}

/// A slot of a hook.
#[derive(Debug, Clone)]
pub struct SlotView {
    /// The hook's name.
    pub hook: String,
    /// The hook's number.
    pub number: HookNumber,
    /// The slot's place among the hook's slots, or of the permit among its permits.
    pub index: u32,
    /// Rises with each change of the number of slots.
    pub generation: u32,
    /// It is a permit of a cluster-wide cap.
    pub is_permit: bool,
    /// The server that leases it; none if it is free.
    pub owner: Option<ServerName>,
    /// The id of that server: another of the same name may live.
    pub owner_id: Option<ServerId>,
    /// The last token that was given out for it.
    pub token: SlotToken,
    /// Everything of it at or below this revision is finished or set aside.
    pub watermark: Revision,
}

/// Who is in the cluster and leases what.
#[derive(Debug, Clone)]
pub struct ClusterView {
    /// The servers, by name.
    pub servers: Vec<ServerView>,
    /// The slots, by hook and number.
    pub slots: Vec<SlotView>,
}

impl ClusterView {
    /// How many slots of a hook each live server leases, by name; servers that run the hook and lease none too.
    #[must_use]
    pub fn spread(&self, hook: &str) -> std::collections::BTreeMap<String, usize> {
        let willing =
            self.servers.iter().filter(|server| server.lives && server.hooks.iter().any(|(name, ..)| name == hook));
        let mut spread: std::collections::BTreeMap<String, usize> =
            willing.map(|server| (server.name.to_string(), 0)).collect();
        for slot in self.slots.iter().filter(|slot| slot.hook == hook && !slot.is_permit) {
            if let Some(owner) = &slot.owner {
                *spread.entry(owner.to_string()).or_default() += 1;
            }
        }
        spread
    }
}

impl State {
    /// The unfinished requests of cluster hooks, to be listed and acted upon, wherever they are.
    #[must_use]
    pub fn queue(&self) -> Queue<'_> {
        Queue { state: self }
    }

    /// Returns when the requests that are meant are finished, dead or paused behind a dead letter. One that waits for a
    /// time, or for a server that runs its hook, is waited for, and so are those that a hook is still to be given for what
    /// existed before it ([`Registration::from_existing`](crate::Registration::from_existing)), but where only requests
    /// at or below a revision are meant.
    ///
    /// # Errors
    /// [`WaitError::HooksTimedOut`] with what is not finished, [`WaitError::Store`], [`WaitError::Closed`].
    pub async fn wait_for_hooks(&self, wait: WaitForHooks) -> Result<HooksReport, WaitError> {
        if crate::core::within_transaction() {
            return Err(WaitError::WithinTransaction);
        }
        let started = tokio::time::Instant::now();
        // Registrations that were made on other servers are to be known.
        self.flush_within(wait.limit).await?;
        let mut pause = LOOK;
        let nothing = HashSet::new();
        loop {
            if self.core().stop.is_cancelled() {
                return Err(WaitError::Closed);
            }
            // Before the requests are looked at: whatever has been asked for by then is among them.
            let asking = self.still_asking(&wait.filter);
            // One that is not finished is enough to go on waiting; dead letters are listed whole.
            let looked = unfinished(self.core(), &wait.filter, &nothing, Depth::UntilOneIsOpen).await;
            let looked = looked.map_err(WaitError::Store)?;
            let entries = &looked.entries;
            let open: Vec<&QueueEntry> = entries
                .iter()
                .filter(|entry| !matches!(entry.state, RequestState::Dead | RequestState::PausedBehind(_)))
                .collect();
            let settled = open.is_empty()
                && asking.is_empty()
                && (wait.filter.until.is_some()
                    || looked.nothing_since(self.core()).await.map_err(WaitError::Store)?);
            if settled {
                let (dead, paused): (Vec<QueueEntry>, Vec<QueueEntry>) =
                    looked.entries.into_iter().partition(|entry| entry.state == RequestState::Dead);
                return Ok(HooksReport { finished: dead.is_empty() && paused.is_empty(), dead, paused });
            }
            let waited = started.elapsed();
            if waited >= wait.limit {
                let unfinished = in_short(&open).into_iter().chain(asking).collect::<Vec<_>>().join(", ");
                return Err(WaitError::HooksTimedOut { waited, unfinished });
            }
            tokio::time::sleep(pause.min(wait.limit.saturating_sub(waited))).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }

    /// The hooks that have not been given all of what existed before them, in words.
    fn still_asking(&self, filter: &QueueFilter) -> Vec<String> {
        if filter.until.is_some() {
            return Vec::new();
        }
        let matcher = Matcher::of(self.snapshot().tree());
        let asks = |hook: &&Arc<Definitions>| hook.entity.catch_up.is_some() && !hook.entity.removed;
        let meant = |hook: &&Arc<Definitions>| filter.hook.as_ref().is_none_or(|name| **name == *hook.name);
        let hooks = matcher.all().filter(asks).filter(meant);
        hooks.map(|hook| format!("{} is still to be given what existed before it", hook.name)).collect()
    }

    /// The servers and slots of the cluster, as of now.
    ///
    /// # Errors
    /// [`DriverError`]: the store can't be asked.
    pub async fn cluster(&self) -> Result<ClusterView, DriverError> {
        let (servers, slots) = self.driver().cluster().await?;
        let now = self.now();
        let matcher = Matcher::of(self.snapshot().tree());
        let name_of = |hook: HookNumber| {
            matcher.hook(hook).map_or_else(|| format!("#{}", hook.0), |definitions| definitions.name.to_string())
        };
        let owner_of = |owner: Option<ServerId>| {
            servers.iter().find(|server| Some(server.id) == owner && server.lease_until > now)
        };
        let mut slots: Vec<SlotView> = slots
            .iter()
            .map(|row| SlotView {
                hook: name_of(row.slot.hook),
                number: row.slot.hook,
                index: if is_permit(row.slot) { row.slot.slot & !(1 << 31) } else { row.slot.slot % SLOTS_MAX },
                generation: if is_permit(row.slot) { 0 } else { row.slot.slot / SLOTS_MAX },
                is_permit: is_permit(row.slot),
                owner: owner_of(row.owner).map(|server| server.name.clone()),
                owner_id: owner_of(row.owner).map(|server| server.id),
                token: row.token,
                watermark: row.watermark,
            })
            .collect();
        slots.sort_by_key(|slot| (slot.number, slot.is_permit, slot.generation, slot.index));
        let mut servers: Vec<ServerView> = servers
            .iter()
            .map(|row| ServerView {
                id: row.id,
                name: row.name.clone(),
                lives: row.lease_until > now,
                lease_until: row.lease_until,
                draining: row.draining,
                applied: row.applied,
                hooks: row.hooks.iter().map(|hook| (name_of(hook.hook), hook.version, hook.room)).collect(),
            })
            .collect();
        servers.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(ClusterView { servers, slots })
    }
}

fn in_short(open: &[&QueueEntry]) -> Vec<String> {
    let mut text: Vec<String> = open
        .iter()
        .take(5)
        .map(|entry| format!("{} {} ({}) {:?}", entry.hook, entry.key, entry.request, entry.state))
        .collect();
    if open.len() > 5 {
        text.push(format!("and {} more", open.len() - 5));
    }
    text
}
