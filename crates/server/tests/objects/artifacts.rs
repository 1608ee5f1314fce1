//! D6 and D7 on a bucket: what is stored, copied and read, and what is found out about it.

use tempfile::TempDir;
use tidegate_api::manifest::Part;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_dataset::build::BuiltArtifact;
use tidegate_dataset::{Cancel, quiet};

use crate::bucket::Bucket;
use crate::world::{build, rows};

struct Stored {
    bucket: Bucket,
    folder: TempDir,
    artifact: BuiltArtifact,
    store: ArtifactStore,
    cancel: Cancel,
}

impl Stored {
    async fn new() -> Self {
        let bucket = Bucket::start().await;
        let folder = tempfile::tempdir().unwrap();
        let input = rows(folder.path(), "in.csv", 500, 20, 1);
        let artifact = build(folder.path(), 4, &input);
        let store = bucket.store();
        Self { bucket, folder, artifact, store, cancel: Cancel::new() }
    }

    fn id(&self) -> &str {
        &self.artifact.manifest.artifact_id
    }

    fn parts(&self) -> &[Part] {
        &self.artifact.manifest.parts
    }

    async fn put(&self, part: &Part) {
        let file = self.artifact.folder.join(&part.name);
        self.store.put_part(self.id(), part, &file, &self.cancel).await.unwrap();
    }

    async fn put_all(&self) -> String {
        for part in self.parts() {
            self.put(part).await;
        }
        self.store.put_manifest(&self.artifact.manifest).await.unwrap()
    }
}

#[tokio::test]
async fn what_was_stored_in_a_bucket_is_what_was_built_and_goes_when_deleted() {
    let stored = Stored::new().await;
    let digest = stored.put_all().await;
    assert_eq!(digest, stored.artifact.manifest_digest);
    assert_eq!(stored.store.list().await.unwrap(), [stored.id()]);
    let found = stored.store.manifest(stored.id()).await.unwrap();
    assert_eq!(found.manifest, stored.artifact.manifest);
    stored.store.verify(stored.id(), Some(&digest), &quiet, &stored.cancel).await.unwrap();
    let fetched = stored.folder.path().join("fetched");
    for part in stored.parts() {
        stored.store.fetch_part(stored.id(), part, &fetched, &stored.cancel).await.unwrap();
        let built = std::fs::read(stored.artifact.folder.join(&part.name)).unwrap();
        assert!(std::fs::read(&fetched).unwrap() == built);
    }
    // Below the prefix, and nowhere else.
    assert!(stored.bucket.file(&format!("artifacts/{}", stored.id())).is_dir());
    stored.store.delete(stored.id()).await.unwrap();
    stored.store.delete(stored.id()).await.unwrap();
    assert_eq!(stored.store.list_with_incomplete().await.unwrap(), [] as [String; 0]);
}

#[tokio::test]
async fn d6_an_upload_to_a_bucket_that_stopped_is_not_listed_and_goes_on_with_what_is_missing() {
    let stored = Stored::new().await;
    stored.put(&stored.parts()[0]).await;
    stored.put(&stored.parts()[2]).await;
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
    stored.put(&stored.parts()[1]).await;
    stored.put(&stored.parts()[3]).await;
    stored.store.put_manifest(&stored.artifact.manifest).await.unwrap();
    assert_eq!(stored.store.list().await.unwrap(), [stored.id()]);
}

#[tokio::test]
async fn d6_a_part_that_is_shorter_longer_or_other_is_never_stored_in_a_bucket() {
    let stored = Stored::new().await;
    let part = &stored.parts()[0];
    let bytes = std::fs::read(stored.artifact.folder.join(&part.name)).unwrap();
    let mut longer = bytes.clone();
    longer.push(0);
    let mut other = bytes.clone();
    other[bytes.len() / 2] ^= 1;
    let file = stored.folder.path().join("part");
    for content in [&bytes[..bytes.len() - 1], &[], &longer, &other] {
        std::fs::write(&file, content).unwrap();
        let error = stored.store.put_part(stored.id(), part, &file, &stored.cancel).await.unwrap_err();
        assert!(matches!(&error, ArtifactError::Damaged { file, .. } if *file == part.name), "{error}");
        assert_eq!(stored.store.list_with_incomplete().await.unwrap(), [] as [String; 0]);
    }
}

#[tokio::test]
async fn d7_flipped_bytes_in_buckets_are_found_and_mended_by_copying_again() {
    let stored = Stored::new().await;
    let digest = stored.put_all().await;
    // A region whose own copy is in a bucket too.
    let other = Bucket::start().await;
    let region = other.store();
    let copied = stored.store.copy_to(&region, stored.id(), None, &quiet, &stored.cancel).await.unwrap();
    assert_eq!((copied.parts_copied, copied.parts_present), (4, 0));
    let part = &stored.parts()[0];
    for name in [part.name.clone(), format!("manifest-{digest}.json")] {
        let object = format!("artifacts/{}/{name}", stored.id());
        let file = other.file(&object);
        let whole = std::fs::read(&file).unwrap();
        // A step that has no factor with the size: over the whole file, and short enough for a round trip each.
        for position in (0..whole.len()).step_by(whole.len() / 40 + 1) {
            let mut damaged = whole.clone();
            damaged[position] ^= 1 << (position % 8);
            std::fs::write(&file, &damaged).unwrap();
            let error = region.verify(stored.id(), None, &quiet, &stored.cancel).await.unwrap_err();
            assert!(error.to_string().contains(&name), "byte {position}: {error}");
        }
        stored.store.copy_to(&region, stored.id(), None, &quiet, &stored.cancel).await.unwrap();
        assert!(std::fs::read(&file).unwrap() == whole);

        // At the source: the copy names the file, and an empty region gets no manifest.
        let file = stored.bucket.file(&object);
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let empty = ArtifactStore::local(folder.path()).unwrap();
        let error = stored.store.copy_to(&empty, stored.id(), None, &quiet, &stored.cancel).await.unwrap_err();
        assert!(error.to_string().contains(&name), "{error}");
        assert_eq!(empty.list().await.unwrap(), [] as [String; 0]);
        std::fs::write(&file, &whole).unwrap();
    }
}

#[tokio::test]
async fn a_large_part_goes_up_and_comes_down_in_pieces() {
    let bucket = Bucket::start().await;
    let folder = tempfile::tempdir().unwrap();
    let input = rows(folder.path(), "large.csv", 12_000, 1_000, 7);
    let artifact = build(folder.path(), 1, &input);
    let (id, part) = (&artifact.manifest.artifact_id, &artifact.manifest.parts[0]);
    assert!(part.bytes > 8 * 1024 * 1024, "{}", part.bytes);
    let (store, cancel) = (bucket.store(), Cancel::new());
    store.put_part(id, part, &artifact.folder.join(&part.name), &cancel).await.unwrap();
    let pieces = bucket.asked().iter().filter(|asked| asked.query.contains("partNumber=")).count();
    assert_eq!(pieces as u64, part.bytes.div_ceil(8 * 1024 * 1024));
    store.put_manifest(&artifact.manifest).await.unwrap();
    store.verify(id, None, &quiet, &cancel).await.unwrap();
    let ranges: Vec<_> = bucket.asked().into_iter().filter(crate::bucket::Asked::reads_a_part).collect();
    assert_eq!(ranges.len(), pieces, "{ranges:?}");
}
