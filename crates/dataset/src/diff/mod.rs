//! Comparing two inputs or two artifacts, without any server and with bounded memory.
//!
//! Files are built into artifacts in the work folder first, so that there is one code path, and
//! the figures are those that a push of these files would have. Then partitions are read side by
//! side in key order.
//!
//! A key counts as *changed* if a field that both sides have differs; fields that only one side
//! has are reported as such, and change no record. CSV columns are read as the type that suits
//! both sides, so that `1` and `1.0` are no difference just because another cell had a fraction.

mod compare;
mod render;
mod sides;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_api::manifest::{FieldStatistics, FieldType};

use crate::artifact::ArtifactError;
use crate::build::BuildError;

use crate::input::InputError;
use crate::progress::{Cancel, OnProgress};

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiffInput {
    /// Input files, as a build takes them.
    Files(Vec<PathBuf>),
    /// A local folder that holds an artifact: its parts and `manifest.json`.
    Artifact(PathBuf),
}

/// How a comparison is done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiffOptions {
    /// The columns that make up the key, in key order. May be empty if one side is an artifact.
    pub key_columns: Vec<String>,
    /// How much memory builds may use, in bytes.
    pub memory_bytes: usize,
    /// How many keys of each kind are named.
    pub examples_max: usize,
    /// Where files are built. It is emptied again at the end.
    pub work_dir: PathBuf,
}

impl DiffOptions {
    /// Options with 256 MiB of memory and 10 examples of each kind.
    pub fn new<K: Into<String>>(key_columns: impl IntoIterator<Item = K>, work_dir: impl Into<PathBuf>) -> Self {
        Self {
            key_columns: key_columns.into_iter().map(Into::into).collect(),
            memory_bytes: 256 * 1024 * 1024,
            examples_max: 10,
            work_dir: work_dir.into(),
        }
    }
}

/// Why two things could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A side can't be read or built.
    #[error("{side}: {source}")]
    Build {
        /// Which of the two, as it was named.
        side: String,
        /// What is wrong with it.
        source: Box<BuildError>,
    },
    /// An artifact's folder can't be read.
    #[error("{folder}: no artifact can be read there: {why}")]
    Artifact {
        /// The folder.
        folder: String,
        /// What is wrong with it.
        why: String,
    },
    /// An artifact's manifest can't be used.
    #[error(transparent)]
    Manifest(#[from] ArtifactError),
    /// No key columns are known.
    #[error("no key column is named; name those that tell records apart")]
    NoKey,
    /// The two sides have other key columns, or ones of other types.
    #[error("the keys can't be compared: {a} against {b}")]
    Keys {
        /// Key columns and types of the first.
        a: String,
        /// Key columns and types of the second.
        b: String,
    },
    /// A part can't be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A temporary file can't be written.
    #[error("{path}: {}", crate::build::describe_disk_error(source))]
    Disk {
        /// The file or folder.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The comparison was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// One of the two sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiffSide {
    /// As it was named.
    pub name: String,
    /// Records, each key once.
    pub records: u64,
    /// Rows that repeated a record.
    pub duplicates: u64,
    /// Size of all data before encoding and compression, in bytes.
    pub data_bytes: u64,
}

/// A field in both sides, or one of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FieldDiff {
    /// Its name.
    pub name: String,
    /// Its type in the first side, if it is there.
    pub type_a: Option<FieldType>,
    /// Its type in the second side, if it is there.
    pub type_b: Option<FieldType>,
    /// Keys on both sides whose values differ in this field.
    pub changed: u64,
    /// Its statistics in the first side.
    pub a: Option<FieldStatistics>,
    /// Its statistics in the second side.
    pub b: Option<FieldStatistics>,
}

/// A field of a changed record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangedField {
    /// Its name.
    pub name: String,
    /// Its value in the first side.
    pub a: Value,
    /// Its value in the second side.
    pub b: Value,
}

/// A key whose value differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangedRecord {
    /// The key as people write it.
    pub key: String,
    /// The fields that differ.
    pub fields: Vec<ChangedField>,
}

/// What is different between two sides. `Display` writes it for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiffReport {
    /// The first side.
    pub a: DiffSide,
    /// The second side.
    pub b: DiffSide,
    /// Keys that only the second has.
    pub added: u64,
    /// Keys that only the first has.
    pub removed: u64,
    /// Keys that both have, with different values.
    pub changed: u64,
    /// Keys that both have, with the same value.
    pub unchanged: u64,
    /// All fields: the first side's in order, then those that only the second has.
    pub fields: Vec<FieldDiff>,
    /// Some keys that were added.
    pub added_keys: Vec<String>,
    /// Some keys that were removed.
    pub removed_keys: Vec<String>,
    /// Some records that were changed.
    pub changed_records: Vec<ChangedRecord>,
}

impl DiffReport {
    /// Whether both sides hold the same records with the same fields.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.added == 0
            && self.removed == 0
            && self.changed == 0
            && self.fields.iter().all(|field| field.type_a == field.type_b)
    }
}

/// Compares `b` against `a`. Blocks; call it where blocking is allowed.
///
/// # Errors
/// See [`DiffError`].
pub fn diff(
    a: &DiffInput,
    b: &DiffInput,
    options: &DiffOptions,
    progress: OnProgress<'_>,
    cancel: &Cancel,
) -> Result<DiffReport, DiffError> {
    let compared = sides::prepare(a, b, options, progress, cancel)
        .and_then(|(a, b)| compare::compare(&a, &b, options, progress, cancel));
    sides::tidy(options)?;
    compared
}
