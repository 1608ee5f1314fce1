//! Pinning: what is asked is checked against what nodes really hold, kept on the disk, and then in force.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_state::Timestamp;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::nodes::place_after;
use super::{Job, Outcome, StoreTask};
use crate::engine::{ADOPTED_VERSION, EngineError, Verification};
use crate::entities::{PastPin, Pin};
use crate::region::hosting::Standing;
use crate::region::pin::{self, Found, PinRefused, PinRequest, Pinned, Pins};
use crate::region::plan::NodeTask;
use crate::region::standing;

/// How long who pins waits for the nodes to serve what is pinned; it is in force before.
const SERVING_LIMIT: Duration = Duration::from_secs(10);

/// What someone asks of a store's task.
pub(in crate::region::agent) enum Ask {
    Pin(PinRequest, oneshot::Sender<Result<Pinned, PinRefused>>),
    Unpin { by: String, answer: oneshot::Sender<Result<PastPin, PinRefused>> },
}

/// A request that is being dealt with. One at a time.
pub(super) struct Asking {
    what: Asked,
    step: Step,
}

enum Asked {
    Pin(PinRequest, oneshot::Sender<Result<Pinned, PinRefused>>),
    Unpin(oneshot::Sender<Result<PastPin, PinRefused>>),
}

enum Step {
    /// Nodes read the version back: which of them have, and what they found.
    Checking { begun: bool, results: BTreeMap<usize, Result<(), String>> },
    /// What will be in force is written to the disk.
    Saving { next: Pins, nodes: usize },
    /// It is in force, and nodes are about to serve it.
    Serving { pinned: Pinned, until: Timestamp },
}

impl StoreTask {
    pub(super) fn is_asked(&self) -> bool {
        self.asking.is_some()
    }

    /// When something has to be looked at again for who asked.
    pub(super) fn asking_wakes_at(&self) -> Option<Timestamp> {
        match &self.asking.as_ref()?.step {
            Step::Serving { until, .. } => Some(*until),
            Step::Checking { .. } | Step::Saving { .. } => None,
        }
    }

    pub(super) fn take_ask(&mut self, ask: Ask) {
        if let Standing::Replaced { by, .. } = &*self.shared.standing.borrow() {
            let refused = PinRefused::HostedElsewhere { by: by.clone() };
            // Who asked may have gone away; then nobody is left to be told. So below.
            match ask {
                Ask::Pin(_, answer) => drop(answer.send(Err(refused))),
                Ask::Unpin { answer, .. } => drop(answer.send(Err(refused))),
            }
            return;
        }
        match ask {
            Ask::Pin(request, answer) => {
                if let Err(refused) = pin::check(&request) {
                    let _ = answer.send(Err(refused));
                    return;
                }
                let step = Step::Checking { begun: false, results: BTreeMap::new() };
                self.asking = Some(Asking { what: Asked::Pin(request, answer), step });
            }
            Ask::Unpin { by, answer } => {
                if self.file.pins.pin.is_none() {
                    let _ = answer.send(Err(PinRefused::NotPinned { store: self.file.store.clone() }));
                    return;
                }
                let next = self.file.pins.without(self.now(), format!("lifted by {by}"));
                self.asking = Some(Asking { what: Asked::Unpin(answer), step: Step::Saving { next, nodes: 0 } });
            }
        }
    }

    /// Another agent hosts the region: whoever waits is told, unless what was asked is being written already.
    pub(super) fn refuse_asked(&mut self) {
        let Standing::Replaced { by, .. } = self.shared.standing.borrow().clone() else {
            return;
        };
        if matches!(self.asking, Some(Asking { step: Step::Checking { .. } | Step::Serving { .. }, .. }))
            && let Some(Asking { what: Asked::Pin(_, answer), .. }) = self.asking.take()
        {
            let _ = answer.send(Err(PinRefused::HostedElsewhere { by }));
        }
    }

    /// Takes the next step for who asked, if it is time for one.
    pub(super) fn answer_asked(&mut self) {
        let Some(mut asking) = self.asking.take() else {
            return;
        };
        match &mut asking.step {
            Step::Checking { begun, results } => {
                let Asked::Pin(request, _) = &asking.what else {
                    return;
                };
                // What nodes hold is only known once they were asked.
                if !*begun
                    && self.asked_everyone()
                    && self.view.nodes.iter().all(|node| !node.stale || node.observed.is_none())
                {
                    *begun = true;
                    let version = request.version;
                    for place in 0..self.view.nodes.len() {
                        let node = &self.view.nodes[place];
                        let holds = node.observed.as_ref().is_some_and(|observed| observed.holds(version));
                        // One that is being dropped or loaded is not held to be whole.
                        let busy = node.running.contains(&NodeTask::Drop(version))
                            || node.running.contains(&NodeTask::Load(version));
                        if holds && !busy {
                            results.insert(place, Err(String::new()));
                            if !node.running.contains(&NodeTask::Verify(version)) {
                                self.verify_at_once(place, version);
                            }
                        }
                    }
                }
                let reading = results.values().any(|result| matches!(result, Err(why) if why.is_empty()));
                if !*begun || reading {
                    self.asking = Some(asking);
                    return;
                }
                let results = std::mem::take(results);
                self.judge(asking.what, &results);
            }
            Step::Saving { next, .. } => {
                // An older content must not be written over the newer one.
                if !self.is_running(|job| matches!(job, Job::Save | Job::SavePins)) {
                    let disk = self.shared.disk.clone();
                    let mut file = self.file.clone();
                    file.pins = next.clone();
                    self.spawn(Job::SavePins, CancellationToken::new(), async move {
                        let saved = tokio::task::spawn_blocking(move || disk.save(&file)).await;
                        Outcome::Save(saved.unwrap_or_else(|error| Err(std::io::Error::other(error))))
                    });
                }
                self.asking = Some(asking);
            }
            Step::Serving { pinned, until } => {
                let serves = standing::serving(&self.view) == Some(pinned.pin.version)
                    && self.view.nodes.iter().all(|node| !node.stale || node.observed.is_none());
                if !serves && self.now() < *until {
                    self.asking = Some(asking);
                    return;
                }
                pinned.serving = serves;
                if let Asked::Pin(_, answer) = asking.what {
                    let _ = answer.send(Ok(pinned.clone()));
                }
            }
        }
    }

    fn judge(&mut self, what: Asked, results: &BTreeMap<usize, Result<(), String>>) {
        let Asked::Pin(request, answer) = what else {
            return;
        };
        let mut found = Found::default();
        for (place, result) in results {
            match result {
                Ok(()) => found.whole += 1,
                Err(why) => found.damaged.push(format!("{}: {why}", self.nodes[*place].name)),
            }
        }
        for node in &self.view.nodes {
            let held = node.observed.iter().flat_map(|observed| observed.held.keys().copied());
            found.held.extend(held.filter(|version| node.has_sound(*version)));
        }
        if let Err(refused) = pin::judge(&self.file.store, request.version, &found) {
            let _ = answer.send(Err(refused));
            return;
        }
        let pin =
            Pin { version: request.version, reason: request.reason.clone(), by: request.by.clone(), at: self.now() };
        let step = Step::Saving { next: self.file.pins.pinned(pin), nodes: found.whole };
        self.asking = Some(Asking { what: Asked::Pin(request, answer), step });
        self.answer_asked();
    }

    /// What a node has read back, where someone waits for it.
    pub(super) fn read_back(&mut self, place: usize, version: u64, result: &Result<Verification, EngineError>) {
        let expected = self.file.expected.get(&version).and_then(|expected| expected.content_digest.as_ref());
        let result = match (result, expected) {
            (Ok(found), Some(expected)) if found.content_digest != *expected => {
                Err(format!("its content digest is {} and should be {expected}", found.content_digest))
            }
            (Ok(_), None) if version != ADOPTED_VERSION => Err("what it should be is not known here".to_owned()),
            (Ok(_), _) => Ok(()),
            (Err(error), _) => Err(error.to_string()),
        };
        if let Some(Asking { what: Asked::Pin(request, _), step: Step::Checking { results, .. } }) = &mut self.asking
            && request.version == version
            && let Some(waited) = results.get_mut(&place)
        {
            *waited = result;
        }
    }

    /// A node has left: nobody waits for what it reads back.
    pub(super) fn not_asked_any_more(&mut self, gone: usize) {
        if let Some(Asking { step: Step::Checking { results, .. }, .. }) = &mut self.asking {
            let before = std::mem::take(results).into_iter();
            *results = before.filter_map(|(place, result)| Some((place_after(place, gone)?, result))).collect();
        }
    }

    /// The pins were written, or could not be.
    pub(super) fn pins_saved(&mut self, saved: std::io::Result<()>) {
        let Some(Asking { what, step: Step::Saving { next, nodes } }) = self.asking.take() else {
            return;
        };
        if let Err(error) = saved {
            let refused = PinRefused::Disk { why: error.to_string() };
            match what {
                Asked::Pin(_, answer) => drop(answer.send(Err(refused))),
                Asked::Unpin(answer) => drop(answer.send(Err(refused))),
            }
            return;
        }
        let replaced = std::mem::replace(&mut self.file.pins, next).pin;
        self.show_pins();
        self.take_assignment();
        // What was tried under other orders may be tried at once under these.
        for node in &mut self.view.nodes {
            node.trouble.retain(|task, _| !matches!(task, NodeTask::Swap(_)));
        }
        match (what, self.file.pins.pin.clone()) {
            (Asked::Pin(request, answer), Some(pin)) => {
                tracing::warn!(region = %self.shared.options.region, store = %self.file.store, version = pin.version, by = %pin.by, reason = %pin.reason, "a version is pinned");
                let pinned = Pinned { pin, replaced, nodes, of_nodes: self.view.nodes.len(), serving: false };
                let step = Step::Serving { pinned, until: self.now().after(SERVING_LIMIT) };
                self.asking = Some(Asking { what: Asked::Pin(request, answer), step });
            }
            (Asked::Pin(..), None) => {}
            (Asked::Unpin(answer), _) => {
                tracing::warn!(region = %self.shared.options.region, store = %self.file.store, "a pin was lifted");
                if let Some(past) = self.file.pins.past.last() {
                    let _ = answer.send(Ok(past.clone()));
                }
            }
        }
    }

    /// Shows the pins to who asks the agent for them.
    pub(super) fn show_pins(&self) {
        self.pins.send_replace(self.file.pins.clone());
    }
}
