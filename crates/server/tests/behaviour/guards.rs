//! What protects a server.

use tidegate_client::api::{LimitsPatch, StoreCreate, StorePatch, code};
use tidegate_server::access::config::Authentication;
use tidegate_server::{Server, StartError};

use crate::world::{World, assert_error, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_or_in_the_clear_beyond_loopback_does_not_start_unless_told_so_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let mut options = options(folder.path());
        options.listen = Some(address.parse().unwrap());
        options.config.access.authentication = Some(Authentication::Off);
        let error = Server::start(options).await.unwrap_err();
        assert!(matches!(error, StartError::Exposed(_)), "{error}");
        for named in ["--allow-anyone", "--allow-plain-http"] {
            assert!(error.to_string().contains(named), "{error}");
        }
    }
    let mut options = options(folder.path());
    options.listen = Some("0.0.0.0:0".parse().unwrap());
    options.config.access.allow_plain_http = true;
    let mut server = Server::start(options).await.unwrap();
    assert!(server.take_first_token().is_some());
    let port = server.address().port();
    let http = reqwest::Client::new();
    let stores = format!("http://127.0.0.1:{port}/v1/stores");
    assert_eq!(http.get(&stores).send().await.unwrap().status(), 401);
    // An address of numbers is no name that anybody could bend; a name has to be configured.
    assert_eq!(http.get(&stores).header("host", "192.0.2.1:1").send().await.unwrap().status(), 401);
    assert_eq!(http.get(&stores).header("host", "evil.example").send().await.unwrap().status(), 403);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_data_folder_has_one_server() {
    let world = World::start().await;
    let error = Server::start(options(world.folder.path())).await.unwrap_err();
    assert!(matches!(error, StartError::DataInUse { .. }), "{error}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_another_host_or_from_another_site_are_refused() {
    let world = World::start().await;
    let http = reqwest::Client::new();
    let stores = format!("{}/v1/stores", world.url());
    let (status, body) = world.raw(http.get(&stores).header("host", "evil.example")).await;
    assert_eq!((status, body["code"].as_str()), (403, Some(code::HOST_REFUSED)));
    assert_error(&body, "host");
    let post = http
        .post(&stores)
        .header("origin", "http://evil.example")
        .header("content-type", "application/json")
        .body(r#"{"name":"s","key_columns":["k"]}"#);
    let (status, body) = world.raw(post).await;
    assert_eq!((status, body["code"].as_str()), (403, Some(code::HOST_REFUSED)));
    assert!(world.client.stores().await.unwrap().is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_parts_and_batches_have_limits() {
    let world = World::start_with(|options| {
        let limits = &mut options.config.server.limits;
        limits.body_bytes = Some(1_000);
        limits.part_bytes = Some(100);
        limits.batch_keys = Some(3);
    })
    .await;
    world.store().await;
    let http = reqwest::Client::new();
    let json = |path: &str, body: String| {
        http.post(format!("{}{path}", world.url())).header("content-type", "application/json").body(body)
    };
    let long = format!(r#"{{"name":"{}","key_columns":["k"]}}"#, "x".repeat(2_000));
    let (status, body) = world.raw(json("/v1/stores", long)).await;
    assert_eq!((status, body["code"].as_str()), (413, Some(code::TOO_LARGE)));
    assert_error(&body, "body");
    let why = body["why"].as_str().unwrap();
    assert!(why.contains("over 1000 bytes") && why.contains("`server.limits.body_bytes`"), "{why}");
    let batch = r#"{"keys":["1","2","3","4"]}"#.to_owned();
    let (status, body) = world.raw(json("/v1/stores/s/keys:batch", batch)).await;
    assert_eq!((status, body["code"].as_str()), (413, Some(code::TOO_LARGE)));
    let deep = format!(r#"{{"keys":{}{}}}"#, "[".repeat(200), "]".repeat(200));
    let (status, _) = world.raw(json("/v1/stores/s/keys:batch", deep)).await;
    assert!(status == 400 || status == 422, "{status}");

    let built = world.upload("p1", &world.rows("one.csv", 100, "v")).await;
    let part = &built.manifest.parts[0];
    let file = built.folder.join(&part.name);
    let error = world.client.put_part("p1", &part.name, &part.sha256, &file).await.unwrap_err();
    assert_eq!(error.code(), Some(code::TOO_LARGE));
    assert!(error.to_string().contains("100"), "{error}");
    assert!(world.client.parts("p1").await.unwrap().parts.is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_a_batch_has_a_size() {
    let world = World::start().await;
    world.store().await;
    let large = world.file("large.csv", &format!("k,v\nlarge,{}\n", "x".repeat(1024 * 1024)));
    world.job("p1", &large).run(&world.client, &mut |_| {}).await.unwrap();
    let batch = |count: usize| world.client.get_batch("s", vec!["large".to_owned(); count], Some("a"));
    assert_eq!(batch(20).await.unwrap().values.len(), 20);
    let error = batch(40).await.unwrap_err();
    assert_eq!(error.code(), Some(code::TOO_LARGE), "{error}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_limits_that_can_not_work_are_refused_where_they_are_set() {
    let world = World::start().await;
    world.store().await;
    let create = |name: String| StoreCreate { name, key_columns: vec!["k".to_owned()], ..StoreCreate::default() };
    let error = world.client.create_store(&create("é".repeat(60))).await.unwrap_err();
    assert!(error.to_string().contains("folder"), "{error}");
    world.client.create_store(&create("é".repeat(33))).await.unwrap();
    let limits = |silence| StorePatch {
        limits: Some(LimitsPatch { silence_ms: Some(silence), ..LimitsPatch::default() }),
        ..StorePatch::default()
    };
    let error = world.client.update_store("s", &limits(1)).await.unwrap_err();
    assert!(error.to_string().contains("silence"), "{error}");
    world.client.update_store("s", &limits(300)).await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_parts_stay_within_their_folder() {
    let world = World::start().await;
    world.store().await;
    world.upload("p1", &world.rows("one.csv", 3, "v")).await;
    let http = reqwest::Client::new();
    let sha = "0".repeat(64);
    for name in ["%2e%2e%2f%2e%2e%2fescaped", ".hidden", "manifest-x.json", "a%2Fb"] {
        let url = format!("{}/v1/pushes/p1/parts/{name}?sha256={sha}", world.url());
        let (status, body) = world.raw(http.put(&url).body("x")).await;
        assert!(status == 422 || status == 404, "{name}: {status} {body}");
    }
    let url = format!("{}/v1/pushes/p1/parts/x?sha256=..%2F..%2Fx", world.url());
    let (status, body) = world.raw(http.put(&url).body("x")).await;
    assert_eq!(status, 400, "{body}");
    world.end().await;
}
