//! A region over TLS from end to end, with certificates of an authority of its own: C8.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tidegate_client::api::{PushStatus, Role};
use tidegate_client::{Client, Options as ClientOptions, Token};
use tidegate_server::access::Exposure;
use tidegate_server::access::config::{Authentication, TlsSection};
use tidegate_server::agent::{Agent, AgentHandle, AgentSetup, AgentStartError};
use tidegate_server::config::RegionSection;
use tidegate_server::node::{Node, NodeHandle, NodeSetup};

use crate::certificates::{Authority, section, write};
use crate::world::{LIMIT, World};

fn client(url: &str, ca: &Path, token: &str) -> Client {
    let mut options = ClientOptions::new(url);
    options.ca = Some(ca.to_owned());
    options.token = Some(Token::new(token).unwrap());
    options.patience = Duration::ZERO;
    Client::with_options(options).unwrap()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// A server, an agent of region `b` and a node, each of which trusts what this file says. The test trusts another.
async fn start_all(tls: &TlsSection, trusted: &Path, by_the_test: &Path) -> (World, AgentHandle, NodeHandle) {
    let mut world = World::start_with(|options| {
        options.config.access.authentication = Some(Authentication::Required);
        options.config.tls = tls.clone();
        options.config.server.ca_file = Some(trusted.to_owned());
        options.config.regions =
            vec![RegionSection { agent: true, nodes: 2, enough: Some(2), ..RegionSection::new("b") }];
    })
    .await;
    let admin = world.server.as_mut().unwrap().take_first_token().unwrap();
    world.client = client(&world.url(), by_the_test, &admin);
    let token = world.token("agent", Role::Region, Some("b")).await.secret;
    let token_file = world.file("region.token", &token);
    let mut setup = AgentSetup::new("b", vec![world.url()], world.folder.path().join("agent"));
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    setup.nodes = 1;
    setup.token_file = Some(token_file.clone());
    setup.trusted = Some(trusted.to_owned());
    setup.tls = tls.clone();
    let agent = Agent::start(setup).await.unwrap();
    let mut setup = NodeSetup::new("n-1", agent.url(), world.folder.path().join("node"));
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    setup.token_file = Some(token_file);
    setup.trusted = Some(trusted.to_owned());
    setup.tls = tls.clone();
    let node = Node::start(setup).await.unwrap();
    (world, agent, node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c8_server_agent_and_node_speak_tls_to_one_another_and_take_new_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, later) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "later"));
    write(folder.path(), &authority.issue());
    // Whoever asks trusts both.
    let both = folder.path().join("both.pem");
    let pem = [&authority, &later].map(|authority| std::fs::read_to_string(&authority.file).unwrap()).concat();
    std::fs::write(&both, pem).unwrap();
    let tls = section(folder.path());
    let (world, agent, node) = start_all(&tls, &both, &both).await;
    assert!(agent.url().starts_with("https://"));
    until("the node has joined", async || {
        world.client.region("b").await.unwrap().host.is_some_and(|host| host.nodes.len() == 2)
    })
    .await;
    world.store().await;
    let outcome = world.push("p1", &world.rows("p1.csv", 20, "x")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    let reader = world.token("reader", Role::Reader, None).await.secret;
    for url in [agent.url(), node.url(), world.url()] {
        until(&format!("{url} answers"), async || client(&url, &both, &reader).get("s", "k7", Some("b")).await.is_ok())
            .await;
        assert!(client(&url, &later.file, &reader).get("s", "k7", Some("b")).await.unwrap_err().is_unreachable());
        let plain = url.replace("https://", "http://");
        assert!(client(&plain, &both, &reader).get("s", "k7", Some("b")).await.is_err(), "{plain}");
    }
    // A new pair is taken by all of them, and what goes on between them goes on.
    write(folder.path(), &later.issue());
    for url in [agent.url(), node.url(), world.url()] {
        until(&format!("{url} shows the new certificate"), async || {
            client(&url, &later.file, &reader).get("s", "k7", Some("b")).await.is_ok()
        })
        .await;
    }
    let outcome = world.push("p2", &world.rows("p2.csv", 20, "y")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    node.shutdown().await;
    agent.shutdown().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c8_another_authority_is_trusted_as_soon_as_the_file_says_so_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (wrong, right) = (Authority::new(folder.path(), "wrong"), Authority::new(folder.path(), "right"));
    write(folder.path(), &right.issue());
    // What server, agent and node read.
    let trusted = folder.path().join("trusted.pem");
    std::fs::copy(&wrong.file, &trusted).unwrap();
    let put = |text: &str| {
        let new = folder.path().join("trusted.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &trusted).unwrap();
    };
    let tls = section(folder.path());
    let (world, agent, node) = start_all(&tls, &trusted, &right.file).await;
    let words = || agent.region().agent().standing().borrow().words();
    until("the agent does not trust the server", async || words().contains("certificate")).await;
    // What can't be used is no reason to end, and nothing is trusted for it.
    put("-----BEGIN CERTIFICATE-----\nnonsense");
    until("the agent has asked again", async || words().contains("certificate")).await;
    assert!(world.client.region("b").await.unwrap().host.is_none());

    put(&std::fs::read_to_string(&right.file).unwrap());
    until("agent and node have come", async || {
        world.client.region("b").await.unwrap().host.is_some_and(|host| host.nodes.len() == 2)
    })
    .await;
    // For this the agent has to ask the server, the node its agent, and the agent the node.
    world.store().await;
    let outcome = world.push("p1", &world.rows("p1.csv", 20, "x")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    // And for this the server the agent.
    let reader = world.token("reader", Role::Reader, None).await.secret;
    until("the server reads at the agent", async || {
        client(&world.url(), &right.file, &reader).get("s", "k7", Some("b")).await.is_ok()
    })
    .await;
    node.shutdown().await;
    agent.shutdown().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_loopback_an_agent_and_a_node_need_tls_and_a_token_unless_told_otherwise_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    write(folder.path(), &authority.issue());
    let token = folder.path().join("token");
    std::fs::write(&token, "tg_x").unwrap();
    let everywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
    for (has_token, has_tls, exposure, is_let) in [
        (false, false, Exposure::default(), false),
        (true, false, Exposure::default(), false),
        (false, true, Exposure::default(), false),
        (true, true, Exposure::default(), true),
        (true, false, Exposure { allow_plain_http: true, ..Exposure::default() }, true),
        (false, true, Exposure { allow_anyone: true, ..Exposure::default() }, true),
        (false, false, Exposure { allow_anyone: true, allow_plain_http: true }, true),
    ] {
        let about = format!("token: {has_token}, tls: {has_tls}, {exposure:?}");
        let home = tempfile::tempdir().unwrap();
        let mut setup = AgentSetup::new("b", vec!["http://127.0.0.1:1".to_owned()], home.path().join("agent"));
        setup.listen = everywhere;
        setup.exposure = exposure;
        setup.token_file = has_token.then(|| token.clone());
        setup.tls = if has_tls { section(folder.path()) } else { setup.tls };
        let mut node = NodeSetup::new("n", "http://127.0.0.1:1", home.path().join("node"));
        node.listen = everywhere;
        node.exposure = exposure;
        node.token_file.clone_from(&setup.token_file);
        node.tls = setup.tls.clone();
        // On all addresses a node has to say by which one its agent reaches it.
        let lost = Node::start(node.clone()).await;
        assert!(
            matches!(lost, Err(AgentStartError::Exposed(_) | AgentStartError::Setting { .. })),
            "{about}: {lost:?}"
        );
        node.advertise = Some("https://node.example:7620".to_owned());
        let (agent, node) = (Agent::start(setup).await, Node::start(node).await);
        assert_eq!((agent.is_ok(), node.is_ok()), (is_let, is_let), "{about}: {agent:?} {node:?}");
        if let (Ok(agent), Ok(node)) = (agent, node) {
            agent.shutdown().await;
            node.shutdown().await;
        }
    }
}
