//! The comparison itself: pure, from two versions' statistics to the limits that are broken, as text.

use std::collections::{BTreeMap, BTreeSet};

use super::Limits;
use crate::context::{FieldStatistics, Sample, VersionStatistics};
use crate::wording::{beside, count};

/// Absorbs rounding: shares are quotients of whole numbers, so a figure that lies on its limit is within it.
const TOLERANCE: f64 = 1e-9;
/// How many keys a text names.
const KEYS_NAMED_MAX: usize = 5;

/// Whether a figure is over its limit. One that is not a number always is.
fn over(measured: f64, limit: f64) -> bool {
    let within = measured <= limit + TOLERANCE;
    !within
}

/// How much less `after` is than `before`, in percent.
fn drop_percent(before: u64, after: u64) -> f64 {
    (before as f64 - after as f64) * 100.0 / before as f64
}

/// What is broken, for people. `served` is what the region serves; limits that compare with it are passed over where it
/// has no records.
pub(super) fn broken_limits(
    limits: &Limits,
    new: &VersionStatistics,
    served: Option<&VersionStatistics>,
) -> Vec<String> {
    let mut broken = Vec::new();
    let served = served.filter(|served| served.records > 0);
    records(limits, new, served, &mut broken);
    bytes(limits, new, served, &mut broken);
    nulls(limits, new, served, &mut broken);
    distinct(limits, new, served, &mut broken);
    norms(limits, new, served, &mut broken);
    golden(limits, new, served, &mut broken);
    if let (Some(limit), Some(served)) = (limits.sample_present_min, served) {
        sample(limit, &new.sample, &served.sample, &mut broken);
    }
    broken
}

fn records(limits: &Limits, new: &VersionStatistics, served: Option<&VersionStatistics>, broken: &mut Vec<String>) {
    let records = count(new.records);
    if let Some(limit) = limits.records_min.filter(|limit| new.records < *limit) {
        broken.push(format!("{records} records (limit at least {})", count(limit)));
    }
    if let Some(limit) = limits.records_max.filter(|limit| new.records > *limit) {
        broken.push(format!("{records} records (limit at most {})", count(limit)));
    }
    let Some(served) = served else { return };
    let drop = drop_percent(served.records, new.records);
    let before = count(served.records);
    if let Some(limit) = limits.records_drop_max.filter(|limit| over(drop, *limit)) {
        let drop = beside(drop, limit);
        broken.push(format!("{records} records, {drop} % fewer than the {before} served (limit {limit} % fewer)"));
    }
    if let Some(limit) = limits.records_growth_max.filter(|limit| over(-drop, *limit)) {
        let growth = beside(-drop, limit);
        broken.push(format!("{records} records, {growth} % more than the {before} served (limit {limit} % more)"));
    }
}

fn bytes(limits: &Limits, new: &VersionStatistics, served: Option<&VersionStatistics>, broken: &mut Vec<String>) {
    if let Some(limit) = limits.bytes_max.filter(|limit| new.bytes > *limit) {
        broken.push(format!("{} bytes of data (limit {})", count(new.bytes), count(limit)));
    }
    let before = served.map_or(0, |served| served.bytes);
    if before == 0 {
        return;
    }
    let factor = new.bytes as f64 / before as f64;
    if let Some(limit) = limits.bytes_growth_max.filter(|limit| over(factor, *limit)) {
        broken.push(format!(
            "{} bytes of data, {} times the {} served (limit {limit} times)",
            count(new.bytes),
            beside(factor, limit),
            count(before),
        ));
    }
}

/// Fields of either version.
fn fields<'a>(new: &'a VersionStatistics, served: Option<&'a VersionStatistics>) -> BTreeSet<&'a str> {
    let before = served.into_iter().flat_map(|served| served.fields.keys());
    new.fields.keys().chain(before).map(String::as_str).collect()
}

/// A field's null ratio; one that is gone is null everywhere. None without records.
fn null_ratio(version: &VersionStatistics, field: &str) -> Option<f64> {
    if version.records == 0 {
        return None;
    }
    version.fields.get(field).map_or(Some(1.0), FieldStatistics::null_ratio)
}

fn nulls(limits: &Limits, new: &VersionStatistics, served: Option<&VersionStatistics>, broken: &mut Vec<String>) {
    for field in fields(new, served) {
        let Some(after) = null_ratio(new, field).map(|ratio| ratio * 100.0) else { continue };
        let gone = if new.fields.contains_key(field) { "" } else { ", the field is gone" };
        if let Some(limit) = limits.null_max.of(field).filter(|limit| over(after, *limit)) {
            broken.push(format!("null ratio of {field} {} % (limit {limit} %{gone})", beside(after, limit)));
        }
        // A new field has nothing to be compared with.
        let before =
            served.filter(|served| served.fields.contains_key(field)).and_then(|served| null_ratio(served, field));
        let (Some(before), Some(limit)) = (before.map(|ratio| ratio * 100.0), limits.null_increase_max.of(field))
        else {
            continue;
        };
        if over(after - before, limit) {
            let measured = beside(after, before + limit);
            broken.push(format!("null ratio of {field} {measured} % (limit +{limit} points over {before:.1} %{gone})"));
        }
    }
}

fn distinct(limits: &Limits, new: &VersionStatistics, served: Option<&VersionStatistics>, broken: &mut Vec<String>) {
    let Some(served) = served.filter(|_| limits.distinct_shrink_max.is_set()) else { return };
    for (field, before) in &served.fields {
        let Some(limit) = limits.distinct_shrink_max.of(field).filter(|_| before.distinct > 0) else { continue };
        let after = new.fields.get(field).map_or(0, |field| field.distinct);
        let shrunk = drop_percent(before.distinct, after);
        if over(shrunk, limit) {
            broken.push(format!(
                "about {} distinct values of {field}, {} % fewer than the {} served (limit {limit} % fewer)",
                count(after),
                beside(shrunk, limit),
                count(before.distinct),
            ));
        }
    }
}

fn norms(limits: &Limits, new: &VersionStatistics, served: Option<&VersionStatistics>, broken: &mut Vec<String>) {
    if !limits.norm_change_max.is_set() {
        return;
    }
    for field in fields(new, served) {
        let Some(limit) = limits.norm_change_max.of(field) else { continue };
        let after = new.fields.get(field);
        if let Some(with_nan) = after.map(|after| after.vectors_with_nan).filter(|with_nan| *with_nan > 0) {
            let with_nan = count(with_nan);
            broken.push(format!("{with_nan} vectors of {field} have components that are NaN (limit 0)"));
            continue;
        }
        // Without vectors before, or with all of them zero, there is nothing that a change could be a share of.
        let before = served.and_then(|served| served.fields.get(field)).and_then(|before| before.mean_norm);
        let Some(before) = before.filter(|before| *before != 0.0) else { continue };
        let after = after.and_then(|after| after.mean_norm).unwrap_or(f64::NAN);
        let change = (after - before).abs() * 100.0 / before.abs();
        if over(change, limit) {
            let change = beside(change, limit);
            broken.push(format!(
                "mean norm of {field} {after:.2}, {change} % from the {before:.2} served (limit {limit} %)"
            ));
        }
    }
}

fn golden(limits: &Limits, new: &VersionStatistics, served: Option<&VersionStatistics>, broken: &mut Vec<String>) {
    if limits.golden_present {
        let missing: Vec<_> =
            new.golden.iter().filter(|(_, value)| value.value_digest.is_none()).map(|(key, _)| key.as_str()).collect();
        if !missing.is_empty() {
            let all = new.golden.len();
            broken.push(format!("{} of {all} golden keys missing (limit 0): {}", missing.len(), named(&missing)));
        }
    }
    if let (Some(limit), Some(served)) = (limits.golden_changed_max, served) {
        let changed: Vec<_> = new
            .golden
            .iter()
            .filter(|(key, after)| {
                let before = served.golden.get(*key).and_then(|before| before.value_digest.as_ref());
                before.is_some() && after.value_digest.as_ref() != before
            })
            .map(|(key, _)| key.as_str())
            .collect();
        if changed.len() as u64 > limit {
            broken.push(format!("{} golden keys changed (limit {limit}): {}", changed.len(), named(&changed)));
        }
    }
}

/// A key of the served sample can be judged where the new sample covers its hash: everywhere if it holds every record,
/// else up to its greatest hash.
fn sample(limit: f64, new: &Sample, served: &Sample, broken: &mut Vec<String>) {
    let complete = (new.records.len() as u64) < new.limit;
    let covered = new.records.last().map(|record| record.hash.as_str());
    let there: BTreeMap<&str, &str> =
        new.records.iter().map(|record| (record.key.as_str(), record.hash.as_str())).collect();
    let judged: Vec<_> = served
        .records
        .iter()
        .filter(|before| complete || covered.is_some_and(|covered| before.hash.as_str() <= covered))
        .collect();
    if judged.is_empty() {
        return;
    }
    let missing: Vec<_> = judged
        .iter()
        .filter(|before| there.get(before.key.as_str()) != Some(&before.hash.as_str()))
        .map(|before| before.key.as_str())
        .collect();
    let present = (judged.len() - missing.len()) as f64 * 100.0 / judged.len() as f64;
    if present < limit - TOLERANCE {
        broken.push(format!(
            "{} % of {} sampled keys are there (limit {limit} %); missing: {}",
            beside(present, limit),
            judged.len(),
            named(&missing),
        ));
    }
}

fn named(keys: &[&str]) -> String {
    let mut text = keys.iter().take(KEYS_NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    if keys.len() > KEYS_NAMED_MAX {
        text.push_str(&format!(" and {} more", keys.len() - KEYS_NAMED_MAX));
    }
    text
}
