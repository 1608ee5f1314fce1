//! What a region's agent is made of, and its limits.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tidegate_state::Clock;
use uuid::Uuid;

use crate::engine::Engine;
use crate::region::artifacts::RegionArtifacts;
use crate::region::clients::{EmbeddedClients, NoClients};
use crate::region::metrics::RegionMetrics;

/// A node of a region, as its agent knows it.
#[derive(Clone)]
pub struct RegionNode {
    /// Its name, unique within the region.
    pub name: String,
    /// Where it answers reads; absent for one within the agent's own process.
    pub address: Option<String>,
    /// What it is made of.
    pub engine: Arc<dyn Engine>,
}

impl RegionNode {
    /// Whether this is the same node, and not another of its name.
    pub(crate) fn is(&self, other: &RegionNode) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.engine), Arc::as_ptr(&other.engine))
    }
}

/// How long an agent waits, and how often it tries.
#[derive(Clone, Debug)]
pub struct AgentLimits {
    /// After this many failures in a row a step counts as failed for good. It is then still tried,
    /// once in `pause_max`.
    pub attempts: u32,
    /// The pause after the first failure; each further one is twice as long.
    pub pause_first: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// How long a step other than load and verify may take.
    pub step: Duration,
    /// How long reading a version back may take.
    pub verify: Duration,
    /// How long a copy or a load may go without any progress.
    pub stall: Duration,
    /// How long a step that was cut off may take to notice.
    pub stop: Duration,
    /// How often nodes are asked what they hold and serve, when nothing else happens.
    pub observe_every: Duration,
    /// How often progress alone is reported.
    pub progress_every: Duration,
    /// How often the agent says that it lives, and renews its region's lease.
    pub heartbeat_every: Duration,
    /// How long after it was last heard of another agent may host the region.
    pub lease: Duration,
    /// How often what is held is read back from end to end.
    pub scrub_every: Duration,
    /// How many copies, loads and verifications run at a time, over all stores.
    pub heavy_steps: usize,
}

impl Default for AgentLimits {
    fn default() -> Self {
        AgentLimits {
            attempts: 5,
            pause_first: Duration::from_secs(1),
            pause_max: Duration::from_secs(60),
            step: Duration::from_secs(60),
            verify: Duration::from_secs(30 * 60),
            stall: Duration::from_secs(10 * 60),
            stop: Duration::from_secs(10),
            observe_every: Duration::from_secs(15),
            progress_every: Duration::from_secs(1),
            heartbeat_every: Duration::from_secs(10),
            lease: Duration::from_secs(30),
            scrub_every: Duration::from_secs(6 * 60 * 60),
            heavy_steps: 4,
        }
    }
}

impl AgentLimits {
    /// The same limits with another lease. It is renewed three times before it runs out, or more often.
    #[must_use]
    pub fn with_lease(self, lease: Duration) -> AgentLimits {
        AgentLimits { lease, heartbeat_every: self.heartbeat_every.min(lease / 3), ..self }
    }

    /// The pause after this many failures in a row; `share` between 0 and 1 spreads it by a quarter
    /// to either side, so that what failed together is not tried again together.
    #[must_use]
    pub(crate) fn pause(&self, failures: u32, for_good: bool, share: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let grown = self.pause_first.saturating_mul(1 << doublings).min(self.pause_max);
        let pause = if for_good { self.pause_max } else { grown };
        pause.mul_f64(0.75 + 0.5 * share.clamp(0.0, 1.0))
    }
}

/// Where the spread of pauses comes from: numbers from 0 to 1.
pub type Jitter = Arc<dyn Fn() -> f64 + Send + Sync>;

/// Random spread.
#[must_use]
pub fn random_jitter() -> Jitter {
    Arc::new(|| {
        let (_, low) = Uuid::new_v4().as_u64_pair();
        // The upper bits of a random id's second half are fixed; 48 random bits are plenty.
        (low & 0xffff_ffff_ffff) as f64 / (1_u64 << 48) as f64
    })
}

/// What an agent is made of.
#[derive(Clone)]
pub struct AgentOptions {
    /// The region.
    pub region: String,
    /// What people call the agent.
    pub name: String,
    /// Where the agent answers reads, if others can know.
    pub address: Option<String>,
    /// The agent's id if its folder has none yet.
    pub new_id: Uuid,
    /// Where the agent keeps what it was told. One agent at a time uses it.
    pub folder: PathBuf,
    /// The region's nodes.
    pub nodes: Vec<RegionNode>,
    /// Where artifacts come from, and where the region keeps its copies.
    pub artifacts: RegionArtifacts,
    /// The region's embedded clients.
    pub clients: Arc<dyn EmbeddedClients>,
    /// The clock that all its times are by: the control plane's, where they share a process.
    pub clock: Arc<dyn Clock>,
    /// Spread of pauses.
    pub jitter: Jitter,
    /// Limits.
    pub limits: AgentLimits,
    /// Where it counts.
    pub metrics: RegionMetrics,
    /// Where the agent writes the token by which it hosts its region, for nodes that obey the highest alone.
    pub token: Arc<AtomicU64>,
}

impl AgentOptions {
    /// An agent with the usual limits and no embedded clients.
    #[must_use]
    pub fn new(
        region: impl Into<String>,
        folder: impl Into<PathBuf>,
        nodes: Vec<RegionNode>,
        artifacts: RegionArtifacts,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let region = region.into();
        AgentOptions {
            name: region.clone(),
            region,
            address: None,
            new_id: Uuid::new_v4(),
            folder: folder.into(),
            nodes,
            artifacts,
            clients: Arc::new(NoClients::default()),
            clock,
            jitter: random_jitter(),
            limits: AgentLimits::default(),
            metrics: RegionMetrics::default(),
            token: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f6_pauses_grow_up_to_a_limit_and_are_spread() {
        let limits = AgentLimits::default();
        let pauses: Vec<u64> = (1..=8).map(|failures| limits.pause(failures, false, 0.5).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(limits.pause(1, true, 0.5), limits.pause_max);
        assert_eq!(limits.pause(1, false, 0.0), Duration::from_millis(750));
        assert_eq!(limits.pause(1, false, 1.0), Duration::from_millis(1_250));
        let jitter = random_jitter();
        assert!((0..100).all(|_| (0.0..=1.0).contains(&jitter())));
    }
}
