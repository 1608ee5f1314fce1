//! Artifacts in a store: D6, D7, D10, and that nothing half is ever seen.

use std::path::PathBuf;
use std::time::Duration;

use tidegate_api::manifest::Part;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore, check_manifest};
use tidegate_dataset::build::{BuiltArtifact, MANIFEST_FILE};
use tidegate_dataset::{Cancel, quiet};

use crate::support::{World, build, files_below};

struct Stored {
    world: World,
    artifact: BuiltArtifact,
    store: ArtifactStore,
    cancel: Cancel,
}

impl Stored {
    fn new() -> Self {
        let world = World::new();
        let rows: String = (0..2000).map(|n| format!("{n},v{n}\n")).collect();
        let artifact = world.build(&["k"], &[world.file("in.csv", format!("k,v\n{rows}"))]);
        let store = ArtifactStore::local(world.path("store")).unwrap();
        Self { world, artifact, store, cancel: Cancel::new() }
    }

    fn id(&self) -> &str {
        &self.artifact.manifest.artifact_id
    }

    fn parts(&self) -> &[Part] {
        &self.artifact.manifest.parts
    }

    fn in_store(&self, name: &str) -> PathBuf {
        self.world.path(&format!("store/artifacts/{}/{name}", self.id()))
    }

    async fn put(&self, part: &Part) -> Result<(), ArtifactError> {
        let file = self.artifact.folder.join(&part.name);
        self.store.put_part(self.id(), part, &file, &self.cancel).await
    }

    async fn put_all(&self) -> String {
        for part in self.parts() {
            self.put(part).await.unwrap();
        }
        self.store.put_manifest(&self.artifact.manifest).await.unwrap()
    }
}

#[tokio::test]
async fn what_was_stored_is_what_was_built() {
    let stored = Stored::new();
    let digest = stored.put_all().await;
    assert_eq!(digest, stored.artifact.manifest_digest);
    assert_eq!(stored.store.list().await.unwrap(), [stored.id()]);
    let found = stored.store.manifest(stored.id()).await.unwrap();
    assert_eq!(found.manifest, stored.artifact.manifest);
    assert_eq!(found.digest, digest);
    let verified = stored.store.verify(stored.id(), Some(&digest), &quiet, &stored.cancel).await.unwrap();
    assert_eq!(verified, found);
    let fetched = stored.world.path("fetched");
    for part in stored.parts() {
        stored.store.fetch_part(stored.id(), part, &fetched, &stored.cancel).await.unwrap();
        let built = std::fs::read(stored.artifact.folder.join(&part.name)).unwrap();
        assert!(std::fs::read(&fetched).unwrap() == built);
    }
    stored.store.delete(stored.id()).await.unwrap();
    stored.store.delete(stored.id()).await.unwrap();
    assert_eq!(files_below(&stored.world.path("store")).len(), 0);
    let gone = stored.store.manifest(stored.id()).await;
    assert!(matches!(gone, Err(ArtifactError::NotFound { .. })));
}

#[tokio::test]
async fn d6_an_upload_that_stopped_is_not_listed_and_goes_on_with_what_is_missing() {
    let stored = Stored::new();
    stored.put(&stored.parts()[0]).await.unwrap();
    stored.put(&stored.parts()[2]).await.unwrap();
    assert_eq!(stored.store.list().await.unwrap(), [] as [String; 0]);
    assert_eq!(stored.store.list_with_incomplete().await.unwrap(), [stored.id()]);
    assert!(matches!(stored.store.manifest(stored.id()).await, Err(ArtifactError::NotFound { .. })));
    let has = stored.store.has_parts(stored.id(), stored.parts()).await.unwrap();
    assert_eq!(has, [true, false, true, false]);
    let refused = stored.store.put_manifest(&stored.artifact.manifest).await.unwrap_err();
    let ArtifactError::Missing { parts, .. } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(*parts, [stored.parts()[1].name.clone(), stored.parts()[3].name.clone()]);
    stored.put(&stored.parts()[1]).await.unwrap();
    stored.put(&stored.parts()[3]).await.unwrap();
    stored.store.put_manifest(&stored.artifact.manifest).await.unwrap();
    assert_eq!(stored.store.list().await.unwrap(), [stored.id()]);
}

#[tokio::test]
async fn d6_a_part_that_is_shorter_longer_or_other_is_never_stored() {
    let stored = Stored::new();
    let part = &stored.parts()[0];
    let bytes = std::fs::read(stored.artifact.folder.join(&part.name)).unwrap();
    let mut longer = bytes.clone();
    longer.push(0);
    let mut other = bytes.clone();
    other[bytes.len() / 2] ^= 1;
    for content in [&bytes[..bytes.len() - 1], &[], &longer, &other] {
        let file = stored.world.file("part", content);
        let error = stored.store.put_part(stored.id(), part, &file, &stored.cancel).await.unwrap_err();
        assert!(matches!(&error, ArtifactError::Damaged { file, .. } if *file == part.name), "{error}");
        assert_eq!(files_below(&stored.world.path("store")).len(), 0);
    }
    // One of another size that got there in another way does not count either.
    stored.put(part).await.unwrap();
    std::fs::write(stored.in_store(&part.name), &longer).unwrap();
    assert_eq!(stored.store.has_parts(stored.id(), std::slice::from_ref(part)).await.unwrap(), [false]);
}

#[tokio::test]
async fn d7_each_flipped_byte_of_part_and_manifest_is_found_and_mended_by_copying_again() {
    let world = World::new();
    let mut options = world.options(&["k"]);
    options.partitions = 1;
    let artifact = build(options, &[world.file("in.csv", "k,v\na,1\nb,2\n")]).unwrap();
    let id = &artifact.manifest.artifact_id;
    let part = &artifact.manifest.parts[0];
    let cancel = Cancel::new();
    let source = ArtifactStore::local(world.path("source")).unwrap();
    let file = artifact.folder.join(&part.name);
    source.put_part(id, part, &file, &cancel).await.unwrap();
    let digest = source.put_manifest(&artifact.manifest).await.unwrap();
    let region = ArtifactStore::local(world.path("region")).unwrap();
    let copied = source.copy_to(&region, id, None, &quiet, &cancel).await.unwrap();
    assert_eq!((copied.parts_copied, copied.parts_present), (1, 0));
    assert_eq!(copied.manifest.digest, digest);
    let again = source.copy_to(&region, id, Some(&digest), &quiet, &cancel).await.unwrap();
    assert_eq!((again.parts_copied, again.parts_present), (0, 1));

    let in_region = format!("region/artifacts/{id}");
    for name in [part.name.clone(), format!("manifest-{digest}.json")] {
        let path = world.path(&format!("{in_region}/{name}"));
        let whole = std::fs::read(&path).unwrap();
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 1 << (position % 8);
            std::fs::write(&path, &damaged).unwrap();
            let error = region.verify(id, None, &quiet, &cancel).await.unwrap_err();
            assert!(error.to_string().contains(&name), "byte {position}: {error}");
            if name == part.name {
                let fetched = region.fetch_part(id, part, &world.path("x"), &cancel).await;
                assert!(matches!(fetched, Err(ArtifactError::Damaged { .. })));
                assert!(!world.path("x").exists() && !world.path("x.partial").exists());
            }
            if position % 50 == 0 {
                source.copy_to(&region, id, None, &quiet, &cancel).await.unwrap();
                assert!(std::fs::read(&path).unwrap() == whole);
            }
        }
        std::fs::write(&path, &whole).unwrap();

        // At the source: the copy names the file, and an empty region gets no manifest.
        let path = world.path(&format!("source/artifacts/{id}/{name}"));
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let empty = ArtifactStore::local(world.path("empty")).unwrap();
        let error = source.copy_to(&empty, id, None, &quiet, &cancel).await.unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
        assert_eq!(files_below(&world.path("empty")).len(), 0);
        std::fs::write(&path, &whole).unwrap();
    }
}

#[tokio::test]
async fn a_cancelled_copy_is_not_listed_and_goes_on_later() {
    let stored = Stored::new();
    stored.put_all().await;
    let region = ArtifactStore::local(stored.world.path("region")).unwrap();
    let cancel = Cancel::new();
    let reports = std::sync::atomic::AtomicUsize::new(0);
    let stop = |_| {
        if reports.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1 {
            cancel.cancel();
        }
    };
    let error = stored.store.copy_to(&region, stored.id(), None, &stop, &cancel).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Cancelled), "{error}");
    assert_eq!(region.list().await.unwrap(), [] as [String; 0]);
    let copied = stored.store.copy_to(&region, stored.id(), None, &quiet, &stored.cancel).await.unwrap();
    assert!(copied.parts_present > 0 && copied.parts_copied > 0, "{copied:?}");
    assert_eq!(region.list().await.unwrap(), [stored.id()]);
}

#[tokio::test]
async fn the_same_parts_with_another_manifest_are_one_artifact() {
    let stored = Stored::new();
    let first = stored.put_all().await;
    let mut manifest = stored.artifact.manifest.clone();
    manifest.input_digest = "0".repeat(64);
    let second = stored.store.put_manifest(&manifest).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(stored.store.list().await.unwrap(), [stored.id()]);
    for (digest, expected) in [(&first, &stored.artifact.manifest), (&second, &manifest)] {
        let found = stored.store.manifest_with_digest(stored.id(), digest).await.unwrap();
        assert_eq!(found.manifest, *expected);
    }
}

#[tokio::test]
async fn names_from_outside_never_leave_the_artifact() {
    let stored = Stored::new();
    let mut part = stored.parts()[0].clone();
    let file = stored.artifact.folder.join(&part.name);
    for name in ["../x", "a/b", "", "..", ".hidden", "manifest-1.json", "a b"] {
        part.name = name.to_owned();
        let error = stored.store.put_part(stored.id(), &part, &file, &stored.cancel).await;
        assert!(matches!(error, Err(ArtifactError::BadName { .. })), "{name}");
    }
    for id in ["", "..", "../../etc", &"g".repeat(64)] {
        assert!(matches!(stored.store.manifest(id).await, Err(ArtifactError::BadName { .. })), "{id}");
        assert!(matches!(stored.store.delete(id).await, Err(ArtifactError::BadName { .. })), "{id}");
    }
    assert!(stored.artifact.folder.join(MANIFEST_FILE).exists());
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let stored = Stored::new();
    let good = &stored.artifact.manifest;
    check_manifest(good).unwrap();
    type Change = fn(&mut tidegate_api::manifest::Manifest);
    let changes: [(Change, &str); 10] = [
        (|m| m.format = 2, "format is 2"),
        (|m| m.hash_function = String::from("md5"), "hash function"),
        (|m| m.partition_count = 5, "4 parts for 5 partitions"),
        (|m| m.record_count += 1, "not the sums"),
        (|m| m.bytes += 1, "not the sums"),
        (|m| m.parts[0].name = String::from("../x"), "no usable name"),
        (|m| m.parts[0].name = m.parts[1].name.clone(), "is in it twice"),
        (
            |m| {
                m.partition_count = 4_097;
                m.parts = vec![m.parts[0].clone(); 4_097];
            },
            "4097 partitions, there are at most 4096",
        ),
        (|m| m.parts[0].sha256 = "0".repeat(64), "are those of artifact"),
        (|m| m.key_columns = vec![String::from("x")], "no key column `x`"),
    ];
    for (change, expected) in changes {
        let mut manifest = good.clone();
        change(&mut manifest);
        let error = check_manifest(&manifest).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn d9_leftovers_of_cut_off_uploads_are_removed_by_age() {
    let stored = Stored::new();
    stored.put_all().await;
    let leftover = stored.in_store("part-00000-of-00004.parquet#3");
    std::fs::write(&leftover, "half").unwrap();
    assert_eq!(stored.store.list().await.unwrap(), [stored.id()]);
    assert_eq!(stored.store.remove_leftovers(Duration::from_secs(3600)).unwrap(), 0);
    assert!(leftover.exists());
    assert_eq!(stored.store.remove_leftovers(Duration::ZERO).unwrap(), 1);
    assert!(!leftover.exists());
    stored.store.verify(stored.id(), None, &quiet, &stored.cancel).await.unwrap();
}

#[tokio::test]
async fn what_a_manifest_counts_is_held_against_the_footers_of_its_parts() {
    let stored = Stored::new();
    for part in stored.parts() {
        stored.put(part).await.unwrap();
    }
    let honest = &stored.artifact.manifest;
    stored.store.check_counts(honest).await.unwrap();
    let refused = async |lie: fn(&mut tidegate_api::manifest::Manifest)| {
        let mut manifest = honest.clone();
        lie(&mut manifest);
        let error = stored.store.check_counts(&manifest).await.unwrap_err();
        assert!(matches!(error, ArtifactError::BadManifest { .. }), "{error}");
        error.to_string()
    };
    let rows = honest.parts[0].rows;
    let text = refused(|manifest| manifest.parts[0].rows += 1).await;
    assert!(text.contains(&format!("has {} rows, and the part itself has {rows}", rows + 1)), "{text}");
    let text = refused(|manifest| {
        manifest.statistics[1].nulls += 7;
        manifest.statistics[1].count -= 7;
    })
    .await;
    assert!(text.contains("counts 7 nulls, and its parts have 0"), "{text}");
    let text = refused(|manifest| manifest.statistics[1].nulls += 1).await;
    assert!(text.contains("2000 values and 1 nulls, and it has 2000 records"), "{text}");
    // What is no Parquet file has no footer, however long it is.
    let first = stored.in_store(&honest.parts[0].name);
    let whole = std::fs::read(&first).unwrap();
    for damage in [vec![0; whole.len()], [&vec![0xff; whole.len() - 4][..], b"PAR1"].concat(), {
        let mut damaged = whole.clone();
        let end = whole.len() - 8;
        let length = u32::from_le_bytes(whole[end..end + 4].try_into().unwrap()) as usize;
        damaged[end - length..end - length + 40].fill(0xff);
        damaged
    }] {
        std::fs::write(&first, damage).unwrap();
        let text = refused(|_| {}).await;
        assert!(text.contains("is no Parquet file"), "{text}");
    }
}
