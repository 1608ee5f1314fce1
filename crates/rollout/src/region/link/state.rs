//! The link of a region whose agent runs in the control plane's own process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use async_trait::async_trait;
use tidegate_api::agent::{HostClaim, HostGrant};
use tidegate_state::{
    Applied, Attributes, Entity, EntityId, Feed, FeedItem, Path, PathError, ReadError, Ref, Snapshot, State, Timestamp,
    Transaction, TransactionError, WriteError,
};

use super::{AssignmentWatch, LinkError, LinkItem, Position, RegionLink};
use crate::entities::{AgentHeartbeat, Assignment, Region, RegionHosting, Report};
use crate::operations::OperatorAction;
use crate::region::hosting::{ClaimRefused, Holder, decide, describe, is_host};

/// Watches and reports straight on a [`State`].
#[derive(Clone)]
pub struct StateLink {
    state: State,
    name: String,
    region: Ref<Region>,
    hosting: Ref<RegionHosting>,
    attributes: Attributes,
    /// Whether it speaks for an agent that is a process of its own.
    is_agents: bool,
}

impl StateLink {
    /// The link of this region. The region need not be there (yet).
    ///
    /// # Errors
    /// A name that is none.
    pub fn new(state: State, region: impl Into<String>) -> Result<Self, PathError> {
        let name = region.into();
        let region: Ref<Region> = Ref::root(name.clone())?;
        let hosting = region.child(RegionHosting::ID)?;
        Ok(StateLink { region, hosting, name, state, attributes: Attributes::new(), is_agents: false })
    }

    /// The same link, whose transactions say this about themselves: who asked, in which request.
    #[must_use]
    pub fn with_attributes(mut self, attributes: Attributes) -> Self {
        self.attributes = attributes;
        self
    }

    /// The same link, for an agent that is a process of its own: what it claims is not claimed by a server.
    #[must_use]
    pub fn of_agent(mut self) -> Self {
        self.is_agents = true;
        self
    }

    /// As [`RegionLink::watch`], with what the watch knows of where it is. Whether the log reaches back to `from`.
    #[must_use]
    pub fn open_watch(&self, from: Option<Position>) -> (StateWatch, bool) {
        let feed = self.state.changes(from.map(|position| (position.epoch, position.revision)));
        let resumed = from.is_some_and(|from| position(feed.snapshot()) == from);
        (StateWatch { feed, region: self.region.clone(), waiting: VecDeque::new() }, resumed)
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Transaction) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, LinkError> {
        let transaction = self.state.transaction().attributes(self.attributes.clone());
        Ok(transaction.write(work).await.map_err(failed)?.value)
    }
}

/// Why the link's own transaction was not committed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    #[error("there is no region {region}; whoever hosted it goes on serving what it has")]
    NoRegion { region: String },
    #[error("the region is hosted by {by}")]
    Replaced { by: String, address: Option<String> },
    #[error("no agent hosts the region; it has to be claimed first")]
    NotHosted,
    #[error("{0}")]
    Invalid(String),
}

impl Refusal {
    fn replaced(hosting: &RegionHosting, now: Timestamp) -> Self {
        Refusal::Replaced { by: describe(hosting, now), address: hosting.address.clone() }
    }
}

/// Refuses what comes from an agent that does not host the region.
fn require_host(
    transaction: &Transaction,
    region: &Ref<Region>,
    hosting: &Ref<RegionHosting>,
    holder: Holder,
) -> Result<RegionHosting, Refusal> {
    if transaction.get(region)?.is_none() {
        return Err(Refusal::NoRegion { region: region.id() });
    }
    match transaction.get(hosting)? {
        Some(current) if is_host(Some(&current), holder) => Ok((*current).clone()),
        Some(current) => Err(Refusal::replaced(&current, transaction.now())),
        None => Err(Refusal::NotHosted),
    }
}

#[async_trait]
impl RegionLink for StateLink {
    fn region(&self) -> &str {
        &self.name
    }

    async fn host(&self, claim: &HostClaim) -> Result<HostGrant, LinkError> {
        let (region, hosting, claim) = (self.region.clone(), self.hosting.clone(), claim.clone());
        let is_server = !self.is_agents;
        let heartbeat: Ref<AgentHeartbeat> = self.region.child(AgentHeartbeat::ID).map_err(refused)?;
        self.write(move |transaction| {
            if transaction.get(&region)?.is_none() {
                return Err(Refusal::NoRegion { region: region.id() });
            }
            let now = transaction.now();
            let current = transaction.get(&hosting)?;
            let granted = match decide(current.as_deref(), &claim, now) {
                Ok(granted) => RegionHosting { is_server, ..granted },
                Err(ClaimRefused::Hosted(current, now)) => return Err(Refusal::replaced(&current, now)),
                Err(ClaimRefused::Invalid(why)) => return Err(Refusal::Invalid(why)),
            };
            let grant = HostGrant {
                token: granted.token,
                lease_ms: u64::try_from(granted.until.since(now).as_millis()).unwrap_or(u64::MAX),
                now: u64::try_from(now.0).unwrap_or(0),
            };
            transaction.put(&heartbeat, AgentHeartbeat { at: now, agent: granted.name.clone() })?;
            transaction.put(&hosting, granted)?;
            Ok(grant)
        })
        .await
    }

    async fn release(&self, holder: Holder) -> Result<(), LinkError> {
        let hosting = self.hosting.clone();
        self.write(move |transaction| {
            if let Some(current) = transaction.get(&hosting)?
                && is_host(Some(&current), holder)
            {
                let until = transaction.now().min(current.until);
                transaction.put(&hosting, RegionHosting { until, ..(*current).clone() })?;
            }
            Ok(())
        })
        .await
    }

    async fn freed(&self) {
        let mut feed = self.state.changes(None);
        let mut snapshot = feed.snapshot().clone();
        loop {
            let clock = self.state.clock();
            let until = match snapshot.get(&self.hosting) {
                Ok(Some(hosting)) if hosting.has_lapsed(clock.now()) => return,
                Ok(Some(hosting)) => Some(hosting.until),
                Ok(None) if snapshot.contains(self.region.path()) => return,
                // No such region; or its host is none that this release understands, which is left to the heartbeats' claims.
                Ok(None) | Err(_) => None,
            };
            let changed = async {
                loop {
                    match feed.next().await {
                        Some(FeedItem::Snapshot(snapshot)) => return snapshot,
                        Some(FeedItem::Transaction(applied)) => {
                            let concerned = [self.hosting.path(), self.region.path()];
                            if applied.changes.iter().any(|change| concerned.contains(&&change.path)) {
                                return applied.snapshot.clone();
                            }
                        }
                        // The state is closed, and the agent is about to be.
                        None => std::future::pending().await,
                    }
                }
            };
            let lapsed = async {
                match until {
                    Some(until) => clock.sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changed => snapshot = changed,
                () = lapsed => {}
            }
        }
    }

    async fn watch(&self, from: Option<Position>) -> Result<Box<dyn AssignmentWatch>, LinkError> {
        Ok(Box::new(self.open_watch(from).0))
    }

    async fn report(&self, holder: Holder, store: &str, report: Option<Report>) -> Result<(), LinkError> {
        let (region, hosting) = (self.region.clone(), self.hosting.clone());
        let entity: Ref<Report> = self.region.child(store).map_err(refused)?;
        self.write(move |transaction| {
            require_host(transaction, &region, &hosting, holder)?;
            match &report {
                Some(report) => {
                    // Whether a region is silent is judged by the control plane's clock.
                    let report = Report { at: transaction.now(), ..report.clone() };
                    let before = transaction.get(&entity)?;
                    OperatorAction::keep_pins(transaction, &region.id(), &entity.id(), before.as_deref(), &report)?;
                    transaction.put(&entity, report)?;
                }
                None => {
                    transaction.delete(&entity)?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn refused(error: impl std::fmt::Display) -> LinkError {
    LinkError::Refused { why: error.to_string() }
}

/// A write that did not go through. One of unknown outcome is simply repeated: reports are whole documents.
fn failed(error: WriteError<Refusal>) -> LinkError {
    match error {
        WriteError::Rejected(Refusal::Replaced { by, address }) => LinkError::Replaced { by, address },
        WriteError::Rejected(error) => refused(error),
        error @ (WriteError::TooLarge { .. } | WriteError::Closed) => refused(error),
        error => LinkError::Unavailable { why: error.to_string() },
    }
}

/// An open watch straight on a [`State`].
pub struct StateWatch {
    feed: Feed,
    region: Ref<Region>,
    waiting: VecDeque<LinkItem>,
}

impl StateWatch {
    /// How far everything was given that concerns the region; `None` while items are left over from a transaction that
    /// was read.
    #[must_use]
    pub fn given_up_to(&self) -> Option<Position> {
        self.waiting.is_empty().then(|| position(self.feed.snapshot()))
    }
}

#[async_trait]
impl AssignmentWatch for StateWatch {
    async fn next(&mut self) -> Result<LinkItem, LinkError> {
        loop {
            if let Some(item) = self.waiting.pop_front() {
                return Ok(item);
            }
            match self.feed.next().await {
                Some(FeedItem::Snapshot(snapshot)) => return Ok(whole(&self.region, &snapshot)),
                Some(FeedItem::Transaction(applied)) => items(&self.region, &applied, &mut self.waiting),
                None => return Err(LinkError::Unavailable { why: "the state is closed".to_owned() }),
            }
        }
    }
}

fn position(snapshot: &Snapshot) -> Position {
    Position { epoch: snapshot.epoch(), revision: snapshot.revision() }
}

/// Children of a region by their ids, and the ids of those that can't be read.
fn children<E>(region: &Ref<Region>, snapshot: &Snapshot) -> (BTreeMap<String, E>, BTreeSet<String>)
where
    E: Entity<Parent = Region, Id = String>,
{
    let mut readable = BTreeMap::new();
    let mut unreadable = BTreeSet::new();
    for child in snapshot.children::<E>(region) {
        match child {
            Ok((entity, value)) => {
                readable.insert(entity.id(), value.clone());
            }
            Err(ReadError::Unreadable { path, reason }) => {
                tracing::error!(path, reason, "can't be read; the region stays as it is");
                if let Ok(path) = Path::parse(&path) {
                    unreadable.insert(path.id().into_owned());
                }
            }
            Err(ReadError::Absent { .. }) => {}
        }
    }
    (readable, unreadable)
}

fn whole(region: &Ref<Region>, snapshot: &Snapshot) -> LinkItem {
    let position = position(snapshot);
    if !snapshot.contains(region.path()) {
        return LinkItem::Removed { position };
    }
    let (assignments, unreadable) = children::<Assignment>(region, snapshot);
    let (reports, _) = children::<Report>(region, snapshot);
    LinkItem::Snapshot { position, assignments, unreadable, reports }
}

/// What one transaction means to the region.
fn items(region: &Ref<Region>, applied: &Applied, waiting: &mut VecDeque<LinkItem>) {
    let position = position(&applied.snapshot);
    let own = applied.changes.iter().filter(|change| change.path.is_within(region.path()));
    for change in own {
        if change.path == *region.path() {
            match (&change.before, &change.after) {
                // What lay under the region went with it, and is no word to let go of it.
                (_, None) => {
                    waiting.clear();
                    waiting.push_back(LinkItem::Removed { position });
                    return;
                }
                (None, Some(_)) => {
                    waiting.clear();
                    waiting.push_back(whole(region, &applied.snapshot));
                    return;
                }
                (Some(_), Some(_)) => continue,
            }
        }
        if change.path.collection() != Assignment::COLLECTION || Ref::<Assignment>::from_path(&change.path).is_err() {
            continue;
        }
        match change.after::<Assignment>() {
            Ok(assignment) => waiting.push_back(LinkItem::Change {
                position,
                store: String::from_text(&change.path.id()).unwrap_or_default(),
                assignment: assignment.map(|assignment| (*assignment).clone()),
            }),
            Err(error) => tracing::error!(%error, "can't be read; the region stays as it is"),
        }
    }
}
