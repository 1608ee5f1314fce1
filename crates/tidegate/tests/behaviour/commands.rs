//! Exit codes and words of the commands, for people and for programs.

use crate::process::{Server, describe, tidegate, write_csv};

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
fn a_server_refuses_to_listen_beyond_loopback_unless_told_so_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let output = tidegate().args(["server", "--listen", "0.0.0.0:0", "--data"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    for named in ["loopback", "--allow-plain-http", "[tls]"] {
        assert!(String::from_utf8_lossy(&output.stderr).contains(named), "{named}: {}", describe(&output));
    }
}
