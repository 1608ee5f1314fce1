//! Reads over HTTP beside the same axum server that answers a constant, and pushes under full read load: what readers see
//! of swaps, and how soon a swap is decided.
//!
//! `TIDEGATE_BENCH_HTTP_MS` (400) is how long each server is asked in turn, in each of the rounds; `TIDEGATE_BENCH_PUSHES`
//! (21) how many pushes swap under load. Every figure is printed with the baseline of the same run.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tidegate_client::Client;
use tidegate_client::api::{PushStatus, StoreCreate};
use tidegate_client::push::{PushJob, PushOptions};
use tidegate_server::{Handle, Options, Server};

const STORE: &str = "bench";
const KEYS: usize = 50_000;
const BATCH: usize = 20;
const ROUNDS: usize = 11;
const CONNECTIONS: usize = 8;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn key(number: usize) -> String {
    format!("key-{number:07}")
}

/// A table whose values say which version they are of.
fn write_input(folder: &Path, version: usize) -> PathBuf {
    let mut text = String::from("key,value\n");
    for number in 0..KEYS {
        let _ = writeln!(text, "{},{}-{number:090}", key(number), version % 10);
    }
    let path = folder.join(format!("input-{}.csv", version % 2));
    std::fs::write(&path, text).unwrap();
    path
}

/// One connection that is kept, as a client's pool keeps it.
struct Connection {
    reader: BufReader<TcpStream>,
    line: String,
    body: Vec<u8>,
}

impl Connection {
    fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { reader: BufReader::with_capacity(16 * 1024, stream), line: String::new(), body: Vec::new() }
    }

    /// The status of the answer; its body is in `body`.
    fn ask(&mut self, request: &str) -> u16 {
        self.reader.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut status, mut length) = (0, 0);
        loop {
            self.line.clear();
            self.reader.read_line(&mut self.line).unwrap();
            let line = self.line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(0);
            } else if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
        }
        self.body.resize(length, 0);
        self.reader.read_exact(&mut self.body).unwrap();
        status
    }
}

fn look_up(address: SocketAddr, number: usize) -> String {
    format!(
        "GET /v1/stores/{STORE}/keys/{}?region=a HTTP/1.1\r\nhost: {address}\r\naccept: application/json\r\n\r\n",
        key(number)
    )
}

fn batch(address: SocketAddr, first: usize) -> String {
    let keys: Vec<String> = (first..first + BATCH).map(|number| format!("\"{}\"", key(number % KEYS))).collect();
    let body = format!("{{\"keys\":[{}]}}", keys.join(","));
    format!(
        "POST /v1/stores/{STORE}/keys:batch?region=a HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// What the server answers without looking anything up, behind all that stands before a look-up.
fn health(address: SocketAddr, _: usize) -> String {
    format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\naccept: application/json\r\n\r\n")
}

/// Answers per second of a server that is asked on all connections at once.
fn throughput(address: SocketAddr, request: fn(SocketAddr, usize) -> String, window: Duration) -> f64 {
    let until = Instant::now() + window;
    let readers: Vec<_> = (0..CONNECTIONS)
        .map(|reader| {
            std::thread::spawn(move || {
                let requests: Vec<String> =
                    (0..512).map(|number| request(address, (number * 97 + reader * 6151) % KEYS)).collect();
                let mut connection = Connection::open(address);
                let mut answered = 0_u64;
                for request in requests.iter().cycle() {
                    if Instant::now() >= until {
                        break;
                    }
                    assert_eq!(connection.ask(request), 200);
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let answered: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
    answered as f64 / window.as_secs_f64()
}

/// The same axum server, with the same answer and nothing behind it.
async fn constant(body: String) -> SocketAddr {
    let body: Arc<str> = body.into();
    let answer = move || {
        let body = Arc::clone(&body);
        async move { ([(CONTENT_TYPE, "application/json")], body.to_string()) }
    };
    let router = Router::new().route("/v1/stores/{store}/keys/{key}", get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

async fn push(client: &Client, folder: &Path, id: &str, path: PathBuf) -> tidegate_client::api::PushView {
    let options = PushOptions { work: Some(folder.join("work")), ..PushOptions::default() };
    let job = PushJob { id: id.to_owned(), store: STORE.to_owned(), paths: vec![path], options };
    let outcome = job.run(client, &mut |_| {}).await.unwrap();
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    client.push(id).await.unwrap()
}

fn look_ups(server: SocketAddr, constant: SocketAddr) {
    let window = Duration::from_millis(setting("TIDEGATE_BENCH_HTTP_MS", 400));
    let (mut ours, mut same, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    // A round to warm all up, then rounds in turns.
    for round in 0..=ROUNDS {
        let bare_now = throughput(constant, look_up, window);
        let same_now = throughput(server, health, window);
        let ours_now = throughput(server, look_up, window);
        if round > 0 {
            bare.push(bare_now);
            same.push(same_now);
            ours.push(ours_now);
        }
    }
    let ratio = |theirs: &[f64]| median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect());
    let (to_same, to_bare) = (ratio(&same), ratio(&bare));
    println!("HTTP look-ups of one key of {KEYS}, {CONNECTIONS} connections, {ROUNDS} rounds in turns");
    println!("  baseline: this server, a constant (/healthz)  {:9.0}/s", median(same));
    println!("  baseline: axum with nothing around it         {:9.0}/s", median(bare));
    println!(
        "  look-ups                                      {:9.0}/s   {to_same:.2} × the same server (wanted: at least \
         0.8), {to_bare:.2} × bare axum",
        median(ours)
    );
}

/// What a reader found.
#[derive(Default)]
struct Found {
    reads: u64,
    failed: u64,
    mixed: u64,
    back: u64,
}

/// Whether a value says that it is of this version.
fn is_of(value: &serde_json::Value, version: u64) -> bool {
    let digit = (version % 10).to_string();
    value["value"].as_str().is_some_and(|text| text.starts_with(&digit))
}

fn read_all_the_time(address: SocketAddr, reader: usize, stop: &AtomicBool) -> Found {
    let mut found = Found::default();
    let mut connection = Connection::open(address);
    let mut newest = std::collections::BTreeMap::<String, u64>::new();
    let mut number = reader * 7919;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let whole = number.is_multiple_of(4);
        let request = if whole { batch(address, number) } else { look_up(address, number % KEYS) };
        found.reads += 1;
        if connection.ask(&request) != 200 {
            found.failed += 1;
            continue;
        }
        let answer: serde_json::Value = serde_json::from_slice(&connection.body).unwrap();
        let version = answer["version"].as_u64().unwrap();
        let pure = match answer["values"].as_array() {
            Some(values) => values.len() == BATCH && values.iter().all(|value| is_of(&value["value"], version)),
            None => is_of(&answer["value"], version),
        };
        found.mixed += u64::from(!pure);
        // On one node nothing goes back: every push here goes forward.
        let node = newest.entry(answer["node"].as_str().unwrap().to_owned()).or_default();
        found.back += u64::from(version < *node);
        *node = version.max(*node);
    }
    found
}

async fn pushes(handle: &Handle, client: &Client, folder: &Path) {
    let address = handle.address();
    let count = setting("TIDEGATE_BENCH_PUSHES", 21) as usize;
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|reader| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || read_all_the_time(address, reader, &stop))
        })
        .collect();
    let (mut decided, mut confirmed) = (Vec::new(), Vec::new());
    for number in 0..count {
        let path = write_input(folder, number + 2);
        let view = push(client, folder, &format!("under-load-{number}"), path).await;
        for region in &view.regions {
            let at = |word: &str| region.times[word] as f64;
            // By one clock: when enough nodes held it, when the swap was decided, and when the nodes served it.
            decided.push(at("SWAP_TOLD") - at("PUSHED"));
            confirmed.push(at("ONLINE") - at("SWAP_TOLD"));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Found::default();
    for reader in readers {
        let found = reader.join().unwrap();
        all.reads += found.reads;
        all.failed += found.failed;
        all.mixed += found.mixed;
        all.back += found.back;
    }
    println!(
        "{count} pushes to {} regions under full read load: {} reads (a quarter of them batches of {BATCH}), {} failed, \
         {} mixed versions, {} went back (wanted: none)",
        decided.len() / count.max(1),
        all.reads,
        all.failed,
        all.mixed,
        all.back
    );
    println!("  swap decided to nodes serve it, under that load    p50 {:.0} ms", median(confirmed));
    println!("  ingestion reported to swap decided, under that load p50 {:.0} ms", median(decided));
    assert_eq!((all.failed, all.mixed, all.back), (0, 0, 0));
}

/// From the moment at which the last node that is needed has read its copy back to the decision to swap, by the one clock
/// of both. The time between the two has every step in it: the report, the controller's run, and the commit of its word.
async fn decisions(handle: &Handle, client: &Client, folder: &Path) {
    use tidegate_rollout::entities::{Milestone, Push, Region, Report, Store};
    use tidegate_state::Ref;
    let count = setting("TIDEGATE_BENCH_PUSHES", 21) as usize;
    let mut decided = Vec::new();
    for number in 0..count {
        let id = format!("quiet-{number}");
        let view = push(client, folder, &id, write_input(folder, number)).await;
        let version = view.state.version.unwrap();
        let snapshot = handle.state().snapshot();
        let push = Ref::<Store>::root(STORE).unwrap().child::<Push>(id).unwrap();
        for (region, part) in &snapshot.require(&push).unwrap().regions {
            let report = Ref::<Region>::root(region.clone()).unwrap().child::<Report>(STORE).unwrap();
            let ingested = snapshot.require(&report).unwrap().versions[&version].since;
            decided.push(part.reached[&Milestone::SwapTold].since(ingested).as_secs_f64() * 1e3);
        }
    }
    decided.sort_by(f64::total_cmp);
    println!("last node ingested to swap decided, {count} pushes with nothing else to do");
    println!(
        "  p50 {:.0} ms, p90 {:.0} ms, most {:.0} ms (wanted: p50 at most 20; there is no tick to wait for)",
        decided[decided.len() / 2],
        decided[decided.len() * 9 / 10],
        decided[decided.len() - 1]
    );
}

fn main() {
    // `cargo test --benches` only asks whether it runs at all.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let mut options = Options::new(folder.path().join("data"));
        options.listen = Some("127.0.0.1:0".parse().unwrap());
        let handle = Server::start(options).await.unwrap();
        let client = Client::new(&handle.url()).unwrap();
        let store =
            StoreCreate { name: STORE.to_owned(), key_columns: vec!["key".to_owned()], ..StoreCreate::default() };
        client.create_store(&store).await.unwrap();
        push(&client, folder.path(), "first", write_input(folder.path(), 1)).await;
        let body = {
            let mut connection = Connection::open(handle.address());
            let request = look_up(handle.address(), 7);
            tokio::task::spawn_blocking(move || {
                assert_eq!(connection.ask(&request), 200);
                String::from_utf8(connection.body).unwrap()
            })
            .await
            .unwrap()
        };
        let (server, constant) = (handle.address(), constant(body).await);
        tokio::task::spawn_blocking(move || look_ups(server, constant)).await.unwrap();
        pushes(&handle, &client, folder.path()).await;
        decisions(&handle, &client, folder.path()).await;
        handle.shutdown().await;
    });
}
