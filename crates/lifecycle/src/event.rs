//! Events: what answers want other systems to hear of. Entities, committed with the answer and delivered afterwards.
//!
//! Each store has a stream, `/events/{store}`, whose entries are numbered in the order of their commits and delivered in
//! that order by a cluster hook of their own. An event's id follows from its call, attempt and place in the answer, so it
//! is one id however often the answer or the delivery is repeated.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Path, Ref, Root, Timestamp};
use uuid::Uuid;

use crate::function::Function;

const NAMESPACE: Uuid = Uuid::from_u128(0x4c0d_92f2_33a1_4d3f_9d0e_6a4e_b1f7_5c02);

/// A store's events, at `/events/{store}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStream {
    /// The number of the newest entry there has been.
    pub newest: u64,
}

impl Entity for EventStream {
    const COLLECTION: &'static str = "events";
    type Parent = Root;
    type Id = String;
}

/// An event that has not been delivered, at `/events/{store}/entries/{n}`. It goes when it has been delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The same on every delivery; receivers deduplicate by it.
    pub id: String,
    /// What happened, in the hook's words.
    pub kind: String,
    /// The details.
    pub data: serde_json::Value,
    /// The store.
    pub store: String,
    /// The push's id; none for a direct registration of a schema.
    pub push: Option<String>,
    /// The region, for functions of a region.
    pub region: Option<String>,
    /// The version that is pushed, if there is one yet.
    pub version: Option<u64>,
    /// The function whose answer carried it.
    pub function: Function,
    /// The hook whose answer carried it.
    pub hook: String,
    /// When the answer was there.
    pub at: Timestamp,
}

impl Entity for Event {
    const COLLECTION: &'static str = "entries";
    type Parent = EventStream;
    type Id = u64;
}

impl Event {
    /// The id of the event at this place of an attempt's answer.
    #[must_use]
    pub fn id_of(call: &Path, attempt: u32, place: usize) -> String {
        Uuid::new_v5(&NAMESPACE, format!("{}#{attempt}.{place}", call.as_str()).as_bytes()).to_string()
    }

    /// A store's stream.
    #[must_use]
    pub fn stream(store: &str) -> Option<Ref<EventStream>> {
        Ref::root(store).ok()
    }
}
