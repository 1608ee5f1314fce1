//! `data-quality`: compares the new version's statistics with those of what the region serves, before anything is copied.
//!
//! | key | limit | compared with |
//! |---|---|---|
//! | `records_drop_max` | fewer records, in percent: `10` | what the region serves |
//! | `records_growth_max` | more records, in percent | what the region serves |
//! | `records_min`, `records_max` | records | nothing |
//! | `null_increase_max`, `null_increase_max.<field>` | rise of a field's null ratio, in percentage points: `5` | what the region serves |
//! | `null_max`, `null_max.<field>` | a field's null ratio, in percent | nothing |
//! | `bytes_growth_max` | growth of keys and values, as a factor: `3` | what the region serves |
//! | `bytes_max` | bytes of keys and values before compression | nothing |
//! | `distinct_shrink_max`, `distinct_shrink_max.<field>` | fewer distinct values (approximate, standard error 1.6 %), in percent | what the region serves |
//! | `norm_change_max`, `norm_change_max.<field>` | change of a vector field's mean norm, in percent, either way | what the region serves |
//! | `golden_present` | `true`: every key that the store names as golden is there | nothing |
//! | `golden_changed_max` | how many golden keys may have another value | what the region serves |
//! | `sample_present_min` | share of the served version's sample that is still there, in percent: `95` | what the region serves |
//!
//! Without any of them it does nothing. A key with a field's name behind a dot takes the place of the one without for
//! that field. Limits that compare are passed over where the region serves nothing, or nothing with records. A field that
//! is gone counts as null everywhere. A figure that is not a number is never within a limit. A broken limit is Abort, with
//! figure and limit; a version without statistics is Wait.
//!
//! It answers `pre_store_version_creation`, which every region passes before its embedded clients' gate is asked.

mod compare;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::context::Context;
use crate::contract::{HookError, StoreLifecycleHooks, ValidationContext};
use crate::function::Function;
use crate::outcome::{Answer, StoreLifecycleEventOutcome as Two, StoreVersionLifecycleEventOutcome as Four};
use crate::registry::{HookDescriptor, HookKey};
use crate::setting::{SettingError, Settings};

/// How many broken limits a reason names.
const NAMED_MAX: usize = 5;

const KEYS: &[HookKey] = &[
    HookKey { key: "records_drop_max", meaning: "at most so many percent fewer records than what the region serves" },
    HookKey { key: "records_growth_max", meaning: "at most so many percent more records than what the region serves" },
    HookKey { key: "records_min", meaning: "at least so many records" },
    HookKey { key: "records_max", meaning: "at most so many records" },
    HookKey { key: "null_increase_max", meaning: "a field's null ratio rises by at most so many percentage points" },
    HookKey { key: "null_increase_max.*", meaning: "the same for one field" },
    HookKey { key: "null_max", meaning: "a field's null ratio is at most so many percent" },
    HookKey { key: "null_max.*", meaning: "the same for one field" },
    HookKey { key: "bytes_growth_max", meaning: "keys and values grow at most by this factor" },
    HookKey { key: "bytes_max", meaning: "keys and values have at most so many bytes before compression" },
    HookKey { key: "distinct_shrink_max", meaning: "a field has at most so many percent fewer distinct values" },
    HookKey { key: "distinct_shrink_max.*", meaning: "the same for one field" },
    HookKey { key: "norm_change_max", meaning: "a vector field's mean norm changes by at most so many percent" },
    HookKey { key: "norm_change_max.*", meaning: "the same for one field" },
    HookKey { key: "golden_present", meaning: "true: every golden key of the store has to be there" },
    HookKey { key: "golden_changed_max", meaning: "at most so many golden keys have another value" },
    HookKey { key: "sample_present_min", meaning: "at least so many percent of the served version's sample are there" },
];

pub(crate) fn descriptor() -> HookDescriptor {
    HookDescriptor {
        name: "data-quality".to_owned(),
        keys: Some(KEYS),
        acts: |function, settings| {
            function == Function::PreStoreVersionCreation
                && settings.keys().any(|key| key != "mode" && key != "on_failure")
        },
        factory: Arc::new(|_| Ok(Arc::new(DataQuality))),
    }
}

/// The hook.
#[derive(Debug)]
pub struct DataQuality;

/// A limit for all fields, and those for single ones.
#[derive(Debug, Default)]
struct FieldLimit {
    all: Option<f64>,
    by_field: BTreeMap<String, f64>,
}

impl FieldLimit {
    fn read(config: &BTreeMap<String, String>, key: &str) -> Result<FieldLimit, SettingError> {
        let settings = Settings(config);
        let mut limit = FieldLimit { all: settings.limit(key)?, by_field: BTreeMap::new() };
        for name in config.keys() {
            let field = name.strip_prefix(key).and_then(|rest| rest.strip_prefix('.'));
            if let Some(field) = field.filter(|field| !field.is_empty())
                && let Some(value) = settings.limit(name)?
            {
                limit.by_field.insert(field.to_owned(), value);
            }
        }
        Ok(limit)
    }

    fn of(&self, field: &str) -> Option<f64> {
        self.by_field.get(field).copied().or(self.all)
    }

    fn is_set(&self) -> bool {
        self.all.is_some() || !self.by_field.is_empty()
    }
}

#[derive(Debug)]
struct Limits {
    records_drop_max: Option<f64>,
    records_growth_max: Option<f64>,
    records_min: Option<u64>,
    records_max: Option<u64>,
    null_increase_max: FieldLimit,
    null_max: FieldLimit,
    bytes_growth_max: Option<f64>,
    bytes_max: Option<u64>,
    distinct_shrink_max: FieldLimit,
    norm_change_max: FieldLimit,
    golden_present: bool,
    golden_changed_max: Option<u64>,
    sample_present_min: Option<f64>,
}

impl Limits {
    fn read(config: &BTreeMap<String, String>) -> Result<Limits, SettingError> {
        let settings = Settings(config);
        Ok(Limits {
            records_drop_max: settings.limit("records_drop_max")?,
            records_growth_max: settings.limit("records_growth_max")?,
            records_min: settings.whole("records_min")?,
            records_max: settings.whole("records_max")?,
            null_increase_max: FieldLimit::read(config, "null_increase_max")?,
            null_max: FieldLimit::read(config, "null_max")?,
            bytes_growth_max: settings.limit("bytes_growth_max")?,
            bytes_max: settings.whole("bytes_max")?,
            distinct_shrink_max: FieldLimit::read(config, "distinct_shrink_max")?,
            norm_change_max: FieldLimit::read(config, "norm_change_max")?,
            golden_present: settings.flag("golden_present")?.unwrap_or(false),
            golden_changed_max: settings.whole("golden_changed_max")?,
            sample_present_min: settings.limit("sample_present_min")?,
        })
    }
}

fn decide(context: &Context) -> Result<Four, HookError> {
    let limits = Limits::read(&context.config)?;
    let Some(statistics) = &context.statistics else {
        let reason = "the new version has no statistics, so nothing can be compared".to_owned();
        return Ok(Four::Wait { reason, ask_again_at: None });
    };
    let served = context.this_region().and_then(|region| region.statistics.as_ref());
    let broken = compare::broken_limits(&limits, statistics, served);
    if broken.is_empty() {
        return Ok(Four::Proceed);
    }
    let mut reason = broken.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join("; ");
    if broken.len() > NAMED_MAX {
        reason.push_str(&format!("; and {} more broken limits", broken.len() - NAMED_MAX));
    }
    Ok(Four::Abort { reason })
}

#[async_trait]
impl StoreLifecycleHooks for DataQuality {
    async fn validate_hook_config(&self, context: &ValidationContext) -> Result<Answer<Two>, HookError> {
        Ok(match Limits::read(&context.config) {
            Ok(_) => Two::Proceed.into(),
            Err(error) => Two::Abort { reason: error.to_string() }.into(),
        })
    }

    async fn pre_store_version_creation(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        decide(context).map(Answer::from)
    }
}

#[cfg(test)]
mod tests;
