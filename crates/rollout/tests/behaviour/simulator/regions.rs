//! The regions' agents, with their nodes and embedded clients: they do what they are told, after a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidegate_rollout::controller::RegionFacts;
use tidegate_rollout::entities::{
    AgentHeartbeat, Assignment, Availability, EmbeddedPermission, EmbeddedSwap, FailureKind, HeldReport,
    IngestionStatus, Region, Report,
};
use tidegate_state::Timestamp;

use super::{CLIENT_GRACE, Simulator};
use crate::world::first_report;

/// A region's agent with its nodes.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) alive: bool,
    pub(crate) ingestion: Duration,
    pub(crate) fails: Option<(FailureKind, String)>,
    pub(crate) refuses_swap: bool,
    /// Embedded clients, which ingest and serve as soon as they may, unless they are slow.
    pub(crate) clients: u32,
    pub(crate) clients_slow: bool,
    /// How many of them are silent, and since when: they count until the grace time is over, and then as dead.
    pub(crate) clients_silent: Option<(u32, Timestamp)>,
    /// Every version that its nodes served, in order.
    pub(crate) served: Vec<Option<u64>>,
    pub(crate) clients_served: BTreeSet<u64>,
    /// Versions loaded, and how often.
    pub(crate) loads: BTreeMap<u64, u32>,
}

impl Simulator {
    pub(crate) fn add_region(&mut self, name: &str) {
        let region = Region {
            nodes: 2,
            enough: 2,
            shares_source: false,
            agent: false,
            availability: Availability::Available,
            added_at: self.now,
        };
        let facts = RegionFacts { region, assignment: None, report: None, heartbeat: None };
        self.view.regions.insert(name.into(), facts);
        let agent = Agent {
            alive: true,
            ingestion: Duration::from_secs(1),
            fails: None,
            refuses_swap: false,
            clients: 0,
            clients_slow: false,
            clients_silent: None,
            served: Vec::new(),
            clients_served: BTreeSet::new(),
            loads: BTreeMap::new(),
        };
        self.agents.insert(name.into(), agent);
    }

    /// Data that no push made is live there: version 0.
    pub(crate) fn adopt(&mut self, name: &str) {
        let report = first_report(self.view.store.incarnation, self.now);
        let report = Report { serving: Some(0), serving_since: Some(self.now), ..report };
        self.view.regions.get_mut(name).unwrap().report = Some(report);
    }

    pub(crate) fn agent(&mut self, name: &str) -> &mut Agent {
        self.agents.get_mut(name).unwrap()
    }

    pub(super) fn agent_due(&self, name: &str, agent: &Agent) -> Option<Timestamp> {
        if !agent.alive {
            return None;
        }
        let report = self.view.regions.get(name)?.report.as_ref()?;
        let ingested = report
            .versions
            .values()
            .filter(|held| matches!(held.status, IngestionStatus::Started))
            .map(|held| held.since.after(agent.ingestion));
        ingested.chain(agent.clients_silent.map(|(_, since)| since.after(CLIENT_GRACE))).min()
    }

    pub(super) fn run_agents(&mut self) -> bool {
        let mut moved = false;
        let (now, store, swap) = (self.now, self.view.store.incarnation, self.view.store.embedded_swap);
        for (name, facts) in &mut self.view.regions {
            let Some(agent) = self.agents.get_mut(name).filter(|agent| agent.alive) else { continue };
            let before = facts.report.clone();
            facts.heartbeat = Some(AgentHeartbeat { at: now, agent: name.clone() });
            let Some(assignment) = &facts.assignment else { continue };
            let mut report = before.clone().unwrap_or_else(|| first_report(store, now));
            report.generation = assignment.generation;
            for number in assignment.hold.keys() {
                let held = report.versions.entry(*number).or_insert_with(|| HeldReport {
                    status: IngestionStatus::Started,
                    since: now,
                    digest: None,
                    nodes: 0,
                    retrying: None,
                });
                if matches!(held.status, IngestionStatus::Started) && now >= held.since.after(agent.ingestion) {
                    held.since = now;
                    held.status = match &agent.fails {
                        Some((kind, message)) => IngestionStatus::Failed { kind: *kind, message: message.clone() },
                        None => {
                            *agent.loads.entry(*number).or_default() += 1;
                            held.nodes = 2;
                            IngestionStatus::Completed
                        }
                    };
                }
            }
            let serving = report.serving;
            report.versions.retain(|number, _| assignment.hold.contains_key(number) || serving == Some(*number));
            let pinned = report.pin.as_ref().map(|pin| pin.version);
            let target = pinned.or(assignment.serve);
            // What was live before the first push serves until the control plane has said another.
            let adopted_stays = report.serving == Some(0) && target.is_none();
            if report.serving != target && !adopted_stays {
                let ready = target.is_none_or(|target| {
                    target == 0
                        || report.versions.get(&target).is_some_and(|held| held.status == IngestionStatus::Completed)
                });
                let refused = target.filter(|_| ready && agent.refuses_swap);
                if let Some(held) = refused.and_then(|target| report.versions.get_mut(&target)) {
                    held.status = IngestionStatus::Failed {
                        kind: FailureKind::SwapRefused,
                        message: "the engine refuses to swap".into(),
                    };
                } else if ready {
                    report.serving = target;
                    report.serving_since = Some(now);
                    agent.served.push(target);
                }
            }
            run_clients(agent, &mut report, assignment, swap, now);
            let unchanged = before.as_ref().is_some_and(|before| Report { at: before.at, ..report.clone() } == *before);
            if !unchanged {
                report.at = now;
                facts.report = Some(report);
                moved = true;
            }
        }
        moved
    }
}

/// Embedded clients: they hold and serve what they may, as soon as they may, unless they are slow.
fn run_clients(agent: &mut Agent, report: &mut Report, assignment: &Assignment, swap: EmbeddedSwap, now: Timestamp) {
    let (silent, since) = agent.clients_silent.unwrap_or((0, now));
    let dead = if now >= since.after(CLIENT_GRACE) { silent } else { 0 };
    report.embedded.live = agent.clients - dead;
    report.embedded.dead = dead;
    if agent.clients == 0 || agent.clients_slow {
        return;
    }
    let awake = agent.clients - silent;
    for (number, held) in &assignment.hold {
        if held.embedded == EmbeddedPermission::None {
            continue;
        }
        let counts = report.embedded.versions.entry(*number).or_default();
        counts.ingested = counts.ingested.min(report.embedded.live).max(awake);
        let may_serve = held.embedded == EmbeddedPermission::Serve;
        if may_serve && (swap == EmbeddedSwap::Alone || report.serving == Some(*number)) {
            counts.serving = awake;
            agent.clients_served.insert(*number);
        }
    }
    report.embedded.versions.retain(|number, _| assignment.hold.contains_key(number));
}
