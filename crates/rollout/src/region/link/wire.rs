//! How a watch travels: each item as JSON, each document in it by itself.
//!
//! A newer control plane may send fields that this release does not know (they are ignored), kinds of items that it does
//! not know (they only move the position), and documents that it can't read: those are named, and what they are about
//! stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{LinkItem, Position};

/// An item as it travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireItem {
    /// Where this is in the log.
    position: Position,
    #[serde(flatten)]
    what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "item", rename_all = "snake_case")]
enum What {
    Snapshot {
        assignments: BTreeMap<String, Value>,
        #[serde(default)]
        unreadable: BTreeSet<String>,
        #[serde(default)]
        reports: BTreeMap<String, Value>,
    },
    Change {
        store: String,
        #[serde(default)]
        assignment: Option<Value>,
    },
    Removed,
    #[serde(other)]
    Nothing,
}

impl WireItem {
    /// The name of its event.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.what {
            What::Snapshot { .. } => "snapshot",
            What::Change { .. } => "change",
            What::Removed => "removed",
            What::Nothing => "heartbeat",
        }
    }

    /// Where it is in the log.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// An item to be sent.
    ///
    /// # Errors
    /// A document that can't be written as JSON, which no document of the tree is.
    pub fn from_item(item: &LinkItem) -> Result<Self, serde_json::Error> {
        let what = match item {
            LinkItem::Snapshot { assignments, unreadable, reports, .. } => What::Snapshot {
                assignments: documents(assignments)?,
                unreadable: unreadable.clone(),
                reports: documents(reports)?,
            },
            LinkItem::Change { store, assignment, .. } => What::Change {
                store: store.clone(),
                assignment: assignment.as_ref().map(serde_json::to_value).transpose()?,
            },
            LinkItem::Nothing { .. } => What::Nothing,
            LinkItem::Removed { .. } => What::Removed,
        };
        Ok(WireItem { position: item.position(), what })
    }

    /// The item that was received.
    #[must_use]
    pub fn into_item(self) -> LinkItem {
        let position = self.position;
        match self.what {
            What::Snapshot { assignments, mut unreadable, reports } => {
                let assignments = readable(assignments, |store| {
                    unreadable.insert(store);
                });
                let reports = readable(reports, |_| {});
                LinkItem::Snapshot { position, assignments, unreadable, reports }
            }
            What::Change { assignment: None, store } => LinkItem::Change { position, store, assignment: None },
            What::Change { assignment: Some(document), store } => match serde_json::from_value(document) {
                Ok(assignment) => LinkItem::Change { position, store, assignment: Some(assignment) },
                Err(error) => {
                    tracing::error!(store, %error, "what is wanted of this store can't be read by this release; it stays as it is");
                    LinkItem::Nothing { position }
                }
            },
            What::Removed => LinkItem::Removed { position },
            What::Nothing => LinkItem::Nothing { position },
        }
    }
}

fn documents<T: Serialize>(values: &BTreeMap<String, T>) -> Result<BTreeMap<String, Value>, serde_json::Error> {
    values.iter().map(|(store, value)| Ok((store.clone(), serde_json::to_value(value)?))).collect()
}

fn readable<T: DeserializeOwned>(
    documents: BTreeMap<String, Value>,
    mut unreadable: impl FnMut(String),
) -> BTreeMap<String, T> {
    let mut values = BTreeMap::new();
    for (store, document) in documents {
        match serde_json::from_value(document) {
            Ok(value) => {
                values.insert(store, value);
            }
            Err(error) => {
                tracing::error!(store, %error, "a document of this store can't be read by this release; it stays as it is");
                unreadable(store);
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tidegate_state::{Epoch, Revision};
    use uuid::Uuid;

    use super::*;
    use crate::entities::Assignment;

    fn position() -> Position {
        Position { epoch: Epoch(Uuid::from_u128(7)), revision: Revision(42) }
    }

    fn assignment() -> Assignment {
        Assignment { generation: 3, incarnation: Uuid::nil(), hold: [].into(), serve: None, enough: 2 }
    }

    fn received(json: serde_json::Value) -> LinkItem {
        serde_json::from_value::<WireItem>(json).unwrap().into_item()
    }

    #[test]
    fn what_is_sent_is_received() {
        let position = position();
        for item in [
            LinkItem::Snapshot {
                position,
                assignments: [("s".to_owned(), assignment())].into(),
                unreadable: ["t".to_owned()].into(),
                reports: [].into(),
            },
            LinkItem::Change { position, store: "s".to_owned(), assignment: Some(assignment()) },
            LinkItem::Change { position, store: "s".to_owned(), assignment: None },
            LinkItem::Nothing { position },
            LinkItem::Removed { position },
        ] {
            let wire = WireItem::from_item(&item).unwrap();
            let text = serde_json::to_string(&wire).unwrap();
            assert_eq!(serde_json::from_str::<WireItem>(&text).unwrap().into_item(), item, "{text}");
        }
    }

    #[test]
    fn c14_what_a_newer_control_plane_says_is_read_as_far_as_it_is_known() {
        let position = serde_json::to_value(position()).unwrap();
        let mut known = serde_json::to_value(assignment()).unwrap();
        known["a_field_of_the_future"] = json!({"x": 1});
        let unknown = json!({"generation": "later"});
        let item = received(json!({
            "item": "snapshot", "position": position, "future": 1, "assignments": {"s": known, "t": unknown},
        }));
        let LinkItem::Snapshot { assignments, unreadable, .. } = item else { panic!("{item:?}") };
        assert_eq!(assignments, [("s".to_owned(), assignment())].into());
        // Not held to be unwanted: it stays as it is.
        assert_eq!(unreadable, ["t".to_owned()].into());
        let nothing = LinkItem::Nothing { position: super::tests::position() };
        let change = json!({"item": "change", "position": position, "store": "t", "assignment": unknown});
        assert_eq!(received(change), nothing);
        assert_eq!(received(json!({"item": "omen", "position": position, "of": ["what", "comes"]})), nothing);
    }
}
