//! Stores, their schemas and versions.

use std::collections::BTreeMap;

use tidegate_api::{Freshness, Limits, SchemaView, StoreView, VersionView};
use tidegate_rollout::entities::{Push, PushState, Region, RegisteredSchema, Report, Store, Version, VersionData};
use tidegate_state::Ref;

use super::{Scene, ms, words};
use crate::http::errors::{ApiError, ApiResult};

/// The largest value that the API names where a store sets no limit.
pub(crate) const VALUE_BYTES_MAX_DEFAULT: u64 = 16 * 1024 * 1024;

/// How many partitions a store has at most.
pub(crate) const PARTITIONS_MAX: u32 = 4096;

impl Scene<'_> {
    /// A store by its name.
    pub(crate) fn find_store(&self, name: &str) -> ApiResult<(Ref<Store>, &Store)> {
        let unknown = || ApiError::store_unknown(name);
        let reference: Ref<Store> = Ref::root(name).map_err(|_| unknown())?;
        let store = self.snapshot.get(&reference)?.ok_or_else(unknown)?;
        Ok((reference, store))
    }

    /// All stores in order of their names.
    pub(crate) fn stores(&self) -> ApiResult<Vec<StoreView>> {
        self.snapshot
            .roots::<Store>()
            .map(|item| {
                let (reference, store) = item?;
                self.store_view(&reference, store)
            })
            .collect()
    }

    pub(crate) fn store_view(&self, reference: &Ref<Store>, store: &Store) -> ApiResult<StoreView> {
        let name = reference.id();
        let mut running = None;
        let mut last: Option<(tidegate_state::Timestamp, String)> = None;
        for item in self.snapshot.children::<Push>(reference) {
            // What a later release wrote in another way says nothing here.
            let Ok((push, value)) = item else { continue };
            if matches!(value.state, PushState::Running(_)) {
                running = Some(push.id());
            }
            if last.as_ref().is_none_or(|(at, _)| *at <= value.created_at) {
                last = Some((value.created_at, push.id()));
            }
        }
        let mut schema = None;
        for item in self.snapshot.children::<RegisteredSchema>(reference) {
            schema = Some(item?.0.id());
        }
        Ok(StoreView {
            serving: self.serving(&name, store)?,
            name,
            team: store.team.clone(),
            key_columns: store.key_columns.clone(),
            partitions: store.partitions,
            schema_mode: words::schema_mode(store.schema_mode),
            auto_register_schemas: store.auto_register_schema,
            allow_empty: store.allow_empty,
            retention: store.retention.versions,
            keep_rejected_ms: store.retention.rejected_ms,
            grace_ms: store.retention.grace_ms,
            keep_pushes: store.retention.pushes,
            embedded_swap: words::embedded_swap(store.embedded_swap),
            embedded_dead_percent_max: store.embedded_dead_percent_max,
            golden_keys: store.golden_keys.clone(),
            on_new_push: words::on_new_push(store.on_new_push),
            limits: Limits {
                push_ms: store.limits.push_ms,
                region_ms: store.limits.region_ms,
                silence_ms: store.limits.client_ms,
                confirmation_ms: store.limits.confirmation_ms,
                value_bytes: store.value_bytes_max.unwrap_or(VALUE_BYTES_MAX_DEFAULT),
            },
            freshness: Freshness {
                expected_every_ms: store.freshness.expected_every_ms,
                max_age_ms: store.freshness.max_age_ms,
            },
            hooks: store.hook_overrides.clone(),
            created_at: Some(ms(store.created_at)),
            running,
            last_push: last.map(|(_, id)| id),
            schema,
        })
    }

    /// Which version each region serves of a store.
    pub(crate) fn serving(&self, name: &str, store: &Store) -> ApiResult<BTreeMap<String, u64>> {
        let mut serving = BTreeMap::new();
        for item in self.snapshot.roots::<Region>() {
            let (region, _) = item?;
            let report = self.snapshot.get(&region.child::<Report>(name)?)?;
            // A report on a deleted store of the same name says nothing about this one.
            let version =
                report.filter(|report| report.incarnation == store.incarnation).and_then(|report| report.serving);
            if let Some(version) = version {
                serving.insert(region.id(), version);
            }
        }
        Ok(serving)
    }

    /// The schemas of a store, the newest last.
    pub(crate) fn schemas(&self, store: &Ref<Store>) -> ApiResult<Vec<SchemaView>> {
        self.snapshot
            .children::<RegisteredSchema>(store)
            .map(|item| {
                let (reference, schema) = item?;
                Ok(schema_view(reference.id(), schema))
            })
            .collect()
    }

    /// The versions of a store, the newest last.
    pub(crate) fn versions(&self, reference: &Ref<Store>, store: &Store) -> ApiResult<Vec<VersionView>> {
        let serving = self.serving(&reference.id(), store)?;
        self.snapshot
            .children::<Version>(reference)
            .map(|item| {
                let (version, value) = item?;
                let number = version.id();
                let (artifact_id, records, bytes) = match &value.data {
                    VersionData::Awaited => (None, None, None),
                    VersionData::Complete { artifact, record_count, bytes, .. } => {
                        (Some(artifact.clone()), Some(*record_count), Some(*bytes))
                    }
                    VersionData::Gone { artifact, .. } => (artifact.clone(), None, None),
                };
                Ok(VersionView {
                    version: number,
                    push: value.push.clone(),
                    status: words::version_status(value.status),
                    artifact_id,
                    records,
                    bytes,
                    created_at: Some(ms(value.created_at)),
                    serving: serving
                        .iter()
                        .filter(|(_, served)| **served == number)
                        .map(|(region, _)| region.clone())
                        .collect(),
                })
            })
            .collect()
    }
}

pub(crate) fn schema_view(id: u64, schema: &RegisteredSchema) -> SchemaView {
    SchemaView {
        id,
        schema: schema.schema.clone(),
        registered_at: Some(ms(schema.registered_at)),
        push: schema.push.clone(),
    }
}
