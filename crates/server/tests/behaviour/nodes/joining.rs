//! A node that joins its region, serves on by itself and catches up.

use std::net::SocketAddr;
use std::time::Duration;

use tidegate_client::Client;
use tidegate_client::api::PushStatus;
use tidegate_server::config::RegionSection;
use tidegate_server::node::{Node, NodeSetup};

use super::{start_agent, start_node, until_version};
use crate::world::{LIMIT, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_node_joins_its_region_serves_on_by_itself_and_catches_up() {
    let world = World::start_with(|options| {
        let region = RegionSection { agent: true, nodes: 2, enough: Some(1), ..RegionSection::new("b") };
        options.config.regions = vec![region];
    })
    .await;
    world.store().await;
    let push = async |id: &str, value: &str| {
        let outcome = world.push(id, &world.rows(&format!("{id}.csv"), 40, value)).await;
        assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    };
    let token_file = world.folder.path().join("token");
    std::fs::write(&token_file, "of the region").unwrap();
    let agent = start_agent(&world, "agent-1", Some(token_file.clone())).await;
    push("p1", "x").await;

    // Without the region's token it is not taken in.
    let stranger = start_node("stranger", &agent.url(), world.folder.path().join("stranger")).await;
    let mut setup = NodeSetup::new("n-1", agent.url(), world.folder.path().join("n-1"));
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    setup.token_file = Some(token_file.clone());
    setup.exposure.allow_anyone = true;
    let node = Node::start(setup.clone()).await.unwrap();
    until_version("the node has taken in what the region serves", &node.url(), 1).await;
    let answer = Client::new(&node.url()).unwrap().get("s", "k7", None).await.unwrap();
    assert_eq!((answer.region.as_deref(), answer.node.as_deref()), (Some("b"), Some("n-1")));
    assert_eq!(answer.value["v"], "x7");
    let (status, _) = world.raw(reqwest::Client::new().get(format!("{}/readyz", stranger.url()))).await;
    assert_eq!(status, 503);
    push("p2", "y").await;
    until_version("the node serves version 2", &node.url(), 2).await;
    let shown = tokio::time::timeout(LIMIT, async {
        loop {
            let host = world.client.region("b").await.unwrap().host.unwrap();
            if let Some(shown) = host.nodes.iter().find(|shown| shown.name == "n-1") {
                return shown.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(shown.await.unwrap().address, Some(node.url()));

    // It serves on without its agent, and the agent without it.
    agent.shutdown().await;
    until_version("it serves on", &node.url(), 2).await;
    let before = node.address();
    node.shutdown().await;
    let agent = start_agent(&world, "agent-1", Some(token_file)).await;
    push("p3", "z").await;
    until_version("the agent serves on", &agent.url(), 3).await;
    let waited = tokio::time::timeout(LIMIT, async {
        loop {
            let region = world.client.region("b").await.unwrap();
            if region.stores["s"].lagging_nodes == ["n-1"] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("the node that is gone is named");
    // Back, at another place, it catches up.
    setup.agent = agent.url();
    // If it can't be had, somebody has it.
    let _taken = std::net::TcpListener::bind(before);
    let node = Node::start(setup).await.unwrap();
    until_version("it has caught up", &node.url(), 3).await;
    let shown = tokio::time::timeout(LIMIT, async {
        loop {
            let host = world.client.region("b").await.unwrap().host.unwrap();
            if host.nodes.iter().any(|shown| shown.name == "n-1" && shown.address == Some(node.url())) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    shown.await.expect("it is shown where it is now");
    assert_ne!(node.address(), before);
    node.shutdown().await;
    stranger.shutdown().await;
    agent.shutdown().await;
    world.end().await;
}
