//! Building an artifact from input files.
//!
//! Two passes: rows are parsed, encoded and sorted by partition and key ([`crate::key`]), with
//! what does not fit into memory on disk; then each partition is merged and written as one part.
//!
//! Invariants:
//! - the parts' bytes, and so the artifact's id, depend on the set of records, the schema, the
//!   key columns and the number of partitions alone: not on the memory bound, threads, file names,
//!   the order of files or rows, or how often equal rows repeat;
//! - what is allocated stays within [`BuildOptions::memory_bytes`] (compression libraries' own
//!   memory, a few hundred KiB per thread, and the pages of foreign Parquet files come on top);
//! - a folder called `artifact` in the work folder is whole: it appears by a rename after its
//!   manifest was written. What an interrupted build left is removed by the next one.

mod options;
mod partitions;

use std::path::{Path, PathBuf};

use tidegate_api::manifest::{Field, GoldenKey, HASH_FUNCTION, MANIFEST_FORMAT, Manifest, Schema};

pub use options::BuildOptions;

use crate::digest::{artifact_id, sha256};
use crate::folder_lock::{FolderLock, FolderLockError};
use crate::infer::infer_files;
use crate::input::{InputError, InputFile, Place, discover, display};
use crate::key::{KEY_BYTES_MAX, KeyCodec, KeyError, partition_of, shorten};
use crate::part::PartError;
use crate::progress::{Cancel, OnProgress};
use crate::records::{Reading, Record, read_records};
use crate::schema::SchemaError;
use crate::sort::{Origin, Sorter, SpillError};
use partitions::{Merged, Merging, merge_partitions};

/// The manifest's file name within an artifact's folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Why an artifact was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The input can't be read, or a row of it is wrong.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The given schema can't be used.
    #[error("the schema can't be used: {0}")]
    Schema(#[from] SchemaError),
    /// A number among the options is out of range.
    #[error("{option} is {given}; it must be {range}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What was given.
        given: u64,
        /// What may be given.
        range: String,
    },
    /// One of the store's golden keys is no key of this schema.
    #[error("a golden key can't be looked for: {0}")]
    GoldenKey(KeyError),
    /// A value is larger than the store allows.
    #[error("{place}: the value of key `{key}` takes {bytes} bytes, the store's limit is {limit}")]
    ValueTooLarge {
        /// The row.
        place: Place,
        /// Its key.
        key: String,
        /// Size of the value: text and binary count their length, numbers their width.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A record is too large to be sorted under the memory bound.
    #[error("{place}: the record of key `{key}` takes {bytes} bytes, the limit under this memory bound is {limit}")]
    RecordTooLarge {
        /// The row.
        place: Place,
        /// Its key.
        key: String,
        /// Size of the encoded record.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A key is longer than any key may be.
    #[error("{place}: the key `{key}` takes {bytes} bytes, the limit is {KEY_BYTES_MAX}")]
    KeyTooLong {
        /// The row.
        place: Place,
        /// The key, cut to a sensible length.
        key: String,
        /// Its encoded size.
        bytes: usize,
    },
    /// Keys appear more than once with different values.
    #[error("{}", describe_conflicts(*count, conflicts))]
    DuplicateKeys {
        /// How many keys there are of this kind.
        count: u64,
        /// The first of them, at most [`BuildOptions::CONFLICTS_MAX`].
        conflicts: Vec<Conflict>,
    },
    /// There is no record, and the options don't allow that.
    #[error("the input is empty: no record in {files} file(s); allow that if it is meant")]
    Empty {
        /// How many files there are.
        files: usize,
    },
    /// The input was not the same when it was read again.
    #[error(
        "the input changed while it was being read (digest {before}, then {after}); build again when it is complete"
    )]
    InputChanged {
        /// Digest in the first pass.
        before: String,
        /// Digest in the second pass.
        after: String,
    },
    /// Another build uses the same work folder.
    #[error("{folder}: another build is using this work folder")]
    Busy {
        /// The folder.
        folder: String,
    },
    /// A file can't be written or read back.
    #[error("{path}: {}", describe_disk_error(source))]
    Disk {
        /// The file or folder.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A part could not be written for a reason that is not the disk's: a bug.
    #[error("{path}: could not be written: {why}")]
    Part {
        /// The part.
        path: String,
        /// What went wrong.
        why: String,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// A key that appears with two values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The key as people write it.
    pub key: String,
    /// The first row that has it.
    pub first: Place,
    /// The first row that has it with another value.
    pub second: Place,
}

fn describe_conflicts(count: u64, conflicts: &[Conflict]) -> String {
    use std::fmt::Write;
    let mut text = match count {
        1 => String::from("1 key appears more than once with different values:"),
        _ => format!("{count} keys appear more than once with different values:"),
    };
    for conflict in conflicts {
        let Conflict { key, first, second } = conflict;
        // Writing to a string can't fail.
        let _ = write!(text, "\n  `{}`: {first}; and {second}", shorten(key));
    }
    if count > conflicts.len() as u64 {
        let _ = write!(text, "\n  and {} more", count - conflicts.len() as u64);
    }
    text
}

pub(crate) fn describe_disk_error(source: &std::io::Error) -> String {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            format!("no space is left on the disk that holds it; free some, or use another folder ({source})")
        }
        _ => source.to_string(),
    }
}

pub(crate) fn disk_error(path: &Path, source: std::io::Error) -> BuildError {
    BuildError::Disk { path: display(path), source }
}

impl From<SpillError> for BuildError {
    fn from(error: SpillError) -> Self {
        disk_error(&error.path, error.source)
    }
}

impl From<PartError> for BuildError {
    fn from(error: PartError) -> Self {
        match error {
            PartError::Disk { path, source } => disk_error(&path, source),
            PartError::Parquet { path, source } => BuildError::Part { path: display(&path), why: source.to_string() },
            PartError::Malformed(malformed) => {
                BuildError::Part { path: String::from("a part"), why: malformed.to_string() }
            }
        }
    }
}

/// An artifact in a local folder: its parts and its manifest.
#[derive(Clone, Debug)]
pub struct BuiltArtifact {
    /// What it consists of, and what is known about its data.
    pub manifest: Manifest,
    /// SHA-256 of the manifest's file in lower-case hexadecimal.
    pub manifest_digest: String,
    /// The folder that holds the parts and [`MANIFEST_FILE`].
    pub folder: PathBuf,
}

impl BuiltArtifact {
    /// The artifact that a build left in a folder. Parts are not looked at.
    ///
    /// # Errors
    /// If the manifest can't be read.
    pub fn open(folder: impl Into<PathBuf>) -> std::io::Result<Self> {
        let folder = folder.into();
        let bytes = std::fs::read(folder.join(MANIFEST_FILE))?;
        Ok(Self { manifest: serde_json::from_slice(&bytes)?, manifest_digest: sha256(&bytes), folder })
    }
}

/// Builds artifacts with the same options.
#[derive(Clone, Debug)]
pub struct Builder {
    options: BuildOptions,
}

impl Builder {
    /// A builder with these options.
    #[must_use]
    pub fn new(options: BuildOptions) -> Self {
        Self { options }
    }

    /// Builds an artifact in `artifact` below the work folder, and replaces the one that an
    /// earlier build left there. Blocks; call it where blocking is allowed.
    ///
    /// # Errors
    /// See [`BuildError`]. Nothing is left in the work folder then, and an earlier artifact there
    /// stays.
    pub fn build(
        &self,
        paths: &[PathBuf],
        progress: OnProgress<'_>,
        cancel: &Cancel,
    ) -> Result<BuiltArtifact, BuildError> {
        let work = &self.options.work_dir;
        std::fs::create_dir_all(work).map_err(|source| disk_error(work, source))?;
        let _lock = lock(work)?;
        let building = work.join("building");
        remove_folder(&building)?;
        std::fs::create_dir(&building).map_err(|source| disk_error(&building, source))?;
        let built = self.build_in(&building, paths, progress, cancel);
        let (manifest, manifest_digest) = match built {
            Ok(built) => built,
            Err(error) => {
                // What went wrong first is what counts; the next build tidies up in any case.
                let _ = remove_folder(&building);
                return Err(error);
            }
        };
        let folder = work.join("artifact");
        remove_folder(&folder)?;
        std::fs::rename(&building, &folder).map_err(|source| disk_error(&folder, source))?;
        Ok(BuiltArtifact { manifest, manifest_digest, folder })
    }

    fn build_in(
        &self,
        folder: &Path,
        paths: &[PathBuf],
        progress: OnProgress<'_>,
        cancel: &Cancel,
    ) -> Result<(Manifest, String), BuildError> {
        let options = &self.options;
        let files = discover(paths)?;
        let (schema, expected_digest) = match &options.schema {
            Some(schema) => (schema.clone(), options.input_digest.clone()),
            None => {
                let columns = &options.key_columns;
                let inferred = infer_files(&files, columns, None, progress, cancel).map_err(|error| match error {
                    InputError::Empty { files } => BuildError::Empty { files },
                    InputError::Cancelled => BuildError::Cancelled,
                    other => other.into(),
                })?;
                (inferred.schema, Some(inferred.input_digest))
            }
        };
        crate::schema::validate(&schema, &options.key_columns)?;
        let keys = KeyCodec::new(&schema, &options.key_columns).map_err(SchemaError::from)?;
        options.check(&schema)?;
        let golden = options
            .golden_keys
            .iter()
            .map(|key| Ok((key.clone(), keys.parse_text(key)?)))
            .collect::<Result<Vec<_>, KeyError>>()
            .map_err(BuildError::GoldenKey)?;

        let mut sorter = Sorter::new(folder, options.partitions, options.sorter_bytes());
        let reading = Reading {
            files: &files,
            schema: &schema,
            keys: &keys,
            row_bytes_max: options.row_bytes_max(),
            folder,
            progress,
            cancel,
        };
        let input_digest = read_records::<BuildError>(&reading, &mut |record| {
            self.check_record(&files, &keys, record)?;
            let partition = partition_of(crate::key::hash(record.key), options.partitions);
            let origin = Origin::new(record.file, record.row);
            sorter.push(partition, record.key, record.value, origin)?;
            Ok(())
        })
        .map_err(|error| match error {
            BuildError::Input(InputError::Cancelled) => BuildError::Cancelled,
            other => other,
        })?;
        if let Some(before) = expected_digest
            && before != input_digest
        {
            return Err(BuildError::InputChanged { before, after: input_digest });
        }
        if sorter.records() == 0 && !options.allow_empty {
            return Err(BuildError::Empty { files: files.len() });
        }
        let rows = sorter.records();
        let runs = sorter.finish()?;
        let merged = merge_partitions(
            &Merging { options, folder, schema: &schema, keys: &keys, golden: &golden, rows, progress, cancel },
            runs,
        )?;
        if merged.conflict_count > 0 {
            return Err(self.conflicts(&files, &keys, &merged));
        }
        let manifest = self.manifest(schema, input_digest, merged);
        let bytes = serde_json::to_vec(&manifest)
            .map_err(|error| BuildError::Part { path: String::from(MANIFEST_FILE), why: error.to_string() })?;
        let path = folder.join(MANIFEST_FILE);
        std::fs::write(&path, &bytes).map_err(|source| disk_error(&path, source))?;
        Ok((manifest, sha256(&bytes)))
    }

    fn check_record(&self, files: &[InputFile], keys: &KeyCodec, record: &Record<'_>) -> Result<(), BuildError> {
        let key = || shorten(&keys.to_text(record.key).unwrap_or_default());
        let place = || place_of(files, record.file, record.row, record.line);
        if record.key.len() > KEY_BYTES_MAX {
            return Err(BuildError::KeyTooLong { place: place(), key: key(), bytes: record.key.len() });
        }
        if let Some(limit) = self.options.value_bytes_max
            && record.payload_bytes > limit
        {
            return Err(BuildError::ValueTooLarge { place: place(), key: key(), bytes: record.payload_bytes, limit });
        }
        let limit = self.options.row_bytes_max();
        if record.value.len() > limit {
            return Err(BuildError::RecordTooLarge {
                place: place(),
                key: key(),
                bytes: record.value.len() as u64,
                limit: limit as u64,
            });
        }
        Ok(())
    }

    fn conflicts(&self, files: &[InputFile], keys: &KeyCodec, merged: &Merged) -> BuildError {
        let conflicts = merged.conflicts.iter().map(|conflict| {
            let place = |origin: Origin| place_of(files, origin.file(), origin.row(), None);
            Conflict {
                key: keys.to_text(&conflict.key).unwrap_or_default(),
                first: place(conflict.first),
                second: place(conflict.second),
            }
        });
        BuildError::DuplicateKeys { count: merged.conflict_count, conflicts: conflicts.collect() }
    }

    fn manifest(&self, schema: Schema, input_digest: String, merged: Merged) -> Manifest {
        let key_columns = self.options.key_columns.clone();
        let statistics =
            |(field, accumulator): (&Field, &crate::statistics::FieldAccumulator)| accumulator.finish(field);
        Manifest {
            format: MANIFEST_FORMAT,
            artifact_id: artifact_id(&schema, &key_columns, &merged.parts),
            statistics: schema.fields.iter().zip(&merged.statistics).map(statistics).collect(),
            schema,
            key_columns,
            hash_function: HASH_FUNCTION.to_owned(),
            partition_count: self.options.partitions,
            record_count: merged.record_count,
            duplicate_count: merged.duplicate_count,
            input_digest,
            sample: merged.sample,
            golden: self
                .options
                .golden_keys
                .iter()
                .zip(merged.golden)
                .map(|(key, found)| {
                    found.unwrap_or_else(|| GoldenKey { key: key.clone(), value_digest: None, value: None })
                })
                .collect(),
            content_digest: merged.content_digest.to_text(),
            bytes: merged.parts.iter().map(|part| part.bytes).sum(),
            data_bytes: merged.statistics.iter().map(|field| field.bytes()).sum(),
            parts: merged.parts,
        }
    }
}

fn place_of(files: &[InputFile], file: u32, row: u64, line: Option<u64>) -> Place {
    Place { file: files.get(file as usize).map(|file| display(&file.path)).unwrap_or_default(), row, line }
}

fn remove_folder(path: &Path) -> Result<(), BuildError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(disk_error(path, error)),
        _ => Ok(()),
    }
}

/// Holds the work folder for this build.
fn lock(work: &Path) -> Result<FolderLock, BuildError> {
    FolderLock::take(work, "lock").map_err(|error| match error {
        FolderLockError::Held { path } => BuildError::Busy { folder: display(&path) },
        FolderLockError::Unusable { path, source } => disk_error(&path, source),
    })
}
