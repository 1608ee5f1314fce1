//! The database that a restore would replace: what it holds, and what it knows of numbers that were given out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tidegate_rollout::entities::{Push, Store};
use tidegate_state::backup::BackupHeader;
use tidegate_state::driver::postgres::PostgresStore;
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::driver::{Driver, LogEntry, Meta, SlotToken, StoredDocument};
use tidegate_state::{DriverError, Entity, Timestamp};

use super::tokens::Revocations;
use super::versions::Known;
use super::{BackupFailure, blocking};
use crate::access::{Revoked, Token};

/// What is there before a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum AtHand {
    /// Nothing.
    Absent,
    /// A database that can't be read.
    Unreadable {
        /// Why.
        why: String,
    },
    /// The state of an installation.
    Installed(Installed),
}

/// The state that a restore would replace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Whose it is.
    pub installation: String,
    /// Whether that is the backup's.
    pub same_installation: bool,
    /// The newest revision.
    pub revision: u64,
    /// When that was, in epoch milliseconds.
    pub changed_at: u64,
    /// How many stores it has.
    pub stores: u64,
    /// How many pushes.
    pub pushes: u64,
}

/// The same with what people do not need to see.
pub(super) struct Looked {
    pub(super) at_hand: AtHand,
    pub(super) known: Known,
    /// Which tokens are revoked in it; none where that can't be told, or where it is another installation's.
    pub(super) revoked: Option<Revocations>,
    /// The highest token that it has given out, where a new file is to take its place.
    pub(super) tokens: SlotToken,
}

impl Looked {
    fn without_state(at_hand: AtHand) -> Self {
        Looked { at_hand, known: Known::default(), revoked: None, tokens: SlotToken(0) }
    }
}

/// Looks at a file that no server has open.
pub(super) async fn look_at_file(file: &Path, header: &BackupHeader) -> Result<Looked, BackupFailure> {
    if !file.exists() {
        return Ok(Looked::without_state(AtHand::Absent));
    }
    let path = file.to_owned();
    let options = SqliteOptions { mend_limit: Duration::ZERO, ..SqliteOptions::default() };
    let store = match blocking(move || SqliteStore::open(path, options)).await? {
        Ok(store) => store,
        Err(DriverError::Held(_)) => {
            return Err(BackupFailure::InUse { path: file.parent().unwrap_or(file).to_owned() });
        }
        Err(error) => return Ok(Looked::without_state(AtHand::Unreadable { why: error.to_string() })),
    };
    let tokens = store.token_counter();
    let driver = store.driver();
    let looked = look(&*driver, header).await;
    // Closing it ends its write-ahead log, and takes a moment.
    blocking(move || drop((driver, store))).await?;
    Ok(match looked {
        Ok(looked) => Looked { tokens, ..looked },
        Err(error) => Looked { tokens, ..Looked::without_state(AtHand::Unreadable { why: error.to_string() }) },
    })
}

/// Looks at a database that servers may be working on.
pub(super) async fn look_at_shared(store: &PostgresStore, header: &BackupHeader) -> Result<Looked, BackupFailure> {
    if !store.exists().await? {
        return Ok(Looked::without_state(AtHand::Absent));
    }
    match look(&*store.driver(), header).await {
        Ok(looked) => Ok(looked),
        Err(error @ DriverError::Damaged(_)) => {
            Ok(Looked::without_state(AtHand::Unreadable { why: error.to_string() }))
        }
        // Nothing could be restored into it either.
        Err(error) => Err(error.into()),
    }
}

async fn look(driver: &dyn Driver, header: &BackupHeader) -> Result<Looked, DriverError> {
    let meta = driver.meta().await?;
    let tree = driver.load().await?;
    let log = driver.read_log(meta.epoch, tree.revision, usize::MAX).await?;
    let mut stores: HashMap<String, StoredDocument> = HashMap::new();
    let mut pushes: HashSet<tidegate_state::Path> = HashSet::new();
    let mut tokens: HashMap<String, StoredDocument> = HashMap::new();
    let mut highest = 0;
    let mut changed_at = Timestamp::default();
    for row in tree.entities {
        match (row.path.collection(), row.path.depth()) {
            (Store::COLLECTION, 1) => drop(stores.insert(row.path.id().into_owned(), row.document)),
            (Token::COLLECTION, 1) => drop(tokens.insert(row.path.id().into_owned(), row.document)),
            (Push::COLLECTION, 2) => {
                pushes.insert(row.path);
            }
            _ => {}
        }
    }
    for row in &log.rows {
        changed_at = row.at;
        for entry in &row.entries {
            let LogEntry::Change { path, after, .. } = entry else { continue };
            match (path.collection(), path.depth(), after) {
                (Store::COLLECTION, 1, Some(after)) => {
                    let before = stores.insert(path.id().into_owned(), after.clone());
                    highest = highest.max(before.as_ref().map_or(0, number_of));
                }
                (Store::COLLECTION, 1, None) => {
                    highest = highest.max(stores.remove(&*path.id()).as_ref().map_or(0, number_of));
                }
                (Token::COLLECTION, 1, Some(after)) => drop(tokens.insert(path.id().into_owned(), after.clone())),
                (Token::COLLECTION, 1, None) => drop(tokens.remove(&*path.id())),
                (Push::COLLECTION, 2, Some(_)) => {
                    pushes.insert(path.clone());
                }
                (Push::COLLECTION, 2, None) => {
                    pushes.remove(path);
                }
                _ => {}
            }
        }
    }
    if log.rows.is_empty() && meta.head.0 > 0 {
        let newest = driver.read_log(meta.epoch, tidegate_state::Revision(meta.head.0 - 1), 1).await?;
        changed_at = newest.rows.last().map_or(changed_at, |row| row.at);
    }
    let installed = Installed {
        installation: meta.installation.to_string(),
        same_installation: meta.installation == header.installation,
        revision: log.head.0,
        changed_at: crate::views::ms(changed_at),
        stores: stores.len() as u64,
        pushes: pushes.len() as u64,
    };
    let stores: BTreeMap<_, _> = stores.into_iter().filter_map(next_version).collect();
    highest = stores.values().map(|(_, next)| *next).fold(highest, u64::max);
    let known = Known { goes_on: goes_on(&meta, header), stores, highest };
    let revoked = installed.same_installation.then(|| tokens.into_iter().filter_map(revoked).collect());
    Ok(Looked { at_hand: AtHand::Installed(installed), known, revoked, tokens: SlotToken(0) })
}

fn next_version((name, document): (String, StoredDocument)) -> Option<(String, (uuid::Uuid, u64))> {
    let store: Store = serde_json::from_str(&document.json).ok()?;
    Some((name, (store.incarnation, store.next_version)))
}

fn number_of(document: &StoredDocument) -> u64 {
    serde_json::from_str::<Store>(&document.json).map_or(0, |store| store.next_version)
}

fn revoked((id, document): (String, StoredDocument)) -> Option<(String, Revoked)> {
    let token: Token = serde_json::from_str(&document.json).ok()?;
    Some((id, token.revoked?))
}

/// Whether a database has everything that was committed since the backup, as far as can be told: it counts in the same
/// epoch, and has come as far.
fn goes_on(meta: &Meta, header: &BackupHeader) -> bool {
    (meta.installation, meta.epoch) == (header.installation, header.epoch) && meta.head >= header.revision
}
