//! Starting a push, and hearing of its client.

use std::collections::BTreeMap;

use tidegate_state::{Ref, Transaction, TransactionError};

use super::steer::gate_of;
use super::{
    OperationError, Operations, OperatorAction, TEXT_BYTES_MAX, check_name, check_reason, phase_word, push_of, step,
    store_of,
};
use crate::controller::{PushView, Way, gather, way_of_new_push};
use crate::entities::{
    Availability, BuildProgress, Garbage, GarbageState, Kill, Override, Push, PushClient, PushClock, PushName,
    PushState, PushStatus, Region, RegisteredSchema, SchemaProgress, Store, Version, VersionData, VersionManifest,
};

/// A push to be started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StartPush {
    /// Its id, unique over all stores. The same id is the same push.
    pub id: String,
    /// The store.
    pub store: String,
    /// Who pushes.
    pub pushed_by: String,
    /// What the user says about it.
    pub attributes: BTreeMap<String, String>,
    /// Digest of the input, if the client knows it.
    pub input_digest: Option<String>,
    /// Whether this version may be without records, beside what the store allows.
    pub allow_empty: bool,
    /// Release the data of this version again, with nothing to build or send.
    pub from_version: Option<u64>,
    /// Gates to be opened by hand, as `pre-swap@a`, each with the reason: on record from the start.
    pub overrides: BTreeMap<String, String>,
}

/// A push that was started, or was there already.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// The push.
    pub push: Push,
    /// Whether this request created it.
    pub created: bool,
    /// Its store, with everything that its client needs to know.
    pub store: Store,
    /// The newest schema.
    pub schema: Option<(u64, RegisteredSchema)>,
}

impl Operations {
    /// Starts a push, or finds the one that has this id.
    ///
    /// # Errors
    /// An unknown store, an id that is another push's, another push that runs where the store refuses a second one, no
    /// region to push to, and for `from_version` data that is not there.
    pub async fn start_push(&self, request: StartPush) -> Result<Accepted, OperationError> {
        self.write(move |transaction, registry| {
            check_name("push id", &request.id)?;
            check_attributes(&request.attributes)?;
            if let Some(accepted) = found(transaction, &request)? {
                return Ok(accepted);
            }
            let (place, mut store) = store_of(transaction, &request.store)?;
            // An id that is used again after its push was forgotten has an upload of its own.
            keep(transaction, Garbage::upload_entry(&request.id), &request.id)?;
            require_region(transaction)?;
            let view = gather(transaction, registry, &request.store)?
                .ok_or_else(|| OperationError::StoreUnknown { store: request.store.clone() })?;
            let (supersedes, protected) = make_way(transaction, &view, &place, &request)?;
            let number = store.next_version;
            store.next_version += 1;
            transaction.put(&place, store.clone())?;
            let now = transaction.now();
            let mut push = new_push(&request, number, now);
            push.supersedes = supersedes;
            push.protected = protected;
            for (gate, reason) in &request.overrides {
                check_reason(reason)?;
                let gate = gate_of(transaction, gate)?;
                let over = Override { by: request.pushed_by.clone(), reason: reason.clone(), at: now };
                OperatorAction::new(transaction, format!("proceed {gate}"), &request.pushed_by, reason)
                    .on_store(&request.store)
                    .on_push(&request.id)
                    .keep(transaction)?;
                push.overrides.insert(gate, over);
            }
            let mut version = Version::new(request.id.clone(), now);
            if let Some(from) = request.from_version {
                take_data(transaction, &view, from, &place, &mut push, &mut version, number)?;
            }
            let name = Ref::<PushName>::root(request.id.clone()).map_err(TransactionError::Path)?;
            let name_value = PushName { store: request.store.clone(), incarnation: store.incarnation };
            transaction.create(&name, name_value)?;
            transaction.put(&place.child(number).map_err(TransactionError::Path)?, version)?;
            let push_place = place.child::<Push>(request.id.clone()).map_err(TransactionError::Path)?;
            transaction.create(&push_place, push)?;
            step(transaction, registry, &request.store)?;
            let push = (*transaction.require(&push_place)?).clone();
            let schema = newest_schema(transaction, &place)?;
            Ok(Accepted { push, created: true, store, schema })
        })
        .await
    }

    /// Hears of a push's client, and tells it where its push is. A push that has ended only answers.
    ///
    /// # Errors
    /// An unknown push.
    pub async fn heartbeat_push(&self, id: &str, progress: BuildProgress) -> Result<Push, OperationError> {
        let id = id.to_owned();
        self.write(move |transaction, _| {
            let (_, place, push) = push_of(transaction, &id)?;
            if push.needs_client() {
                let client = place.child::<PushClient>(PushClient::ID).map_err(TransactionError::Path)?;
                let heard = PushClient { heard_at: transaction.now(), progress: progress.clone() };
                transaction.put(&client, heard)?;
            }
            Ok(push)
        })
        .await
    }
}

/// The push that has this id already, if it is the same one.
fn found(transaction: &mut Transaction, request: &StartPush) -> Result<Option<Accepted>, OperationError> {
    let name = Ref::<PushName>::root(request.id.clone()).map_err(TransactionError::Path)?;
    let Some(name) = transaction.get(&name)? else { return Ok(None) };
    if name.store != request.store {
        return Err(OperationError::PushIdTaken { push: request.id.clone(), store: name.store.clone() });
    }
    let (_, place_of_push, mut push) = push_of(transaction, &request.id)?;
    if let (Some(first), Some(second)) = (&push.input_digest, &request.input_digest)
        && first != second
    {
        return Err(OperationError::InputDiffers {
            push: request.id.clone(),
            first: first.clone(),
            second: second.clone(),
        });
    }
    let (place, store) = store_of(transaction, &request.store)?;
    if push.needs_client() {
        // A client learns the digest while it reads its input, when the push has long started.
        if push.input_digest.is_none() && request.input_digest.is_some() {
            push.input_digest.clone_from(&request.input_digest);
            transaction.put(&place_of_push, push.clone())?;
        }
        let client = place_of_push.child::<PushClient>(PushClient::ID).map_err(TransactionError::Path)?;
        let progress = transaction.get(&client)?.map(|client| client.progress.clone()).unwrap_or_default();
        transaction.put(&client, PushClient { heard_at: transaction.now(), progress })?;
    }
    let schema = newest_schema(transaction, &place)?;
    Ok(Some(Accepted { push, created: false, store, schema }))
}

fn new_push(request: &StartPush, version: u64, now: tidegate_state::Timestamp) -> Push {
    Push {
        version,
        pushed_by: request.pushed_by.clone(),
        attributes: request.attributes.clone(),
        input_digest: request.input_digest.clone(),
        created_at: now,
        started_at: None,
        state: PushState::Queued,
        clock: PushClock::default(),
        schema: SchemaProgress::Unknown,
        allow_empty: request.allow_empty,
        completed_at: None,
        regions: BTreeMap::new(),
        kill: None,
        overrides: BTreeMap::new(),
        protected: false,
        supersedes: None,
        from_version: request.from_version,
        alarm: None,
    }
}

/// Does with the pushes that run and wait what the store says should be done for a new one. Says which running push gives
/// way, and whether the next one has to wait for this.
fn make_way(
    transaction: &mut Transaction,
    view: &PushView,
    place: &Ref<Store>,
    request: &StartPush,
) -> Result<(Option<String>, bool), OperationError> {
    let (ended, supersedes, protected) = match way_of_new_push(view) {
        Way::Refused { by } => {
            let push = view.pushes.get(&by).map(|facts| &facts.push);
            return Err(OperationError::PushRunning {
                store: request.store.clone(),
                status: push.map_or(PushStatus::Started, Push::status),
                phase: push.map_or("running", phase_word).to_owned(),
                running: by,
                on_new_push: view.store.on_new_push,
            });
        }
        Way::Open { ended, supersedes, protected } => (ended, supersedes, protected),
    };
    for id in ended {
        let push = place.child::<Push>(id).map_err(TransactionError::Path)?;
        let kill = Kill {
            by: request.pushed_by.clone(),
            reason: format!("push {} came", request.id),
            at: transaction.now(),
            superseded_by: Some(request.id.clone()),
        };
        transaction.update(&push, |push| push.kill = Some(kill))?;
    }
    Ok((supersedes, protected))
}

/// Makes the data of an earlier version the data of this one.
fn take_data(
    transaction: &mut Transaction,
    view: &PushView,
    from: u64,
    place: &Ref<Store>,
    push: &mut Push,
    version: &mut Version,
    number: u64,
) -> Result<(), OperationError> {
    let gone = |why: &str| OperationError::DataGone { store: view.name.clone(), version: from, why: why.to_owned() };
    let earlier = view.versions.get(&from).ok_or_else(|| gone("there is no such version"))?;
    let data = match &earlier.data {
        VersionData::Awaited => return Err(gone("it was never complete")),
        VersionData::Gone { artifact: None, .. } => return Err(gone("it was never complete")),
        VersionData::Gone { .. } => return Err(gone("retention has let it go")),
        complete @ VersionData::Complete { .. } => complete.clone(),
    };
    let manifest = place
        .child::<Version>(from)
        .and_then(|version| version.child::<VersionManifest>(VersionManifest::ID))
        .map_err(TransactionError::Path)?;
    let manifest = transaction.require(&manifest)?;
    let VersionData::Complete { artifact, manifest_sha256, schema, record_count, bytes, .. } = data else {
        return Err(gone("it was never complete"));
    };
    keep_artifact(transaction, &artifact)?;
    let now = transaction.now();
    version.data = VersionData::Complete { artifact, manifest_sha256, schema, record_count, bytes, at: now };
    version.from_version = Some(from);
    push.schema = SchemaProgress::Known { number: schema, registered: false };
    push.completed_at = Some(now);
    let new_version = place.child::<Version>(number).map_err(TransactionError::Path)?;
    transaction.put(&new_version, version.clone())?;
    let copy = new_version.child::<VersionManifest>(VersionManifest::ID).map_err(TransactionError::Path)?;
    transaction.put(&copy, (*manifest).clone())?;
    Ok(())
}

/// Something refers to an artifact again: it is no garbage any more, unless it is being removed this moment.
pub(super) fn keep_artifact(transaction: &mut Transaction, artifact: &str) -> Result<(), OperationError> {
    keep(transaction, Garbage::artifact_entry(artifact), artifact)
}

fn keep(transaction: &mut Transaction, entry: String, what: &str) -> Result<(), OperationError> {
    let entry = Ref::<Garbage>::root(entry).map_err(TransactionError::Path)?;
    match transaction.get(&entry)?.map(|garbage| garbage.state) {
        Some(GarbageState::Removing) => Err(OperationError::BeingRemoved { what: what.to_owned() }),
        Some(GarbageState::Waiting) => {
            transaction.delete(&entry)?;
            Ok(())
        }
        None => Ok(()),
    }
}

fn newest_schema(
    transaction: &Transaction,
    store: &Ref<Store>,
) -> Result<Option<(u64, RegisteredSchema)>, OperationError> {
    let schemas = transaction.children::<RegisteredSchema>(store)?;
    Ok(schemas.last().map(|(schema, value)| (schema.id(), (**value).clone())))
}

fn require_region(transaction: &Transaction) -> Result<(), OperationError> {
    let mut unavailable = Vec::new();
    for (region, value) in transaction.roots::<Region>()? {
        match &value.availability {
            Availability::Available => return Ok(()),
            Availability::Unavailable { reason, by, .. } => {
                unavailable.push(format!("{} is marked unavailable by {by}: {reason}", region.id()));
            }
        }
    }
    if unavailable.is_empty() {
        unavailable.push("there is no region".to_owned());
    }
    Err(OperationError::NoRegion { unavailable })
}

fn check_attributes(attributes: &BTreeMap<String, String>) -> Result<(), OperationError> {
    let size: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > TEXT_BYTES_MAX {
        let why = format!("they take {size} bytes, and the limit is {TEXT_BYTES_MAX}");
        return Err(OperationError::Invalid { what: "the attributes".to_owned(), why });
    }
    Ok(())
}
