//! An S3 server within the test: it checks signatures, keeps objects as files, writes down what it is asked, and fails
//! when it is told to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use parking_lot::Mutex;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_dataset::location::{Environment, StorePlan, StoreSettings};
use tokio::net::TcpListener;
use tower::Service;

/// Short, as the prefix is: the tests' server makes names of files from bucket and key, and they may have 255 bytes.
pub(crate) const BUCKET: &str = "dat";
pub(crate) const KEY: &str = "the-access-key";
pub(crate) const SECRET: &str = "the-secret-that-nobody-may-see";

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    /// The header `Range`.
    pub(crate) range: Option<String>,
}

impl Asked {
    /// Whether a URL was used that somebody else has signed.
    pub(crate) fn is_presigned(&self) -> bool {
        self.query.contains("X-Amz-Signature=")
    }

    /// Whether bytes of a part were sent: a chunk, or a whole object below `artifacts/` that is no manifest.
    pub(crate) fn sends_a_part(&self) -> bool {
        self.method == Method::PUT && self.path.contains("/artifacts/") && !self.path.contains("/manifest-")
    }

    pub(crate) fn reads_a_part(&self) -> bool {
        self.method == Method::GET && self.path.contains("/artifacts/") && self.path.ends_with(".parquet")
    }
}

/// What is done instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This status, and an error in S3's form.
    Status(u16),
    /// The same with this code in it.
    Refusal(u16, &'static str),
    /// Nothing ever comes.
    Silence,
    /// Of the answer's body only so many bytes come, then the connection breaks.
    CutAnswer(usize),
    /// The request's body is read up to so many bytes, then the connection breaks.
    CutRequest(usize),
}

type Rule = Box<dyn FnMut(&Asked) -> Option<Fault> + Send>;

struct Shared {
    s3: S3Service,
    asked: Mutex<Vec<Asked>>,
    rule: Mutex<Option<Rule>>,
}

pub(crate) struct Bucket {
    pub(crate) folder: TempDir,
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Bucket {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut builder = S3ServiceBuilder::new(FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let shared = Arc::new(Shared { s3: builder.build(), asked: Mutex::new(Vec::new()), rule: Mutex::new(None) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { folder, endpoint, shared, serving }
    }

    /// Settings by which a server reaches it; the credentials are in [`environment`].
    pub(crate) fn settings(&self) -> StoreSettings {
        StoreSettings {
            url: Some(format!("s3://{BUCKET}/t")),
            endpoint: Some(self.endpoint.clone()),
            allow_http: Some(true),
            ..StoreSettings::default()
        }
    }

    pub(crate) fn store(&self) -> ArtifactStore {
        self.store_with(&self.settings(), &environment())
    }

    pub(crate) fn store_with(&self, settings: &StoreSettings, environment: &Environment) -> ArtifactStore {
        StorePlan::new(settings, Path::new("/nowhere"), environment).unwrap().open().unwrap()
    }

    /// The file that an object is kept in.
    pub(crate) fn file(&self, object: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join("t").join(object)
    }

    /// What was asked since this was last called.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.shared.asked.lock())
    }

    /// Fails as the rule says, until another rule is given.
    pub(crate) fn fail(&self, rule: impl FnMut(&Asked) -> Option<Fault> + Send + 'static) {
        *self.shared.rule.lock() = Some(Box::new(rule));
    }

    /// Fails the first so many requests of a kind.
    pub(crate) fn fail_first(&self, count: usize, fault: Fault, kind: impl Fn(&Asked) -> bool + Send + 'static) {
        let mut left = count;
        self.fail(move |asked| {
            if left == 0 || !kind(asked) {
                return None;
            }
            left -= 1;
            Some(fault)
        });
    }

    pub(crate) fn well(&self) {
        *self.shared.rule.lock() = None;
    }
}

/// The variables that hold the right credentials.
pub(crate) fn environment() -> Environment {
    Environment::of([("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)])
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let range = request.headers().get("range").and_then(|range| range.to_str().ok()).map(str::to_owned);
    let asked = Asked {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        range,
    };
    shared.asked.lock().push(asked.clone());
    let fault = shared.rule.lock().as_mut().and_then(|rule| rule(&asked));
    match fault {
        None => pass(&shared, request).await,
        Some(Fault::Status(status)) => refuse(status, "Told"),
        Some(Fault::Refusal(status, code)) => refuse(status, code),
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::CutAnswer(bytes)) => cut(pass(&shared, request).await, bytes),
        Some(Fault::CutRequest(bytes)) => {
            let mut body = request.into_body().into_data_stream();
            let mut read = 0;
            while read < bytes {
                match body.next().await {
                    Some(Ok(chunk)) => read += chunk.len(),
                    _ => break,
                }
            }
            // An answer whose body breaks at once ends the connection before its head is sent.
            cut(StatusCode::INTERNAL_SERVER_ERROR.into_response(), 0)
        }
    }
}

fn refuse(status: u16, code: &str) -> Response {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>");
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

async fn pass(shared: &Shared, request: Request) -> Response {
    let mut s3 = shared.s3.clone();
    match Service::call(&mut s3, request).await {
        Ok(response) => response.map(Body::new),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The head of an answer, so many bytes of its body, and then a broken connection.
fn cut(response: Response, bytes: usize) -> Response {
    let (head, body) = response.into_parts();
    let mut left = bytes;
    let stream = body.into_data_stream().map(move |chunk| {
        if left == 0 {
            return Err(std::io::Error::other("cut as told"));
        }
        let mut chunk = chunk.map_err(std::io::Error::other)?;
        chunk.truncate(left);
        left -= chunk.len();
        Ok(chunk)
    });
    let broken = futures::stream::once(async { Err(std::io::Error::other("cut as told")) });
    Response::from_parts(head, Body::from_stream(stream.chain(broken)))
}
