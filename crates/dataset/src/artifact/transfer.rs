//! Moving parts between files and stores, with their digests taken on the way and bounded memory.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tidegate_api::manifest::Part;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::ArtifactError;
use crate::progress::Cancel;

/// How much is in memory at a time; also what S3 takes as the smallest piece of a large object.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;

/// How much of a file is read at a time.
const READ_BYTES: usize = 1024 * 1024;

/// A part on its way into a store. It becomes visible only if its digest is right.
pub(super) struct Sink {
    store: Arc<dyn ObjectStore>,
    object: ObjectPath,
    part: Part,
    /// Absent for a part that fits into one piece.
    upload: Option<Box<dyn MultipartUpload>>,
    single: Vec<u8>,
    hasher: Sha256,
    bytes: u64,
}

impl Sink {
    pub(super) async fn new(
        store: &Arc<dyn ObjectStore>,
        object: ObjectPath,
        part: &Part,
    ) -> Result<Self, ArtifactError> {
        let upload = if part.bytes <= CHUNK_BYTES as u64 {
            None
        } else {
            let started = store.put_multipart(&object).await;
            Some(started.map_err(|source| ArtifactError::store(&object, source))?)
        };
        Ok(Self {
            store: Arc::clone(store),
            object,
            part: part.clone(),
            upload,
            single: Vec::new(),
            hasher: Sha256::new(),
            bytes: 0,
        })
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), ArtifactError> {
        self.hasher.update(&chunk);
        self.bytes += chunk.len() as u64;
        match &mut self.upload {
            Some(upload) => {
                upload.put_part(chunk.into()).await.map_err(|source| ArtifactError::store(&self.object, source))
            }
            None => {
                self.single.extend_from_slice(&chunk);
                Ok(())
            }
        }
    }

    /// Makes the part visible if all of it came and its digest is right, and drops it otherwise.
    pub(super) async fn finish(self, artifact: &str, written: Result<(), ArtifactError>) -> Result<(), ArtifactError> {
        let found = hex::encode(self.hasher.finalize());
        let checked = written.and_then(|()| {
            if found == self.part.sha256 && self.bytes == self.part.bytes {
                return Ok(());
            }
            Err(ArtifactError::damaged(artifact, &self.part, found))
        });
        let store_error = |source| ArtifactError::store(&self.object, source);
        match (checked, self.upload) {
            (Ok(()), Some(mut upload)) => {
                upload.complete().await.map_err(store_error)?;
            }
            (Ok(()), None) => {
                let put = self.store.put(&self.object, self.single.into()).await;
                put.map_err(store_error)?;
            }
            (Err(error), upload) => {
                if let Some(mut upload) = upload {
                    // What counts is why it failed; the store tidies up what it can't abort.
                    let _ = upload.abort().await;
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

fn check(cancel: &Cancel) -> Result<(), ArtifactError> {
    if cancel.is_cancelled() { Err(ArtifactError::Cancelled) } else { Ok(()) }
}

/// Copies a local file into a sink, and finishes it.
pub(super) async fn copy_file(mut sink: Sink, part: &Part, path: &Path, cancel: &Cancel) -> Result<(), ArtifactError> {
    let artifact = sink.object.parts().nth(1).map(|id| id.as_ref().to_owned());
    let written = read_file(&mut sink, part, path, cancel).await;
    sink.finish(&artifact.unwrap_or_default(), written).await
}

async fn read_file(sink: &mut Sink, part: &Part, path: &Path, cancel: &Cancel) -> Result<(), ArtifactError> {
    let disk_error = |source| disk_error(path, source);
    // One byte more than there should be, so that a longer file shows.
    let file = tokio::fs::File::open(path).await.map_err(disk_error)?;
    let mut file = file.take(part.bytes.saturating_add(1));
    loop {
        check(cancel)?;
        let mut chunk = Vec::new();
        let room = (CHUNK_BYTES as u64).min(part.bytes + 1 - sink.bytes) as usize;
        chunk.reserve_exact(room);
        while chunk.len() < room {
            if file.read_buf(&mut chunk).await.map_err(disk_error)? == 0 {
                break;
            }
        }
        if chunk.is_empty() {
            return Ok(());
        }
        sink.write(chunk.into()).await?;
        if sink.bytes > part.bytes {
            return Ok(());
        }
    }
}

/// Copies an object of another store into a sink, without finishing it.
pub(super) async fn copy_object(
    source: &Arc<dyn ObjectStore>,
    object: &ObjectPath,
    sink: &mut Sink,
    part: &Part,
    cancel: &Cancel,
    report: &mut (dyn FnMut(u64) + Send),
) -> Result<(), ArtifactError> {
    let mut chunks = Chunks::new(source, object, part);
    while let Some(chunk) = chunks.next(cancel).await? {
        sink.write(chunk).await?;
        report(chunks.position);
    }
    Ok(())
}

/// The SHA-256 of an object, or what else is wrong with it; `None` if it is not there. An object
/// of another size than the part's is not read.
pub(super) async fn digest_object(
    store: &Arc<dyn ObjectStore>,
    object: &ObjectPath,
    part: &Part,
    cancel: &Cancel,
    report: &mut (dyn FnMut(u64) + Send),
) -> Result<Option<String>, ArtifactError> {
    let size = match store.head(object).await {
        Ok(meta) => meta.size,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(source) => return Err(ArtifactError::store(object, source)),
    };
    if size != part.bytes {
        return Ok(Some(size_note(size, part)));
    }
    let mut hasher = Sha256::new();
    let mut chunks = Chunks::new(store, object, part);
    while let Some(chunk) = chunks.next(cancel).await? {
        hasher.update(&chunk);
        report(chunks.position);
    }
    Ok(Some(hex::encode(hasher.finalize())))
}

fn size_note(size: u64, part: &Part) -> String {
    format!("not asked for: it has {size} bytes and should have {}", part.bytes)
}

/// Fetches a part into a local file.
pub(super) struct Fetch<'a> {
    pub(super) store: &'a Arc<dyn ObjectStore>,
    pub(super) object: ObjectPath,
    pub(super) artifact: &'a str,
    pub(super) part: &'a Part,
    /// Whether the file has to survive a crash of the machine.
    pub(super) is_kept: bool,
}

impl Fetch<'_> {
    /// Fetches it by way of `partial`, which stays where the transfer breaks, and is gone on with the next time. The
    /// file appears only when its digest was found to be right.
    pub(super) async fn to_file(
        &self,
        path: &Path,
        partial: &Path,
        cancel: &Cancel,
        report: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), ArtifactError> {
        let size = match self.store.head(&self.object).await {
            Ok(meta) => meta.size,
            Err(object_store::Error::NotFound { .. }) => {
                let parts = vec![self.part.name.clone()];
                return Err(ArtifactError::Missing { artifact: self.artifact.to_owned(), parts });
            }
            Err(source) => return Err(ArtifactError::store(&self.object, source)),
        };
        if size != self.part.bytes {
            return Err(ArtifactError::damaged(self.artifact, self.part, size_note(size, self.part)));
        }
        let disk_error = |source| disk_error(partial, source);
        let mut started = Started::open(partial, self.part.bytes, cancel).await?;
        loop {
            let had = started.bytes;
            let found = self.go_on(started, partial, cancel, report).await?;
            if found == self.part.sha256 {
                tokio::fs::rename(partial, path).await.map_err(disk_error)?;
                return if self.is_kept { sync_folder_of(path).await } else { Ok(()) };
            }
            tokio::fs::remove_file(partial).await.map_err(disk_error)?;
            if had == 0 {
                return Err(ArtifactError::damaged(self.artifact, self.part, found));
            }
            // What was left of before may have been at fault: a crash can leave a file with holes.
            started = Started::open(partial, self.part.bytes, cancel).await?;
        }
    }

    async fn go_on(
        &self,
        started: Started,
        partial: &Path,
        cancel: &Cancel,
        report: &mut (dyn FnMut(u64) + Send),
    ) -> Result<String, ArtifactError> {
        let Started { mut file, mut hasher, bytes } = started;
        let disk_error = |source| disk_error(partial, source);
        let mut chunks = Chunks::new(self.store, &self.object, self.part);
        chunks.position = bytes;
        while let Some(chunk) = chunks.next(cancel).await? {
            hasher.update(&chunk);
            file.write_all(&chunk).await.map_err(disk_error)?;
            // Else what has come might be lost when this is cut off.
            file.flush().await.map_err(disk_error)?;
            report(chunks.position);
        }
        if self.is_kept {
            file.sync_all().await.map_err(disk_error)?;
        }
        Ok(hex::encode(hasher.finalize()))
    }
}

/// Makes a rename within the folder survive a crash of the machine.
async fn sync_folder_of(path: &Path) -> Result<(), ArtifactError> {
    let folder = path.parent().unwrap_or(path);
    let disk_error = |source| disk_error(folder, source);
    let opened = tokio::fs::File::open(folder).await.map_err(disk_error)?;
    opened.sync_all().await.map_err(disk_error)
}

/// A file of which the beginning may be there, read up to its end.
struct Started {
    file: tokio::fs::File,
    hasher: Sha256,
    bytes: u64,
}

impl Started {
    async fn open(path: &Path, bytes_max: u64, cancel: &Cancel) -> Result<Self, ArtifactError> {
        let disk_error = |source| disk_error(path, source);
        let options = tokio::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(path).await.map_err(disk_error)?;
        if file.metadata().await.map_err(disk_error)?.len() > bytes_max {
            file.set_len(0).await.map_err(disk_error)?;
        }
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            check(cancel)?;
            let count = file.read(&mut buffer).await.map_err(disk_error)?;
            if count == 0 {
                return Ok(Self { file, hasher, bytes });
            }
            hasher.update(&buffer[..count]);
            bytes += count as u64;
        }
    }
}

fn disk_error(path: &Path, source: std::io::Error) -> ArtifactError {
    ArtifactError::Disk { path: path.display().to_string(), source }
}

/// Reads an object of a known size piece by piece.
struct Chunks<'a> {
    store: &'a Arc<dyn ObjectStore>,
    object: &'a ObjectPath,
    position: u64,
    size: u64,
}

impl<'a> Chunks<'a> {
    fn new(store: &'a Arc<dyn ObjectStore>, object: &'a ObjectPath, part: &Part) -> Self {
        Self { store, object, position: 0, size: part.bytes }
    }

    async fn next(&mut self, cancel: &Cancel) -> Result<Option<Bytes>, ArtifactError> {
        check(cancel)?;
        if self.position == self.size {
            return Ok(None);
        }
        let end = (self.position + CHUNK_BYTES as u64).min(self.size);
        let chunk = self
            .store
            .get_range(self.object, self.position..end)
            .await
            .map_err(|source| ArtifactError::store(self.object, source))?;
        // A store that gives less than was asked for has a shorter object than it said.
        self.position = if chunk.is_empty() { self.size } else { self.position + chunk.len() as u64 };
        Ok(Some(chunk))
    }
}
