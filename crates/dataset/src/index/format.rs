//! The frame of an index file: its header, and what its parts have in common. See the [module above](super) for the layout.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::line::{LINE_BYTES, line_count};

pub(super) const MAGIC: [u8; 8] = *b"TGINDEX\n";
pub(super) const FORMAT: u32 = 2;

pub(super) const HEADER_BYTES: usize = 256;

/// Under which seed the checksums of each kind of thing are, so that none is taken for one of another kind. Lines and heads
/// add their number to it, and are right at one place only.
pub(super) const RECORD_SEED: u64 = 0;
pub(super) const LINE_SEED: u64 = 1 << 60;
pub(super) const WIDE_SEED: u64 = 2 << 60;
pub(super) const HEAD_SEED: u64 = 3 << 60;
const FRAME_SEED: u64 = 4 << 60;

/// xxh3 by its lower half: for pieces as short as these it takes fewer instructions than a CRC, which count where look-ups
/// are to wait for memory side by side.
#[inline(always)]
pub(super) fn checksum(seed: u64, bytes: &[u8]) -> u32 {
    xxh3_64_with_seed(bytes, seed) as u32
}

/// The checksum of what is in the file once: header, description, dictionary.
pub(super) fn frame_checksum(bytes: &[u8]) -> u32 {
    checksum(FRAME_SEED, bytes)
}

#[inline(always)]
pub(super) fn read_u32(bytes: &[u8], position: usize) -> Option<u32> {
    let bytes = bytes.get(position..position + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[inline(always)]
pub(super) fn read_u64(bytes: &[u8], position: usize) -> Option<u64> {
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
        // Before the checksum, which another format computes in another way.
        if format != FORMAT {
            return Err(HeaderError::Format(format));
        }
        if checksum != frame_checksum(&bytes[..HEADER_BYTES - 4]) {
            return Err(damaged);
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
}
