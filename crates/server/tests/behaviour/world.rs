//! A server with a folder of its own, and what tests do with it again and again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tidegate_client::api::manifest::Manifest;
use tidegate_client::api::{PushPhase, PushStart, PushState, Role, StoreCreate, TokenCreate, TokenCreated};
use tidegate_client::{Client, Options as ClientOptions, PushJob, PushOptions, PushOutcome, Token};
use tidegate_dataset::build::{BuildOptions, Builder, BuiltArtifact};
use tidegate_dataset::{Cancel, quiet};
use tidegate_server::access::config::Authentication;
use tidegate_server::{Handle, Options, Server};

/// No test waits longer than this for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) server: Option<Handle>,
    pub(crate) client: Client,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(settle: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path());
        settle(&mut options);
        let server = Server::start(options).await.unwrap();
        let client = Client::new(&server.url()).unwrap();
        World { folder, server: Some(server), client }
    }

    /// A server that asks everybody for a token; the world's own client is an admin.
    pub(crate) async fn guarded() -> Self {
        Self::guarded_with(|_| {}).await
    }

    pub(crate) async fn guarded_with(settle: impl FnOnce(&mut Options)) -> Self {
        let mut world = Self::start_with(|options| {
            options.config.access.authentication = Some(Authentication::Required);
            settle(options);
        })
        .await;
        let token = world.server.as_mut().unwrap().take_first_token().expect("there was no token before");
        world.client = world.client_with(&token);
        world
    }

    /// A client that shows this token.
    pub(crate) fn client_with(&self, token: &str) -> Client {
        let mut options = ClientOptions::new(self.url());
        options.token = Some(Token::new(token).unwrap());
        Client::with_options(options).unwrap()
    }

    /// A token that the world's own client makes.
    pub(crate) async fn token(&self, name: &str, role: Role, owner: Option<&str>) -> TokenCreated {
        let create = TokenCreate {
            name: name.to_owned(),
            role,
            team: owner.filter(|_| role == Role::Team).map(str::to_owned),
            region: owner.filter(|_| role == Role::Region).map(str::to_owned),
            expires_in_ms: None,
        };
        self.client.create_token(&create).await.unwrap()
    }

    /// Ends the server in order and starts it again on what it left.
    pub(crate) async fn restart(&mut self) {
        self.server.take().unwrap().shutdown().await;
        let server = Server::start(options(self.folder.path())).await.unwrap();
        self.client = Client::new(&server.url()).unwrap();
        self.server = Some(server);
    }

    pub(crate) fn url(&self) -> String {
        self.server.as_ref().unwrap().url()
    }

    pub(crate) async fn end(mut self) {
        self.server.take().unwrap().shutdown().await;
    }

    /// A store `s` with the key `k`.
    pub(crate) async fn store(&self) {
        let store = StoreCreate {
            name: "s".to_owned(),
            key_columns: vec!["k".to_owned()],
            partitions: Some(2),
            ..StoreCreate::default()
        };
        self.client.create_store(&store).await.unwrap();
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Rows `k0…` with a value that says which version they are of.
    pub(crate) fn rows(&self, name: &str, count: usize, value: &str) -> PathBuf {
        let mut text = String::from("k,v\n");
        for row in 0..count {
            text.push_str(&format!("k{row},{value}{row}\n"));
        }
        self.file(name, &text)
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

    /// Pushes a file and follows the push to its end.
    pub(crate) async fn push(&self, id: &str, path: &Path) -> PushOutcome {
        let outcome = self.job(id, path).run(&self.client, &mut |_| {}).await;
        let outcome = outcome.unwrap();
        assert!(!outcome.timed_out, "{outcome:#?}");
        outcome
    }

    /// Waits until a push is where it should be.
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
        let work = self.folder.path().join(format!("built-{id}"));
        let mut options = BuildOptions::new(accepted.key_columns, work);
        options.partitions = accepted.partitions;
        let built = Builder::new(options).build(&[path.to_path_buf()], &quiet, &Cancel::new()).unwrap();
        let schema = built.manifest.schema.clone();
        self.client.put_schema(id, schema).await.unwrap();
        self.until(id, |state| state.phase == PushPhase::Upload).await;
        built
    }

    pub(crate) async fn put_all(&self, id: &str, built: &BuiltArtifact) {
        for part in &built.manifest.parts {
            let file = built.folder.join(&part.name);
            self.client.put_part(id, &part.name, &part.sha256, &file).await.unwrap();
        }
    }

    /// What each region serves of the store `s`.
    pub(crate) async fn serving(&self) -> BTreeMap<String, u64> {
        self.client.store("s").await.unwrap().serving
    }

    /// A request that the client would never make.
    pub(crate) async fn raw(&self, request: reqwest::RequestBuilder) -> (u16, serde_json::Value) {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
        (status, body)
    }
}

pub(crate) fn options(folder: &Path) -> Options {
    let mut options = Options::new(folder.join("data"));
    options.listen = Some("127.0.0.1:0".parse().unwrap());
    options
}

/// What an error must have, whatever went wrong.
pub(crate) fn assert_error(body: &serde_json::Value, about: &str) {
    for text in ["code", "what", "why", "consequences", "countermeasures"] {
        let value = body[text].as_str().unwrap_or_default();
        assert!(!value.trim().is_empty(), "{about}: `{text}` is empty in {body}");
    }
    assert!(body["retryable"].is_boolean(), "{about}: {body}");
}

/// The same artifact with other parts than were built.
pub(crate) fn manifest_without_last(manifest: &Manifest) -> Manifest {
    let mut manifest = manifest.clone();
    manifest.parts.pop();
    manifest
}
