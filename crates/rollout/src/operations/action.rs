//! What users did, kept for good.

use serde::{Deserialize, Serialize};
use tidegate_state::{IndexKey, Record, Timestamp, Transaction, TransactionError};

use super::OperationError;
use crate::entities::{PastPin, Pin, Report};

/// What a user did, who, when and why. Kind `operator-action`; appended with the change itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorAction {
    /// The store, where it concerns one.
    pub store: Option<String>,
    /// The push, where it concerns one.
    pub push: Option<String>,
    /// The region, where it concerns one.
    pub region: Option<String>,
    /// What was done: `kill`, `proceed pre-swap`, `rollback to 7`.
    pub what: String,
    /// Who did it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

impl Record for OperatorAction {
    const KIND: &'static str = "operator-action";
    /// `store`: store, newest first. `push`: push, oldest first.
    const INDEXES: &'static [&'static str] = &["store", "push"];

    fn index_keys(&self) -> Vec<IndexKey> {
        vec![
            IndexKey::new().text(self.store.as_deref().unwrap_or("")).falling(self.at.0),
            IndexKey::new().text(self.push.as_deref().unwrap_or("")).number(self.at.0),
        ]
    }
}

/// All pins that a report names, those that are over first.
fn pins_of(report: &Report) -> impl Iterator<Item = &Pin> {
    report.past_pins.iter().map(|past| &past.pin).chain(&report.pin)
}

impl OperatorAction {
    pub(super) fn new(transaction: &Transaction, what: impl Into<String>, by: &str, reason: &str) -> Self {
        OperatorAction {
            store: None,
            push: None,
            region: None,
            what: what.into(),
            by: by.to_owned(),
            reason: reason.to_owned(),
            at: transaction.now(),
        }
    }

    pub(super) fn on_store(mut self, store: &str) -> Self {
        self.store = Some(store.to_owned());
        self
    }

    pub(super) fn on_push(mut self, push: &str) -> Self {
        self.push = Some(push.to_owned());
        self
    }

    pub(super) fn in_region(mut self, region: &str) -> Self {
        self.region = Some(region.to_owned());
        self
    }

    /// Keeps what was pinned in a region itself, and how it ended, as far as the report before did not say it.
    pub(crate) fn keep_pins(
        transaction: &mut Transaction,
        region: &str,
        store: &str,
        before: Option<&Report>,
        after: &Report,
    ) -> Result<(), TransactionError> {
        let known: Vec<&Pin> = before.iter().flat_map(|report| pins_of(report)).collect();
        let ended: Vec<&PastPin> = before.iter().flat_map(|report| &report.past_pins).collect();
        let of = |pin: &Pin, what: String, by: &str, reason: &str, at: Timestamp| OperatorAction {
            store: Some(store.to_owned()),
            push: None,
            region: Some(region.to_owned()),
            what: format!("{what} version {} in the region itself", pin.version),
            by: by.to_owned(),
            reason: reason.to_owned(),
            at,
        };
        for pin in pins_of(after).filter(|pin| !known.contains(pin)) {
            transaction.append(&of(pin, "pin".to_owned(), &pin.by, &pin.reason, pin.at))?;
        }
        for past in after.past_pins.iter().filter(|past| !ended.contains(past)) {
            let action = of(&past.pin, "end the pin of".to_owned(), &past.pin.by, &past.ended, past.ended_at);
            transaction.append(&action)?;
        }
        Ok(())
    }

    pub(super) fn keep(self, transaction: &mut Transaction) -> Result<(), OperationError> {
        transaction.append(&self)?;
        Ok(())
    }
}
