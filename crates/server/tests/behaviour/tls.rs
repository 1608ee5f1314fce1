//! TLS, with certificates of the tests' own; and what a connection may cost.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_client::{Client, Options as ClientOptions, Token};
use tidegate_server::access::config::TlsSection;
use tidegate_server::{Server, StartError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certificates::{Authority, section, write};
use crate::world::{LIMIT, World, options};

fn client(url: &str, ca: &Path, token: Option<&str>) -> Client {
    let mut options = ClientOptions::new(url);
    options.ca = Some(ca.to_owned());
    options.token = token.map(|token| Token::new(token).unwrap());
    options.patience = Duration::ZERO;
    Client::with_options(options).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_beyond_loopback_speaks_tls_to_those_who_trust_its_authority() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let other = Authority::new(folder.path(), "other-ca");
    write(folder.path(), &authority.issue());
    let mut options = options(folder.path());
    options.listen = Some("0.0.0.0:0".parse().unwrap());
    options.config.tls = section(folder.path());
    let mut server = Server::start(options).await.unwrap();
    let token = server.take_first_token().unwrap();
    assert!(server.url().starts_with("https://"));
    let url = format!("https://localhost:{}", server.address().port());
    client(&url, &authority.file, Some(&token)).stores().await.unwrap();
    let refused = client(&url, &authority.file, None).stores().await.unwrap_err();
    assert_eq!(refused.code(), Some(tidegate_client::api::code::UNAUTHENTICATED));
    let distrusted = client(&url, &other.file, Some(&token)).stores().await.unwrap_err();
    assert!(distrusted.is_unreachable(), "{distrusted}");
    let plain = format!("http://localhost:{}", server.address().port());
    assert!(client(&plain, &authority.file, Some(&token)).stores().await.is_err());
    // A session's cookie goes over TLS alone.
    let ca = reqwest::Certificate::from_pem(&std::fs::read(&authority.file).unwrap()).unwrap();
    let browser = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).tls_certs_only([ca]);
    let login = browser.build().unwrap().post(format!("{url}/login"));
    let login = login.header("content-type", "application/x-www-form-urlencoded").body(format!("token={token}"));
    let response = login.send().await.unwrap();
    assert!(response.headers()["set-cookie"].to_str().unwrap().contains("; Secure"));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_certificate_is_taken_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (Authority::new(folder.path(), "first"), Authority::new(folder.path(), "second"));
    write(folder.path(), &first.issue());
    let mut options = options(folder.path());
    options.config.tls = section(folder.path());
    let server = Server::start(options).await.unwrap();
    let url = server.url();
    client(&url, &first.file, None).stores().await.unwrap();
    let metric = |ca: PathBuf| {
        let url = url.clone();
        async move { client(&url, &ca, None).metrics().await.unwrap_or_default() }
    };
    let until = |ca: PathBuf, line: &'static str| {
        let metric = &metric;
        async move {
            let there = async {
                while !metric(ca.clone()).await.contains(line) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::time::timeout(LIMIT, there).await.unwrap_or_else(|_| panic!("never: {line}"));
        }
    };
    // A key of another pair, then no certificate at all: the first is still shown, and it says so.
    let (_, foreign) = second.issue();
    std::fs::write(folder.path().join("server.key"), foreign).unwrap();
    until(first.file.clone(), "tls_reload_failures_total 1").await;
    std::fs::write(folder.path().join("server.pem"), "nonsense").unwrap();
    until(first.file.clone(), "tls_reload_failures_total 2").await;
    until(first.file.clone(), "tls_certificate_is_stale 1").await;
    // A good pair of another authority: new connections are shown that one.
    write(folder.path(), &second.issue());
    until(second.file.clone(), "tls_certificate_is_stale 0").await;
    assert!(client(&url, &first.file, None).stores().await.is_err());
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_can_not_be_used_keeps_the_server_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let (good, other) = (authority.issue(), authority.issue());
    for (what, certificate, key) in [
        ("a key of another", good.0.clone(), other.1),
        ("no certificate", String::new(), good.1.clone()),
        ("no key", good.0.clone(), good.0.clone()),
    ] {
        write(folder.path(), &(certificate, key));
        let mut options = options(folder.path());
        options.config.tls = section(folder.path());
        let error = Server::start(options).await.unwrap_err();
        assert!(matches!(error, StartError::Tls(_)), "{what}: {error}");
    }
    let mut absent = options(folder.path());
    absent.config.tls = TlsSection { certificate: Some("/nowhere/server.pem".into()), key: Some("/nowhere/k".into()) };
    let error = Server::start(absent).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/server.pem"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_have_a_size() {
    let world = World::start().await;
    let address = world.server.as_ref().unwrap().address();
    for size in [66_000, 100_000, 1_000_000] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head =
            format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nx: {}\r\n\r\n", "x".repeat(size));
        // The server may close before it has read all of it.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    world.client.stores().await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_is_given_up() {
    let world = World::start_with(|options| options.config.server.limits.request_seconds = Some(1)).await;
    let address = world.server.as_ref().unwrap().address();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/stores HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // It is said that the sender was slow, not that the server was; and how long it had.
    let mut answer = String::new();
    let read = async {
        let mut piece = [0; 4_096];
        while !answer.contains("countermeasures") {
            let length = stream.read(&mut piece).await.unwrap();
            assert!(length > 0, "{answer}");
            answer.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
    };
    tokio::time::timeout(LIMIT, read).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("\"code\":\"timed_out\"") && answer.contains("900ms, the limit"), "{answer}");
    world.end().await;
}
