//! Regions whose agents are processes of their own: C7 to C9, C17, C19.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{PATIENCE, Server, describe, free_port, get, tidegate, write_csv};

const CONFIG: &str = "[[regions]]\nname = \"a\"\n\n[[regions]]\nname = \"b\"\nagent = true\n";

/// An agent of region `b` in a folder of its own, on a port that it keeps.
pub(crate) struct Agent {
    pub(crate) data: PathBuf,
    name: String,
    pub(crate) port: u16,
    control_plane: String,
    child: Option<Child>,
}

impl Agent {
    fn start(server: &Server, name: &str) -> Agent {
        Agent::start_through(server, name, server.url())
    }

    /// One that reaches the server by this address.
    pub(crate) fn start_through(server: &Server, name: &str, control_plane: String) -> Agent {
        let mut agent = Agent {
            data: server.scratch().join(name),
            name: name.to_owned(),
            port: free_port(),
            control_plane,
            child: None,
        };
        agent.restart();
        agent
    }

    /// Starts it (again), and returns once it answers.
    fn restart(&mut self) {
        assert!(self.child.is_none(), "the agent runs");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut command = tidegate();
        command.args(["agent", "--region", "b", "--control-plane", &self.control_plane, "--lease", "6s"]);
        command.args(["--name", &self.name, "--listen", &format!("127.0.0.1:{}", self.port), "--data"]).arg(&self.data);
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        self.until("it answers", |agent| get(agent.port, "/healthz").0 == 200);
    }

    fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Waits until it is so.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Agent) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("{} ended with {status}:\n{}", self.name, self.log_text());
            }
            assert!(Instant::now() < deadline, "{}: waited in vain until {what}:\n{}", self.name, self.log_text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn hosts(&self) -> bool {
        get(self.port, "/readyz") == (200, "ready\n".to_owned())
    }

    /// The version that answers, asked of the agent itself.
    pub(crate) fn version(&self) -> Option<u64> {
        let (status, body) = get(self.port, "/v1/stores/things/keys/k7");
        (status == 200).then(|| serde_json::from_str::<Value>(&body).unwrap()["version"].as_u64().unwrap())
    }

    pub(crate) fn order(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = tidegate().arg("agent").args(arguments).arg("--data").arg(&self.data).output().unwrap();
        (output.status.code(), describe(&output))
    }

    /// `kill -9`.
    fn kill(&mut self) {
        let mut child = self.child.take().expect("the agent runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("--- the log of {} ---\n{}", self.name, self.log_text());
        }
    }
}

pub(crate) struct World {
    pub(crate) server: Server,
    inputs: [String; 2],
    pushes: u64,
}

impl World {
    pub(crate) fn start() -> World {
        let server = Server::start_with(Some(CONFIG));
        let inputs = [0, 1].map(|generation| {
            let path = server.scratch().join(format!("input-{generation}.csv"));
            write_csv(&path, 500, generation);
            path.to_str().unwrap().to_owned()
        });
        server.json(&["store", "create", "things", "--key", "id"]);
        World { server, inputs, pushes: 0 }
    }

    /// Pushes the next version, and waits for it to complete.
    pub(crate) fn push(&mut self) {
        let (id, input) = (format!("p{}", self.pushes + 1), &self.inputs[usize::from(self.pushes % 2 == 1)]);
        self.pushes += 1;
        let output = self.server.run(&["push", "things", input, "--id", &id]);
        assert_eq!(output.status.code(), Some(0), "{}\n{}", describe(&output), self.server.log_text());
    }
}

#[test]
fn c9_reads_go_on_whoever_is_killed_and_everything_catches_up() {
    let mut world = World::start();
    let mut agent = Agent::start(&world.server, "agent-1");
    world.push();
    assert_eq!(agent.version(), Some(1));
    world.server.kill();
    assert_eq!(agent.version(), Some(1));
    agent.kill();
    agent.restart();
    assert_eq!(agent.version(), Some(1), "from its own disk, with the control plane gone");
    world.server.restart();
    world.push();
    assert_eq!(agent.version(), Some(2));
    agent.kill();
    agent.restart();
    assert_eq!(agent.version(), Some(2));
    // The same agent is back before its lease has run out, and hosts its region at once.
    agent.until("it hosts the region", Agent::hosts);
    world.push();
    assert_eq!(agent.version(), Some(3));
    let region = world.server.json(&["region", "show", "b"]);
    assert_eq!(region["host"]["name"], "agent-1", "{region:#}");
    assert_eq!(region["host"]["nodes"].as_array().map(Vec::len), Some(2), "{region:#}");
}

#[test]
fn c19_a_second_agent_is_refused_naming_the_first_and_takes_over_after_its_lease() {
    let mut world = World::start();
    let mut first = Agent::start(&world.server, "agent-1");
    world.push();
    first.until("it hosts the region", Agent::hosts);
    let mut second = Agent::start(&world.server, "agent-2");
    second.until("it is told who hosts the region", |agent| get(agent.port, "/readyz").1.contains("agent-1"));
    assert!(!second.hosts() && first.hosts());
    // The same folder is refused outright.
    let output = tidegate()
        .args(["agent", "--region", "b", "--control-plane", &world.server.url(), "--listen", "127.0.0.1:0", "--data"])
        .arg(&first.data)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is running on"), "{}", describe(&output));

    first.kill();
    second.until("it has taken over", Agent::hosts);
    world.push();
    assert_eq!(second.version(), Some(2));
    first.restart();
    first.until("it is told who hosts the region", |agent| get(agent.port, "/readyz").1.contains("agent-2"));
    assert!(second.hosts());
}

#[test]
fn c17_a_pin_is_given_on_the_machine_with_the_control_plane_gone() {
    let mut world = World::start();
    let mut agent = Agent::start(&world.server, "agent-1");
    world.push();
    world.push();
    world.server.kill();
    let (code, said) = agent.order(&["pin", "things", "--version", "7", "--reason", "bad"]);
    assert!(code == Some(1) && said.contains("versions 1, 2"), "{said}");
    let (code, said) = agent.order(&["pin", "things", "--version", "1", "--reason", "amounts are wrong"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(agent.version(), Some(1));
    agent.kill();
    let (code, said) = agent.order(&["pins"]);
    assert!(code == Some(0) && said.contains("amounts are wrong"), "{said}");
    agent.restart();
    agent.until("it serves what is pinned", |agent| agent.version() == Some(1));
    world.server.restart();
    agent.until("it hosts the region", Agent::hosts);
    world.push();
    assert_eq!(agent.version(), Some(1));
    let push = world.server.json(&["push", "status", "p3"]);
    assert!(push["reason"].as_str().unwrap().contains("pinned to version 1"), "{push:#}");
    let regions = world.server.run(&["region", "show", "b"]);
    assert!(String::from_utf8_lossy(&regions.stdout).contains("amounts are wrong"), "{}", describe(&regions));
    let (code, said) = agent.order(&["unpin", "things"]);
    assert_eq!(code, Some(0), "{said}");
    agent.until("it catches up", |agent| agent.version() == Some(3));
}

#[test]
fn d35_an_agent_notices_that_the_control_plane_was_restored_and_goes_on() {
    let mut world = World::start();
    let mut agent = Agent::start(&world.server, "agent-1");
    world.push();
    let to = world.server.scratch().join("b");
    let (to, data) = (to.to_str().unwrap().to_owned(), world.server.data());
    let offline = |arguments: &[&str]| {
        let output = tidegate().args(arguments).arg("--data").arg(&data).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", describe(&output));
    };
    offline(&["backup", "--to", &to]);
    world.push();
    assert_eq!(agent.version(), Some(2));
    world.server.kill();
    offline(&["restore", "--from", &to, "--yes"]);
    world.server.restart();
    agent.until("it serves what the restored assignment says", |agent| agent.version() == Some(1));
    agent.until("it hosts the region", Agent::hosts);
    world.push();
    let version = agent.version();
    assert!(version.is_some_and(|version| version > 1_000), "{version:?}");
}

/// A node of region `b` as a process, in a folder of its own.
fn start_node(server: &Server, agent: &Agent, log: &std::path::Path) -> Child {
    let log = std::fs::File::create(log).unwrap();
    let mut command = tidegate();
    command.args(["node", "--name", "n-1", "--listen", "127.0.0.1:0", "--agent"]);
    command.arg(format!("http://127.0.0.1:{}", agent.port)).arg("--data").arg(server.scratch().join("n-1"));
    command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

#[test]
fn c19_a_node_is_removed_on_the_agents_machine_and_told_to_end() {
    let mut world = World::start();
    let mut agent = Agent::start(&world.server, "agent-1");
    world.push();
    let log = world.server.scratch().join("n-1.log");
    let mut node = start_node(&world.server, &agent, &log);
    let url = world.server.url();
    let nodes = move || {
        let output = tidegate().args(["region", "show", "b", "--output", "json", "--url", &url]).output().unwrap();
        let region: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        region["host"]["nodes"].as_array().map_or(0, Vec::len)
    };
    agent.until("the node has joined", |_| nodes() == 3);
    // Any server answers reads of the region: here it asks the agent.
    let read = world.server.json(&["get", "things", "k7", "--region", "b"]);
    assert_eq!((read["region"].as_str(), read["version"].as_u64()), (Some("b"), Some(1)), "{read:#}");

    let (code, said) = agent.order(&["remove-node", "n-1", "--reason", "too old"]);
    assert!(code == Some(1) && said.contains("It was heard of") && said.contains("--force"), "{said}");
    let (code, said) = agent.order(&["remove-node", "n-9", "--reason", "too old"]);
    assert!(code == Some(1) && said.contains("it has n-1"), "{said}");
    let (code, said) = agent.order(&["remove-node", "n-1", "--reason", "too old", "--force"]);
    assert!(code == Some(0) && said.contains("b-1, b-2 left") && said.contains("told to end"), "{said}");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = node.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            let _ = node.kill();
            panic!("the node goes on: {}", std::fs::read_to_string(&log).unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(status.code() == Some(1) && said.contains("does not belong to region `b` any more"), "{status}: {said}");
    agent.until("the region is one node smaller", |_| nodes() == 2);
    world.push();
    assert_eq!(agent.version(), Some(2));
}
