//! What a transaction made and changed, in the words of the audit trail: read from the transaction itself, so that it is what
//! happened and not what was asked for.
//!
//! Of each kind of entity the fields are named that are kept. What is not named here is not kept: digests of tokens, what
//! hooks of one's own are told, attributes of pushes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use tidegate_api::{AuditChange, AuditEntity, AuditField};
use tidegate_lifecycle::{HooksConfiguration, Pause};
use tidegate_rollout::entities::{
    Assignment, Freeze, FreezeScope, Push, Region, RegisteredSchema, SourceStore, Store, Version,
};
use tidegate_rollout::operations::OperatorAction;
use tidegate_state::{Entity, Touched, Transaction, TransactionError};

use super::scrub::{is_shown, scrubbed};
use crate::access::Token;
use crate::views::{ms, words};

/// How many entities are kept of one request, and how many fields of all of them.
const ENTITIES_MAX: usize = 64;
const FIELDS_MAX: usize = 128;

/// A store's settings.
const STORE_FIELDS: &[&str] = &[
    "team",
    "key_columns",
    "partitions",
    "schema_mode",
    "auto_register_schema",
    "allow_empty",
    "value_bytes_max",
    "golden_keys",
    "retention",
    "limits",
    "on_new_push",
    "freshness",
    "embedded_swap",
    "embedded_dead_percent_max",
];

const REGION_FIELDS: &[&str] = &["nodes", "enough", "shares_source", "agent"];

const HOOKS_FIELDS: &[&str] = &["generation", "enabled", "threads", "timeout_ms", "wait_interval_ms"];

/// What a request made and changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) entities: Vec<AuditEntity>,
    pub(super) left_out: u64,
    pub(super) reason: Option<String>,
}

impl Made {
    /// What the transaction has done so far, beside what the request names.
    pub(super) fn of(transaction: &Transaction, named: &[AuditEntity]) -> Result<Self, TransactionError> {
        let mut entities = Vec::new();
        of_stores(transaction, &mut entities)?;
        of_regions(transaction, &mut entities)?;
        of_the_rest(transaction, &mut entities)?;
        let actions = transaction.appended::<OperatorAction>()?;
        let reason = actions.iter().map(|action| action.reason.as_str()).find(|reason| !reason.trim().is_empty());
        let revoked = transaction.touched::<Token>()?.into_iter().find_map(|token| token.after?.revoked.clone());
        let reason = reason.map(str::to_owned).or(revoked.map(|revoked| revoked.reason));
        Ok(Self::bounded(entities, named, reason.as_deref()))
    }

    /// What a request names that is not known to have changed anything.
    pub(super) fn named(named: &[AuditEntity]) -> Self {
        Self::bounded(Vec::new(), named, None)
    }

    fn bounded(mut entities: Vec<AuditEntity>, named: &[AuditEntity], reason: Option<&str>) -> Self {
        let is_there = |entities: &[AuditEntity], named: &AuditEntity| {
            entities.iter().any(|there| there.kind == named.kind && there.id == named.id)
        };
        let beside: Vec<AuditEntity> = named.iter().filter(|named| !is_there(&entities, named)).cloned().collect();
        // What the request is about comes first.
        entities.splice(0..0, beside);
        let left_out = entities.len().saturating_sub(ENTITIES_MAX);
        entities.truncate(ENTITIES_MAX);
        let mut room = FIELDS_MAX;
        for entity in &mut entities {
            entity.fields.truncate(room);
            room -= entity.fields.len();
        }
        let reason = reason.map(scrubbed).filter(|reason| !reason.trim().is_empty());
        Self { entities, left_out: u64::try_from(left_out).unwrap_or(u64::MAX), reason }
    }
}

fn of_stores(transaction: &Transaction, entities: &mut Vec<AuditEntity>) -> Result<(), TransactionError> {
    for touched in transaction.touched::<Push>()? {
        // A deleted store's pushes go with it.
        let Some(push) = touched.after.as_deref() else { continue };
        let mut fields = Fields::default();
        let before = touched.before.as_deref();
        let of = |push: &Push| words::push_status(push.status()).word().to_owned();
        fields.push("status", before.map(of), Some(of(push)));
        let of = |push: &Push| words::push_phase(&push.state).word().to_owned();
        fields.push("phase", before.map(of), Some(of(push)));
        let opened = |push: Option<&Push>| -> BTreeMap<String, String> {
            let gates = push.into_iter().flat_map(|push| &push.overrides);
            gates.map(|(gate, _)| (format!("gates.{gate}"), "opened by hand".to_owned())).collect()
        };
        fields.maps(&opened(before), &opened(Some(push)));
        if before.is_none() {
            fields.push("from_version", None, push.from_version.map(|version| version.to_string()));
            fields.push("supersedes", None, push.supersedes.clone());
        }
        let store = touched.entity.parent::<Store>().id();
        let entity = entity("push", touched.entity.id(), &touched);
        entities.push(AuditEntity { store: Some(store), version: Some(push.version), fields: fields.0, ..entity });
    }
    for touched in transaction.touched::<Store>()? {
        let mut fields = Fields::default();
        if touched.after.is_some() {
            fields.of_values(touched.before.as_deref(), touched.after.as_deref(), STORE_FIELDS);
            let settings = |store: Option<&Store>| -> BTreeMap<(String, String), String> {
                let overrides = store.into_iter().flat_map(|store| &store.hook_overrides);
                overrides
                    .map(|(name, value)| {
                        let (hook, key) = name.split_once('.').unwrap_or((name, ""));
                        ((hook.to_owned(), key.to_owned()), value.clone())
                    })
                    .collect()
            };
            fields.settings(&settings(touched.before.as_deref()), &settings(touched.after.as_deref()));
            // That the next version has a number is no setting.
            if fields.0.is_empty() && touched.before.is_some() {
                continue;
            }
        }
        entities.push(AuditEntity { fields: fields.0, ..entity("store", touched.entity.id(), &touched) });
    }
    for touched in transaction.touched::<Version>()? {
        let Some(version) = touched.after.as_deref() else { continue };
        let mut fields = Fields::default();
        let of = |version: &Version| word(&words::version_status(version.status));
        fields.push("status", touched.before.as_deref().map(of), Some(of(version)));
        let of = |version: &Version| version.rolled_back.as_ref().map(|_| "true".to_owned());
        fields.push("rolled_back", touched.before.as_deref().and_then(of), of(version));
        if fields.0.is_empty() {
            continue;
        }
        let store = touched.entity.parent::<Store>().id();
        let entity = entity("version", touched.entity.id().to_string(), &touched);
        entities.push(AuditEntity { store: Some(store), fields: fields.0, ..entity });
    }
    for touched in transaction.touched::<RegisteredSchema>()? {
        if touched.after.is_none() {
            continue;
        }
        let store = touched.entity.parent::<Store>().id();
        let entity = entity("schema", touched.entity.id().to_string(), &touched);
        entities.push(AuditEntity { store: Some(store), ..entity });
    }
    Ok(())
}

fn of_regions(transaction: &Transaction, entities: &mut Vec<AuditEntity>) -> Result<(), TransactionError> {
    let mut removed = BTreeSet::new();
    for touched in transaction.touched::<Region>()? {
        let mut fields = Fields::default();
        if touched.after.is_some() {
            fields.of_values(touched.before.as_deref(), touched.after.as_deref(), REGION_FIELDS);
            let of = |region: &Region| match region.availability.is_available() {
                true => "available".to_owned(),
                false => "unavailable".to_owned(),
            };
            fields.push("availability", touched.before.as_deref().map(of), touched.after.as_deref().map(of));
        } else {
            removed.insert(touched.entity.id());
        }
        entities.push(AuditEntity { fields: fields.0, ..entity("region", touched.entity.id(), &touched) });
    }
    for touched in transaction.touched::<Assignment>()? {
        let region = touched.entity.parent::<Region>().id();
        let of = |assignment: &Assignment| assignment.serve.map(|version| version.to_string());
        let mut fields = Fields::default();
        fields.push("serve", touched.before.as_deref().and_then(of), touched.after.as_deref().and_then(of));
        if fields.0.is_empty() || removed.contains(&region) {
            continue;
        }
        entities.push(AuditEntity {
            kind: "region".to_owned(),
            id: region,
            name: None,
            store: Some(touched.entity.id()),
            version: None,
            change: AuditChange::Changed,
            fields: fields.0,
        });
    }
    Ok(())
}

fn of_the_rest(transaction: &Transaction, entities: &mut Vec<AuditEntity>) -> Result<(), TransactionError> {
    for touched in transaction.touched::<Token>()? {
        let Some(token) = touched.after.as_deref().or(touched.before.as_deref()) else { continue };
        let mut fields = Fields::default();
        if touched.before.is_none() {
            fields.push("role", None, Some(token.role.word().to_owned()));
            fields.push("team", None, token.team.clone());
            fields.push("region", None, token.region.clone());
            fields.push("expires_at", None, token.expires_at.map(|at| ms(at).to_string()));
        }
        let of = |token: &Token| token.revoked.is_some().then(|| "true".to_owned());
        if touched.after.is_some() {
            fields.push("revoked", touched.before.as_deref().and_then(of), of(token));
        }
        let entity = entity("token", touched.entity.id(), &touched);
        entities.push(AuditEntity { name: Some(scrubbed(&token.name)), fields: fields.0, ..entity });
    }
    for touched in transaction.touched::<Freeze>()? {
        let of = |freeze: &Freeze| match &freeze.scope {
            FreezeScope::Store(store) => format!("store {store}"),
            FreezeScope::Region(region) => format!("region {region}"),
            FreezeScope::All => "everything".to_owned(),
        };
        let mut fields = Fields::default();
        fields.push("scope", touched.before.as_deref().map(of), touched.after.as_deref().map(of));
        let of = |freeze: &Freeze| match &freeze.scope {
            FreezeScope::Store(store) => Some(store.clone()),
            FreezeScope::Region(_) | FreezeScope::All => None,
        };
        let store = touched.after.as_deref().or(touched.before.as_deref()).and_then(of);
        entities.push(AuditEntity { store, fields: fields.0, ..entity("freeze", touched.entity.id(), &touched) });
    }
    for touched in transaction.touched::<Pause>()? {
        let Some(pause) = touched.after.as_deref() else { continue };
        let of = |pause: &Pause| pause.answer.as_ref().map(|answer| words::verdict(answer.verdict).word().to_owned());
        let mut fields = Fields::default();
        fields.push("answer", touched.before.as_deref().and_then(of), of(pause));
        let entity = entity("pause", touched.entity.id(), &touched);
        entities.push(AuditEntity { store: Some(pause.store.clone()), fields: fields.0, ..entity });
    }
    for touched in transaction.touched::<HooksConfiguration>()? {
        let mut fields = Fields::default();
        fields.of_values(touched.before.as_deref(), touched.after.as_deref(), HOOKS_FIELDS);
        let settings = |hooks: Option<&HooksConfiguration>| -> BTreeMap<(String, String), String> {
            let hooks = hooks.into_iter().flat_map(|configuration| &configuration.hooks);
            hooks
                .flat_map(|(hook, settings)| {
                    settings.iter().map(move |(key, value)| ((hook.clone(), key.clone()), value.clone()))
                })
                .collect()
        };
        fields.settings(&settings(touched.before.as_deref()), &settings(touched.after.as_deref()));
        entities.push(AuditEntity { fields: fields.0, ..entity("configuration", touched.entity.id(), &touched) });
    }
    for touched in transaction.touched::<SourceStore>()? {
        let of = |store: &SourceStore| scrubbed(&store.name);
        let mut fields = Fields::default();
        fields.push("name", touched.before.as_deref().map(of), touched.after.as_deref().map(of));
        entities.push(AuditEntity { fields: fields.0, ..entity("artifact store", touched.entity.id(), &touched) });
    }
    Ok(())
}

fn entity<E: Entity>(kind: &str, id: String, touched: &Touched<E>) -> AuditEntity {
    let change = match (&touched.before, &touched.after) {
        (None, _) => AuditChange::Made,
        (Some(_), Some(_)) => AuditChange::Changed,
        (Some(_), None) => AuditChange::Removed,
    };
    named(kind, id, change)
}

/// An entity of which no more is known.
pub(super) fn named(kind: &str, id: String, change: AuditChange) -> AuditEntity {
    AuditEntity { kind: kind.to_owned(), id, name: None, store: None, version: None, change, fields: Vec::new() }
}

/// Fields that are other than before.
#[derive(Debug, Default)]
struct Fields(Vec<AuditField>);

impl Fields {
    fn push(&mut self, field: &str, before: Option<String>, after: Option<String>) {
        if before != after {
            let (before, after) = (before.as_deref().map(scrubbed), after.as_deref().map(scrubbed));
            self.0.push(AuditField { field: field.to_owned(), before, after, hidden: false });
        }
    }

    fn maps(&mut self, before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
        for name in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            self.push(name, before.get(name).cloned(), after.get(name).cloned());
        }
    }

    /// Settings of hooks, by hook and key.
    fn settings(&mut self, before: &BTreeMap<(String, String), String>, after: &BTreeMap<(String, String), String>) {
        for place in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            let (was, is) = (before.get(place), after.get(place));
            if was == is {
                continue;
            }
            let (hook, key) = place;
            let hidden = !is_shown(hook, key);
            let value = |value: Option<&String>| value.filter(|_| !hidden).map(|value| scrubbed(value));
            let field = scrubbed(&format!("hooks.{hook}.{key}"));
            self.0.push(AuditField { field, before: value(was), after: value(is), hidden });
        }
    }

    /// The fields of two values that have these names; what lies within one of them is named `field.within`.
    fn of_values<T: Serialize>(&mut self, before: Option<&T>, after: Option<&T>, names: &[&str]) {
        let (before, after) = (flat(before, names), flat(after, names));
        self.maps(&before, &after);
    }
}

fn flat<T: Serialize>(value: Option<&T>, names: &[&str]) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    let Some(Value::Object(fields)) = value.and_then(|value| serde_json::to_value(value).ok()) else { return flat };
    for name in names {
        match fields.get(*name) {
            None | Some(Value::Null) => {}
            Some(Value::Object(within)) => {
                for (inner, value) in within.iter().filter(|(_, value)| !value.is_null()) {
                    flat.insert(format!("{name}.{inner}"), text(value));
                }
            }
            Some(value) => {
                flat.insert((*name).to_owned(), text(value));
            }
        }
    }
    flat
}

/// The word that JSON has for a value.
fn word<T: Serialize>(value: &T) -> String {
    serde_json::to_value(value).map(|value| text(&value)).unwrap_or_default()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// The one entity of which a request's address or body says the id.
pub(in crate::access) fn of_address(path: &[(String, String)], body_push: Option<&str>) -> Vec<AuditEntity> {
    let kinds = [
        ("push", "push"),
        ("region", "region"),
        ("token", "token"),
        ("freeze", "freeze"),
        ("pause", "pause"),
        ("request", "request"),
    ];
    let in_path = path.iter().filter_map(|(name, id)| {
        let (_, kind) = kinds.iter().find(|(there, _)| there == name)?;
        Some((*kind, id.as_str()))
    });
    let named_in_body = body_push.map(|push| ("push", push));
    in_path
        .chain(named_in_body)
        .filter(|(_, id)| !id.is_empty())
        .map(|(kind, id)| named(kind, scrubbed(id), AuditChange::Named))
        .collect()
}

#[cfg(test)]
mod tests {
    use tidegate_state::Timestamp;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn every_setting_of_a_store_is_kept_or_left_out_by_name() {
        // Who it is and who made it stand in the entry; hook settings are kept one by one; a number to come is no setting.
        let left_out = ["incarnation", "created_at", "created_by", "hook_overrides", "next_version"];
        let store = Store::new(Uuid::nil(), Timestamp(0), "ada", vec!["k".to_owned()]);
        let store = serde_json::to_value(store).unwrap();
        for name in store.as_object().unwrap().keys() {
            assert!(STORE_FIELDS.contains(&name.as_str()) || left_out.contains(&name.as_str()), "{name}");
        }
    }

    #[test]
    fn what_is_kept_has_a_bound_and_says_how_much_is_not() {
        let field = AuditField { field: "f".to_owned(), before: None, after: None, hidden: false };
        let of = |number: usize| AuditEntity {
            fields: vec![field.clone(); 10],
            ..named("region", number.to_string(), AuditChange::Changed)
        };
        let made =
            Made::bounded((0..100).map(of).collect(), &[named("push", "p".to_owned(), AuditChange::Named)], None);
        assert_eq!((made.entities.len(), made.left_out), (ENTITIES_MAX, 37));
        assert_eq!((made.entities[0].kind.as_str(), made.entities[0].change), ("push", AuditChange::Named));
        assert_eq!(made.entities.iter().map(|entity| entity.fields.len()).sum::<usize>(), FIELDS_MAX);
        // What the transaction has done is not named a second time.
        let made = Made::bounded(vec![of(7)], &[named("region", "7".to_owned(), AuditChange::Named)], None);
        assert_eq!(made.entities, [of(7)]);
    }
}
