//! Writing an index file, record by record in hash order.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tidegate_api::manifest::Manifest;

use super::Description;
use super::bucket::{
    BUCKET_RECORDS, Body, FLAG_COMPRESSED, HEAD_BYTES, aligned, bucket_count, bucket_of, fingerprint, write_head,
};
use super::build::{IndexError, disk_error};
use super::format::{HEADER_BYTES, Header, frame_checksum};
use super::line::{LINE_BUCKETS, LINE_BYTES, LineSizes, line_count};
use crate::artifact::ArtifactError;
use crate::digest::ContentDigest;
use crate::value::encode_varint;

const COMPRESSION_LEVEL: i32 = 3;
/// The most that the records of a bucket may take: positions within it have 32 bits.
const BUCKET_BYTES_MAX: usize = 1 << 31;
/// A value shorter than this is stored as it is.
const COMPRESSED_VALUE_BYTES_MIN: usize = 16;

const _: () = assert!(BUCKET_RECORDS > 0 && LINE_BUCKETS as usize + 12 == LINE_BYTES);

pub(super) fn compressor<'a>(dictionary: &[u8], path: &Path) -> Result<zstd::bulk::Compressor<'a>, IndexError> {
    zstd::bulk::Compressor::with_dictionary(COMPRESSION_LEVEL, dictionary)
        .and_then(|mut compressor| {
            use zstd::zstd_safe::CParameter;
            // Both are in the file once; a few bytes less per value.
            compressor.set_parameter(CParameter::DictIdFlag(false))?;
            compressor.set_parameter(CParameter::ContentSizeFlag(false))?;
            Ok(compressor)
        })
        .map_err(|source| disk_error(path, source))
}

/// Writes an index file from records in hash order.
pub(super) struct IndexWriter {
    path: PathBuf,
    records: BufWriter<File>,
    lines: LineWriter,
    buckets: u64,
    bucket: u64,
    entries: Vec<(u32, u32)>,
    bodies: Vec<u8>,
    head: Vec<u8>,
    packed: Vec<u8>,
    position: u64,
    pub(super) written: u64,
    pub(super) digest: ContentDigest,
    pub(super) is_trained: bool,
    dictionary: Vec<u8>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl IndexWriter {
    pub(super) fn create(path: &Path, record_count: u64) -> Result<Self, IndexError> {
        let error = |source| disk_error(path, source);
        let mut file = File::create(path).map_err(error)?;
        let buckets = bucket_count(record_count);
        let records_start = HEADER_BYTES as u64 + line_count(buckets) * LINE_BYTES as u64;
        file.seek(std::io::SeekFrom::Start(records_start)).map_err(error)?;
        let lines = LineWriter {
            file: file.try_clone().map_err(error)?,
            line: LineSizes { number: 0, base: 0, sizes: [0; LINE_BUCKETS as usize] },
            position: 0,
            filled: 0,
            wide: Vec::new(),
            buffer: Vec::new(),
            flushed: HEADER_BYTES as u64,
        };
        Ok(Self {
            path: path.to_path_buf(),
            records: BufWriter::with_capacity(256 * 1024, file),
            lines,
            buckets,
            bucket: 0,
            entries: Vec::new(),
            bodies: Vec::new(),
            head: Vec::new(),
            packed: Vec::new(),
            position: 0,
            written: 0,
            digest: ContentDigest::default(),
            is_trained: false,
            dictionary: Vec::new(),
            compressor: None,
        })
    }

    pub(super) fn train(&mut self, dictionary: Option<Vec<u8>>) -> Result<(), IndexError> {
        self.is_trained = true;
        if let Some(dictionary) = dictionary {
            self.compressor = Some(compressor(&dictionary, &self.path)?);
            self.dictionary = dictionary;
        }
        Ok(())
    }

    pub(super) fn push(&mut self, hash: u64, key: &[u8], value: &[u8]) -> Result<(), IndexError> {
        let bucket = bucket_of(hash, self.buckets);
        while self.bucket < bucket {
            self.end_bucket()?;
        }
        self.digest.add(hash, key, value);
        self.packed.clear();
        let mut body = Body { flags: 0, key, value };
        if let Some(compressor) = &mut self.compressor
            && value.len() >= COMPRESSED_VALUE_BYTES_MIN
        {
            let compressed = compressor.compress(value).map_err(|source| disk_error(&self.path, source))?;
            encode_varint(value.len() as u64, &mut self.packed);
            self.packed.extend_from_slice(&compressed);
            if self.packed.len() < value.len() {
                body.flags = FLAG_COMPRESSED;
                body.value = &self.packed;
            }
        }
        let start = aligned(self.bodies.len());
        self.bodies.resize(start, 0);
        body.write(&mut self.bodies);
        // Hashes are no secret: somebody may have made keys that all fall into one bucket.
        if self.bodies.len() > BUCKET_BYTES_MAX {
            let source = std::io::Error::other("the records of one bucket take more than 2 GiB");
            return Err(disk_error(&self.path, source));
        }
        let length = (self.bodies.len() - start) as u32;
        self.entries.push((fingerprint(hash), length));
        self.written += 1;
        Ok(())
    }

    fn end_bucket(&mut self) -> Result<(), IndexError> {
        if !self.entries.is_empty() {
            self.head.clear();
            write_head(self.bucket, &self.entries, &mut self.head);
            self.bodies.resize(self.bodies.len().next_multiple_of(HEAD_BYTES), 0);
            self.records
                .write_all(&self.head)
                .and_then(|()| self.records.write_all(&self.bodies))
                .map_err(|source| disk_error(&self.path, source))?;
            self.position += (self.head.len() + self.bodies.len()) as u64;
            self.entries.clear();
            self.bodies.clear();
        }
        self.lines.end_bucket(self.position).map_err(|source| disk_error(&self.path, source))?;
        self.bucket += 1;
        Ok(())
    }

    pub(super) fn finish(mut self, manifest: &Manifest) -> Result<(), IndexError> {
        while self.bucket < self.buckets {
            self.end_bucket()?;
        }
        let path = self.path.clone();
        let error = |source| disk_error(&path, source);
        let wide = self.lines.finish().map_err(error)?;
        let description = serde_json::to_vec(&Description {
            schema: manifest.schema.clone(),
            key_columns: manifest.key_columns.clone(),
        })
        .map_err(|cause| error(cause.into()))?;
        self.records.write_all(&wide).map_err(error)?;
        self.records.write_all(&description).map_err(error)?;
        self.records.write_all(&self.dictionary).map_err(error)?;
        let file = self.records.into_inner().map_err(|cause| error(cause.into_error()))?;
        let bad = |_| IndexError::Artifact(ArtifactError::BadName { name: manifest.artifact_id.clone() });
        let mut header = Header {
            record_count: self.written,
            bucket_count: self.buckets,
            records_bytes: self.position,
            wide_bytes: wide.len() as u64,
            description_bytes: description.len() as u64,
            dictionary_bytes: self.dictionary.len() as u64,
            description_checksum: frame_checksum(&description),
            dictionary_checksum: frame_checksum(&self.dictionary),
            content_digest: [0; 16],
            artifact_id: [0; 32],
        };
        hex::decode_to_slice(self.digest.to_text(), &mut header.content_digest).map_err(bad)?;
        hex::decode_to_slice(&manifest.artifact_id, &mut header.artifact_id).map_err(bad)?;
        file.write_all_at(&header.to_bytes(), 0).map_err(error)?;
        file.sync_all().map_err(error)
    }
}

/// Writes the lines, which come before the records in the file and are known after them.
struct LineWriter {
    file: File,
    line: LineSizes,
    /// Where the next bucket begins.
    position: u64,
    filled: usize,
    buffer: Vec<u8>,
    flushed: u64,
    /// The wide lines, which come after the records. Each is kept until the end and stands for forty times its size at the
    /// least, where values are large for two thousand times.
    wide: Vec<u8>,
}

impl LineWriter {
    /// The present bucket ends at this position among the records.
    fn end_bucket(&mut self, position: u64) -> std::io::Result<()> {
        self.line.sizes[self.filled] = position - self.position;
        self.position = position;
        self.filled += 1;
        if self.filled == self.line.sizes.len() {
            self.end_line()?;
        }
        Ok(())
    }

    fn end_line(&mut self) -> std::io::Result<()> {
        self.buffer.extend(self.line.to_bytes(&mut self.wide));
        self.line = LineSizes { number: self.line.number + 1, base: self.position, sizes: [0; LINE_BUCKETS as usize] };
        self.filled = 0;
        if self.buffer.len() >= 64 * 1024 {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.write_all_at(&self.buffer, self.flushed)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Answers the wide lines.
    fn finish(&mut self) -> std::io::Result<Vec<u8>> {
        if self.filled > 0 {
            self.end_line()?;
        }
        self.flush()?;
        Ok(std::mem::take(&mut self.wide))
    }
}
