//! Nodes that are removed from their region, and what is told of it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tidegate_client::api::{AuditChange, AuditView, PushStatus};
use tidegate_client::{AuditQuery, Client};
use tidegate_server::agent::{AgentHandle, ControlError, NodeRemoval, remove_node};
use tidegate_server::config::RegionSection;
use tidegate_server::node::{Node, NodeSetup};

use super::{start_agent, start_node, until_version};
use crate::world::{LIMIT, World};

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// A region with an agent that has one node, and one beside it, both of which have to hold what is pushed.
async fn region_of_two() -> (World, AgentHandle, NodeSetup) {
    let world = World::start_with(|options| {
        let region = RegionSection { agent: true, nodes: 2, enough: Some(2), ..RegionSection::new("b") };
        options.config.regions = vec![region];
    })
    .await;
    world.store().await;
    let agent = start_agent(&world, "agent-1", None).await;
    let mut setup = NodeSetup::new("n-1", agent.url(), world.folder.path().join("n-1"));
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    (world, agent, setup)
}

async fn until_left(world: &World, nodes: &[&str]) {
    let waited = tokio::time::timeout(LIMIT, async {
        loop {
            let host = world.client.region("b").await.unwrap().host;
            let there: Vec<String> = host.into_iter().flat_map(|host| host.nodes).map(|node| node.name).collect();
            if there == nodes {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("the region never had {nodes:?}"));
}

fn removal(force: bool) -> NodeRemoval {
    NodeRemoval { by: "me".to_owned(), reason: "its machine has burned down".to_owned(), force }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_node_that_is_removed_with_the_control_plane_gone_is_in_the_audit_trail_once_with_its_time() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settle = |options: &mut tidegate_server::Options| {
        options.listen = Some(SocketAddr::from(([127, 0, 0, 1], port)));
        options.config.regions = vec![RegionSection { agent: true, ..RegionSection::new("b") }];
    };
    let mut world = World::start_with(settle).await;
    let agent = start_agent(&world, "agent-1", None).await;
    let data = world.folder.path().join("agent-1");
    let mut nodes = Vec::new();
    for name in ["n-1", "n-2"] {
        nodes.push(start_node(name, &agent.url(), world.folder.path().join(name)).await);
    }
    until_left(&world, &["b-1", "n-1", "n-2"]).await;
    world.server.take().unwrap().shutdown().await;
    let before = now_ms();
    remove_node(&data, "n-1", removal(true)).await.unwrap();
    agent.shutdown().await;
    // Where no agent runs, the order is carried out on its folder, and told by the next one.
    remove_node(&data, "n-2", removal(true)).await.unwrap();
    let after = now_ms();

    let mut options = crate::world::options(world.folder.path());
    settle(&mut options);
    let server = tidegate_server::Server::start(options).await.unwrap();
    world.client = Client::new(&server.url()).unwrap();
    world.server = Some(server);
    let up_again = now_ms();
    let agent = start_agent(&world, "agent-1", None).await;
    let query = AuditQuery { region: Some("b".to_owned()), ..AuditQuery::default() };
    let removals = async || -> Vec<AuditView> {
        let entries = world.client.audit(&query).await.unwrap().entries;
        entries.into_iter().filter(|entry| entry.operation == "remove node").collect()
    };
    let told = tokio::time::timeout(LIMIT, async {
        loop {
            let entries = removals().await;
            if entries.len() >= 2 {
                return entries;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let told = told.await.expect("both are reported");
    // The newest first.
    for (entry, node) in told.iter().zip(["n-2", "n-1"]) {
        assert_eq!((entry.user.as_str(), entry.reason.as_deref()), ("me", Some("its machine has burned down")));
        assert!((before..=after).contains(&entry.at), "{before} {after} {entry:#?}");
        let removed = &entry.entities[0];
        assert_eq!((removed.kind.as_str(), removed.id.as_str()), ("node", node));
        assert_eq!(removed.change, AuditChange::Removed);
        let field = |name: &str| removed.fields.iter().find(|field| field.field == name).unwrap();
        assert_eq!(field("region").before.as_deref(), Some("b"));
        let reported_at: u64 = field("reported_at").after.as_ref().unwrap().parse().unwrap();
        assert!(reported_at >= up_again, "{reported_at} {up_again}");
    }
    // Once, also where it was told twice: the agent may not have heard that it was.
    let list: Value = serde_json::from_slice(&std::fs::read(data.join("removals.json")).unwrap()).unwrap();
    let again = serde_json::json!({
        "list": list["id"], "number": 2, "agent": "agent-1", "node": "n-2", "address": "http://127.0.0.1:1",
        "by": "me", "reason": "again", "forced": true, "at": before,
    });
    let http = reqwest::Client::new();
    let url = format!("{}/v1/regions/b/agent/removals", world.url());
    assert_eq!(world.raw(http.post(&url).json(&again)).await.0, 204);
    assert_eq!(removals().await, told);
    let nowhere = url.replace("/b/", "/nowhere/");
    assert_eq!(world.raw(http.post(&nowhere).json(&again)).await.0, 404);
    for node in nodes {
        node.shutdown().await;
    }
    agent.shutdown().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_node_that_is_gone_for_good_holds_pushes_up_until_it_is_removed() {
    let (world, agent, setup) = region_of_two().await;
    let data = world.folder.path().join("agent-1");
    let node = Node::start(setup.clone()).await.unwrap();
    until_left(&world, &["b-1", "n-1"]).await;
    let outcome = world.push("p1", &world.rows("p1.csv", 40, "x")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    until_version("the node serves version 1", &node.url(), 1).await;

    // Given a node that has died, a push comes no further than to those that are left.
    drop(node);
    let job = world.job("p2", &world.rows("p2.csv", 40, "y"));
    let client = world.client.clone();
    let pushing = tokio::spawn(async move { job.run(&client, &mut |_| {}).await });
    let held = async {
        loop {
            let region = world.client.region("b").await.unwrap();
            if region.stores.get("s").is_some_and(|store| store.lagging_nodes == ["n-1"] && store.held.contains_key(&2))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, held).await.expect("the push waits for the node");
    assert!(!pushing.is_finished());
    // When it is removed, the push goes on, and the region is one node smaller.
    // (Forced: it may have been heard of a moment ago.)
    let removed = remove_node(&data, "n-1", removal(true)).await.unwrap();
    assert_eq!((removed.node.as_str(), removed.left.as_slice()), ("n-1", &["b-1".to_owned()][..]));
    let outcome = tokio::time::timeout(LIMIT, pushing).await.expect("the push ends").unwrap().unwrap();
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    assert_eq!(world.serving().await["b"], 2);
    until_left(&world, &["b-1"]).await;
    let refused = remove_node(&data, "n-1", removal(true)).await.unwrap_err();
    assert!(refused.to_string().contains("no such node"), "{refused}");

    // It stays so after a restart of the agent; a node of that name that is started joins, and catches up.
    agent.shutdown().await;
    let agent = start_agent(&world, "agent-1", None).await;
    until_left(&world, &["b-1"]).await;
    let node = Node::start(NodeSetup { agent: agent.url(), ..setup }).await.unwrap();
    until_version("the node is back", &node.url(), 2).await;
    until_left(&world, &["b-1", "n-1"]).await;
    node.shutdown().await;
    agent.shutdown().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_node_that_is_removed_while_it_serves_is_told_to_end_and_one_that_stops_stays_a_member() {
    let (world, agent, mut setup) = region_of_two().await;
    let data = world.folder.path().join("agent-1");
    let node = Node::start(setup.clone()).await.unwrap();
    until_left(&world, &["b-1", "n-1"]).await;
    // One that stops in order is expected back, and is brought to where the others are.
    setup.listen = node.address();
    node.shutdown().await;
    until_left(&world, &["b-1", "n-1"]).await;
    let node = Node::start(setup).await.unwrap();
    let outcome = world.push("p1", &world.rows("p1.csv", 40, "x")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    until_version("it is commanded again", &node.url(), 1).await;
    let refused = remove_node(&data, "b-1", removal(true)).await.unwrap_err();
    assert!(refused.to_string().contains("within the agent's own process"), "{refused}");
    let without_reason = NodeRemoval { reason: " ".to_owned(), ..removal(true) };
    assert!(remove_node(&data, "n-1", without_reason).await.unwrap_err().to_string().contains("reason"));
    let refused = remove_node(&data, "n-1", removal(false)).await.unwrap_err();
    let ControlError::Refused(body) = refused else { panic!("{refused}") };
    assert!(body.why.contains("heard of") && body.why.contains("serves"), "{body}");
    assert!(body.consequences.contains("reads that go there fail"), "{body}");
    let removed = remove_node(&data, "n-1", removal(true)).await.unwrap();
    assert!(removed.was_heard && removed.address == node.url(), "{removed:?}");
    let told = tokio::time::timeout(LIMIT, node.removed()).await.expect("it is told");
    assert!(told.what.contains("region `b`"), "{told}");
    until_left(&world, &["b-1"]).await;
    node.shutdown().await;
    agent.shutdown().await;
    world.end().await;
}
