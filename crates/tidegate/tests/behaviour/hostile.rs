//! What unlucky and hostile users do: streams that are closed, files of the wrong kind, names that no address can hold.

use std::io::Read;
use std::process::Stdio;

use crate::process::{Server, describe, tidegate, write_csv};

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn f11_a_push_whose_output_nobody_reads_any_more_runs_to_its_end() {
    let server = Server::start();
    let input = server.scratch().join("things.csv");
    write_csv(&input, 5_000, 0);
    server.json(&["store", "create", "things", "--key", "id"]);
    for (id, watch) in [("p1", None), ("p2", Some("--watch"))] {
        let mut command = server.command(&["push", "things", input.to_str().unwrap(), "--id", id]);
        command.args(watch);
        let mut client = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // As `2>&1 | head -1` does it: one byte is read, then both streams are closed.
        client.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        drop((client.stdout.take(), client.stderr.take()));
        assert_eq!(client.wait().unwrap().code(), Some(0), "{id}");
        assert_eq!(server.json(&["push", "status", id])["status"], "COMPLETED");
    }
    // A result that nobody reads is no error, and neither is a script for a shell.
    for arguments in [&["push", "list"][..], &["completions", "bash"]] {
        let mut client = server.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(client.stdout.take());
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {}", describe(&output));
    }
}

#[test]
fn c11_a_server_whose_log_goes_nowhere_does_all_its_work() {
    let mut server = Server::start();
    server.kill();
    // Everything that it logs fails to be written, from the first line on.
    server.restart_with_closed_log("trace");
    let input = server.scratch().join("things.csv");
    write_csv(&input, 100, 0);
    server.json(&["store", "create", "things", "--key", "id"]);
    let output = server.run(&["push", "things", input.to_str().unwrap(), "--id", "p1"]);
    assert_eq!(output.status.code(), Some(0), "{}", describe(&output));
    for region in ["a", "b", "c"] {
        assert_eq!(server.json(&["get", "things", "k7", "--region", region])["version"], 1);
    }
}

#[test]
fn g03_a_wrong_file_never_takes_guards_away_unasked() {
    let server = Server::start();
    let file = server.scratch().join("hooks.toml");
    let apply = |content: &str, further: &[&str]| {
        std::fs::write(&file, content).unwrap();
        let output = server.run(&[&["config", "apply", file.to_str().unwrap()], further].concat());
        (output.status.code(), stderr(&output))
    };
    let guarded = "[hooks]\n[hooks.config.region-order]\norder = \"a, b, c\"\n[hooks.config.data-quality]\nrecords_drop_max = 5\n";
    assert_eq!(apply(guarded, &[]).0, Some(0));
    for wrong in ["", "[server]\nname = \"x\"\n", "[hookz]\nthreads = 4\n"] {
        let (code, said) = apply(wrong, &["--yes"]);
        assert_eq!(code, Some(1), "{wrong}: {said}");
        assert!(said.contains("hook"), "{wrong}: {said}");
    }
    // What goes is named, and without an answer nothing goes.
    let less = "[hooks]\n[hooks.config.region-order]\ndelay = \"1s\"\n";
    let (code, said) = apply(less, &[]);
    assert_eq!(code, Some(2), "{said}");
    for part in ["data-quality", "data-quality.records_drop_max = 5", "region-order.order = a, b, c", "--yes"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let hooks = server.json(&["config", "show"])["hooks"]["hooks"].clone();
    assert_eq!(hooks["data-quality"]["records_drop_max"], "5", "{hooks:#}");
    assert_eq!(apply(less, &["--yes"]).0, Some(0));
}

#[test]
fn keys_are_read_as_they_are_whatever_is_in_them() {
    let server = Server::start();
    let push = |store: &str, content: &str| {
        let input = server.scratch().join(format!("{store}.csv"));
        std::fs::write(&input, content).unwrap();
        let output = server.run(&["push", store, input.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", describe(&output));
    };
    server.json(&["store", "create", "places", "--key", "name"]);
    push("places", "name,n\n\"Berlin, Tegel\",1\n\"[1,2]\",2\n.,3\n..,4\n\"a/b?c#d\",5\n");
    for (key, n) in [("Berlin, Tegel", 1), ("[1,2]", 2), (".", 3), ("..", 4), ("a/b?c#d", 5)] {
        assert_eq!(server.json(&["get", "places", key, "--region", "a"])["value"]["n"], n, "{key}");
    }
    let absent = server.run(&["get", "places", "", "--region", "a"]);
    assert_eq!(absent.status.code(), Some(1), "{}", describe(&absent));
    assert!(stderr(&absent).contains("no such record"), "{}", describe(&absent));

    server.json(&["store", "create", "rooms", "--key", "house,room"]);
    push("rooms", "house,room,n\nmain,01x,1\nmain,07y,2\n\"a,b\",1z,3\n");
    for (key, n) in [("main,01x", 1), ("main,07y", 2), (r#"["a,b","1z"]"#, 3)] {
        assert_eq!(server.json(&["get", "rooms", key, "--region", "a"])["value"]["n"], n, "{key}");
    }
    let wrong = server.run(&["get", "rooms", "a,b,1z", "--region", "a"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", describe(&wrong));
    assert!(stderr(&wrong).contains("house, room"), "{}", describe(&wrong));
}

#[test]
fn names_that_no_address_can_hold_are_refused() {
    let server = Server::start();
    for name in [".", "..", "a\u{202e}b", "a\u{1}b"] {
        let refused = server.run(&["store", "create", name, "--key", "id"]);
        assert_eq!(refused.status.code(), Some(1), "{name:?}: {}", describe(&refused));
    }
    let input = server.scratch().join("things.csv");
    write_csv(&input, 10, 0);
    server.json(&["store", "create", "things", "--key", "id"]);
    let refused = server.run(&["push", "things", input.to_str().unwrap(), "--id", ".."]);
    assert_eq!(refused.status.code(), Some(1), "{}", describe(&refused));
    assert!(stderr(&refused).contains("address"), "{}", describe(&refused));
}

#[test]
fn d9_a_client_that_leaves_before_the_data_is_complete_says_how_long_it_is_waited_for() {
    // The first push holds the store for an hour, so the second one waits for its turn, and then for its client.
    let server = Server::start_with(Some("[hooks.config.region-order]\norder = \"a, b, c\"\ndelay = \"1h\"\n"));
    let input = server.scratch().join("things.csv");
    write_csv(&input, 100, 0);
    let input = input.to_str().unwrap();
    server.json(&["store", "create", "things", "--key", "id"]);
    server.json(&["store", "set", "things", "on_new_push=queue"]);
    let first = server.run(&["push", "things", input, "--id", "p1", "--timeout", "5s"]);
    assert_eq!(first.status.code(), Some(14), "{}", describe(&first));

    let check = |output: &std::process::Output, id: &str, code: i32| {
        assert_eq!(output.status.code(), Some(code), "{}", describe(output));
        let said = stderr(output);
        for part in ["waits for its client", &format!("--id {id}"), &format!("tidegate push kill {id}")] {
            assert!(said.contains(part), "{part} in {said}");
        }
    };
    let second = server.run(&["push", "things", input, "--id", "p2", "--timeout", "5s"]);
    check(&second, "p2", 14);
    let mut command = server.command(&["push", "things", input, "--id", "p2"]);
    let mut client = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // What it says first is said once the push was found.
    client.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let interrupt = std::process::Command::new("kill").args(["-INT", &client.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    check(&client.wait_with_output().unwrap(), "p2", 130);
}

#[test]
fn d9_nothing_is_left_on_the_clients_disk_by_a_push_that_ended() {
    let server = Server::start();
    let cache = server.scratch().join("cache");
    let (good, bad) = (server.scratch().join("good.csv"), server.scratch().join("bad.csv"));
    write_csv(&good, 100, 0);
    std::fs::write(&bad, "id,amount\nk1,1\nk1,2\n").unwrap();
    server.json(&["store", "create", "things", "--key", "id"]);
    for (input, code) in [(&good, 0), (&bad, 10)] {
        let mut command = server.command(&["push", "things", input.to_str().unwrap()]);
        let output = command.env("XDG_CACHE_HOME", &cache).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", describe(&output));
        let left: Vec<_> = std::fs::read_dir(cache.join("tidegate/pushes")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn f11_a_server_that_is_not_there_is_told_soon_and_surely_got_nothing() {
    let output = tidegate().args(["store", "list", "--url", "http://127.0.0.1:9"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", describe(&output));
    let said = stderr(&output);
    assert!(said.starts_with(".. the server does not answer; trying on for up to 10s\n"), "{said}");
    assert!(said.contains("did not get the request"), "{said}");
}

#[test]
fn hook_settings_that_are_not_set_are_named_beside_those_that_are() {
    let server = Server::start();
    server.json(&["store", "create", "things", "--key", "id"]);
    server.json(&["store", "hooks", "set", "things", "region-order.order=a, b, c"]);
    let output = server.run(&["store", "hooks", "unset", "things", "nothing.here"]);
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    assert!(stderr(&output).contains("region-order.order"), "{}", describe(&output));
    let output = server.run(&["store", "hooks", "set", "things", "nothing.here=1"]);
    assert!(
        stderr(&output).contains("what to do: Name a hook that this server was built with"),
        "{}",
        describe(&output)
    );
}

#[test]
fn a_pipe_as_input_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (pipe, file) = (folder.path().join("pipe.csv"), folder.path().join("file.csv"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    write_csv(&file, 3, 0);
    let (pipe, file) = (pipe.to_str().unwrap(), file.to_str().unwrap());
    for arguments in [&["push", "things", pipe][..], &["diff", file, pipe, "--key", "id"]] {
        let output = tidegate().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", describe(&output));
        assert!(stderr(&output).contains("no regular file"), "{arguments:?}: {}", describe(&output));
    }
}
