//! Parts that go straight into a store that is a bucket.
//!
//! ```text
//! uploads/{push}/{SHA-256}-{bytes}-{part name}     all chunks of this part have been put: the upload, and their tags
//! ```
//!
//! A part's chunks wait in a multipart upload of its place in the artifact, where nobody sees them. Only the completion
//! makes parts of them, under a manifest that names them, and reads each from end to end before the manifest is
//! written. All that is to be remembered lies in the bucket, so that any server can take any request.
//!
//! Invariants:
//! - a part that is whole is never replaced;
//! - a part that was put together here and is not what the manifest says is removed, and has to be sent again;
//! - the manifest is written after all parts were read and found to be right.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};
use tidegate_api::manifest::{Manifest, Part};
use tidegate_api::upload::URLS_MAX;
use tidegate_api::{PartSentRequest, PartUploadRequest, PartUploadView, PartView};
use tidegate_dataset::Cancel;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore, PartCheck, chunk_bytes};

use super::completing::Completing;
use super::names::{check_sha256, folder_name, is_sha256};
use super::refusals::{parts_missing, store_failed, why_missing};
use super::{FILES_MAX, over_the_limit};
use crate::http::errors::{ApiError, ApiResult};
use crate::http::extract::too_large;

const ROOT: &str = "uploads";

/// How long a signed URL can be used.
const URL_TIME: Duration = Duration::from_secs(60 * 60);

/// How many parts are read at once to check them.
const CHECKS_AT_ONCE: usize = 4;

/// The largest note of a part that was sent, in bytes: ten thousand tags.
const NOTE_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// The longest id of an upload, and the longest tag of a chunk, in bytes.
const UPLOAD_BYTES_MAX: usize = 2048;
const TAG_BYTES_MAX: usize = 128;

/// What has been put into a bucket, and the store in it.
#[derive(Debug)]
pub(crate) struct BucketUploads {
    store: ArtifactStore,
    completing: Completing,
}

/// The note that a part was sent.
#[derive(Debug, Serialize, Deserialize)]
struct Sent {
    artifact: String,
    upload: String,
    tags: Vec<String>,
}

impl BucketUploads {
    pub(crate) fn new(store: ArtifactStore) -> Self {
        Self { store, completing: Completing::default() }
    }

    /// The parts of a push that were sent, in order of their names.
    pub(crate) async fn list(&self, push: &str) -> ApiResult<Vec<PartView>> {
        let mut parts = self.notes(&folder_name(push)).await.map_err(store_failed)?;
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(parts)
    }

    async fn notes(&self, name: &str) -> Result<Vec<PartView>, ArtifactError> {
        let folder = ObjectPath::from_iter([ROOT, name]);
        let listed = self.store.objects().list(Some(&folder)).take(FILES_MAX + 1);
        let found: Vec<ObjectPath> = listed
            .map_ok(|meta| meta.location)
            .try_collect()
            .await
            .map_err(|source| ArtifactError::Store { object: folder.to_string(), source })?;
        Ok(found.iter().filter_map(|object| part_of(object.filename()?)).collect())
    }

    pub(crate) async fn sign(
        &self,
        push: &str,
        name: &str,
        bytes_max: u64,
        request: PartUploadRequest,
    ) -> ApiResult<PartUploadView> {
        let part = described(name, &request.sha256, request.bytes, bytes_max)?;
        check_sha256(&request.artifact)?;
        let chunk_bytes = chunk_bytes(part.bytes);
        let chunks = u32::try_from(part.bytes.div_ceil(chunk_bytes)).map_err(ApiError::internal)?;
        if request.from >= chunks {
            let why =
                format!("The part has {chunks} chunks, counted from 0, and the first was to be {}.", request.from);
            return Err(ApiError::bad_request("There is no such chunk.", why));
        }
        let upload = match request.upload {
            Some(upload) => {
                check_upload(&upload)?;
                upload
            }
            None => {
                self.check_room(push).await?;
                self.store.begin_direct(&request.artifact, &part).await.map_err(store_failed)?
            }
        };
        let window = request.from..chunks.min(request.from.saturating_add(URLS_MAX));
        let signed = self.store.direct_urls(&request.artifact, &part, &upload, window, URL_TIME).await;
        let urls = signed.map_err(store_failed)?;
        let valid_ms = u64::try_from(URL_TIME.as_millis()).unwrap_or(u64::MAX);
        Ok(PartUploadView { upload, chunk_bytes, urls, valid_ms })
    }

    async fn check_room(&self, push: &str) -> ApiResult<()> {
        let count = self.notes(&folder_name(push)).await.map_err(store_failed)?.len();
        if count >= FILES_MAX {
            return Err(too_large(format!("{count} parts have arrived for this push; there may be {FILES_MAX}.")));
        }
        Ok(())
    }

    pub(crate) async fn sent(
        &self,
        push: &str,
        name: &str,
        bytes_max: u64,
        request: PartSentRequest,
    ) -> ApiResult<PartView> {
        let part = described(name, &request.sha256, request.bytes, bytes_max)?;
        check_sha256(&request.artifact)?;
        check_upload(&request.upload)?;
        let chunks = part.bytes.div_ceil(chunk_bytes(part.bytes));
        let is_tag =
            |tag: &String| !tag.is_empty() && tag.len() <= TAG_BYTES_MAX && tag.bytes().all(|b| b.is_ascii_graphic());
        if request.tags.len() as u64 != chunks || !request.tags.iter().all(is_tag) {
            let why = format!(
                "The part has {chunks} chunks, and {} tags were told, or one that is none.",
                request.tags.len()
            );
            return Err(ApiError::bad_request("The tags can't be those of the part's chunks.", why));
        }
        let note = Sent { artifact: request.artifact, upload: request.upload, tags: request.tags };
        let bytes = serde_json::to_vec(&note).map_err(ApiError::internal)?;
        let object = note_of(&folder_name(push), &part);
        let put = self.store.objects().put(&object, bytes.into()).await;
        put.map_err(|source| store_failed(ArtifactError::Store { object: object.to_string(), source }))?;
        Ok(PartView { name: part.name, bytes: part.bytes, sha256: part.sha256 })
    }

    /// Puts the artifact together. Reading all of it can take longer than a request may: then the answer is that it is
    /// being checked, and the sender asks again.
    pub(crate) async fn complete(&self, push: &str, manifest: &Manifest) -> ApiResult<String> {
        let name = folder_name(push);
        let work = Completion { store: self.store.clone(), name: name.clone(), manifest: manifest.clone() };
        self.completing.join(&name, manifest, async move { work.run().await }).await
    }

    /// The names of all pushes that have sent something.
    pub(crate) async fn names(&self) -> Result<BTreeSet<String>, ArtifactError> {
        let root = ObjectPath::from(ROOT);
        let listed = self
            .store
            .objects()
            .list_with_delimiter(Some(&root))
            .await
            .map_err(|source| ArtifactError::Store { object: root.to_string(), source })?;
        Ok(listed.common_prefixes.iter().filter_map(|prefix| Some(prefix.filename()?.to_owned())).collect())
    }

    /// Removes what the push of this name has sent, chunks included where that is known.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), ArtifactError> {
        self.completing.forget(name);
        for part in self.notes(name).await? {
            let part = Part { name: part.name, bytes: part.bytes, rows: 0, sha256: part.sha256 };
            let object = note_of(name, &part);
            if let Some(sent) = read_note(&self.store, &object).await? {
                abort(&self.store, &part, &sent).await;
            }
            remove_note(&self.store, &object).await?;
        }
        Ok(())
    }
}

/// An artifact that is put together.
struct Completion {
    store: ArtifactStore,
    name: String,
    manifest: Manifest,
}

impl Completion {
    async fn run(&self) -> ApiResult<String> {
        let arrived = self.arrived().await?;
        let checks: Vec<_> = self.manifest.parts.iter().map(|part| self.settle(part, &arrived)).collect();
        let settled: Vec<Option<(String, String)>> =
            futures::stream::iter(checks).buffered(CHECKS_AT_ONCE).try_collect().await?;
        let missing: Vec<(String, String)> = settled.into_iter().flatten().collect();
        if !missing.is_empty() {
            return Err(parts_missing(&missing));
        }
        self.store.check_counts(&self.manifest).await.map_err(store_failed)?;
        self.store.put_manifest(&self.manifest).await.map_err(store_failed)
    }

    async fn arrived(&self) -> ApiResult<BTreeMap<String, PartView>> {
        let uploads = BucketUploads::new(self.store.clone());
        let parts = uploads.notes(&self.name).await.map_err(store_failed)?;
        Ok(parts.into_iter().map(|part| (part.name.clone(), part)).collect())
    }

    /// Sees to it that a part is in its place and whole. What is missing about it otherwise.
    async fn settle(&self, part: &Part, arrived: &BTreeMap<String, PartView>) -> ApiResult<Option<(String, String)>> {
        let id = &self.manifest.artifact_id;
        let object = note_of(&self.name, part);
        let mut sent = read_note(&self.store, &object).await.map_err(store_failed)?;
        if let Some(other) = sent.take_if(|sent| sent.artifact != *id) {
            // Sent by an earlier run, whose artifact was another one.
            abort(&self.store, part, &other).await;
            remove_note(&self.store, &object).await.map_err(store_failed)?;
        }
        let mut is_ours = false;
        loop {
            let found = self.store.check_part(id, part, &Cancel::new()).await.map_err(store_failed)?;
            let why = match (found, sent.take()) {
                (PartCheck::Whole, sent) => {
                    if let Some(sent) = sent {
                        abort(&self.store, part, &sent).await;
                    }
                    remove_note(&self.store, &object).await.map_err(store_failed)?;
                    return Ok(None);
                }
                (_, Some(sent)) => {
                    let done = self.store.finish_direct(id, part, &sent.upload, sent.tags).await;
                    if done.map_err(store_failed)? {
                        is_ours = true;
                        continue;
                    }
                    "its upload is not there any more, or its chunks do not fit".to_owned()
                }
                (PartCheck::Absent, None) => why_missing(part, arrived.get(&part.name)),
                (PartCheck::Other(found), None) => {
                    if is_ours {
                        self.store.remove_part(id, part).await.map_err(store_failed)?;
                    }
                    format!("arrived with the SHA-256 {found}, the manifest says {}", part.sha256)
                }
            };
            remove_note(&self.store, &object).await.map_err(store_failed)?;
            return Ok(Some((part.name.clone(), why)));
        }
    }
}

fn described(name: &str, sha256: &str, bytes: u64, bytes_max: u64) -> ApiResult<Part> {
    if bytes > bytes_max {
        return Err(over_the_limit(name, bytes_max));
    }
    if bytes == 0 {
        return Err(ApiError::bad_request("The part was not taken.", "A part has at least one byte."));
    }
    Ok(Part { name: name.to_owned(), bytes, rows: 0, sha256: sha256.to_owned() })
}

fn check_upload(upload: &str) -> ApiResult<()> {
    let is_fine =
        !upload.is_empty() && upload.len() <= UPLOAD_BYTES_MAX && upload.bytes().all(|b| b.is_ascii_graphic());
    if is_fine {
        return Ok(());
    }
    Err(ApiError::bad_request("The upload's id can't be one.", "It is the one that was given with the URLs."))
}

fn note_of(name: &str, part: &Part) -> ObjectPath {
    let note = format!("{}-{}-{}", part.sha256, part.bytes, part.name);
    ObjectPath::from_iter([ROOT, name, note.as_str()])
}

/// The part whose note has this name; `None` for what is no note.
fn part_of(note: &str) -> Option<PartView> {
    let (sha256, rest) = note.split_once('-')?;
    let (bytes, name) = rest.split_once('-')?;
    if !is_sha256(sha256) {
        return None;
    }
    Some(PartView { name: name.to_owned(), bytes: bytes.parse().ok()?, sha256: sha256.to_owned() })
}

/// A note; `None` if it is not there. One that can't be read is as good as none: the part is sent again.
async fn read_note(store: &ArtifactStore, object: &ObjectPath) -> Result<Option<Sent>, ArtifactError> {
    let failed = |source| ArtifactError::Store { object: object.to_string(), source };
    let got = match store.objects().get(object).await {
        Ok(got) => got,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    if got.meta.size > NOTE_BYTES_MAX {
        return Ok(None);
    }
    let bytes = got.bytes().await.map_err(failed)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

async fn remove_note(store: &ArtifactStore, object: &ObjectPath) -> Result<(), ArtifactError> {
    match store.objects().delete(object).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(source) => Err(ArtifactError::Store { object: object.to_string(), source }),
    }
}

/// Lets go of chunks that nobody will ask for. If that fails, the bucket's own rule for unfinished uploads has them.
async fn abort(store: &ArtifactStore, part: &Part, sent: &Sent) {
    if let Err(error) = store.abort_direct(&sent.artifact, part, &sent.upload).await {
        tracing::debug!(part = part.name, %error, "an upload that is not needed could not be let go");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_note_tells_the_part() {
        let sha256 = "a".repeat(64);
        let part = Part { name: "part-00000-of-2.parquet".to_owned(), bytes: 17, rows: 0, sha256: sha256.clone() };
        let note = note_of("p", &part);
        let found = part_of(note.filename().unwrap()).unwrap();
        assert_eq!((found.name.as_str(), found.bytes, found.sha256), ("part-00000-of-2.parquet", 17, sha256));
        for other in ["", "x-1-y", &format!("{}-x-y", "a".repeat(64)), &"a".repeat(64)] {
            assert_eq!(part_of(other), None, "{other}");
        }
    }
}
