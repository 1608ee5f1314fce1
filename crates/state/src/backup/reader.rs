//! Reading a backup whole: nothing of it counts before its digest was found right.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Take};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::item::Item;
use super::{Backup, BackupError, BackupHeader, FORMAT, MAGIC};
use crate::driver::StoredState;
use crate::driver::record_index::DeclaredKinds;
use crate::driver::{IndexEntry, RecordRow, without_repeats};
use crate::revision::Revision;

/// The longest first lines.
const HEADER_BYTES_MAX: u64 = 4_096;

/// The largest item in bytes: a transaction has at most 64 MiB, and is written with what was there before.
const ITEM_BYTES_MAX: u32 = 1 << 28;

const DIGEST_BYTES: u64 = 32;

/// Digests what is read through it.
struct Digested<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Digested<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

struct Source<'a> {
    path: &'a Path,
    body: BufReader<Digested<Take<File>>>,
    digest: [u8; 32],
}

impl Source<'_> {
    fn damaged(&self, why: impl Into<String>) -> BackupError {
        BackupError::Damaged { path: self.path.to_owned(), why: why.into() }
    }
}

/// The first lines alone: what the file says of itself. Its digest is not looked at.
pub(super) fn read_header(path: &Path) -> Result<BackupHeader, BackupError> {
    open(path).map(|(header, _)| header)
}

fn open(path: &Path) -> Result<(BackupHeader, Source<'_>), BackupError> {
    use std::io::{Seek, SeekFrom};
    let failed = |source| BackupError::File { path: path.to_owned(), source };
    let none = |why: &str| BackupError::NotABackup { path: path.to_owned(), why: why.to_owned() };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut magic = vec![0; MAGIC.len()];
    match file.read_exact(&mut magic) {
        Ok(()) if magic == MAGIC => {}
        Ok(()) => return Err(none("it does not begin as one")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(none("it is too short for one")),
        Err(error) => return Err(failed(error)),
    }
    let Some(body) = length.checked_sub(DIGEST_BYTES).filter(|body| *body > MAGIC.len() as u64) else {
        return Err(none("it is too short for one"));
    };
    let mut digest = [0; DIGEST_BYTES as usize];
    file.seek(SeekFrom::Start(body)).and_then(|_| file.read_exact(&mut digest)).map_err(failed)?;
    file.seek(SeekFrom::Start(MAGIC.len() as u64)).map_err(failed)?;
    let mut hasher = Sha256::new();
    hasher.update(MAGIC);
    let body = Digested { inner: file.take(body - MAGIC.len() as u64), hasher };
    let mut source = Source { path, body: BufReader::with_capacity(1 << 20, body), digest };
    let mut line = Vec::new();
    let read = Read::by_ref(&mut source.body).take(HEADER_BYTES_MAX).read_until(b'\n', &mut line);
    read.map_err(failed)?;
    let said: serde_json::Value =
        serde_json::from_slice(&line).map_err(|_| source.damaged("its second line can't be read"))?;
    match said.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found > u64::from(FORMAT) => {
            return Err(BackupError::NewerFormat { path: path.to_owned(), found, known: FORMAT });
        }
        Some(_) => {}
        None => return Err(source.damaged("its second line names no format")),
    }
    let header = serde_json::from_value(said).map_err(|error| source.damaged(format!("its second line: {error}")))?;
    Ok((header, source))
}

/// See [`Backup::read`].
pub(super) fn read(path: &Path) -> Result<Backup, BackupError> {
    let (header, mut source) = open(path)?;
    let read = read_items(&mut source, &header);
    // Where it could not be read, the digest says whether that is the file's fault.
    let rest = io::copy(&mut source.body, &mut io::sink());
    let found = std::mem::take(&mut source.body.get_mut().hasher).finalize();
    if let Err(error) = rest {
        return Err(BackupError::File { path: path.to_owned(), source: error });
    }
    if found[..] != source.digest {
        return Err(source.damaged("its digest does not fit: it was cut short, or changed since it was written"));
    }
    let (state, kinds) = read.map_err(|why| source.damaged(why))?;
    Ok(Backup { header, state, kinds })
}

fn read_items(source: &mut Source<'_>, header: &BackupHeader) -> Result<(StoredState, DeclaredKinds), String> {
    let mut state = StoredState::empty();
    state.meta.epoch = header.epoch;
    state.meta.installation = header.installation;
    state.meta.format = header.tables;
    state.meta.head = header.revision;
    state.meta.compacted = header.compacted;
    state.token_counter = header.token_counter;
    state.tree.revision = header.entities_at;
    let mut kinds = DeclaredKinds::default();
    let mut stream =
        zstd::stream::read::Decoder::with_buffer(&mut source.body).map_err(|error| error.to_string())?.single_frame();
    let mut buffer = Vec::new();
    let mut count = 0;
    loop {
        match read_item(&mut stream, &mut buffer)? {
            Item::Kind(name, kind) => drop(kinds.0.insert(name, kind)),
            Item::Entity(row) => state.tree.entities.push(row),
            Item::Log(row) => state.log.push(row),
            Item::Receipt(receipt) => state.receipts.push(receipt),
            Item::Exception(exception) => state.exceptions.push(*exception),
            Item::Slot(slot) => state.slots.push(slot),
            Item::Record(record) => {
                state.index_entries.extend(entries_of(&record, &kinds)?);
                state.records.push(record);
            }
            Item::End(said) if said == count => break,
            Item::End(said) => return Err(format!("it has {count} items and says {said}")),
        }
        count += 1;
    }
    let head = state.log.last().map_or(Revision::ZERO, |row| row.revision);
    if head != header.revision {
        return Err(format!("its log ends at revision {head}, and it says {}", header.revision));
    }
    state.receipts = without_repeats(state.receipts);
    state.index_entries.sort();
    Ok((state, kinds))
}

fn read_item(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Result<Item, String> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(|error| error.to_string())?;
    let length = u32::from_le_bytes(length);
    if length > ITEM_BYTES_MAX {
        return Err(format!("an item of {length} bytes"));
    }
    buffer.clear();
    // Grows with what is there, not with what is said.
    let read = stream.by_ref().take(u64::from(length)).read_to_end(buffer).map_err(|error| error.to_string())?;
    if read != length as usize {
        return Err("it ends within an item".to_owned());
    }
    Item::decode(buffer).ok_or_else(|| "an item can't be read".to_owned())
}

fn entries_of(record: &RecordRow, kinds: &DeclaredKinds) -> Result<Vec<IndexEntry>, String> {
    let kind = kinds.check(record).map_err(|error| error.to_string())?;
    let entry = |(key, index): (&Vec<u8>, &std::sync::Arc<str>)| IndexEntry {
        kind: record.kind.clone(),
        index: index.clone(),
        key: key.clone(),
        id: record.id,
    };
    Ok(record.keys.iter().zip(&kind.indexes).map(entry).collect())
}
