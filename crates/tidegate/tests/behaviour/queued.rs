//! C15, as users meet it: what the clients of pushes in a queue are told.

use std::process::{Child, Stdio};

use crate::process::{Server, describe, until, write_csv};

fn begin(server: &Server, input: &str, id: &str) -> Child {
    let mut command = server.command(&["push", "things", input, "--id", id]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn until_status(server: &Server, push: &str, status: &str) {
    let said = || {
        let output = server.command(&["push", "status", push, "--output", "json"]).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default()
    };
    until(&format!("{push} is {status}"), || server.log_text(), || said()["status"] == status);
}

#[test]
fn c15_who_is_superseded_in_the_queue_exits_13_and_who_waits_is_told_for_what() {
    // Region a swaps, b and c wait for an hour: the first push runs on.
    let server = Server::start_with(Some("[hooks.config.region-order]\norder = \"a, b, c\"\ndelay = \"1h\"\n"));
    let input = server.scratch().join("things.csv");
    write_csv(&input, 100, 0);
    let input = input.to_str().unwrap();
    server.json(&["store", "create", "things", "--key", "id", "--on-new-push", "queue"]);
    server.json(&["push", "things", input, "--id", "p", "--detach"]);
    until_status(&server, "p", "STARTED");

    let superseded = begin(&server, input, "q");
    until_status(&server, "q", "QUEUED");
    let mut waiting = begin(&server, input, "r");
    let output = superseded.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(13), "{}", describe(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("superseded by push r"), "{}", describe(&output));
    let push = server.json(&["push", "status", "q"]);
    assert_eq!((&push["status"], &push["ended_by"]), (&"KILLED".into(), &"superseded".into()), "{push:#}");

    until_status(&server, "r", "QUEUED");
    let explained = server.run(&["push", "explain", "r"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("waits for push p to end"), "{}", describe(&explained));
    assert_eq!(waiting.try_wait().unwrap(), None, "its client waits with it");

    assert!(server.run(&["push", "kill", "p", "--reason", "enough"]).status.success());
    until_status(&server, "r", "STARTED");
    assert!(server.run(&["push", "kill", "r", "--reason", "enough"]).status.success());
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(13), "{}", describe(&output));
}
