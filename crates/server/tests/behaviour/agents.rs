//! Regions whose agent is a process of its own, on a real server over HTTP: C7 to C10, C12, C17 to C19, R16.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_client::Client;
use tidegate_client::api::agent::PinOrder;
use tidegate_client::api::{AvailabilityRequest, PushStatus, RegionView};
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_dataset::{Cancel, quiet};
use tidegate_rollout::region::hosting::Holder;
use tidegate_rollout::region::link::{AssignmentWatch, LinkError, LinkItem, Position};
use tidegate_rollout::region::{
    HttpLink, HttpLinkOptions, RegionLink, RemoteArtifacts, RemoteClient, RemoteOptions, Standing,
};
use tidegate_server::agent::{Agent, AgentHandle, AgentSetup, pin_version, pins, unpin};
use tidegate_server::config::RegionSection;
use tidegate_server::{Options, Server};
use tidegate_state::testing::HeldPort;
use tidegate_state::{Epoch, Revision};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use uuid::Uuid;

use crate::world::{LIMIT, World, options};

/// A server on a port that it keeps, with region `a` of its own and region `b` for an agent.
struct Plane {
    world: World,
    port: HeldPort,
    nobody: HeldPort,
}

fn regions() -> Vec<RegionSection> {
    vec![RegionSection::new("a"), RegionSection { agent: true, ..RegionSection::new("b") }]
}

fn settle(options: &mut Options, port: u16) {
    options.listen = Some(SocketAddr::from(([127, 0, 0, 1], port)));
    options.config.regions = regions();
}

impl Plane {
    async fn start() -> Self {
        let port = HeldPort::new().unwrap();
        let world = World::start_with(|options| settle(options, port.number())).await;
        world.store().await;
        Plane { world, port, nobody: HeldPort::new().unwrap() }
    }

    async fn stop(&mut self) {
        self.world.server.take().unwrap().shutdown().await;
    }

    async fn start_again(&mut self) {
        let mut options = options(self.world.folder.path());
        settle(&mut options, self.port.number());
        self.world.server = Some(Server::start(options).await.unwrap());
    }

    fn data(&self, name: &str) -> PathBuf {
        self.world.folder.path().join(name)
    }

    fn setup(&self, name: &str) -> AgentSetup {
        let address = format!("http://127.0.0.1:{}", self.port.number());
        // The first address is nobody's: the next one is tried.
        let nobody = format!("http://127.0.0.1:{}", self.nobody.number());
        let mut setup = AgentSetup::new("b", vec![nobody, address], self.data(name));
        setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        setup.name = Some(name.to_owned());
        setup.lease = Duration::from_secs(8);
        setup
    }

    async fn agent(&self, name: &str) -> AgentHandle {
        Agent::start(self.setup(name)).await.unwrap()
    }

    async fn push(&self, id: &str, value: &str) {
        let path = self.world.rows(&format!("{id}.csv"), 40, value);
        let outcome = self.world.push(id, &path).await;
        assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    }

    async fn until_region(&self, what: &str, holds: impl Fn(&RegionView) -> bool) -> RegionView {
        until(what, || async {
            let region = self.world.client.region("b").await.unwrap();
            holds(&region).then_some(region)
        })
        .await
    }

    fn link(&self) -> HttpLink {
        let client = RemoteClient::new(RemoteOptions::new([self.world.url()], "test")).unwrap();
        HttpLink::new(HttpLinkOptions { region: "b".to_owned(), client })
    }
}

/// Asks until there is an answer.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let asked = tokio::time::timeout(LIMIT, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    asked.await.unwrap_or_else(|_| panic!("waited in vain until {what}"))
}

async fn until_standing(agent: &AgentHandle, holds: impl Fn(&Standing) -> bool) {
    let mut standing = agent.region().agent().standing();
    let waited = tokio::time::timeout(LIMIT, standing.wait_for(|standing| holds(standing))).await;
    waited.expect("the agent did not come to stand like that").unwrap();
}

/// What the agent itself answers.
async fn read(agent: &AgentHandle, key: &str) -> (u64, String) {
    let client = Client::new(&agent.url()).unwrap();
    let answer = client.get("s", key, Some("b")).await.unwrap();
    assert_eq!(answer.region.as_deref(), Some("b"));
    (answer.version, answer.value["v"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c9_an_agent_serves_on_without_the_control_plane_also_after_a_restart_and_catches_up() {
    let mut plane = Plane::start().await;
    let agent = plane.agent("agent-1").await;
    plane.push("p1", "x").await;
    assert_eq!(read(&agent, "k7").await, (1, "x7".to_owned()));
    assert_eq!(plane.world.serving().await["b"], 1);

    plane.stop().await;
    assert_eq!(read(&agent, "k7").await.0, 1);
    agent.shutdown().await;
    let agent = plane.agent("agent-1").await;
    assert_eq!(read(&agent, "k7").await, (1, "x7".to_owned()));
    until_standing(&agent, |standing| matches!(standing, Standing::Unconfirmed { .. })).await;
    assert_eq!(read(&agent, "k7").await.0, 1);

    plane.start_again().await;
    plane.push("p2", "y").await;
    assert_eq!(read(&agent, "k7").await, (2, "y7".to_owned()));
    let region = plane.world.client.region("b").await.unwrap();
    let host = region.host.unwrap();
    assert_eq!((host.name.as_str(), host.lapsed, host.address), ("agent-1", false, Some(agent.url())));
    assert_eq!(host.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["b-1", "b-2"]);
    // The same answers as a server gives, refusals included.
    let client = Client::new(&agent.url()).unwrap();
    for (store, key, region, code) in
        [("s", "nobody", "b", "key_absent"), ("t", "k1", "b", "not_served"), ("s", "k1", "a", "region_unknown")]
    {
        let refused = client.get(store, key, Some(region)).await.unwrap_err();
        assert_eq!(refused.code(), Some(code), "{refused}");
    }
    let batch = client.get_batch("s", vec!["k1".to_owned(), "nobody".to_owned()], None).await.unwrap();
    assert_eq!((batch.version, batch.values[1].value.clone()), (2, None));
    // And whoever asks a server is given the agent's answer.
    let answer = plane.world.client.get("s", "k1", Some("b")).await.unwrap();
    assert_eq!((answer.version, answer.region.as_deref()), (2, Some("b")));
    agent.shutdown().await;
    plane.until_region("the agent has let go", |region| region.host.as_ref().unwrap().lapsed).await;
    plane.world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_second_agent_is_refused_and_takes_over_when_the_first_is_gone() {
    let plane = Plane::start().await;
    let first = plane.agent("agent-1").await;
    plane.push("p1", "x").await;
    let second = plane.agent("agent-2").await;
    until_standing(&second, |standing| matches!(standing, Standing::Replaced { .. })).await;
    let words = second.region().agent().standing().borrow().words();
    assert!(words.contains("agent-1") && words.contains(&first.url()), "{words}");
    let refused = Client::new(&second.url()).unwrap().get("s", "k1", None).await.unwrap_err();
    assert_eq!(refused.code(), Some("region_hosted"), "{refused}");
    let (status, ready) = plane.world.raw(reqwest::Client::new().get(format!("{}/readyz", second.url()))).await;
    assert_eq!(status, 503, "{ready}");

    // The first dies without a word: its lease has to run out.
    let token = plane.world.client.region("b").await.unwrap().host.unwrap().token;
    drop(first);
    until_standing(&second, |standing| matches!(standing, Standing::Hosts(_))).await;
    let region =
        plane.until_region("the second serves", |region| region.host.as_ref().unwrap().name == "agent-2").await;
    assert!(region.host.unwrap().token > token);
    plane.push("p2", "y").await;
    assert_eq!(read(&second, "k7").await, (2, "y7".to_owned()));

    // The first is back, and is told.
    let first = plane.agent("agent-1").await;
    until_standing(&first, |standing| matches!(standing, Standing::Replaced { .. })).await;
    second.shutdown().await;
    until_standing(&first, |standing| matches!(standing, Standing::Hosts(_))).await;
    until("it has caught up", || async { (read_version(&first).await == Some(2)).then_some(()) }).await;
    first.shutdown().await;
    plane.world.end().await;
}

async fn read_version(agent: &AgentHandle) -> Option<u64> {
    let client = Client::new(&agent.url()).unwrap();
    client.get("s", "k7", None).await.ok().map(|answer| answer.version)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_server_goes_on_without_a_region_that_an_agent_hosts_and_the_other_way_round() {
    let mut plane = Plane::start().await;
    // The server hosts `a`: an agent of `a` is refused.
    let mut setup = plane.setup("agent-a");
    setup.region = "a".to_owned();
    let other = Agent::start(setup).await.unwrap();
    until_standing(&other, |standing| matches!(standing, Standing::Replaced { .. })).await;
    let words = other.region().agent().standing().borrow().words();
    assert!(words.contains("server"), "{words}");
    // It takes over when the server has stopped, and the server then goes on without the region.
    plane.stop().await;
    plane.start_again().await;
    other.shutdown().await;
    // Long enough for the server to be away meanwhile.
    let mut setup = plane.setup("agent-b");
    setup.lease = Duration::from_secs(60);
    let agent = Agent::start(setup).await.unwrap();
    plane.push("p1", "x").await;
    plane.stop().await;
    let mut options = options(plane.world.folder.path());
    settle(&mut options, plane.port.number());
    options.config.regions = vec![RegionSection::new("a"), RegionSection::new("b")];
    plane.world.server = Some(Server::start(options).await.unwrap());
    // What is read there the agent answers; asked what it knows itself, it says who that is.
    let answer = until("the server knows who hosts the region", || async {
        plane.world.client.get("s", "k7", Some("b")).await.ok()
    })
    .await;
    assert_eq!((answer.version, answer.region.as_deref()), (1, Some("b")));
    let url = format!("{}/v1/stores/s/keys/k7?region=b", plane.world.url());
    let (status, body) = plane.world.raw(reqwest::Client::new().get(url).header("tidegate-forwarded", "1")).await;
    assert_eq!((status, body["code"].as_str()), (421, Some("region_hosted")), "{body}");
    assert!(body["why"].as_str().unwrap().contains("agent-b"), "{body}");
    assert_eq!(body["subjects"][1].as_str(), Some(agent.url().as_str()), "{body}");
    plane.push("p2", "y").await;
    assert_eq!(read(&agent, "k7").await, (2, "y7".to_owned()));
    agent.shutdown().await;
    plane.world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c17_c18_a_pin_is_given_on_the_agents_folder_and_shown_wherever_the_region_is() {
    let mut plane = Plane::start().await;
    let agent = plane.agent("agent-1").await;
    plane.push("p1", "x").await;
    plane.push("p2", "y").await;
    let data = plane.data("agent-1");
    let order = |version: u64, reason: &str| PinOrder { version, reason: reason.to_owned(), by: "ann".to_owned() };
    for (order, part) in [(order(9, "bad data"), "version 9"), (order(1, ""), "reason")] {
        let refused = pin_version(&data, "s", order).await.unwrap_err().to_string();
        assert!(refused.contains(part), "{part} in {refused}");
    }
    plane.stop().await;
    let pinned = pin_version(&data, "s", order(1, "bad data")).await.unwrap();
    assert_eq!((pinned.region.as_str(), pinned.nodes, pinned.serving), ("b", 2, true));
    assert_eq!(read(&agent, "k7").await, (1, "x7".to_owned()));
    agent.shutdown().await;
    // Where no agent runs, the order is carried out on its folder.
    assert_eq!(pins(&data).await.unwrap()[0].pin.as_ref().unwrap().version, 1);
    let second = pin_version(&data, "s", order(2, "no, it was good")).await.unwrap();
    assert_eq!(second.replaced.unwrap().version, 1);
    pin_version(&data, "s", order(1, "bad data after all")).await.unwrap();

    let agent = plane.agent("agent-1").await;
    until("it serves what is pinned", || async { (read_version(&agent).await == Some(1)).then_some(()) }).await;
    plane.start_again().await;
    let region = plane
        .until_region("the pin is reported", |region| region.stores.get("s").is_some_and(|store| store.pin.is_some()));
    let store = region.await.stores["s"].clone();
    let pin = store.pin.unwrap();
    assert_eq!((pin.version, pin.by.as_str(), pin.reason.as_str()), (1, "ann", "bad data after all"));
    assert_eq!(store.past_pins.iter().map(|pin| pin.version).collect::<Vec<_>>(), [1, 2]);
    plane.push("p3", "z").await;
    assert_eq!(read(&agent, "k7").await.0, 1);
    assert_eq!(plane.world.serving().await["a"], 3);
    let view = plane.world.client.push("p3").await.unwrap();
    let shown = view.regions.iter().find(|region| region.region == "b").unwrap();
    assert!(shown.left_out.as_ref().unwrap().contains("pinned to version 1 by ann"), "{shown:#?}");
    assert_eq!(shown.pin.as_ref().unwrap().version, 1);
    assert!(view.state.reason.as_ref().unwrap().contains("pinned"), "{:?}", view.state);
    let explained = plane.world.client.explain_push("p3").await.unwrap();
    let held = explained.holds.iter().find(|hold| hold.region.as_deref() == Some("b")).unwrap();
    assert!(held.reason.contains("version 1 is pinned there by ann: bad data after all"), "{held:?}");
    let page = reqwest::get(plane.world.url()).await.unwrap().text().await.unwrap();
    assert!(page.contains("pinned to version 1 by ann"), "the page says nothing of the pin");

    unpin(&data, "s", "bob").await.unwrap();
    until("it catches up", || async { (read_version(&agent).await == Some(3)).then_some(()) }).await;
    agent.shutdown().await;
    plane.world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r16_a_region_that_is_removed_serves_on_and_is_told_so() {
    let plane = Plane::start().await;
    let agent = plane.agent("agent-1").await;
    plane.push("p1", "x").await;
    plane.world.client.remove_region("b", "moved").await.unwrap();
    until_standing(
        &agent,
        |standing| matches!(standing, Standing::Unconfirmed { why, .. } if why.contains("there is no region b")),
    )
    .await;
    assert_eq!(read(&agent, "k7").await, (1, "x7".to_owned()));
    plane.push("p2", "y").await;
    assert_eq!(read(&agent, "k7").await.0, 1);
    agent.shutdown().await;
    plane.world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_resumes_where_it_was_and_starts_anew_where_it_can_not() {
    let plane = Plane::start().await;
    let link = plane.link();
    let next = |mut watch: Box<dyn AssignmentWatch>| async move {
        let item = tokio::time::timeout(LIMIT, watch.next()).await.unwrap().unwrap();
        (item, watch)
    };
    let (item, watch) = next(link.watch(None).await.unwrap()).await;
    let LinkItem::Snapshot { position, .. } = item else { panic!("{item:?}") };
    // Where nothing happens, the place is said all the same.
    let unavailable = AvailabilityRequest { available: false, reason: "test".to_owned() };
    plane.world.client.mark_region("a", &unavailable).await.unwrap();
    let (item, _) = next(watch).await;
    let LinkItem::Nothing { position: later } = item else { panic!("{item:?}") };
    assert!(position.is_before(later));
    let (item, _) = next(link.watch(Some(position)).await.unwrap()).await;
    assert!(matches!(item, LinkItem::Nothing { .. }), "{item:?}");
    // From another log, or from a place that this one has not come to.
    for from in [
        Position { epoch: Epoch(Uuid::from_u128(7)), ..position },
        Position { revision: Revision(1_000_000), ..position },
    ] {
        let (item, _) = next(link.watch(Some(from)).await.unwrap()).await;
        assert!(matches!(item, LinkItem::Snapshot { .. }), "{item:?}");
    }
    let (status, _) = plane
        .world
        .raw(reqwest::Client::new().get(format!(
            "{}/v1/regions/b/agent/watch?epoch={}&revision=1",
            plane.world.url(),
            Uuid::from_u128(7)
        )))
        .await;
    assert_eq!(status, 410);
    let stranger = Holder { agent: Uuid::from_u128(9), token: 1 };
    let refused = link.report(stranger, "s", None).await.unwrap_err();
    assert!(matches!(refused, LinkError::Refused { .. }), "{refused}");
    plane.world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artifacts_are_read_over_http_whole_and_in_ranges() {
    let plane = Plane::start().await;
    let agent = plane.agent("agent-1").await;
    plane.push("p1", "x").await;
    let local = ArtifactStore::local(plane.data("data").join("artifacts")).unwrap();
    let id = local.list().await.unwrap()[0].clone();
    let proxy = Proxy::start(plane.port.number()).await;
    let client = RemoteClient::new(RemoteOptions::new([proxy.url()], "test")).unwrap();
    let remote = ArtifactStore::new(Arc::new(RemoteArtifacts::new(client)));
    let digest = local.manifest(&id).await.unwrap().digest;
    // Every connection is cut off after a few bytes, and the download goes on where it was.
    proxy.cut_after(400);
    let verified = remote.verify(&id, Some(&digest), &quiet, &Cancel::new()).await.unwrap();
    assert_eq!(verified, local.manifest(&id).await.unwrap());
    assert!(proxy.cuts() > 2, "{} cuts", proxy.cuts());
    let part = &verified.manifest.parts[0];
    let base = format!("{}/v1/artifacts/{id}/{}", plane.world.url(), part.name);
    let http = reqwest::Client::new();
    for (range, status, length) in [
        ("bytes=0-9", 206, 10),
        ("bytes=-5", 206, 5),
        ("bytes=10-", 206, part.bytes - 10),
        ("lines=1-2", 200, part.bytes),
        ("bytes=999999999-", 416, 0),
    ] {
        let response = http.get(&base).header("range", range).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{range}");
        if status < 400 {
            assert_eq!(response.bytes().await.unwrap().len() as u64, length, "{range}");
        }
    }
    let head = http.head(&base).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], part.bytes.to_string().as_str());
    for bad in [format!("{id}/nothing.parquet"), format!("{id}/..%2F..%2Fstate.sqlite"), "x/y".to_owned()] {
        let (status, body) = plane.world.raw(http.get(format!("{}/v1/artifacts/{bad}", plane.world.url()))).await;
        assert_eq!(status, 404, "{bad}: {body}");
        crate::world::assert_error(&body, &bad);
    }
    agent.shutdown().await;
    plane.world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c12_a_push_completes_though_every_connection_is_cut_again_and_again() {
    let plane = Plane::start().await;
    let proxy = Proxy::start(plane.port.number()).await;
    let mut setup = plane.setup("agent-1");
    setup.control_planes = vec![proxy.url()];
    let agent = Agent::start(setup).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let cutter = tokio::spawn({
        let (proxy, stop) = (proxy.clone(), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(300)).await;
                proxy.cut();
            }
        }
    });
    for (id, value, version) in [("p1", "x", 1), ("p2", "y", 2)] {
        plane.push(id, value).await;
        assert_eq!(read(&agent, "k7").await, (version, format!("{value}7")));
    }
    stop.store(true, Ordering::Relaxed);
    cutter.await.unwrap();
    assert!(proxy.cuts() > 0);
    agent.shutdown().await;
    plane.world.end().await;
}

/// A proxy in front of the server, whose connections can be cut off.
#[derive(Clone)]
struct Proxy {
    address: SocketAddr,
    state: Arc<ProxyState>,
}

struct ProxyState {
    open: Mutex<Vec<AbortHandle>>,
    cuts: Mutex<u64>,
    /// How many bytes of answers a connection lets through.
    bytes_max: Mutex<u64>,
}

impl Proxy {
    async fn start(port: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state =
            Arc::new(ProxyState { open: Mutex::new(Vec::new()), cuts: Mutex::new(0), bytes_max: Mutex::new(u64::MAX) });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                let (shared, state) = (Arc::clone(&shared), Arc::clone(&shared));
                let task = tokio::spawn(async move {
                    if let Ok(outer) = TcpStream::connect(("127.0.0.1", port)).await {
                        state.pass(inner, outer).await;
                    }
                });
                shared.open.lock().push(task.abort_handle());
            }
        });
        Proxy { address, state }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn cut(&self) {
        for task in self.state.open.lock().drain(..) {
            if !task.is_finished() {
                *self.state.cuts.lock() += 1;
                task.abort();
            }
        }
    }

    fn cut_after(&self, bytes: u64) {
        *self.state.bytes_max.lock() = bytes;
    }

    fn cuts(&self) -> u64 {
        *self.state.cuts.lock()
    }
}

impl ProxyState {
    async fn pass(&self, inner: TcpStream, outer: TcpStream) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut from_client, mut to_client) = inner.into_split();
        let (from_server, mut to_server) = outer.into_split();
        let asking = tokio::io::copy(&mut from_client, &mut to_server);
        let answering = async {
            let bytes_max = *self.bytes_max.lock();
            let mut from_server = from_server.take(bytes_max);
            let copied = tokio::io::copy(&mut from_server, &mut to_client).await;
            if copied.is_ok_and(|bytes| bytes == bytes_max) {
                *self.cuts.lock() += 1;
            }
            let _ = to_client.shutdown().await;
        };
        tokio::select! {
            _ = asking => {}
            () = answering => {}
        }
    }
}
