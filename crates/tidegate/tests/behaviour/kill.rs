//! The server and the push client each survive `kill -9` at any moment of a push.
//!
//! Twenty pushes each (`TIDEGATE_KILL_ROUNDS` says how many; more for a longer run); the moment is drawn from a seed that is
//! printed, between the start of a push and the time that an undisturbed one takes. Afterwards the push has ended, with a
//! reason unless it completed, every region serves one version, and the next push is accepted.
//!
//! The long run by itself:
//!
//! ```sh
//! TIDEGATE_KILL_ROUNDS=100 cargo test --release -p tidegate --test tidegate_behaviour kill -- --nocapture
//! ```

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::process::{PATIENCE, Server, describe, write_csv};

const ROUNDS: usize = 20;
const ROWS: usize = 20_000;

/// What a push ends with; anything else means that it was not followed to its end.
const ENDED: [i32; 5] = [0, 10, 11, 12, 13];

fn seed() -> u64 {
    let seed = setting("TIDEGATE_SEED").unwrap_or_else(rand::random);
    println!("TIDEGATE_SEED={seed}");
    seed
}

fn rounds() -> usize {
    setting("TIDEGATE_KILL_ROUNDS").unwrap_or(ROUNDS)
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// How long a push takes that nobody disturbs.
fn undisturbed(server: &Server, inputs: &[String; 2]) -> Duration {
    let taken = [0, 1].map(|number| {
        let begun = Instant::now();
        follow_to_the_end(server, &format!("undisturbed-{number}"), &inputs[number]);
        begun.elapsed()
    });
    // The first one also warms things up.
    taken[0].min(taken[1])
}

fn spawn(server: &Server, id: &str, input: &str) -> Child {
    let mut command = server.command(&["push", "things", input, "--id", id]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// What came to an end in its own time: a kill after the end of a push says nothing.
struct Tally {
    hit: usize,
    rounds: usize,
}

impl Tally {
    /// A client that had ended by `moment` says that a push takes less than it did when it was measured, as it does once the
    /// regions have the data: later moments would all be too late.
    fn note(&mut self, client: &mut Child, moment: Duration, takes: &mut Duration) {
        match client.try_wait().unwrap() {
            None => self.hit += 1,
            Some(status) => {
                assert!(status.success(), "the push ended before it was disturbed: {status}");
                *takes = moment;
            }
        }
    }

    fn check(&self, whom: &str) {
        println!("{} of {} kills hit the {whom} in the middle of a push", self.hit, self.rounds);
        assert!(self.hit * 2 >= self.rounds, "{} of {} kills came too late", self.rounds - self.hit, self.rounds);
    }
}

fn prepare() -> (Server, [String; 2]) {
    let server = Server::start_with(Some("[hooks.config.region-order]\norder = \"a, b, c\"\ndelay = \"100ms\"\n"));
    let inputs = [0, 1].map(|generation| {
        let path = server.scratch().join(format!("input-{generation}.csv"));
        write_csv(&path, ROWS, generation);
        path.to_str().unwrap().to_owned()
    });
    server.json(&["store", "create", "things", "--key", "id"]);
    (server, inputs)
}

/// Follows a push to its end with as many clients as it takes, and checks what is then promised.
fn follow_to_the_end(server: &Server, id: &str, input: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = server.run(&["push", "things", input, "--id", id]);
        if output.status.code().is_some_and(|code| ENDED.contains(&code)) {
            break;
        }
        assert!(Instant::now() < deadline, "push {id} did not end: {}", describe(&output));
    }
    let push = server.json(&["push", "status", id]);
    let status = push["status"].as_str().unwrap();
    if status != "COMPLETED" {
        assert!(push["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "no reason: {push:#}");
    }
    let serving: Vec<&Value> = push["regions"].as_array().unwrap().iter().map(|region| &region["serving"]).collect();
    assert_eq!(serving.len(), 3, "{push:#}");
    assert!(serving.iter().all(|version| *version == serving[0]), "regions serve different versions: {push:#}");
    push
}

#[test]
fn c01_the_server_is_killed_at_random_moments_of_a_push() {
    let mut random = StdRng::seed_from_u64(seed());
    let (mut server, inputs) = prepare();
    let mut takes = undisturbed(&server, &inputs);
    let mut tally = Tally { hit: 0, rounds: rounds() };
    for round in 0..tally.rounds {
        let (id, input) = (format!("server-{round}"), &inputs[round % 2]);
        let mut client = spawn(&server, &id, input);
        let moment = takes.mul_f64(random.random_range(0.0..1.0));
        std::thread::sleep(moment);
        tally.note(&mut client, moment, &mut takes);
        server.kill();
        server.restart();
        client.wait().unwrap();
        let push = follow_to_the_end(&server, &id, input);
        // Killing the server is no reason for a push not to complete.
        assert_eq!(push["status"], "COMPLETED", "{push:#}");
    }
    tally.check("server");
    let next = follow_to_the_end(&server, "next", &inputs[0]);
    assert_eq!(next["status"], "COMPLETED", "{next:#}");
}

#[test]
fn d09_the_push_client_is_killed_at_random_moments_of_a_push() {
    let mut random = StdRng::seed_from_u64(seed());
    let (server, inputs) = prepare();
    let mut takes = undisturbed(&server, &inputs);
    let mut tally = Tally { hit: 0, rounds: rounds() };
    for round in 0..tally.rounds {
        let (id, input) = (format!("client-{round}"), &inputs[round % 2]);
        let mut client = spawn(&server, &id, input);
        let moment = takes.mul_f64(random.random_range(0.0..1.0));
        std::thread::sleep(moment);
        tally.note(&mut client, moment, &mut takes);
        client.kill().unwrap();
        client.wait().unwrap();
        let push = follow_to_the_end(&server, &id, input);
        assert_eq!(push["status"], "COMPLETED", "{push:#}");
    }
    tally.check("client");
    let next = follow_to_the_end(&server, "next", &inputs[0]);
    assert_eq!(next["status"], "COMPLETED", "{next:#}");
}

#[test]
fn d09_a_push_whose_client_was_killed_and_never_comes_back_ends_by_itself() {
    let mut random = StdRng::seed_from_u64(seed());
    let (server, inputs) = prepare();
    let takes = undisturbed(&server, &inputs);
    server.json(&["store", "set", "things", "limits.silence_ms=500"]);
    for round in 0..rounds().div_ceil(4) {
        let id = format!("left-{round}");
        let mut client = spawn(&server, &id, &inputs[round % 2]);
        std::thread::sleep(takes.mul_f64(random.random_range(0.0..1.0)));
        client.kill().unwrap();
        client.wait().unwrap();
        // It may have died before it was heard of; else the push goes on, if its data had arrived, or ends at the limit.
        let known = server.run(&["push", "status", &id, "--watch"]);
        if known.status.code() == Some(1) {
            assert!(String::from_utf8_lossy(&known.stderr).contains(&id), "{}", describe(&known));
            continue;
        }
        let push = server.json(&["push", "status", &id]);
        match push["status"].as_str().unwrap() {
            "COMPLETED" => {}
            "ERROR" => {
                assert_eq!(push["ended_by"], "limit", "{push:#}");
                assert!(push["reason"].as_str().unwrap().contains("silent"), "{push:#}");
            }
            _ => panic!("{push:#}"),
        }
    }
    server.json(&["store", "set", "things", "limits.silence_ms=600000"]);
    let next = follow_to_the_end(&server, "next", &inputs[0]);
    assert_eq!(next["status"], "COMPLETED", "{next:#}");
}
