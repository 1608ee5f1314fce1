//! C19 with processes: an agent that is cut off from the control plane, one that takes over, and the first one's return, while
//! somebody reads all the time.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::agent::{Agent, World};
use crate::process::{Server, ask, free_port, get, tidegate, until};

/// An address that leads to a port, to another one, or nowhere.
struct Gateway {
    port: u16,
    leads_to: Arc<Mutex<Option<u16>>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gateway {
    fn start(leads_to: u16) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let gateway = Gateway { port, leads_to: Arc::new(Mutex::new(Some(leads_to))), open: Arc::default() };
        let (leads_to, open) = (Arc::clone(&gateway.leads_to), Arc::clone(&gateway.open));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(inner) = stream else { return };
                let place = leads_to.lock().unwrap();
                let outer = place.map(|port| TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))));
                let Some(Ok(outer)) = outer else { continue };
                open.lock().unwrap().extend([inner.try_clone().unwrap(), outer.try_clone().unwrap()]);
                drop(place);
                pass(inner.try_clone().unwrap(), outer.try_clone().unwrap());
                pass(outer, inner);
            }
        });
        gateway
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on it leads there; what was open ends.
    fn lead_to(&self, port: Option<u16>) {
        let mut place = self.leads_to.lock().unwrap();
        *place = port;
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Passes on what comes, until either end is closed.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// Reads again and again, and keeps what failed.
struct Reader {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

impl Reader {
    fn start(port: u16, path: &'static str) -> Reader {
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&reads));
        let thread = std::thread::spawn(move || {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let (status, body) = get(port, path);
                if status != 200 {
                    failed.push(format!("{status}: {body}"));
                }
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            failed
        });
        Reader { stop, reads, thread }
    }

    /// Waits until it has read once more, begun after this.
    fn until_read(&self) {
        let before = self.reads.load(Ordering::Relaxed);
        until("it is read", String::new, || self.reads.load(Ordering::Relaxed) >= before + 2);
    }

    /// What failed.
    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A node of region `b`, whose agent is to be found at this address.
struct Node {
    port: u16,
    log: PathBuf,
    child: Child,
}

impl Node {
    fn start(server: &Server, agent: &str) -> Node {
        let (port, log) = (free_port(), server.scratch().join("n-1.log"));
        let mut command = tidegate();
        command.args(["node", "--name", "n-1", "--listen", &format!("127.0.0.1:{port}"), "--agent", agent]);
        command.arg("--data").arg(server.scratch().join("n-1"));
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        Node { port, log, child: command.spawn().unwrap() }
    }

    fn until_version(&self, version: u64) {
        let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
        until(&format!("the node serves version {version}"), log, || self.version() == Some(version));
    }

    fn version(&self) -> Option<u64> {
        let (status, body) = get(self.port, "/v1/stores/things/keys/k7");
        (status == 200).then(|| serde_json::from_str::<Value>(&body).unwrap()["version"].as_u64().unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The region's host as the control plane shows it.
fn host(server: &Server) -> Value {
    server.json(&["region", "show", "b"])["host"].clone()
}

#[test]
fn c19_no_read_fails_while_an_agent_is_cut_off_another_takes_over_and_the_first_comes_back() {
    let mut world = World::start();
    // Agent 1 reaches the control plane over a line of its own; nodes find their agent by the region's address.
    let line = Gateway::start(world.server.port());
    let mut first = Agent::start_through(&world.server, "agent-1", line.url());
    let address = Gateway::start(first.port);
    first.until("it hosts the region", Agent::hosts);
    let node = Node::start(&world.server, &address.url());
    until(
        "the node has joined",
        || first.log_text(),
        || host(&world.server)["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3),
    );
    world.push();
    node.until_version(1);
    first.until("its own nodes serve", |agent| agent.version() == Some(1));
    let mut second = Agent::start_through(&world.server, "agent-2", world.server.url());
    second.until("it is told who hosts the region", |agent| get(agent.port, "/readyz").1.contains("agent-1"));
    let held = host(&world.server);
    let readers = [
        Reader::start(node.port, "/v1/stores/things/keys/k7"),
        Reader::start(first.port, "/v1/stores/things/keys/k7"),
        Reader::start(world.server.port(), "/v1/stores/things/keys/k7?region=b"),
    ];
    readers.iter().for_each(Reader::until_read);

    // Cut off past its lease; the other one takes over, and the region's address is its own from then on.
    line.lead_to(None);
    second.until("it has taken over", Agent::hosts);
    readers.iter().for_each(Reader::until_read);
    address.lead_to(Some(second.port));
    until(
        "the node is the second one's",
        || second.log_text(),
        || {
            let host = host(&world.server);
            host["name"] == "agent-2" && host["nodes"].as_array().is_some_and(|nodes| nodes.len() == 3)
        },
    );
    world.push();
    node.until_version(2);
    // The first does not know. What it orders its own nodes do, and the other's refuses.
    let (code, said) = first.order(&["pin", "things", "--version", "1", "--reason", "nobody told me"]);
    assert_eq!(code, Some(0), "{said}");
    first.until("the node has refused it", |agent| agent.log_text().contains("another agent has commanded the node"));
    assert_eq!((first.version(), node.version(), second.version()), (Some(1), Some(2), Some(2)));

    // It comes back: it is told, says so, and commands nothing any more.
    line.lead_to(Some(world.server.port()));
    first.until("it is told who hosts the region", |agent| get(agent.port, "/readyz").1.contains("agent-2"));
    let (status, why) = get(first.port, "/readyz");
    assert!(status == 503 && why.contains("commands its nodes no more"), "{status} {why}");
    let (code, said) = first.order(&["pin", "things", "--version", "1", "--reason", "again"]);
    assert!(code == Some(1) && said.contains("agent-2"), "{said}");
    let (agent, token) = (held["agent"].as_str().unwrap(), &held["token"]);
    let report = format!("/v1/regions/b/agent/reports/things?agent={agent}&token={token}");
    let (status, body) = ask(world.server.port(), "DELETE", &report);
    let refused: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {status} {body}"));
    assert!(refused["code"] == "region_hosted" && refused["why"].as_str().unwrap().contains("agent-2"), "{refused:#}");
    world.push();
    node.until_version(3);
    assert_eq!(second.version(), Some(3));
    // Nothing of what it ordered was taken for the region's.
    let region = world.server.json(&["region", "show", "b"]);
    assert_eq!((&region["host"]["name"], &region["stores"]["things"]["pin"]), (&"agent-2".into(), &Value::Null));
    assert_eq!(region["stores"]["things"]["serving"], 3, "{region:#}");
    readers.iter().for_each(Reader::until_read);
    for (place, reader) in ["the node", "agent 1", "the server"].into_iter().zip(readers) {
        let failed = reader.end();
        assert!(
            failed.is_empty(),
            "{} reads failed at {place}: {:#?}",
            failed.len(),
            failed.iter().take(5).collect::<Vec<_>>()
        );
    }
}
