//! Registering a schema directly, without a push.

use std::time::Duration;

use tidegate_api::manifest::Schema;
use tidegate_dataset::schema::{incompatibilities, validate};
use tidegate_state::{FeedItem, Ref, Snapshot, Transaction, TransactionError};
use uuid::Uuid;

use super::{OperationError, Operations, store_of};
use crate::controller::{apply_registration, gather_registration, next_registration};
use crate::entities::{RegisteredSchema, RegistrationState, SchemaMode, SchemaRegistration, Store};

/// Where an attempt to register a schema has come to within its transaction.
enum Begun {
    Registered(u64, RegisteredSchema),
    Refused {
        hook: Option<String>,
        reason: String,
    },
    /// Its hooks are being asked.
    Asked(Ref<SchemaRegistration>),
}

impl Operations {
    /// Registers a schema of a store, or finds it, once the hooks of `pre_schema_registration` have let it. Asking again
    /// while they are asked waits for the same answer.
    ///
    /// # Errors
    /// An unknown store, a schema that is none or does not fit those that are there, a hook that refuses, and hooks that
    /// have not answered within `patience` ([`OperationError::is_retryable`]): they are still asked then.
    pub async fn add_schema(
        &self,
        store: &str,
        schema: Schema,
        by: &str,
        patience: Duration,
    ) -> Result<(u64, RegisteredSchema), OperationError> {
        let mut feed = self.state.changes(None);
        let (name, wanted, by) = (store.to_owned(), schema.clone(), by.to_owned());
        let begun = self.commit(move |transaction, registry| {
            let (place, settings) = store_of(transaction, &name)?;
            validate(&wanted, &settings.key_columns)
                .map_err(|error| OperationError::Invalid { what: "the schema".to_owned(), why: error.to_string() })?;
            if let Some((number, known)) = find(&transaction.children::<RegisteredSchema>(&place)?, &wanted) {
                return Ok(Begun::Registered(number, known));
            }
            check_fits(transaction, &place, &settings, &wanted)?;
            let registration = place.child::<SchemaRegistration>(id_of(&wanted)).map_err(TransactionError::Path)?;
            let there = transaction.get(&registration)?;
            // One that was refused is about to go; it is asked anew.
            if there.as_ref().is_some_and(|there| matches!(there.state, RegistrationState::Refused { .. })) {
                transaction.delete(&registration)?;
            }
            if !transaction.contains(registration.path()) {
                let at = transaction.now();
                let asked =
                    SchemaRegistration { schema: wanted.clone(), by: by.clone(), at, state: RegistrationState::Asked };
                transaction.create(&registration, asked)?;
            }
            let Some(view) = gather_registration(transaction, registry, &registration)? else {
                return Err(OperationError::Fault("a registration vanished within its transaction".to_owned()));
            };
            let plan = next_registration(&view, transaction.now());
            let begun = match plan.view.as_ref().map(|view| (&view.registration.state, view)) {
                Some((RegistrationState::Registered { number }, view)) => match view.schemas.get(number) {
                    Some(known) => Begun::Registered(*number, known.clone()),
                    None => Begun::Asked(registration.clone()),
                },
                Some((RegistrationState::Refused { hook, reason }, _)) => {
                    Begun::Refused { hook: hook.clone(), reason: reason.clone() }
                }
                Some((RegistrationState::Asked, _)) | None => Begun::Asked(registration.clone()),
            };
            apply_registration(transaction, &registration, plan)?;
            Ok(begun)
        });
        let begun = begun.await?;
        let place = match begun.value {
            Begun::Registered(number, known) => return Ok((number, known)),
            Begun::Refused { hook, reason } => return Err(refused(store, hook, reason)),
            Begun::Asked(place) => place,
        };
        let decided = async {
            while let Some(item) = feed.next().await {
                let snapshot = match item {
                    FeedItem::Snapshot(snapshot) => snapshot,
                    FeedItem::Transaction(applied) => applied.snapshot.clone(),
                };
                // What became of an earlier attempt is no answer to this one.
                if snapshot.revision() >= begun.revision
                    && let Some(outcome) = outcome(&snapshot, &place, &schema, store)
                {
                    return Some(outcome);
                }
            }
            None
        };
        match tokio::time::timeout(patience, decided).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(OperationError::Unavailable("this server is stopping".to_owned())),
            Err(_) => Err(OperationError::Unavailable(
                "the hooks that are asked about the schema have not answered yet; they are still asked".to_owned(),
            )),
        }
    }
}

/// What became of a registration, as far as it is decided. It goes right after that, but no revision is passed over.
fn outcome(
    snapshot: &Snapshot,
    place: &Ref<SchemaRegistration>,
    schema: &Schema,
    store: &str,
) -> Option<Result<(u64, RegisteredSchema), OperationError>> {
    match snapshot.get(place).ok()?.map(|registration| &registration.state) {
        Some(RegistrationState::Refused { hook, reason }) => Some(Err(refused(store, hook.clone(), reason.clone()))),
        Some(RegistrationState::Asked) => None,
        Some(RegistrationState::Registered { .. }) | None => {
            let store: Ref<Store> = place.parent();
            let mut known = snapshot.children::<RegisteredSchema>(&store).filter_map(Result::ok);
            known.find(|(_, known)| known.schema == *schema).map(|(number, known)| Ok((number.id(), known.clone())))
        }
    }
}

fn refused(store: &str, hook: Option<String>, reason: String) -> OperationError {
    match hook {
        Some(hook) => OperationError::SchemaRefused { store: store.to_owned(), hook, reason },
        None => OperationError::SchemaIncompatible { store: store.to_owned(), differences: vec![reason] },
    }
}

fn find(
    known: &[(Ref<RegisteredSchema>, std::sync::Arc<RegisteredSchema>)],
    schema: &Schema,
) -> Option<(u64, RegisteredSchema)> {
    known.iter().find(|(_, known)| known.schema == *schema).map(|(number, known)| (number.id(), (**known).clone()))
}

fn check_fits(
    transaction: &Transaction,
    place: &Ref<Store>,
    settings: &Store,
    schema: &Schema,
) -> Result<(), OperationError> {
    let known = transaction.children::<RegisteredSchema>(place)?;
    let Some((_, last)) = known.last().filter(|_| settings.schema_mode == SchemaMode::Compatible) else {
        return Ok(());
    };
    let differences: Vec<String> = incompatibilities(&last.schema, schema).iter().map(ToString::to_string).collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(OperationError::SchemaIncompatible { store: place.id(), differences })
}

/// The id that a schema's registration has: the same for the same schema.
fn id_of(schema: &Schema) -> String {
    let text = serde_json::to_string(schema).unwrap_or_default();
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).to_string()
}
