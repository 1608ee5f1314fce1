//! What hooks are told: everything that is known about the push, its store and its regions, at the moment of the call.

use std::collections::BTreeMap;
use std::error::Error;

use tidegate_api::manifest::Manifest;
use tidegate_lifecycle::{
    CallRequest, CallState, Context, ContextSource, FieldStatistics, Function, GoldenValue, Mode, Outcomes,
    RegionPushStatus, RegionStatus, Registry, Sample, SampledRecord, VersionStatistics,
};
use tidegate_state::{Path, Ref, Snapshot, Timestamp, TransactionError};

use crate::controller::{PushView, RegionFacts, gates_of, gather, gather_registration};
use crate::entities::{
    Availability, Call, Gate, Milestone, Phase, Push, PushState, RegionPush, RegionState, RegistrationCall,
    RegistrationGate, SchemaProgress, SchemaRegistration, Store, Version, VersionManifest,
};
use crate::job_status::region_job_status;

/// Says what calls of pushes' gates are about.
#[derive(Debug, Clone, Copy, Default)]
pub struct PushContexts;

impl ContextSource for PushContexts {
    fn context(
        &self,
        snapshot: &Snapshot,
        call: &Path,
        request: &CallRequest,
        now: Timestamp,
    ) -> Result<Option<Context>, Box<dyn Error + Send + Sync>> {
        Ok(call_context(snapshot, call, request, now)?)
    }

    fn overrides(
        &self,
        snapshot: &Snapshot,
        store: &str,
    ) -> Result<BTreeMap<String, String>, Box<dyn Error + Send + Sync>> {
        let store = Ref::<Store>::root(store)?;
        Ok(snapshot.get(&store)?.map(|store| store.hook_overrides.clone()).unwrap_or_default())
    }
}

/// Says what calls of direct registrations' gates are about.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegistrationContexts;

impl ContextSource for RegistrationContexts {
    fn context(
        &self,
        snapshot: &Snapshot,
        call: &Path,
        request: &CallRequest,
        _now: Timestamp,
    ) -> Result<Option<Context>, Box<dyn Error + Send + Sync>> {
        Ok(registration_context(snapshot, call, request)?)
    }

    fn overrides(
        &self,
        snapshot: &Snapshot,
        store: &str,
    ) -> Result<BTreeMap<String, String>, Box<dyn Error + Send + Sync>> {
        PushContexts.overrides(snapshot, store)
    }
}

fn registration_context(
    snapshot: &Snapshot,
    call: &Path,
    request: &CallRequest,
) -> Result<Option<Context>, TransactionError> {
    let call: Ref<RegistrationCall> = Ref::from_path(call)?;
    let gate: Ref<RegistrationGate> = call.parent();
    let place: Ref<SchemaRegistration> = gate.parent();
    let (Some(asked), Some(gate)) = (snapshot.get(&call)?, snapshot.get(&gate)?) else { return Ok(None) };
    let CallState::Asked { request: current } = &asked.state else { return Ok(None) };
    if current != request || gate.state.is_decided() {
        return Ok(None);
    }
    let Some(view) = gather_registration(snapshot, &Registry::empty(), &place)? else { return Ok(None) };
    let json = |schema| serde_json::to_value(schema).ok();
    Ok(Some(Context {
        pushed_by: Some(view.registration.by.clone()),
        schema: json(&view.registration.schema),
        earlier_schemas: view.earlier().filter_map(json).collect(),
        ..Context::new(request.function, view.store.clone())
    }))
}

/// The context of a call, or none if nobody waits for its answer any more: the gate has opened or refused, the push has
/// ended or is going back, or the call is gone. An observed call and one that decides nothing are never in vain.
///
/// # Errors
/// An entity that can't be read.
pub fn call_context(
    snapshot: &Snapshot,
    call: &Path,
    request: &CallRequest,
    now: Timestamp,
) -> Result<Option<Context>, TransactionError> {
    let call: Ref<Call> = Ref::from_path(call)?;
    let gate: Ref<Gate> = call.parent();
    let push: Ref<Push> = gate.parent();
    let store: Ref<Store> = push.parent();
    let (Some(asked), Some(gate_value), Some(push_value)) =
        (snapshot.get(&call)?, snapshot.get(&gate)?, snapshot.get(&push)?)
    else {
        return Ok(None);
    };
    let CallState::Asked { request: current } = &asked.state else { return Ok(None) };
    if current != request || !is_awaited(gate_value, push_value, request) {
        return Ok(None);
    }
    // Which hooks take part does not matter here, so an empty registry will do.
    let Some(view) = gather(snapshot, &Registry::empty(), &store.id())? else { return Ok(None) };
    let mut context = Context::new(request.function, store.id());
    tell_push(&mut context, &push.id(), push_value, request, &view);
    tell_regions(&mut context, snapshot, &store, &push, push_value, &view, now)?;
    tell_schemas(&mut context, push_value, request.function, &view);
    context.statistics = statistics(snapshot, &store, push_value.version)?;
    Ok(Some(context))
}

fn is_awaited(gate: &Gate, push: &Push, request: &CallRequest) -> bool {
    if request.mode == Mode::Observe || request.function.outcomes() == Outcomes::None {
        return true;
    }
    let late =
        request.region.as_ref().and_then(|region| push.regions.get(region)).is_some_and(RegionPush::is_catching_up);
    let goes_on = match &push.state {
        PushState::Queued | PushState::Running(Phase::GoingBack(_)) => false,
        PushState::Running(_) => true,
        PushState::Ended { .. } => late,
    };
    goes_on && !gate.state.is_decided()
}

fn tell_push(context: &mut Context, id: &str, push: &Push, request: &CallRequest, view: &PushView) {
    context.push = Some(id.to_owned());
    context.pushed_by = Some(push.pushed_by.clone());
    context.attributes = push.attributes.clone();
    context.push_started_at = push.started_at;
    context.push_status = push.status().word().to_owned();
    if let Some(end) = push.end() {
        context.ended_by = end.by.map(|by| by.word().to_owned());
        context.push_reason = Some(end.reason.clone());
    }
    context.version = Some(push.version);
    context.region = request.region.clone();
    context.previous_version = match &request.region {
        Some(region) => push.regions.get(region).and_then(|part| part.previous),
        None => push.regions.values().filter_map(|part| part.previous).max(),
    };
    context.region_limit_ms = Some(view.store.limits.region_ms);
}

fn tell_regions(
    context: &mut Context,
    snapshot: &Snapshot,
    store: &Ref<Store>,
    push: &Ref<Push>,
    push_value: &Push,
    view: &PushView,
    now: Timestamp,
) -> Result<(), TransactionError> {
    let gates = gates_of(snapshot, push)?;
    let mut opened: BTreeMap<String, BTreeMap<String, Timestamp>> = BTreeMap::new();
    for gate in gates.values() {
        let state = &gate.gate.state;
        if let (Some(region), Some(at)) = (&state.region, state.opened_at) {
            opened.entry(region.clone()).or_default().insert(state.function.short_name().to_owned(), at);
        }
    }
    let mut known: BTreeMap<u64, Option<VersionStatistics>> = BTreeMap::new();
    for (name, facts) in &view.regions {
        let report = facts.current_report(&view.store);
        let serving = report.map_or_else(|| facts.serve(), |report| report.serving);
        let served = match serving {
            Some(version) => match known.get(&version) {
                Some(statistics) => statistics.clone(),
                None => {
                    let statistics = statistics(snapshot, store, version)?;
                    known.insert(version, statistics.clone());
                    statistics
                }
            },
            None => None,
        };
        let status = RegionStatus {
            serving,
            serving_since: report.and_then(|report| report.serving_since),
            statistics: served,
            gates_opened_at: opened.remove(name).unwrap_or_default(),
            ..region_status(view, push_value, name, facts, now)
        };
        context.regions.insert(name.clone(), status);
    }
    Ok(())
}

fn region_status(view: &PushView, push: &Push, name: &str, facts: &RegionFacts, now: Timestamp) -> RegionStatus {
    let unavailable = match &facts.region.availability {
        Availability::Available => None,
        Availability::Unavailable { reason, by, .. } => Some(format!("{reason} (marked by {by})")),
    };
    let part = push.regions.get(name);
    RegionStatus {
        status: part.map_or(RegionPushStatus::LeftOut, |part| push_status(&part.state)),
        job_status: part.map_or("", |part| region_job_status(view, push.version, name, part, now).word()).to_owned(),
        reached_at: part.map(reached_at).unwrap_or_default(),
        available: unavailable.is_none(),
        unavailable_reason: unavailable,
        error: part.and_then(|part| match &part.state {
            RegionState::Failed(failure) => Some(format!("{}: {}", failure.kind.words(), failure.message)),
            _ => None,
        }),
        ..RegionStatus::default()
    }
}

fn push_status(state: &RegionState) -> RegionPushStatus {
    match state {
        RegionState::Waiting => RegionPushStatus::NotCreated,
        RegionState::Ingesting { .. } => RegionPushStatus::Ingesting,
        RegionState::Ingested { .. } => RegionPushStatus::Ingested,
        RegionState::Swapping { .. } => RegionPushStatus::Swapping,
        RegionState::Baking { .. } => RegionPushStatus::Swapped,
        RegionState::Done { .. } => RegionPushStatus::Done,
        RegionState::Failed(_) => RegionPushStatus::Failed,
        RegionState::LeftOut { .. } => RegionPushStatus::LeftOut,
        RegionState::GoingBack { .. } | RegionState::Stopped { .. } => RegionPushStatus::Stopped,
    }
}

/// When each status was first reached, under the names that hooks know.
fn reached_at(part: &RegionPush) -> BTreeMap<String, Timestamp> {
    let name = |milestone: Milestone| match milestone {
        Milestone::Assigned => Some(RegionPushStatus::Ingesting),
        Milestone::Ingested => Some(RegionPushStatus::Ingested),
        Milestone::SwapTold => Some(RegionPushStatus::Swapping),
        Milestone::Serving => Some(RegionPushStatus::Swapped),
        Milestone::Done => Some(RegionPushStatus::Done),
        Milestone::Failed => Some(RegionPushStatus::Failed),
        Milestone::Stopped => Some(RegionPushStatus::Stopped),
        Milestone::Progress | Milestone::EmbeddedAllowed | Milestone::BackConfirmed => None,
    };
    let named = part.reached.iter().filter_map(|(milestone, at)| Some((name(*milestone)?.name().to_owned(), *at)));
    named.collect()
}

fn tell_schemas(context: &mut Context, push: &Push, function: Function, view: &PushView) {
    if !matches!(function, Function::PreSchemaRegistration | Function::PostSchemaRegistration) {
        return;
    }
    let (schema, before) = match &push.schema {
        SchemaProgress::Unknown => return,
        SchemaProgress::Proposed { schema } => (Some(schema), u64::MAX),
        SchemaProgress::Known { number, .. } => (view.schemas.get(number).map(|known| &known.schema), *number),
    };
    let json = |schema| serde_json::to_value(schema).ok();
    context.schema = schema.and_then(json);
    let earlier = view.schemas.iter().filter(|(number, _)| **number < before);
    context.earlier_schemas = earlier.filter_map(|(_, known)| json(&known.schema)).collect();
}

fn statistics(
    snapshot: &Snapshot,
    store: &Ref<Store>,
    version: u64,
) -> Result<Option<VersionStatistics>, TransactionError> {
    let manifest = store.child::<Version>(version)?.child::<VersionManifest>(VersionManifest::ID)?;
    Ok(snapshot.get(&manifest)?.map(|manifest| version_statistics(&manifest.manifest)))
}

/// What a manifest says about its data, in the form that hooks get.
#[must_use]
pub fn version_statistics(manifest: &Manifest) -> VersionStatistics {
    let fields = manifest.statistics.iter().map(|field| {
        let vectors = field.vectors.as_ref();
        let statistics = FieldStatistics {
            count: field.count,
            nulls: field.nulls,
            distinct: field.distinct,
            nans: field.nans,
            mean_norm: vectors.and_then(|vectors| vectors.mean_norm),
            vectors_with_nan: vectors.map_or(0, |vectors| vectors.with_nan),
        };
        (field.name.clone(), statistics)
    });
    let records = manifest.sample.records.iter().map(|record| SampledRecord {
        hash: record.hash.clone(),
        key: record.key.clone(),
        value_digest: record.value_digest.clone(),
    });
    let golden = manifest
        .golden
        .iter()
        .map(|golden| (golden.key.clone(), GoldenValue { value_digest: golden.value_digest.clone() }));
    VersionStatistics {
        records: manifest.record_count,
        bytes: manifest.data_bytes,
        duplicates: manifest.duplicate_count,
        fields: fields.collect(),
        sample: Sample { limit: u64::from(manifest.sample.limit), records: records.collect() },
        golden: golden.collect(),
    }
}
