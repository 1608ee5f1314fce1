//! Several servers on one PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate_client::api::{PushStart, PushStatus, RegionSettings, Role, ServerStatus, StoreCreate, TokenCreate, code};
use tidegate_client::{Client, Options as ClientOptions, PushJob, PushOptions, Token};
use tidegate_server::access::config::Authentication;
use tidegate_server::config::RegionSection;
use tidegate_server::{ConfigFile, Handle, Options, Server, StartError, drop_schema};
use tidegate_state::testing::postgres;
use tidegate_state::{QueueFilter, RequestState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{LIMIT, assert_error};

/// Servers of one installation, and what they are started with.
pub(crate) struct Several {
    folder: TempDir,
    schema: String,
    authentication: Option<Authentication>,
}

impl Several {
    /// None where there is no PostgreSQL.
    pub(crate) fn new(authentication: Option<Authentication>) -> Option<Self> {
        if postgres::skipped().is_some() {
            return None;
        }
        let schema = postgres::shared().unwrap().fresh_schema();
        Some(Self { folder: tempfile::tempdir().unwrap(), schema: format!("server_{schema}"), authentication })
    }

    /// What a server of this name is started with, on a data folder.
    pub(crate) fn options(&self, name: &str, data: &str) -> Options {
        let mut options = Options::new(self.folder.path().join(data));
        options.listen = Some("127.0.0.1:0".parse().unwrap());
        options.database = Some(postgres::shared().unwrap().url());
        options.schema = Some(self.schema.clone());
        options.artifacts = Some(format!("file://{}", self.folder.path().join("artifacts").display()));
        options.config.server.name = Some(name.to_owned());
        options.config.regions = vec![RegionSection { nodes: 1, ..RegionSection::new("a") }];
        options.config.access.authentication = self.authentication;
        options
    }

    async fn start(&self, name: &str) -> Handle {
        self.start_with(self.options(name, name)).await
    }

    /// A server that runs the cluster hooks, and publishes the hooks, that the text of a file says.
    async fn start_on(&self, name: &str, text: &str) -> Handle {
        let file = ConfigFile::parse(text, name).unwrap();
        let mut options = self.options(name, name);
        options.config.server.cluster_hooks = file.server.cluster_hooks;
        options.config.hooks = file.hooks;
        self.start_with(options).await
    }

    async fn start_with(&self, options: Options) -> Handle {
        let server = Server::start(options).await.unwrap();
        let mut member = server.state().member();
        let joined = tokio::time::timeout(LIMIT, member.wait_for(Option::is_some)).await;
        joined.expect("it joins").unwrap();
        drop(member);
        server
    }

    pub(crate) async fn end(self, servers: impl IntoIterator<Item = Handle>) {
        for server in servers {
            server.shutdown().await;
        }
        drop_schema(&self.options("x", "x")).await.unwrap();
    }
}

fn client(server: &Handle, token: &str) -> Client {
    let mut options = ClientOptions::new(server.url());
    options.token = Some(Token::new(token).unwrap());
    Client::with_options(options).unwrap()
}

/// Waits until the other end says so.
async fn until_read(connection: &mut TcpStream, awaited: &str) {
    let mut heard = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&heard).contains(awaited) {
            let read = connection.read_buf(&mut heard).await.unwrap();
            assert!(read > 0, "the connection ended after {:?}", String::from_utf8_lossy(&heard));
        }
    };
    tokio::time::timeout(LIMIT, reading).await.expect(awaited);
}

/// Asks once, without the patience of the client.
async fn get(server: &Handle, token: &str, path: &str) -> (u16, serde_json::Value) {
    let http = reqwest::Client::new();
    let response = http.get(format!("{}{path}", server.url())).bearer_auth(token).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

/// The cluster hooks that a server says to run, with their room, once it says so of that many.
async fn declared(client: &Client, name: &str, count: usize) -> BTreeMap<String, u32> {
    let look = async {
        loop {
            let servers = client.cluster().await.unwrap().servers;
            let hooks = servers.into_iter().find(|server| server.name == name).map(|server| server.hooks);
            let hooks = hooks.unwrap_or_default();
            if hooks.len() >= count {
                return hooks.into_iter().map(|hook| (hook.hook, hook.room)).collect();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, look).await.expect("it says what it runs")
}

/// The cluster hooks that have run on a server, by its own count.
async fn ran(client: &Client) -> BTreeSet<String> {
    let counted = |line: &str| {
        let (_, counter) = line.split_once("cluster_hook_runs_total{hook=\"")?;
        let (hook, count) = counter.split_once("\"} ")?;
        (count.trim() != "0").then(|| hook.to_owned())
    };
    client.metrics().await.unwrap().lines().filter_map(counted).collect()
}

/// Requests of a cluster hook that no server that lives runs.
async fn without_server(client: &Client, hook: &str) -> u64 {
    let hooks = client.cluster().await.unwrap().hooks;
    hooks.into_iter().find(|view| view.hook == hook).map_or(0, |view| view.no_server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_has_made_is_not_unknown_to_another() {
    let Some(several) = Several::new(Some(Authentication::Required)) else { return };
    let mut first = several.start("first").await;
    let admin = first.take_first_token().unwrap();
    let second = several.start("second").await;
    let found = async |server: &Handle, token: &str, path: String| {
        for _ in 0..10 {
            let asked = Instant::now();
            let (status, body) = get(server, token, &path).await;
            if status == 200 {
                return;
            }
            // A server whose database does not answer in time says what it knows, and asks again in a second.
            assert!(asked.elapsed() >= Duration::from_secs(1), "{path}: {status} {body}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("{path} is not there after ten looks");
    };
    for round in 0..20 {
        let (one, other) = if round % 2 == 0 { (&first, &second) } else { (&second, &first) };
        let writer = client(one, &admin);
        // Each of them is read at the other server as soon as it is there.
        let store = StoreCreate {
            name: format!("s{round}"),
            key_columns: vec!["k".to_owned()],
            partitions: Some(1),
            ..StoreCreate::default()
        };
        let under = ["", "/hooks", "/schemas", "/versions"][round % 4];
        writer.create_store(&store).await.unwrap();
        found(other, &admin, format!("/v1/stores/s{round}{under}")).await;
        let push = PushStart { id: format!("p{round}"), store: store.name.clone(), ..PushStart::default() };
        let under = ["", "/explain", "/calls", "/job", "/parts"][round % 5];
        writer.start_push(&push).await.unwrap();
        found(other, &admin, format!("/v1/pushes/p{round}{under}")).await;
        let region = RegionSettings { nodes: 1, enough: None, shares_source: false, agent: true };
        writer.set_region(&format!("r{round}"), &region).await.unwrap();
        found(other, &admin, format!("/v1/regions/r{round}")).await;
        let token = TokenCreate {
            name: format!("t{round}"),
            role: Role::Viewer,
            team: None,
            region: None,
            expires_in_ms: None,
        };
        let secret = writer.create_token(&token).await.unwrap().secret;
        found(other, &secret, "/v1/stores".to_owned()).await;
    }
    // What nobody has made is as unknown as ever.
    for (token, path, status, code) in [
        (admin.as_str(), "/v1/stores/none", 404, code::STORE_UNKNOWN),
        (&admin, "/v1/stores/none/keys/k", 404, code::STORE_UNKNOWN),
        (&admin, "/v1/pushes/none", 404, code::PUSH_UNKNOWN),
        (&admin, "/v1/regions/none", 404, code::REGION_UNKNOWN),
        (&format!("tg_{}_{}", "0".repeat(16), "0".repeat(64)), "/v1/stores", 401, code::UNAUTHENTICATED),
    ] {
        // The first one hosts the region, and answers look-ups.
        let (answered, body) = get(&first, token, path).await;
        assert_eq!((answered, body["code"].as_str()), (status, Some(code)), "{path}: {body}");
        assert_error(&body, path);
    }
    // A region that another server can take over is leased for as long as the server's own slots.
    let host = client(&first, &admin).region("a").await.unwrap().host.expect("it is hosted");
    assert_eq!(host.until - host.heard_at, 10_000);
    several.end([first, second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_of_one_name_do_not_share_a_database() {
    let Some(several) = Several::new(None) else { return };
    let first = several.start("x").await;
    // Given a server that lives, when another of its name comes, then that one does not start and says why.
    let refused = Server::start(several.options("x", "another folder")).await.unwrap_err();
    assert!(matches!(&refused, StartError::NameTaken { name, .. } if name == "x"), "{refused}");
    // When the server is killed, then its next life starts on its folder, whatever is left of the one before.
    let member = first.state().member().borrow().unwrap();
    drop(first);
    let again = several.start("x").await;
    let client = Client::new(&again.url()).unwrap();
    let cluster = client.cluster().await.unwrap();
    let answering: Vec<_> = cluster.servers.iter().filter(|server| server.answering).collect();
    assert_eq!(answering.len(), 1, "{cluster:#?}");
    assert_ne!(answering[0].id, member.0.to_string());
    assert_eq!(answering[0].status, ServerStatus::Up);
    // When it is killed and its folder is lost, then the next one waits until its lease has run out.
    drop(again);
    let afresh = tokio::time::timeout(LIMIT, Server::start(several.options("x", "fresh folder"))).await;
    several.end([afresh.expect("the lease runs out").unwrap()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_leaves_the_cluster_while_requests_still_end() {
    let Some(several) = Several::new(None) else { return };
    let (first, second) = (several.start("first").await, several.start("second").await);
    let store = StoreCreate {
        name: "s".to_owned(),
        key_columns: vec!["k".to_owned()],
        partitions: Some(1),
        ..StoreCreate::default()
    };
    // Given a request that a handler reads the body of, of which nothing has come,
    let body = serde_json::to_string(&store).unwrap();
    let mut connection = TcpStream::connect(first.address()).await.unwrap();
    let head = format!(
        "POST /v1/stores HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    until_read(&mut connection, "100 Continue").await;
    // when its server is stopped,
    let id = first.state().member().borrow().unwrap();
    let stopping = tokio::spawn(first.shutdown());
    // then others have what its cluster hooks were given before that request is answered.
    let left = async {
        while second.state().cluster().await.unwrap().servers.iter().any(|server| server.id == id) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, left).await.expect("it leaves");
    connection.write_all(body.as_bytes()).await.unwrap();
    until_read(&mut connection, "201 Created").await;
    stopping.await.unwrap();
    several.end([second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_server_answers_reads_of_a_region_that_another_hosts() {
    let Some(several) = Several::new(Some(Authentication::Required)) else { return };
    let mut first = several.start("first").await;
    let admin = first.take_first_token().unwrap();
    let mut options = several.options("second", "second");
    options.config.regions = vec![RegionSection { nodes: 1, ..RegionSection::new("b") }];
    let second = Server::start(options).await.unwrap();
    let writer = client(&first, &admin);
    let store = StoreCreate {
        name: "s".to_owned(),
        key_columns: vec!["k".to_owned()],
        partitions: Some(1),
        ..StoreCreate::default()
    };
    writer.create_store(&store).await.unwrap();
    let rows = several.folder.path().join("rows.csv");
    std::fs::write(&rows, "k,v\nk7,x7\na/b ?,y\n").unwrap();
    let work = Some(several.folder.path().join("work"));
    let options = PushOptions { work, timeout: Some(LIMIT), patience: LIMIT, ..PushOptions::default() };
    let job = PushJob { id: "p1".to_owned(), store: "s".to_owned(), paths: vec![rows], options };
    let outcome = job.run(&writer, &mut |_| {}).await.unwrap();
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    let reader =
        TokenCreate { name: "reader".to_owned(), role: Role::Reader, team: None, region: None, expires_in_ms: None };
    let reader = writer.create_token(&reader).await.unwrap().secret;
    // Given two regions, each hosted by one of the servers, when either is asked about either, then it is answered.
    for server in [&first, &second] {
        let client = client(server, &reader);
        for region in ["a", "b"] {
            for (key, value) in [("k7", "x7"), ("a/b ?", "y")] {
                let answer = client.get("s", key, Some(region)).await.unwrap();
                assert_eq!((answer.region.as_deref(), answer.value["v"].as_str()), (Some(region), Some(value)));
            }
            let batch = client.get_batch("s", vec!["k7".to_owned(), "none".to_owned()], Some(region)).await.unwrap();
            assert_eq!(batch.region.as_deref(), Some(region));
            assert!(batch.values[0].value.is_some() && batch.values[1].value.is_none(), "{batch:?}");
            // What is wrong with a read is told by whoever answers it.
            let absent = client.get("s", "none", Some(region)).await.unwrap_err();
            assert_eq!(absent.code(), Some(code::KEY_ABSENT), "{absent}");
        }
        assert!(client.get("s", "k7", None).await.is_ok());
        let unknown = client.get("s", "k7", Some("nowhere")).await.unwrap_err();
        assert_eq!(unknown.code(), Some(code::REGION_UNKNOWN), "{unknown}");
    }
    // One hop: what was forwarded is not forwarded again.
    let url = format!("{}/v1/stores/s/keys/k7?region=b", first.url());
    let forwarded = reqwest::Client::new().get(url).bearer_auth(&reader).header("tidegate-forwarded", "1");
    let forwarded = forwarded.send().await.unwrap();
    assert_eq!(forwarded.status(), 421);
    let body: serde_json::Value = forwarded.json().await.unwrap();
    assert_eq!(
        (body["code"].as_str(), body["subjects"][1].as_str()),
        (Some(code::REGION_HOSTED), Some(&*second.url()))
    );
    assert_error(&body, "a read that has been forwarded");
    // The host is gone: that is said, with where it was, and can be tried again.
    let there = second.url();
    second.shutdown().await;
    let (status, body) = get(&first, &reader, "/v1/stores/s/keys/k7?region=b").await;
    assert_eq!((status, body["retryable"].as_bool()), (503, Some(true)), "{body}");
    assert!(body["why"].as_str().unwrap().contains(&there), "{body}");
    assert_error(&body, "a read of a region whose host is gone");
    several.end([first]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k40_servers_run_the_cluster_hooks_that_their_files_name_and_what_no_server_runs_waits() {
    let Some(several) = Several::new(None) else { return };
    // Given a server that runs nothing of the rollout controller, on a database that no other server has seen,
    let calls = "[server.cluster_hooks]\nrun = ['lifecycle-*']\nroom.'lifecycle-call-*' = 2\n\
                 [hooks.config.region-order]\norder = 'a'";
    let first = several.start_on("first", calls).await;
    let client = Client::new(&first.url()).unwrap();
    let store = |name: &str| StoreCreate {
        name: name.to_owned(),
        key_columns: vec!["k".to_owned()],
        partitions: Some(1),
        ..StoreCreate::default()
    };
    assert_eq!(without_server(&client, "rollout").await, 0);
    // when something changes that the controller is for, then that waits for a server that runs it.
    client.create_store(&store("s")).await.unwrap();
    assert!(without_server(&client, "rollout").await > 0);
    // When one comes that runs the controller and nothing else,
    let controller = "[server.cluster_hooks]\nrun = ['rollout*']\nroom.rollout = 3";
    let second = several.start_on("second", controller).await;
    // then each says what it runs, with its room,
    let lifecycle = ["data-quality", "exec", "health-check", "region-order"]
        .into_iter()
        .flat_map(|hook| [(format!("lifecycle-call-{hook}"), 2), (format!("lifecycle-registration-call-{hook}"), 64)]);
    let lifecycle: BTreeMap<String, u32> = lifecycle.chain([("lifecycle-events".to_owned(), 64)]).collect();
    assert_eq!(declared(&client, "first", lifecycle.len()).await, lifecycle);
    let rollout = [
        ("rollout", 3),
        ("rollout-clean-up", 2),
        ("rollout-registration", 16),
        ("rollout-uptime", 1),
        ("rollout-wake", 1),
    ];
    let rollout: BTreeMap<String, u32> = rollout.into_iter().map(|(hook, room)| (hook.to_owned(), room)).collect();
    assert_eq!(declared(&client, "second", rollout.len()).await, rollout);
    let other = Client::new(&second.url()).unwrap();
    let settings = other.config().await.unwrap().server.settings;
    assert_eq!(settings["server.cluster_hooks.run"].value, "rollout*");
    assert_eq!(settings["server.cluster_hooks.room.rollout"].value, "3");
    // and a push completes that needs both, each of whose runs happens where it is declared.
    let rows = several.folder.path().join("rows.csv");
    std::fs::write(&rows, "k,v\nk7,x7\n").unwrap();
    let work = Some(several.folder.path().join("work"));
    let options = PushOptions { work, timeout: Some(LIMIT), patience: LIMIT, ..PushOptions::default() };
    let job = PushJob { id: "p1".to_owned(), store: "s".to_owned(), paths: vec![rows], options };
    let outcome = job.run(&client, &mut |_| {}).await.unwrap();
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    let calls = client.push_calls("p1").await.unwrap();
    assert!(!calls.is_empty() && calls.iter().all(|call| call.server == "first"), "{calls:#?}");
    let (on_first, on_second) = (ran(&client).await, ran(&other).await);
    assert!(on_first.contains("lifecycle-call-region-order"), "{on_first:?}");
    assert!(on_first.iter().all(|hook| lifecycle.contains_key(hook)), "{on_first:?}");
    assert!(on_second.contains("rollout"), "{on_second:?}");
    assert!(on_second.iter().all(|hook| rollout.contains_key(hook)), "{on_second:?}");
    // When the only server that runs the controller leaves, then what comes waits again.
    second.shutdown().await;
    client.create_store(&store("t")).await.unwrap();
    let waiting = first.state().queue().list(QueueFilter::all().hook("rollout").key("t")).await.unwrap();
    assert!(!waiting.is_empty(), "nothing asks for the controller");
    assert!(waiting.iter().all(|entry| entry.state == RequestState::NoServer), "{waiting:#?}");
    several.end([first]).await;
}
