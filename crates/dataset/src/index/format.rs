//! The bytes of an index file. See the [module above](super) for the layout.

use xxhash_rust::xxh3::xxh3_64_with_seed;

pub(super) const MAGIC: [u8; 8] = *b"TGINDEX\n";
pub(super) const FORMAT: u32 = 2;

pub(super) const HEADER_BYTES: usize = 256;
pub(super) const LINE_BYTES: usize = 64;
/// How many buckets one line speaks of, a byte for each: so few bytes that the lines stay in the processor's cache, and that
/// their pages stay known to it, where the records can't.
pub(super) const LINE_BUCKETS: u64 = 52;
const LINE_SIZES: usize = LINE_BUCKETS as usize;
/// A line whose first number has this bit is a pointer to a wide one, since one of its buckets is too large for a byte.
const WIDE: u64 = 1 << 63;
/// The largest bucket that a line has a byte for.
const NARROW_BUCKET_BYTES_MAX: u64 = u8::MAX as u64 * HEAD_BYTES as u64;
/// Where 52 buckets begin and end, with eight bytes each, and a checksum.
pub(super) const WIDE_LINE_BYTES: usize = 8 * (LINE_SIZES + 1) + 4;
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

/// Under which seed the checksums of each kind of thing are, so that none is taken for one of another kind. Lines and heads
/// add their number to it, and are right at one place only.
const RECORD_SEED: u64 = 0;
const LINE_SEED: u64 = 1 << 60;
const WIDE_SEED: u64 = 2 << 60;
const HEAD_SEED: u64 = 3 << 60;
const FRAME_SEED: u64 = 4 << 60;

/// xxh3 by its lower half: for pieces as short as these it takes fewer instructions than a CRC, which count where look-ups
/// are to wait for memory side by side.
#[inline(always)]
fn checksum(seed: u64, bytes: &[u8]) -> u32 {
    xxh3_64_with_seed(bytes, seed) as u32
}

/// The checksum of what is in the file once: header, description, dictionary.
pub(super) fn frame_checksum(bytes: &[u8]) -> u32 {
    checksum(FRAME_SEED, bytes)
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
    pub(super) wide_bytes: u64,
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
        bytes.extend(self.wide_bytes.to_le_bytes());
        bytes.resize(HEADER_BYTES - 4, 0);
        bytes.extend(frame_checksum(&bytes).to_le_bytes());
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
        if checksum != frame_checksum(&bytes[..HEADER_BYTES - 4]) {
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
            wide_bytes: number(108)?,
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
            .checked_add(self.wide_bytes)?
            .checked_add(self.description_bytes)?
            .checked_add(self.dictionary_bytes)
    }
}

/// Where the buckets of one line begin, and how large each is, in bytes. Sizes are multiples of [`HEAD_BYTES`].
pub(super) struct LineSizes {
    pub(super) number: u64,
    pub(super) base: u64,
    pub(super) sizes: [u64; LINE_SIZES],
}

impl LineSizes {
    /// The line. Where a size is too large for it, its wide line goes to the end of `wide`. The checksums tie in the line's
    /// number.
    pub(super) fn to_bytes(&self, wide: &mut Vec<u8>) -> [u8; LINE_BYTES] {
        let mut line = [0; LINE_BYTES];
        if self.sizes.iter().all(|size| *size <= NARROW_BUCKET_BYTES_MAX) {
            line[..8].copy_from_slice(&self.base.to_le_bytes());
            for (place, size) in line[8..60].iter_mut().zip(&self.sizes) {
                *place = (size / HEAD_BYTES as u64) as u8;
            }
        } else {
            line[..8].copy_from_slice(&(WIDE | wide.len() as u64).to_le_bytes());
            let start = wide.len();
            let mut end = self.base;
            wide.extend(end.to_le_bytes());
            for size in &self.sizes {
                end += size;
                wide.extend(end.to_le_bytes());
            }
            let sum = checksum(WIDE_SEED | self.number, &wide[start..]);
            wide.extend(sum.to_le_bytes());
        }
        let sum = checksum(LINE_SEED | self.number, &line[..60]);
        line[60..].copy_from_slice(&sum.to_le_bytes());
        line
    }
}

/// Whether a line, that of this bucket, is as it was written.
#[inline]
pub(super) fn is_line_of(line: &[u8], bucket: u64) -> bool {
    let number = bucket / LINE_BUCKETS;
    line.get(..60)
        .zip(read_u32(line, 60))
        .is_some_and(|(content, found)| found == checksum(LINE_SEED | number, content))
}

/// Where a bucket begins and ends among the records, as its line says; `None` if that makes no sense.
///
/// It does not check the line. Nobody is led astray by a damaged one: a record is known by its key and its checksum, and the
/// head of a bucket by the bucket's number, wherever they are found. Only that there is no record at all has nothing but the
/// line to show for it, see [`is_line_of`].
#[inline(always)]
pub(super) fn bucket_range(line: &[u8], wide: &[u8], bucket: u64) -> Option<(u64, u64)> {
    let slot = (bucket % LINE_BUCKETS) as u8;
    let base = read_u64(line, 0)?;
    if base & WIDE != 0 {
        return wide_range(wide, base & !WIDE, bucket);
    }
    let before = sum_before(line.get(8..LINE_BYTES)?.first_chunk()?, usize::from(slot));
    let size = u64::from(*line.get(8 + usize::from(slot))?);
    let start = base.checked_add(before * HEAD_BYTES as u64)?;
    Some((start, start.checked_add(size * HEAD_BYTES as u64)?))
}

/// The bytes of a line behind its first number: the sizes, and the checksum.
const SIZE_WORDS: usize = (LINE_BYTES - 8) / 8;

/// For each slot, which of the bytes are those before it.
static BEFORE: [[u64; SIZE_WORDS]; LINE_SIZES] = {
    let mut masks = [[0; SIZE_WORDS]; LINE_SIZES];
    let mut slot = 0;
    while slot < LINE_SIZES {
        let mut byte = 0;
        while byte < slot {
            masks[slot][byte / 8] |= 0xff << (byte % 8 * 8);
            byte += 1;
        }
        slot += 1;
    }
    masks
};

/// The sum of the bytes before a slot. All are added up, masked, whichever is asked for: the processor adds several at
/// once, and has nothing to guess.
#[inline(always)]
fn sum_before(bytes: &[u8; LINE_BYTES - 8], slot: usize) -> u64 {
    const EVERY_OTHER: u64 = 0x00ff_00ff_00ff_00ff;
    let (words, _) = bytes.as_chunks::<8>();
    let mut lanes = 0u64;
    for (word, mask) in words.iter().zip(&BEFORE[slot]) {
        let word = u64::from_le_bytes(*word) & mask;
        // Four lanes of 16 bits, of which none overflows: each is the sum of at most fourteen bytes.
        lanes = lanes.wrapping_add(word & EVERY_OTHER).wrapping_add((word >> 8) & EVERY_OTHER);
    }
    lanes.wrapping_mul(0x0001_0001_0001_0001) >> 48
}

#[cold]
fn wide_range(wide: &[u8], position: u64, bucket: u64) -> Option<(u64, u64)> {
    let position = usize::try_from(position).ok()?;
    let line = wide.get(position..position.checked_add(WIDE_LINE_BYTES)?)?;
    let (ends, sum) = line.split_at(WIDE_LINE_BYTES - 4);
    if read_u32(sum, 0)? != checksum(WIDE_SEED | (bucket / LINE_BUCKETS), ends) {
        return None;
    }
    let slot = (bucket % LINE_BUCKETS) as usize;
    Some((read_u64(ends, 8 * slot)?, read_u64(ends, 8 * (slot + 1))?))
}

/// The head of a bucket: where its first record begins, and for each its fingerprint and where it ends, all counted from the
/// bucket's begin. Unused places repeat the last end. `lengths` are those of the records without what fills them up.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            record_count: 10,
            bucket_count: 3,
            records_bytes: 1000,
            wide_bytes: 0,
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
        let sizes = std::array::from_fn(|slot| slot as u64 % 3 * 64);
        let mut wide = Vec::new();
        let line = LineSizes { number: 2, base: 6400, sizes }.to_bytes(&mut wide);
        assert_eq!((bucket_range(&line, &[], 104), wide.len()), (Some((6400, 6400)), 0));
        assert_eq!(bucket_range(&line, &[], 105), Some((6400, 6464)));
        assert_eq!(bucket_range(&line, &[], 109), Some((6400 + 64 * 4, 6400 + 64 * 6)));
        assert_eq!(bucket_range(&line, &[], 155), Some((6400 + 64 * 51, 6400 + 64 * 51)));
        assert!(is_line_of(&line, 104) && is_line_of(&line, 155) && !is_line_of(&line, 156));
        let full = LineSizes { number: 0, base: 0, sizes: [NARROW_BUCKET_BYTES_MAX; LINE_SIZES] }.to_bytes(&mut wide);
        for slot in 0..LINE_BUCKETS {
            let start = slot * NARROW_BUCKET_BYTES_MAX;
            assert_eq!(bucket_range(&full, &[], slot), Some((start, start + NARROW_BUCKET_BYTES_MAX)));
        }
        for position in 0..LINE_BYTES {
            let mut damaged = line;
            damaged[position] ^= 0x10;
            assert!(!is_line_of(&damaged, 110), "byte {position}");
        }
    }

    #[test]
    fn a_bucket_that_is_too_large_for_a_byte_is_found_by_a_wide_line() {
        let mut sizes = [64; LINE_SIZES];
        let mut wide = vec![7; WIDE_LINE_BYTES];
        sizes[3] = NARROW_BUCKET_BYTES_MAX;
        LineSizes { number: 1, base: 0, sizes }.to_bytes(&mut wide);
        assert_eq!(wide.len(), WIDE_LINE_BYTES, "the largest that a byte is enough for");
        sizes[3] += 64;
        let line = LineSizes { number: 1, base: 6400, sizes }.to_bytes(&mut wide);
        assert_eq!(wide.len(), 2 * WIDE_LINE_BYTES);
        assert_eq!(bucket_range(&line, &wide, 52 + 3), Some((6592, 6592 + sizes[3])));
        assert_eq!(bucket_range(&line, &wide, 52 + 4), Some((6592 + sizes[3], 6656 + sizes[3])));
        assert_eq!(bucket_range(&line, &wide, 2 * 52 + 4), None, "it is another line's");
        for position in WIDE_LINE_BYTES..wide.len() {
            let mut damaged = wide.clone();
            damaged[position] ^= 0x10;
            assert_eq!(bucket_range(&line, &damaged, 52 + 4), None, "byte {position}");
        }
        assert_eq!(bucket_range(&line, &wide[..wide.len() - 1], 52 + 4), None);
    }
}
