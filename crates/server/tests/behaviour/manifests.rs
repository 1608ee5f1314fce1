//! What a manifest counts is held against its parts before anybody decides by it.

use tidegate_client::api::manifest::Manifest;
use tidegate_client::api::{PushPhase, code};

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_counts_otherwise_than_its_parts_is_refused_with_both_numbers() {
    let world = World::start().await;
    world.store().await;
    let mut text = String::from("k,v\n");
    for row in 0..20 {
        text.push_str(&format!("k{row},{}\n", if row % 4 == 0 { "" } else { "x" }));
    }
    let built = world.upload("p1", &world.file("nulls.csv", &text)).await;
    world.put_all("p1", &built).await;
    let honest = &built.manifest;
    let field = honest.statistics.iter().position(|field| field.name == "v").unwrap();
    assert_eq!((honest.statistics[field].nulls, honest.record_count), (5, 20));
    let lies: [(&str, fn(&mut Manifest, usize)); 4] = [
        ("of field `v` it counts 1 nulls, and its parts have 5", |manifest, field| {
            manifest.statistics[field].count += 4;
            manifest.statistics[field].nulls -= 4;
        }),
        ("of field `v` it counts 15 values and 0 nulls, and it has 20 records", |manifest, field| {
            manifest.statistics[field].nulls = 0;
        }),
        ("rows, and the part itself has", |manifest, _| {
            manifest.parts[0].rows += 1;
            manifest.parts[1].rows -= 1;
        }),
        ("its counts are not the sums over its parts", |manifest, _| manifest.record_count += 1),
    ];
    for (why, lie) in lies {
        let mut manifest = honest.clone();
        lie(&mut manifest, field);
        let error = world.client.complete_push("p1", &manifest).await.unwrap_err();
        assert_eq!(error.code(), Some(code::MANIFEST_REFUSED), "{error}");
        assert!(error.to_string().contains(why), "{why}: {error}");
    }
    let state = world.client.complete_push("p1", honest).await.unwrap();
    assert!(state.phase >= PushPhase::Rollout, "{state:?}");
    world.end().await;
}
