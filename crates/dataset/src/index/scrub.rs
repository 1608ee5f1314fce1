//! Reading an index through, to find damage before a look-up does.

use super::bucket::{Body, FLAG_COMPRESSED, bucket_of, fingerprint};
use super::format::{HEADER_BYTES, Header, frame_checksum};
use super::{Damaged, Index};
use crate::digest::ContentDigest;
use crate::key::hash;
use crate::progress::Cancel;

/// How far a scrub is. A new one begins at the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubPosition {
    bucket: u64,
}

/// What a step of a scrub did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubStep {
    /// Where to go on; `None` when all of the file was read.
    pub next: Option<ScrubPosition>,
    /// How many bytes were checked.
    pub bytes: u64,
}

/// What reading a whole index gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedContent {
    /// The digest over all its records, as they are now.
    pub content_digest: String,
    /// How many there are.
    pub record_count: u64,
}

impl Index {
    /// Checks the next buckets, up to about so many bytes (at least one bucket). The step that
    /// begins at the beginning also checks the rest of the file: header, description, dictionary.
    ///
    /// # Errors
    /// [`Damaged`] at the first checksum that does not match.
    pub fn scrub_step(&self, from: ScrubPosition, budget_bytes: u64) -> Result<ScrubStep, Damaged> {
        let mut bytes = 0;
        if from.bucket == 0 {
            bytes += self.check_frame()?;
        }
        let mut bucket = from.bucket;
        while bucket < self.header.bucket_count {
            bytes += self.check_bucket(bucket, |_, _, _| {})?;
            bucket += 1;
            if bytes >= budget_bytes {
                break;
            }
        }
        let next = (bucket < self.header.bucket_count).then_some(ScrubPosition { bucket });
        Ok(ScrubStep { next, bytes })
    }

    /// Reads every record back, as look-ups would, and says what they are. Blocks for as long as
    /// it takes to read the file.
    ///
    /// # Errors
    /// [`Damaged`] at the first checksum that does not match; `None` if it was cancelled.
    pub fn verify(&self, cancel: &Cancel) -> Result<Option<VerifiedContent>, Damaged> {
        self.check_frame()?;
        let mut digest = ContentDigest::default();
        let mut record_count = 0u64;
        for bucket in 0..self.header.bucket_count {
            if bucket.is_multiple_of(4096) && cancel.is_cancelled() {
                return Ok(None);
            }
            self.check_bucket(bucket, |hash, key, value| {
                digest.add(hash, key, value);
                record_count += 1;
            })?;
        }
        Ok(Some(VerifiedContent { content_digest: digest.to_text(), record_count }))
    }

    fn check_frame(&self) -> Result<u64, Damaged> {
        if Header::parse(&self.map).as_ref() != Ok(&self.header) {
            return Err(self.damaged(String::from("its header")));
        }
        let (description, dictionary) = self.map[self.wide_end..].split_at(self.header.description_bytes as usize);
        if frame_checksum(description) != self.header.description_checksum {
            return Err(self.damaged(String::from("its description")));
        }
        if frame_checksum(dictionary) != self.header.dictionary_checksum {
            return Err(self.damaged(String::from("its dictionary")));
        }
        // The lines' checksums are checked with their buckets, unused places in the last one too.
        Ok((HEADER_BYTES + description.len() + dictionary.len()) as u64)
    }

    /// Checks one bucket with its line and gives each of its records.
    fn check_bucket(&self, bucket: u64, mut each: impl FnMut(u64, &[u8], &[u8])) -> Result<u64, Damaged> {
        let parsed = self.bucket(bucket)?;
        if !parsed.is_filled() {
            return Err(self.damaged_bucket(bucket));
        }
        let bytes = super::LINE_BYTES as u64 / super::line::LINE_BUCKETS + parsed.bytes();
        for record in parsed.records() {
            let (expected, stored) = record.map_err(|_| self.damaged_bucket(bucket))?;
            let body = Body::parse(stored).ok_or_else(|| self.damaged_bucket(bucket))?;
            let hash = hash(body.key);
            let is_here = bucket_of(hash, self.header.bucket_count) == bucket
                && fingerprint(hash) == expected
                && body.flags & !FLAG_COMPRESSED == 0;
            if !is_here {
                return Err(self.damaged_bucket(bucket));
            }
            let value = self.unpack(&body)?;
            each(hash, body.key, &value);
        }
        Ok(bytes)
    }
}
