//! What regions count. All of it is by region, reads also by node.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The label of what is counted by region.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RegionLabel {
    /// The region.
    pub region: String,
}

/// The labels of what is counted by region and step.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabels {
    /// The region.
    pub region: String,
    /// The step: `load`, `swap` and so on.
    pub step: String,
}

/// The labels of what is counted by node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NodeLabels {
    /// The region.
    pub region: String,
    /// The node.
    pub node: String,
}

/// The figures of all regions of one process.
#[derive(Clone, Debug, Default)]
pub struct RegionMetrics {
    mismatches: Family<RegionLabel, Counter>,
    failures: Family<StepLabels, Counter>,
    given_up: Family<StepLabels, Counter>,
    swaps: Family<RegionLabel, Counter>,
    copied_bytes: Family<RegionLabel, Counter>,
    loaded_bytes: Family<RegionLabel, Counter>,
    reports: Family<RegionLabel, Counter>,
    reports_failed: Family<RegionLabel, Counter>,
    reads: Family<NodeLabels, Counter>,
    reads_failed: Family<NodeLabels, Counter>,
    stores_in_trouble: Family<RegionLabel, Gauge>,
}

impl RegionMetrics {
    /// Makes the figures visible.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("tidegate_region");
        registry.register(
            "mismatches",
            "A node was found not to hold or serve what it had reached",
            self.mismatches.clone(),
        );
        registry.register("step_failures", "Steps that failed, each attempt", self.failures.clone());
        registry.register("steps_given_up", "Steps that count as failed for good", self.given_up.clone());
        registry.register("swaps", "Changes of a node's pointer", self.swaps.clone());
        registry.register("copied_bytes", "Bytes copied from the source to the region", self.copied_bytes.clone());
        registry.register("loaded_bytes", "Bytes of parts loaded by nodes", self.loaded_bytes.clone());
        registry.register("reports", "Reports written", self.reports.clone());
        registry.register(
            "reports_failed",
            "Reports that could not be written, each attempt",
            self.reports_failed.clone(),
        );
        registry.register("reads", "Reads answered by the node", self.reads.clone());
        registry.register("reads_failed", "Reads that the node could not answer", self.reads_failed.clone());
        registry.register(
            "stores_in_trouble",
            "Stores of which a step has failed and is tried again",
            self.stores_in_trouble.clone(),
        );
    }

    /// The figures of one region.
    #[must_use]
    pub fn of_region(&self, region: &str) -> RegionFigures {
        let label = RegionLabel { region: region.to_owned() };
        RegionFigures {
            mismatches: self.mismatches.get_or_create(&label).clone(),
            swaps: self.swaps.get_or_create(&label).clone(),
            copied_bytes: self.copied_bytes.get_or_create(&label).clone(),
            loaded_bytes: self.loaded_bytes.get_or_create(&label).clone(),
            reports: self.reports.get_or_create(&label).clone(),
            reports_failed: self.reports_failed.get_or_create(&label).clone(),
            stores_in_trouble: self.stores_in_trouble.get_or_create(&label).clone(),
            region: region.to_owned(),
            all: self.clone(),
        }
    }

    /// The figures of one node's reads.
    #[must_use]
    pub fn of_node(&self, region: &str, node: &str) -> NodeFigures {
        let labels = NodeLabels { region: region.to_owned(), node: node.to_owned() };
        NodeFigures {
            reads: self.reads.get_or_create(&labels).clone(),
            reads_failed: self.reads_failed.get_or_create(&labels).clone(),
        }
    }
}

/// The figures of one region, looked up once.
#[derive(Clone, Debug)]
pub struct RegionFigures {
    /// Observations that differ from what the region had reached, once per store and occurrence.
    pub mismatches: Counter,
    /// Changes of a node's pointer.
    pub swaps: Counter,
    /// Bytes copied from the source to the region.
    pub copied_bytes: Counter,
    /// Bytes of parts loaded by nodes.
    pub loaded_bytes: Counter,
    /// Reports written.
    pub reports: Counter,
    /// Reports that could not be written, each attempt.
    pub reports_failed: Counter,
    /// Stores of which a step has failed and is tried again.
    pub stores_in_trouble: Gauge,
    region: String,
    all: RegionMetrics,
}

impl RegionFigures {
    fn labels(&self, step: &str) -> StepLabels {
        StepLabels { region: self.region.clone(), step: step.to_owned() }
    }

    /// Attempts of this step that failed.
    #[must_use]
    pub fn failures(&self, step: &str) -> Counter {
        self.all.failures.get_or_create(&self.labels(step)).clone()
    }

    /// How often this step came to count as failed for good.
    #[must_use]
    pub fn given_up(&self, step: &str) -> Counter {
        self.all.given_up.get_or_create(&self.labels(step)).clone()
    }
}

/// The figures of one node's reads, looked up once.
#[derive(Clone, Debug)]
pub struct NodeFigures {
    /// Reads that it answered; a batch is one.
    pub reads: Counter,
    /// Reads that it could not answer.
    pub reads_failed: Counter,
}
