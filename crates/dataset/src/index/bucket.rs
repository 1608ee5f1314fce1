//! The buckets of an index file: a head, which says where its records are, and the records.

use super::format::{HEAD_SEED, RECORD_SEED, checksum, read_u32};

/// How many records a bucket has on average.
pub(super) const BUCKET_RECORDS: u64 = 4;
/// A bucket begins at a multiple of this, and its head is a multiple of it long: nearly always one line of the
/// processor's cache, whatever the number of records, so that nothing has to be guessed before it is there.
pub(super) const HEAD_BYTES: usize = 64;
/// Fingerprint and end of a record. The first place of a head is that of its checksum and of the first record's begin.
const ENTRY_BYTES: usize = 4 + 4;
/// How many records one line of a head speaks of, less the place of the checksum in the first.
const HEAD_PLACES: usize = HEAD_BYTES / ENTRY_BYTES;
/// A record begins at a multiple of this, for its checksum to be computed word by word.
pub(super) const RECORD_ALIGNMENT: usize = 8;
/// Checksum, flags and key length of a record, before key and value.
pub(super) const BODY_HEADER_BYTES: usize = 4 + 1 + 2;
pub(super) const FLAG_COMPRESSED: u8 = 1;

pub(super) fn bucket_count(records: u64) -> u64 {
    records.div_ceil(BUCKET_RECORDS).max(1)
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

/// The head of a bucket: where its first record begins, and for each its fingerprint and where it ends, all counted from the
/// bucket's begin. Unused places repeat the last end. `entries` are the fingerprint of each record and its length, without
/// what fills it up.
pub(super) fn write_head(bucket: u64, entries: &[(u32, u32)], out: &mut Vec<u8>) {
    let lines = (entries.len() + 1).div_ceil(HEAD_PLACES);
    let start = out.len();
    let mut end = (lines * HEAD_BYTES) as u32;
    out.extend([0; 4]);
    out.extend(end.to_le_bytes());
    for (fingerprint, length) in entries {
        end = aligned(end as usize) as u32 + length;
        out.extend(fingerprint.to_le_bytes());
        out.extend(end.to_le_bytes());
    }
    while out.len() - start < lines * HEAD_BYTES {
        out.extend(0u32.to_le_bytes());
        out.extend(end.to_le_bytes());
    }
    let checksum = head_checksum(bucket, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// The next position at which a record may begin; positions are those within a bucket, far from what overflows.
#[inline(always)]
pub(super) fn aligned(position: usize) -> usize {
    // Not `next_multiple_of`, which is a branch that depends on the record.
    (position + (RECORD_ALIGNMENT - 1)) & !(RECORD_ALIGNMENT - 1)
}

#[inline]
fn head_checksum(bucket: u64, head: &[u8]) -> u32 {
    checksum(HEAD_SEED | bucket, head)
}

/// A bucket. Its head is believed as far as it leads to a record, which has a checksum of its own and the key that was asked
/// for; that there is no such record is true only if [`Bucket::is_right`].
pub(super) struct Bucket<'a> {
    number: u64,
    bytes: &'a [u8],
    head_bytes: usize,
}

impl<'a> Bucket<'a> {
    /// `None` if the head can't be one. A bucket without records has no bytes at all.
    #[inline]
    pub(super) fn parse(number: u64, bytes: &'a [u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self { number, bytes, head_bytes: 0 });
        }
        let head_bytes = read_u32(bytes, 4)? as usize;
        let is_possible = head_bytes.is_multiple_of(HEAD_BYTES) && (HEAD_BYTES..=bytes.len()).contains(&head_bytes);
        is_possible.then_some(Self { number, bytes, head_bytes })
    }

    /// Whether the head is as it was written, for this bucket.
    pub(super) fn is_right(&self) -> bool {
        match self.bytes.get(..self.head_bytes) {
            Some([]) => true,
            Some(head) => read_u32(head, 0).is_some_and(|checksum| checksum == head_checksum(self.number, &head[4..])),
            None => false,
        }
    }

    /// The record with this fingerprint that `is_wanted`. Which of the places match is found without a branch: what a
    /// processor would have to guess there keeps it from going on to the next look-up while this one waits for memory.
    #[inline]
    pub(super) fn find(
        &self,
        fingerprint: u32,
        is_wanted: impl Fn(&Body<'a>) -> bool,
    ) -> Result<Option<Body<'a>>, BadRecord> {
        let head = &self.bytes[..self.head_bytes];
        let (lines, _) = head.as_chunks::<HEAD_BYTES>();
        for (number, line) in lines.iter().enumerate() {
            let (places, _) = line.as_chunks::<ENTRY_BYTES>();
            let mut matching = 0u32;
            for (at, place) in places.iter().enumerate() {
                let found = u32::from_le_bytes([place[0], place[1], place[2], place[3]]);
                matching |= u32::from(found == fingerprint) << at;
            }
            // The first place of the first line is the checksum's.
            matching &= if number == 0 { !1 } else { !0 };
            while matching != 0 {
                let place = number * HEAD_PLACES + matching.trailing_zeros() as usize;
                matching &= matching - 1;
                if let Some(bytes) = self.record(place)? {
                    let body = Body::parse(bytes).ok_or(BadRecord)?;
                    if is_wanted(&body) {
                        return Ok(Some(body));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The record that a place of the head, counted from 1, points to; none if the place is unused.
    #[inline(always)]
    fn record(&self, place: usize) -> Result<Option<&'a [u8]>, BadRecord> {
        let end_of = |place: usize| read_u32(self.bytes, place * ENTRY_BYTES + 4).map(|end| end as usize);
        let (before, end) = end_of(place - 1).zip(end_of(place)).ok_or(BadRecord)?;
        if before == end {
            return Ok(None);
        }
        self.bytes.get(aligned(before)..end).map(Some).ok_or(BadRecord)
    }

    /// Fingerprint and bytes of each record.
    pub(super) fn records(&self) -> impl Iterator<Item = Result<(u32, &'a [u8]), BadRecord>> + '_ {
        (1..self.head_bytes / ENTRY_BYTES).filter_map(|place| {
            let record = self.record(place).transpose()?;
            let fingerprint = read_u32(self.bytes, place * ENTRY_BYTES).ok_or(BadRecord);
            Some(record.and_then(|bytes| Ok((fingerprint?, bytes))))
        })
    }

    /// How many bytes it takes, head and filling included.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether the records fill the bucket, with nothing but zeros between and behind them.
    pub(super) fn is_filled(&self) -> bool {
        let is_zero =
            |from: usize, to: usize| self.bytes.get(from..to).is_some_and(|filling| filling.iter().all(|b| *b == 0));
        let mut end = self.head_bytes;
        for record in self.records() {
            let Ok((_, record)) = record else { return false };
            let start = aligned(end);
            if !is_zero(end, start) {
                return false;
            }
            end = start + record.len();
        }
        self.bytes.len() == end.next_multiple_of(HEAD_BYTES) && is_zero(end, self.bytes.len())
    }
}

/// A record that is not where its bucket's head says, or is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadRecord;

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
        if read_u32(bytes, 0)? != checksum(RECORD_SEED, checked) {
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
        let sum = checksum(RECORD_SEED, &out[start + 4..]);
        out[start..start + 4].copy_from_slice(&sum.to_le_bytes());
    }
}
