//! What others are told: reports to the control plane, orders to embedded clients, and the agent's own disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_state::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Job, Outcome, StoreTask};
use crate::entities::{EmbeddedPermission, Report};
use crate::region::clients::{ClientVersion, orders};
use crate::region::link::LinkError;
use crate::region::pin::permitted as permitted_with;
use crate::region::plan::NodeTask;
use crate::region::standing::{self, Facts, Novelty, novelty};

impl StoreTask {
    pub(super) fn track_trouble(&mut self) {
        let trouble = self.report_trouble.is_some()
            || self.view.nodes.iter().any(|node| !node.trouble.is_empty())
            || self.view.versions.values().any(|version| !version.trouble.is_empty());
        if trouble != self.in_trouble {
            self.in_trouble = trouble;
            let gauge = &self.shared.figures.stores_in_trouble;
            if trouble {
                gauge.inc()
            } else {
                gauge.dec()
            };
        }
        if self.mismatch_open && self.running.is_empty() && self.asked_everyone() {
            self.mismatch_open = self.view.nodes.iter().any(|node| node.stale);
        }
    }

    pub(super) fn tell_clients(&mut self) {
        if self.is_running(|job| matches!(job, Job::Orders(_))) {
            return;
        }
        let pin = self.file.pins.pin.as_ref().and_then(|pin| {
            let expected = self.file.expected.get(&pin.version)?;
            let version = ClientVersion {
                permission: EmbeddedPermission::Serve,
                artifact: expected.artifact.clone(),
                manifest_sha256: expected.manifest_sha256.clone(),
            };
            Some((pin.version, version))
        });
        let next = self.file.assignment.as_ref().map(|assignment| {
            let permitted: BTreeMap<u64, ClientVersion> = assignment
                .hold
                .iter()
                .map(|(number, held)| {
                    let version = ClientVersion {
                        permission: held.embedded,
                        artifact: held.artifact.clone(),
                        manifest_sha256: held.manifest_sha256.clone(),
                    };
                    (*number, version)
                })
                .collect();
            let permitted = permitted_with(permitted, pin.as_ref().map(|(number, version)| (*number, version)));
            orders(
                &permitted,
                self.file.pins.pin.as_ref().map_or(assignment.serve, |pin| Some(pin.version)),
                standing::serving(&self.view),
                self.told.as_ref().and_then(Option::as_ref),
            )
        });
        // Until the nodes were asked, nobody knows what the region serves.
        if self.told.as_ref() == Some(&next) || !self.asked_everyone() {
            return;
        }
        let clients = Arc::clone(&self.shared.options.clients);
        let key = self.tools.key.clone();
        let order = next.clone();
        self.spawn(Job::Orders(next), CancellationToken::new(), async move {
            clients.order(&key, order).await;
            Outcome::Orders
        });
    }

    /// Whether every node has answered, or failed to, since the agent began.
    pub(super) fn asked_everyone(&self) -> bool {
        self.view.nodes.iter().all(|node| node.observed.is_some() || node.trouble.contains_key(&NodeTask::Observe))
    }

    pub(super) fn progress(&self) -> BTreeMap<u64, (u64, u64)> {
        let mut progress = BTreeMap::new();
        for (number, copy) in &self.copy_progress {
            progress.insert(*number, copy.get());
        }
        for ((_, number), load) in &self.load_progress {
            let (done, total) = load.get();
            let sum: &mut (u64, u64) = progress.entry(*number).or_default();
            sum.0 = sum.0.saturating_add(done);
            sum.1 = sum.1.saturating_add(total);
        }
        // What has not looked yet how much there is has made no progress either.
        progress.retain(|_, (_, total)| *total > 0);
        progress
    }

    pub(super) fn next_report(&self, now: Timestamp) -> Option<Report> {
        let assignment = self.file.assignment.as_ref()?;
        if self.next_incarnation.is_some() || !self.asked_everyone() {
            return None;
        }
        let progress = self.progress();
        let names = self.node_names();
        let facts = Facts {
            generation: assignment.generation,
            incarnation: assignment.incarnation,
            node_names: &names,
            progress: &progress,
            embedded: self.shared.options.clients.counts(&self.tools.key),
            pins: &self.file.pins,
        };
        let previous = self.written.as_ref().or(self.file.report.as_ref());
        Some(standing::report(&self.view, facts, previous, now))
    }

    pub(super) fn report(&mut self, now: Timestamp) {
        let busy = self.is_running(|job| matches!(job, Job::Report(_) | Job::RemoveReport));
        let rests = self.report_trouble.is_some_and(|(_, until)| now < until);
        if busy || rests || !self.heard {
            return;
        }
        let Some(holder) = self.shared.standing.borrow().holder() else {
            return;
        };
        let link = Arc::clone(&self.shared.link);
        let store = self.file.store.clone();
        let limit = self.shared.options.limits.step;
        let limited = move |report: Option<Report>| async move {
            let written = tokio::time::timeout(limit, link.report(holder, &store, report)).await;
            Outcome::Report(written.unwrap_or_else(|_| {
                let why = format!("no answer to a report within {} s", limit.as_secs());
                Err(LinkError::Unavailable { why })
            }))
        };
        if self.file.assignment.is_none() {
            if self.view.is_let_go() && !self.let_go {
                self.spawn(Job::RemoveReport, CancellationToken::new(), limited(None));
            }
            return;
        }
        let Some(next) = self.next_report(now) else {
            return;
        };
        let due = match novelty(self.written.as_ref(), &next) {
            Novelty::Same => false,
            Novelty::Progress => now >= self.progress_due(),
            Novelty::News => true,
        };
        if due {
            self.spawn(Job::Report(Box::new(next.clone())), CancellationToken::new(), limited(Some(next)));
        }
    }

    pub(super) fn progress_due(&self) -> Timestamp {
        self.written_at.after(self.shared.options.limits.progress_every)
    }

    pub(super) fn reported(&mut self, report: Report) {
        self.shared.figures.reports.inc();
        self.report_trouble = None;
        self.written_at = self.now();
        if novelty(self.file.report.as_ref(), &report) == Novelty::News {
            self.unsaved = true;
            self.file.report = Some(report.clone());
        }
        self.written = Some(report);
    }

    pub(super) fn report_failed(&mut self, error: &LinkError) {
        self.shared.figures.reports_failed.inc();
        if matches!(error, LinkError::Replaced { .. }) {
            self.shared.claim_again.notify_one();
        }
        let failures = self.report_trouble.map_or(0, |(failures, _)| failures).saturating_add(1);
        let pause = self.shared.options.limits.pause(failures, false, (self.shared.options.jitter)());
        tracing::warn!(region = %self.shared.options.region, store = %self.file.store, failures, %error, "a report did not reach the control plane, which goes by the one before until it does; it is sent again");
        self.report_trouble = Some((failures, self.now().after(pause)));
    }

    pub(super) fn save(&mut self) {
        if !self.unsaved
            || self.next_incarnation.is_some()
            || self.is_running(|job| matches!(job, Job::Save | Job::SavePins))
        {
            return;
        }
        self.unsaved = false;
        let disk = self.shared.disk.clone();
        let file = self.file.clone();
        self.spawn(Job::Save, CancellationToken::new(), async move {
            let saved = tokio::task::spawn_blocking(move || disk.save(&file)).await;
            Outcome::Save(saved.unwrap_or_else(|error| Err(std::io::Error::other(error))))
        });
    }
}
