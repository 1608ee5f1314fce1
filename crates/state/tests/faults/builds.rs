//! Two builds of a server: the second has a new field, a new collection, a new hook, and an old hook in a higher version.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Ref, Root, Transaction, TransactionError};

use super::serving::HookOrders;
use super::workload::{LATEST, Thing};

/// Which build a server is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Build {
    One,
    Two,
}

/// How many notes a thing has at most.
const NOTES: u64 = 3;

/// The hook that the second build alone has.
pub(crate) const EVERY_NOTE: &str = "every-note";
/// What the names of servers of the second build end with.
pub(crate) const SECOND: &str = "-second";

/// A thing, as the second build knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LabelledThing {
    pub(crate) value: u64,
    /// What the first build does not know.
    #[serde(default)]
    pub(crate) label: Option<u64>,
}

impl Entity for LabelledThing {
    const COLLECTION: &'static str = Thing::COLLECTION;
    type Parent = Root;
    type Id = u64;
}

/// What stands under a thing, in a collection that the first build does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) value: u64,
}

impl Entity for Note {
    const COLLECTION: &'static str = "notes";
    type Parent = LabelledThing;
    type Id = u64;
}

/// Puts a thing, as the second build does it.
pub(crate) fn put(transaction: &mut Transaction, thing: u64, value: u64) -> Result<(), TransactionError> {
    let place = Ref::<LabelledThing>::root(thing)?;
    transaction.put(&place, LabelledThing { value, label: Some(value) })?;
    transaction.put(&place.child::<Note>(value % NOTES)?, Note { value })
}

/// The hooks of the second build, made from those of the first.
pub(crate) fn second(first: &[HookOrders]) -> Vec<HookOrders> {
    let on_notes = || format!("/{}/{{thing}}/{}/*", Thing::COLLECTION, Note::COLLECTION);
    let mut hooks = first.to_vec();
    for hook in hooks.iter_mut().filter(|hook| hook.name == LATEST) {
        hook.version = 2;
        hook.patterns.push(on_notes());
    }
    let slots = first.first().map_or(1, |hook| hook.slots);
    hooks.push(HookOrders { patterns: vec![on_notes()], ..HookOrders::first(EVERY_NOTE, slots) });
    hooks
}
