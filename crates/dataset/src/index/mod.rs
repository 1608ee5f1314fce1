//! A node's index: one memory-mapped file that answers look-ups.
//!
//! It is derived from an artifact and disposable. One of our own, because nothing else gives a
//! third of LMDB's latency: records lie in hash order, and a small table says where each bucket of
//! about four begins.
//!
//! ```text
//! header       256 bytes: format, counts, sizes, artifact id, content digest, checksum
//! lines        64 bytes for 52 buckets: where the first begins, how large each is, checksum
//! records      buckets in order, each at a multiple of 64 bytes: head (checksum; begin of the
//!              first record; fingerprint and end of each; a multiple of 64 bytes), then the
//!              records, each at a multiple of 8: checksum, flags, key length, key, value
//! wide lines   for those lines that have a bucket of nearly 16 KiB or more: where each begins, checksum
//! description  schema and key columns as JSON (checksum in the header)
//! dictionary   for compressed values, may be empty (checksum in the header)
//! ```
//!
//! Invariants:
//! - **no wrong answer**: a look-up checks the record that it answers with, key and all. That there
//!   is none it says only after it has checked the bucket's head, or the line if that says that the
//!   bucket is empty; both are right for one bucket at one place only. So a damaged byte gives
//!   [`Damaged`], never another value, and never a miss for a key that is there (but for a value
//!   that was made to look like a record, and damage that happens to lead into it). What look-ups
//!   don't come by is found by [`Index::scrub_step`];
//! - every byte of the file is under a checksum, or fills up and has to be zero;
//! - a file under its final name is whole: it was flushed to the disk, then renamed, and is never
//!   written again;
//! - the same artifact gives the same bytes.
//!
//! A file that someone cuts short while it is mapped ends the process (SIGBUS), as with any
//! mapping; keep indexes where only the node writes.

mod bucket;
mod build;
mod format;
mod line;
mod scrub;
mod write;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidegate_api::manifest::Schema;
use zstd::zstd_safe;

pub use build::{IndexBuilder, IndexCompression, IndexError, bytes_estimate};
pub use scrub::{ScrubPosition, ScrubStep, VerifiedContent};

use crate::key::{KeyBytes, KeyCodec, KeyError};
use crate::value::{decode_varint, json};
use bucket::{BadRecord, Body, Bucket, FLAG_COMPRESSED, HEAD_BYTES, bucket_count, bucket_of, fingerprint};
use format::{HEADER_BYTES, Header, HeaderError, frame_checksum};
use line::{LINE_BYTES, bucket_range, is_line_of};

/// The largest value that is unpacked, in bytes; larger ones are never written.
pub(crate) const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An index is damaged. It must not serve any more; build it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: the index is damaged: {what}; it has to be built again")]
pub struct Damaged {
    /// The file.
    pub path: String,
    /// What was found.
    pub what: String,
}

/// Why an index can't be opened. But for [`OpenError::Read`], build it again.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file.
    #[error("{path}: there is no index")]
    Absent {
        /// The file.
        path: String,
    },
    /// It is no index, or one that was cut short.
    #[error("{path}: not an index, or cut short: {bytes} bytes")]
    Cut {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// Another release wrote it.
    #[error("{path}: the index has format {found}, this release reads {}", format::FORMAT)]
    Format {
        /// The file.
        path: String,
        /// Its format.
        found: u32,
    },
    /// It is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The system can't read it.
    #[error("{path}: the index can't be read: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
}

/// What the file says about its records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Description {
    schema: Schema,
    key_columns: Vec<String>,
}

/// An open index. Look-ups take no lock and may come from any number of threads.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    map: Mmap,
    header: Header,
    records_start: usize,
    records_end: usize,
    wide_end: usize,
    has_small_buckets: bool,
    schema: Schema,
    keys: KeyCodec,
    dictionary: Option<Dictionary>,
}

struct Dictionary(zstd_safe::DDict<'static>);

impl std::fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dictionary")
    }
}

thread_local! {
    static DECOMPRESSOR: RefCell<zstd_safe::DCtx<'static>> = RefCell::new(zstd_safe::DCtx::create());
}

/// A value as it is encoded: all fields but the key's.
pub type EncodedValue<'a> = Cow<'a, [u8]>;

impl Index {
    /// Opens an index, after a cheap check: header, size, description, dictionary. Records are
    /// checked when they are read.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let path = path.into();
        let text = path.display().to_string();
        let read_error = |source| OpenError::Read { path: text.clone(), source };
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(OpenError::Absent { path: text });
            }
            opened => opened.map_err(read_error)?,
        };
        let bytes = file.metadata().map_err(read_error)?.len();
        let cut = || OpenError::Cut { path: text.clone(), bytes };
        if bytes < HEADER_BYTES as u64 {
            return Err(cut());
        }
        // SAFETY: the file got this name by a rename when it was whole, and is never written
        // again by us; that others leave it alone is the documented condition for keeping one.
        let map = unsafe { Mmap::map(&file) }.map_err(read_error)?;
        // Look-ups go everywhere; reading ahead would only evict what is in use.
        map.advise(memmap2::Advice::Random).map_err(read_error)?;
        let damaged = |what: &str| Damaged { path: text.clone(), what: what.to_owned() };
        let header = Header::parse(&map).map_err(|error| match error {
            HeaderError::NoIndex => cut(),
            HeaderError::Format(found) => OpenError::Format { path: text.clone(), found },
            HeaderError::Damaged => damaged("its header").into(),
        })?;
        if header.file_bytes() != Some(bytes) {
            return Err(cut());
        }
        if header.bucket_count != bucket_count(header.record_count) {
            return Err(damaged("its header").into());
        }
        let records_start = header.records_start().ok_or_else(cut)? as usize;
        let records_end = records_start + header.records_bytes as usize;
        let wide_end = records_end + header.wide_bytes as usize;
        let description_end = wide_end + header.description_bytes as usize;
        let description = &map[wide_end..description_end];
        if frame_checksum(description) != header.description_checksum {
            return Err(damaged("its description").into());
        }
        let Description { schema, key_columns } =
            serde_json::from_slice(description).map_err(|_| damaged("its description"))?;
        let keys = KeyCodec::new(&schema, &key_columns).map_err(|_| damaged("its description"))?;
        let dictionary = &map[description_end..];
        if frame_checksum(dictionary) != header.dictionary_checksum {
            return Err(damaged("its dictionary").into());
        }
        let dictionary = if dictionary.is_empty() {
            None
        } else {
            let created = zstd_safe::DDict::try_create(dictionary);
            Some(Dictionary(created.ok_or_else(|| damaged("its dictionary"))?))
        };
        let has_small_buckets = header.records_bytes / header.bucket_count <= (HEAD_BYTES * PREFETCH_LINES_FEW) as u64;
        Ok(Self {
            path,
            map,
            header,
            records_start,
            records_end,
            wide_end,
            has_small_buckets,
            schema,
            keys,
            dictionary,
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The artifact that it was made from.
    #[must_use]
    pub fn artifact_id(&self) -> String {
        hex::encode(self.header.artifact_id)
    }

    /// The digest over all records that it was made with; [`Index::verify`] says whether they
    /// still are those.
    #[must_use]
    pub fn content_digest(&self) -> String {
        hex::encode(self.header.content_digest)
    }

    /// How many records it has.
    #[must_use]
    pub fn record_count(&self) -> u64 {
        self.header.record_count
    }

    /// Size of the file in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// The fields of its records.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Reads and writes its keys.
    #[must_use]
    pub fn keys(&self) -> &KeyCodec {
        &self.keys
    }

    /// Reads a key as people write it, see [`KeyCodec::parse_text`].
    ///
    /// # Errors
    /// [`KeyError::NotAKey`], saying what is expected.
    pub fn key(&self, text: &str) -> Result<KeyBytes, KeyError> {
        self.keys.parse_text(text)
    }

    /// Looks a key up. The value is in the encoding of this crate; [`Index::to_json`] gives it as
    /// JSON.
    ///
    /// # Errors
    /// [`Damaged`], see the invariants of the [module](self).
    pub fn get(&self, key: &KeyBytes) -> Result<Option<EncodedValue<'_>>, Damaged> {
        let hash = key.hash();
        let bucket = bucket_of(hash, self.header.bucket_count);
        self.find(key, hash, bucket, self.bucket_bytes(bucket)?)
    }

    /// Looks many keys up and answers in their order. Faster than one by one, for the memory that
    /// one look-up waits for is fetched while others are worked on.
    ///
    /// # Errors
    /// As [`Index::get`]; one damaged record fails the whole batch.
    pub fn get_many(&self, keys: &[KeyBytes]) -> Result<Vec<Option<EncodedValue<'_>>>, Damaged> {
        /// As many as the processor can have on their way at once, and some.
        const AT_ONCE: usize = 16;
        let mut values = Vec::with_capacity(keys.len());
        let mut places = [(0u64, 0u64); AT_ONCE];
        let mut buckets: [&[u8]; AT_ONCE] = [&[]; AT_ONCE];
        for keys in keys.chunks(AT_ONCE) {
            for (place, key) in places.iter_mut().zip(keys) {
                let hash = key.hash();
                *place = (hash, bucket_of(hash, self.header.bucket_count));
                prefetch::<1>(self.line(place.1));
            }
            for (bytes, (_, bucket)) in buckets.iter_mut().zip(&places[..keys.len()]) {
                *bytes = self.bucket_bytes(*bucket)?;
            }
            for ((key, (hash, bucket)), bytes) in keys.iter().zip(&places).zip(&buckets) {
                values.push(self.find(key, *hash, *bucket, bytes)?);
            }
        }
        Ok(values)
    }

    #[inline]
    fn find<'a>(
        &'a self,
        key: &KeyBytes,
        hash: u64,
        bucket: u64,
        bytes: &'a [u8],
    ) -> Result<Option<EncodedValue<'a>>, Damaged> {
        let damaged = || self.damaged_bucket(bucket);
        let parsed = Bucket::parse(bucket, bytes).ok_or_else(damaged)?;
        match parsed.find(fingerprint(hash), |body| body.key == key.as_bytes()) {
            Ok(Some(body)) => self.unpack(&body).map(Some),
            Ok(None) if parsed.is_right() => Ok(None),
            Ok(None) | Err(BadRecord) => Err(damaged()),
        }
    }

    /// Looks a key up and gives the record as a JSON object of all fields, key columns included.
    ///
    /// # Errors
    /// As [`Index::get`].
    pub fn get_json(&self, key: &KeyBytes) -> Result<Option<serde_json::Value>, Damaged> {
        let Some(value) = self.get(key)? else {
            return Ok(None);
        };
        json::from_record(&self.schema, &self.keys, key.as_bytes(), &value)
            .map(Some)
            .map_err(|malformed| self.damaged(malformed.to_string()))
    }

    /// A record as the text of a JSON object of all fields, key columns first, from its key and the value that was found
    /// for it.
    ///
    /// # Errors
    /// [`Damaged`] if the value is none of this index.
    pub fn to_json(&self, key: &KeyBytes, value: &[u8]) -> Result<Box<RawValue>, Damaged> {
        json::text_of_record(&self.schema, &self.keys, key.as_bytes(), value)
            .map_err(|malformed| self.damaged(malformed.to_string()))
    }

    #[inline]
    fn line(&self, bucket: u64) -> &[u8] {
        let start = (bucket / line::LINE_BUCKETS) as usize * LINE_BYTES + HEADER_BYTES;
        &self.map[start..start + LINE_BYTES]
    }

    /// The bytes of a bucket. What is to be found there checks itself; that there are none is checked here.
    #[inline]
    fn bucket_bytes(&self, bucket: u64) -> Result<&[u8], Damaged> {
        let records = &self.map[self.records_start..self.records_end];
        let wide = &self.map[self.records_end..self.wide_end];
        let bytes = bucket_range(self.line(bucket), wide, bucket).and_then(|(start, end)| {
            let start = usize::try_from(start).ok()?;
            records.get(start..usize::try_from(end).ok()?)
        });
        let bytes = bytes
            .filter(|bytes| !bytes.is_empty() || is_line_of(self.line(bucket), bucket))
            .ok_or_else(|| self.damaged_bucket(bucket))?;
        if self.has_small_buckets {
            prefetch::<PREFETCH_LINES_FEW>(bytes);
        } else {
            prefetch::<PREFETCH_LINES>(bytes);
        }
        Ok(bytes)
    }

    /// A bucket whose line and head are right.
    fn bucket(&self, bucket: u64) -> Result<Bucket<'_>, Damaged> {
        let bytes = self.bucket_bytes(bucket)?;
        Bucket::parse(bucket, bytes)
            .filter(|parsed| parsed.is_right() && is_line_of(self.line(bucket), bucket))
            .ok_or_else(|| self.damaged_bucket(bucket))
    }

    #[inline]
    fn unpack<'a>(&self, body: &Body<'a>) -> Result<EncodedValue<'a>, Damaged> {
        if body.flags & FLAG_COMPRESSED == 0 { Ok(Cow::Borrowed(body.value)) } else { self.decompress(body) }
    }

    fn decompress<'a>(&self, body: &Body<'a>) -> Result<EncodedValue<'a>, Damaged> {
        let failed = || self.damaged(String::from("a compressed value does not unpack"));
        let dictionary = self.dictionary.as_ref().ok_or_else(failed)?;
        let mut position = 0;
        let length = decode_varint(body.value, &mut position).map_err(|_| failed())?;
        let length = usize::try_from(length).map_err(|_| failed())?;
        if length > VALUE_BYTES_MAX {
            return Err(failed());
        }
        let mut value = Vec::with_capacity(length);
        let unpacked = DECOMPRESSOR.with_borrow_mut(|decompressor| {
            decompressor.decompress_using_ddict(&mut value, &body.value[position..], &dictionary.0)
        });
        match unpacked {
            Ok(unpacked) if unpacked == length => Ok(Cow::Owned(value)),
            _ => Err(failed()),
        }
    }

    fn damaged(&self, what: String) -> Damaged {
        Damaged { path: self.path.display().to_string(), what }
    }

    #[cold]
    fn damaged_bucket(&self, bucket: u64) -> Damaged {
        self.damaged(format!("a checksum in bucket {bucket} of {} does not match", self.header.bucket_count))
    }
}

/// How many lines of the processor's cache are asked for ahead: a bucket of four records with values of a hundred bytes.
const PREFETCH_LINES: usize = 9;
/// The same where buckets take no more than this on average.
const PREFETCH_LINES_FEW: usize = 3;

/// Asks for so many lines from the beginning of these bytes on, be they fewer or more: a number that differs from bucket
/// to bucket would be one more thing for the processor to guess.
#[inline(always)]
fn prefetch<const LINES: usize>(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..LINES {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching has no effect on memory, whatever the address; SSE, which it belongs
        // to, is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(line * 64).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}
