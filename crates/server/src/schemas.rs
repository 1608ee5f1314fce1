//! Registering a schema directly, without a push.
//!
//! Where a hook takes part in `pre_schema_registration`, a push is the way: its gate asks the
//! hook and keeps the answer. A registration that would pass such a gate by is refused.

use axum::http::StatusCode;
use tidegate_api::manifest::Schema;
use tidegate_api::{ErrorBody, code};
use tidegate_dataset::schema::{incompatibilities, validate};
use tidegate_lifecycle::{Function, HooksConfiguration, Registry};
use tidegate_rollout::OperationError;
use tidegate_rollout::entities::{RegisteredSchema, SchemaMode, Store};
use tidegate_state::{Ref, Transaction, TransactionError};

use crate::app::App;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::Actor;

/// What came of it, within the transaction.
enum Registration {
    Registered(u64, RegisteredSchema),
    Gated(Vec<String>),
}

/// Registers a schema, or finds it. Its number, and what was registered.
pub(crate) async fn register(
    app: &App,
    store: &str,
    schema: Schema,
    actor: &Actor,
) -> ApiResult<(u64, RegisteredSchema)> {
    let registry = app.registry();
    let (name, by) = (store.to_owned(), actor.name.clone());
    let beside = actor.clone();
    let committed = app
        .state()
        .transaction()
        .attributes(actor.attributes())
        .write(move |transaction| {
            let registration = attempt(transaction, &registry, &name, &schema, &by)?;
            if matches!(registration, Registration::Registered(..)) {
                beside.write_beside(transaction)?;
            }
            Ok::<_, OperationError>(registration)
        })
        .await
        .map_err(OperationError::from)?;
    match committed.value {
        Registration::Registered(number, schema) => Ok((number, schema)),
        Registration::Gated(hooks) => Err(ApiError::new(
            StatusCode::CONFLICT,
            ErrorBody::new(
                code::REFUSED,
                "The schema was not registered.",
                format!(
                    "Before a schema of store `{store}` is registered, {} has to be asked, and \
                     that is done for pushes only.",
                    hooks.join(", ")
                ),
                NOTHING_CHANGED,
                "Push data that has this schema: the push registers it once its gate has opened.",
            ),
        )),
    }
}

fn attempt(
    transaction: &mut Transaction,
    registry: &Registry,
    name: &str,
    schema: &Schema,
    by: &str,
) -> Result<Registration, OperationError> {
    let unknown = || OperationError::StoreUnknown { store: name.to_owned() };
    let place: Ref<Store> = Ref::root(name).map_err(|_| unknown())?;
    let store = transaction.get(&place)?.ok_or_else(unknown)?;
    validate(schema, &store.key_columns)
        .map_err(|error| OperationError::Invalid { what: "the schema".to_owned(), why: error.to_string() })?;
    let known = transaction.children::<RegisteredSchema>(&place)?;
    if let Some((number, there)) = known.iter().find(|(_, there)| there.schema == *schema) {
        return Ok(Registration::Registered(number.id(), (**there).clone()));
    }
    if let Some((_, last)) = known.last()
        && store.schema_mode == SchemaMode::Compatible
    {
        let differences: Vec<String> =
            incompatibilities(&last.schema, schema).iter().map(ToString::to_string).collect();
        if !differences.is_empty() {
            return Err(OperationError::SchemaIncompatible { store: name.to_owned(), differences });
        }
    }
    let configuration = transaction.get(&HooksConfiguration::place())?;
    let asked: Vec<String> = configuration
        .map(|configuration| {
            let function = Function::PreSchemaRegistration;
            configuration.effective_hooks(registry, function, &store.hook_overrides)
        })
        .unwrap_or_default()
        .into_iter()
        .map(|hook| hook.name)
        .collect();
    if !asked.is_empty() {
        return Ok(Registration::Gated(asked));
    }
    let number = known.last().map_or(1, |(number, _)| number.id() + 1);
    let registered = RegisteredSchema {
        schema: schema.clone(),
        registered_at: transaction.now(),
        registered_by: by.to_owned(),
        push: None,
    };
    let child = place.child(number).map_err(TransactionError::Path)?;
    transaction.create(&child, registered.clone())?;
    Ok(Registration::Registered(number, registered))
}
