//! Ending a push by hand, and opening one of its gates.

use tidegate_lifecycle::{Function, FunctionScope, Outcomes};
use tidegate_state::{Ref, Transaction, TransactionError};

use super::{OperationError, Operations, OperatorAction, check_reason, push_of, step, store_of};
use crate::entities::{
    Gate, IngestionStatus, Kill, Override, Phase, Push, PushState, Region, RegionPush, RegionState, Report,
};

impl Operations {
    /// Kills a push. It reads KILLED when this returns; regions follow when they can.
    ///
    /// # Errors
    /// An unknown push, one that has ended or is going back.
    pub async fn kill_push(&self, push: &str, by: &str, reason: &str) -> Result<Push, OperationError> {
        let (id, by, reason) = (push.to_owned(), by.to_owned(), reason.to_owned());
        self.write(move |transaction, registry| {
            let (store, place, mut push) = push_of(transaction, &id)?;
            refuse_ended(&id, &push)?;
            if matches!(push.state, PushState::Running(Phase::GoingBack(_))) {
                return Err(OperationError::GoingBack { push: id.clone() });
            }
            let at = transaction.now();
            push.kill = Some(Kill { by: by.clone(), reason: reason.clone(), at, superseded_by: None });
            transaction.put(&place, push)?;
            OperatorAction::new(transaction, "kill", &by, &reason).on_store(&store).on_push(&id).keep(transaction)?;
            step(transaction, registry, &store)?;
            Ok((*transaction.require(&place)?).clone())
        })
        .await
    }

    /// Opens one gate whatever its hooks say, and past a freeze. `gate` is a function's short name; its `pre-` may be left
    /// out.
    ///
    /// # Errors
    /// An unknown push, region or gate, one that is decided, a push that has ended, no reason, and for a swap a region that
    /// does not hold the version on enough nodes.
    pub async fn proceed_gate(
        &self,
        push: &str,
        gate: &str,
        region: Option<&str>,
        by: &str,
        reason: &str,
    ) -> Result<Push, OperationError> {
        let (id, gate, region) = (push.to_owned(), gate.to_owned(), region.map(str::to_owned));
        let (by, reason) = (by.to_owned(), reason.to_owned());
        self.write(move |transaction, registry| {
            check_reason(&reason)?;
            let (store, place, mut push) = push_of(transaction, &id)?;
            let late =
                region.as_ref().and_then(|region| push.regions.get(region)).is_some_and(RegionPush::is_catching_up);
            if !late {
                refuse_ended(&id, &push)?;
            }
            if matches!(push.state, PushState::Running(Phase::GoingBack(_))) {
                return Err(OperationError::GoingBack { push: id.clone() });
            }
            let function = function_of(&gate)?;
            check_place(transaction, &push, function, &gate, region.as_deref(), &store)?;
            let gate_id = Gate::id(function, region.as_deref());
            let gate_place = place.child::<Gate>(gate_id.clone()).map_err(TransactionError::Path)?;
            if transaction.get(&gate_place)?.is_some_and(|gate| gate.state.is_decided()) {
                let why = "it has opened or refused already".to_owned();
                return Err(OperationError::GateUnknown { gate: gate_id, why });
            }
            let over = Override { by: by.clone(), reason: reason.clone(), at: transaction.now() };
            push.overrides.insert(gate_id.clone(), over);
            transaction.put(&place, push)?;
            let action = OperatorAction::new(transaction, format!("proceed {gate_id}"), &by, &reason);
            let action = action.on_store(&store).on_push(&id);
            match &region {
                Some(region) => action.in_region(region).keep(transaction)?,
                None => action.keep(transaction)?,
            }
            step(transaction, registry, &store)?;
            Ok((*transaction.require(&place)?).clone())
        })
        .await
    }
}

fn refuse_ended(id: &str, push: &Push) -> Result<(), OperationError> {
    match push.end() {
        Some(end) => {
            Err(OperationError::PushEnded { push: id.to_owned(), status: end.status, reason: end.reason.clone() })
        }
        None => Ok(()),
    }
}

fn function_of(gate: &str) -> Result<Function, OperationError> {
    let function = Function::from_short_name(gate).or_else(|| Function::from_short_name(&format!("pre-{gate}")));
    let can_be_held =
        |function: &Function| function.outcomes() != Outcomes::None && function.scope() != FunctionScope::Update;
    function.filter(can_be_held).ok_or_else(|| {
        let known: Vec<&str> = Function::ALL.iter().filter(|f| can_be_held(f)).map(|f| f.short_name()).collect();
        OperationError::GateUnknown { gate: gate.to_owned(), why: format!("there are {}", known.join(", ")) }
    })
}

/// The gate that `text` names, as `pre-swap@a`: its id.
pub(super) fn gate_of(transaction: &Transaction, text: &str) -> Result<String, OperationError> {
    let (name, region) = match text.split_once('@') {
        Some((name, region)) => (name, Some(region)),
        None => (text, None),
    };
    let function = function_of(name)?;
    let refused = |why: String| Err(OperationError::GateUnknown { gate: text.to_owned(), why });
    match (function.scope() == FunctionScope::Region, region) {
        (true, None) => return refused(format!("name the region too, as {}@REGION", function.short_name())),
        (false, Some(_)) => return refused("it is not a gate of a region".to_owned()),
        (true, Some(region)) => {
            let place = Ref::<Region>::root(region).map_err(TransactionError::Path)?;
            if transaction.get(&place)?.is_none() {
                let known = transaction.roots::<Region>()?.into_iter().map(|(region, _)| region.id()).collect();
                return Err(OperationError::RegionUnknown { region: region.to_owned(), known });
            }
        }
        (false, None) => {}
    }
    Ok(Gate::id(function, region))
}

fn check_place(
    transaction: &Transaction,
    push: &Push,
    function: Function,
    gate: &str,
    region: Option<&str>,
    store: &str,
) -> Result<(), OperationError> {
    let unknown = |why: String| Err(OperationError::GateUnknown { gate: gate.to_owned(), why });
    let region = match (function.scope(), region) {
        (FunctionScope::Region, Some(region)) => region,
        (FunctionScope::Region, None) => return unknown("each region has one: name the region".to_owned()),
        (FunctionScope::Push | FunctionScope::Update, Some(_)) => {
            return unknown("it is a gate of the whole push: name no region".to_owned());
        }
        (FunctionScope::Push | FunctionScope::Update, None) => return Ok(()),
    };
    let Some(part) = push.regions.get(region) else {
        return Err(OperationError::RegionUnknown {
            region: region.to_owned(),
            known: push.regions.keys().cloned().collect(),
        });
    };
    if part.state.is_at_rest() {
        return unknown(format!("region {region} is {}", part.state.word()));
    }
    if function == Function::PreStoreVersionSwap {
        check_data(transaction, push, part.state.clone(), region, store)?;
    }
    Ok(())
}

/// A gate is overridden, and not the data: enough nodes must hold the version now.
fn check_data(
    transaction: &Transaction,
    push: &Push,
    state: RegionState,
    region: &str,
    store: &str,
) -> Result<(), OperationError> {
    let version = push.version;
    let refused = |why: String| Err(OperationError::NotIngested { region: region.to_owned(), version, why });
    if push.completed_at.is_none() {
        return refused("its artifact is not complete".to_owned());
    }
    let (_, settings) = store_of(transaction, store)?;
    let place = Ref::<Region>::root(region).map_err(TransactionError::Path)?;
    let enough = transaction.get(&place)?.map_or(0, |region| region.enough);
    let report = transaction.get(&place.child::<Report>(store).map_err(TransactionError::Path)?)?;
    let held = report
        .as_ref()
        .filter(|report| report.incarnation == settings.incarnation)
        .and_then(|report| report.versions.get(&version).map(|held| (held, &report.lagging_nodes)));
    match held {
        Some((held, _)) if held.status == IngestionStatus::Completed => Ok(()),
        Some((held, lagging)) => refused(format!(
            "{} of the {enough} nodes that are enough hold it{}",
            held.nodes,
            if lagging.is_empty() { String::new() } else { format!("; behind are {}", lagging.join(", ")) }
        )),
        None => refused(format!("it is {}", state.word())),
    }
}
