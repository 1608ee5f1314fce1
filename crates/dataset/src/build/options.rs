//! What a build is told.

use std::path::PathBuf;

use tidegate_api::manifest::Schema;

use super::BuildError;
use crate::part::WRITER_BYTES;

/// How an artifact is built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BuildOptions {
    /// The columns that make up the key, in key order.
    pub key_columns: Vec<String>,
    /// How many parts there will be; part of what the artifact's id is made from. 1 to 4096.
    pub partitions: u32,
    /// How much memory the build may allocate, in bytes. What does not fit goes to disk.
    pub memory_bytes: usize,
    /// How many partitions are written at once, as far as memory allows.
    pub threads: usize,
    /// The schema to parse by. Without one, the input is read once more before, to infer it.
    pub schema: Option<Schema>,
    /// The digest that the input had when its schema was inferred; if it has another one now, the
    /// build fails.
    pub input_digest: Option<String>,
    /// Keys whose values the manifest is to have, as [`crate::key::KeyCodec::parse_text`] reads
    /// them.
    pub golden_keys: Vec<String>,
    /// Whether an input without records makes an empty artifact, or is refused.
    pub allow_empty: bool,
    /// The largest value that is taken, in bytes of data (text and binary count their length,
    /// numbers their width, null nothing; the key does not count).
    pub value_bytes_max: Option<u64>,
    /// Where the artifact and temporary files go. One build at a time uses it.
    pub work_dir: PathBuf,
}

impl BuildOptions {
    /// How many conflicting keys an error names.
    pub const CONFLICTS_MAX: usize = 10;
    /// How many partitions there may be.
    pub const PARTITIONS_MAX: u32 = 4096;

    /// Options with 8 partitions, 256 MiB of memory, as many threads as there are processors (at
    /// most 8), and nothing else set.
    pub fn new<K: Into<String>>(key_columns: impl IntoIterator<Item = K>, work_dir: impl Into<PathBuf>) -> Self {
        Self {
            key_columns: key_columns.into_iter().map(Into::into).collect(),
            partitions: 8,
            memory_bytes: 256 * 1024 * 1024,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(8)),
            schema: None,
            input_digest: None,
            golden_keys: Vec::new(),
            allow_empty: false,
            value_bytes_max: None,
            work_dir: work_dir.into(),
        }
    }

    /// The smallest memory bound that a schema of so many fields can be built under.
    #[must_use]
    pub fn memory_bytes_min(fields: usize) -> usize {
        WRITER_BYTES + STATISTICS_BYTES * fields + OVERHEAD_BYTES + READING_BYTES_MIN
    }

    pub(crate) fn check(&self, schema: &Schema) -> Result<(), BuildError> {
        if self.partitions == 0 || self.partitions > Self::PARTITIONS_MAX {
            return Err(BuildError::Option {
                option: "the number of partitions",
                given: u64::from(self.partitions),
                range: format!("1 to {}", Self::PARTITIONS_MAX),
            });
        }
        let needed = Self::memory_bytes_min(schema.fields.len());
        if self.memory_bytes < needed {
            return Err(BuildError::Option {
                option: "the memory bound in bytes",
                given: self.memory_bytes as u64,
                range: format!("at least {needed} for {} fields", schema.fields.len()),
            });
        }
        Ok(())
    }

    /// The longest row, and the longest encoded value: what is in flight while a row is read
    /// (cells, key, value, each growing by doubling) stays within an eighth of the bound.
    pub(crate) fn row_bytes_max(&self) -> usize {
        (self.memory_bytes / 32).min(32 * 1024 * 1024)
    }

    pub(crate) fn sorter_bytes(&self) -> usize {
        self.memory_bytes - self.memory_bytes / 8 - OVERHEAD_BYTES
    }

    /// How many partitions can be written at once.
    pub(crate) fn writers(&self, fields: usize) -> usize {
        let by_memory = self.memory_bytes / Self::memory_bytes_min(fields);
        self.threads.min(by_memory).clamp(1, self.partitions.max(1) as usize)
    }

    /// What each writer may use to read runs.
    pub(crate) fn reading_bytes(&self, fields: usize) -> usize {
        let share = self.memory_bytes / self.writers(fields);
        share - WRITER_BYTES - STATISTICS_BYTES * fields - OVERHEAD_BYTES
    }
}

/// Two accumulators per field: of the partition that is being written, and of those before.
const STATISTICS_BYTES: usize = 2 * 6 * 1024;
/// Buffers of the reader or, later, the sample, golden keys and Parquet's metadata.
const OVERHEAD_BYTES: usize = 768 * 1024;
const READING_BYTES_MIN: usize = 512 * 1024;
