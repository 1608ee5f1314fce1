//! Between the tree and the controller: reading a view, and writing a plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_lifecycle::{Function, HooksConfiguration, Registry};
use tidegate_state::{Entity, Ref, Root, Snapshot, Transaction, TransactionError};

use super::plan::{Plan, Write};
use super::view::{GateFacts, HookSettings, PushFacts, PushView, RegionFacts};
use crate::entities::{
    AgentHeartbeat, Assignment, Call, Freeze, Garbage, Gate, Push, PushClient, PushName, PushState, Region, RegionPush,
    RegisteredSchema, Report, Store, Uptime, UptimeMark, Version, WrapUp,
};

/// Where entities are read from: the head of the log, or a snapshot.
pub trait Source {
    /// The entity, if it exists.
    ///
    /// # Errors
    /// As the source's own `get`.
    fn get<E: Entity>(&self, entity: &Ref<E>) -> Result<Option<Arc<E>>, TransactionError>;

    /// The entities of one collection under a parent, in id order.
    ///
    /// # Errors
    /// As the source's own `children`.
    fn children<E: Entity>(&self, parent: &Ref<E::Parent>) -> Result<Vec<(Ref<E>, Arc<E>)>, TransactionError>
    where
        E::Parent: Entity;

    /// The entities of one collection at the top, in id order.
    ///
    /// # Errors
    /// As the source's own `roots`.
    fn roots<E: Entity<Parent = Root>>(&self) -> Result<Vec<(Ref<E>, Arc<E>)>, TransactionError>;
}

impl Source for Transaction {
    fn get<E: Entity>(&self, entity: &Ref<E>) -> Result<Option<Arc<E>>, TransactionError> {
        Transaction::get(self, entity)
    }

    fn children<E: Entity>(&self, parent: &Ref<E::Parent>) -> Result<Vec<(Ref<E>, Arc<E>)>, TransactionError>
    where
        E::Parent: Entity,
    {
        Transaction::children(self, parent)
    }

    fn roots<E: Entity<Parent = Root>>(&self) -> Result<Vec<(Ref<E>, Arc<E>)>, TransactionError> {
        Transaction::roots(self)
    }
}

impl Source for Snapshot {
    fn get<E: Entity>(&self, entity: &Ref<E>) -> Result<Option<Arc<E>>, TransactionError> {
        Ok(self.get_arc(entity)?)
    }

    fn children<E: Entity>(&self, parent: &Ref<E::Parent>) -> Result<Vec<(Ref<E>, Arc<E>)>, TransactionError>
    where
        E::Parent: Entity,
    {
        let listed = Snapshot::children::<E>(self, parent);
        listed.map(|item| Ok(item.map(|(entity, value)| (entity, Arc::new(value.clone())))?)).collect()
    }

    fn roots<E: Entity<Parent = Root>>(&self) -> Result<Vec<(Ref<E>, Arc<E>)>, TransactionError> {
        let listed = Snapshot::roots::<E>(self);
        listed.map(|item| Ok(item.map(|(entity, value)| (entity, Arc::new(value.clone())))?)).collect()
    }
}

/// Everything that the controller needs to know about a store; none if there is no such store.
///
/// # Errors
/// An entity that can't be read. One store's trouble is its own: only this store's controller stops for it.
pub fn gather(source: &impl Source, registry: &Registry, name: &str) -> Result<Option<PushView>, TransactionError> {
    let store: Ref<Store> = Ref::root(name)?;
    let Some(settings) = source.get(&store)? else { return Ok(None) };
    let mut view = PushView {
        name: name.to_owned(),
        hooks: hook_settings(source, registry, &settings)?,
        store: (*settings).clone(),
        pushes: BTreeMap::new(),
        versions: collected(source.children::<Version>(&store)?),
        schemas: collected(source.children::<RegisteredSchema>(&store)?),
        regions: BTreeMap::new(),
        freezes: collected(source.roots::<Freeze>()?),
        uptime: uptime(source)?,
    };
    for (push, value) in source.children::<Push>(&store)? {
        let client = source.get(&push.child::<PushClient>(PushClient::ID)?)?.map(|client| (*client).clone());
        view.pushes.insert(push.id(), PushFacts { push: (*value).clone(), client, gates: BTreeMap::new() });
    }
    let released = view.released().map(|(_, version)| version.push.clone());
    for (id, facts) in &mut view.pushes {
        if needs_gates(&facts.push) || released.as_ref() == Some(id) {
            facts.gates = gates(source, &store.child(id.clone())?)?;
        }
    }
    for (region, value) in source.roots::<Region>()? {
        view.regions.insert(region.id(), region_facts(source, &region, &value, name)?);
    }
    Ok(Some(view))
}

/// A push that is over needs its gates no more.
fn needs_gates(push: &Push) -> bool {
    let over = matches!(push.state, PushState::Ended { wrap_up: WrapUp::Done, .. });
    !over || push.regions.values().any(RegionPush::is_catching_up)
}

/// All gates of a push, however long ago it ended.
///
/// # Errors
/// An entity that can't be read.
pub fn gates(source: &impl Source, push: &Ref<Push>) -> Result<BTreeMap<String, GateFacts>, TransactionError> {
    let mut gates = BTreeMap::new();
    for (gate, value) in source.children::<Gate>(push)? {
        let calls = collected(source.children::<Call>(&gate)?);
        gates.insert(gate.id(), GateFacts { gate: (*value).clone(), calls });
    }
    Ok(gates)
}

fn region_facts(
    source: &impl Source,
    region: &Ref<Region>,
    value: &Region,
    store: &str,
) -> Result<RegionFacts, TransactionError> {
    let heartbeat = source.get(&region.child::<AgentHeartbeat>(AgentHeartbeat::ID)?)?;
    Ok(RegionFacts {
        region: value.clone(),
        assignment: source.get(&region.child::<Assignment>(store)?)?.map(|assignment| (*assignment).clone()),
        report: source.get(&region.child::<Report>(store)?)?.map(|report| (*report).clone()),
        heartbeat: heartbeat.map(|heartbeat| (*heartbeat).clone()),
    })
}

fn uptime(source: &impl Source) -> Result<UptimeMark, TransactionError> {
    let mark = Ref::<Uptime>::root(Uptime::ID)?.child::<UptimeMark>(UptimeMark::ID)?;
    Ok(source.get(&mark)?.map(|mark| (*mark).clone()).unwrap_or(UptimeMark::unmarked()))
}

pub(super) fn hook_settings(
    source: &impl Source,
    registry: &Registry,
    store: &Store,
) -> Result<HookSettings, TransactionError> {
    let Some(configuration) = source.get(&HooksConfiguration::place())? else {
        return Ok(HookSettings::default());
    };
    let by_function = Function::ALL
        .into_iter()
        .map(|function| (function, configuration.effective_hooks(registry, function, &store.hook_overrides)))
        .filter(|(_, hooks)| !hooks.is_empty())
        .collect();
    Ok(HookSettings { generation: configuration.generation, wait_interval: configuration.wait_interval(), by_function })
}

fn collected<E: Entity>(listed: Vec<(Ref<E>, Arc<E>)>) -> BTreeMap<E::Id, E> {
    listed.into_iter().map(|(entity, value)| (entity.id(), (*value).clone())).collect()
}

/// Carries a plan out within a transaction.
///
/// # Errors
/// A write that the transaction refuses; nothing of it is committed then.
pub fn apply(transaction: &mut Transaction, name: &str, plan: Plan) -> Result<(), TransactionError> {
    let store: Ref<Store> = Ref::root(name)?;
    for write in plan.writes {
        match write {
            Write::Version { number, version } => transaction.put(&store.child(number)?, *version)?,
            Write::RemoveVersion { number } => {
                transaction.delete(&store.child::<Version>(number)?)?;
            }
            Write::Schema { number, schema } => transaction.put(&store.child(number)?, *schema)?,
            Write::Push { id, push } => transaction.put(&store.child(id)?, *push)?,
            Write::RemovePush { id } => {
                transaction.delete(&store.child::<Push>(id.clone())?)?;
                transaction.delete(&Ref::<PushName>::root(id)?)?;
            }
            Write::Gate { push, id, gate } => transaction.put(&store.child::<Push>(push)?.child(id)?, *gate)?,
            Write::Assignment { region, assignment } => {
                transaction.put(&Ref::<Region>::root(region)?.child(name)?, *assignment)?;
            }
            Write::Garbage { id, garbage } => transaction.put(&Ref::<Garbage>::root(id)?, *garbage)?,
        }
    }
    for write in plan.calls {
        let gate = store.child::<Push>(write.push)?.child::<Gate>(write.gate)?;
        transaction.put(&gate.child(write.hook)?, write.call)?;
    }
    Ok(())
}
