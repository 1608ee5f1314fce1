//! Who may ask an agent and a node, with and without the control plane: C9, C20.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tidegate_client::api::{PushStatus, Role, StoreCreate, StorePatch, code};
use tidegate_server::Server;
use tidegate_server::access::config::Authentication;
use tidegate_server::access::table::{Process, Rule, Scope, TABLE, Who};
use tidegate_server::agent::{Agent, AgentHandle, AgentSetup, ServiceLimits};
use tidegate_server::config::RegionSection;
use tidegate_server::node::{Node, NodeHandle, NodeSetup};

use crate::world::{LIMIT, World, assert_error, options};

/// A server that asks everybody for a token, with the agent of region `b` and a node, which ask too.
struct Guarded {
    world: World,
    agent_setup: AgentSetup,
    agent: AgentHandle,
    node_setup: NodeSetup,
    node: NodeHandle,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn regions() -> Vec<RegionSection> {
    vec![RegionSection::new("a"), RegionSection { agent: true, nodes: 2, ..RegionSection::new("b") }]
}

impl Guarded {
    async fn start() -> Self {
        Self::start_with(ServiceLimits::default()).await
    }

    /// With these limits of agent and node.
    async fn start_with(limits: ServiceLimits) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let world = World::guarded_with(|options| {
            options.listen = Some(SocketAddr::from(([127, 0, 0, 1], port)));
            options.config.regions = regions();
        })
        .await;
        let token = world.file("region.token", &world.token("agent", Role::Region, Some("b")).await.secret);
        let (mut agent_setup, node_setup) = setups(&world, token);
        agent_setup.limits = limits.clone();
        let agent = Agent::start(agent_setup.clone()).await.unwrap();
        let node_setup = NodeSetup { agent: agent.url(), limits, ..node_setup };
        let node = Node::start(node_setup.clone()).await.unwrap();
        Self { world, agent_setup, agent, node_setup, node }
    }

    /// Stores of two teams, the first with data in region `b`.
    async fn furnish(&self) {
        for (name, team) in [("mine", "t1"), ("theirs", "t2")] {
            let store = StoreCreate {
                name: name.to_owned(),
                key_columns: vec!["k".to_owned()],
                settings: StorePatch { team: Some(team.to_owned()), ..StorePatch::default() },
                ..StoreCreate::default()
            };
            self.world.client.create_store(&store).await.unwrap();
            let mut job = self.world.job(name, &self.world.rows(&format!("{name}.csv"), 20, "x"));
            name.clone_into(&mut job.store);
            let outcome = job.run(&self.world.client, &mut |_| {}).await.unwrap();
            assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
        }
        let reader = self.world.token("furnisher", Role::Reader, None).await.secret;
        for url in [self.agent.url(), self.node.url()] {
            for store in ["mine", "theirs"] {
                until(&format!("{store} is served at {url}"), async || get(&url, store, Some(&reader)).await.0 == 200)
                    .await;
            }
        }
    }

    /// What the agent has written into its folder.
    fn beside_agent(&self, file: &str) -> String {
        let text = std::fs::read_to_string(self.world.folder.path().join("agent").join(file)).unwrap();
        text.trim().to_owned()
    }

    async fn end(self) {
        self.node.shutdown().await;
        self.agent.shutdown().await;
        self.world.end().await;
    }
}

fn setups(world: &World, token: PathBuf) -> (AgentSetup, NodeSetup) {
    let mut agent = AgentSetup::new("b", vec![world.url()], world.folder.path().join("agent"));
    agent.listen = loopback();
    agent.lease = Duration::from_secs(3);
    agent.nodes = 1;
    agent.token_file = Some(token.clone());
    let mut node = NodeSetup::new("n-1", "http://127.0.0.1:1", world.folder.path().join("node"));
    node.listen = loopback();
    node.token_file = Some(token);
    (agent, node)
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

async fn get(url: &str, store: &str, token: Option<&str>) -> (u16, serde_json::Value) {
    let request = reqwest::Client::new().get(format!("{url}/v1/stores/{store}/keys/k7"));
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap_or_default())
}

/// Whose token, and what the table has to say of it.
struct Caller {
    what: String,
    token: Option<String>,
    role: Option<Role>,
}

async fn callers(world: &World) -> Vec<Caller> {
    let mut callers = vec![
        Caller { what: "nobody".to_owned(), token: None, role: None },
        Caller { what: "nonsense".to_owned(), token: Some("tg_1_2".to_owned()), role: None },
    ];
    for role in Role::ALL {
        let owner = match role {
            Role::Team => Some("t1"),
            Role::Region => Some("b"),
            _ => None,
        };
        let token = world.token(&format!("the {role}"), role, owner).await.secret;
        let mut wrong = token.clone();
        let last = if wrong.ends_with('0') { '1' } else { '0' };
        wrong.replace_range(wrong.len() - 1.., &last.to_string());
        let revoked = world.token(&format!("revoked {role}"), role, owner).await;
        world.client.revoke_token(&revoked.token.id, None).await.unwrap();
        callers.push(Caller { what: format!("{role}"), token: Some(token), role: Some(role) });
        callers.push(Caller { what: format!("revoked {role}"), token: Some(revoked.secret), role: None });
        if role == Role::Reader {
            callers.push(Caller { what: "wrong secret".to_owned(), token: Some(wrong), role: None });
        }
    }
    // A token of another region is none here.
    let other = world.token("of region a", Role::Region, Some("a")).await.secret;
    callers.push(Caller { what: "of region a".to_owned(), token: Some(other), role: None });
    callers
}

/// The status that the table says: none where the request is let in.
fn expected(rule: &Rule, caller: &Caller, store: &str) -> Option<(u16, &'static str)> {
    match rule.who {
        Who::Anybody => None,
        Who::Secret => Some((403, code::REFUSED)),
        Who::Roles(roles) => match caller.role {
            None => Some((401, code::UNAUTHENTICATED)),
            Some(role) if !roles.contains(&role) => Some((403, code::FORBIDDEN)),
            Some(Role::Team) if rule.scope == Scope::Store && store != "mine" => Some((403, code::FORBIDDEN)),
            Some(_) => None,
        },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_of_an_agent_and_a_node_lets_in_whom_the_table_lets_in_and_nobody_else() {
    let guarded = Guarded::start().await;
    guarded.furnish().await;
    let callers = callers(&guarded.world).await;
    let (agent, node) = (guarded.agent.url(), guarded.node.url());
    for url in [&agent, &node] {
        for caller in callers.iter().filter(|caller| caller.token.is_some()) {
            let wanted: &[u16] = match caller.role {
                // Those that try tokens are held up after a while.
                None => &[401, 429],
                Some(Role::Region) => &[403],
                Some(_) => &[200],
            };
            let what = format!("{url} knows of {}", caller.what);
            until(&what, async || wanted.contains(&get(url, "mine", caller.token.as_deref()).await.0)).await;
        }
    }
    let orders = guarded.beside_agent("control.address");
    let http = reqwest::Client::new();
    let mut asked = BTreeMap::<Process, usize>::new();
    for (process, url) in [(Process::Agent, &agent), (Process::Node, &node), (Process::Orders, &orders)] {
        for rule in TABLE.iter().filter(|rule| rule.at.contains(&process)) {
            for caller in &callers {
                let is_about_a_store = rule.path.contains("{store}");
                for store in ["mine", "theirs", "absent"].into_iter().take(if is_about_a_store { 3 } else { 1 }) {
                    let about = format!("{} {} of {store} as {} at {process:?}", rule.method, rule.path, caller.what);
                    let path = rule.path.replace("{store}", store).replace("{key}", "k7").replace("{node}", "stranger");
                    let path = path.replace("{artifact}", "absent").replace("{file}", "absent");
                    assert!(!path.contains('{'), "{path}: what is it about?");
                    let mut request = http.request(rule.method.to_uppercase().parse().unwrap(), format!("{url}{path}"));
                    if rule.method != "get" {
                        request = request.header("content-type", "application/json").body("{}");
                    }
                    if let Some(token) = &caller.token {
                        request = request.bearer_auth(token);
                    }
                    let response = request.send().await.unwrap();
                    let status = response.status().as_u16();
                    *asked.entry(process).or_default() += 1;
                    let Some((expected, code)) = expected(rule, caller, store) else {
                        assert!(![401, 403, 429].contains(&status), "{about}: {status}");
                        continue;
                    };
                    if status == 429 && expected == 401 && caller.token.is_some() {
                        continue;
                    }
                    let body: serde_json::Value = response.json().await.unwrap();
                    assert_eq!((status, body["code"].as_str()), (expected, Some(code)), "{about}: {body}");
                    assert_error(&body, &about);
                }
            }
        }
    }
    assert!(asked.values().sum::<usize>() > 200, "{asked:?} requests");
    // Each of its four routes was asked as every role and as nobody.
    assert!(asked[&Process::Orders] >= 4 * callers.len(), "{asked:?} requests");
    guarded.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_c19_orders_are_taken_from_who_may_read_the_agents_folder_and_not_from_its_other_secrets() {
    let guarded = Guarded::start().await;
    let (orders, secret) = (guarded.beside_agent("control.address"), guarded.beside_agent("control.secret"));
    let token = std::fs::read_to_string(guarded.world.folder.path().join("region.token")).unwrap();
    let http = reqwest::Client::new();
    for rule in TABLE.iter().filter(|rule| rule.at.contains(&Process::Orders)) {
        let path = rule.path.replace("{store}", "absent").replace("{node}", "stranger");
        let ask = async |shown: &str| {
            let request = http.request(rule.method.to_uppercase().parse().unwrap(), format!("{orders}{path}"));
            let request = request.header("content-type", "application/json").body("{}").bearer_auth(shown);
            guarded.world.raw(request).await
        };
        // The region's own token opens what the agent answers, and takes no orders.
        let (status, body) = ask(token.trim()).await;
        assert_eq!((status, body["code"].as_str()), (403, Some(code::REFUSED)), "{} {path}: {body}", rule.method);
        assert!(body["why"].as_str().unwrap().contains("agent's data folder"), "{body}");
        // Let in, and refused for what it lacks, if for anything.
        let (status, body) = ask(&secret).await;
        assert!(![401, 403, 429, 500].contains(&status), "{} {path}: {status} {body}", rule.method);
    }
    let (status, pins) = guarded.world.raw(http.get(format!("{orders}/v1/pins")).bearer_auth(&secret)).await;
    assert_eq!((status, pins), (200, serde_json::json!([])));
    // What gives orders opens nothing of what the agent answers to others.
    assert_eq!(get(&guarded.agent.url(), "mine", Some(&secret)).await.0, 401);
    guarded.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c9_readers_are_judged_on_with_the_control_plane_gone_also_after_a_restart() {
    let mut guarded = Guarded::start().await;
    guarded.furnish().await;
    let reader = guarded.world.token("reader", Role::Reader, None).await;
    for url in [guarded.agent.url(), guarded.node.url()] {
        until("it is known", async || get(&url, "mine", Some(&reader.secret)).await.0 == 200).await;
    }
    // One that is revoked does no more, once the news have come.
    let revoked = guarded.world.token("revoked", Role::Reader, None).await;
    for url in [guarded.agent.url(), guarded.node.url()] {
        until("it is known", async || get(&url, "mine", Some(&revoked.secret)).await.0 == 200).await;
    }
    guarded.world.client.revoke_token(&revoked.token.id, None).await.unwrap();
    for url in [guarded.agent.url(), guarded.node.url()] {
        until("it is refused", async || get(&url, "mine", Some(&revoked.secret)).await.0 == 401).await;
    }
    // With the control plane gone, and after a restart without it, everybody is judged as before.
    let late = guarded.world.token("late", Role::Reader, None).await;
    let port = guarded.world.server.as_ref().unwrap().address().port();
    guarded.world.server.take().unwrap().shutdown().await;
    guarded.node.shutdown().await;
    guarded.agent.shutdown().await;
    let agent = Agent::start(guarded.agent_setup).await.unwrap();
    let node = Node::start(NodeSetup { agent: agent.url(), ..guarded.node_setup }).await.unwrap();
    for url in [agent.url(), node.url()] {
        assert_eq!(get(&url, "mine", Some(&reader.secret)).await.0, 200, "{url}");
        assert_eq!(get(&url, "mine", None).await.0, 401, "{url}");
        assert_eq!(get(&url, "mine", Some(&revoked.secret)).await.0, 401, "{url}");
    }
    // Who reads with the region's token does not.
    let own = std::fs::read_to_string(guarded.world.folder.path().join("region.token")).unwrap();
    assert_eq!(get(&agent.url(), "mine", Some(&own)).await.0, 403);
    // Back again, it tells of what it had not got round to.
    let mut again = options(guarded.world.folder.path());
    again.listen = Some(SocketAddr::from(([127, 0, 0, 1], port)));
    again.config.regions = regions();
    again.config.access.authentication = Some(Authentication::Required);
    let server = Server::start(again).await.unwrap();
    for url in [agent.url(), node.url()] {
        until("the late one is known", async || get(&url, "mine", Some(&late.secret)).await.0 == 200).await;
    }
    node.shutdown().await;
    agent.shutdown().await;
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_within_a_region_have_the_limits_of_a_server() {
    let guarded = Guarded::start().await;
    let token = std::fs::read_to_string(guarded.world.folder.path().join("region.token")).unwrap();
    let reader = guarded.world.token("reader", Role::Reader, None).await.secret;
    let http = reqwest::Client::new();
    for url in [guarded.agent.url(), guarded.node.url()] {
        until("the reader is known", async || get(&url, "s", Some(&reader)).await.0 == 404).await;
        let keys: Vec<String> = (0..10_001).map(|key| key.to_string()).collect();
        let batch = |keys: &[String]| {
            let body = serde_json::json!({ "keys": keys });
            http.post(format!("{url}/v1/stores/s/keys:batch")).bearer_auth(&reader).json(&body)
        };
        assert_eq!(guarded.world.raw(batch(&keys)).await.0, 413, "{url}");
        let large = vec!["x".repeat(2 * 1024 * 1024)];
        assert_eq!(guarded.world.raw(batch(&large)).await.0, 413, "{url}");
        let head = http.get(format!("{url}/healthz")).header("x", "x".repeat(70_000));
        let status = head.send().await.map(|response| response.status().as_u16());
        assert!(status.is_err() || status.is_ok_and(|status| status == 431), "{url}");
        // Another host's name is that of a page in a browser.
        let (status, body) = guarded.world.raw(http.get(format!("{url}/healthz")).header("host", "evil.example")).await;
        assert_eq!((status, body["code"].as_str()), (403, Some(code::HOST_REFUSED)), "{url}");
        // Wrong tokens are held up after a while; right ones are not.
        let wrong = format!("tg_{}_{}", "0".repeat(16), "0".repeat(64));
        let tried = futures::future::join_all((0..30).map(|_| get(&url, "s", Some(&wrong)))).await;
        assert!(tried.iter().any(|(status, _)| *status == 429), "{tried:?}");
        assert_eq!(get(&url, "s", Some(&reader)).await.0, 404, "{url}");
    }
    // What a node says is bounded too.
    let announced = http.put(format!("{}/v1/nodes/n-9", guarded.agent.url())).bearer_auth(token.trim());
    let address = "http://127.0.0.1:1/".to_owned() + &"x".repeat(300);
    let (status, _) = guarded.world.raw(announced.json(&serde_json::json!({"address": address, "secret": "s"}))).await;
    assert_eq!(status, 422);
    guarded.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_within_a_region_have_the_limits_that_their_file_sets() {
    let file = "[server.limits]\nbody_bytes = 2000\nbatch_keys = 3\nrequest_seconds = 1\nconnections = 2\n\
                [access.limits]\nlook_ups_per_second = 1\nlook_ups_burst = 2\n";
    let guarded = Guarded::start_with(ServiceLimits::parse(file, "agent.toml").unwrap()).await;
    let reader = guarded.world.token("reader", Role::Reader, None).await.secret;
    let batcher = guarded.world.token("batcher", Role::Reader, None).await.secret;
    // Clients that keep no connection: there are two of them at once.
    let http = || reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    for url in [guarded.agent.url(), guarded.node.url()] {
        let batch = |keys: Vec<String>| {
            let body = serde_json::json!({ "keys": keys });
            http().post(format!("{url}/v1/stores/s/keys:batch")).bearer_auth(&batcher).json(&body)
        };
        let keys = |count: usize| (0..count).map(|key| key.to_string()).collect::<Vec<_>>();
        until("the token is known", async || guarded.world.raw(batch(keys(3))).await.0 == 404).await;
        for too_large in [keys(4), vec!["x".repeat(3000)]] {
            // A pause for a rate of one a second.
            until("it is refused as too large", async || guarded.world.raw(batch(too_large.clone())).await.0 == 413)
                .await;
        }
        // Of many at once two are looked up, and perhaps one for each second that passes.
        until("the reader is known", async || get(&url, "s", Some(&reader)).await.0 == 404).await;
        let mut refused = 0;
        for _ in 0..20 {
            refused += usize::from(get(&url, "s", Some(&reader)).await.0 == 429);
        }
        assert!(refused > 0, "{url}");
    }
    // Of connections that say nothing two are taken; whoever comes then waits until one of them ends, for lack of a request.
    let address = guarded.agent.address();
    let idle = [std::net::TcpStream::connect(address).unwrap(), std::net::TcpStream::connect(address).unwrap()];
    let third = http().get(format!("{}/healthz", guarded.agent.url())).send();
    let mut third = tokio::spawn(third);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut third).await.is_err(), "it is not taken");
    drop(idle);
    let answered = tokio::time::timeout(LIMIT, third).await.unwrap().unwrap().unwrap();
    assert_eq!(answered.status().as_u16(), 200);
    guarded.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c20_a_regions_token_reads_the_artifacts_of_its_own_versions_alone() {
    let guarded = Guarded::start().await;
    let world = &guarded.world;
    world.store().await;
    // Region `a` is left out, so it is told to hold nothing.
    let away = tidegate_client::api::AvailabilityRequest { available: false, reason: "repairs".to_owned() };
    world.client.mark_region("a", &away).await.unwrap();
    let outcome = world.push("p1", &world.rows("p1.csv", 20, "x")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    let artifacts = world.folder.path().join("data").join("artifacts").join("artifacts");
    let artifact = std::fs::read_dir(&artifacts).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    let file = std::fs::read_dir(artifacts.join(&artifact)).unwrap().next().unwrap().unwrap().file_name();
    let file = file.into_string().unwrap();
    let http = reqwest::Client::new();
    let ask = async |token: &str, artifact: &str| {
        let url = format!("{}/v1/artifacts/{artifact}/{file}", world.url());
        world.raw(http.get(url).bearer_auth(token)).await
    };
    let (own, other) = (
        world.token("of b", Role::Region, Some("b")).await.secret,
        world.token("of a", Role::Region, Some("a")).await.secret,
    );
    assert_eq!(ask(&own, &artifact).await.0, 200);
    // Whether there is such an artifact makes no difference to whoever it is none of.
    for (token, artifact) in [(&other, artifact.as_str()), (&other, "absent"), (&own, "absent")] {
        let (status, body) = ask(token, artifact).await;
        assert_eq!((status, body["code"].as_str()), (403, Some(code::FORBIDDEN)), "{body}");
        assert!(body["why"].as_str().unwrap().contains("no version that it was told to hold"), "{body}");
    }
    // Told to catch up, it may.
    let back = tidegate_client::api::AvailabilityRequest { available: true, reason: String::new() };
    world.client.mark_region("a", &back).await.unwrap();
    until("region a may read it", async || ask(&other, &artifact).await.0 == 200).await;
    guarded.end().await;
}
