//! The bytes of an input file: digested as they are on disk, unpacked on the way.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek};
use std::rc::Rc;

use sha2::{Digest, Sha256};

use super::{Compression, InputError, InputFile, display};

/// The digest of the input: over the digests of the files' bytes in ascending order, so that
/// neither names nor order count.
#[derive(Debug, Default)]
pub(crate) struct InputDigest {
    files: Vec<[u8; 32]>,
}

impl InputDigest {
    pub(crate) fn add(&mut self, file: [u8; 32]) {
        self.files.push(file);
    }

    pub(crate) fn finish(mut self) -> String {
        self.files.sort_unstable();
        let mut hasher = Sha256::new();
        hasher.update(b"tidegate input 1\n");
        for file in &self.files {
            hasher.update(file);
        }
        hex::encode(hasher.finalize())
    }
}

struct Counted {
    file: File,
    hasher: Sha256,
    bytes: u64,
}

/// A reader over a file's own bytes that digests and counts them.
#[derive(Clone)]
struct CountedReader(Rc<RefCell<Counted>>);

impl Read for CountedReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut counted = self.0.borrow_mut();
        let read = counted.file.read(buffer)?;
        counted.hasher.update(&buffer[..read]);
        counted.bytes += read as u64;
        Ok(read)
    }
}

/// An input file, opened to be read once from beginning to end.
pub(crate) struct Source {
    counted: CountedReader,
    unpacked: Box<dyn Read>,
    path: String,
}

impl Source {
    pub(crate) fn open(file: &InputFile) -> Result<Self, InputError> {
        let path = display(&file.path);
        let read_error = |source| InputError::Read { path: path.clone(), source };
        let counted = CountedReader(Rc::new(RefCell::new(Counted {
            file: File::open(&file.path).map_err(read_error)?,
            hasher: Sha256::new(),
            bytes: 0,
        })));
        let packed = counted.clone();
        let unpacked: Box<dyn Read> = match file.compression {
            Compression::None => Box::new(packed),
            Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            // No data at all is no frame either, but an empty file all the same.
            Compression::Zstd if file.bytes == 0 => Box::new(packed),
            Compression::Zstd => Box::new(zstd::Decoder::new(packed).map_err(read_error)?),
        };
        Ok(Self { counted, unpacked, path })
    }

    /// Reads until `buffer` is full or the data ends.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, InputError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.unpacked.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(InputError::Read { path: self.path.clone(), source });
                }
            }
        }
        Ok(filled)
    }

    /// How many bytes of the file have been read.
    pub(crate) fn bytes(&self) -> u64 {
        self.counted.0.borrow().bytes
    }

    /// Reads what is left (nothing, or what lies behind compressed data) and gives the SHA-256 of
    /// the whole file.
    pub(crate) fn finish(mut self) -> Result<[u8; 32], InputError> {
        let mut rest = [0u8; 8192];
        loop {
            match self.counted.read(&mut rest) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(InputError::Read { path: self.path, source });
                }
            }
        }
        let counted = self.counted.0.borrow();
        Ok(counted.hasher.clone().finalize().into())
    }
}

/// The file's own bytes with random access (Parquet needs it), and their digest. A compressed
/// file is unpacked into `folder` first, as a file that vanishes when it is closed.
pub(crate) fn open_seekable(file: &InputFile, folder: &std::path::Path) -> Result<(File, [u8; 32]), InputError> {
    let mut source = Source::open(file)?;
    let mut buffer = vec![0u8; 64 * 1024];
    if file.compression == Compression::None {
        while source.fill(&mut buffer)? > 0 {}
        let digest = source.finish()?;
        let opened = File::open(&file.path).map_err(|source| InputError::Read { path: display(&file.path), source })?;
        return Ok((opened, digest));
    }
    let disk_error = |source| InputError::Disk { path: display(folder), source };
    let mut unpacked = tempfile::tempfile_in(folder).map_err(disk_error)?;
    loop {
        let filled = source.fill(&mut buffer)?;
        if filled == 0 {
            break;
        }
        std::io::Write::write_all(&mut unpacked, &buffer[..filled]).map_err(disk_error)?;
    }
    unpacked.rewind().map_err(disk_error)?;
    Ok((unpacked, source.finish()?))
}
