//! Reads at a server of a region that an agent hosts: C8, C20.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use parking_lot::Mutex;
use serde_json::json;
use tidegate_client::api::{PushStatus, Role, code};
use tidegate_server::agent::{Agent, AgentSetup};
use tidegate_server::config::RegionSection;
use uuid::Uuid;

use crate::world::{LIMIT, World, assert_error};

async fn with_agents_region() -> World {
    let world = World::guarded_with(|options| {
        options.config.regions = vec![RegionSection { agent: true, nodes: 1, ..RegionSection::new("b") }];
    })
    .await;
    world.store().await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c8_a_server_answers_reads_of_a_region_that_an_agent_hosts() {
    let world = with_agents_region().await;
    let nobody = world.client.get("s", "k7", Some("b")).await.unwrap_err();
    assert!(nobody.to_string().contains("No agent hosts it"), "{nobody}");
    let token = world.token("agent", Role::Region, Some("b")).await.secret;
    let mut setup = AgentSetup::new("b", vec![world.url()], world.folder.path().join("agent"));
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    setup.lease = Duration::from_secs(3);
    setup.nodes = 1;
    setup.token_file = Some(world.file("agent.token", &token));
    let agent = Agent::start(setup).await.unwrap();
    let outcome = world.push("p1", &world.rows("p1.csv", 20, "x")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    let reader = world.client_with(&world.token("reader", Role::Reader, None).await.secret);
    for region in [Some("b"), None] {
        let answer = reader.get("s", "k7", region).await.unwrap();
        assert_eq!((answer.region.as_deref(), answer.node.as_deref()), (Some("b"), Some("b-1")));
        assert_eq!((answer.version, answer.value["v"].as_str()), (1, Some("x7")));
        let batch = reader.get_batch("s", vec!["k1".to_owned(), "k2".to_owned()], region).await.unwrap();
        assert!(batch.values.iter().all(|value| value.value.is_some()), "{batch:?}");
    }
    // Who may not read here does not there either, and a store that is not there is not looked for there.
    let region = world.client_with(&token);
    assert_eq!(region.get("s", "k7", Some("b")).await.unwrap_err().code(), Some(code::FORBIDDEN));
    assert_eq!(reader.get("none", "k7", Some("b")).await.unwrap_err().code(), Some(code::STORE_UNKNOWN));
    // What the server shows to the agent is in no answer, not even as a digest.
    let mut events = world.client.watch(Some("/regions"), None);
    let first = tokio::time::timeout(LIMIT, events.next()).await.unwrap().unwrap().unwrap();
    let text = serde_json::to_string(&first).unwrap();
    assert!(text.contains("/regions/b/assignments/s") && !text.contains("errands"), "{text}");
    agent.shutdown().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c20_the_token_of_whoever_reads_goes_to_no_address_that_an_agent_names() {
    let world = with_agents_region().await;
    // Somebody with the token of the region hosts it, at an address of theirs.
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let hears = Arc::clone(&heard);
    let listens = Router::new().fallback(move |request: Request| {
        let shown = request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?")));
        hears.lock().extend(shown);
        async { axum::http::StatusCode::UNAUTHORIZED }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let listening = tokio::spawn(async move { axum::serve(listener, listens).await });
    let of_region = world.token("agent", Role::Region, Some("b")).await.secret;
    let claim = json!({"agent": Uuid::new_v4().to_string(), "name": "x", "address": address, "lease_ms": 60_000});
    let http = reqwest::Client::new();
    let host = http.put(format!("{}/v1/regions/b/agent/host", world.url())).bearer_auth(&of_region).json(&claim);
    let (status, body) = world.raw(host).await;
    assert_eq!(status, 200, "{body}");

    let reader = world.token("reader", Role::Reader, None).await.secret;
    let read = http.get(format!("{}/v1/stores/s/keys/k7?region=b", world.url()));
    let (status, body) = world.raw(read.bearer_auth(&reader).header("cookie", "tidegate_session=secret")).await;
    assert_eq!((status, body["retryable"].as_bool()), (503, Some(true)), "{body}");
    assert_error(&body, "a host that lets nobody in");
    let heard = heard.lock().join("\n");
    assert!(heard.contains("authorization: Bearer tg_") && heard.contains("tidegate-forwarded: 1"), "{heard}");
    assert!(!heard.contains(&reader) && !heard.contains("cookie"), "{heard}");
    // What was shown there opens nothing here.
    let shown = heard.lines().find_map(|line| line.strip_prefix("authorization: Bearer ")).unwrap();
    let (status, _) = world.raw(http.get(format!("{}/v1/stores", world.url())).bearer_auth(shown)).await;
    assert_eq!(status, 401);
    listening.abort();
    world.end().await;
}
