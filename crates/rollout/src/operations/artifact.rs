//! What a push's client brings: the schema, the manifest, or the news that its input is bad.

use std::sync::Arc;

use tidegate_api::manifest::{Manifest, Schema};
use tidegate_dataset::schema::{incompatibilities, validate};
use tidegate_state::{Ref, Transaction, TransactionError};

use super::push::keep_artifact;
use super::{OperationError, Operations, TEXT_BYTES_MAX, phase_word, push_of, step, store_of};
use crate::controller::finish_push;
use crate::entities::{
    EndedBy, Phase, Push, PushState, PushStatus, RegisteredSchema, SchemaMode, SchemaProgress, Store, Version,
    VersionData, VersionManifest, VersionStatus,
};

impl Operations {
    /// Says which schema the input of a push has: the result of the client's first pass. A schema that the store knows is
    /// taken at once; an unknown one is registered if store and hooks let it, and else ends the push.
    ///
    /// # Errors
    /// An unknown push, one that is not building (any more), a schema that is none.
    pub async fn register_schema(&self, push: &str, schema: Schema) -> Result<Push, OperationError> {
        let id = push.to_owned();
        self.write(move |transaction, registry| {
            let (store_name, place, mut push) = push_of(transaction, &id)?;
            match &push.state {
                // Ended, or said before: the answer is where the push is.
                PushState::Ended { .. } | PushState::Running(Phase::Schema | Phase::Upload) => return Ok(push),
                PushState::Running(Phase::Build) => {}
                PushState::Queued | PushState::Running(_) => return Err(wrong_phase(&id, &push, "build")),
            }
            let (store_place, store) = store_of(transaction, &store_name)?;
            validate(&schema, &store.key_columns).map_err(|error| OperationError::Invalid {
                what: format!("the schema of push {id}"),
                why: error.to_string(),
            })?;
            let known = transaction.children::<RegisteredSchema>(&store_place)?;
            let same = known.iter().find(|(_, registered)| registered.schema == schema);
            let served = match (same, store.schema_mode) {
                (Some(_), SchemaMode::Compatible) => served_schema(transaction, &store_place, &known)?,
                _ => None,
            };
            // Known from long ago is no leave to take back what was added since: readers have it by now.
            let taken_back = served.as_ref().and_then(|served| misfit(served, &schema));
            if let Some(reason) = taken_back {
                return end(transaction, registry, &store_name, &id, EndedBy::Input, reason);
            }
            if let Some((number, _)) = same {
                push.schema = SchemaProgress::Known { number: number.id(), registered: false };
                push.state = PushState::Running(Phase::Upload);
            } else if let Some(reason) = objection(&store, known.last().map(|(_, last)| &last.schema), &schema) {
                return end(transaction, registry, &store_name, &id, EndedBy::Input, reason);
            } else {
                push.schema = SchemaProgress::Proposed { schema: schema.clone() };
                push.state = PushState::Running(Phase::Schema);
            }
            transaction.put(&place, push)?;
            step(transaction, registry, &store_name)?;
            Ok((*transaction.require(&place)?).clone())
        })
        .await
    }

    /// Completes a push's artifact: its parts have arrived and were checked, and this is its manifest. From now on the
    /// client is not needed any more.
    ///
    /// # Errors
    /// An unknown push, one that does not upload, a manifest that contradicts store or push.
    pub async fn complete_push(
        &self,
        push: &str,
        manifest: Manifest,
        manifest_sha256: String,
    ) -> Result<Push, OperationError> {
        let id = push.to_owned();
        self.write(move |transaction, registry| {
            let (store_name, place, mut push) = push_of(transaction, &id)?;
            if push.completed_at.is_some() || push.status().is_final() {
                return already_complete(transaction, &store_name, &id, push, &manifest);
            }
            let SchemaProgress::Known { number: schema, .. } = push.schema else {
                return Err(wrong_phase(&id, &push, "upload"));
            };
            if push.state != PushState::Running(Phase::Upload) {
                return Err(wrong_phase(&id, &push, "upload"));
            }
            let (store_place, store) = store_of(transaction, &store_name)?;
            let registered = store_place.child::<RegisteredSchema>(schema).map_err(TransactionError::Path)?;
            let registered = transaction.require(&registered)?;
            check_manifest(&id, &store, &push, &registered.schema, &manifest)?;
            keep_artifact(transaction, &manifest.artifact_id)?;
            let now = transaction.now();
            let version = store_place.child::<Version>(push.version).map_err(TransactionError::Path)?;
            transaction.update(&version, |version| {
                version.data = VersionData::Complete {
                    artifact: manifest.artifact_id.clone(),
                    manifest_sha256: manifest_sha256.clone(),
                    schema,
                    record_count: manifest.record_count,
                    bytes: manifest.bytes,
                    at: now,
                };
            })?;
            let details = version.child::<VersionManifest>(VersionManifest::ID).map_err(TransactionError::Path)?;
            transaction.put(&details, VersionManifest { manifest: manifest.clone() })?;
            push.completed_at = Some(now);
            push.state = PushState::Running(Phase::Regions);
            transaction.put(&place, push)?;
            step(transaction, registry, &store_name)?;
            Ok((*transaction.require(&place)?).clone())
        })
        .await
    }

    /// Ends a push because its client says that it can't go on: its input is bad, or something failed on its side.
    ///
    /// # Errors
    /// An unknown push, one that has ended otherwise or whose artifact is complete.
    pub async fn fail_push(&self, push: &str, by: EndedBy, message: &str) -> Result<Push, OperationError> {
        let (id, message) = (push.to_owned(), bounded(message));
        self.write(move |transaction, registry| {
            let (store_name, _, push) = push_of(transaction, &id)?;
            if push.status().is_final() {
                return Ok(push);
            }
            if !push.needs_client() {
                return Err(wrong_phase(&id, &push, "build or upload"));
            }
            end(transaction, registry, &store_name, &id, by, message.clone())
        })
        .await
    }
}

/// The schema of the newest version that is served: what a push replaces. One that was registered and never served binds
/// nobody.
fn served_schema(
    transaction: &Transaction,
    store: &Ref<Store>,
    known: &[(Ref<RegisteredSchema>, Arc<RegisteredSchema>)],
) -> Result<Option<Schema>, TransactionError> {
    let versions = transaction.children::<Version>(store)?;
    let served = versions.iter().rev().find_map(|(_, version)| match (&version.status, &version.data) {
        (VersionStatus::Online | VersionStatus::PartiallyOnline, VersionData::Complete { schema, .. }) => Some(*schema),
        _ => None,
    });
    let of_number = known.iter().find(|(number, _)| Some(number.id()) == served);
    Ok(of_number.map(|(_, registered)| registered.schema.clone()))
}

/// What of a schema does not fit the one before it, if anything.
fn misfit(before: &Schema, schema: &Schema) -> Option<String> {
    let unsafe_changes: Vec<String> = incompatibilities(before, schema).iter().map(ToString::to_string).collect();
    (!unsafe_changes.is_empty()).then(|| format!("the schema does not fit the store's: {}", unsafe_changes.join("; ")))
}

/// Why a schema that the store does not know can't be registered by a push, if it can't.
fn objection(store: &Store, last: Option<&Schema>, schema: &Schema) -> Option<String> {
    let Some(last) = last else {
        return (!store.auto_register_schema).then(|| {
            "the store has no schema, and lets no push register one; register it with `tidegate store schema add`"
                .to_owned()
        });
    };
    if store.schema_mode == SchemaMode::Compatible
        && let Some(reason) = misfit(last, schema)
    {
        return Some(reason);
    }
    if store.auto_register_schema {
        return None;
    }
    let changes: Vec<String> =
        tidegate_dataset::schema::differences(last, schema).iter().map(ToString::to_string).collect();
    Some(format!("the schema is new, and the store lets no push register one: {}", changes.join("; ")))
}

fn check_manifest(
    id: &str,
    store: &Store,
    push: &Push,
    schema: &Schema,
    manifest: &Manifest,
) -> Result<(), OperationError> {
    let refused = |why: String| Err(OperationError::ManifestRefused { push: id.to_owned(), why });
    if manifest.key_columns != store.key_columns {
        return refused(format!(
            "its key is {}, and the store's is {}",
            manifest.key_columns.join(", "),
            store.key_columns.join(", ")
        ));
    }
    if manifest.partition_count != store.partitions || manifest.parts.len() != store.partitions as usize {
        return refused(format!(
            "it has {} parts of {} partitions, and the store has {}",
            manifest.parts.len(),
            manifest.partition_count,
            store.partitions
        ));
    }
    if manifest.schema != *schema {
        return refused("its schema is not the one that was registered for this push".to_owned());
    }
    let rows: u64 = manifest.parts.iter().map(|part| part.rows).fold(0, u64::saturating_add);
    if rows != manifest.record_count {
        return refused(format!("its parts have {rows} rows, and it says {} records", manifest.record_count));
    }
    if manifest.record_count == 0 && !store.allow_empty && !push.allow_empty {
        return refused("it has no records, and neither the store nor the push allows that".to_owned());
    }
    Ok(())
}

/// The same completion again is the same; another one is refused.
fn already_complete(
    transaction: &Transaction,
    store: &str,
    id: &str,
    push: Push,
    manifest: &Manifest,
) -> Result<Push, OperationError> {
    if push.completed_at.is_none() {
        return Ok(push);
    }
    let (place, _) = store_of(transaction, store)?;
    let version = place.child::<Version>(push.version).map_err(TransactionError::Path)?;
    let version = transaction.require(&version)?;
    let artifact = match &version.data {
        VersionData::Complete { artifact, .. } | VersionData::Gone { artifact: Some(artifact), .. } => Some(artifact),
        VersionData::Awaited | VersionData::Gone { artifact: None, .. } => None,
    };
    match artifact {
        Some(artifact) if *artifact != manifest.artifact_id => Err(OperationError::ManifestRefused {
            push: id.to_owned(),
            why: format!("the push was completed with artifact {artifact}, not {}", manifest.artifact_id),
        }),
        _ => Ok(push),
    }
}

fn end(
    transaction: &mut Transaction,
    registry: &tidegate_lifecycle::Registry,
    store: &str,
    id: &str,
    by: EndedBy,
    reason: String,
) -> Result<Push, OperationError> {
    finish_push(transaction, registry, store, id, PushStatus::Error, by, reason)?;
    step(transaction, registry, store)?;
    Ok(push_of(transaction, id)?.2)
}

fn wrong_phase(id: &str, push: &Push, needed: &'static str) -> OperationError {
    if let Some(end) = push.end() {
        return OperationError::PushEnded { push: id.to_owned(), status: end.status, reason: end.reason.clone() };
    }
    let later = push.needs_client();
    OperationError::WrongPhase { push: id.to_owned(), phase: phase_word(push).to_owned(), needed, later }
}

fn bounded(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let mut end = TEXT_BYTES_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}
