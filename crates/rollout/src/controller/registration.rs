//! A schema that is registered without a push: asked, registered, told, forgotten. Pure, as [`super::next`] is.
//!
//! ```text
//! asked ──pre-schema opens──→ registered ──post-schema told──→ gone
//!   └─────pre-schema says Abort──→ refused ──────────────────→ gone
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_api::manifest::Schema;
use tidegate_dataset::schema::incompatibilities;
use tidegate_lifecycle::{CallState, Function, GateState, GateStep, Registry, next_round};
use tidegate_state::{Ref, Timestamp, Transaction, TransactionError};

use super::gather::{Source, hook_settings};
use super::view::HookSettings;
use crate::entities::{
    Gate, RegisteredSchema, RegistrationCall, RegistrationGate, RegistrationState, SchemaMode, SchemaRegistration,
    Store,
};

/// A step of a gate's is followed at most so often in a row.
const STEPS_MAX: usize = 8;

/// All that is known about a direct registration.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistrationView {
    /// The store's name.
    pub store: String,
    /// It.
    pub registration: SchemaRegistration,
    /// Its gates, with their calls by hook.
    pub gates: BTreeMap<Function, (GateState, BTreeMap<String, CallState>)>,
    /// The store's schemas, by number.
    pub schemas: BTreeMap<u64, RegisteredSchema>,
    /// Whether a schema has to fit the one before it.
    pub has_to_fit: bool,
    /// The hooks that take part.
    pub hooks: HookSettings,
}

/// What is to be done for a direct registration.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistrationPlan {
    /// How it stands after that. None: everyone was told, and it goes.
    pub view: Option<RegistrationView>,
    /// When to look again.
    pub wake_at: Option<Timestamp>,
}

/// The next step of a direct registration. The same view and time give the same plan.
#[must_use]
pub fn next_registration(view: &RegistrationView, now: Timestamp) -> RegistrationPlan {
    let mut view = view.clone();
    let mut wake_at = None;
    match view.registration.state.clone() {
        RegistrationState::Asked => match ask(&mut view, Function::PreSchemaRegistration, now) {
            GateStep::Open => view.registration.state = register(&mut view, now),
            GateStep::Abort { hook, reason } | GateStep::Rollback { hook, reason } => {
                view.registration.state = RegistrationState::Refused { hook: Some(hook), reason };
            }
            GateStep::Waiting { until, .. } => wake_at = until,
            GateStep::Ask(_) => wake_at = Some(now.after(Duration::from_secs(1))),
        },
        RegistrationState::Registered { .. } => match ask(&mut view, Function::PostSchemaRegistration, now) {
            GateStep::Waiting { until, .. } => wake_at = until,
            GateStep::Ask(_) => wake_at = Some(now.after(Duration::from_secs(1))),
            GateStep::Open | GateStep::Abort { .. } | GateStep::Rollback { .. } => {
                return RegistrationPlan { view: None, wake_at: None };
            }
        },
        RegistrationState::Refused { .. } => return RegistrationPlan { view: None, wake_at: None },
    }
    RegistrationPlan { view: Some(view), wake_at }
}

/// Asks a function's hooks as far as it is due.
fn ask(view: &mut RegistrationView, function: Function, now: Timestamp) -> GateStep {
    let store = view.store.clone();
    let (state, calls) =
        view.gates.entry(function).or_insert_with(|| (GateState::new(function, store, None), BTreeMap::new()));
    for call in calls.values() {
        if let CallState::Answered { request, answer } = call {
            state.record(request, answer);
        }
    }
    let mut last = GateStep::Ask(Vec::new());
    for _ in 0..STEPS_MAX {
        last = next_round(state, view.hooks.of(function), now, view.hooks.wait_interval);
        state.apply(&last, now);
        let GateStep::Ask(requests) = &last else { break };
        for request in requests {
            calls.insert(request.hook.clone(), CallState::Asked { request: request.clone() });
        }
    }
    last
}

/// Registers the schema, or finds it: someone may have registered the very same one meanwhile, or one that it no longer
/// fits.
fn register(view: &mut RegistrationView, now: Timestamp) -> RegistrationState {
    let wanted = &view.registration.schema;
    if let Some((number, _)) = view.schemas.iter().find(|(_, known)| known.schema == *wanted) {
        return RegistrationState::Registered { number: *number };
    }
    let last = view.schemas.last_key_value();
    if let Some((_, last)) = last.filter(|_| view.has_to_fit) {
        let differences: Vec<String> =
            incompatibilities(&last.schema, wanted).iter().map(ToString::to_string).collect();
        if !differences.is_empty() {
            return RegistrationState::Refused { hook: None, reason: differences.join("; ") };
        }
    }
    let number = last.map_or(0, |(number, _)| *number) + 1;
    let registered = RegisteredSchema {
        schema: wanted.clone(),
        registered_at: now,
        registered_by: view.registration.by.clone(),
        push: None,
    };
    view.schemas.insert(number, registered);
    RegistrationState::Registered { number }
}

impl RegistrationView {
    /// The schema's number, once it is registered.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match self.registration.state {
            RegistrationState::Registered { number } => Some(number),
            RegistrationState::Asked | RegistrationState::Refused { .. } => None,
        }
    }

    /// The schemas that were there before this one, oldest first.
    pub fn earlier(&self) -> impl Iterator<Item = &Schema> {
        let before = self.number().unwrap_or(u64::MAX);
        self.schemas.iter().filter(move |(number, _)| **number < before).map(|(_, known)| &known.schema)
    }
}

/// Everything about a direct registration; none if there is no such one.
///
/// # Errors
/// An entity that can't be read.
pub fn gather_registration(
    source: &impl Source,
    registry: &Registry,
    place: &Ref<SchemaRegistration>,
) -> Result<Option<RegistrationView>, TransactionError> {
    let store: Ref<Store> = place.parent();
    let (Some(settings), Some(registration)) = (source.get(&store)?, source.get(place)?) else { return Ok(None) };
    let mut gates = BTreeMap::new();
    for (gate, value) in source.children::<RegistrationGate>(place)? {
        let calls = source.children::<RegistrationCall>(&gate)?;
        let calls = calls.into_iter().map(|(call, value)| (call.id(), value.state.clone())).collect();
        gates.insert(value.state.function, (value.state.clone(), calls));
    }
    let schemas = source.children::<RegisteredSchema>(&store)?;
    Ok(Some(RegistrationView {
        store: store.id(),
        registration: (*registration).clone(),
        gates,
        schemas: schemas.into_iter().map(|(schema, value)| (schema.id(), (*value).clone())).collect(),
        has_to_fit: settings.schema_mode == SchemaMode::Compatible,
        hooks: hook_settings(source, registry, &settings)?,
    }))
}

/// Carries a plan out within a transaction. Writing what is there already changes nothing.
///
/// # Errors
/// A write that the transaction refuses.
pub fn apply_registration(
    transaction: &mut Transaction,
    place: &Ref<SchemaRegistration>,
    plan: RegistrationPlan,
) -> Result<(), TransactionError> {
    let Some(view) = plan.view else {
        transaction.delete(place)?;
        return Ok(());
    };
    if let Some(number) = view.number()
        && let Some(registered) = view.schemas.get(&number)
    {
        transaction.put(&place.parent::<Store>().child(number)?, registered.clone())?;
    }
    transaction.put(place, view.registration)?;
    for (function, (state, calls)) in view.gates {
        let gate = place.child::<RegistrationGate>(Gate::id(function, None))?;
        transaction.put(&gate, RegistrationGate { state })?;
        for (hook, state) in calls {
            transaction.put(&gate.child(hook)?, RegistrationCall { state })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidegate_api::manifest::{Field, FieldType};
    use tidegate_lifecycle::{EffectiveHook, Mode, OnFailure, RecordedAnswer, Verdict};

    use super::*;

    fn schema(further: &[&str]) -> Schema {
        let fields = std::iter::once(Field::required("key", FieldType::STRING))
            .chain(further.iter().map(|name| Field::nullable(*name, FieldType::LONG)));
        Schema { fields: fields.collect() }
    }

    fn view(hooked: bool) -> RegistrationView {
        let hook = EffectiveHook { name: "x".into(), mode: Mode::Enforce, on_failure: OnFailure::Wait };
        let functions = [Function::PreSchemaRegistration, Function::PostSchemaRegistration];
        let by_function = functions.into_iter().filter(|_| hooked).map(|function| (function, vec![hook.clone()]));
        let registered = RegisteredSchema {
            schema: schema(&[]),
            registered_at: Timestamp(1),
            registered_by: "ada".into(),
            push: Some("p".into()),
        };
        RegistrationView {
            store: "s".into(),
            registration: SchemaRegistration {
                schema: schema(&["n"]),
                by: "eve".into(),
                at: Timestamp(2),
                state: RegistrationState::Asked,
            },
            gates: BTreeMap::new(),
            schemas: BTreeMap::from([(1, registered)]),
            has_to_fit: true,
            hooks: HookSettings {
                generation: 1,
                wait_interval: Duration::from_secs(60),
                by_function: by_function.collect(),
            },
        }
    }

    /// What the hook says to everything that it is asked.
    fn answer(view: &mut RegistrationView, verdict: Verdict) {
        for (_, calls) in view.gates.values_mut() {
            for call in calls.values_mut() {
                if let CallState::Asked { request } = call.clone() {
                    let answer = RecordedAnswer {
                        verdict,
                        reason: "3 of 2".into(),
                        ask_again_at: None,
                        stops_clock: false,
                        memo: None,
                        failed: None,
                        started_at: Timestamp(3),
                        ended_at: Timestamp(3),
                        server: "server".into(),
                    };
                    *call = CallState::Answered { request, answer };
                }
            }
        }
    }

    fn step(view: &RegistrationView) -> Option<RegistrationView> {
        next_registration(view, Timestamp(4)).view
    }

    #[test]
    fn h16_a_direct_registration_waits_for_its_hooks_and_tells_them() {
        let mut asked = step(&view(true)).unwrap();
        assert_eq!(asked.registration.state, RegistrationState::Asked);
        assert_eq!(asked.schemas.len(), 1, "nothing is registered before the answer");
        assert_eq!(step(&asked), Some(asked.clone()), "it comes to rest");
        answer(&mut asked, Verdict::Proceed);
        let mut registered = step(&asked).unwrap();
        assert_eq!(registered.number(), Some(2));
        assert_eq!(registered.schemas[&2].registered_by, "eve");
        assert_eq!(registered.earlier().count(), 1);
        registered = step(&registered).unwrap();
        answer(&mut registered, Verdict::Proceed);
        assert_eq!(step(&registered), None, "everyone was told");
    }

    #[test]
    fn h16_a_direct_registration_that_a_hook_refuses_leaves_nothing() {
        let mut asked = step(&view(true)).unwrap();
        answer(&mut asked, Verdict::Abort);
        let refused = step(&asked).unwrap();
        let expected = RegistrationState::Refused { hook: Some("x".into()), reason: "3 of 2".into() };
        assert_eq!((&refused.registration.state, refused.schemas.len()), (&expected, 1));
        assert_eq!(step(&refused), None);
    }

    #[test]
    fn what_was_registered_meanwhile_is_found_or_has_to_be_fitted() {
        let mut asked = view(false);
        let same = RegisteredSchema { schema: schema(&["n"]), ..asked.schemas[&1].clone() };
        asked.schemas.insert(2, same);
        assert_eq!(step(&asked).unwrap().number(), Some(2));
        let mut asked = view(false);
        let wider = RegisteredSchema { schema: schema(&["m"]), ..asked.schemas[&1].clone() };
        asked.schemas.insert(2, wider);
        let refused = step(&asked).unwrap();
        assert!(
            matches!(&refused.registration.state,
            RegistrationState::Refused { hook: None, reason } if reason.contains("`m`")),
            "{refused:?}"
        );
    }
}
