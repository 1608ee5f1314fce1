//! Parts that clients send, on their way into the artifact store: through the server where that is a folder, straight
//! there where it is a bucket.

mod bucket;
mod completing;
mod folder;
mod names;
mod refusals;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use axum::body::BodyDataStream;
use tidegate_api::manifest::{Manifest, Part};
use tidegate_api::{PartSentRequest, PartUploadRequest, PartUploadView, PartView, PartsView};
use tidegate_dataset::artifact::{ArtifactStore, check_manifest};

use crate::http::errors::{ApiError, ApiResult};
use bucket::BucketUploads;
use folder::FolderUploads;
use names::{check_part_name, check_sha256, folder_name};
pub(crate) use refusals::check_part_count;
use refusals::{manifest_refused, other_way};

/// How many parts one push may have sent, whole or not.
const FILES_MAX: usize = 16_384;

/// What has been sent, and the store that it goes to.
#[derive(Debug)]
pub(crate) enum Uploads {
    /// The store is a folder.
    Folder(FolderUploads),
    /// The store is a bucket.
    Bucket(BucketUploads),
}

impl Uploads {
    /// Uploads into this store.
    pub(crate) fn new(store: ArtifactStore) -> std::io::Result<Self> {
        match store.folder().map(Path::to_path_buf) {
            Some(root) => Ok(Self::Folder(FolderUploads::new(&root, store)?)),
            None => Ok(Self::Bucket(BucketUploads::new(store))),
        }
    }

    /// The parts of a push that have arrived whole, in order of their names.
    pub(crate) async fn list(&self, push: &str) -> ApiResult<PartsView> {
        Ok(match self {
            Self::Folder(uploads) => PartsView { parts: uploads.list(push).await?, direct: false },
            Self::Bucket(uploads) => PartsView { parts: uploads.list(push).await?, direct: true },
        })
    }

    /// Takes a part in. It counts once its SHA-256 was found to be the one that was announced.
    pub(crate) async fn receive(
        &self,
        push: &str,
        name: &str,
        sha256: &str,
        bytes_max: u64,
        body: BodyDataStream,
    ) -> ApiResult<PartView> {
        check_part_name(name)?;
        check_sha256(sha256)?;
        match self {
            Self::Folder(uploads) => uploads.receive(push, name, sha256, bytes_max, body).await,
            Self::Bucket(_) => Err(other_way("Ask for URLs with POST …/parts/{part}/upload, and put it there.")),
        }
    }

    /// URLs over which a part can be put into the store.
    pub(crate) async fn sign(
        &self,
        push: &str,
        name: &str,
        bytes_max: u64,
        request: PartUploadRequest,
    ) -> ApiResult<PartUploadView> {
        check_part_name(name)?;
        check_sha256(&request.sha256)?;
        self.bucket()?.sign(push, name, bytes_max, request).await
    }

    /// Takes note that a part was put into the store.
    pub(crate) async fn sent(
        &self,
        push: &str,
        name: &str,
        bytes_max: u64,
        request: PartSentRequest,
    ) -> ApiResult<PartView> {
        check_part_name(name)?;
        check_sha256(&request.sha256)?;
        self.bucket()?.sent(push, name, bytes_max, request).await
    }

    fn bucket(&self) -> ApiResult<&BucketUploads> {
        match self {
            Self::Folder(_) => Err(other_way("Send it with PUT …/parts/{part}.")),
            Self::Bucket(uploads) => Ok(uploads),
        }
    }

    /// Refuses an artifact of whose parts one was not sent under this push.
    pub(crate) async fn require_sent(&self, push: &str, manifest: &Manifest) -> ApiResult<()> {
        let sent = self.list(push).await?.parts;
        let is_missing = |part: &&Part| !sent.iter().any(|sent| sent.name == part.name && sent.sha256 == part.sha256);
        let missing: Vec<(String, String)> = manifest
            .parts
            .iter()
            .filter(is_missing)
            .map(|part| (part.name.clone(), "was not sent under this push".to_owned()))
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(refusals::parts_missing(&missing)) }
    }

    /// Puts an artifact together of parts that have arrived, and writes its manifest last. Its SHA-256. May be
    /// repeated.
    pub(crate) async fn complete(&self, push: &str, manifest: &Arc<Manifest>) -> ApiResult<String> {
        let checked = Arc::clone(manifest);
        tokio::task::spawn_blocking(move || check_manifest(&checked))
            .await
            .map_err(ApiError::internal)?
            .map_err(|error| manifest_refused(&error))?;
        match self {
            Self::Folder(uploads) => uploads.complete(push, manifest).await,
            Self::Bucket(uploads) => uploads.complete(push, manifest).await,
        }
    }

    /// Removes what a push has sent. What is not there is done already.
    pub(crate) async fn remove(&self, push: &str) -> Result<(), String> {
        self.remove_named(&folder_name(push)).await
    }

    /// Removes what pushes have sent that are not among those that `taking` tells. It is asked after it was looked what
    /// there is, so that a push that begins meanwhile keeps what it sends.
    pub(crate) async fn sweep<F>(&self, taking: F) -> Result<(), String>
    where
        F: AsyncFnOnce() -> Result<BTreeSet<String>, String>,
    {
        let found = match self {
            Self::Folder(uploads) => uploads.names().await.map_err(|error| error.to_string())?,
            Self::Bucket(uploads) => uploads.names().await.map_err(|error| error.to_string())?,
        };
        if found.is_empty() {
            return Ok(());
        }
        let kept: BTreeSet<String> = taking().await?.iter().map(|push| folder_name(push)).collect();
        for name in found.difference(&kept) {
            self.remove_named(name).await?;
        }
        Ok(())
    }

    async fn remove_named(&self, name: &str) -> Result<(), String> {
        match self {
            Self::Folder(uploads) => uploads.remove(name).await.map_err(|error| error.to_string()),
            Self::Bucket(uploads) => uploads.remove(name).await.map_err(|error| error.to_string()),
        }
    }
}

/// How a limit of a part's size is told.
fn over_the_limit(name: &str, bytes_max: u64) -> ApiError {
    crate::http::extract::too_large(format!("The part `{name}` has over {bytes_max} bytes, the limit of a part."))
}
