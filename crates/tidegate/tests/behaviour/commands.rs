//! Exit codes and words of the commands, for people and for programs.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::process::{PATIENCE, Server, describe, tidegate, write_csv};

#[test]
fn f11_a_server_that_is_not_there_is_exit_code_3_and_names_the_address() {
    let output = tidegate().args(["store", "list", "--url", "http://127.0.0.1:9"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", describe(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("http://127.0.0.1:9"), "{}", describe(&output));
    assert!(output.stdout.is_empty(), "{}", describe(&output));
}

#[test]
fn f11_a_wrong_command_line_is_exit_code_2() {
    let output = tidegate().args(["push", "airports"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", describe(&output));
}

#[test]
fn f10_a_client_that_waits_for_the_swap_is_told_of_the_end_at_once() {
    // Region a swaps, b and c wait for an hour.
    let server = Server::start_with(Some("[hooks.config.region-order]\norder = \"a, b, c\"\ndelay = \"1h\"\n"));
    let input = server.scratch().join("things.csv");
    write_csv(&input, 1_000, 0);
    server.json(&["store", "create", "things", "--key", "id"]);
    // Sitting out its own timeout would take longer than anything here may.
    let timeout = format!("{}s", (PATIENCE * 10).as_secs());
    let mut command = server.command(&["push", "things", input.to_str().unwrap(), "--id", "p1", "--timeout", &timeout]);
    let mut client = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while server.json(&["store", "show", "things"])["serving"]["a"] != 1 {
        assert!(Instant::now() < deadline, "region a does not swap");
        if client.try_wait().unwrap().is_some() {
            panic!("the client does not wait for the others: {}", describe(&client.wait_with_output().unwrap()));
        }
    }
    server.json(&["store", "set", "things", "limits.push_ms=1000"]);
    let deadline = Instant::now() + PATIENCE;
    while client.try_wait().unwrap().is_none() {
        if Instant::now() >= deadline {
            client.kill().unwrap();
            panic!("the client was not told: {}", describe(&client.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = client.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", describe(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    for part in ["push limit is 1 s", "region-order", "b:"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // F11: part of it is released, so it says who serves what.
    assert!(said.contains("released in part") && said.contains("a serves version 1, b serves nothing"), "{said}");
    let push = server.json(&["push", "status", "p1"]);
    assert_eq!((&push["status"], &push["ended_by"]), (&"ERROR".into(), &"limit".into()), "{push:#}");
    assert_eq!(push["version_status"], "PARTIALLY_ONLINE", "{push:#}");
}

#[test]
fn b11_b19_what_was_rolled_back_is_released_again_as_a_new_version() {
    let server = Server::start();
    server.json(&["store", "create", "things", "--key", "id"]);
    for generation in [0, 1] {
        let input = server.scratch().join(format!("{generation}.csv"));
        write_csv(&input, 100, generation);
        let output = server.run(&["push", "things", input.to_str().unwrap(), "--id", &format!("p{generation}")]);
        assert_eq!(output.status.code(), Some(0), "{}", describe(&output));
    }
    server.json(&["store", "rollback", "things", "--reason", "prices are off", "--yes"]);
    let refused = server.run(&["store", "rollback", "things", "--to", "2", "--reason", "no, good", "--yes"]);
    assert_eq!(refused.status.code(), Some(1), "{}", describe(&refused));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("--from-version 2"), "{said}");
    // What it names is what there is; every gate is asked, one that is named is opened on record.
    let again = server.run(&[
        "push",
        "things",
        "--from-version",
        "2",
        "--id",
        "p2",
        "--proceed",
        "pre-creation@a=the drop is expected",
    ]);
    assert_eq!(again.status.code(), Some(0), "{}", describe(&again));
    let answer = server.json(&["get", "things", "k7", "--region", "a"]);
    assert_eq!((&answer["version"], &answer["value"]["amount"]), (&3.into(), &50.into()), "{answer:#}");
    // A gate that is none, and data that is not there.
    for (arguments, part) in [
        (["push", "things", "--from-version", "2", "--proceed", "pre-swapp@a=x"], "pre-swap"),
        (["push", "things", "--from-version", "2", "--proceed", "swap@nowhere=x"], "nowhere"),
        (["push", "things", "--from-version", "9", "--proceed", "swap@a=x"], "9"),
    ] {
        let refused = server.run(&arguments);
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}: {}", describe(&refused));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(part), "{part} in {}", describe(&refused));
    }
}

#[test]
fn a_store_is_made_pushed_to_and_read() {
    let server = Server::start();
    let input = server.scratch().join("things.csv");
    write_csv(&input, 1_000, 0);
    server.json(&["store", "create", "things", "--key", "id"]);

    let output = server.run(&["push", "things", input.to_str().unwrap(), "--id", "p1"]);
    assert_eq!(output.status.code(), Some(0), "{}", describe(&output));

    let answer = server.json(&["get", "things", "k7", "--region", "b"]);
    assert_eq!(answer["version"], 1);
    assert_eq!(answer["value"]["amount"], 49);

    let regions = server.json(&["region", "list"]);
    assert_eq!(regions.as_array().map(Vec::len), Some(3), "{regions:#}");
    let pushes = server.json(&["push", "list"]);
    assert_eq!(pushes[0]["push"], "p1", "{pushes:#}");

    let absent = server.run(&["get", "things", "nothing", "--region", "b"]);
    assert_eq!(absent.status.code(), Some(1), "{}", describe(&absent));
    let unknown = server.run(&["push", "nowhere", input.to_str().unwrap()]);
    assert_eq!(unknown.status.code(), Some(1), "{}", describe(&unknown));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nowhere"), "{}", describe(&unknown));
}

#[test]
fn bad_input_ends_the_push_with_exit_code_10_and_says_what_is_wrong() {
    let server = Server::start();
    server.json(&["store", "create", "things", "--key", "id"]);
    for (name, content, code, parts) in [
        ("no-key.csv", "name,amount\na,1\n", 10, vec!["id", "name", "amount"]),
        ("twice.csv", "id,amount\nk1,1\nk2,2\nk1,3\n", 10, vec!["k1", "twice.csv"]),
        ("ragged.csv", "id,amount\nk1,1\nk2,2,3\n", 10, vec!["ragged.csv", "3"]),
        ("empty.csv", "id,amount\n", 10, vec!["empty"]),
        // What can't be read at all starts no push.
        ("things.xls", "id,amount\nk1,1\n", 1, vec!["things.xls", "format"]),
    ] {
        let path = server.scratch().join(name);
        std::fs::write(&path, content).unwrap();
        let output = server.run(&["push", "things", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(code), "{name}: {}", describe(&output));
        for part in parts {
            assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{name}: {part} in {}", describe(&output));
        }
    }
    // What went wrong holds nothing up.
    let good = server.scratch().join("good.csv");
    write_csv(&good, 100, 0);
    let output = server.run(&["push", "things", good.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", describe(&output));
}

#[test]
fn r9_an_empty_version_needs_leave_and_then_is_one_like_any_other() {
    let server = Server::start();
    server.json(&["store", "create", "things", "--key", "id"]);
    let (empty, full) = (server.scratch().join("empty.csv"), server.scratch().join("full.csv"));
    std::fs::write(&empty, "id,name,amount\n").unwrap();
    write_csv(&full, 100, 0);
    let push = |path: &std::path::Path, further: &[&str]| {
        let output = server.run(&[&["push", "things", path.to_str().unwrap()], further].concat());
        (output.status.code(), describe(&output))
    };
    assert_eq!(push(&full, &[]).0, Some(0));
    let (code, said) = push(&empty, &[]);
    assert!(code == Some(10) && said.contains("--allow-empty"), "{said}");
    let (code, said) = push(&empty, &["--allow-empty"]);
    assert_eq!(code, Some(0), "{said}");
    for region in ["a", "b", "c"] {
        let absent = server.run(&["get", "things", "k7", "--region", region]);
        assert_eq!(absent.status.code(), Some(1), "{}", describe(&absent));
        assert!(
            String::from_utf8_lossy(&absent.stderr).contains("Version 3 has no such record"),
            "{}",
            describe(&absent)
        );
    }
    assert_eq!(push(&full, &[]).0, Some(0), "the next push is accepted");
}

#[test]
fn d16_two_files_are_compared_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = (folder.path().join("before.csv"), folder.path().join("after.csv"));
    std::fs::write(&before, "id,amount\na,1\nb,2\nc,3\n").unwrap();
    std::fs::write(&after, "id,amount\nb,2\nc,4\nd,5\ne,\n").unwrap();
    let output = tidegate()
        .args(["diff", before.to_str().unwrap(), after.to_str().unwrap(), "--key", "id", "--output", "json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", describe(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["added"], &report["removed"], &report["changed"]),
        (&2.into(), &1.into(), &1.into()),
        "{report:#}"
    );
}

#[test]
fn d16_what_can_not_be_compared_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there.csv");
    std::fs::write(&there, "id,amount\na,1\n").unwrap();
    let absent = folder.path().join("absent.csv");
    let output = tidegate().arg("diff").args([&there, &absent]).args(["--key", "id"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("absent.csv").count(), 1, "{said}");
}

#[test]
fn r14_a_deleted_store_is_gone_for_readers_and_its_name_is_free() {
    let server = Server::start();
    let input = server.scratch().join("things.csv");
    write_csv(&input, 100, 0);
    for _ in 0..2 {
        server.json(&["store", "create", "things", "--key", "id"]);
        let output = server.run(&["push", "things", input.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", describe(&output));
        assert_eq!(server.json(&["get", "things", "k7", "--region", "a"])["version"], 1);
        server.json(&["store", "delete", "things", "--yes"]);
        // A region that has not heard of it yet may still answer with what it has, for a moment.
        let deadline = Instant::now() + PATIENCE;
        while !String::from_utf8_lossy(&server.run(&["get", "things", "k7", "--region", "a"]).stderr)
            .contains("There is no store `things`")
        {
            assert!(Instant::now() < deadline, "readers are never told");
        }
    }
}

#[test]
fn a_server_refuses_to_listen_beyond_loopback_unless_told_so_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let output = tidegate().args(["server", "--listen", "0.0.0.0:0", "--data"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    for named in ["loopback", "--allow-plain-http", "[tls]"] {
        assert!(String::from_utf8_lossy(&output.stderr).contains(named), "{named}: {}", describe(&output));
    }
}

#[test]
fn d16_one_changed_record_is_one_record() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = (folder.path().join("before.csv"), folder.path().join("after.csv"));
    std::fs::write(&before, "id,amount\na,1\n").unwrap();
    std::fs::write(&after, "id,amount\na,2\n").unwrap();
    let output = tidegate().arg("diff").args([&before, &after]).args(["--key", "id"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("before.csv: 1 record, ") && said.contains("changed in 1 record\n"), "{said}");
}

#[test]
fn a_value_of_another_kind_is_refused_with_what_is_expected_and_an_example() {
    let output = tidegate().args(["store", "set", "things", "limits.push_ms=soon"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", describe(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("90s, 15m, 2h") && said.contains("Write for instance limits.push_ms=2h."), "{said}");
}

#[test]
fn a_store_is_not_given_a_name_that_push_has_as_a_command() {
    let server = Server::start();
    for name in ["list", "status", "kill"] {
        let refused = server.run(&["store", "create", name, "--key", "id"]);
        assert_eq!(refused.status.code(), Some(2), "{}", describe(&refused));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains(&format!("tidegate push -- {name} PATH")), "{said}");
    }
    assert_eq!(server.json(&["store", "list"]), serde_json::json!([]));
    // One that was made otherwise can be pushed to as the help says.
    let input = server.scratch().join("things.csv");
    write_csv(&input, 10, 0);
    let unknown = server.run(&["push", "--", "list", input.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no store \"list\""), "{}", describe(&unknown));
}

#[test]
fn what_schemas_and_hook_settings_a_store_has_can_be_listed() {
    let server = Server::start();
    let input = server.scratch().join("things.csv");
    write_csv(&input, 10, 0);
    server.json(&["store", "create", "things", "--key", "id"]);
    let none = server.run(&["store", "schema", "list", "things"]);
    assert!(String::from_utf8_lossy(&none.stdout).starts_with("no schema"), "{}", describe(&none));
    server.json(&["push", "things", input.to_str().unwrap(), "--id", "p1"]);
    let known = server.json(&["store", "schema", "list", "things"]);
    assert_eq!((&known[0]["id"], &known[0]["push"]), (&1.into(), &"p1".into()), "{known:#}");
    let text = server.run(&["store", "schema", "list", "things"]);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("by push p1") && text.contains("id      string, never null"), "{text}");

    server.json(&["store", "hooks", "set", "things", "region-order.delay=30s"]);
    let shown = server.json(&["store", "hooks", "show", "things"]);
    assert_eq!(shown["overrides"]["region-order.delay"], "30s", "{shown:#}");
    let text = server.run(&["store", "hooks", "show", "things"]);
    let text = String::from_utf8_lossy(&text.stdout);
    assert_eq!(text.matches("region-order.delay = 30s").count(), 2, "{text}");
}

#[test]
fn marking_a_region_needs_a_reason_and_says_what_follows() {
    let server = Server::start();
    let refused = server.run(&["region", "mark", "a", "--unavailable"]);
    assert_eq!(refused.status.code(), Some(2), "{}", describe(&refused));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--reason"), "{}", describe(&refused));
    let marked = server.run(&["region", "mark", "a", "--unavailable", "--reason", "moving house"]);
    let said = String::from_utf8_lossy(&marked.stdout);
    assert!(said.contains("region a is unavailable: moving house; pushes leave it out"), "{said}");
    let marked = server.run(&["region", "mark", "a", "--available"]);
    assert!(String::from_utf8_lossy(&marked.stdout).contains("region a is available"), "{}", describe(&marked));
}

#[test]
fn b8_a_rollback_is_followed_until_every_region_serves_the_older_version() {
    let server = Server::start();
    server.json(&["store", "create", "things", "--key", "id"]);
    for generation in [0, 1] {
        let input = server.scratch().join(format!("{generation}.csv"));
        write_csv(&input, 100, generation);
        server.json(&["push", "things", input.to_str().unwrap(), "--id", &format!("p{generation}")]);
    }
    let back = server.run(&["store", "rollback", "things", "--reason", "off", "--yes", "--watch"]);
    assert_eq!(back.status.code(), Some(0), "{}", describe(&back));
    assert!(String::from_utf8_lossy(&back.stdout).contains("c serves version 1 again"), "{}", describe(&back));
    for region in ["a", "b", "c"] {
        assert_eq!(server.json(&["get", "things", "k7", "--region", region])["version"], 1);
    }
    // There is nothing that it could wait for without being told to watch.
    let wrong = server.run(&["store", "rollback", "things", "--reason", "off", "--yes", "--timeout", "1s"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", describe(&wrong));
}

#[test]
fn b8_a_rollback_whose_region_is_away_says_so_within_its_timeout_and_a_second_one_is_refused() {
    let mut server = Server::start();
    server.json(&["store", "create", "things", "--key", "id"]);
    server.json(&["store", "set", "things", "retention=3"]);
    for generation in [0, 1, 2] {
        let input = server.scratch().join(format!("{generation}.csv"));
        write_csv(&input, 100, generation);
        server.json(&["push", "things", input.to_str().unwrap(), "--id", &format!("p{generation}")]);
    }
    // From the next start on, region c is an agent's, and there is none.
    server.json(&["region", "add", "c"]);
    server.kill();
    server.restart();
    let back = ["store", "rollback", "things", "--reason", "off", "--yes"];
    let followed = server.run(&[&back[..], &["--watch", "--timeout", "10s"]].concat());
    assert_eq!(followed.status.code(), Some(14), "{}", describe(&followed));
    let said = String::from_utf8_lossy(&followed.stderr);
    // Whoever hosted it counts as its host for a while yet.
    assert!(said.contains("why: c ") && said.contains("The rollback goes on"), "{said}");
    let second = server.run(&back);
    assert_eq!(second.status.code(), Some(1), "{}", describe(&second));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(
        said.contains("c is told to serve version 2 and serves version 3 still") && said.contains("--to"),
        "{said}"
    );
    // Going back further is another order.
    let further = server.run(&[&back[..], &["--to", "1"]].concat());
    assert_eq!(further.status.code(), Some(0), "{}", describe(&further));
}

#[test]
fn d10_other_input_under_a_used_id_is_refused_before_anything_reads_as_done() {
    let server = Server::start();
    server.json(&["store", "create", "things", "--key", "id"]);
    let (first, second) = (server.scratch().join("1.csv"), server.scratch().join("2.csv"));
    write_csv(&first, 100, 0);
    write_csv(&second, 100, 1);
    server.json(&["push", "things", first.to_str().unwrap(), "--id", "p1"]);
    let other = server.run(&["push", "things", second.to_str().unwrap(), "--id", "p1"]);
    assert_eq!(other.status.code(), Some(1), "{}", describe(&other));
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(said.contains("has other input"), "{said}");
    for done in ["COMPLETED", "serves version", "built", "has all of it"] {
        assert!(!said.contains(done), "{done} in {said}");
    }
    let same = server.run(&["push", "things", first.to_str().unwrap(), "--id", "p1"]);
    assert_eq!(same.status.code(), Some(0), "{}", describe(&same));
    assert!(describe(&same).contains("COMPLETED"), "{}", describe(&same));
}

#[test]
fn f11_input_that_is_wrong_says_what_follows_and_what_to_do_and_its_reason_once() {
    let server = Server::start();
    server.json(&["store", "create", "things", "--key", "id"]);
    for (name, content, reason, to_do) in [
        ("no-key.csv", "name,amount\na,1\n", "there is no key column `id`", "key columns"),
        ("twice.csv", "id,amount\nk1,1\nk1,3\n", "appears more than once", "one row of each key"),
        ("ragged.csv", "id,amount\nk1,1\nk2,2,3\n", "3 cells where the header has 2", "as many cells as the header"),
        ("empty.csv", "id,amount\n", "the input is empty", "--allow-empty"),
        ("cut.parquet", "PAR1", "not readable as Parquet", "Write the file anew"),
        ("things.jsonl", "{}", "unknown format", ".parquet"),
    ] {
        let path = server.scratch().join(name);
        std::fs::write(&path, content).unwrap();
        let output = server.run(&["push", "things", path.to_str().unwrap()]);
        let all = describe(&output);
        assert_eq!(all.matches(reason).count(), 1, "{all}");
        let said = String::from_utf8_lossy(&output.stderr);
        for part in ["error: ", "why: ", "what follows: No ", "what to do: "] {
            assert!(said.contains(part), "{part} in {said}");
        }
        let advice = said.split("what to do: ").nth(1).unwrap_or_default();
        assert!(advice.contains(to_do), "{to_do} in {advice}");
    }
}

#[test]
fn f11_timeout_bounds_a_push_and_its_status_where_no_server_answers() {
    // One that takes connections and never says anything, and one that is not there.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("things.csv");
    write_csv(&input, 10, 0);
    let silent = format!("http://{}", silent.local_addr().unwrap());
    for url in [silent.as_str(), "http://127.0.0.1:9"] {
        for command in [vec!["push", "things", input.to_str().unwrap()], vec!["push", "status", "p1", "--watch"]] {
            let began = Instant::now();
            let output = tidegate().args(&command).args(["--timeout", "300ms", "--url", url]).output().unwrap();
            assert_eq!(output.status.code(), Some(3), "{command:?}: {}", describe(&output));
            // Their own patience is ten seconds, and thirty where a server is silent.
            assert!(began.elapsed() < Duration::from_secs(9), "{command:?} took {:?}", began.elapsed());
        }
    }
}
