//! Parts that go through the server, into a store that is a folder.
//!
//! ```text
//! uploads/{push}/{SHA-256}-{part name}      a part that has arrived whole
//! uploads/{push}/.{random}.partial          one that is arriving
//! ```
//!
//! The folder lies beside the artifacts, on the same file system, so that a part moves to its
//! place by a rename.
//!
//! Invariants:
//! - a file whose name has no point in front is whole, and its bytes have the SHA-256 in its name;
//! - a part moves into an artifact only under a manifest that names it with that SHA-256;
//! - the manifest is written after all of them.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::BodyDataStream;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tidegate_api::PartView;
use tidegate_api::manifest::Manifest;
use tidegate_dataset::artifact::ArtifactStore;
use tokio::io::AsyncWriteExt;

use super::names::{folder_name, hex, is_sha256};
use super::refusals::{broken, damaged, parts_missing, store_failed, why_missing};
use super::{FILES_MAX, over_the_limit};
use crate::http::errors::{ApiError, ApiResult};
use crate::http::extract::too_large;

/// How long a sender may be silent in the middle of a part.
const SILENCE: Duration = Duration::from_secs(30);

/// The least that a sender sends, in bytes per second, once it has had [`SILENCE`] to begin.
const RATE_MIN: u64 = 4 * 1024;

const WRITE_BUFFER: usize = 1024 * 1024;

/// The folder of all uploads, and the store that they go to.
#[derive(Debug)]
pub(crate) struct FolderUploads {
    folder: PathBuf,
    store: ArtifactStore,
    /// One artifact is put together at a time; it takes a few renames.
    completing: tokio::sync::Mutex<()>,
}

impl FolderUploads {
    /// Uploads into a store that is a local folder.
    pub(crate) fn new(root: &Path, store: ArtifactStore) -> io::Result<Self> {
        let folder = root.join("uploads");
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder, store, completing: tokio::sync::Mutex::new(()) })
    }

    fn of_push(&self, push: &str) -> PathBuf {
        self.folder.join(folder_name(push))
    }

    /// The parts of a push that have arrived whole, in order of their names.
    pub(crate) async fn list(&self, push: &str) -> ApiResult<Vec<PartView>> {
        let folder = self.of_push(push);
        let mut parts = tokio::task::spawn_blocking(move || read_folder(&folder))
            .await
            .map_err(ApiError::internal)?
            .map_err(|error| ApiError::disk("The parts could not be listed.", &error))?;
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(parts)
    }

    /// Takes a part in. It counts once its SHA-256 was found to be the one that was announced.
    pub(crate) async fn receive(
        &self,
        push: &str,
        name: &str,
        sha256: &str,
        bytes_max: u64,
        mut body: BodyDataStream,
    ) -> ApiResult<PartView> {
        let folder = self.of_push(push);
        let disk = |error: io::Error| ApiError::disk("The part could not be kept.", &error);
        tokio::fs::create_dir_all(&folder).await.map_err(disk)?;
        let target = folder.join(format!("{sha256}-{name}"));
        if let Ok(there) = tokio::fs::metadata(&target).await {
            // It arrived before; what comes now is the same by its digest.
            return Ok(PartView { name: name.to_owned(), bytes: there.len(), sha256: sha256.to_owned() });
        }
        self.check_room(&folder).await?;
        let partial = Partial::create(&folder).await.map_err(disk)?;
        let file = partial.open().await.map_err(disk)?;
        let mut file = tokio::io::BufWriter::with_capacity(WRITE_BUFFER, file);
        let mut hasher = Sha256::new();
        let mut bytes: u64 = 0;
        let begun = tokio::time::Instant::now();
        loop {
            let chunk = match tokio::time::timeout(SILENCE, body.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    return Err(broken(name, bytes, &error.to_string()));
                }
                Err(_) => {
                    return Err(broken(name, bytes, &format!("nothing came for {SILENCE:?}")));
                }
            };
            bytes = bytes.saturating_add(chunk.len() as u64);
            // One that sends a byte now and then would hold its place for a day.
            let wanted = begun.elapsed().saturating_sub(SILENCE).as_secs().saturating_mul(RATE_MIN);
            if bytes < wanted {
                return Err(broken(name, bytes, &format!("it came slower than {RATE_MIN} bytes per second")));
            }
            if bytes > bytes_max {
                return Err(over_the_limit(name, bytes_max));
            }
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(disk)?;
        }
        let found = hex(&hasher.finalize());
        if found != sha256 {
            return Err(damaged(name, bytes, sha256, &found));
        }
        file.flush().await.map_err(disk)?;
        file.into_inner().sync_all().await.map_err(disk)?;
        partial.keep(&target).await.map_err(disk)?;
        Ok(PartView { name: name.to_owned(), bytes, sha256: found })
    }

    async fn check_room(&self, folder: &Path) -> ApiResult<()> {
        let folder = folder.to_path_buf();
        let count = tokio::task::spawn_blocking(move || std::fs::read_dir(folder).map(Iterator::count))
            .await
            .map_err(ApiError::internal)?
            .map_err(|error| ApiError::disk("The part could not be kept.", &error))?;
        if count >= FILES_MAX {
            return Err(too_large(format!("{count} parts have arrived for this push; there may be {FILES_MAX}.")));
        }
        Ok(())
    }

    /// Puts an artifact together: parts that have arrived move to their place, then the manifest
    /// is written. Its SHA-256. May be repeated.
    pub(crate) async fn complete(&self, push: &str, manifest: &Manifest) -> ApiResult<String> {
        let _alone = self.completing.lock().await;
        let mut arrived: HashMap<String, Vec<PartView>> = HashMap::new();
        for part in self.list(push).await? {
            arrived.entry(part.name.clone()).or_default().push(part);
        }
        let id = &manifest.artifact_id;
        let there = self.store.has_parts(id, &manifest.parts).await.map_err(store_failed)?;
        let mut missing = Vec::new();
        let mut moves = Vec::new();
        let root = self.store.folder().ok_or_else(|| ApiError::internal("the artifact store is no local folder"))?;
        let artifact = root.join("artifacts").join(id);
        for (part, is_there) in manifest.parts.iter().zip(there) {
            let sent = arrived.get(&part.name).map_or(&[][..], Vec::as_slice);
            if sent.iter().any(|sent| sent.sha256 == part.sha256 && sent.bytes == part.bytes) {
                moves.push((
                    self.of_push(push).join(format!("{}-{}", part.sha256, part.name)),
                    artifact.join(&part.name),
                ));
            } else if !is_there {
                // Else it was put there by an earlier attempt, or by another push of the same data.
                missing.push((part.name.clone(), why_missing(part, sent.last())));
            }
        }
        if !missing.is_empty() {
            return Err(parts_missing(&missing));
        }
        tokio::task::spawn_blocking(move || move_all(&artifact, &moves))
            .await
            .map_err(ApiError::internal)?
            .map_err(|error| ApiError::disk("The artifact could not be put together.", &error))?;
        self.store.check_counts(manifest).await.map_err(store_failed)?;
        self.store.put_manifest(manifest).await.map_err(store_failed)
    }

    /// The names of all pushes that have sent something.
    pub(crate) async fn names(&self) -> io::Result<BTreeSet<String>> {
        let folder = self.folder.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let mut names = BTreeSet::new();
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                if let Some(name) = entry.file_name().to_str()
                    && entry.file_type()?.is_dir()
                {
                    names.insert(name.to_owned());
                }
            }
            Ok(names)
        });
        listed.await.map_err(io::Error::other)?
    }

    /// Removes what the push of this name has sent. What is not there is done already.
    pub(crate) async fn remove(&self, name: &str) -> io::Result<()> {
        match tokio::fs::remove_dir_all(self.folder.join(name)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// A file that is arriving. It goes with this value unless it was kept.
struct Partial {
    path: Option<PathBuf>,
}

impl Partial {
    async fn create(folder: &Path) -> io::Result<Self> {
        let name = format!(".{}.partial", uuid::Uuid::new_v4().simple());
        Ok(Self { path: Some(folder.join(name)) })
    }

    async fn open(&self) -> io::Result<tokio::fs::File> {
        let path = self.path.as_ref().expect("it is kept only at the end");
        tokio::fs::File::create_new(path).await
    }

    async fn keep(mut self, target: &Path) -> io::Result<()> {
        let path = self.path.as_ref().expect("it is kept only here");
        tokio::fs::rename(path, target).await?;
        self.path = None;
        let folder = target.parent().map(Path::to_path_buf);
        tokio::task::spawn_blocking(move || folder.map_or(Ok(()), |folder| sync_folder(&folder)))
            .await
            .map_err(io::Error::other)?
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // A short call on a local disk; the file was never more than an attempt.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn read_folder(folder: &Path) -> io::Result<Vec<PartView>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut parts = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some((sha256, name)) = name.to_str().and_then(|name| name.split_once('-')) else {
            continue;
        };
        if !is_sha256(sha256) {
            continue;
        }
        parts.push(PartView { name: name.to_owned(), bytes: entry.metadata()?.len(), sha256: sha256.to_owned() });
    }
    Ok(parts)
}

fn move_all(artifact: &Path, moves: &[(PathBuf, PathBuf)]) -> io::Result<()> {
    std::fs::create_dir_all(artifact)?;
    for (from, to) in moves {
        std::fs::rename(from, to)?;
    }
    sync_folder(artifact)?;
    match artifact.parent() {
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

/// Makes what was renamed within a folder survive a crash of the machine.
fn sync_folder(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}
