//! Artifacts to put into a bucket, and servers that keep theirs there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use tempfile::TempDir;
use tidegate_client::api::{PushPhase, PushStart, PushState, StoreCreate};
use tidegate_client::{Client, PushJob, PushOptions, PushOutcome};
use tidegate_dataset::build::{BuildOptions, Builder, BuiltArtifact};
use tidegate_dataset::{Cancel, quiet};
use tidegate_server::{Handle, Options, Server};

use crate::bucket::{Bucket, environment};

/// No test waits longer than this for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// A file `k,v` of so many rows with values of so many characters that don't compress well.
pub(crate) fn rows(folder: &Path, name: &str, count: usize, width: usize, seed: u64) -> PathBuf {
    let mut text = String::from("k,v\n");
    let mut state = seed | 1;
    for row in 0..count {
        text.push_str(&format!("k{row},"));
        for _ in 0..width {
            // Knuth's generator: the same characters for the same seed, and hardly any pattern for a compressor.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push(char::from(
                b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[(state >> 58) as usize],
            ));
        }
        text.push('\n');
    }
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

pub(crate) fn build(folder: &Path, partitions: u32, input: &Path) -> BuiltArtifact {
    let name = input.file_stem().unwrap().to_string_lossy().into_owned();
    let mut options = BuildOptions::new(["k"], folder.join(format!("built-{name}")));
    options.partitions = partitions;
    options.threads = 2;
    Builder::new(options).build(&[input.to_path_buf()], &quiet, &Cancel::new()).unwrap()
}

/// A server whose artifacts are in a bucket.
pub(crate) struct World {
    pub(crate) bucket: Bucket,
    pub(crate) folder: TempDir,
    pub(crate) server: Option<Handle>,
    pub(crate) client: Client,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(settle: impl FnOnce(&mut Options)) -> Self {
        let bucket = Bucket::start().await;
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), &bucket);
        settle(&mut options);
        let server = Server::start(options).await.unwrap();
        let client = Client::new(&server.url()).unwrap();
        let store = StoreCreate {
            name: "s".to_owned(),
            key_columns: vec!["k".to_owned()],
            partitions: Some(2),
            ..StoreCreate::default()
        };
        client.create_store(&store).await.unwrap();
        Self { bucket, folder, server: Some(server), client }
    }

    pub(crate) async fn restart(&mut self) {
        self.server.take().unwrap().shutdown().await;
        let server = Server::start(options(self.folder.path(), &self.bucket)).await.unwrap();
        self.client = Client::new(&server.url()).unwrap();
        self.server = Some(server);
    }

    /// What lies in the bucket of parts on their way.
    pub(crate) async fn left(&self, below: &str) -> Vec<String> {
        let store = self.bucket.store();
        let listed = store.objects().list(Some(&format!("uploads{below}").into()));
        listed.map(|meta| meta.unwrap().location.to_string()).collect().await
    }

    pub(crate) async fn end(mut self) {
        self.server.take().unwrap().shutdown().await;
    }

    pub(crate) fn rows(&self, name: &str, count: usize, width: usize, seed: u64) -> PathBuf {
        rows(self.folder.path(), name, count, width, seed)
    }

    pub(crate) fn job(&self, id: &str, path: &Path) -> PushJob {
        PushJob {
            id: id.to_owned(),
            store: "s".to_owned(),
            paths: vec![path.to_path_buf()],
            options: PushOptions {
                work: Some(self.folder.path().join("work")),
                timeout: Some(LIMIT),
                patience: LIMIT,
                ..PushOptions::default()
            },
        }
    }

    pub(crate) async fn push(&self, id: &str, path: &Path) -> PushOutcome {
        let outcome = self.job(id, path).run(&self.client, &mut |_| {}).await.unwrap();
        assert!(!outcome.timed_out, "{outcome:#?}");
        outcome
    }

    pub(crate) async fn until(&self, id: &str, there: impl Fn(&PushState) -> bool) -> PushState {
        let mut events = self.client.watch_push(id);
        let found = tokio::time::timeout(LIMIT, async {
            while let Some(view) = events.next().await.unwrap() {
                if there(&view.state) {
                    return view.state;
                }
            }
            self.client.push(id).await.unwrap().state
        });
        let state = found.await.expect("the push did not get there in time");
        assert!(there(&state), "{state:?}");
        state
    }

    /// A push that has come to the upload by the protocol, and what it has to send.
    pub(crate) async fn upload(&self, id: &str, path: &Path) -> BuiltArtifact {
        let start = PushStart { id: id.to_owned(), store: "s".to_owned(), ..PushStart::default() };
        let accepted = self.client.start_push(&start).await.unwrap();
        self.until(id, |state| state.phase == PushPhase::Build).await;
        let built = build(self.folder.path(), accepted.partitions, path);
        self.client.put_schema(id, built.manifest.schema.clone()).await.unwrap();
        self.until(id, |state| state.phase == PushPhase::Upload).await;
        built
    }
}

pub(crate) fn options(folder: &Path, bucket: &Bucket) -> Options {
    let mut options = Options::new(folder.join("data"));
    options.listen = Some("127.0.0.1:0".parse().unwrap());
    options.config.artifacts = bucket.settings();
    options.environment = environment();
    options
}
