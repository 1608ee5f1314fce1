//! The configuration: what a server starts with, and what is published.

use tidegate_client::api::{SettingOrigin, code};
use tidegate_server::{ConfigFile, Server, StartError};

use crate::world::{World, options};

fn config(text: &str) -> ConfigFile {
    ConfigFile::parse(text, "test.toml").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_regions_in_its_configuration_a_server_makes_a_b_and_c() {
    let world = World::start().await;
    let regions = world.client.regions().await.unwrap();
    let names: Vec<_> = regions.iter().map(|region| region.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert!(regions.iter().all(|region| region.nodes == 2 && region.available));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_of_the_configuration_are_hosted() {
    let world = World::start_with(|options| {
        options.config = config("[[regions]]\nname = 'eu'\nnodes = 1\nshares_source = true");
    })
    .await;
    world.store().await;
    world.push("p1", &world.rows("one.csv", 5, "v")).await;
    assert_eq!(world.client.get("s", "k1", None).await.unwrap().region.as_deref(), Some("eu"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h7_a_hook_that_does_not_exist_stops_the_first_start_and_only_that() {
    let folder = tempfile::tempdir().unwrap();
    let mut bad = options(folder.path());
    bad.config = config("[hooks]\nenabled = ['region-ordr']");
    let error = Server::start(bad.clone()).await.unwrap_err();
    assert!(matches!(error, StartError::Hooks(_)), "{error}");
    assert!(error.to_string().contains("region-order"), "{error}");

    // Once one is published, a server with a bad file says so, and gates by what is published.
    let good = Server::start(options(folder.path())).await.unwrap();
    good.shutdown().await;
    let server = Server::start(bad).await.unwrap();
    let client = tidegate_client::Client::new(&server.url()).unwrap();
    let shown = client.config().await.unwrap();
    assert!(shown.server.file_differs.unwrap().contains("region-ordr"));
    assert!(shown.hooks.enabled.contains(&"region-order".to_owned()));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn k40_a_server_that_is_to_run_a_cluster_hook_that_there_is_not_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut bad = options(folder.path());
    bad.config = config("[server.cluster_hooks]\nrun = ['rollout', 'rollout-weke']");
    let error = Server::start(bad).await.unwrap_err();
    assert!(matches!(error, StartError::Config(_)), "{error}");
    // It says which name is wrong and which there are, and has left nothing behind.
    let text = error.to_string();
    assert!(text.contains("`rollout-weke`") && text.contains("rollout-wake"), "{text}");
    assert!(!folder.path().join("data").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h36_a_hooks_configuration_is_published_whole_or_not_at_all() {
    let world = World::start_with(|options| {
        options.config = config("[hooks]\nwait_interval = '5s'");
    })
    .await;
    let first = world.client.config().await.unwrap();
    assert_eq!((first.hooks.generation, first.hooks.wait_interval_ms), (1, 5_000));
    assert!(first.server.file_differs.is_none());

    let file = "[server]\nname = 'x'\n[hooks]\nwait_interval = '7s'\n\
                [hooks.config.region-order]\norder = 'a, b, c'\n";
    let second = world.client.publish_hooks_toml(file).await.unwrap();
    assert_eq!((second.generation, second.wait_interval_ms), (2, 7_000));
    assert_eq!(second.hooks["region-order"]["order"], "a, b, c");
    // The same again is no new generation.
    let same = world.client.publish_hooks_toml(file).await.unwrap();
    assert_eq!(same.generation, 2);

    let bad = "[hooks.config.region-order]\norder = 'a, a'\n[hooks]\nwait_interval = '9s'\n";
    let error = world.client.publish_hooks_toml(bad).await.unwrap_err();
    assert_eq!(error.code(), Some(code::HOOK_REFUSED));
    assert!(error.to_string().contains("order"), "{error}");
    assert_eq!(world.client.config().await.unwrap().hooks.generation, 2);

    // A wrong file never takes guards away by saying nothing of them.
    for (file, named) in [
        ("", "[hooks]"),
        ("[server]\nname = 'x'\n", "[hooks]"),
        ("[hookz]\nwait_interval = '9s'\n", "hookz"),
        ("[hooks]\nwait_interval = '9s'\n[something]\n", "something"),
    ] {
        let error = world.client.publish_hooks_toml(file).await.unwrap_err();
        assert_eq!(error.code(), Some(code::HOOK_REFUSED), "{file}: {error}");
        assert!(error.to_string().contains(named), "{file}: {error}");
    }
    // What a file would do can be asked for.
    let would_be = world.client.check_hooks_toml("[hooks]\nwait_interval = '9s'\n").await.unwrap();
    assert_eq!((would_be.generation, would_be.wait_interval_ms, would_be.hooks.len()), (0, 9_000, 0));
    assert_eq!(world.client.config().await.unwrap().hooks.generation, 2);

    let settings = world.client.config().await.unwrap().server.settings;
    assert_eq!(settings["server.listen"].origin, SettingOrigin::Flag);
    assert_eq!(settings["server.limits.requests"].origin, SettingOrigin::Default);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h18_overrides_are_set_shown_merged_and_cleared() {
    let world = World::start().await;
    world.store().await;
    let update = |set: &[(&str, &str)], unset: &[&str]| tidegate_client::api::OverridesUpdate {
        set: set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        unset: unset.iter().map(|key| (*key).to_owned()).collect(),
    };
    let set = update(&[("region-order.order", "c, b, a"), ("region-order.delay", "0s")], &[]);
    let view = world.client.set_overrides("s", &set).await.unwrap();
    assert_eq!(view.effective["region-order"]["order"], "c, b, a");

    // One bad value, and nothing of the update is applied.
    let bad = update(&[("region-order.delay", "1s"), ("region-order.order", "a, a")], &[]);
    let error = world.client.set_overrides("s", &bad).await.unwrap_err();
    assert_eq!(error.code(), Some(code::HOOK_REFUSED));
    let view = world.client.overrides("s").await.unwrap();
    assert_eq!(view.overrides["region-order.delay"], "0s");

    // Regions are shown in the order in which they go.
    let outcome = world.push("p1", &world.rows("one.csv", 3, "v")).await;
    let shown = outcome.view.unwrap();
    let order: Vec<_> = shown.regions.iter().map(|region| region.region.as_str()).collect();
    assert_eq!(order, ["c", "b", "a"]);

    let cleared = update(&[], &["region-order.order", "region-order.delay"]);
    let view = world.client.set_overrides("s", &cleared).await.unwrap();
    assert!(view.overrides.is_empty());
    world.end().await;
}
