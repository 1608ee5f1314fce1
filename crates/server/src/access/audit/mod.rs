//! The audit trail: who changed what, and through which token.
//!
//! An entry is written in the transaction of the change itself, so that there is none without the other. Where a change is
//! not a transaction of the server's own, the entry follows it before the answer. What was refused, or failed, is kept too, as
//! far as there is room, also where the bearer of a token may not ask it; who shows no token that holds is counted only.
//!
//! An entry names what was made and changed, field by field, as far as it is small and no secret: read from the transaction
//! itself (`made`). No secret is in it: of tokens there are id and name, and what may hold a secret is said to be other than
//! before, without its values (`scrub`).

mod asked;
mod made;
mod operation;
mod removal;
mod scrub;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_api::{AuditEntity, AuditField, AuditOutcome, AuditView, Role};
use tidegate_rollout::operations::Beside;
use tidegate_state::{IndexKey, Record, Retain, Timestamp, Transaction, TransactionError};

use self::made::Made;
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
    /// What was made, changed or named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) entities: Vec<AuditEntity>,
    /// How many more there were.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) left_out: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
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
            entities: Vec::new(),
            left_out: 0,
            reason: None,
        }
    }

    /// That somebody at the machine made an artifact store without a mark the installation's, after that is in the
    /// transaction.
    pub(crate) fn of_adoption(transaction: &Transaction, by: &str, target: &str) -> Result<Self, TransactionError> {
        let made = Made::of(transaction, &[])?;
        let record = Self::of_restore(transaction.now(), by, target);
        Ok(Self { route: "tidegate server --adopt-artifact-store".to_owned(), entities: made.entities, ..record })
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
            operation: operation::words(&self.route, &self.target),
            entities: self.entities.clone(),
            left_out: self.left_out,
            reason: self.reason.clone(),
        }
    }

    /// Whether it is about a region: one that it names, or that a token or a freeze is for.
    pub(crate) fn is_about_region(&self, region: &str) -> bool {
        let frozen = format!("region {region}");
        self.entities.iter().any(|entity| {
            let is_for = |field: &AuditField| {
                let value = field.after.as_deref().or(field.before.as_deref());
                match (entity.kind.as_str(), field.field.as_str()) {
                    ("token", "region") => value == Some(region),
                    ("freeze", "scope") => value == Some(frozen.as_str()),
                    _ => false,
                }
            };
            entity.kind == "region" && entity.id == region || entity.fields.iter().any(is_for)
        })
    }
}

pub(super) use asked::{Asked, asked_for};
pub(super) use made::of_address;
pub(crate) use removal::record_removal;

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
    /// What the request names, beside the store.
    named: Vec<AuditEntity>,
    /// What it would make, if that is not in its address.
    asked_for: Vec<AuditEntity>,
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
        named: Vec<AuditEntity>,
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
            named,
            asked_for: Vec::new(),
            is_with_change: AtomicBool::new(false),
        }
    }

    /// With what the request would make, which is kept where nothing was made.
    pub(super) fn with_asked_for(self, asked_for: Vec<AuditEntity>) -> Self {
        Self { asked_for, ..self }
    }

    /// What is kept of it where no transaction of its own says what became of it.
    pub(super) fn record(&self, at: Timestamp, outcome: AuditOutcome, status: Option<u16>) -> AuditRecord {
        let beside: &[AuditEntity] = if outcome == AuditOutcome::Done { &[] } else { &self.asked_for };
        self.record_of(at, outcome, status, Made::named(&[&self.named, beside].concat()))
    }

    fn record_of(&self, at: Timestamp, outcome: AuditOutcome, status: Option<u16>, made: Made) -> AuditRecord {
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
            entities: made.entities,
            left_out: made.left_out,
            reason: made.reason,
        }
    }

    /// Writes it within the transaction of the change, after the change.
    pub(crate) fn write(&self, transaction: &mut Transaction) -> Result<(), TransactionError> {
        let made = Made::of(transaction, &self.named)?;
        self.record_of(transaction.now(), AuditOutcome::Done, None, made).append(transaction)?;
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
