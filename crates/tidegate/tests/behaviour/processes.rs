//! The demo's processes: they end with it, however it ends, and the story goes on when any of them is killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::demo::check_story;
use crate::process::{PATIENCE, describe, free_port, tidegate};

/// A demo with every part as a process of its own, in a folder that goes with the test.
struct Demo {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Demo {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut command = tidegate();
        command.args(["demo", "--processes", "--output", "json", "--listen", &format!("127.0.0.1:{port}"), "--data"]);
        command.arg(folder.path().join("demo")).args(arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Demo { folder, port, child: Some(child) }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("demo")
    }

    /// Its processes with their command lines.
    fn parts(&self) -> Vec<(u32, String)> {
        let demo = self.child.as_ref().unwrap().id();
        processes()
            .into_iter()
            .filter(|process| process.parent == demo)
            .map(|found| (found.id, found.command))
            .collect()
    }

    /// The process of a part, once it runs.
    fn part(&mut self, words: &str) -> u32 {
        self.until(words, |demo| {
            demo.parts().into_iter().find(|(_, command)| command.contains(words)).map(|(id, _)| id)
        })
    }

    /// Asks until there is an answer, while the demo runs.
    fn until<T>(&mut self, what: &str, ask: impl Fn(&Demo) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask(self) {
                return answer;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let runs = ended.is_none() && Instant::now() < deadline;
            assert!(runs, "{what}: waited in vain; the demo: {ended:?}\n{}", logs(&self.data()));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a push has come so far in a region.
    fn until_reached(&mut self, push: &str, region: &str, status: &str) {
        self.until(&format!("{push} {status} in {region}"), |demo| {
            let token = demo.data().join("tokens/admin.token");
            let mut command = tidegate();
            command.args([
                "push",
                "status",
                push,
                "--output",
                "json",
                "--url",
                &format!("http://127.0.0.1:{}", demo.port),
            ]);
            let output = command.arg("--token-file").arg(token).output().unwrap();
            let view: Value = serde_json::from_slice(&output.stdout).ok()?;
            let regions = view["regions"].as_array()?;
            regions.iter().any(|there| there["region"] == region && there["times"][status].is_u64()).then_some(())
        });
    }

    /// Waits for its end.
    fn finish(mut self) -> Output {
        self.child.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", logs(&self.data()));
        }
    }
}

struct Found {
    id: u32,
    parent: u32,
    command: String,
}

/// Everything that runs on this machine; what has ended and was not yet taken note of runs no more.
fn processes() -> Vec<Found> {
    let output = Command::new("ps").args(["-A", "-ww", "-o", "pid=,ppid=,stat=,args="]).output().unwrap();
    let read = |line: &str| {
        let mut words = line.split_whitespace();
        let (id, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let runs = !words.next()?.starts_with('Z');
        runs.then(|| Found { id, parent, command: words.collect::<Vec<_>>().join(" ") })
    };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(read).collect()
}

fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap();
    assert!(sent.success(), "SIG{name} to {process}");
}

/// What the demo's processes said, for a failing test.
fn logs(data: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(data.join("logs")).into_iter().flatten().flatten() {
        let said = std::fs::read(entry.path()).unwrap_or_default();
        text.push_str(&format!("--- {} ---\n{}\n", entry.path().display(), String::from_utf8_lossy(&said)));
    }
    text
}

#[test]
fn no_process_outlives_the_demo_that_is_killed() {
    let mut demo = Demo::start(&[]);
    demo.part("demo-application");
    let parts = demo.parts();
    assert_eq!(parts.len(), 8, "a server, three agents, three nodes, the application: {parts:#?}");
    let mut child = demo.child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: Vec<Found> = processes()
            .into_iter()
            .filter(|found| parts.iter().any(|part| *part == (found.id, found.command.clone())))
            .collect();
        if left.is_empty() {
            break;
        }
        let names: Vec<String> = left.into_iter().map(|found| found.command).collect();
        assert!(Instant::now() < deadline, "these run on: {names:#?}\n{}", logs(&demo.data()));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_interrupted_demo_ends_its_processes_in_order_and_no_token_is_in_a_log() {
    let mut demo = Demo::start(&[]);
    demo.part("demo-application");
    let parts = demo.parts();
    signal("INT", demo.child.as_ref().unwrap().id());
    let data = demo.data();
    let folder = std::mem::replace(&mut demo.folder, tempfile::tempdir().unwrap());
    let output = demo.finish();
    assert_eq!(output.status.code(), Some(130), "{}", describe(&output));
    let left: Vec<Found> = processes()
        .into_iter()
        .filter(|found| parts.iter().any(|part| *part == (found.id, found.command.clone())))
        .collect();
    assert!(left.is_empty(), "{:#?}", left.into_iter().map(|found| found.command).collect::<Vec<_>>());
    let logs = logs(&data);
    assert!(logs.matches("stopping").count() >= 7, "{logs}");
    assert!(logs.contains("first admin token") && !logs.contains("tg_"), "{logs}");
    drop(folder);
}

#[test]
fn the_story_ends_as_told_when_a_server_an_agent_and_a_node_are_killed_in_the_middle_of_it() {
    if tidegate_state::testing::postgres::skipped().is_some() {
        return;
    }
    let database = tidegate_state::testing::postgres::shared().unwrap().url();
    let mut demo = Demo::start(&["--once", "--database", &database]);
    demo.until_reached("demo-1", "a", "STARTED");
    let server = demo.part("server --listen");
    signal("KILL", server);
    demo.until_reached("demo-1", "b", "STARTED");
    let node = demo.part("--name node-b");
    signal("KILL", node);
    demo.until_reached("demo-4", "a", "ONLINE");
    for part in ["--name agent-a", "--name agent-b", "server-2.toml"] {
        let part = demo.part(part);
        signal("KILL", part);
    }
    let data = demo.data();
    let folder = std::mem::replace(&mut demo.folder, tempfile::tempdir().unwrap());
    let output = demo.finish();
    assert!(output.status.success(), "{}\n{}", describe(&output), logs(&data));
    drop(folder);
    check_story(&serde_json::from_slice(&output.stdout).unwrap());
}
