//! Creating, changing and deleting stores.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_state::{Ref, Transaction, TransactionError};
use uuid::Uuid;

use super::{OperationError, Operations, OperatorAction, check_folder_name, check_name, phase_word, step, store_of};
use crate::entities::{
    Assignment, Garbage, GarbageKind, GarbageState, Push, PushName, Region, Store, Version, VersionFloor,
};

/// The most partitions that a store may have.
pub(super) const PARTITIONS_MAX: u32 = 4_096;
/// The most overrides that a store may have.
const OVERRIDES_MAX: usize = 1_000;

/// The shortest time after which a client counts as silent, in milliseconds: three signs of life at their shortest distance.
const CLIENT_MS_MIN: u64 = 300;

/// A store to be created.
#[derive(Debug, Clone, PartialEq)]
pub struct NewStore {
    /// Its name.
    pub name: String,
    /// The columns that make up the key.
    pub key_columns: Vec<String>,
    /// How many partitions a version has; 4 where it is not given.
    pub partitions: Option<u32>,
    /// Tells it from a namesake that was deleted.
    pub incarnation: Uuid,
    /// Settings of hooks for it. Whether they are acceptable is for the hooks to say, before this.
    pub hook_overrides: BTreeMap<String, String>,
}

impl NewStore {
    /// A store with this name and key, and a random incarnation.
    #[must_use]
    pub fn new(name: impl Into<String>, key_columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        NewStore {
            name: name.into(),
            key_columns: key_columns.into_iter().map(Into::into).collect(),
            partitions: None,
            incarnation: Uuid::new_v4(),
            hook_overrides: BTreeMap::new(),
        }
    }
}

/// The number of the first version of a store that is made now.
fn first_version(transaction: &mut Transaction) -> Result<u64, TransactionError> {
    let place = Ref::<VersionFloor>::root(VersionFloor::ID).map_err(TransactionError::Path)?;
    Ok(transaction.get(&place)?.map_or(1, |floor| floor.next_version))
}

impl Operations {
    /// Creates a store. `settle` sets what differs from the defaults.
    ///
    /// # Errors
    /// A name that is taken or is none, settings that are not allowed.
    pub async fn create_store(
        &self,
        new: NewStore,
        by: &str,
        settle: impl Fn(&mut Store) + Send + 'static,
    ) -> Result<Store, OperationError> {
        let by = by.to_owned();
        self.write(move |transaction, _| {
            check_folder_name("store's name", &new.name)?;
            let place = Ref::<Store>::root(new.name.clone()).map_err(TransactionError::Path)?;
            if transaction.get(&place)?.is_some() {
                return Err(OperationError::StoreExists { store: new.name.clone() });
            }
            let mut store = Store::new(new.incarnation, transaction.now(), by.clone(), new.key_columns.clone());
            store.partitions = new.partitions.unwrap_or(store.partitions);
            store.hook_overrides = new.hook_overrides.clone();
            settle(&mut store);
            store.next_version = first_version(transaction)?;
            check_settings(&store)?;
            transaction.create(&place, store.clone())?;
            OperatorAction::new(transaction, "create store", &by, "").on_store(&new.name).keep(transaction)?;
            Ok(store)
        })
        .await
    }

    /// Changes a store's settings. A gate that waits is asked again at once. Key, partitions, version counter, incarnation
    /// and hook overrides are not settings, and stay as they are whatever `change` does to them.
    ///
    /// # Errors
    /// An unknown store, settings that are not allowed.
    pub async fn update_store(
        &self,
        name: &str,
        by: &str,
        change: impl Fn(&mut Store) + Send + 'static,
    ) -> Result<Store, OperationError> {
        let (name, by) = (name.to_owned(), by.to_owned());
        self.write(move |transaction, registry| {
            let (place, before) = store_of(transaction, &name)?;
            let mut after = before.clone();
            change(&mut after);
            let after = Store {
                incarnation: before.incarnation,
                created_at: before.created_at,
                created_by: before.created_by.clone(),
                key_columns: before.key_columns.clone(),
                partitions: before.partitions,
                next_version: before.next_version,
                hook_overrides: before.hook_overrides.clone(),
                ..after
            };
            check_settings(&after)?;
            if after != before {
                transaction.put(&place, after.clone())?;
                OperatorAction::new(transaction, "change store", &by, "").on_store(&name).keep(transaction)?;
                step(transaction, registry, &name)?;
            }
            Ok(after)
        })
        .await
    }

    /// Sets and clears hook overrides. Whether the values are acceptable is for the hooks to say, before this; overrides
    /// that are not part of the update are never a reason to refuse it.
    ///
    /// # Errors
    /// An unknown store, too many overrides.
    pub async fn set_overrides(
        &self,
        name: &str,
        by: &str,
        set: BTreeMap<String, String>,
        unset: BTreeSet<String>,
    ) -> Result<Store, OperationError> {
        let (name, by) = (name.to_owned(), by.to_owned());
        self.write(move |transaction, registry| {
            let (place, mut store) = store_of(transaction, &name)?;
            for key in &unset {
                store.hook_overrides.remove(key);
            }
            store.hook_overrides.extend(set.clone());
            check_settings(&store)?;
            transaction.put(&place, store.clone())?;
            let keys: Vec<&str> = set.keys().chain(&unset).map(String::as_str).collect();
            let what = format!("set hook overrides {}", keys.join(", "));
            OperatorAction::new(transaction, what, &by, "").on_store(&name).keep(transaction)?;
            step(transaction, registry, &name)?;
            Ok(store)
        })
        .await
    }

    /// Deletes a store: every region lets go of it, its artifacts go after their grace time, who did it is kept.
    ///
    /// # Errors
    /// An unknown store, one with a push that runs or waits.
    pub async fn delete_store(&self, name: &str, by: &str, reason: &str) -> Result<(), OperationError> {
        let (name, by, reason) = (name.to_owned(), by.to_owned(), reason.to_owned());
        self.write(move |transaction, _| {
            let (place, store) = store_of(transaction, &name)?;
            let pushes = transaction.children::<Push>(&place)?;
            for (push, value) in &pushes {
                if !value.status().is_final() {
                    return Err(OperationError::PushRunning {
                        store: name.clone(),
                        running: push.id(),
                        status: value.status(),
                        phase: phase_word(value).to_owned(),
                        on_new_push: store.on_new_push,
                    });
                }
            }
            for (push, _) in &pushes {
                transaction.delete(&Ref::<PushName>::root(push.id()).map_err(TransactionError::Path)?)?;
            }
            let_artifacts_go(transaction, &name, &place, &store)?;
            for (region, _) in transaction.roots::<Region>()? {
                let assignment = region.child::<Assignment>(name.clone()).map_err(TransactionError::Path)?;
                transaction.delete(&assignment)?;
            }
            transaction.delete(&place)?;
            OperatorAction::new(transaction, "delete store", &by, &reason).on_store(&name).keep(transaction)
        })
        .await
    }
}

fn let_artifacts_go(
    transaction: &mut Transaction,
    name: &str,
    place: &Ref<Store>,
    store: &Store,
) -> Result<(), OperationError> {
    let now = transaction.now();
    for (_, version) in transaction.children::<Version>(place)? {
        let Some((artifact, manifest_sha256)) = version.artifact() else { continue };
        let garbage = Garbage {
            kind: GarbageKind::Artifact { artifact: artifact.clone(), manifest_sha256: manifest_sha256.to_owned() },
            store: name.to_owned(),
            since: now,
            due_at: now.after(store.retention.grace()),
            state: GarbageState::Waiting,
        };
        let entry = Ref::root(Garbage::artifact_entry(artifact)).map_err(TransactionError::Path)?;
        transaction.put(&entry, garbage)?;
    }
    Ok(())
}

fn check_settings(store: &Store) -> Result<(), OperationError> {
    let invalid = |what: &str, why: String| Err(OperationError::Invalid { what: what.to_owned(), why });
    if store.key_columns.is_empty() || store.key_columns.iter().any(String::is_empty) {
        return invalid("the key columns", "there has to be at least one, and none may be empty".to_owned());
    }
    let distinct: BTreeSet<&String> = store.key_columns.iter().collect();
    if distinct.len() != store.key_columns.len() {
        return invalid("the key columns", "one is named twice".to_owned());
    }
    if store.partitions == 0 || store.partitions > PARTITIONS_MAX {
        let why = format!("{} is not from 1 to {PARTITIONS_MAX}", store.partitions);
        return invalid("the number of partitions", why);
    }
    if let Some(team) = &store.team {
        check_name("team's name", team)?;
    }
    if store.retention.versions < 2 {
        let why = format!("{} versions leave no way back; at least 2", store.retention.versions);
        return invalid("the retention", why);
    }
    for (what, limit) in [
        ("the push limit", store.limits.push_ms),
        ("the region limit", store.limits.region_ms),
        ("the client's silence limit", store.limits.client_ms),
        ("the confirmation limit", store.limits.confirmation_ms),
    ] {
        if limit == 0 {
            return invalid(what, "it is zero, so that it would end everything at once".to_owned());
        }
    }
    if store.limits.client_ms < CLIENT_MS_MIN {
        let why = format!(
            "{} ms leave no room for the client's signs of life, which come every 100 ms at most; at least {CLIENT_MS_MIN}",
            store.limits.client_ms
        );
        return invalid("the client's silence limit", why);
    }
    if store.golden_keys.len() > 10_000 {
        return invalid("the golden keys", format!("{} of them; at most 10000", store.golden_keys.len()));
    }
    if store.hook_overrides.len() > OVERRIDES_MAX {
        let why = format!("{} of them; at most {OVERRIDES_MAX}", store.hook_overrides.len());
        return invalid("the hook overrides", why);
    }
    Ok(())
}
