//! Nodes that are processes of their own.
//!
//! | file | has |
//! |---|---|
//! | this one | a node, an agent, and waiting for what one of them serves |
//! | `engine` | N1 to N8 over HTTP; whom a node obeys |
//! | `joining` | R7, R12: a node that joins its region, serves by itself and catches up |
//! | `removals` | C19: nodes that are gone for good |

mod engine;
mod joining;
mod removals;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tidegate_client::Client;
use tidegate_server::agent::{Agent, AgentHandle, AgentSetup};
use tidegate_server::node::{Node, NodeHandle, NodeSetup};

use crate::world::{LIMIT, World};

async fn start_node(name: &str, agent: &str, data: PathBuf) -> NodeHandle {
    let mut setup = NodeSetup::new(name, agent, data);
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    // The process before may take a moment to be gone altogether.
    let started = tokio::time::timeout(LIMIT, async {
        loop {
            match Node::start(setup.clone()).await {
                Ok(node) => return node,
                Err(tidegate_server::agent::AgentStartError::DataInUse { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    });
    started.await.unwrap()
}

async fn start_agent(world: &World, name: &str, token_file: Option<PathBuf>) -> AgentHandle {
    let mut setup = AgentSetup::new("b", vec![world.url()], world.folder.path().join(name));
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    setup.lease = Duration::from_secs(3);
    setup.nodes = 1;
    setup.token_file = token_file;
    // Whoever reaches it may read; nodes show the region's token all the same.
    setup.exposure.allow_anyone = true;
    Agent::start(setup).await.unwrap()
}

async fn until_version(what: &str, url: &str, version: u64) {
    let client = Client::new(url).unwrap();
    let waited = tokio::time::timeout(LIMIT, async {
        while client.get("s", "k7", None).await.ok().map(|answer| answer.version) != Some(version) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}
