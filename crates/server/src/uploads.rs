//! Parts that clients send, on their way into the artifact store.
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
use std::sync::Arc;
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::StatusCode;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tidegate_api::manifest::Manifest;
use tidegate_api::{ErrorBody, PartView, code};
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore, check_manifest};
use tokio::io::AsyncWriteExt;

use crate::http::errors::{ApiError, ApiResult};
use crate::http::extract::too_large;

/// How long a sender may be silent in the middle of a part.
const SILENCE: Duration = Duration::from_secs(30);

/// How many parts one push may have sent, whole or not.
const FILES_MAX: usize = 16_384;

const WRITE_BUFFER: usize = 1024 * 1024;

/// The folder of all uploads, and the store that they go to.
#[derive(Debug)]
pub(crate) struct Uploads {
    folder: PathBuf,
    store: ArtifactStore,
    /// One artifact is put together at a time; it takes a few renames.
    completing: tokio::sync::Mutex<()>,
}

impl Uploads {
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
        check_part_name(name)?;
        check_sha256(sha256)?;
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
            if bytes > bytes_max {
                return Err(too_large(format!("The part `{name}` has over {bytes_max} bytes, the limit of a part.")));
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
    pub(crate) async fn complete(&self, push: &str, manifest: &Arc<Manifest>) -> ApiResult<String> {
        let checked = Arc::clone(manifest);
        tokio::task::spawn_blocking(move || check_manifest(&checked))
            .await
            .map_err(ApiError::internal)?
            .map_err(|error| manifest_refused(&error))?;
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
        self.store.put_manifest(manifest).await.map_err(store_failed)
    }

    /// Removes what all other pushes than these have sent.
    pub(crate) async fn keep_only(&self, pushes: &BTreeSet<String>) -> io::Result<()> {
        let kept: BTreeSet<String> = pushes.iter().map(|push| folder_name(push)).collect();
        let folder = self.folder.clone();
        let swept = tokio::task::spawn_blocking(move || {
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                let is_kept = entry.file_name().to_str().is_some_and(|name| kept.contains(name));
                if !is_kept && entry.file_type()?.is_dir() {
                    std::fs::remove_dir_all(entry.path())?;
                }
            }
            Ok(())
        });
        swept.await.map_err(io::Error::other)?
    }

    /// Removes what a push has sent. What is not there is done already.
    pub(crate) async fn remove(&self, push: &str) -> io::Result<()> {
        match tokio::fs::remove_dir_all(self.of_push(push)).await {
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

/// A push's folder: readable where its id allows it, and another for every id.
fn folder_name(push: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if !push.is_empty() && push.len() <= 100 && push.chars().all(is_plain) {
        return push.to_owned();
    }
    let digest = hex(&Sha256::digest(push.as_bytes()));
    // The point keeps it apart from every id that is plain.
    format!("id.{digest}")
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn check_sha256(sha256: &str) -> ApiResult<()> {
    if is_sha256(sha256) {
        return Ok(());
    }
    Err(ApiError::bad_request("The parameter `sha256` is no SHA-256.", "It has 64 hexadecimal digits in lower case."))
}

fn check_part_name(name: &str) -> ApiResult<()> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_fine = !name.is_empty()
        && name.len() <= 128
        && name.chars().all(is_allowed)
        && !name.starts_with('.')
        && !name.starts_with("manifest");
    if is_fine {
        return Ok(());
    }
    Err(ApiError::invalid(
        "A part can't have this name.",
        "A part's name has 1 to 128 letters, digits, `-`, `_` and `.`, and begins neither with a \
         point nor with `manifest`.",
        "Build the artifact with a client of this release.",
    ))
}

fn broken(name: &str, bytes: u64, why: &str) -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        ErrorBody::new(
            code::BAD_REQUEST,
            format!("The part `{name}` did not arrive whole."),
            format!("The connection broke after {bytes} bytes: {why}."),
            "What had arrived of it was dropped; other parts stay.",
            "Send this part again.",
        )
        .with_retryable(true)
        .with_subjects([name.to_owned()]),
    )
}

fn damaged(name: &str, bytes: u64, expected: &str, found: &str) -> ApiError {
    ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        ErrorBody::new(
            code::PART_DAMAGED,
            format!("The part `{name}` is not what was announced."),
            format!("The {bytes} bytes that arrived have the SHA-256 {found}, announced was {expected}."),
            "It was dropped; nothing will ever load it. Other parts stay.",
            "Send this part again; if that does not help, build the artifact again.",
        )
        .with_subjects([name.to_owned()]),
    )
}

fn why_missing(part: &tidegate_api::manifest::Part, sent: Option<&PartView>) -> String {
    match sent {
        None => "has not arrived".to_owned(),
        Some(sent) if sent.bytes != part.bytes => {
            format!("arrived with {} bytes, the manifest says {}", sent.bytes, part.bytes)
        }
        Some(sent) => format!("arrived with the SHA-256 {}, the manifest says {}", sent.sha256, part.sha256),
    }
}

fn parts_missing(missing: &[(String, String)]) -> ApiError {
    const NAMED_MAX: usize = 10;
    let mut named: Vec<String> = missing.iter().take(NAMED_MAX).map(|(name, why)| format!("`{name}` {why}")).collect();
    if missing.len() > NAMED_MAX {
        named.push(format!("and {} more", missing.len() - NAMED_MAX));
    }
    ApiError::new(
        StatusCode::CONFLICT,
        ErrorBody::new(
            code::PARTS_MISSING,
            "The artifact is not complete.",
            format!("Of its parts, {}.", named.join("; ")),
            "No region will load it as it is. What has arrived stays.",
            "Send the parts that are named, then complete it again.",
        )
        .with_subjects(missing.iter().map(|(name, _)| name.clone())),
    )
}

/// Refuses a manifest that does not have the parts that the store's versions have, before anything looks at each of them.
pub(crate) fn check_part_count(manifest: &Manifest, partitions: u32) -> ApiResult<()> {
    let (parts, said) = (manifest.parts.len(), manifest.partition_count);
    if parts == partitions as usize && said == partitions {
        return Ok(());
    }
    Err(refused_manifest(format!("It has {parts} parts for {said} partitions, and the store has {partitions}.")))
}

fn manifest_refused(error: &ArtifactError) -> ApiError {
    refused_manifest(format!("{error}."))
}

fn refused_manifest(why: String) -> ApiError {
    ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        ErrorBody::new(
            code::MANIFEST_REFUSED,
            "The manifest is refused.",
            why,
            "The artifact is not complete, and no region will load it.",
            "Build the artifact again with a client of this release.",
        ),
    )
}

fn store_failed(error: ArtifactError) -> ApiError {
    match &error {
        ArtifactError::BadManifest { .. } | ArtifactError::BadName { .. } => manifest_refused(&error),
        ArtifactError::Missing { parts, .. } => {
            let missing: Vec<(String, String)> =
                parts.iter().map(|name| (name.clone(), "is not there".to_owned())).collect();
            parts_missing(&missing)
        }
        ArtifactError::Disk { source, .. } => ApiError::disk("The artifact could not be kept.", source),
        _ => {
            tracing::error!(%error, "the artifact store failed");
            ApiError::unavailable(
                "The artifact store does not answer as it should.",
                "The server's log says what it said.",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_pushes_never_meet_and_never_leave_their_place() {
        let ids = ["a", "A", "../a", "a/b", ".", "..", "id", "id.x", "é", ""];
        let names: Vec<String> = ids.iter().map(|id| folder_name(id)).collect();
        for (index, name) in names.iter().enumerate() {
            assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
            assert!(!names[..index].contains(name), "{name}");
        }
    }

    #[test]
    fn names_of_parts_can_not_leave_their_folder() {
        for name in ["", ".", "..", "../x", "a/b", ".hidden", "manifest-1.json", "é"] {
            assert!(check_part_name(name).is_err(), "{name}");
        }
        assert!(check_part_name("part-00000.parquet").is_ok());
    }
}
