//! What operators watch: how pushes end, regions that serve what they were not told to, how old data is.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tidegate_state::State;

use crate::entities::{EndedBy, PushStatus};
use crate::freshness::{Freshness, freshness};

/// How a push ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    status: String,
    ended_by: String,
}

/// A store in a region.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaceLabels {
    store: String,
    region: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabels {
    store: String,
}

/// Counters of the rollout controller on this server.
#[derive(Debug, Clone, Default)]
pub struct RolloutMetrics {
    pushes_ended: Family<EndLabels, Counter>,
    mismatches: Family<PlaceLabels, Counter>,
}

impl RolloutMetrics {
    /// Registers the counters, and what is read off the state whenever metrics are collected.
    pub fn register(&self, registry: &mut Registry, state: State) {
        registry.register(
            "tidegate_pushes_ended",
            "Pushes that have ended, by status and what ended them",
            self.pushes_ended.clone(),
        );
        registry.register(
            "tidegate_serving_mismatches",
            "Times that a region was found to serve something else than it was told to and had confirmed",
            self.mismatches.clone(),
        );
        registry.register_collector(Box::new(FreshnessCollector { state }));
    }

    pub(crate) fn push_ended(&self, status: PushStatus, by: Option<EndedBy>) {
        let labels = EndLabels { status: status.word().to_owned(), ended_by: by.map_or("", EndedBy::word).to_owned() };
        self.pushes_ended.get_or_create(&labels).inc();
    }

    pub(crate) fn mismatch(&self, store: &str, region: &str) {
        let labels = PlaceLabels { store: store.to_owned(), region: region.to_owned() };
        self.mismatches.get_or_create(&labels).inc();
    }

    /// How often a region was found to serve something else than it was told to and had confirmed.
    #[must_use]
    pub fn mismatches(&self, store: &str, region: &str) -> u64 {
        let labels = PlaceLabels { store: store.to_owned(), region: region.to_owned() };
        self.mismatches.get_or_create(&labels).get()
    }
}

struct FreshnessCollector {
    state: State,
}

impl fmt::Debug for FreshnessCollector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("FreshnessCollector").finish_non_exhaustive()
    }
}

impl Collector for FreshnessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stores = freshness(&self.state.snapshot(), self.state.now());
        encode_ages(&mut encoder, &stores)?;
        encode_flags(
            &mut encoder,
            "tidegate_push_overdue",
            "1 where no push has completed within the time that the store expects one",
            stores.iter().map(|store| (store.store.as_str(), store.overdue)),
        )?;
        encode_flags(
            &mut encoder,
            "tidegate_push_stalled",
            "1 where a push has spent half of its limit while something held it, or a region is long past its turn to swap",
            stores.iter().map(|store| (store.store.as_str(), store.stalled)),
        )
    }
}

fn encode_ages(encoder: &mut DescriptorEncoder<'_>, stores: &[Freshness]) -> Result<(), fmt::Error> {
    let age = ConstGauge::new(0_i64);
    let mut family = encoder.encode_descriptor(
        "tidegate_served_age_seconds",
        "How long ago the data that a region serves was completed",
        None,
        age.metric_type(),
    )?;
    for store in stores {
        for (region, age) in &store.ages {
            let labels = PlaceLabels { store: store.store.clone(), region: region.clone() };
            let gauge = ConstGauge::new(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_flags<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    flags: impl Iterator<Item = (&'a str, bool)>,
) -> Result<(), fmt::Error> {
    let gauge = ConstGauge::new(0_i64);
    let mut family = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    for (store, raised) in flags {
        let labels = StoreLabels { store: store.to_owned() };
        ConstGauge::new(i64::from(raised)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
