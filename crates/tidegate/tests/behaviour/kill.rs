//! The server and the push client each survive `kill -9` at any moment of a push.
//!
//! Twenty pushes each; the moment is drawn from a seed that is printed. Afterwards the push has ended, with a reason unless
//! it completed, every region serves one version, and the next push is accepted.

use std::process::Stdio;
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
    let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("TIDEGATE_SEED={seed}");
    seed
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
    let mut completed = 0;
    for round in 0..ROUNDS {
        let (id, input) = (format!("server-{round}"), &inputs[round % 2]);
        let mut client = server
            .command(&["push", "things", input, "--id", &id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(random.random_range(0..1_200)));
        server.kill();
        server.restart();
        client.wait().unwrap();
        let push = follow_to_the_end(&server, &id, input);
        completed += usize::from(push["status"] == "COMPLETED");
    }
    // Killing the server is no reason for a push not to complete.
    assert_eq!(completed, ROUNDS);
}

#[test]
fn d09_the_push_client_is_killed_at_random_moments_of_a_push() {
    let mut random = StdRng::seed_from_u64(seed());
    let (server, inputs) = prepare();
    for round in 0..ROUNDS {
        let (id, input) = (format!("client-{round}"), &inputs[round % 2]);
        let mut client = server
            .command(&["push", "things", input, "--id", &id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(random.random_range(0..900)));
        client.kill().unwrap();
        client.wait().unwrap();
        let push = follow_to_the_end(&server, &id, input);
        assert_eq!(push["status"], "COMPLETED", "{push:#}");
    }
}
