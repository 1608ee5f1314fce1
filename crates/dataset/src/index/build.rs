//! Building an index from an artifact's parts.
//!
//! Parts are ranges of hashes, so that they are taken one after the other: each is sorted by hash
//! (within a memory bound, see [`crate::sort`]) and appended.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_api::manifest::{Manifest, Part};

use super::bucket::{BODY_HEADER_BYTES, HEAD_BYTES, RECORD_ALIGNMENT, bucket_count};
use super::format::HEADER_BYTES;
use super::line::{LINE_BYTES, line_count};
use super::write::{IndexWriter, compressor};
use super::{Damaged, Index, OpenError, VALUE_BYTES_MAX};
use crate::artifact::{ArtifactError, ArtifactStore, check_manifest};
use crate::input::{Compression, Format, InputError, InputFile};
use crate::key::{KeyCodec, hash, partition_of};
use crate::part::check_row_groups;
use crate::progress::{Cancel, OnProgress, Phase, Progress};
use crate::records::{Reading, read_records};
use crate::sort::{Origin, SortedRuns, Sorter, SpillError};

/// Why an index was not built. Nothing is left of it then.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The artifact can't be read, or is damaged.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A part has the right digest and still can't be read.
    #[error("part {part} can't be read: {source}")]
    Part {
        /// The part's name.
        part: String,
        /// What is wrong with it.
        source: Box<InputError>,
    },
    /// The records are not those that the manifest speaks of.
    #[error(
        "the parts have {records} records with digest {digest}; the manifest says {expected_records} with {expected_digest}"
    )]
    Content {
        /// Records in the parts.
        records: u64,
        /// Digest over them.
        digest: String,
        /// Records by the manifest.
        expected_records: u64,
        /// Digest by the manifest.
        expected_digest: String,
    },
    /// A part holds a record of another partition.
    #[error("part {part} holds a record that belongs into another one")]
    WrongPartition {
        /// The part's name.
        part: String,
    },
    /// A part holds a key twice. What would answer were chance.
    #[error("part {part} holds a key more than once")]
    DuplicateKey {
        /// The part's name.
        part: String,
    },
    /// The parts hold more than the manifest says, by which room was found for them.
    #[error("part {part}: the values take more than the {expected} bytes that the manifest says")]
    MoreThanSaid {
        /// The part's name.
        part: String,
        /// Bytes by the manifest.
        expected: u64,
    },
    /// A value is too large for an index.
    #[error("part {part}: a value takes {bytes} bytes, the limit is {VALUE_BYTES_MAX}")]
    ValueTooLarge {
        /// The part's name.
        part: String,
        /// Its encoded size.
        bytes: usize,
    },
    /// A file can't be written or read.
    #[error("{path}: {}", crate::build::describe_disk_error(source))]
    Disk {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// What was written can't be opened: the disk lies.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl From<SpillError> for IndexError {
    fn from(error: SpillError) -> Self {
        disk_error(&error.path, error.source)
    }
}

pub(super) fn disk_error(path: &Path, source: std::io::Error) -> IndexError {
    IndexError::Disk { path: path.display().to_string(), source }
}

/// Whether values are compressed with a dictionary trained on some of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexCompression {
    /// Where it pays: at least 256 MiB of data, of which a sample shrinks to 60 % or less. Below
    /// that, memory is cheaper than the microsecond that unpacking takes.
    #[default]
    Auto,
    /// Never.
    Never,
    /// Wherever a dictionary can be trained.
    Always,
}

const COMPRESSION_DATA_BYTES_MIN: u64 = 256 * 1024 * 1024;
const COMPRESSION_RATIO_MAX: f64 = 0.6;
const DICTIONARY_BYTES_MAX: usize = 64 * 1024;
const TRAINING_BYTES_MAX: usize = 2 * 1024 * 1024;
const TRAINING_VALUES_MIN: usize = 64;

/// About how large the index of an artifact is, in bytes (without compression).
#[must_use]
pub fn bytes_estimate(manifest: &Manifest) -> u64 {
    let records = manifest.record_count;
    let buckets = bucket_count(records);
    let fields = manifest.schema.fields.len() as u64;
    let record_bytes = (BODY_HEADER_BYTES + RECORD_ALIGNMENT) as u64 + fields.div_ceil(8) + fields;
    // A manifest says what its writer likes: too much stays too much.
    (HEADER_BYTES as u64)
        .saturating_add(line_count(buckets).saturating_mul(LINE_BYTES as u64))
        // A head, and on average half of one that fills the bucket up.
        .saturating_add(buckets.saturating_mul((HEAD_BYTES + HEAD_BYTES / 2) as u64))
        .saturating_add(records.saturating_mul(record_bytes))
        .saturating_add(manifest.data_bytes)
        .saturating_add(64 * fields)
}

/// Builds the index of an artifact at a path.
#[derive(Clone, Debug)]
#[must_use]
pub struct IndexBuilder {
    path: PathBuf,
    memory_bytes: usize,
    compression: IndexCompression,
}

impl IndexBuilder {
    /// A builder that sorts within 64 MiB and compresses where it pays. The index will be the file
    /// at this path; next to it, names that begin with it and a dot are used for temporary files.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), memory_bytes: 64 * 1024 * 1024, compression: IndexCompression::Auto }
    }

    /// Sorts within so many bytes (at least 1 MiB).
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes.max(1024 * 1024);
        self
    }

    /// Whether to compress values.
    pub fn compression(mut self, compression: IndexCompression) -> Self {
        self.compression = compression;
        self
    }

    /// Builds from parts in a local folder, after checking their digests. If the index of this
    /// very artifact is there and opens, it is taken as it is. Blocks.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub fn build(
        &self,
        folder: &Path,
        manifest: &Manifest,
        progress: OnProgress<'_>,
        cancel: &Cancel,
    ) -> Result<Index, IndexError> {
        let mut fetch = |part: &Part, _: &Path| {
            let path = folder.join(&part.name);
            check_part(&manifest.artifact_id, part, &path, cancel)?;
            Ok(path)
        };
        self.build_with(manifest, &mut fetch, progress, cancel)
    }

    /// Builds from an artifact store: each part is fetched, checked, and removed again. If the
    /// index of this very artifact is there and opens, it is taken as it is. Dropping the future
    /// raises `cancel`.
    ///
    /// # Errors
    /// See [`IndexError`].
    pub async fn build_from_store(
        self,
        store: ArtifactStore,
        manifest: Arc<Manifest>,
        progress: Arc<dyn Fn(Progress) + Send + Sync>,
        cancel: Cancel,
    ) -> Result<Index, IndexError> {
        struct Guard(Option<Cancel>);
        impl Drop for Guard {
            fn drop(&mut self) {
                if let Some(cancel) = &self.0 {
                    cancel.cancel();
                }
            }
        }
        let mut guard = Guard(Some(cancel.clone()));
        let runtime = tokio::runtime::Handle::current();
        let worker = tokio::task::spawn_blocking(move || {
            let id = &manifest.artifact_id;
            let mut fetch = |part: &Part, folder: &Path| {
                let path = folder.join("part");
                runtime.block_on(store.fetch_part(id, part, &path, &cancel))?;
                Ok(path)
            };
            self.build_with(&manifest, &mut fetch, &*progress, &cancel)
        });
        let built = worker.await;
        guard.0 = None;
        match built {
            Ok(built) => built,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(IndexError::Cancelled),
            },
        }
    }

    fn beside(&self, extension: &str) -> PathBuf {
        let mut path = self.path.as_os_str().to_owned();
        path.push(extension);
        path.into()
    }

    fn build_with(
        &self,
        manifest: &Manifest,
        fetch: &mut dyn FnMut(&Part, &Path) -> Result<PathBuf, IndexError>,
        progress: OnProgress<'_>,
        cancel: &Cancel,
    ) -> Result<Index, IndexError> {
        check_manifest(manifest)?;
        let (partial, folder) = (self.beside(".partial"), self.beside(".work"));
        self.tidy(&partial, &folder)?;
        if let Ok(index) = Index::open(&self.path)
            && index.artifact_id() == manifest.artifact_id
            && index.content_digest() == manifest.content_digest
            && index.record_count() == manifest.record_count
        {
            return Ok(index);
        }
        std::fs::create_dir_all(&folder).map_err(|source| disk_error(&folder, source))?;
        let built = Building { builder: self, manifest, folder: &folder, progress, cancel }.run(&partial, fetch);
        match built {
            Ok(()) => {
                std::fs::rename(&partial, &self.path).map_err(|source| disk_error(&self.path, source))?;
                self.tidy(&partial, &folder)?;
                self.flush_folder()?;
                Ok(Index::open(&self.path)?)
            }
            Err(error) => {
                // What went wrong first is what counts; the next build tidies up in any case.
                let _ = self.tidy(&partial, &folder);
                Err(error)
            }
        }
    }

    fn tidy(&self, partial: &Path, folder: &Path) -> Result<(), IndexError> {
        let absent = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        match std::fs::remove_file(partial) {
            Err(error) if !absent(&error) => return Err(disk_error(partial, error)),
            _ => {}
        }
        match std::fs::remove_dir_all(folder) {
            Err(error) if !absent(&error) => Err(disk_error(folder, error)),
            _ => Ok(()),
        }
    }

    fn flush_folder(&self) -> Result<(), IndexError> {
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(|source| disk_error(parent, source))
    }
}

/// Reads a local part and compares it with its digest.
fn check_part(artifact: &str, part: &Part, path: &Path, cancel: &Cancel) -> Result<(), IndexError> {
    use sha2::{Digest, Sha256};
    use std::io::Read;
    let mut file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(IndexError::Artifact(ArtifactError::Missing {
                artifact: artifact.to_owned(),
                parts: vec![part.name.clone()],
            }));
        }
        opened => opened.map_err(|source| disk_error(path, source))?,
    };
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        if cancel.is_cancelled() {
            return Err(IndexError::Cancelled);
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(disk_error(path, source)),
        }
    }
    let found = hex::encode(hasher.finalize());
    if found == part.sha256 { Ok(()) } else { Err(ArtifactError::damaged(artifact, part, found).into()) }
}

struct Building<'a> {
    builder: &'a IndexBuilder,
    manifest: &'a Manifest,
    folder: &'a Path,
    progress: OnProgress<'a>,
    cancel: &'a Cancel,
}

impl Building<'_> {
    fn run(
        &self,
        partial: &Path,
        fetch: &mut dyn FnMut(&Part, &Path) -> Result<PathBuf, IndexError>,
    ) -> Result<(), IndexError> {
        let keys = KeyCodec::new(&self.manifest.schema, &self.manifest.key_columns).map_err(|error| {
            ArtifactError::BadManifest { artifact: self.manifest.artifact_id.clone(), why: error.to_string() }
        })?;
        let mut writer = IndexWriter::create(partial, self.manifest.record_count)?;
        let mut room = self.manifest.data_bytes;
        for (partition, part) in self.manifest.parts.iter().enumerate() {
            if self.cancel.is_cancelled() {
                return Err(IndexError::Cancelled);
            }
            let path = fetch(part, self.folder).map_err(|error| match error {
                IndexError::Artifact(ArtifactError::Cancelled) => IndexError::Cancelled,
                other => other,
            })?;
            let runs = self.sort(partition as u32, part, &path, &keys, &mut room)?;
            if part.rows > 0 && !writer.is_trained {
                let dictionary = self.train(&runs)?;
                writer.train(dictionary)?;
            }
            self.append(part, &runs, &mut writer)?;
        }
        let (records, digest) = (writer.written, writer.digest.to_text());
        if records != self.manifest.record_count || digest != self.manifest.content_digest {
            return Err(IndexError::Content {
                records,
                digest,
                expected_records: self.manifest.record_count,
                expected_digest: self.manifest.content_digest.clone(),
            });
        }
        if self.cancel.is_cancelled() {
            return Err(IndexError::Cancelled);
        }
        writer.finish(self.manifest)
    }

    /// Sorts one part by hash. Its values may take what is left of `room`.
    fn sort(
        &self,
        partition: u32,
        part: &Part,
        path: &Path,
        keys: &KeyCodec,
        room: &mut u64,
    ) -> Result<SortedRuns, IndexError> {
        check_row_groups(path).map_err(|source| IndexError::Part {
            part: part.name.clone(),
            source: Box::new(InputError::Parquet { path: path.display().to_string(), source }),
        })?;
        let file = InputFile {
            path: path.to_path_buf(),
            format: Format::Parquet,
            compression: Compression::None,
            bytes: part.bytes,
        };
        let reading = Reading {
            files: std::slice::from_ref(&file),
            schema: &self.manifest.schema,
            keys,
            row_bytes_max: VALUE_BYTES_MAX,
            folder: self.folder,
            progress: &|_| {},
            cancel: self.cancel,
        };
        enum Failed {
            Input(InputError),
            Index(IndexError),
        }
        impl From<InputError> for Failed {
            fn from(error: InputError) -> Self {
                Failed::Input(error)
            }
        }
        let mut sorter = Sorter::new(self.folder, 1, self.builder.memory_bytes);
        let mut sort_key = Vec::new();
        read_records::<Failed>(&reading, &mut |record| {
            let hash = hash(record.key);
            if partition_of(hash, self.manifest.partition_count) != partition {
                return Err(Failed::Index(IndexError::WrongPartition { part: part.name.clone() }));
            }
            if record.value.len() > VALUE_BYTES_MAX {
                return Err(Failed::Index(IndexError::ValueTooLarge {
                    part: part.name.clone(),
                    bytes: record.value.len(),
                }));
            }
            *room = room.checked_sub(record.payload_bytes).ok_or_else(|| {
                Failed::Index(IndexError::MoreThanSaid { part: part.name.clone(), expected: self.manifest.data_bytes })
            })?;
            sort_key.clear();
            sort_key.extend(hash.to_be_bytes());
            sort_key.extend_from_slice(record.key);
            let origin = Origin::new(0, record.row);
            sorter.push(0, &sort_key, record.value, origin).map_err(|error| Failed::Index(error.into()))
        })
        .map_err(|failed| match failed {
            Failed::Input(InputError::Cancelled) => IndexError::Cancelled,
            Failed::Input(source) => IndexError::Part { part: part.name.clone(), source: Box::new(source) },
            Failed::Index(error) => error,
        })?;
        let mut runs = sorter.finish()?;
        let memory = self.builder.memory_bytes;
        if runs.reduce(memory, memory, || !self.cancel.is_cancelled())? { Ok(runs) } else { Err(IndexError::Cancelled) }
    }

    /// A dictionary for the values, if one pays. Records in hash order are a fair sample, and the
    /// same one for the same artifact.
    fn train(&self, runs: &SortedRuns) -> Result<Option<Vec<u8>>, IndexError> {
        match self.builder.compression {
            IndexCompression::Never => return Ok(None),
            IndexCompression::Auto if self.manifest.data_bytes < COMPRESSION_DATA_BYTES_MIN => {
                return Ok(None);
            }
            IndexCompression::Auto | IndexCompression::Always => {}
        }
        let (mut samples, mut sizes) = (Vec::new(), Vec::new());
        let mut merge = runs.merge(0, self.builder.memory_bytes)?;
        while let Some(record) = merge.next()? {
            if samples.len() + record.value.len() > TRAINING_BYTES_MAX {
                break;
            }
            samples.extend_from_slice(record.value);
            sizes.push(record.value.len());
        }
        if sizes.len() < TRAINING_VALUES_MIN {
            return Ok(None);
        }
        // Every other value trains, the rest tell what it is worth. No dictionary from data that
        // zstd finds nothing in.
        let (mut training, mut training_sizes, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for (position, size) in sizes.iter().enumerate() {
            let value = &samples[start..start + size];
            start += size;
            if position % 2 == 0 {
                training.extend_from_slice(value);
                training_sizes.push(*size);
            } else {
                rest.push(value);
            }
        }
        let trained = zstd::dict::from_continuous(&training, &training_sizes, DICTIONARY_BYTES_MAX);
        let Ok(dictionary) = trained else {
            return Ok(None);
        };
        let mut compressor = compressor(&dictionary, &self.builder.path)?;
        let (mut before, mut after) = (0usize, 0usize);
        for value in rest {
            before += value.len();
            let compressed = compressor.compress(value).map_err(|source| disk_error(&self.builder.path, source))?;
            after += compressed.len().min(value.len());
        }
        let pays = after as f64 <= before as f64 * COMPRESSION_RATIO_MAX;
        let keep = pays || self.builder.compression == IndexCompression::Always;
        Ok(keep.then_some(dictionary))
    }

    fn append(&self, part: &Part, runs: &SortedRuns, writer: &mut IndexWriter) -> Result<(), IndexError> {
        let mut merge = runs.merge(0, self.builder.memory_bytes)?;
        let mut before = Vec::new();
        while let Some(record) = merge.next()? {
            if record.key == before.as_slice() {
                return Err(IndexError::DuplicateKey { part: part.name.clone() });
            }
            before.clear();
            before.extend_from_slice(record.key);
            if writer.written.is_multiple_of(1024) {
                if self.cancel.is_cancelled() {
                    return Err(IndexError::Cancelled);
                }
                (self.progress)(Progress {
                    phase: Phase::Indexing,
                    done: writer.written,
                    total: self.manifest.record_count,
                    records: writer.written,
                });
            }
            let (hash, key) = record.key.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
            writer.push(u64::from_be_bytes(*hash), key, record.value)?;
        }
        Ok(())
    }
}

impl From<Damaged> for IndexError {
    fn from(damaged: Damaged) -> Self {
        IndexError::Open(damaged.into())
    }
}
