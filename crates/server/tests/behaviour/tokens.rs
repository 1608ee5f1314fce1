//! Tokens: made, used, revoked; and what of them is kept.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tidegate_client::Client;
use tidegate_client::api::{Role, TokenCreate, TokenStatus, code};
use tidegate_server::Server;
use tidegate_server::access::config::Authentication;

use crate::world::{LIMIT, World, assert_error, options};

fn create(name: &str, role: Role) -> TokenCreate {
    TokenCreate { name: name.to_owned(), role, team: None, region: None, expires_in_ms: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_gives_an_admin_token_once() {
    let folder = tempfile::tempdir().unwrap();
    let start = |authentication| {
        let mut options = options(folder.path());
        options.config.access.authentication = authentication;
        Server::start(options)
    };
    // Where nobody is asked, nobody needs one.
    let mut server = start(None).await.unwrap();
    assert_eq!(server.take_first_token(), None);
    server.shutdown().await;
    let mut server = start(Some(Authentication::Required)).await.unwrap();
    let token = server.take_first_token().unwrap();
    assert_eq!(server.take_first_token(), None);
    let http = reqwest::Client::new();
    let tokens = format!("{}/v1/tokens", server.url());
    let listed = http.get(&tokens).bearer_auth(&token).send().await.unwrap();
    let listed: serde_json::Value = listed.json().await.unwrap();
    assert_eq!((&listed[0]["role"], &listed[0]["created_by"]), (&"admin".into(), &"the first start".into()));
    server.shutdown().await;
    let mut server = start(Some(Authentication::Required)).await.unwrap();
    assert_eq!(server.take_first_token(), None);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_shown_once_and_kept_nowhere() {
    let world = World::guarded().await;
    let made = world.token("reader", Role::Reader, None).await;
    let secret = made.secret.rsplit_once('_').unwrap().1.to_owned();
    assert_eq!(secret.len(), 64);
    // What is kept in its place is shown to nobody either.
    let digest = hex::encode(Sha256::digest(secret.as_bytes()));
    let http = reqwest::Client::new();
    let admin = world.token("other admin", Role::Admin, None).await.secret;
    for path in ["/v1/tokens", "/v1/config", "/metrics", "/v1/audit", "/"] {
        let response = http.get(format!("{}{path}", world.url())).bearer_auth(&admin).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let text = response.text().await.unwrap();
        assert!(!text.contains(&secret) && !text.contains(&digest), "{path}: {text}");
    }
    assert!(!format!("{made:?}").contains(&secret));
    // Nor is it in any file of the server's.
    let data = world.folder.path().join("data");
    world.end().await;
    let mut files = vec![data];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            // The store's log goes with its last connection, which may be now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_makes_no_sense_is_not_made() {
    let world = World::guarded().await;
    let with = |role, team: Option<&str>, region: Option<&str>, expires_in_ms| TokenCreate {
        team: team.map(str::to_owned),
        region: region.map(str::to_owned),
        expires_in_ms,
        ..create("x", role)
    };
    for (what, token) in [
        ("a team without a name", with(Role::Team, None, None, None)),
        ("a region without a name", with(Role::Region, None, None, None)),
        ("a viewer with a team", with(Role::Viewer, Some("t"), None, None)),
        ("an admin with a region", with(Role::Admin, None, Some("a"), None)),
        ("a region with a team", with(Role::Region, Some("t"), Some("a"), None)),
        ("an empty team", with(Role::Team, Some(""), None, None)),
        ("an unknown role", with(Role::Unknown, None, None, None)),
        ("no life", with(Role::Viewer, None, None, Some(0))),
        ("a life past all limits", with(Role::Viewer, None, None, Some(u64::MAX))),
        ("no name", create("", Role::Viewer)),
        ("a name with a line's end", create("a\nb", Role::Viewer)),
        ("a long name", create(&"x".repeat(129), Role::Viewer)),
    ] {
        let error = world.client.create_token(&token).await.unwrap_err();
        assert_eq!(error.code(), Some(code::INVALID), "{what}: {error}");
    }
    assert_eq!(world.client.tokens().await.unwrap().len(), 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_one_tokens_as_long_as_that_holds_and_the_last_admin_stays() {
    let world = World::guarded().await;
    let first = world.token("nightly", Role::Operator, None).await.token;
    let error = world.client.create_token(&create("nightly", Role::Viewer)).await.unwrap_err();
    assert_eq!(error.code(), Some(code::REFUSED), "{error}");
    let revoked = world.client.revoke_token(&first.id, Some("leaked")).await.unwrap();
    assert_eq!((revoked.status, revoked.revoked_by.as_deref()), (TokenStatus::Revoked, Some("admin")));
    // Once more is no error, and changes nothing.
    let again = world.client.revoke_token(&first.id, Some("again")).await.unwrap();
    assert_eq!(again, revoked);
    world.token("nightly", Role::Viewer, None).await;
    let admin = world.client.tokens().await.unwrap().into_iter().find(|token| token.name == "admin").unwrap();
    let error = world.client.revoke_token(&admin.id, None).await.unwrap_err();
    assert_eq!(error.code(), Some(code::REFUSED), "{error}");
    let second = world.token("second admin", Role::Admin, None).await;
    world.client.revoke_token(&admin.id, None).await.unwrap();
    // The one that did it is the one that no longer holds.
    assert_eq!(world.client.tokens().await.unwrap_err().code(), Some(code::UNAUTHENTICATED));
    let client = world.client_with(&second.secret);
    assert_eq!(client.revoke_token("0000000000000000", None).await.unwrap_err().code(), Some(code::TOKEN_UNKNOWN));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_token_was_used_is_noted_once_and_reading_writes_nothing_more() {
    let world = World::guarded().await;
    let made = world.token("viewer", Role::Viewer, None).await;
    assert_eq!(made.token.last_used_at, None);
    let client = world.client_with(&made.secret);
    client.stores().await.unwrap();
    let used = |world: &World| {
        let client = world.client.clone();
        let id = made.token.id.clone();
        async move {
            let tokens = client.tokens().await.unwrap();
            tokens.into_iter().find(|token| token.id == id).unwrap().last_used_at
        }
    };
    let noted = async {
        loop {
            if let Some(at) = used(&world).await {
                return at;
            }
            tokio::task::yield_now().await;
        }
    };
    let noted = tokio::time::timeout(LIMIT, noted).await.unwrap();
    for _ in 0..100 {
        client.stores().await.unwrap();
    }
    // What the hundred would have written comes before this in the clerk's queue.
    let other = world.token("other viewer", Role::Viewer, None).await;
    world.client_with(&other.secret).stores().await.unwrap();
    let after = async {
        loop {
            let tokens = world.client.tokens().await.unwrap();
            if tokens.iter().any(|token| token.id == other.token.id && token.last_used_at.is_some()) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, after).await.unwrap();
    assert_eq!(used(&world).await, Some(noted));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_is_asked_tokens_are_made_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(options(folder.path())).await.unwrap();
    let client = Client::new(&server.url()).unwrap();
    let made = client.create_token(&create("me", Role::Admin)).await.unwrap();
    // And revoked, the last admin's, too: nobody is shut out.
    client.revoke_token(&made.token.id, None).await.unwrap();
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_of_one_token_are_refused_and_others_are_not_concerned() {
    let world = World::guarded_with(|options| {
        options.config.access.limits.requests_per_second = Some(1);
        options.config.access.limits.requests_burst = Some(5);
    })
    .await;
    let one = world.token("one", Role::Viewer, None).await.secret;
    let two = world.token("two", Role::Viewer, None).await.secret;
    let http = reqwest::Client::new();
    let get = |token: &str| http.get(format!("{}/v1/stores", world.url())).bearer_auth(token);
    let mut refused = None;
    for _ in 0..50 {
        let response = get(&one).send().await.unwrap();
        if response.status() == 429 {
            refused = Some(response);
            break;
        }
    }
    let refused = refused.expect("fifty requests within a second or so, and five are allowed");
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    let body: serde_json::Value = refused.json().await.unwrap();
    assert_eq!((body["code"].as_str(), body["retryable"].as_bool()), (Some(code::RATE_LIMITED), Some(true)));
    assert_error(&body, "rate");
    assert_eq!(get(&two).send().await.unwrap().status(), 200);
    // A client that has patience waits, and is let in.
    world.client_with(&one).with_patience(LIMIT).stores().await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_tokens_are_limited_by_address_and_right_ones_from_there_are_not() {
    let world = World::guarded_with(|options| {
        options.config.access.limits.wrong_tokens_burst = Some(3);
    })
    .await;
    let http = reqwest::Client::new();
    let wrong = format!("tg_{}_{}", "0".repeat(16), "0".repeat(64));
    let get = || http.get(format!("{}/v1/stores", world.url())).bearer_auth(&wrong);
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(get().send().await.unwrap().status().as_u16());
    }
    assert_eq!(statuses[..3], [401, 401, 401]);
    assert!(statuses.contains(&429), "{statuses:?}");
    world.client.with_patience(Duration::ZERO).stores().await.unwrap();
    let metrics = world.client.metrics().await.unwrap();
    for reason in ["wrong_token", "wrong_token_rate"] {
        assert!(metrics.contains(&format!("access_refused_total{{reason=\"{reason}\"}}")), "{metrics}");
    }
    world.end().await;
}
