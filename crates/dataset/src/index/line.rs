//! The lines of an index file: where each bucket begins and how large it is.

use super::bucket::HEAD_BYTES;
use super::format::{LINE_SEED, WIDE_SEED, checksum, read_u32, read_u64};

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

pub(super) fn line_count(buckets: u64) -> u64 {
    buckets.div_ceil(LINE_BUCKETS)
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
    let slot = (bucket % LINE_BUCKETS) as usize;
    let base = read_u64(line, 0)?;
    if base & WIDE != 0 {
        return wide_range(wide, base & !WIDE, bucket);
    }
    let before = sum_before(line.get(8..LINE_BYTES)?.first_chunk()?, slot);
    let size = u64::from(*line.get(8 + slot)?);
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

#[cfg(test)]
mod tests {
    use super::*;

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
