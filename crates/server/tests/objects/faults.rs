//! A bucket that fails: what is tried again, for how long, and what is told in the end.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidegate_api::manifest::Part;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_dataset::build::BuiltArtifact;
use tidegate_dataset::location::{Environment, StoreSettings};
use tidegate_dataset::{Cancel, quiet};
use tidegate_server::Server;

use crate::bucket::{Asked, BUCKET, Bucket, Fault, KEY, SECRET, environment};
use crate::world::{build, options, rows};

struct Large {
    bucket: Bucket,
    folder: TempDir,
    artifact: BuiltArtifact,
    cancel: Cancel,
}

impl Large {
    /// An artifact with one part of a few pieces, complete in the bucket.
    async fn new() -> Self {
        let bucket = Bucket::start().await;
        let folder = tempfile::tempdir().unwrap();
        let input = rows(folder.path(), "large.csv", 24_000, 1_000, 3);
        let artifact = build(folder.path(), 1, &input);
        let large = Self { bucket, folder, artifact, cancel: Cancel::new() };
        assert!(large.part().bytes > 16 * 1024 * 1024, "{}", large.part().bytes);
        let store = large.bucket.store();
        let file = large.artifact.folder.join(&large.part().name);
        store.put_part(large.id(), large.part(), &file, &large.cancel).await.unwrap();
        store.put_manifest(&large.artifact.manifest).await.unwrap();
        large.bucket.asked();
        large
    }

    fn id(&self) -> &str {
        &self.artifact.manifest.artifact_id
    }

    fn part(&self) -> &Part {
        &self.artifact.manifest.parts[0]
    }

    fn store(&self, change: impl FnOnce(&mut StoreSettings)) -> ArtifactStore {
        let mut settings = self.bucket.settings();
        change(&mut settings);
        self.bucket.store_with(&settings, &environment())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn is_built(&self, file: &Path) -> bool {
        std::fs::read(file).unwrap() == std::fs::read(self.artifact.folder.join(&self.part().name)).unwrap()
    }
}

fn is_second_piece(asked: &Asked) -> bool {
    asked.reads_a_part() && asked.range.as_deref().is_some_and(|range| range.starts_with("bytes=8388608-"))
}

fn is_first_piece(asked: &Asked) -> bool {
    asked.reads_a_part() && asked.range.as_deref().is_some_and(|range| range.starts_with("bytes=0-"))
}

#[tokio::test]
async fn a_download_that_broke_goes_on_where_it_stopped() {
    let large = Large::new().await;
    let store = large.store(|settings| settings.retries = Some(0));
    let file = large.path("fetched");
    large.bucket.fail(|asked| is_second_piece(asked).then_some(Fault::Status(500)));
    let error = store.fetch_part(large.id(), large.part(), &file, &large.cancel).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Store { .. }), "{error}");
    assert!(!file.exists());
    large.bucket.well();
    large.bucket.asked();
    store.fetch_part(large.id(), large.part(), &file, &large.cancel).await.unwrap();
    assert!(large.is_built(&file));
    let asked = large.bucket.asked();
    assert!(asked.iter().any(is_second_piece) && !asked.iter().any(is_first_piece), "{asked:?}");
}

#[tokio::test]
async fn a_regions_copy_that_broke_goes_on_where_it_stopped_also_after_a_restart() {
    let large = Large::new().await;
    let source = large.store(|settings| settings.retries = Some(0));
    let region = ArtifactStore::local(large.path("region")).unwrap();
    large.bucket.fail(|asked| is_second_piece(asked).then_some(Fault::Status(503)));
    source.copy_to(&region, large.id(), None, &quiet, &large.cancel).await.unwrap_err();
    assert_eq!(region.list().await.unwrap(), [] as [String; 0]);
    large.bucket.well();
    large.bucket.asked();
    // Another process knows no more than what lies on the disk.
    let region = ArtifactStore::local(large.path("region")).unwrap();
    source.copy_to(&region, large.id(), None, &quiet, &large.cancel).await.unwrap();
    region.verify(large.id(), None, &quiet, &large.cancel).await.unwrap();
    let asked = large.bucket.asked();
    assert!(asked.iter().any(is_second_piece) && !asked.iter().any(is_first_piece), "{asked:?}");
    // What was on the way is gone, and with the artifact all of its folder.
    let folder = large.path("region").join("artifacts").join(large.id());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    region.delete(large.id()).await.unwrap();
    assert!(!folder.exists());
}

#[tokio::test]
async fn what_is_left_of_a_download_and_is_not_its_beginning_is_thrown_away() {
    let large = Large::new().await;
    let (store, file) = (large.bucket.store(), large.path("fetched"));
    let longer = usize::try_from(large.part().bytes).unwrap() + 1;
    for left in [vec![0; 5000], vec![0; longer], vec![0; longer - 1]] {
        std::fs::write(large.path("fetched.partial"), left).unwrap();
        store.fetch_part(large.id(), large.part(), &file, &large.cancel).await.unwrap();
        assert!(large.is_built(&file) && !large.path("fetched.partial").exists());
        std::fs::remove_file(&file).unwrap();
    }
}

#[tokio::test]
async fn errors_broken_connections_and_silence_are_tried_again() {
    let large = Large::new().await;
    let store = large.store(|settings| settings.request_seconds = Some(3));
    let file = large.path("fetched");
    let faults = [Fault::Status(500), Fault::Status(503), Fault::CutAnswer(100_000), Fault::Silence];
    for fault in faults {
        large.bucket.fail_first(2, fault, Asked::reads_a_part);
        store.fetch_part(large.id(), large.part(), &file, &large.cancel).await.unwrap();
        assert!(large.is_built(&file), "{fault:?}");
        std::fs::remove_file(&file).unwrap();
    }
    // Sending too: each piece is sent until it is there.
    let other = Bucket::start().await;
    other.fail_first(2, Fault::Status(500), Asked::sends_a_part);
    let part = large.artifact.folder.join(&large.part().name);
    other.store().put_part(large.id(), large.part(), &part, &large.cancel).await.unwrap();
    assert!(large.is_built(&other.file(&format!("artifacts/{}/{}", large.id(), large.part().name))));
}

#[tokio::test]
async fn a_store_that_stays_away_is_given_up_within_the_limit() {
    let large = Large::new().await;
    let store = large.store(|settings| settings.retries = Some(2));
    large.bucket.fail(|asked| asked.reads_a_part().then_some(Fault::Status(500)));
    large.bucket.asked();
    let error = store.fetch_part(large.id(), large.part(), &large.path("x"), &large.cancel).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Store { .. }), "{error}");
    assert_eq!(large.bucket.asked().iter().filter(|asked| asked.reads_a_part()).count(), 3);
}

/// What a server says that is started with these settings of a bucket.
async fn refusal(bucket: &Bucket, settings: StoreSettings, environment: Environment) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), bucket);
    options.config.artifacts = settings;
    options.environment = environment;
    let Err(error) = Server::start(options).await else { panic!("it must not start") };
    let error = error.to_string();
    assert!(!error.contains(SECRET) && !error.contains('<') && error.lines().count() == 1, "{error}");
    error
}

#[tokio::test]
async fn wrong_credentials_are_told_once_with_what_to_do_and_without_a_secret() {
    let bucket = Bucket::start().await;
    let keys = |key: &str, secret: &str| {
        Environment::of([("AWS_ACCESS_KEY_ID", key.to_owned()), ("AWS_SECRET_ACCESS_KEY", secret.to_owned())])
    };
    let wrong_secret = format!("{SECRET}-another");
    let url = format!("s3://{BUCKET}/t at {}", bucket.endpoint);
    for environment in [keys("nobody", SECRET), keys(KEY, &wrong_secret)] {
        let error = refusal(&bucket, bucket.settings(), environment).await;
        assert!(error.contains(&url), "{error}");
        assert!(error.contains("does not know these credentials") && error.contains("config show"), "{error}");
    }
    let profile = StoreSettings { profile: Some("absent".to_owned()), ..bucket.settings() };
    let error = refusal(&bucket, profile, environment()).await;
    assert!(error.contains("no profile `absent`") && error.contains("AWS_PROFILE"), "{error}");
}

#[tokio::test]
async fn a_bucket_that_is_not_there_or_can_not_be_reached_is_told_by_name() {
    let bucket = Bucket::start().await;
    // The server of these tests makes buckets that are written to; others do not.
    bucket.fail(|asked| asked.path.starts_with("/absent").then_some(Fault::Refusal(404, "NoSuchBucket")));
    let absent = StoreSettings { url: Some("s3://absent/x".to_owned()), ..bucket.settings() };
    let error = refusal(&bucket, absent, environment()).await;
    assert!(error.contains("s3://absent/x") && error.contains("no such bucket"), "{error}");
    let nowhere =
        StoreSettings { endpoint: Some("http://127.0.0.1:1".to_owned()), retries: Some(0), ..bucket.settings() };
    let error = refusal(&bucket, nowhere, environment()).await;
    assert!(error.contains("http://127.0.0.1:1") && error.contains("can't be reached"), "{error}");
}
