//! Sorting more records than fit into memory.
//!
//! Records are gathered in an arena of fixed size. When it is full they are sorted and written
//! out as a *run*; runs are merged when all records are there. Within a run records are ordered
//! by group (a partition), key, and origin, so the merge of all runs is one fixed sequence,
//! whatever the arena's size was.
//!
//! Records equal in key and value to the one before them are dropped when a run is written, and
//! counted: a skewed input shrinks early. Equal records in different runs are for the reader of
//! the merge to tell.
//!
//! ```text
//! record = key length (u16), value length (u32), origin (u64), key, value
//! ```
//!
//! Invariant: what a sorter or a merge allocates stays within the bytes it was given, but for one
//! record that is larger than all of them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const HEADER_BYTES: usize = 2 + 4 + 8;

/// A file of temporary data failed.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub(crate) struct SpillError {
    pub(crate) path: PathBuf,
    pub(crate) source: std::io::Error,
}

/// Where a record comes from: file and row, in one number that sorts as the pair does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin(u64);

impl Origin {
    const ROW_BITS: u32 = 40;

    /// Files beyond 2²⁴ and rows beyond 2⁴⁰ are not told apart; they only serve messages.
    pub(crate) fn new(file: u32, row: u64) -> Self {
        let row = row.min((1 << Self::ROW_BITS) - 1);
        Self(u64::from(file.min((1 << 24) - 1)) << Self::ROW_BITS | row)
    }

    pub(crate) fn file(self) -> u32 {
        (self.0 >> Self::ROW_BITS) as u32
    }

    pub(crate) fn row(self) -> u64 {
        self.0 & ((1 << Self::ROW_BITS) - 1)
    }
}

/// A record in a sorted sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SortedRecord<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) origin: Origin,
}

impl<'a> SortedRecord<'a> {
    /// The record at the beginning of `bytes`, if all of it is there.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let [k0, k1, v0, v1, v2, v3, origin @ ..] = *header;
        let key_length = usize::from(u16::from_le_bytes([k0, k1]));
        let value_length = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
        Some(Self {
            key: rest.get(..key_length)?,
            value: rest.get(key_length..key_length + value_length)?,
            origin: Origin(u64::from_le_bytes(origin)),
        })
    }

    fn bytes(&self) -> usize {
        HEADER_BYTES + self.key.len() + self.value.len()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend((self.key.len() as u16).to_le_bytes());
        out.extend((self.value.len() as u32).to_le_bytes());
        out.extend(self.origin.0.to_le_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }
}

/// The first eight bytes of a key as a number that sorts as they do.
fn prefix(key: &[u8]) -> u64 {
    let mut bytes = [0u8; 8];
    let length = key.len().min(8);
    bytes[..length].copy_from_slice(&key[..length]);
    u64::from_be_bytes(bytes)
}

#[derive(Clone, Copy)]
struct Entry {
    prefix: u64,
    group: u32,
    /// Where in the arena the record begins.
    start: u32,
}

const ENTRY_BYTES: usize = size_of::<Entry>();

/// A sorted file of records.
#[derive(Clone, Debug)]
struct Run {
    file: Arc<File>,
    path: PathBuf,
    /// Where each group begins, and the end of the last one.
    starts: Arc<[u64]>,
}

/// Takes records in any order.
pub(crate) struct Sorter {
    folder: PathBuf,
    groups: u32,
    memory_bytes: usize,
    arena: Vec<u8>,
    entries: Vec<Entry>,
    runs: Vec<Run>,
    records: u64,
    duplicates: u64,
    record_bytes_max: usize,
    /// Bytes in the arena per record, as the last run had it.
    record_bytes_mean: usize,
}

impl Sorter {
    /// A sorter of records of so many groups that writes its runs to `folder`.
    pub(crate) fn new(folder: &Path, groups: u32, memory_bytes: usize) -> Self {
        let mut sorter = Self {
            folder: folder.to_path_buf(),
            groups,
            memory_bytes,
            arena: Vec::new(),
            entries: Vec::new(),
            runs: Vec::new(),
            records: 0,
            duplicates: 0,
            record_bytes_max: 0,
            record_bytes_mean: 96,
        };
        sorter.allocate();
        sorter
    }

    /// Splits the memory between records and entries as the records' size asks for.
    fn allocate(&mut self) {
        self.arena = Vec::new();
        self.entries = Vec::new();
        // The buffer that a run is written through, and the starts of its groups.
        let overhead = SPILL_BUFFER_BYTES + self.groups as usize * 8 * (self.runs.len() + 1);
        let memory = self.memory_bytes.saturating_sub(overhead).max(64 * 1024);
        let count = memory / (self.record_bytes_mean + ENTRY_BYTES);
        self.entries.reserve_exact(count.max(1));
        let arena = memory - count * ENTRY_BYTES;
        self.arena.reserve_exact(arena.min(u32::MAX as usize));
    }

    /// Adds a record.
    pub(crate) fn push(&mut self, group: u32, key: &[u8], value: &[u8], origin: Origin) -> Result<(), SpillError> {
        debug_assert!(group < self.groups && key.len() <= usize::from(u16::MAX));
        let record = SortedRecord { key, value, origin };
        let bytes = record.bytes();
        self.records += 1;
        self.record_bytes_max = self.record_bytes_max.max(bytes);
        let full = self.entries.len() == self.entries.capacity() || self.arena.capacity() - self.arena.len() < bytes;
        if full && !self.entries.is_empty() {
            self.spill()?;
        }
        let entry = Entry { prefix: prefix(key), group, start: self.arena.len() as u32 };
        self.entries.push(entry);
        record.write(&mut self.arena);
        Ok(())
    }

    fn spill(&mut self) -> Result<(), SpillError> {
        let arena = self.arena.as_slice();
        let record_at = |entry: &Entry| {
            SortedRecord::parse(&arena[entry.start as usize..])
                .expect("every entry points at a record that was written whole")
        };
        self.entries.sort_unstable_by(|a, b| {
            (a.group, a.prefix).cmp(&(b.group, b.prefix)).then_with(|| {
                let (a, b) = (record_at(a), record_at(b));
                a.key.cmp(b.key).then(a.origin.cmp(&b.origin))
            })
        });
        let mut writer = RunWriter::create(&self.folder, self.groups)?;
        let mut previous: Option<(u32, SortedRecord<'_>)> = None;
        for entry in &self.entries {
            let record = record_at(entry);
            if let Some((group, before)) = previous
                && group == entry.group
                && before.key == record.key
                && before.value == record.value
            {
                self.duplicates += 1;
                continue;
            }
            writer.write(entry.group, &record)?;
            previous = Some((entry.group, record));
        }
        self.record_bytes_mean = self.arena.len() / self.entries.len().max(1);
        self.runs.push(writer.finish()?);
        self.allocate();
        Ok(())
    }

    /// How many records were pushed.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// No more records: everything is written out and the arena is given back.
    pub(crate) fn finish(mut self) -> Result<SortedRuns, SpillError> {
        if !self.entries.is_empty() {
            self.spill()?;
        }
        Ok(SortedRuns {
            folder: self.folder,
            groups: self.groups,
            runs: self.runs,
            duplicates: self.duplicates,
            record_bytes_max: self.record_bytes_max,
        })
    }
}

const SPILL_BUFFER_BYTES: usize = 64 * 1024;

struct RunWriter {
    out: BufWriter<File>,
    path: PathBuf,
    groups: u32,
    starts: Vec<u64>,
    position: u64,
    scratch: Vec<u8>,
}

impl RunWriter {
    /// The file has no name that would outlive the process: nothing is left behind.
    fn create(folder: &Path, groups: u32) -> Result<Self, SpillError> {
        let file = tempfile::tempfile_in(folder).map_err(|source| SpillError { path: folder.to_path_buf(), source })?;
        Ok(Self {
            out: BufWriter::with_capacity(SPILL_BUFFER_BYTES, file),
            path: folder.to_path_buf(),
            groups,
            starts: Vec::with_capacity(groups as usize + 1),
            position: 0,
            scratch: Vec::new(),
        })
    }

    fn write(&mut self, group: u32, record: &SortedRecord<'_>) -> Result<(), SpillError> {
        while self.starts.len() <= group as usize {
            self.starts.push(self.position);
        }
        self.scratch.clear();
        record.write(&mut self.scratch);
        self.position += self.scratch.len() as u64;
        let written = self.out.write_all(&self.scratch);
        self.check(written)
    }

    fn check<T>(&self, result: std::io::Result<T>) -> Result<T, SpillError> {
        result.map_err(|source| SpillError { path: self.path.clone(), source })
    }

    fn finish(mut self) -> Result<Run, SpillError> {
        while self.starts.len() <= self.groups as usize {
            self.starts.push(self.position);
        }
        let flushed = self.out.flush();
        self.check(flushed)?;
        let Self { out, path, starts, .. } = self;
        let file = out.into_inner().map_err(|error| SpillError { path: path.clone(), source: error.into_error() })?;
        Ok(Run { file: Arc::new(file), path, starts: starts.into() })
    }
}

/// All records, sorted in runs.
#[derive(Debug)]
pub(crate) struct SortedRuns {
    folder: PathBuf,
    groups: u32,
    runs: Vec<Run>,
    duplicates: u64,
    record_bytes_max: usize,
}

/// The smallest buffer that a run is read through.
const READ_BUFFER_BYTES_MIN: usize = 16 * 1024;
const READ_BUFFER_BYTES_MAX: usize = 1024 * 1024;

impl SortedRuns {
    /// Duplicates dropped so far, see the [module's description](self).
    pub(crate) fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Merges runs into longer ones until a merge of all that are left fits into so many bytes.
    pub(crate) fn reduce(
        &mut self,
        memory_bytes: usize,
        reading_bytes: usize,
        mut check: impl FnMut() -> bool,
    ) -> Result<bool, SpillError> {
        let smallest = READ_BUFFER_BYTES_MIN.max(self.record_bytes_max);
        let fan_in = (reading_bytes / smallest).max(2);
        let pass_fan_in = (memory_bytes.saturating_sub(SPILL_BUFFER_BYTES) / smallest).max(2);
        while self.runs.len() > fan_in {
            // No more than needed: merging fewer runs first leaves the longer ones alone.
            let excess = self.runs.len() - fan_in + 1;
            let merged: Vec<Run> = self.runs.drain(..excess.min(pass_fan_in).max(2)).collect();
            let part = SortedRuns {
                folder: self.folder.clone(),
                groups: self.groups,
                runs: merged,
                duplicates: 0,
                record_bytes_max: self.record_bytes_max,
            };
            let mut writer = RunWriter::create(&self.folder, self.groups)?;
            for group in 0..self.groups {
                let mut merge = part.merge(group, memory_bytes)?;
                let mut count = 0u32;
                while let Some(record) = merge.next()? {
                    writer.write(group, &record)?;
                    count = count.wrapping_add(1);
                    if count.is_multiple_of(4096) && !check() {
                        return Ok(false);
                    }
                }
            }
            self.runs.push(writer.finish()?);
        }
        Ok(true)
    }

    /// The records of one group in order, read with so many bytes of buffers.
    pub(crate) fn merge(&self, group: u32, memory_bytes: usize) -> Result<Merge, SpillError> {
        let buffer_bytes = (memory_bytes / self.runs.len().max(1)).clamp(READ_BUFFER_BYTES_MIN, READ_BUFFER_BYTES_MAX);
        let mut readers = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let range = run.starts[group as usize]..run.starts[group as usize + 1];
            if range.is_empty() {
                continue;
            }
            let mut reader = RunReader {
                run: run.clone(),
                buffer: vec![0; buffer_bytes.min((range.end - range.start) as usize)],
                filled: 0,
                position: 0,
                next: range.start,
                end: range.end,
                record: (0, 0),
                prefix: 0,
                origin: Origin(0),
            };
            if reader.advance()? {
                readers.push(reader);
            }
        }
        let mut merge = Merge { readers, started: false };
        for parent in (0..merge.readers.len() / 2).rev() {
            merge.sift_down(parent);
        }
        Ok(merge)
    }
}

/// Reads one group of one run.
struct RunReader {
    run: Run,
    buffer: Vec<u8>,
    filled: usize,
    /// Where in the buffer the record after the present one begins.
    position: usize,
    /// Where in the file the next bytes come from.
    next: u64,
    end: u64,
    /// Where in the buffer the present record is.
    record: (usize, usize),
    prefix: u64,
    origin: Origin,
}

impl RunReader {
    fn record(&self) -> SortedRecord<'_> {
        SortedRecord::parse(&self.buffer[self.record.0..self.record.1])
            .expect("advance made sure that the whole record is there")
    }

    /// Goes to the next record; `false` at the end.
    #[inline]
    fn advance(&mut self) -> Result<bool, SpillError> {
        loop {
            let rest = &self.buffer[self.position..self.filled];
            if let Some(record) = SortedRecord::parse(rest) {
                let end = self.position + record.bytes();
                self.prefix = prefix(record.key);
                self.origin = record.origin;
                self.record = (self.position, end);
                self.position = end;
                return Ok(true);
            }
            if self.next == self.end {
                if rest.is_empty() {
                    return Ok(false);
                }
                return Err(SpillError {
                    path: self.run.path.clone(),
                    source: std::io::ErrorKind::UnexpectedEof.into(),
                });
            }
            self.refill()?;
        }
    }

    fn refill(&mut self) -> Result<(), SpillError> {
        self.buffer.copy_within(self.position..self.filled, 0);
        self.filled -= self.position;
        self.position = 0;
        if self.filled == self.buffer.len() {
            // A record larger than the buffer: exactly as much room as it needs.
            let needed = match self.buffer.first_chunk::<HEADER_BYTES>() {
                Some(header) => {
                    let [k0, k1, v0, v1, v2, v3, ..] = *header;
                    let value = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
                    HEADER_BYTES + usize::from(u16::from_le_bytes([k0, k1])) + value
                }
                None => HEADER_BYTES,
            };
            let mut larger = Vec::new();
            larger.reserve_exact(needed);
            larger.extend_from_slice(&self.buffer);
            larger.resize(needed, 0);
            self.buffer = larger;
        }
        let room = self.buffer.len() - self.filled;
        let wanted = (self.end - self.next).min(room as u64) as usize;
        let target = &mut self.buffer[self.filled..self.filled + wanted];
        self.run
            .file
            .read_exact_at(target, self.next)
            .map_err(|source| SpillError { path: self.run.path.clone(), source })?;
        self.next += wanted as u64;
        self.filled += wanted;
        Ok(())
    }
}

/// The records of one group of all runs, in order of key and origin.
pub(crate) struct Merge {
    /// A heap: no reader's record comes before that of its parent.
    readers: Vec<RunReader>,
    started: bool,
}

impl Merge {
    #[inline]
    fn is_before(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.readers[a], &self.readers[b]);
        a.prefix.cmp(&b.prefix).then_with(|| a.record().key.cmp(b.record().key)).then(a.origin.cmp(&b.origin)).is_lt()
    }

    fn sift_down(&mut self, mut parent: usize) {
        loop {
            let left = 2 * parent + 1;
            if left >= self.readers.len() {
                return;
            }
            let right = left + 1;
            let child = if right < self.readers.len() && self.is_before(right, left) { right } else { left };
            if !self.is_before(child, parent) {
                return;
            }
            self.readers.swap(child, parent);
            parent = child;
        }
    }

    /// The next record.
    pub(crate) fn next(&mut self) -> Result<Option<SortedRecord<'_>>, SpillError> {
        if self.started && !self.readers.is_empty() {
            if !self.readers[0].advance()? {
                self.readers.swap_remove(0);
            }
            self.sift_down(0);
        }
        self.started = true;
        Ok(self.readers.first().map(RunReader::record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sort(records: &[(u32, Vec<u8>, Vec<u8>)], memory: usize, reading: usize) -> Vec<(u32, Vec<u8>, Vec<u8>, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(folder.path(), 3, memory);
        for (row, (group, key, value)) in records.iter().enumerate() {
            sorter.push(*group, key, value, Origin::new(1, row as u64)).unwrap();
        }
        let mut runs = sorter.finish().unwrap();
        assert!(runs.reduce(reading, reading, || true).unwrap());
        let mut sorted = Vec::new();
        for group in 0..3 {
            let mut merge = runs.merge(group, reading).unwrap();
            while let Some(record) = merge.next().unwrap() {
                sorted.push((group, record.key.to_vec(), record.value.to_vec(), record.origin.row()));
            }
        }
        sorted.dedup_by(|b, a| (a.0, &a.1, &a.2) == (b.0, &b.1, &b.2));
        sorted
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn many_small_runs_give_what_one_sort_gives(
            records in proptest::collection::vec(
                (0u32..3, proptest::collection::vec(any::<u8>(), 0..12), proptest::collection::vec(0u8..3, 0..4000)),
                0..400,
            ),
        ) {
            let mut expected: Vec<_> = records
                .iter()
                .enumerate()
                .map(|(row, (group, key, value))| (*group, key.clone(), value.clone(), row as u64))
                .collect();
            expected.sort_by(|a, b| (a.0, &a.1, a.3).cmp(&(b.0, &b.1, b.3)));
            expected.dedup_by(|b, a| (a.0, &a.1, &a.2) == (b.0, &b.1, &b.2));
            prop_assert_eq!(&sort(&records, 1, 40_000), &expected);
            prop_assert_eq!(&sort(&records, 64 << 20, 1 << 20), &expected);
        }
    }

    #[test]
    fn a_record_larger_than_any_buffer_passes_through() {
        let large = vec![7u8; 300_000];
        let records: Vec<_> = (0u8..20).map(|n| (0, vec![19 - n], large.clone())).collect();
        let sorted = sort(&records, 1, 1);
        assert_eq!(sorted.len(), 20);
        assert!(sorted.iter().enumerate().all(|(n, record)| record.1 == [n as u8]));
        assert!(sorted.iter().all(|record| record.2 == large));
    }
}
