//! Writing a backup: under a temporary name, flushed, and only then under its own.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::item::Item;
use super::{BackupError, BackupHeader, MAGIC, OnEntity};
use crate::driver::LogEntry;

/// Compresses about as fast as a disk writes.
const COMPRESSION_LEVEL: i32 = 3;

/// What a written backup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// As the file's own first lines say.
    pub header: BackupHeader,
    /// The file's size.
    pub bytes: u64,
    /// SHA-256 of all of the file but its last 32 bytes, which are this, in lower-case hexadecimal.
    pub sha256: String,
}

/// Counts and digests what goes through it.
struct Digested<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Digested<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A backup that is being written. Dropped before it is finished, nothing of it stays. Blocks.
pub(crate) struct BackupWriter {
    stream: zstd::stream::write::Encoder<'static, Digested<BufWriter<NamedTempFile>>>,
    header: BackupHeader,
    to: PathBuf,
    items: u64,
    buffer: Vec<u8>,
    on_entity: OnEntity,
}

impl BackupWriter {
    /// Begins a file beside its later place.
    pub(crate) fn new(to: &Path, header: BackupHeader, on_entity: OnEntity) -> Result<Self, BackupError> {
        let failed = |source| BackupError::File { path: to.to_owned(), source };
        if to.symlink_metadata().is_ok() {
            return Err(BackupError::Exists { path: to.to_owned() });
        }
        let name = to.file_name().ok_or_else(|| failed(io::Error::other("it is no name of a file")))?;
        let prefix = format!(".{}.", name.to_string_lossy());
        let file = tempfile::Builder::new().prefix(&prefix).suffix(".partial").tempfile_in(folder_of(to));
        let file = BufWriter::with_capacity(1 << 20, file.map_err(failed)?);
        let mut plain = Digested { inner: file, hasher: Sha256::new(), bytes: 0 };
        let mut line = serde_json::to_string(&header).expect("a header has only text keys");
        line.push('\n');
        plain.write_all(MAGIC).and_then(|()| plain.write_all(line.as_bytes())).map_err(failed)?;
        let stream = zstd::stream::write::Encoder::new(plain, COMPRESSION_LEVEL).map_err(failed)?;
        Ok(Self { stream, header, to: to.to_owned(), items: 0, buffer: Vec::new(), on_entity })
    }

    pub(crate) fn put(&mut self, item: &Item) -> Result<(), BackupError> {
        match item {
            Item::Entity(row) => (self.on_entity)(&row.path, Some(&row.document)),
            Item::Log(row) if row.revision > self.header.entities_at => {
                for entry in &row.entries {
                    if let LogEntry::Change { path, after, .. } = entry {
                        (self.on_entity)(path, after.as_ref());
                    }
                }
            }
            _ => {}
        }
        self.items += 1;
        self.write(item)
    }

    fn write(&mut self, item: &Item) -> Result<(), BackupError> {
        self.buffer.clear();
        item.encode(&mut self.buffer);
        let failed = |source| BackupError::File { path: self.to.clone(), source };
        let length = u32::try_from(self.buffer.len()).map_err(|error| failed(io::Error::other(error)))?;
        self.stream.write_all(&length.to_le_bytes()).map_err(failed)?;
        self.stream.write_all(&self.buffer).map_err(failed)
    }

    /// Ends the file, and gives it its name once it is on the disk.
    pub(crate) fn finish(mut self) -> Result<Written, BackupError> {
        let end = Item::End(self.items);
        self.write(&end)?;
        let Self { stream, header, to, .. } = self;
        let failed = |source| BackupError::File { path: to.clone(), source };
        let Digested { mut inner, hasher, bytes } = stream.finish().map_err(failed)?;
        let digest = hasher.finalize();
        inner.write_all(&digest).map_err(failed)?;
        let file = inner.into_inner().map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist_noclobber(&to).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists { path: to.clone() },
            _ => failed(error.error),
        })?;
        // The name has to be on the disk too.
        File::open(folder_of(&to)).and_then(|folder| folder.sync_all()).map_err(failed)?;
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Written { header, bytes: bytes + digest.len() as u64, sha256 })
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
