//! Metrics of access: who was refused, and what the audit trail has left out.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::refusal::Refusal;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Counts refusals by reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct AccessMetrics {
    refused: Family<Reason, Counter>,
    /// Entries of the audit trail about what changed nothing, left out because too many came at once.
    pub(super) left_out: Counter,
}

impl AccessMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("access");
        registry.register("refused", "Requests that were not let in", metrics.refused.clone());
        registry.register(
            "audit_left_out",
            "Refused requests that the audit trail leaves out because too many came at once",
            metrics.left_out.clone(),
        );
        metrics
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.refused.get_or_create(&Reason { reason: refusal.word() }).inc();
    }
}
