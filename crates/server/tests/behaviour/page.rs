//! The page, and what keeps a server running asks.

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_stores_regions_and_pushes_without_a_script() {
    let world = World::start().await;
    world.store().await;
    world.push("the-first-push", &world.rows("one.csv", 5, "v")).await;
    let response = reqwest::get(format!("{}/", world.url())).await.unwrap();
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let text = response.text().await.unwrap();
    for shown in ["the-first-push", "COMPLETED", "version 1", "/assets/page.js"] {
        assert!(text.contains(shown), "{shown} is not on the page");
    }
    for asset in ["page.js", "page.css"] {
        let response = reqwest::get(format!("{}/assets/{asset}", world.url())).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(!response.text().await.unwrap().is_empty());
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_readiness_metrics_and_the_description_are_there() {
    let world = World::start().await;
    world.store().await;
    world.client.is_ready().await.unwrap();
    let get = |path: &'static str| {
        let url = format!("{}{path}", world.url());
        async move { reqwest::get(url).await.unwrap().text().await.unwrap() }
    };
    assert_eq!(get("/healthz").await, "ok\n");
    let metrics = world.client.metrics().await.unwrap();
    for name in ["http_requests_total", "state_commits_total", "lifecycle_", "tidegate_region_"] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    assert!(metrics.contains(r#"route="/v1/stores""#), "{metrics}");
    let description: serde_json::Value = serde_json::from_str(&get("/openapi.json").await).unwrap();
    assert!(description["openapi"].as_str().unwrap().starts_with('3'));
    assert!(description["paths"]["/v1/stores/{store}"]["get"].is_object());
    world.end().await;
}
