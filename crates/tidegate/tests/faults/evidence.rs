//! What a run leaves behind: what was read, who was down when, what the log says, and how everything stood in the end.

use std::collections::BTreeMap;

use tidegate_rollout::entities::{Assignment, EndedBy, Push, PushState, PushStatus, RegionState};
use tidegate_state::Entity;
use tidegate_state::driver::{LogEntry, StoredState};

/// The store that is pushed to and read.
pub(crate) const STORE: &str = "things";

/// Milliseconds since the epoch. All parts of a run are on one machine and have one clock.
pub(crate) type Time = u64;

/// The time now.
pub(crate) fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Where reads are answered: an agent with a node of its own, or a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) region: String,
}

/// One read: of a key, or of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    /// Which of the places.
    pub(crate) place: usize,
    pub(crate) begun: Time,
    pub(crate) ended: Time,
    pub(crate) outcome: ReadOutcome,
}

/// What came of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    /// It was answered.
    Answered {
        /// The version that the answer names.
        version: u64,
        /// The generations that the values are of, each once.
        generations: Vec<u64>,
        /// How many keys were not there. Every generation has all of them.
        absent: usize,
    },
    /// It was not, and why.
    Failed(String),
}

/// A time in which a place could not answer, by what was done to it: from before the signal until it answered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Downtime {
    pub(crate) place: usize,
    pub(crate) from: Time,
    pub(crate) until: Time,
}

/// What the hooks, the operator or the client were to do to a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Intent {
    /// Nothing.
    Complete,
    /// A hook rolls it back after its swap in the second region.
    RollBack,
    /// A hook aborts it before its swap in the second region.
    Abort,
    /// An operator kills it.
    Kill,
    /// Its client dies and never comes back.
    Abandon,
}

/// What is known of a push beside the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pushed {
    pub(crate) id: String,
    /// What its values say.
    pub(crate) generation: u64,
    pub(crate) intent: Intent,
    /// The exit code of the client that followed it to its end.
    pub(crate) exit: Option<i32>,
}

/// One fact of the log, in its order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fact {
    pub(crate) at: Time,
    pub(crate) what: What,
}

/// What a fact says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    /// A region's assignment says to serve another version than before.
    Told { region: String, serve: Option<u64> },
    /// A push is, from now on, this.
    Push(PushFact),
}

/// A push as the log has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PushFact {
    pub(crate) id: String,
    pub(crate) version: u64,
    pub(crate) status: PushStatus,
    pub(crate) ended_by: Option<EndedBy>,
    pub(crate) reason: String,
    /// What each region that takes part served before.
    pub(crate) regions: BTreeMap<String, Option<u64>>,
}

/// How everything stood once faults had stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rest {
    /// What did not come to rest, if anything.
    pub(crate) trouble: Vec<String>,
    /// What each region reports that it serves.
    pub(crate) reported: BTreeMap<String, Option<u64>>,
    /// The version that each place answers with.
    pub(crate) answered: BTreeMap<usize, Option<u64>>,
    /// The push that was made after all faults.
    pub(crate) next: String,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    pub(crate) places: Vec<Place>,
    pub(crate) reads: Vec<Read>,
    pub(crate) downtimes: Vec<Downtime>,
    pub(crate) pushed: Vec<Pushed>,
    pub(crate) facts: Vec<Fact>,
    pub(crate) rest: Rest,
}

/// What the log says about the store.
pub(crate) fn facts(stored: &StoredState) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut serves: BTreeMap<String, Option<u64>> = BTreeMap::new();
    for row in &stored.log {
        let at = u64::try_from(row.at.0).unwrap();
        let mut pushes = Vec::new();
        for entry in &row.entries {
            let LogEntry::Change { path, after, .. } = entry else { continue };
            let pairs: Vec<_> = path.pairs().collect();
            match pairs.as_slice() {
                [("regions", region), (Assignment::COLLECTION, store)] if store == STORE => {
                    let serve =
                        after.as_ref().and_then(|after| serde_json::from_str::<Assignment>(&after.json).unwrap().serve);
                    if serves.insert(region.to_string(), serve) != Some(serve) {
                        facts.push(Fact { at, what: What::Told { region: region.to_string(), serve } });
                    }
                }
                [("stores", store), (Push::COLLECTION, id)] if store == STORE => {
                    // A push whose records are let go has said all that it had to say.
                    let Some(after) = after else { continue };
                    let push = push_fact(id, &serde_json::from_str(&after.json).unwrap());
                    pushes.push(Fact { at, what: What::Push(push) });
                }
                _ => {}
            }
        }
        // What one transaction says holds at once, and a push is judged by what its regions are told with it.
        facts.append(&mut pushes);
    }
    facts
}

fn push_fact(id: &str, push: &Push) -> PushFact {
    let (status, ended_by, reason) = match &push.state {
        PushState::Queued => (PushStatus::Queued, None, String::new()),
        PushState::Running(_) => (PushStatus::Started, None, String::new()),
        PushState::Ended { end, .. } => (end.status, end.by, end.reason.clone()),
    };
    let takes_part = |state: &RegionState| !matches!(state, RegionState::Failed(_) | RegionState::LeftOut { .. });
    let regions = push.regions.iter().filter(|(_, region)| takes_part(&region.state));
    let regions = regions.map(|(name, region)| (name.clone(), region.previous)).collect();
    PushFact { id: id.to_owned(), version: push.version, status, ended_by, reason, regions }
}
