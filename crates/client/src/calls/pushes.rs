//! The push protocol and what can be asked about pushes.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use reqwest::Method;
use tidegate_api::manifest::{Manifest, Schema};
use tidegate_api::{
    ArtifactStoreView, CallView, ExplainView, FailRequest, HeartbeatRequest, JobStatus, KillRequest, PartView,
    PartsView, ProceedRequest, PushAccepted, PushStart, PushState, PushSummary, PushView, RegisterSchemaRequest,
};
use tokio::io::AsyncReadExt;

use crate::client::{Body, Client, Failed, Request, read_error, refusal};
use crate::error::Error;
use crate::events::{Events, Resume};
use crate::retry::{Attempts, Repeat};

/// How many bytes of a part are read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// How long an attempt to send a part may take: this much, and a second more for each of
/// [`PART_BYTES_PER_SECOND_MIN`].
const PART_LIMIT_BASE: Duration = Duration::from_secs(60);

/// The slowest connection over which a part of any size can be sent.
const PART_BYTES_PER_SECOND_MIN: u64 = 256 * 1024;

/// How long an attempt to send so many bytes may take.
pub(super) fn limit_of(bytes: u64) -> Duration {
    PART_LIMIT_BASE.saturating_add(Duration::from_secs(bytes / PART_BYTES_PER_SECOND_MIN))
}

impl Client {
    /// Starts a push, or finds the one that has this id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start_push(&self, push: &PushStart) -> Result<PushAccepted, Error> {
        let url = self.route(&["v1", "pushes"], &[]);
        self.send_json(Method::POST, url, push, Repeat::Always).await
    }

    /// Pushes, the newest first, of one store or of all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pushes(&self, store: Option<&str>, limit: Option<u32>) -> Result<Vec<PushSummary>, Error> {
        let limit = limit.map(|limit| limit.to_string());
        let query = [("store", store), ("limit", limit.as_deref())];
        self.get_json(self.route(&["v1", "pushes"], &query)).await
    }

    /// Everything about a push.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn push(&self, id: &str) -> Result<PushView, Error> {
        self.get_json(self.route(&["v1", "pushes", id], &[])).await
    }

    /// Why a push is where it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn explain_push(&self, id: &str) -> Result<ExplainView, Error> {
        self.get_json(self.route(&["v1", "pushes", id, "explain"], &[])).await
    }

    /// The finished hook calls of a push, the oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn push_calls(&self, id: &str) -> Result<Vec<CallView>, Error> {
        self.get_json(self.route(&["v1", "pushes", id, "calls"], &[])).await
    }

    /// The status of a push in VIP-4's words.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn job_status(&self, id: &str) -> Result<JobStatus, Error> {
        self.get_json(self.route(&["v1", "pushes", id, "job"], &[])).await
    }

    /// Says that the push client is alive, and how far it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn heartbeat(&self, id: &str, heartbeat: &HeartbeatRequest) -> Result<PushState, Error> {
        let url = self.route(&["v1", "pushes", id, "heartbeat"], &[]);
        self.send_json(Method::POST, url, heartbeat, Repeat::Always).await
    }

    /// Says which schema the artifact will have.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put_schema(&self, id: &str, schema: Schema) -> Result<PushState, Error> {
        let url = self.route(&["v1", "pushes", id, "schema"], &[]);
        let body = RegisterSchemaRequest { schema };
        self.send_json(Method::PUT, url, &body, Repeat::Always).await
    }

    /// The parts that have arrived.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn parts(&self, id: &str) -> Result<PartsView, Error> {
        self.get_json(self.route(&["v1", "pushes", id, "parts"], &[])).await
    }

    /// Sends a part from a file, from the beginning again after each failure that may pass.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Local`] if the file can't be read.
    pub async fn put_part(&self, id: &str, name: &str, sha256: &str, file: &Path) -> Result<PartView, Error> {
        let url = self.route(&["v1", "pushes", id, "parts", name], &[("sha256", Some(sha256))]);
        let mut attempts = Attempts::new(self.patience());
        loop {
            let error = match self.put_part_once(&url, file).await {
                Ok(part) => return Ok(part),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Again(error)) => error,
            };
            match attempts.failed() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error.after(&attempts)),
            }
        }
    }

    async fn put_part_once(&self, url: &reqwest::Url, file: &Path) -> Result<PartView, Failed> {
        let local = |error: std::io::Error| {
            Failed::Final(Error::Local {
                what: format!("could not read {}", file.display()),
                reason: error.to_string(),
            })
        };
        let opened = tokio::fs::File::open(file).await.map_err(local)?;
        let length = opened.metadata().await.map_err(local)?.len();
        let limit = limit_of(length);
        let response = self
            .single(Method::PUT, url.clone())
            .timeout(limit)
            .header("content-type", "application/octet-stream")
            .header("content-length", length)
            .body(reqwest::Body::wrap_stream(chunks(opened)))
            .send()
            .await
            .map_err(|error| self.transport(&error, Repeat::Always))?;
        let status = response.status();
        if !status.is_success() {
            let bytes = read_error(response).await;
            return Err(refusal(url, status, &bytes, Repeat::Always));
        }
        let bytes = response.bytes().await.map_err(|error| self.transport(&error, Repeat::Always))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failed::Final(Error::Unreadable {
                url: url.to_string(),
                status: status.as_u16(),
                reason: error.to_string(),
            })
        })
    }

    /// Says that all parts have been sent, and hands over the manifest.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn complete_push(&self, id: &str, manifest: &Manifest) -> Result<PushState, Error> {
        let url = self.route(&["v1", "pushes", id, "complete"], &[]);
        self.send_json(Method::POST, url, manifest, Repeat::Always).await
    }

    /// Gives a push up, because its input is at fault.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fail_push(&self, id: &str, failure: &FailRequest) -> Result<PushState, Error> {
        let url = self.route(&["v1", "pushes", id, "fail"], &[]);
        self.send_json(Method::POST, url, failure, Repeat::Always).await
    }

    /// Ends a push.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn kill_push(&self, id: &str, reason: &str) -> Result<PushState, Error> {
        let url = self.route(&["v1", "pushes", id, "kill"], &[]);
        let body = KillRequest { reason: reason.to_owned() };
        self.send_json(Method::POST, url, &body, Repeat::UnlessSent).await
    }

    /// Opens one gate by hand.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn proceed(&self, id: &str, request: &ProceedRequest) -> Result<PushState, Error> {
        let url = self.route(&["v1", "pushes", id, "proceed"], &[]);
        self.send_json(Method::POST, url, request, Repeat::Always).await
    }

    /// Follows a push: its view now and after each change. Ends after a view whose status is for
    /// good.
    #[must_use]
    pub fn watch_push(&self, id: &str) -> Events<PushView> {
        let url = self.route(&["v1", "pushes", id, "watch"], &[]);
        Events::new(self.clone(), Resume::FromNow { url })
    }

    /// The store that artifacts are kept in, and whether anything is wrong with it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn artifact_store(&self) -> Result<ArtifactStoreView, Error> {
        self.get_json(self.route(&["v1", "artifact-store"], &[])).await
    }

    /// Deletes nothing and changes nothing: whether the server answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn is_ready(&self) -> Result<(), Error> {
        self.request_bytes(&Request {
            method: Method::GET,
            url: self.route(&["readyz"], &[]),
            body: Body::Nothing,
            repeat: Repeat::Always,
        })
        .await
        .map(|_| ())
    }
}

/// The content of a file in chunks.
fn chunks(file: tokio::fs::File) -> impl futures::Stream<Item = Result<bytes::Bytes, std::io::Error>> {
    futures::stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let mut buffer = bytes::BytesMut::with_capacity(CHUNK_BYTES);
        match file.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(buffer.freeze()), Some(file))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .fuse()
}
