//! What users did, kept for good.

use serde::{Deserialize, Serialize};
use tidegate_state::{IndexKey, Record, Timestamp, Transaction};

use super::OperationError;

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

    pub(super) fn keep(self, transaction: &mut Transaction) -> Result<(), OperationError> {
        transaction.append(&self)?;
        Ok(())
    }
}
