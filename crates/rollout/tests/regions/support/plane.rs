//! A control plane, played.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_api::agent::{HostClaim, HostGrant};
use tidegate_rollout::entities::{Assignment, Report};
use tidegate_rollout::region::RegionLink;
use tidegate_rollout::region::hosting::Holder;
use tidegate_rollout::region::link::{AssignmentWatch, LinkError, LinkItem, Position};
use tidegate_state::{Epoch, Revision};
use tokio::sync::watch;
use uuid::Uuid;

struct Plane {
    epoch: Epoch,
    revision: u64,
    assignments: BTreeMap<String, Assignment>,
    log: Vec<(u64, String, Option<Assignment>)>,
    reports: BTreeMap<String, Report>,
    history: Vec<(String, Option<Report>)>,
    cut: bool,
    /// Watches of an earlier connection are over.
    connection: u64,
    removed: bool,
    refused: BTreeSet<String>,
    heartbeats: u64,
    claims: u64,
    token: u64,
    hosted_by: Option<String>,
    seems_free: bool,
    panics: bool,
}

/// The control plane as one region sees it.
#[derive(Clone)]
pub struct ScriptedLink {
    region: String,
    plane: Arc<Mutex<Plane>>,
    changes: watch::Sender<u64>,
    pub(super) reports: watch::Sender<u64>,
}

impl ScriptedLink {
    pub fn new(region: &str) -> Self {
        let plane = Plane {
            epoch: Epoch(Uuid::from_u128(77)),
            revision: 1,
            assignments: BTreeMap::new(),
            log: Vec::new(),
            reports: BTreeMap::new(),
            history: Vec::new(),
            cut: false,
            connection: 0,
            removed: false,
            refused: BTreeSet::new(),
            heartbeats: 0,
            claims: 0,
            token: 0,
            hosted_by: None,
            seems_free: false,
            panics: false,
        };
        ScriptedLink {
            region: region.to_owned(),
            plane: Arc::new(Mutex::new(plane)),
            changes: watch::Sender::new(0),
            reports: watch::Sender::new(0),
        }
    }

    pub fn assign(&self, store: &str, assignment: Option<Assignment>) {
        let mut plane = self.plane.lock();
        plane.revision += 1;
        let revision = plane.revision;
        plane.log.push((revision, store.to_owned(), assignment.clone()));
        match assignment {
            Some(assignment) => plane.assignments.insert(store.to_owned(), assignment),
            None => plane.assignments.remove(store),
        };
        drop(plane);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Another agent hosts the region from now on, or nobody else does.
    pub fn hosted_by(&self, other: Option<&str>) {
        self.plane.lock().hosted_by = other.map(str::to_owned);
        self.changes.send_modify(|count| *count += 1);
    }

    /// From now on the region seems to be free, whoever hosts it; or it seems to be what it is.
    pub fn seems_free(&self, seems: bool) {
        self.plane.lock().seems_free = seems;
        self.changes.send_modify(|count| *count += 1);
    }

    /// From now on nothing comes through, or everything does again.
    pub fn cut(&self, cut: bool) {
        {
            let mut plane = self.plane.lock();
            plane.cut = cut;
            plane.connection += 1;
        }
        self.changes.send_modify(|count| *count += 1);
    }

    pub fn remove_region(&self, removed: bool) {
        self.plane.lock().removed = removed;
        self.cut(true);
        self.cut(false);
    }

    /// From now on every call that follows the control plane, or keeps the region's lease, panics; or none does.
    pub fn panic(&self, panics: bool) {
        self.plane.lock().panics = panics;
        self.cut(true);
        self.cut(false);
    }

    fn may_panic(&self) {
        let panics = self.plane.lock().panics;
        assert!(!panics, "the link is told to panic");
    }

    pub fn refuse_reports(&self, store: &str, refuse: bool) {
        let mut plane = self.plane.lock();
        if refuse {
            plane.refused.insert(store.to_owned())
        } else {
            plane.refused.remove(store)
        };
    }

    /// The database is put back behind everybody's back: lower revision, same epoch.
    pub fn fall_back(&self, revision: u64, assignments: BTreeMap<String, Assignment>) {
        {
            let mut plane = self.plane.lock();
            plane.revision = revision;
            plane.assignments = assignments;
            plane.log.clear();
        }
        self.cut(true);
        self.cut(false);
    }

    /// The control plane's store is another one.
    pub fn other_epoch(&self, assignments: BTreeMap<String, Assignment>) {
        self.plane.lock().epoch = Epoch(Uuid::from_u128(78));
        self.fall_back(1, assignments);
    }

    pub fn revision(&self) -> u64 {
        self.plane.lock().revision
    }

    pub fn heartbeats(&self) -> u64 {
        self.plane.lock().heartbeats
    }

    /// How often the region was claimed, granted or not.
    pub fn claims(&self) -> u64 {
        self.plane.lock().claims
    }

    pub fn report(&self, store: &str) -> Option<Report> {
        self.plane.lock().reports.get(store).cloned()
    }

    /// Every report on the store that came through.
    pub fn history(&self, store: &str) -> Vec<Option<Report>> {
        let plane = self.plane.lock();
        plane.history.iter().filter(|(of, _)| of == store).map(|(_, report)| report.clone()).collect()
    }

    fn up(&self) -> Result<(), LinkError> {
        if self.plane.lock().cut { Err(LinkError::Unavailable { why: "cut off".to_owned() }) } else { Ok(()) }
    }
}

struct ScriptedWatch {
    link: ScriptedLink,
    changes: watch::Receiver<u64>,
    connection: u64,
    at: Option<u64>,
}

#[async_trait]
impl AssignmentWatch for ScriptedWatch {
    async fn next(&mut self) -> Result<LinkItem, LinkError> {
        loop {
            self.changes.borrow_and_update();
            self.link.up()?;
            {
                let plane = self.link.plane.lock();
                if plane.connection != self.connection {
                    return Err(LinkError::Unavailable { why: "the connection broke".to_owned() });
                }
                let position = |revision| Position { epoch: plane.epoch, revision: Revision(revision) };
                let Some(at) = self.at else {
                    self.at = Some(plane.revision);
                    if plane.removed {
                        return Ok(LinkItem::Removed { position: position(plane.revision) });
                    }
                    return Ok(LinkItem::Snapshot {
                        position: position(plane.revision),
                        assignments: plane.assignments.clone(),
                        unreadable: BTreeSet::new(),
                        reports: plane.reports.clone(),
                    });
                };
                if let Some((revision, store, assignment)) = plane.log.iter().find(|(revision, ..)| *revision > at) {
                    self.at = Some(*revision);
                    return Ok(LinkItem::Change {
                        position: position(*revision),
                        store: store.clone(),
                        assignment: assignment.clone(),
                    });
                }
            }
            self.changes.changed().await.unwrap();
        }
    }
}

#[async_trait]
impl RegionLink for ScriptedLink {
    fn region(&self) -> &str {
        &self.region
    }

    async fn watch(&self, _from: Option<Position>) -> Result<Box<dyn AssignmentWatch>, LinkError> {
        self.may_panic();
        self.up()?;
        let connection = self.plane.lock().connection;
        Ok(Box::new(ScriptedWatch { link: self.clone(), changes: self.changes.subscribe(), connection, at: None }))
    }

    async fn report(&self, holder: Holder, store: &str, report: Option<Report>) -> Result<(), LinkError> {
        self.up()?;
        let mut plane = self.plane.lock();
        if let Some(by) = &plane.hosted_by {
            return Err(LinkError::Replaced { by: by.clone(), address: None });
        }
        assert_eq!(holder.token, plane.token, "reports come from who hosts the region");
        if plane.removed || plane.refused.contains(store) {
            return Err(LinkError::Refused { why: "not known here".to_owned() });
        }
        plane.revision += 1;
        plane.history.push((store.to_owned(), report.clone()));
        match report {
            Some(report) => plane.reports.insert(store.to_owned(), report),
            None => plane.reports.remove(store),
        };
        drop(plane);
        self.reports.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn host(&self, claim: &HostClaim) -> Result<HostGrant, LinkError> {
        self.may_panic();
        self.up()?;
        let mut plane = self.plane.lock();
        plane.claims += 1;
        if let Some(by) = &plane.hosted_by {
            return Err(LinkError::Replaced { by: by.clone(), address: None });
        }
        if claim.token != Some(plane.token) {
            plane.token += 1;
        }
        plane.heartbeats += 1;
        Ok(HostGrant { token: plane.token, lease_ms: claim.lease_ms, now: 0 })
    }

    async fn freed(&self) {
        let mut changes = self.changes.subscribe();
        let is_free = |plane: &Plane| plane.hosted_by.is_none() || plane.seems_free;
        while !is_free(&self.plane.lock()) {
            changes.changed().await.unwrap();
        }
    }

    async fn release(&self, _: Holder) -> Result<(), LinkError> {
        self.up()
    }
}
