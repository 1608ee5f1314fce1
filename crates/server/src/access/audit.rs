//! The audit trail: who changed what, and through which token.
//!
//! An entry is written in the transaction of the change itself, so that there is none without the other. Where a change is
//! not a transaction of the server's own, the entry follows it before the answer. What was refused for a reason of its own, or
//! failed, is kept too, as far as there is room; what was not let in at all is counted only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_api::{AuditOutcome, AuditView, Role};
use tidegate_rollout::operations::Beside;
use tidegate_state::{IndexKey, Record, Retain, Timestamp, Transaction, TransactionError};

use super::caller::Bearer;
use super::table::Rule;
use crate::views::ms;

/// How long an entry is kept.
const KEPT: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// The longest address that is kept, in characters.
const TARGET_CHARS_MAX: usize = 1_024;

/// What somebody asked for, and what came of it. Kind `audit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AuditRecord {
    pub(crate) at: Timestamp,
    /// The revision of the transaction that carries it: entries of one moment are in order, too.
    pub(crate) revision: u64,
    pub(crate) user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<Role>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    pub(crate) request: String,
    pub(crate) route: String,
    pub(crate) target: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<String>,
    pub(crate) outcome: AuditOutcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
}

impl Record for AuditRecord {
    const KIND: &'static str = "audit";
    /// Each with the newest first.
    const INDEXES: &'static [&'static str] = &["time", "store", "user", "store-user"];
    const RETENTION: Retain = Retain { age: Some(KEPT), per_key: None };

    fn index_keys(&self) -> Vec<IndexKey> {
        let store = self.store.as_deref().unwrap_or_default();
        vec![
            self.newest_first(IndexKey::new()),
            self.newest_first(IndexKey::new().text(store)),
            self.newest_first(IndexKey::new().text(&self.user)),
            self.newest_first(IndexKey::new().text(store).text(&self.user)),
        ]
    }
}

impl AuditRecord {
    fn newest_first(&self, key: IndexKey) -> IndexKey {
        key.falling(self.at.0).falling(i64::try_from(self.revision).unwrap_or(i64::MAX))
    }

    /// That somebody at the machine put a backup back. Nobody asked a server for it, and no token was needed.
    pub(crate) fn of_restore(at: Timestamp, by: &str, target: &str) -> Self {
        Self {
            at,
            revision: 0,
            user: by.to_owned(),
            role: None,
            token: None,
            request: String::new(),
            route: "tidegate restore".to_owned(),
            target: target.to_owned(),
            store: None,
            outcome: AuditOutcome::Done,
            status: None,
        }
    }

    /// Appends it to a transaction, and so to its place in the trail.
    pub(crate) fn append(&self, transaction: &mut Transaction) -> Result<(), TransactionError> {
        let record = Self { revision: transaction.revision().0, ..self.clone() };
        transaction.append(&record)?;
        Ok(())
    }

    pub(crate) fn view(&self) -> AuditView {
        AuditView {
            at: ms(self.at),
            user: self.user.clone(),
            role: self.role,
            token: self.token.clone(),
            request: self.request.clone(),
            route: self.route.clone(),
            target: self.target.clone(),
            store: self.store.clone(),
            outcome: self.outcome,
            status: self.status,
        }
    }
}

/// The entry of a request that is under way.
#[derive(Debug)]
pub(crate) struct AuditEntry {
    user: String,
    role: Option<Role>,
    token: Option<String>,
    request: String,
    route: String,
    target: String,
    store: Option<String>,
    is_with_change: AtomicBool,
}

impl AuditEntry {
    pub(super) fn new(
        rule: &Rule,
        bearer: Option<&Bearer>,
        user: String,
        request: String,
        target: &str,
        store: Option<String>,
    ) -> Self {
        Self {
            user,
            role: bearer.map(|bearer| bearer.role),
            token: bearer.map(|bearer| bearer.token.clone()),
            request,
            route: format!("{} {}", rule.method.to_uppercase(), rule.path),
            target: target.chars().take(TARGET_CHARS_MAX).collect(),
            // A longer name is no store's; what was asked for is in the target.
            store: store.filter(|store| store.len() <= tidegate_state::ID_BYTES_MAX),
            is_with_change: AtomicBool::new(false),
        }
    }

    pub(super) fn record(&self, at: Timestamp, outcome: AuditOutcome, status: Option<u16>) -> AuditRecord {
        AuditRecord {
            at,
            revision: 0,
            user: self.user.clone(),
            role: self.role,
            token: self.token.clone(),
            request: self.request.clone(),
            route: self.route.clone(),
            target: self.target.clone(),
            store: self.store.clone(),
            outcome,
            status,
        }
    }

    /// Writes it within the transaction of the change.
    pub(crate) fn write(&self, transaction: &mut Transaction) -> Result<(), TransactionError> {
        self.record(transaction.now(), AuditOutcome::Done, None).append(transaction)?;
        self.is_with_change.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What writes it within the transaction of the change.
    pub(crate) fn beside(self: &Arc<Self>) -> Beside {
        let entry = Arc::clone(self);
        Arc::new(move |transaction| entry.write(transaction))
    }

    /// Whether a transaction carries it; if the request was done, that one was committed.
    pub(super) fn is_with_change(&self) -> bool {
        self.is_with_change.load(Ordering::Relaxed)
    }
}
