//! Regions: where data is served, and the agents that make each region what it should be.
//!
//! A region is a few nodes, each an [`Engine`](crate::engine::Engine), and one [`RegionAgent`] that
//! follows the region's assignments over a [`RegionLink`] and reports what is. [`RegionHost`] keeps
//! the regions of one process and answers reads from them.
//!
//! | module | has |
//! |---|---|
//! | [`link`] | what an agent and the control plane say to each other, in process and over HTTP |
//! | [`hosting`] | a region is hosted by one agent at a time |
//! | [`pin`] | break glass: a version pinned in the region itself |
//! | [`agent`] | the agent: one task per store |
//! | [`artifacts`], [`remote`] | the region's copies, and where they come from |
//! | [`clients`] | embedded clients |
//! | [`host`] | the regions of one process |

pub(crate) mod plan;
mod standing;

pub mod agent;
pub mod artifacts;
mod capacity;
pub mod clients;
pub mod host;
pub mod hosting;
pub mod link;
pub mod metrics;
pub mod pin;
pub mod remote;

pub use agent::{AgentLimits, AgentOptions, RegionAgent, RegionNode};
pub use artifacts::RegionArtifacts;
pub use clients::{EmbeddedClients, NoClients};
pub use host::RegionHost;
pub use hosting::Standing;
pub use link::{HttpLink, HttpLinkOptions, RegionLink, StateLink};
pub use metrics::RegionMetrics;
pub use remote::{RemoteArtifacts, RemoteClient, RemoteOptions, TokenFile};
