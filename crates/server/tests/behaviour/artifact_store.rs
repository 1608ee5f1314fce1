//! The artifact store's mark: while a server runs, and after it was lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tidegate_client::AuditQuery;
use tidegate_client::api::PushStatus;
use tidegate_rollout::entities::SourceStore;
use tidegate_server::agent::{Agent, AgentSetup};
use tidegate_server::config::RegionSection;
use tidegate_server::{Options, Server, StartError};
use tidegate_state::{Ref, TransactionError};

use crate::world::{LIMIT, World, assert_error, options};

fn store_folder(world: &World) -> PathBuf {
    world.folder.path().join("data/artifacts")
}

fn adopting(folder: &Path) -> Options {
    let mut options = options(folder);
    options.adopt_artifact_store = true;
    options
}

async fn mark(world: &World) -> PathBuf {
    let view = world.client.artifact_store().await.unwrap();
    assert_eq!(view.trouble, None);
    store_folder(world).join("probe").join(view.probe)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_loses_its_mark_under_a_server_is_not_written_into_until_it_has_it_again() {
    let world = World::start().await;
    world.store().await;
    let first = world.push("p1", &world.rows("one.csv", 10, "x")).await;
    assert_eq!(first.state.status, PushStatus::Completed);
    let built = world.upload("p2", &world.rows("two.csv", 10, "y")).await;
    world.put_all("p2", &built).await;
    let mark = mark(&world).await;
    let content = std::fs::read(&mark).unwrap();
    std::fs::remove_file(&mark).unwrap();

    // Right before the manifest is written the mark itself is looked for.
    let complete = || {
        let request = reqwest::Client::new().post(format!("{}/v1/pushes/p2/complete", world.url()));
        world.raw(request.json(&built.manifest))
    };
    let (status, body) = complete().await;
    assert_eq!((status, body["code"].as_str()), (503, Some("other_artifact_store")), "{body}");
    assert_error(&body, "complete");
    assert_eq!(body["retryable"], true);
    let why = body["why"].as_str().unwrap();
    assert!(why.contains("it has no `probe/") && why.contains("file://"), "{why}");
    assert!(body["countermeasures"].as_str().unwrap().contains("--adopt-artifact-store"), "{body}");
    // From then on no part is taken, and whoever asks about the store is told.
    let part = &built.manifest.parts[0];
    let url = format!("{}/v1/pushes/p2/parts/{}?sha256={}", world.url(), part.name, part.sha256);
    let (status, body) = world.raw(reqwest::Client::new().put(url).body("x")).await;
    assert_eq!((status, body["code"].as_str()), (503, Some("other_artifact_store")), "{body}");
    assert!(world.client.artifact_store().await.unwrap().trouble.is_some());
    assert!(world.client.metrics().await.unwrap().contains("artifact_store_matches 0"));
    // Reads and everything else go on.
    assert_eq!(world.client.get("s", "k1", None).await.unwrap().version, 1);

    std::fs::write(&mark, content).unwrap();
    let (status, body) = complete().await;
    assert_eq!(status, 200, "{body}");
    world.until("p2", |state| state.status == PushStatus::Completed).await;
    assert!(world.client.metrics().await.unwrap().contains("artifact_store_matches 1"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_state_becomes_that_of_another_installation_writes_nothing_into_its_store() {
    let world = World::start().await;
    world.store().await;
    let built = world.upload("p1", &world.rows("one.csv", 10, "x")).await;
    let own = world.client.artifact_store().await.unwrap().probe;
    let become_of = async |probe: String| {
        // As a restore does it: the tree is another one, in which another mark is named.
        let place = Ref::<SourceStore>::root(SourceStore::ID).unwrap();
        let written =
            world.server.as_ref().unwrap().state().write(move |transaction| -> Result<(), TransactionError> {
                transaction.update(&place, |source| source.probe.clone_from(&probe))
            });
        written.await.unwrap();
        world.server.as_ref().unwrap().state().flush().await.unwrap();
    };
    become_of("f00d".to_owned()).await;
    let impatient = world.client.with_patience(std::time::Duration::ZERO);
    let part = &built.manifest.parts[0];
    let file = built.folder.join(&part.name);
    let refused = impatient.put_part("p1", &part.name, &part.sha256, &file).await.unwrap_err();
    assert_eq!(refused.code(), Some("other_artifact_store"), "{refused}");
    assert_eq!(world.client.artifact_store().await.unwrap().probe, "f00d");
    // It is as it should be again; the server notices by itself.
    become_of(own).await;
    let trouble = async {
        while world.client.artifact_store().await.unwrap().trouble.is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, trouble).await.expect("it is not noticed");
    world.put_all("p1", &built).await;
    world.client.complete_push("p1", &built.manifest).await.unwrap();
    world.until("p1", |state| state.status == PushStatus::Completed).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_says_that_the_store_it_reads_from_lost_its_mark_and_serves_on() {
    let world = World::start_with(|options| {
        options.config.regions = vec![RegionSection { agent: true, ..RegionSection::new("b") }];
    })
    .await;
    world.store().await;
    let mut setup = AgentSetup::new("b", vec![world.url()], world.folder.path().join("agent"));
    setup.listen = "127.0.0.1:0".parse().unwrap();
    let agent = Agent::start(setup).await.unwrap();
    let pushed = world.push("p1", &world.rows("one.csv", 10, "x")).await;
    assert_eq!(pushed.state.status, PushStatus::Completed);
    let mark = mark(&world).await;
    let content = std::fs::read(&mark).unwrap();
    let http = reqwest::Client::new();
    let until_ready = async |holds: fn(&str) -> bool| {
        let said = async {
            loop {
                let (status, said) = world.raw(http.get(format!("{}/readyz", agent.url()))).await;
                assert_eq!(status, 200, "{said}");
                let said = said.as_str().unwrap().to_owned();
                if holds(&said) {
                    return said;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, said).await.expect("the agent does not say so")
    };
    until_ready(|said| said == "ready\n").await;
    std::fs::remove_file(&mark).unwrap();
    let said = until_ready(|said| said.contains("artifact store")).await;
    assert!(said.contains("file://") && said.contains("it has no `probe/"), "{said}");
    let (_, metrics) = world.raw(http.get(format!("{}/metrics", agent.url()))).await;
    assert!(metrics.as_str().unwrap().contains("artifact_store_matches 0"), "{metrics}");
    let read = tidegate_client::Client::new(&agent.url()).unwrap().get("s", "k1", None).await.unwrap();
    assert_eq!((read.version, read.region.as_deref()), (1, Some("b")));
    std::fs::write(&mark, content).unwrap();
    until_ready(|said| said == "ready\n").await;
    agent.shutdown().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_store_is_adopted_by_word_and_it_is_said_what_is_missing_and_who_serves_it() {
    let mut world = World::start().await;
    world.store().await;
    world.push("p1", &world.rows("one.csv", 10, "x")).await;
    world.push("p2", &world.rows("two.csv", 10, "y")).await;
    let probe = world.client.artifact_store().await.unwrap().probe;
    world.server.take().unwrap().shutdown().await;
    std::fs::remove_dir_all(store_folder(&world)).unwrap();

    let error = Server::start(options(world.folder.path())).await.unwrap_err();
    assert!(matches!(error, StartError::OtherStore { .. }), "{error}");
    // It may be another installation's.
    let other = store_folder(&world).join("probe/another");
    std::fs::create_dir_all(other.parent().unwrap()).unwrap();
    std::fs::write(&other, "tidegate another\n").unwrap();
    let error = Server::start(adopting(world.folder.path())).await.unwrap_err();
    assert!(matches!(&error, StartError::AnothersStore { marks, .. } if marks == "another"), "{error}");
    std::fs::remove_file(&other).unwrap();

    let mut server = Server::start(adopting(world.folder.path())).await.unwrap();
    let adoption = server.take_adoption().unwrap();
    assert_eq!((adoption.versions, adoption.missing.len()), (2, 2), "{adoption:#?}");
    let all = BTreeSet::from(["a", "b", "c"].map(str::to_owned));
    let served: Vec<(u64, BTreeSet<String>)> =
        adoption.missing.iter().map(|missing| (missing.version, missing.served_by.clone())).collect();
    assert_eq!(served, [(1, BTreeSet::new()), (2, all.clone())]);
    assert!(adoption.missing.iter().all(|missing| missing.lacks == "its manifest" && missing.held_by == all));
    world.client = tidegate_client::Client::new(&server.url()).unwrap();
    world.server = Some(server);
    // The mark is the one of before, so that whoever is up knows the store again.
    assert_eq!(world.client.artifact_store().await.unwrap().probe, probe);
    assert!(store_folder(&world).join("probe").join(probe).is_file());
    let trail = world.client.audit(&AuditQuery::default()).await.unwrap().entries;
    let entry = trail.iter().find(|entry| entry.operation == "adopt artifact store").unwrap();
    assert!(entry.target.contains("lacks the artifacts of 2 of 2 versions"), "{entry:?}");
    // Regions serve from their own copies, and the next version is pushed as ever.
    assert_eq!(world.client.get("s", "k1", Some("b")).await.unwrap().version, 2);
    let outcome = world.push("p3", &world.rows("three.csv", 10, "z")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed);
    world.restart().await;
    assert_eq!(world.client.get("s", "k1", None).await.unwrap().version, 3);
    // Said again, it does nothing.
    world.server.take().unwrap().shutdown().await;
    let mut server = Server::start(adopting(world.folder.path())).await.unwrap();
    assert_eq!(server.take_adoption(), None);
    server.shutdown().await;
}
