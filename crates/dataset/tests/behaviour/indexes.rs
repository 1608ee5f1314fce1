//! A node's index: D7, D14, D15, and that it never gives a wrong answer.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;
use serde_json::json;
use sha2::Digest;
use tidegate_api::manifest::Manifest;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_dataset::build::BuiltArtifact;
use tidegate_dataset::index::{
    Index, IndexBuilder, IndexCompression, IndexError, OpenError, ScrubPosition, bytes_estimate,
};
use tidegate_dataset::{Cancel, quiet};

use crate::support::{World, build, files_below};

fn index(world: &World, artifact: &BuiltArtifact) -> Index {
    IndexBuilder::new(world.path("node/index"))
        .build(&artifact.folder, &artifact.manifest, &quiet, &Cancel::new())
        .unwrap()
}

fn world() -> World {
    let world = World::new();
    std::fs::create_dir(world.path("node")).unwrap();
    world
}

fn scrub(index: &Index, budget: u64) -> Result<u64, String> {
    let (mut position, mut bytes) = (ScrubPosition::default(), 0);
    loop {
        let step = index.scrub_step(position, budget).map_err(|damaged| damaged.to_string())?;
        bytes += step.bytes;
        match step.next {
            Some(next) => position = next,
            None => return Ok(bytes),
        }
    }
}

#[test]
fn every_record_is_found_whole_and_nothing_else() {
    let world = world();
    let rows: String = (0..5000).map(|n| format!("{n},text {n},{}.25\n", n * 2)).collect();
    let input = world.file("in.csv", format!("id,t,x\n{rows}"));
    let artifact = world.build(&["id"], &[input]);
    let index = index(&world, &artifact);
    assert_eq!(index.record_count(), 5000);
    assert_eq!(index.content_digest(), artifact.manifest.content_digest);
    assert_eq!(index.artifact_id(), artifact.manifest.artifact_id);
    for n in 0..5000 {
        let key = index.key(&n.to_string()).unwrap();
        let found = index.get_json(&key).unwrap().unwrap();
        assert_eq!(found, json!({"id": n, "t": format!("text {n}"), "x": f64::from(n) * 2.0 + 0.25}));
    }
    for n in 5000..8000 {
        assert!(index.get(&index.key(&n.to_string()).unwrap()).unwrap().is_none());
    }
    // In batches of any size the same, present or not.
    let keys: Vec<_> = (4950..5077).map(|n| index.key(&n.to_string()).unwrap()).collect();
    for size in [0, 1, 15, 16, 17, 127] {
        let found = index.get_many(&keys[..size]).unwrap();
        assert_eq!(found.len(), size);
        for (key, value) in keys.iter().zip(found) {
            assert_eq!(value, index.get(key).unwrap());
        }
    }
    let content = index.verify(&Cancel::new()).unwrap().unwrap();
    assert_eq!(content.content_digest, artifact.manifest.content_digest);
    assert_eq!(content.record_count, 5000);
    let size = index.file_bytes() as f64;
    let estimate = bytes_estimate(&artifact.manifest) as f64;
    assert!((0.8..1.3).contains(&(estimate / size)), "{estimate} for {size}");
}

#[test]
fn d1_an_empty_version_misses_every_key() {
    let world = world();
    let mut options = world.options(&["k"]);
    options.allow_empty = true;
    let artifact = build(options, &[world.file("in.csv", "k,v\n")]).unwrap();
    let index = index(&world, &artifact);
    assert_eq!(index.get(&index.key("x").unwrap()).unwrap(), None);
    scrub(&index, 1).unwrap();
    assert_eq!(index.verify(&Cancel::new()).unwrap().unwrap().record_count, 0);
}

#[test]
fn d14_each_of_two_similar_keys_is_found_by_its_own_only() {
    let world = world();
    let input = world.file("in.csv", "k,l,v\na,bc,1\nab,c,2\n");
    let artifact = world.build(&["k", "l"], &[input]);
    let index = index(&world, &artifact);
    let get = |key: serde_json::Value| index.get_json(&index.keys().parse_json(&key).unwrap()).unwrap();
    assert_eq!(get(json!(["a", "bc"])), Some(json!({"k": "a", "l": "bc", "v": 1})));
    assert_eq!(get(json!(["ab", "c"])), Some(json!({"k": "ab", "l": "c", "v": 2})));
    assert_eq!(get(json!(["abc", ""])), None);
    assert_eq!(get(json!(["", "abc"])), None);
}

/// Flips each byte of the file in turn; `check` sees the damaged file and must not be fooled.
fn flip_each_byte(path: &std::path::Path, mut check: impl FnMut(usize)) {
    let bytes = std::fs::read(path).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    for (position, byte) in bytes.iter().enumerate() {
        let flipped = byte ^ (1 << (position % 8));
        file.write_all_at(&[flipped], position as u64).unwrap();
        check(position);
        file.write_all_at(&[*byte], position as u64).unwrap();
    }
}

#[test]
fn d7_each_flipped_byte_of_a_serving_index_is_found_and_never_answers_wrong() {
    for compression in [IndexCompression::Never, IndexCompression::Always] {
        let world = world();
        let text = |n: usize| format!("the same long text again and again; number {}", n % 5);
        let rows: String = (0..200).map(|n| format!("key{n},{n},{}\n", text(n))).collect();
        let input = world.file("in.csv", format!("k,n,t\n{rows}"));
        let artifact = world.build(&["k"], &[input]);
        let serving = IndexBuilder::new(world.path("node/index"))
            .compression(compression)
            .build(&artifact.folder, &artifact.manifest, &quiet, &Cancel::new())
            .unwrap();
        let keys: Vec<_> = (0..250).map(|n| serving.key(&format!("key{n}")).unwrap()).collect();
        let expected: Vec<_> = keys.iter().map(|key| serving.get_json(key).unwrap()).collect();
        assert_eq!(expected.iter().flatten().count(), 200);
        scrub(&serving, 1000).unwrap();

        let bytes = std::fs::read(serving.path()).unwrap();
        let description = b"{\"schema\":";
        let frame_end = bytes.windows(description.len()).position(|w| w == description).unwrap();
        let (mut on_open, mut on_read_total) = (0, 0);
        flip_each_byte(serving.path(), |position| {
            let mut on_read = 0;
            for (key, expected) in keys.iter().zip(&expected) {
                match serving.get_json(key) {
                    Ok(found) => assert_eq!(found, *expected, "byte {position}"),
                    Err(_) => on_read += 1,
                }
            }
            let on_scrub = scrub(&serving, 1000).is_err();
            assert!(on_scrub, "byte {position} was not found by a scrub");
            assert!(serving.verify(&Cancel::new()).is_err(), "byte {position}");
            // Header, description and dictionary, at the latest, are found when it is opened.
            let outside_records = position < 256 || position >= frame_end;
            if outside_records {
                assert!(Index::open(serving.path()).is_err(), "byte {position}");
                on_open += 1;
            }
            on_read_total += on_read;
        });
        assert!(on_open > 256 && on_read_total > 1000, "{on_open} {on_read_total}");
        scrub(&serving, u64::MAX).unwrap();
    }
}

#[test]
fn d7_values_of_very_different_sizes_are_found_and_what_says_where_they_are_is_checked() {
    let world = world();
    let value = |n: usize| "x".repeat(if n.is_multiple_of(7) { 20_000 + n } else { n });
    let rows: String = (0..100).map(|n| format!("key{n},{}\n", value(n))).collect();
    let artifact = world.build(&["k"], &[world.file("in.csv", format!("k,t\n{rows}"))]);
    let serving = index(&world, &artifact);
    let keys: Vec<_> = (0..120).map(|n| serving.key(&format!("key{n}")).unwrap()).collect();
    let found = |n: usize| serving.get_json(&keys[n]).map(|found| found.map(|record| record["t"] == json!(value(n))));
    for n in 0..120 {
        assert_eq!(found(n).unwrap(), (n < 100).then_some(true), "{n}");
    }
    scrub(&serving, 1000).unwrap();
    let bytes = std::fs::read(serving.path()).unwrap();
    let description = b"{\"schema\":";
    let wide_end = bytes.windows(description.len()).position(|w| w == description).unwrap();
    let file = std::fs::File::options().write(true).open(serving.path()).unwrap();
    // The line at the front, and the wide one at the end: 53 numbers and a checksum.
    for position in (256..320).chain(wide_end - (53 * 8 + 4)..wide_end) {
        file.write_all_at(&[bytes[position] ^ 0x20], position as u64).unwrap();
        for n in 0..120 {
            assert!(found(n).is_ok_and(|right| right == (n < 100).then_some(true)) || found(n).is_err(), "{position}");
        }
        assert!(scrub(&serving, u64::MAX).is_err(), "byte {position} was not found by a scrub");
        file.write_all_at(&bytes[position..=position], position as u64).unwrap();
    }
    scrub(&serving, u64::MAX).unwrap();
}

#[test]
fn d7_each_flipped_byte_of_a_part_is_found_before_it_is_loaded() {
    let world = world();
    let mut options = world.options(&["k"]);
    options.partitions = 1;
    let artifact = build(options, &[world.file("in.csv", "k,v\na,1\nb,2\n")]).unwrap();
    let part = &artifact.manifest.parts[0];
    flip_each_byte(&artifact.folder.join(&part.name), |position| {
        let error = IndexBuilder::new(world.path("node/index"))
            .build(&artifact.folder, &artifact.manifest, &quiet, &Cancel::new())
            .unwrap_err();
        let IndexError::Artifact(ArtifactError::Damaged { file, .. }) = &error else {
            panic!("byte {position}: {error}");
        };
        assert_eq!(*file, part.name);
        assert_eq!(files_below(&world.path("node")), [] as [std::path::PathBuf; 0]);
    });
    index(&world, &artifact);
}

#[test]
fn d15_an_index_that_is_gone_cut_or_of_another_release_is_rebuilt_the_same() {
    let world = world();
    let rows: String = (0..1000).map(|n| format!("{n},v{n}\n")).collect();
    let artifact = world.build(&["k"], &[world.file("in.csv", format!("k,v\n{rows}"))]);
    let path = index(&world, &artifact).path().to_path_buf();
    let bytes = std::fs::read(&path).unwrap();

    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Index::open(&path), Err(OpenError::Absent { .. })));
    index(&world, &artifact);
    assert!(std::fs::read(&path).unwrap() == bytes);

    for length in [0, 7, 100, 300, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(matches!(Index::open(&path), Err(OpenError::Cut { .. })), "{length}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    std::fs::write(&path, longer).unwrap();
    assert!(matches!(Index::open(&path), Err(OpenError::Cut { .. })));

    // A header of another release, whose checksum may be of another kind.
    let mut other = bytes.clone();
    other[8..12].copy_from_slice(&99u32.to_le_bytes());
    std::fs::write(&path, other).unwrap();
    assert!(matches!(Index::open(&path), Err(OpenError::Format { found: 99, .. })));
    assert_eq!(index(&world, &artifact).content_digest(), artifact.manifest.content_digest);
    assert!(std::fs::read(&path).unwrap() == bytes);
}

#[test]
fn d15_an_index_of_another_artifact_is_replaced_and_leftovers_go() {
    let world = world();
    let first = world.build(&["k"], &[world.file("in.csv", "k,v\na,1\n")]);
    index(&world, &first);
    world.file("node/index.partial", "half");
    world.file("node/index.work/part", "half");
    let second = world.build(&["k"], &[world.file("in.csv", "k,v\na,2\n")]);
    let index = index(&world, &second);
    assert_eq!(index.get_json(&index.key("a").unwrap()).unwrap().unwrap()["v"], 2);
    assert_eq!(files_below(&world.path("node")), [world.path("node/index")]);
}

#[test]
fn n3_a_build_that_is_cancelled_leaves_nothing_and_succeeds_when_repeated() {
    let world = world();
    let rows: String = (0..20_000).map(|n| format!("{n},v{n}\n")).collect();
    let artifact = world.build(&["k"], &[world.file("in.csv", format!("k,v\n{rows}"))]);
    let reports = std::sync::atomic::AtomicUsize::new(0);
    for stop_at in [1, 5, 12, 19] {
        let cancel = Cancel::new();
        reports.store(0, std::sync::atomic::Ordering::SeqCst);
        let stop = |_| {
            if reports.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == stop_at {
                cancel.cancel();
            }
        };
        let error = IndexBuilder::new(world.path("node/index"))
            .build(&artifact.folder, &artifact.manifest, &stop, &cancel)
            .unwrap_err();
        assert!(matches!(error, IndexError::Cancelled), "{error}");
        assert_eq!(files_below(&world.path("node")), [] as [std::path::PathBuf; 0]);
    }
    assert_eq!(index(&world, &artifact).record_count(), 20_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_built_from_a_store_and_equals_one_built_from_the_folder() {
    let world = world();
    let rows: String = (0..3000).map(|n| format!("{n},v{n}\n")).collect();
    let artifact = world.build(&["k"], &[world.file("in.csv", format!("k,v\n{rows}"))]);
    let store = ArtifactStore::local(world.path("store")).unwrap();
    let cancel = Cancel::new();
    for part in &artifact.manifest.parts {
        let file = artifact.folder.join(&part.name);
        store.put_part(&artifact.manifest.artifact_id, part, &file, &cancel).await.unwrap();
    }
    let manifest = Arc::new(artifact.manifest.clone());
    let build = |path: &str| {
        IndexBuilder::new(world.path(path)).memory_bytes(1 << 20).build_from_store(
            store.clone(),
            manifest.clone(),
            Arc::new(quiet),
            cancel.clone(),
        )
    };
    build("node/from-store").await.unwrap();
    let bytes = |name: &str| std::fs::read(world.path(name)).unwrap();
    index(&world, &artifact);
    assert!(bytes("node/from-store") == bytes("node/index"));
    assert_eq!(files_below(&world.path("node")).len(), 2);

    // A part that is damaged in the store is named, and nothing is left.
    let part = &manifest.parts[2];
    let path = world.path(&format!("store/artifacts/{}/{}", manifest.artifact_id, part.name));
    let mut damaged = std::fs::read(&path).unwrap();
    damaged[10] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let error = build("node/other").await.unwrap_err();
    assert!(error.to_string().contains(&part.name), "{error}");
    assert_eq!(files_below(&world.path("node")).len(), 2);
}

#[test]
fn a_part_that_holds_a_key_twice_is_refused() {
    let world = world();
    let artifact = world.build(&["k"], &[world.file("in.csv", "k,v\na,x\n")]);
    let mut manifest = artifact.manifest.clone();
    let part = manifest.parts.iter_mut().find(|part| part.rows == 1).unwrap();
    let path = artifact.folder.join(&part.name);
    // The same file again, with another record of the key: as a writer of its own may have made it.
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&path).unwrap()).unwrap();
    let batch = reader.build().unwrap().next().unwrap().unwrap();
    let other = {
        let values: Vec<ArrayRef> = vec![batch.column(0).clone(), Arc::new(StringArray::from(vec!["y"]))];
        RecordBatch::try_new(batch.schema(), values).unwrap()
    };
    let mut writer = ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    for batch in [&batch, &other] {
        writer.write(batch).unwrap();
    }
    writer.close().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (part.rows, part.bytes) = (2, bytes.len() as u64);
    part.sha256 = hex::encode(sha2::Sha256::digest(&bytes));
    manifest.record_count = 2;
    manifest.bytes = manifest.parts.iter().map(|part| part.bytes).sum();
    manifest.data_bytes *= 2;
    let build = |manifest: &Manifest| {
        IndexBuilder::new(world.path("node/index"))
            .build(&artifact.folder, manifest, &quiet, &Cancel::new())
            .unwrap_err()
    };
    // An artifact is named by its parts; the refusal of a wrong name says the right one.
    let refused = build(&manifest).to_string();
    manifest.artifact_id = refused.rsplit(' ').next().unwrap().to_owned();
    let error = build(&manifest);
    assert!(matches!(error, IndexError::DuplicateKey { .. }), "{error}");
}

#[test]
fn a_manifest_that_does_not_fit_its_parts_is_refused() {
    let world = world();
    let artifact = world.build(&["k"], &[world.file("in.csv", "k,v\na,1\nb,2\n")]);
    let build = |manifest| {
        IndexBuilder::new(world.path("node/index"))
            .build(&artifact.folder, &manifest, &quiet, &Cancel::new())
            .unwrap_err()
    };
    let mut manifest = artifact.manifest.clone();
    manifest.content_digest = "0".repeat(32);
    let error = build(manifest);
    assert!(matches!(error, IndexError::Content { .. }), "{error}");
    let mut manifest = artifact.manifest.clone();
    manifest.data_bytes = 1;
    let error = build(manifest);
    assert!(matches!(error, IndexError::MoreThanSaid { expected: 1, .. }), "{error}");
    let mut manifest = artifact.manifest.clone();
    manifest.parts.swap(0, 1);
    let error = build(manifest);
    assert!(matches!(error, IndexError::Artifact(ArtifactError::BadManifest { .. })), "{error}");
    assert_eq!(files_below(&world.path("node")), [] as [std::path::PathBuf; 0]);
}

#[test]
fn the_demo_airports_answer_as_their_file_has_them() {
    let world = world();
    let airports = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/airports.csv.zst");
    let artifact = world.build(&["icao"], &[airports.into()]);
    let index = index(&world, &artifact);
    let found = index.get_json(&index.key("00AK").unwrap()).unwrap().unwrap();
    assert_eq!(
        found,
        json!({
            "icao": "00AK", "iata": null, "name": "Lowell Field", "city": "Anchor Point",
            "subd": "Alaska", "country": "US", "elevation": 252.0, "lat": 59.948889,
            "lon": -151.692222, "tz": "America/Anchorage", "lid": "00AK"
        })
    );
    let content = index.verify(&Cancel::new()).unwrap().unwrap();
    assert_eq!(content.content_digest, artifact.manifest.content_digest);
    // The sample's keys are there, and were chosen by hash.
    for record in &artifact.manifest.sample.records {
        assert!(index.get(&index.key(&record.key).unwrap()).unwrap().is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn an_index_agrees_with_a_map(
        records in proptest::collection::btree_map("[a-c]{0,4}", proptest::option::of("[x-z ]{1,60}"), 1..300),
        others in proptest::collection::vec("[a-d]{0,4}", 0..50),
        always in any::<bool>(),
    ) {
        let records: BTreeMap<String, Option<String>> = records;
        let world = world();
        let rows: String = records
            .iter()
            .filter(|(key, _)| !key.is_empty())
            .map(|(key, value)| format!("{key},\"{}\"\n", value.as_deref().unwrap_or("")))
            .collect();
        let mut options = world.options(&["k"]);
        options.allow_empty = true;
        let artifact = build(options, &[world.file("in.csv", format!("k,v\n{rows}"))]).unwrap();
        let compression = if always { IndexCompression::Always } else { IndexCompression::Never };
        let index = IndexBuilder::new(world.path("node/index"))
            .compression(compression)
            .memory_bytes(1 << 20)
            .build(&artifact.folder, &artifact.manifest, &quiet, &Cancel::new())
            .unwrap();
        for key in records.keys().chain(&others).filter(|key| !key.is_empty()) {
            let found = index.get_json(&index.key(key).unwrap()).unwrap();
            let expected = records.get(key).map(|value| json!({"k": key, "v": value}));
            prop_assert_eq!(found, expected);
        }
        scrub(&index, 64).unwrap();
    }
}
