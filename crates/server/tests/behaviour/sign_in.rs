//! Signing in to the page.

use reqwest::redirect::Policy;
use tidegate_client::api::{Role, code};

use crate::world::{LIMIT, World};

fn browser() -> reqwest::Client {
    reqwest::Client::builder().redirect(Policy::none()).build().unwrap()
}

fn cookie(response: &reqwest::Response) -> String {
    response.headers()["set-cookie"].to_str().unwrap().to_owned()
}

/// The part of a cookie that a browser sends back.
fn sent(cookie: &str) -> String {
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_the_page_and_its_session_only_reads() {
    let world = World::guarded().await;
    let token = world.token("a viewer", Role::Viewer, None).await;
    let http = browser();
    let page = || http.get(format!("{}/", world.url())).header("accept", "text/html");
    // Without a session the page is a form to sign in with.
    let response = page().send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(response.headers()["content-security-policy"].to_str().unwrap().contains("form-action 'self'"));
    assert!(response.text().await.unwrap().contains("action=\"/login\""));
    let login = |shown: &str| http.post(format!("{}/login", world.url())).body(format!("token={shown}"));
    let login = |shown: &str| login(shown).header("content-type", "application/x-www-form-urlencoded");
    let response = login(&token.secret).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["location"].to_str().unwrap()), (303, "/"));
    let set = cookie(&response);
    for word in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(set.contains(word), "{word}: {set}");
    }
    // What the browser keeps is not the token.
    assert!(!set.contains(token.secret.rsplit_once('_').unwrap().1), "{set}");
    let response = page().header("cookie", format!("other=1; {}", sent(&set))).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.text().await.unwrap().contains("a viewer"));
    // It reads what the page reads, and changes nothing, not even with an operator's token.
    let operator = world.token("an operator", Role::Operator, None).await;
    let set = cookie(&login(&operator.secret).send().await.unwrap());
    let stores = || http.get(format!("{}/v1/stores", world.url())).header("cookie", sent(&set));
    assert_eq!(stores().send().await.unwrap().status(), 200);
    let create = http.post(format!("{}/v1/stores", world.url())).header("cookie", sent(&set));
    let (status, body) = world.raw(create.json(&serde_json::json!({"name": "s", "key_columns": ["k"]}))).await;
    assert_eq!((status, body["code"].as_str()), (401, Some(code::UNAUTHENTICATED)));
    // It ends with its token.
    world.client.revoke_token(&operator.token.id, None).await.unwrap();
    assert_eq!(stores().send().await.unwrap().status(), 401);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signing_out_ends_the_session_and_a_wrong_token_begins_none() {
    let world = World::guarded().await;
    let token = world.token("a viewer", Role::Viewer, None).await;
    let reader = world.token("a reader", Role::Reader, None).await;
    let http = browser();
    let login = |shown: &str| {
        http.post(format!("{}/login", world.url()))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("token={shown}"))
    };
    for (shown, status) in [("", 401), ("nonsense", 401), (reader.secret.as_str(), 403)] {
        let response = login(shown).send().await.unwrap();
        assert_eq!(response.status(), status, "{shown}");
        assert!(!response.headers().contains_key("set-cookie"), "{shown}");
    }
    let foreign = login(&token.secret).header("origin", "http://evil.example").send().await.unwrap();
    assert_eq!(foreign.status(), 403);
    let set = cookie(&login(&token.secret).send().await.unwrap());
    let page = || http.get(format!("{}/v1/stores", world.url())).header("cookie", sent(&set));
    assert_eq!(page().send().await.unwrap().status(), 200);
    let out = http.post(format!("{}/logout", world.url())).header("cookie", sent(&set)).send().await.unwrap();
    assert_eq!(out.status(), 303);
    assert!(cookie(&out).contains("Max-Age=0"));
    assert_eq!(page().send().await.unwrap().status(), 401);
    // The token itself holds.
    world.client_with(&token.secret).stores().await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_is_asked_there_is_nothing_to_sign_in_to() {
    let world = World::start().await;
    let http = browser();
    let response = http.get(format!("{}/login", world.url())).timeout(LIMIT).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["location"].to_str().unwrap()), (303, "/"));
    let page = http.get(format!("{}/", world.url())).send().await.unwrap().text().await.unwrap();
    assert!(!page.contains("Sign out"), "{page}");
    world.end().await;
}
