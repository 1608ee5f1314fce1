//! Publishing configurations, on servers of one state tree.

use tidegate_lifecycle::{
    FirstPublished, HooksConfiguration, HooksFile, Lifecycle, LifecycleOptions, PublishError, Published, Registry,
    Surroundings,
};
use tidegate_state::testing::Cluster;
use tidegate_state::{State, Timestamp};

fn lifecycle() -> Lifecycle {
    Lifecycle::new(Registry::shipped(), LifecycleOptions::default())
}

fn surroundings() -> Surroundings {
    Surroundings { regions: Some(["a", "b", "c"].map(str::to_owned).into()), now: Timestamp(0) }
}

fn file(text: &str) -> HooksFile {
    HooksFile::from_toml(text, &Registry::shipped()).unwrap()
}

fn in_force(state: &State) -> HooksConfiguration {
    state.snapshot().require(&HooksConfiguration::place()).unwrap().clone()
}

const ORDER: &str = "[hooks.config.region-order]\norder = \"a, b\"\ndelay = \"1h\"\n";

#[tokio::test]
async fn h36_a_bad_value_publishes_nothing_and_names_hook_key_and_value() {
    let cluster = Cluster::memory(1).await;
    let (state, lifecycle) = (cluster.server(0), lifecycle());
    lifecycle.publish(state, &file(ORDER), "ada", &surroundings()).await.unwrap();
    let before = in_force(state);
    for (text, parts) in [
        ("[hooks.config.region-order]\norder = \"a, x\"", ["region-order", "order", "a, x", "no region x"]),
        ("[hooks.config.region-order]\ndelay = \"-1h\"", ["region-order", "delay", "-1h", "negative"]),
        ("[hooks.config.region-order]\ncolour = \"red\"", ["region-order", "colour", "red", "no such key"]),
        ("[hooks.config.exec]\nmode = \"maybe\"", ["exec", "mode", "maybe", "enforce"]),
        ("[hooks.config.health-check]\nbad_max = 0", ["health-check", "bad_max", "0", "at least 1"]),
        ("[hooks.config.data-quality]\nnull_max = \"NaN\"", ["data-quality", "null_max", "NaN", "finite"]),
    ] {
        let error = lifecycle.publish(state, &file(text), "ada", &surroundings()).await.unwrap_err();
        let PublishError::Refused(refusal) = error else { panic!("{error}") };
        for part in parts {
            assert!(refusal.why.contains(part), "{text}: {refusal}");
        }
    }
    assert_eq!(in_force(state), before);
}

#[tokio::test]
async fn h36_equal_files_make_no_new_generation_and_others_one_each() {
    let cluster = Cluster::memory(1).await;
    let (state, lifecycle) = (cluster.server(0), lifecycle());
    let publish = async |text: &str| lifecycle.publish(state, &file(text), "ada", &surroundings()).await.unwrap();
    assert_eq!(publish(ORDER).await, Published { generation: 1, changed: true });
    assert_eq!(publish(ORDER).await, Published { generation: 1, changed: false });
    assert_eq!(publish("[hooks]\nthreads = 3").await, Published { generation: 2, changed: true });
    let there = in_force(state);
    assert_eq!((there.generation, there.threads, there.hooks.len()), (2, 3, 0));
}

#[tokio::test]
async fn h36_of_two_files_at_once_one_is_in_force_whole() {
    let cluster = Cluster::memory(2).await;
    let (first, second) = (lifecycle(), lifecycle());
    let (left, right) =
        (file("[hooks]\nthreads = 3\ntimeout = \"3s\""), file("[hooks]\nthreads = 4\ntimeout = \"4s\""));
    let around = surroundings();
    let (one, other) = tokio::join!(
        first.publish(cluster.server(0), &left, "ada", &around),
        second.publish(cluster.server(1), &right, "bob", &around),
    );
    let generations = [one.unwrap().generation, other.unwrap().generation];
    assert!(generations == [1, 2] || generations == [2, 1], "{generations:?}");
    cluster.server(0).flush().await.unwrap();
    let there = in_force(cluster.server(0));
    assert_eq!(there.generation, 2);
    assert_eq!(there.timeout_ms, u64::from(there.threads) * 1_000, "a mixture: {there:?}");
}

#[tokio::test]
async fn h07_the_first_server_publishes_its_own_file_and_one_that_joins_says_how_its_own_differs() {
    let cluster = Cluster::memory(1).await;
    let (state, lifecycle) = (cluster.server(0), lifecycle());
    let around = surroundings();
    let wrong = HooksFile::from_toml("[hooks]\nenabled = [\"nobody\"]", &Registry::shipped());
    let refused = lifecycle.publish_first(state, wrong.as_ref().map_err(Clone::clone), &around).await.unwrap_err();
    assert!(refused.to_string().contains("data-quality, region-order, health-check, exec"), "{refused}");
    assert!(state.snapshot().get(&HooksConfiguration::place()).unwrap().is_none());

    let own = file(ORDER);
    let first = lifecycle.publish_first(state, Ok(&own), &around).await.unwrap();
    assert_eq!(first, FirstPublished::Published);
    assert_eq!(
        lifecycle.publish_first(state, Ok(&own), &around).await.unwrap(),
        FirstPublished::Equal { generation: 1 }
    );

    let other = file("[hooks.config.region-order]\norder = \"a, b\"\ndelay = \"2h\"\n");
    let joined = lifecycle.publish_first(state, Ok(&other), &around).await.unwrap();
    let FirstPublished::Differs { generation: 1, differences } = joined else { panic!("{joined:?}") };
    assert_eq!(differences, ["region-order.delay is \"1h\", the file says \"2h\""]);
    assert!(lifecycle.metrics().to_text().contains("lifecycle_configuration_differs 1"));

    let joined = lifecycle.publish_first(state, wrong.as_ref().map_err(Clone::clone), &around).await.unwrap();
    assert!(
        matches!(joined, FirstPublished::Differs { generation: 1, differences } if differences[0].contains("nobody"))
    );
    assert_eq!(in_force(state).hooks, own.hooks);
}
