//! Tokens and TLS from the command line.

use std::process::{Command, Stdio};
use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::process::{PATIENCE, Server, describe, tidegate, write_csv};

const REQUIRED: &str = "[access]\nauthentication = \"required\"\n";

/// The tokens that the server has printed since it was first started. It says them as soon as it serves, or a moment later.
fn printed_tokens(server: &Server) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = server.log_text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let tokens: Vec<String> = whole.lines().filter(|line| line.starts_with("tg_")).map(str::to_owned).collect();
        if !tokens.is_empty() {
            return tokens;
        }
        assert!(Instant::now() < deadline, "no token was printed: {text}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn as_bearer(server: &Server, token: &str, arguments: &[&str]) -> Command {
    let mut command = server.command(arguments);
    command.env("TIDEGATE_TOKEN", token);
    command
}

#[test]
fn the_first_start_prints_an_admin_token_once_and_everything_goes_on_with_it() {
    let mut server = Server::start_with(Some(REQUIRED));
    let tokens = printed_tokens(&server);
    assert_eq!(tokens.len(), 1, "{}", server.log_text());
    let run = |token: &str, arguments: &[&str]| as_bearer(&server, token, arguments).output().unwrap();

    // Without one the command fails, and says what to do.
    let output = server.run(&["store", "list"]);
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    for named in ["no token", "TIDEGATE_TOKEN", "--token-file"] {
        assert!(String::from_utf8_lossy(&output.stderr).contains(named), "{named}: {}", describe(&output));
    }
    // With one everything works: a store, a push with its parts and its watch, a look-up.
    let input = server.scratch().join("things.csv");
    write_csv(&input, 500, 0);
    for arguments in [
        vec!["store", "create", "things", "--key", "id", "--team", "search"],
        vec!["push", "things", input.to_str().unwrap(), "--id", "p1", "--user", "somebody else"],
        vec!["get", "things", "k7", "--region", "b"],
        vec!["push", "status", "p1", "--watch"],
    ] {
        let output = run(&tokens[0], &arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", describe(&output));
    }
    let output = run(&tokens[0], &["push", "list", "--output", "json"]);
    let pushes: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(pushes[0]["pushed_by"], "admin", "{pushes:#}");
    let output = run(&tokens[0], &["audit", "--store", "things", "--since", "1h", "--output", "json"]);
    let entries: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let routes: Vec<&str> = entries.as_array().unwrap().iter().filter_map(|entry| entry["route"].as_str()).collect();
    assert_eq!(routes.first(), Some(&"POST /v1/pushes/{push}/complete"), "{entries:#}");
    assert_eq!(routes.last(), Some(&"POST /v1/stores"), "{entries:#}");
    assert!(entries.as_array().unwrap().iter().all(|entry| entry["user"] == "admin"), "{entries:#}");

    // The second start prints none.
    server.kill();
    server.restart();
    assert_eq!(printed_tokens(&server), tokens);
}

#[test]
fn tokens_are_made_listed_and_revoked_and_a_file_does_as_well_as_the_environment() {
    let server = Server::start_with(Some(REQUIRED));
    let admin = printed_tokens(&server).remove(0);
    let file = server.scratch().join("admin.token");
    std::fs::write(&file, format!("{admin}\n")).unwrap();
    let with_file =
        |arguments: &[&str]| server.command(arguments).args(["--token-file", file.to_str().unwrap()]).output().unwrap();
    // What is printed on standard output is the token and nothing else.
    let made = with_file(&["token", "create", "--role", "viewer", "--name", "a viewer", "--expires", "90d"]);
    assert_eq!(made.status.code(), Some(0), "{}", describe(&made));
    let viewer = String::from_utf8(made.stdout).unwrap();
    let id = viewer.split('_').nth(1).unwrap().to_owned();
    assert!(viewer.starts_with("tg_") && viewer.trim().lines().count() == 1, "{viewer}");
    assert!(String::from_utf8_lossy(&made.stderr).contains("only time"));

    let seen = as_bearer(&server, &viewer, &["store", "list"]).output().unwrap();
    assert_eq!(seen.status.code(), Some(0), "{}", describe(&seen));
    let denied = as_bearer(&server, &viewer, &["store", "create", "s", "--key", "k"]).output().unwrap();
    assert_eq!(denied.status.code(), Some(1), "{}", describe(&denied));
    for named in ["a viewer", "`viewer`", "operator"] {
        assert!(String::from_utf8_lossy(&denied.stderr).contains(named), "{named}: {}", describe(&denied));
    }

    let listed = with_file(&["token", "list"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.contains(&id) && text.contains("a viewer"), "{text}");
    assert!(!text.contains(viewer.trim().rsplit_once('_').unwrap().1), "{text}");

    // Revoking asks; a terminal is not there to answer.
    assert_eq!(with_file(&["token", "revoke", &id]).status.code(), Some(2));
    assert_eq!(with_file(&["token", "revoke", &id, "--yes", "--reason", "leaked"]).status.code(), Some(0));
    let refused = as_bearer(&server, &viewer, &["store", "list"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", describe(&refused));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("revoked"), "{}", describe(&refused));

    let wrong = with_file(&["token", "create", "--role", "team", "--name", "x"]);
    assert_eq!(wrong.status.code(), Some(1), "{}", describe(&wrong));
    let absent = server.run(&["store", "list", "--token-file", "/nowhere/token"]);
    assert_eq!(absent.status.code(), Some(1), "{}", describe(&absent));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("/nowhere/token"), "{}", describe(&absent));
}

#[test]
fn an_agent_with_the_token_of_another_region_says_so_once_and_ends() {
    let mut server = Server::start_with(Some(&format!("{REQUIRED}\n[[regions]]\nname = \"a\"\nagent = true\n")));
    let admin = printed_tokens(&server).remove(0);
    let file = |name: &str, role: &[&str]| {
        let arguments = [&["token", "create", "--name", name], role].concat();
        let made = as_bearer(&server, &admin, &arguments).output().unwrap();
        assert_eq!(made.status.code(), Some(0), "{}", describe(&made));
        let file = server.scratch().join(name);
        std::fs::write(&file, made.stdout).unwrap();
        file
    };
    let of_b = file("of-b", &["--role", "region", "--region", "b"]);
    let viewer = file("viewer", &["--role", "viewer"]);
    let (url, data) = (server.url(), server.scratch().join("agent"));
    let agent = |token: &std::path::Path| {
        let mut command = tidegate();
        command.args(["agent", "--region", "a", "--control-plane", &url, "--listen", "127.0.0.1:0", "--data"]);
        command.arg(&data).arg("--token-file").arg(token);
        command
    };
    for (token, named) in [(&of_b, "region `b` alone"), (&viewer, "`viewer`")] {
        let output = agent(token).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
        let said = String::from_utf8(output.stderr).unwrap();
        for part in [named, "region `a`", "what to do", "tidegate token create --role region --region a"] {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert_eq!(said.matches("does not let this agent").count(), 1, "{said}");
    }
    // With nobody there to ask it serves; it is told as soon as somebody is.
    server.kill();
    let mut waiting =
        agent(&of_b).stdout(Stdio::piped()).stderr(Stdio::piped()).args(["--output", "json"]).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(waiting.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "{\n");
    server.restart();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("region `b` alone"), "{}", describe(&output));
}

#[test]
fn a_server_beyond_loopback_is_reached_by_tls_with_the_authority_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(path("ca.pem"), authority.pem()).unwrap();
    std::fs::write(path("server.pem"), names.signed_by(&key, &authority).unwrap().pem()).unwrap();
    std::fs::write(path("server.key"), key.serialize_pem()).unwrap();
    let config = format!("[tls]\ncertificate = {:?}\nkey = {:?}\n", path("server.pem"), path("server.key"));
    std::fs::write(path("tidegate.toml"), config).unwrap();

    let port = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let log = std::fs::File::create(path("log")).unwrap();
    let mut child = tidegate()
        .args(["server", "--data", &path("data"), "--config", &path("tidegate.toml")])
        .args(["--listen", &format!("0.0.0.0:{port}")])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let url = format!("https://localhost:{port}");
    let list = |token: &str| {
        let mut command = tidegate();
        command.args(["store", "list", "--url", &url, "--ca", &path("ca.pem")]).env("TIDEGATE_TOKEN", token);
        command.output().unwrap()
    };
    let deadline = Instant::now() + PATIENCE;
    let token = loop {
        let text = std::fs::read_to_string(path("log")).unwrap();
        if let Some(token) = text.lines().find(|line| line.starts_with("tg_"))
            && text.contains("listening")
        {
            break token.to_owned();
        }
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "{text}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    let output = list(&token);
    assert_eq!(output.status.code(), Some(0), "{}", describe(&output));
    let mut distrusting = tidegate();
    distrusting.args(["store", "list", "--url", &url]).env("TIDEGATE_TOKEN", &token);
    let output = distrusting.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", describe(&output));
    child.kill().unwrap();
    child.wait().unwrap();
}
