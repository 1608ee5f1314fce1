//! The link of a region whose agent runs in the control plane's own process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use async_trait::async_trait;
use tidegate_state::{
    Applied, Entity, EntityId, Feed, FeedItem, Path, PathError, ReadError, Ref, Snapshot, State, TransactionError,
    WriteError,
};

use super::{AssignmentWatch, LinkError, LinkItem, Position, RegionLink};
use crate::entities::{AgentHeartbeat, Assignment, Region, Report};

/// Watches and reports straight on a [`State`].
#[derive(Clone)]
pub struct StateLink {
    state: State,
    name: String,
    region: Ref<Region>,
}

impl StateLink {
    /// The link of this region. The region need not be there (yet).
    ///
    /// # Errors
    /// A name that is none.
    pub fn new(state: State, region: impl Into<String>) -> Result<Self, PathError> {
        let name = region.into();
        Ok(StateLink { region: Ref::root(name.clone())?, name, state })
    }
}

#[async_trait]
impl RegionLink for StateLink {
    fn region(&self) -> &str {
        &self.name
    }

    async fn watch(&self, from: Option<Position>) -> Result<Box<dyn AssignmentWatch>, LinkError> {
        let feed = self.state.changes(from.map(|position| (position.epoch, position.revision)));
        Ok(Box::new(StateWatch { feed, region: self.region.clone(), waiting: VecDeque::new() }))
    }

    async fn report(&self, store: &str, report: Option<Report>) -> Result<(), LinkError> {
        let region = self.region.clone();
        let entity: Ref<Report> = self.region.child(store).map_err(refused)?;
        let written = self.state.write(move |transaction| -> Result<(), TransactionError> {
            match &report {
                Some(report) => {
                    transaction.require(&region)?;
                    transaction.put(&entity, report.clone())
                }
                None => transaction.delete(&entity).map(|_| ()),
            }
        });
        written.await.map(|_| ()).map_err(failed)
    }

    async fn heartbeat(&self, heartbeat: AgentHeartbeat) -> Result<(), LinkError> {
        let entity: Ref<AgentHeartbeat> = self.region.child(AgentHeartbeat::ID).map_err(refused)?;
        let written = self
            .state
            .write(move |transaction| -> Result<(), TransactionError> { transaction.put(&entity, heartbeat.clone()) });
        written.await.map(|_| ()).map_err(failed)
    }
}

fn refused(error: impl std::fmt::Display) -> LinkError {
    LinkError::Refused { why: error.to_string() }
}

/// A write that did not go through. One of unknown outcome is simply repeated: reports are whole documents.
fn failed(error: WriteError<TransactionError>) -> LinkError {
    match error {
        WriteError::Rejected(error) => refused(error),
        error @ (WriteError::TooLarge { .. } | WriteError::Closed) => refused(error),
        error => LinkError::Unavailable { why: error.to_string() },
    }
}

struct StateWatch {
    feed: Feed,
    region: Ref<Region>,
    waiting: VecDeque<LinkItem>,
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
