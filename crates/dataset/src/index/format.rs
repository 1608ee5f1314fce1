//! The bytes of an index file. See the [module above](super) for the layout.

use crc32c::{crc32c, crc32c_append};

pub(super) const MAGIC: [u8; 8] = *b"TGINDEX\n";
pub(super) const FORMAT: u32 = 1;

pub(super) const HEADER_BYTES: usize = 256;
pub(super) const LINE_BYTES: usize = 64;
/// How many buckets one line speaks of.
pub(super) const LINE_BUCKETS: u64 = 13;
/// How many records a bucket has on average.
pub(super) const BUCKET_RECORDS: u64 = 4;
/// Checksum and count of a bucket's head, before its entries.
pub(super) const HEAD_BYTES: usize = 4 + 2;
/// Fingerprint and length of a record.
pub(super) const ENTRY_BYTES: usize = 4 + 4;
/// Checksum, flags and key length of a record, before key and value.
pub(super) const BODY_HEADER_BYTES: usize = 4 + 1 + 2;
pub(super) const FLAG_COMPRESSED: u8 = 1;

pub(super) fn bucket_count(records: u64) -> u64 {
    records.div_ceil(BUCKET_RECORDS).max(1)
}

pub(super) fn line_count(buckets: u64) -> u64 {
    buckets.div_ceil(LINE_BUCKETS)
}

#[inline]
pub(super) fn bucket_of(hash: u64, buckets: u64) -> u64 {
    ((u128::from(hash) * u128::from(buckets)) >> 64) as u64
}

/// Which of the records in a bucket a hash may be: bits that the bucket does not depend on.
#[inline]
pub(super) fn fingerprint(hash: u64) -> u32 {
    hash as u32
}

#[inline(always)]
fn read_u32(bytes: &[u8], position: usize) -> Option<u32> {
    let bytes = bytes.get(position..position + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[inline(always)]
fn read_u64(bytes: &[u8], position: usize) -> Option<u64> {
    let bytes = bytes.get(position..position + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// What the file says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) record_count: u64,
    pub(super) bucket_count: u64,
    pub(super) records_bytes: u64,
    pub(super) description_bytes: u64,
    pub(super) dictionary_bytes: u64,
    pub(super) description_checksum: u32,
    pub(super) dictionary_checksum: u32,
    pub(super) content_digest: [u8; 16],
    pub(super) artifact_id: [u8; 32],
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Too short, or of another kind of file.
    NoIndex,
    /// Written by another release.
    Format(u32),
    /// The checksum does not match.
    Damaged,
}

impl Header {
    pub(super) fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend(self.record_count.to_le_bytes());
        bytes.extend(self.bucket_count.to_le_bytes());
        bytes.extend(self.records_bytes.to_le_bytes());
        bytes.extend(self.description_bytes.to_le_bytes());
        bytes.extend(self.dictionary_bytes.to_le_bytes());
        bytes.extend(self.description_checksum.to_le_bytes());
        bytes.extend(self.dictionary_checksum.to_le_bytes());
        bytes.extend(self.content_digest);
        bytes.extend(self.artifact_id);
        bytes.resize(HEADER_BYTES - 4, 0);
        bytes.extend(crc32c(&bytes).to_le_bytes());
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&bytes);
        header
    }

    pub(super) fn parse(file: &[u8]) -> Result<Self, HeaderError> {
        let bytes = file.get(..HEADER_BYTES).ok_or(HeaderError::NoIndex)?;
        if bytes[..8] != MAGIC {
            return Err(HeaderError::NoIndex);
        }
        let damaged = HeaderError::Damaged;
        let format = read_u32(bytes, 8).ok_or(damaged)?;
        let checksum = read_u32(bytes, HEADER_BYTES - 4).ok_or(damaged)?;
        if checksum != crc32c(&bytes[..HEADER_BYTES - 4]) {
            return Err(damaged);
        }
        if format != FORMAT {
            return Err(HeaderError::Format(format));
        }
        let number = |position| read_u64(bytes, position).ok_or(damaged);
        Ok(Self {
            record_count: number(12)?,
            bucket_count: number(20)?,
            records_bytes: number(28)?,
            description_bytes: number(36)?,
            dictionary_bytes: number(44)?,
            description_checksum: read_u32(bytes, 52).ok_or(damaged)?,
            dictionary_checksum: read_u32(bytes, 56).ok_or(damaged)?,
            content_digest: bytes[60..76].try_into().map_err(|_| damaged)?,
            artifact_id: bytes[76..108].try_into().map_err(|_| damaged)?,
        })
    }

    /// Where the records begin; `None` if the numbers make no sense.
    pub(super) fn records_start(&self) -> Option<u64> {
        line_count(self.bucket_count).checked_mul(LINE_BYTES as u64)?.checked_add(HEADER_BYTES as u64)
    }

    /// How large the file is.
    pub(super) fn file_bytes(&self) -> Option<u64> {
        self.records_start()?
            .checked_add(self.records_bytes)?
            .checked_add(self.description_bytes)?
            .checked_add(self.dictionary_bytes)
    }
}

/// Where the buckets of one line are. The checksum ties in the line's number.
pub(super) fn line_to_bytes(number: u64, base: u64, ends: &[u32; LINE_BUCKETS as usize]) -> [u8; LINE_BYTES] {
    let mut line = [0; LINE_BYTES];
    line[..8].copy_from_slice(&base.to_le_bytes());
    for (end, slot) in ends.iter().zip(line[8..60].chunks_exact_mut(4)) {
        slot.copy_from_slice(&end.to_le_bytes());
    }
    let checksum = line_checksum(number, &line);
    line[60..].copy_from_slice(&checksum.to_le_bytes());
    line
}

#[inline]
fn line_checksum(number: u64, line: &[u8]) -> u32 {
    crc32c_append(number as u32 ^ (number >> 32) as u32, &line[..60])
}

/// Where a bucket begins and ends among the records; `None` if the line is damaged.
#[inline]
pub(super) fn bucket_range(line: &[u8], bucket: u64) -> Option<(u64, u64)> {
    let number = bucket / LINE_BUCKETS;
    if read_u32(line, 60)? != line_checksum(number, line) {
        return None;
    }
    let slot = (bucket % LINE_BUCKETS) as usize;
    let base = read_u64(line, 0)?;
    let start = if slot == 0 { 0 } else { read_u32(line, 4 + 4 * slot)? };
    let end = read_u32(line, 8 + 4 * slot)?;
    Some((base.checked_add(u64::from(start))?, base.checked_add(u64::from(end))?))
}

/// The head of a bucket: how many records it has, and for each its fingerprint and length.
pub(super) fn write_head(bucket: u64, entries: &[(u32, u32)], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend((entries.len() as u16).to_le_bytes());
    for (fingerprint, length) in entries {
        out.extend(fingerprint.to_le_bytes());
        out.extend(length.to_le_bytes());
    }
    let checksum = head_checksum(bucket, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
}

#[inline]
fn head_checksum(bucket: u64, head: &[u8]) -> u32 {
    crc32c_append(!(bucket as u32 ^ (bucket >> 32) as u32), head)
}

/// A bucket whose head was found to be right.
pub(super) struct Bucket<'a> {
    entries: &'a [u8],
    bodies: &'a [u8],
}

impl<'a> Bucket<'a> {
    /// `None` if the head is damaged.
    #[inline]
    pub(super) fn parse(bucket: u64, bytes: &'a [u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self { entries: &[], bodies: &[] });
        }
        let count = bytes.get(4..HEAD_BYTES)?;
        let count = usize::from(u16::from_le_bytes([count[0], count[1]]));
        let head_end = HEAD_BYTES + count * ENTRY_BYTES;
        let head = bytes.get(4..head_end)?;
        if read_u32(bytes, 0)? != head_checksum(bucket, head) {
            return None;
        }
        Some(Self { entries: &bytes[HEAD_BYTES..head_end], bodies: &bytes[head_end..] })
    }

    /// Fingerprint and bytes of each record; `None` in place of one that is not there.
    #[inline]
    pub(super) fn records(&self) -> impl Iterator<Item = Option<(u32, &'a [u8])>> + use<'a> {
        let bodies = self.bodies;
        let mut position = 0usize;
        self.entries.chunks_exact(ENTRY_BYTES).map(move |entry| {
            let fingerprint = read_u32(entry, 0)?;
            let end = position.checked_add(read_u32(entry, 4)? as usize)?;
            let body = bodies.get(position..end)?;
            position = end;
            Some((fingerprint, body))
        })
    }

    /// Whether the records fill the bucket exactly.
    pub(super) fn is_filled(&self) -> bool {
        let total: u64 =
            self.entries.chunks_exact(ENTRY_BYTES).filter_map(|entry| read_u32(entry, 4).map(u64::from)).sum();
        total == self.bodies.len() as u64
    }
}

/// A record: its key, and its value as stored.
pub(super) struct Body<'a> {
    pub(super) flags: u8,
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
}

impl<'a> Body<'a> {
    /// `None` if the record is damaged.
    #[inline]
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let checked = bytes.get(4..)?;
        if read_u32(bytes, 0)? != crc32c(checked) {
            return None;
        }
        let (header, rest) = checked.split_first_chunk::<3>()?;
        let key_length = usize::from(u16::from_le_bytes([header[1], header[2]]));
        Some(Self { flags: header[0], key: rest.get(..key_length)?, value: rest.get(key_length..)? })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; 4]);
        out.push(self.flags);
        out.extend((self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
        let checksum = crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            record_count: 10,
            bucket_count: 3,
            records_bytes: 1000,
            description_bytes: 7,
            dictionary_bytes: 8,
            description_checksum: 1,
            dictionary_checksum: 2,
            content_digest: [3; 16],
            artifact_id: [4; 32],
        }
    }

    #[test]
    fn a_header_survives_and_every_flipped_bit_shows() {
        let bytes = header().to_bytes();
        assert_eq!(Header::parse(&bytes), Ok(header()));
        for position in 0..HEADER_BYTES {
            let mut damaged = bytes;
            damaged[position] ^= 1 << (position % 8);
            assert!(Header::parse(&damaged).is_err(), "byte {position}");
        }
        assert_eq!(Header::parse(&bytes[..100]), Err(HeaderError::NoIndex));
    }

    #[test]
    fn a_line_is_known_by_its_number() {
        let ends = std::array::from_fn(|slot| slot as u32 * 10 + 10);
        let line = line_to_bytes(2, 5000, &ends);
        assert_eq!(bucket_range(&line, 26), Some((5000, 5010)));
        assert_eq!(bucket_range(&line, 38), Some((5120, 5130)));
        assert_eq!(bucket_range(&line, 39), None);
        for position in 0..LINE_BYTES {
            let mut damaged = line;
            damaged[position] ^= 0x10;
            assert_eq!(bucket_range(&damaged, 30), None, "byte {position}");
        }
    }
}
