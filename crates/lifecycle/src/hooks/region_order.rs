//! `region-order`: regions serve a new version one after the other, each a minimum delay after the one before it.
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `order` | regions in order, groups with `+`: `a, b + c`; in a file also `["a", ["b", "c"]]` | none: the hook does nothing |
//! | `delay` | how long after the swap of the regions before it a region swaps at the earliest | `0` |
//!
//! A region's turn comes when every region before it is done, that is, serves the version and its post-swap round has
//! proceeded, and when the delay since the last of their swaps is over. Regions that the order leaves out come after all
//! that it names. A region that is not available, or has no part in the push, is passed over as if it were done. Once a
//! region has failed, those behind it answer Abort.
//!
//! It answers `pre_store_version_swap`, and the gate of embedded clients too, since those swap on their own once they
//! have ingested.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_state::Timestamp;

use crate::context::{Context, RegionPushStatus, RegionStatus};
use crate::contract::{HookError, StoreLifecycleHooks, ValidationContext};
use crate::function::Function;
use crate::outcome::{Answer, StoreLifecycleEventOutcome as Two, StoreVersionLifecycleEventOutcome as Four};
use crate::registry::{HookDescriptor, HookKey};
use crate::setting::{SettingError, Settings};
use crate::wording;

const KEYS: &[HookKey] = &[
    HookKey { key: "order", meaning: "regions in the order of their swaps; groups with +: a, b + c" },
    HookKey { key: "delay", meaning: "minimum time between the swaps of one region and the next: 1h (default 0)" },
];

pub(crate) fn descriptor() -> HookDescriptor {
    HookDescriptor {
        name: "region-order".to_owned(),
        keys: Some(KEYS),
        acts: |function, settings| {
            Settings(settings).text("order").is_some()
                && matches!(
                    function,
                    Function::PreStoreVersionSwap | Function::PreStartOfStoreVersionIngestionForDaVinci
                )
        },
        factory: Arc::new(|_| Ok(Arc::new(RegionOrder))),
    }
}

/// The hook.
#[derive(Debug)]
pub struct RegionOrder;

#[derive(Debug)]
struct Order {
    groups: Vec<Vec<String>>,
    delay: Duration,
}

impl Order {
    fn read(config: &BTreeMap<String, String>) -> Result<Order, SettingError> {
        let settings = Settings(config);
        let groups = match settings.text("order") {
            Some(text) => groups(text).map_err(|reason| SettingError {
                key: "order".to_owned(),
                value: text.to_owned(),
                reason,
            })?,
            None => Vec::new(),
        };
        Ok(Order { groups, delay: settings.duration("delay")?.unwrap_or(Duration::ZERO) })
    }

    /// Which group a region swaps with; those that are not listed come last.
    fn position(&self, region: &str) -> usize {
        let listed = self.groups.iter().position(|group| group.iter().any(|name| name == region));
        listed.unwrap_or(self.groups.len())
    }

    fn text(&self) -> String {
        self.groups.iter().map(|group| group.join(" + ")).collect::<Vec<_>>().join(", ")
    }
}

fn groups(text: &str) -> Result<Vec<Vec<String>>, String> {
    let groups: Vec<Vec<String>> = if text.starts_with('[') {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Item {
            One(String),
            Several(Vec<String>),
        }
        let items: Vec<Item> =
            serde_json::from_str(text).map_err(|error| format!("is no list of regions and groups: {error}"))?;
        let group = |item| match item {
            Item::One(text) => text.split('+').map(|name| name.trim().to_owned()).collect(),
            Item::Several(names) => names,
        };
        items.into_iter().map(group).collect()
    } else {
        text.split(',').map(|group| group.split('+').map(|name| name.trim().to_owned()).collect()).collect()
    };
    let mut seen = BTreeSet::new();
    for name in groups.iter().flatten() {
        if name.is_empty() {
            return Err("has a region without a name; write it like a, b + c".to_owned());
        }
        if !seen.insert(name) {
            return Err(format!("names region {name} twice"));
        }
    }
    Ok(groups)
}

/// How a region before this one stands in its way.
enum Before {
    Done { swapped_at: Option<Timestamp> },
    PassedOver,
    Failed(String),
    NotYet(&'static str),
}

fn before(region: &RegionStatus) -> Before {
    let swapped_at = region.reached_at.get(RegionPushStatus::Swapped.name()).copied();
    match region.status {
        RegionPushStatus::Failed => {
            Before::Failed(region.error.clone().unwrap_or_else(|| "it gave no reason".to_owned()))
        }
        RegionPushStatus::Done => Before::Done { swapped_at },
        RegionPushStatus::LeftOut => Before::PassedOver,
        _ if !region.available => Before::PassedOver,
        RegionPushStatus::NotCreated => Before::NotYet("has not got the version yet"),
        RegionPushStatus::Ingesting => Before::NotYet("still ingests"),
        RegionPushStatus::Ingested => Before::NotYet("holds the version and has not swapped"),
        RegionPushStatus::Swapping => Before::NotYet("is swapping"),
        RegionPushStatus::Swapped => Before::NotYet("serves the version, and its post-swap gate has not opened"),
        RegionPushStatus::Stopped => Before::NotYet("was stopped"),
    }
}

fn decide(context: &Context) -> Result<Four, HookError> {
    let order = Order::read(&context.config)?;
    if order.groups.is_empty() {
        return Ok(Four::Proceed);
    }
    let region = context.region.as_deref().ok_or_else(|| HookError::new("was asked about no region"))?;
    let turn = order.position(region);
    let mut last_swap: Option<(Timestamp, &str)> = None;
    let mut waits_for: Option<String> = None;
    for (name, status) in context.regions.iter().filter(|(name, _)| order.position(name) < turn) {
        match before(status) {
            Before::PassedOver => {}
            Before::Failed(error) => {
                let order = order.text();
                let reason =
                    format!("region {name}, which comes before {region} in the order {order}, has failed: {error}");
                return Ok(Four::Abort { reason });
            }
            Before::NotYet(state) => {
                waits_for.get_or_insert_with(|| format!("waits for {name}, which {state} (order {})", order.text()));
            }
            Before::Done { swapped_at } => {
                if let Some(at) = swapped_at
                    && last_swap.is_none_or(|(other, _)| at > other)
                {
                    last_swap = Some((at, name));
                }
            }
        }
    }
    if let Some(reason) = waits_for {
        return Ok(Four::Wait { reason, ask_again_at: None });
    }
    if let Some((at, name)) = last_swap {
        let due = at.after(order.delay);
        if context.now < due {
            let passed = wording::duration(context.now.since(at));
            let delay = wording::duration(order.delay);
            let due_text = wording::time(due);
            let reason = format!("{passed} since the swap of {name} (limit at least {delay}, over at {due_text})");
            return Ok(Four::Wait { reason, ask_again_at: Some(due) });
        }
    }
    Ok(Four::Proceed)
}

#[async_trait]
impl StoreLifecycleHooks for RegionOrder {
    async fn validate_hook_config(&self, context: &ValidationContext) -> Result<Answer<Two>, HookError> {
        let order = match Order::read(&context.config) {
            Ok(order) => order,
            Err(error) => return Ok(Two::Abort { reason: error.to_string() }.into()),
        };
        if context.key == "order"
            && let Some(regions) = &context.regions
            && let Some(unknown) = order.groups.iter().flatten().find(|name| !regions.contains(*name))
        {
            let known = regions.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let value = &context.value;
            let reason = format!("order = {value:?}: there is no region {unknown}; there are {known}");
            return Ok(Two::Abort { reason }.into());
        }
        Ok(Two::Proceed.into())
    }

    async fn pre_store_version_swap(&self, context: &Context) -> Result<Answer<Four>, HookError> {
        decide(context).map(Answer::from)
    }

    async fn pre_start_of_store_version_ingestion_for_da_vinci(
        &self,
        context: &Context,
    ) -> Result<Answer<Four>, HookError> {
        decide(context).map(Answer::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn region(status: RegionPushStatus, swapped_at: Option<i64>) -> RegionStatus {
        let reached = swapped_at.map(|at| (RegionPushStatus::Swapped.name().to_owned(), Timestamp(at)));
        RegionStatus { status, available: true, reached_at: reached.into_iter().collect(), ..RegionStatus::default() }
    }

    fn context(order: &str, asked: &str, now: i64, regions: &[(&str, RegionStatus)]) -> Context {
        let mut context = Context::new(Function::PreStoreVersionSwap, "s");
        context.config = BTreeMap::from([("order".into(), order.into()), ("delay".into(), "1h".into())]);
        context.region = Some(asked.into());
        context.now = Timestamp(now);
        context.regions = regions.iter().map(|(name, status)| ((*name).to_owned(), status.clone())).collect();
        context
    }

    fn reason(outcome: &Four) -> &str {
        match outcome {
            Four::Proceed => "",
            Four::Abort { reason } | Four::Wait { reason, .. } | Four::Rollback { reason } => reason,
        }
    }

    #[test]
    fn r03_the_first_goes_at_once_and_the_next_when_the_delay_is_over() {
        use RegionPushStatus::{Done, Ingested};
        let regions = [("a", region(Ingested, None)), ("b", region(Ingested, None)), ("c", region(Ingested, None))];
        assert_eq!(decide(&context("a, b, c", "a", 0, &regions)).unwrap(), Four::Proceed);
        let regions = [("a", region(Done, Some(1_000))), ("b", region(Ingested, None)), ("c", region(Ingested, None))];
        let waits = decide(&context("a, b, c", "b", HOUR, &regions)).unwrap();
        assert!(matches!(waits, Four::Wait { ask_again_at: Some(Timestamp(at)), .. } if at == HOUR + 1_000));
        assert!(reason(&waits).contains("59 min 59 s since the swap of a (limit at least 1 h"), "{waits:?}");
        assert_eq!(decide(&context("a, b, c", "b", HOUR + 1_000, &regions)).unwrap(), Four::Proceed);
        let waits = decide(&context("a, b, c", "c", HOUR * 9, &regions)).unwrap();
        assert!(reason(&waits).contains("waits for b"), "{waits:?}");
    }

    #[test]
    fn g02_groups_go_together_and_what_is_not_listed_comes_last() {
        use RegionPushStatus::{Done, Ingested};
        for order in ["a, b + c", r#"["a", ["b", "c"]]"#, r#"["a", "b + c"]"#] {
            let regions = [("a", region(Done, Some(0))), ("b", region(Ingested, None)), ("c", region(Ingested, None))];
            for asked in ["b", "c"] {
                assert_eq!(decide(&context(order, asked, HOUR, &regions)).unwrap(), Four::Proceed, "{order} {asked}");
            }
        }
        let regions = [("a", region(Done, Some(0))), ("b", region(Ingested, None)), ("c", region(Ingested, None))];
        assert!(reason(&decide(&context("a, b", "c", HOUR, &regions)).unwrap()).contains("waits for b"));
    }

    #[test]
    fn g02_a_region_that_is_not_available_is_passed_over_and_one_that_is_gone_too() {
        use RegionPushStatus::{Ingested, LeftOut};
        let out = RegionStatus { available: false, ..region(LeftOut, None) };
        let regions = [("a", out), ("b", region(Ingested, None))];
        assert_eq!(decide(&context("a, gone, b", "b", 0, &regions)).unwrap(), Four::Proceed);
    }

    #[test]
    fn g04_the_turn_comes_after_the_bake_and_after_the_delay() {
        use RegionPushStatus::{Ingested, Swapped};
        let regions = [("a", region(Swapped, Some(0))), ("b", region(Ingested, None))];
        let waits = decide(&context("a, b", "b", HOUR * 2, &regions)).unwrap();
        assert!(reason(&waits).contains("its post-swap gate has not opened"), "{waits:?}");
    }

    #[test]
    fn f01_those_behind_a_failed_region_abort_with_its_error() {
        use RegionPushStatus::{Failed, Ingested, NotCreated};
        let failed = RegionStatus { error: Some("disk full".into()), ..region(Failed, None) };
        let regions = [("a", region(NotCreated, None)), ("b", failed), ("c", region(Ingested, None))];
        let Four::Abort { reason } = decide(&context("a, b, c", "c", 0, &regions)).unwrap() else { panic!("no abort") };
        assert!(reason.contains("region b") && reason.contains("disk full"), "{reason}");
        assert_eq!(decide(&context("a, b, c", "a", 0, &regions)).unwrap(), Four::Proceed, "nothing before it failed");
    }

    #[test]
    fn f07_a_region_behind_can_stop_nothing() {
        use RegionPushStatus::{Done, Failed, Ingested, Ingesting};
        let regions = [("a", region(Ingesting, None)), ("b", region(Ingested, None)), ("c", region(Ingested, None))];
        assert!(reason(&decide(&context("a, b, c", "b", 0, &regions)).unwrap()).contains("waits for a"));
        let regions = [("a", region(Done, Some(0))), ("b", region(Ingested, None)), ("c", region(Failed, None))];
        assert_eq!(decide(&context("a, b, c", "b", HOUR, &regions)).unwrap(), Four::Proceed);
    }

    #[tokio::test]
    async fn g03_bad_orders_and_delays_are_refused_with_key_and_value() {
        for (key, value, part) in [
            ("order", "a, x", "no region x"),
            ("order", "a, b, a", "region a twice"),
            ("order", "a,,b", "without a name"),
            ("order", "[1]", "no list"),
            ("delay", "-5m", "negative"),
            ("delay", "soon", "no duration"),
        ] {
            let context = ValidationContext {
                store: None,
                key: key.into(),
                value: value.into(),
                config: BTreeMap::from([(key.to_owned(), value.to_owned())]),
                regions: Some(["a", "b", "c"].map(str::to_owned).into()),
                now: Timestamp(0),
            };
            let answer = RegionOrder.validate_hook_config(&context).await.unwrap();
            let Two::Abort { reason } = answer.outcome else { panic!("{value} was accepted") };
            assert!(reason.contains(key) && reason.contains(value) && reason.contains(part), "{reason}");
        }
    }
}
