//! The second half of a build: every partition merged, checked for conflicting keys, described,
//! and written as a part.

use std::collections::{BinaryHeap, HashMap};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tidegate_api::manifest::{GoldenKey, Part, Sample, SampledRecord, Schema};

use super::{BuildError, BuildOptions};
use crate::digest::{ContentDigest, value_digest};
use crate::key::{KeyBytes, KeyCodec, hash};
use crate::part::PartWriter;
use crate::progress::{Cancel, OnProgress, Phase, Progress};
use crate::sort::{Origin, SortedRuns};
use crate::statistics::FieldAccumulator;
use crate::value::{Malformed, json};

/// How many records the manifest's sample holds at most.
const SAMPLE_RECORDS: usize = 256;
/// The largest value that a golden key carries with it, in bytes of its encoding.
const GOLDEN_VALUE_BYTES_MAX: usize = 4096;
const RECORDS_PER_CHECK: u64 = 1024;

/// What is to be merged, and how.
pub(super) struct Merging<'a> {
    pub(super) options: &'a BuildOptions,
    pub(super) folder: &'a Path,
    pub(super) schema: &'a Schema,
    pub(super) keys: &'a KeyCodec,
    /// As given, and encoded.
    pub(super) golden: &'a [(String, KeyBytes)],
    /// Rows of input.
    pub(super) rows: u64,
    pub(super) progress: OnProgress<'a>,
    pub(super) cancel: &'a Cancel,
}

/// A key with two values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConflictingKey {
    pub(super) key: Vec<u8>,
    pub(super) first: Origin,
    pub(super) second: Origin,
}

/// All partitions together.
pub(super) struct Merged {
    pub(super) parts: Vec<Part>,
    pub(super) record_count: u64,
    pub(super) duplicate_count: u64,
    pub(super) statistics: Vec<FieldAccumulator>,
    pub(super) content_digest: ContentDigest,
    pub(super) sample: Sample,
    pub(super) golden: Vec<Option<GoldenKey>>,
    pub(super) conflict_count: u64,
    /// The first of them by key, at most [`BuildOptions::CONFLICTS_MAX`].
    pub(super) conflicts: Vec<ConflictingKey>,
}

/// What one thread has gathered. Merging these is commutative and associative, so that it does
/// not matter which thread did which partition.
struct Gathered {
    parts: Vec<(u32, Part)>,
    record_count: u64,
    duplicate_count: u64,
    statistics: Vec<FieldAccumulator>,
    content_digest: ContentDigest,
    sample: BinaryHeap<(u64, Vec<u8>, String)>,
    golden: Vec<Option<GoldenKey>>,
    conflict_count: u64,
    conflicts: Vec<ConflictingKey>,
}

impl Gathered {
    fn new(merging: &Merging<'_>) -> Self {
        let fields = &merging.schema.fields;
        Self {
            parts: Vec::new(),
            record_count: 0,
            duplicate_count: 0,
            statistics: fields.iter().map(|field| FieldAccumulator::new(field.data_type)).collect(),
            content_digest: ContentDigest::default(),
            sample: BinaryHeap::new(),
            golden: vec![None; merging.golden.len()],
            conflict_count: 0,
            conflicts: Vec::new(),
        }
    }

    fn merge_statistics(&mut self, statistics: &[FieldAccumulator]) {
        for (mine, theirs) in self.statistics.iter_mut().zip(statistics) {
            mine.merge(theirs);
        }
    }

    fn merge(&mut self, other: Self) {
        self.parts.extend(other.parts);
        self.record_count += other.record_count;
        self.duplicate_count += other.duplicate_count;
        self.merge_statistics(&other.statistics);
        self.content_digest.merge(other.content_digest);
        self.sample.extend(other.sample);
        while self.sample.len() > SAMPLE_RECORDS {
            self.sample.pop();
        }
        for (mine, theirs) in self.golden.iter_mut().zip(other.golden) {
            *mine = mine.take().or(theirs);
        }
        self.conflict_count += other.conflict_count;
        self.conflicts.extend(other.conflicts);
    }

    fn finish(mut self, keys: &KeyCodec) -> Result<Merged, Malformed> {
        self.parts.sort_by_key(|(partition, _)| *partition);
        self.conflicts.sort();
        self.conflicts.truncate(BuildOptions::CONFLICTS_MAX);
        let records = self
            .sample
            .into_sorted_vec()
            .into_iter()
            .map(|(hash, key, value_digest)| {
                Ok(SampledRecord { hash: format!("{hash:016x}"), key: keys.to_text(&key)?, value_digest })
            })
            .collect::<Result<_, Malformed>>()?;
        Ok(Merged {
            parts: self.parts.into_iter().map(|(_, part)| part).collect(),
            record_count: self.record_count,
            duplicate_count: self.duplicate_count,
            statistics: self.statistics,
            content_digest: self.content_digest,
            sample: Sample { limit: SAMPLE_RECORDS as u32, records },
            golden: self.golden,
            conflict_count: self.conflict_count,
            conflicts: self.conflicts,
        })
    }
}

/// Merges and writes all partitions, several at once as far as memory and threads allow.
pub(super) fn merge_partitions(merging: &Merging<'_>, mut runs: SortedRuns) -> Result<Merged, BuildError> {
    let fields = merging.schema.fields.len();
    let reading_bytes = merging.options.reading_bytes(fields);
    let go_on = || !merging.cancel.is_cancelled();
    let memory = merging.options.sorter_bytes();
    if !runs.reduce(memory, reading_bytes, go_on)? {
        return Err(BuildError::Cancelled);
    }
    let shared = Shared {
        merging,
        runs: &runs,
        reading_bytes,
        next: AtomicU32::new(0),
        stopped: AtomicBool::new(false),
        written: AtomicU64::new(0),
        error: Mutex::new(None),
    };
    let mut gathered = Gathered::new(merging);
    gathered.duplicate_count = runs.duplicates();
    std::thread::scope(|scope| {
        // This thread is one of the writers.
        let others: Vec<_> = (1..merging.options.writers(fields)).map(|_| scope.spawn(|| shared.work())).collect();
        gathered.merge(shared.work());
        for other in others {
            match other.join() {
                Ok(theirs) => gathered.merge(theirs),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    let error = shared.error.into_inner();
    if let Some((_, error)) = error.unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    gathered.finish(merging.keys).map_err(|malformed| BuildError::from(crate::part::PartError::from(malformed)))
}

struct Shared<'a> {
    merging: &'a Merging<'a>,
    runs: &'a SortedRuns,
    reading_bytes: usize,
    next: AtomicU32,
    stopped: AtomicBool,
    written: AtomicU64,
    /// The error of the lowest partition, so that the same input gives the same message.
    error: Mutex<Option<(u32, BuildError)>>,
}

impl Shared<'_> {
    fn work(&self) -> Gathered {
        let mut gathered = Gathered::new(self.merging);
        let by_hash: HashMap<u64, usize> =
            self.merging.golden.iter().enumerate().map(|(position, (_, key))| (key.hash(), position)).collect();
        loop {
            let partition = self.next.fetch_add(1, Ordering::Relaxed);
            let stopped = self.stopped.load(Ordering::Relaxed);
            if partition >= self.merging.options.partitions || stopped {
                return gathered;
            }
            if let Err(error) = self.write_partition(partition, &by_hash, &mut gathered) {
                self.stopped.store(true, Ordering::Relaxed);
                if let Ok(mut first) = self.error.lock()
                    && first.as_ref().is_none_or(|(before, _)| partition < *before)
                {
                    *first = Some((partition, error));
                }
                return gathered;
            }
        }
    }

    fn report(&self, records: u64) -> Result<(), BuildError> {
        if self.merging.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        let done = self.written.fetch_add(records, Ordering::Relaxed) + records;
        (self.merging.progress)(Progress { phase: Phase::Writing, done, total: self.merging.rows, records: done });
        Ok(())
    }

    fn write_partition(
        &self,
        partition: u32,
        golden_by_hash: &HashMap<u64, usize>,
        gathered: &mut Gathered,
    ) -> Result<(), BuildError> {
        let Merging { options, folder, schema, keys, .. } = *self.merging;
        let name = format!("part-{partition:05}-of-{:05}.parquet", options.partitions);
        let mut writer = PartWriter::create(folder, name, schema, keys)?;
        let mut merge = self.runs.merge(partition, self.reading_bytes)?;
        let mut before = Before::default();
        let mut seen = 0u64;
        while let Some(record) = merge.next()? {
            seen += 1;
            if seen.is_multiple_of(RECORDS_PER_CHECK) {
                self.report(RECORDS_PER_CHECK)?;
            }
            if before.any && before.key == record.key {
                if before.value == record.value {
                    gathered.duplicate_count += 1;
                } else if !before.in_conflict {
                    before.in_conflict = true;
                    gathered.conflict_count += 1;
                    gathered.note_conflict(&before, record.origin);
                }
                continue;
            }
            before.set(record.key, record.value, record.origin);
            // After a conflict the rest is only searched for more of them.
            if gathered.conflict_count > 0 {
                continue;
            }
            let key_hash = hash(record.key);
            gathered.record_count += 1;
            gathered.content_digest.add(key_hash, record.key, record.value);
            gathered
                .sample(self.merging, key_hash, record.key, record.value)
                .and_then(|()| match golden_by_hash.get(&key_hash) {
                    Some(_) => gathered.golden(self.merging, record.key, record.value),
                    None => Ok(()),
                })
                .map_err(crate::part::PartError::from)?;
            writer.push(record.key, record.value)?;
        }
        self.report(seen % RECORDS_PER_CHECK)?;
        let (part, statistics) = writer.finish()?;
        gathered.merge_statistics(&statistics);
        gathered.parts.push((partition, part));
        Ok(())
    }
}

/// The first record of the present key.
#[derive(Default)]
struct Before {
    any: bool,
    key: Vec<u8>,
    value: Vec<u8>,
    origin: Option<Origin>,
    in_conflict: bool,
}

impl Before {
    fn set(&mut self, key: &[u8], value: &[u8], origin: Origin) {
        self.any = true;
        self.key.clear();
        self.key.extend_from_slice(key);
        self.value.clear();
        self.value.extend_from_slice(value);
        self.origin = Some(origin);
        self.in_conflict = false;
    }
}

impl Gathered {
    fn note_conflict(&mut self, before: &Before, second: Origin) {
        // Bounded per thread, and of each partition the first by key are among those kept.
        if let Some(first) = before.origin {
            self.conflicts.push(ConflictingKey { key: before.key.clone(), first, second });
        }
        if self.conflicts.len() > 4 * BuildOptions::CONFLICTS_MAX {
            self.conflicts.sort();
            self.conflicts.truncate(BuildOptions::CONFLICTS_MAX);
        }
    }

    fn sample(&mut self, merging: &Merging<'_>, key_hash: u64, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        let greatest = self.sample.peek().map(|(hash, key, _)| (*hash, key.as_slice()));
        let is_full = self.sample.len() >= SAMPLE_RECORDS;
        if is_full && greatest.is_some_and(|greatest| (key_hash, key) >= greatest) {
            return Ok(());
        }
        let digest = value_digest(merging.schema, merging.keys, value)?;
        self.sample.push((key_hash, key.to_vec(), digest));
        if self.sample.len() > SAMPLE_RECORDS {
            self.sample.pop();
        }
        Ok(())
    }

    fn golden(&mut self, merging: &Merging<'_>, key: &[u8], value: &[u8]) -> Result<(), Malformed> {
        for (position, (text, golden)) in merging.golden.iter().enumerate() {
            if golden.as_bytes() != key {
                continue;
            }
            let Merging { schema, keys, .. } = *merging;
            let record = (value.len() <= GOLDEN_VALUE_BYTES_MAX)
                .then(|| json::from_record(schema, keys, key, value))
                .transpose()?;
            self.golden[position] = Some(GoldenKey {
                key: text.clone(),
                value_digest: Some(value_digest(schema, keys, value)?),
                value: record,
            });
        }
        Ok(())
    }
}
