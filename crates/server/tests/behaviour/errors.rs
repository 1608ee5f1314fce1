//! Bad requests: each gets an error with all that people need, and nothing is lost.

use tidegate_client::api::code;

use crate::world::{World, assert_error};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_request_is_answered_with_what_why_consequences_and_countermeasures() {
    let world = World::start().await;
    world.store().await;
    let before = world.client.store("s").await.unwrap();
    let json = "application/json";
    let sha = "0".repeat(64);
    let part = format!("/v1/pushes/none/parts/x?sha256={sha}");
    let cases: Vec<(&str, &str, Option<&str>, &str, u16, &str)> = vec![
        ("GET", "/v1/nothing", None, "", 404, code::ROUTE_UNKNOWN),
        ("PUT", "/v1/stores", Some(json), "{}", 405, code::METHOD_NOT_ALLOWED),
        ("POST", "/v1/stores", None, "{}", 415, code::UNSUPPORTED_MEDIA_TYPE),
        ("POST", "/v1/stores", Some("text/plain"), "{}", 415, code::UNSUPPORTED_MEDIA_TYPE),
        ("POST", "/v1/stores", Some(json), "{", 400, code::BAD_REQUEST),
        ("POST", "/v1/stores", Some(json), "", 400, code::BAD_REQUEST),
        ("POST", "/v1/stores", Some(json), "[]", 422, code::INVALID),
        ("POST", "/v1/stores", Some(json), r#"{"name":"t"}"#, 422, code::INVALID),
        ("POST", "/v1/stores", Some(json), r#"{"name":"t","key_columns":["k"],"nmae":1}"#, 422, code::INVALID),
        ("POST", "/v1/stores", Some(json), r#"{"name":"","key_columns":["k"]}"#, 422, code::INVALID),
        ("POST", "/v1/stores", Some(json), r#"{"name":"t","key_columns":[]}"#, 422, code::INVALID),
        ("POST", "/v1/stores", Some(json), r#"{"name":"t","key_columns":["k","k"]}"#, 422, code::INVALID),
        ("POST", "/v1/stores", Some(json), r#"{"name":"t","key_columns":["k"],"partitions":0}"#, 422, code::INVALID),
        (
            "POST",
            "/v1/stores",
            Some(json),
            r#"{"name":"t","key_columns":["k"],"settings":{"retention":1}}"#,
            422,
            code::INVALID,
        ),
        ("POST", "/v1/stores", Some(json), r#"{"name":"s","key_columns":["k"]}"#, 409, code::STORE_EXISTS),
        ("GET", "/v1/stores/none", None, "", 404, code::STORE_UNKNOWN),
        ("GET", "/v1/stores/%FF", None, "", 400, code::BAD_REQUEST),
        ("PATCH", "/v1/stores/none", Some(json), "{}", 404, code::STORE_UNKNOWN),
        ("PATCH", "/v1/stores/s", Some(json), r#"{"limits":{"push_ms":0}}"#, 422, code::INVALID),
        ("DELETE", "/v1/stores/none", None, "", 404, code::STORE_UNKNOWN),
        ("GET", "/v1/stores/none/hooks", None, "", 404, code::STORE_UNKNOWN),
        ("PUT", "/v1/stores/none/hooks", Some(json), "{}", 404, code::STORE_UNKNOWN),
        ("PUT", "/v1/stores/s/hooks", Some(json), r#"{"set":{"z.a":"1"}}"#, 422, code::HOOK_REFUSED),
        ("PUT", "/v1/stores/s/hooks", Some(json), r#"{"set":{"a":"1"}}"#, 422, code::HOOK_REFUSED),
        (
            "PUT",
            "/v1/stores/s/hooks",
            Some(json),
            r#"{"set":{"region-order.mode":"perhaps"}}"#,
            422,
            code::HOOK_REFUSED,
        ),
        (
            "PUT",
            "/v1/stores/s/hooks",
            Some(json),
            r#"{"set":{"region-order.order":"a, nowhere"}}"#,
            422,
            code::HOOK_REFUSED,
        ),
        ("PUT", "/v1/stores/s/hooks", Some(json), r#"{"set":{"a.b":"1"},"unset":["a.b"]}"#, 422, code::INVALID),
        ("GET", "/v1/stores/none/schemas", None, "", 404, code::STORE_UNKNOWN),
        ("GET", "/v1/stores/none/versions", None, "", 404, code::STORE_UNKNOWN),
        ("POST", "/v1/stores/none/rollback", Some(json), r#"{"reason":"x"}"#, 404, code::STORE_UNKNOWN),
        ("POST", "/v1/stores/s/rollback", Some(json), r#"{"reason":""}"#, 422, code::INVALID),
        ("POST", "/v1/stores/s/rollback", Some(json), r#"{"reason":"x"}"#, 409, code::REFUSED),
        ("GET", "/v1/stores/none/keys/k", None, "", 404, code::STORE_UNKNOWN),
        ("GET", "/v1/stores/s/keys/k", None, "", 404, code::NOT_SERVED),
        ("GET", "/v1/stores/s/keys/k?region=nowhere", None, "", 404, code::REGION_UNKNOWN),
        ("POST", "/v1/stores/s/keys:batch?region=a", Some(json), r#"{"keys":["k"]}"#, 404, code::NOT_SERVED),
        ("POST", "/v1/pushes", Some(json), r#"{"id":"p","store":"none"}"#, 404, code::STORE_UNKNOWN),
        ("POST", "/v1/pushes", Some(json), r#"{"id":"","store":"s"}"#, 422, code::INVALID),
        ("GET", "/v1/pushes?store=none", None, "", 404, code::STORE_UNKNOWN),
        ("GET", "/v1/pushes?limit=many", None, "", 400, code::BAD_REQUEST),
        ("GET", "/v1/pushes/none", None, "", 404, code::PUSH_UNKNOWN),
        ("GET", "/v1/pushes/none/explain", None, "", 404, code::PUSH_UNKNOWN),
        ("GET", "/v1/pushes/none/calls", None, "", 404, code::PUSH_UNKNOWN),
        ("GET", "/v1/pushes/none/job", None, "", 404, code::PUSH_UNKNOWN),
        ("GET", "/v1/pushes/none/watch", None, "", 404, code::PUSH_UNKNOWN),
        ("GET", "/v1/pushes/none/parts", None, "", 404, code::PUSH_UNKNOWN),
        ("PUT", &part, None, "x", 404, code::PUSH_UNKNOWN),
        ("PUT", "/v1/pushes/none/parts/x", None, "x", 400, code::BAD_REQUEST),
        ("POST", "/v1/pushes/none/heartbeat", Some(json), r#"{"phase":"building"}"#, 404, code::PUSH_UNKNOWN),
        ("POST", "/v1/pushes/none/kill", Some(json), r#"{"reason":"x"}"#, 404, code::PUSH_UNKNOWN),
        ("POST", "/v1/pushes/none/proceed", Some(json), r#"{"gate":"pre-swap","reason":"x"}"#, 404, code::PUSH_UNKNOWN),
        ("PUT", "/v1/regions/nowhere/availability", Some(json), r#"{"available":true}"#, 404, code::REGION_UNKNOWN),
        ("PUT", "/v1/config/hooks", Some("application/toml"), "[hooks", 422, code::HOOK_REFUSED),
        ("PUT", "/v1/config/hooks", Some("application/toml"), "[hooks]\nenabled = ['none']", 422, code::HOOK_REFUSED),
        (
            "PUT",
            "/v1/config/hooks",
            Some(json),
            r#"{"config":{"region-order":{"dealy":"1h"}}}"#,
            422,
            code::HOOK_REFUSED,
        ),
        ("PUT", "/v1/config/hooks", Some("text/plain"), "", 415, code::UNSUPPORTED_MEDIA_TYPE),
        ("GET", "/v1/queue?state=perhaps", None, "", 400, code::BAD_REQUEST),
        ("POST", "/v1/queue/x/retry", None, "", 400, code::BAD_REQUEST),
        ("POST", "/v1/queue/1.2.3/vanish", None, "", 400, code::BAD_REQUEST),
        ("POST", "/v1/queue/999999.0.1/retry", None, "", 404, code::QUEUE_REQUEST_UNKNOWN),
        ("GET", "/v1/watch?epoch=x&revision=1", None, "", 400, code::BAD_REQUEST),
        ("GET", "/v1/watch?revision=1", None, "", 400, code::BAD_REQUEST),
        ("GET", "/v1/watch?prefix=stores", None, "", 400, code::BAD_REQUEST),
    ];
    let http = reqwest::Client::new();
    let mut wrong = Vec::new();
    for (method, path, media_type, body, status, code) in cases {
        let about = format!("{method} {path} {body}");
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = http.request(method, format!("{}{path}", world.url()));
        if let Some(media_type) = media_type {
            request = request.header("content-type", media_type);
        }
        let (found, answer) = world.raw(request.body(body.to_owned())).await;
        if (found, answer["code"].as_str()) != (status, Some(code)) {
            wrong.push(format!("{about}: expected {status} {code}, found {found} {answer}"));
        } else {
            assert_error(&answer, &about);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(world.client.store("s").await.unwrap(), before);
    assert_eq!(world.client.stores().await.unwrap().len(), 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_key_says_which_version_was_asked() {
    let world = World::start().await;
    world.store().await;
    world.push("p1", &world.rows("one.csv", 3, "v")).await;
    let error = world.client.get("s", "nobody", Some("a")).await.unwrap_err();
    assert_eq!(error.code(), Some(code::KEY_ABSENT));
    assert!(error.to_string().contains("nobody"), "{error}");
    assert!(error.to_string().contains("Version 1"), "{error}");
    world.end().await;
}
