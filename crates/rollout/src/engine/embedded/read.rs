//! Reads from a node.

use std::sync::atomic::Ordering;

use serde_json::value::RawValue;

use super::index::LookUp;
use super::{EmbeddedEngine, Serving};

/// The most bytes that the values of a batch may take in the index; one value alone may take more.
pub const BATCH_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The answer to a read of one key.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The value, the text of a JSON object with all fields of the record; `None`: the version has no such key.
    pub value: Option<Box<RawValue>>,
    /// The version that answered.
    pub version: u64,
}

/// The answer to a read of several keys, all from one version.
#[derive(Clone, Debug)]
pub struct BatchAnswer {
    /// One value per key as in [`Answer::value`], in the order of the keys.
    pub values: Vec<Option<Box<RawValue>>>,
    /// The version that answered.
    pub version: u64,
}

/// Why a node did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeReadError {
    /// No version of this store serves here.
    #[error("no version is served")]
    NoVersion,
    /// The key is none of the store's.
    #[error("{message}")]
    BadKey {
        /// What is wrong with it.
        message: String,
    },
    /// The values of a batch are larger than an answer may be.
    #[error("the values of the batch take over {BATCH_BYTES_MAX} bytes")]
    TooLarge,
    /// The record failed its checksum. Another node may have it; this one is put right.
    #[error("version {version} is damaged here: {message}")]
    Damaged {
        /// The version that serves.
        version: u64,
        /// What was found.
        message: String,
    },
}

/// One version of a store, kept for as long as this lives, whatever is swapped or dropped meanwhile.
pub struct Reader(Serving);

impl Reader {
    /// The version that it reads.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.number
    }

    /// Reads one key, given as text; `None`: the version has no such key.
    ///
    /// # Errors
    /// See [`NodeReadError`].
    pub fn read(&self, key: &str) -> Result<Option<Box<RawValue>>, NodeReadError> {
        Ok(look_up(&self.0, key)?.map(|(value, _)| value))
    }
}

impl EmbeddedEngine {
    /// Takes hold of the version that serves now.
    ///
    /// # Errors
    /// [`NodeReadError::NoVersion`]
    pub fn reader(&self, store: &str) -> Result<Reader, NodeReadError> {
        self.0.serving.load().get(store).cloned().map(Reader).ok_or(NodeReadError::NoVersion)
    }

    /// Whether a version of this store serves here, and is not known to be damaged.
    #[must_use]
    pub fn is_sound(&self, store: &str) -> bool {
        self.0.serving.load().get(store).is_some_and(|serving| !serving.version.is_damaged())
    }

    /// Reads one key, given as text.
    ///
    /// # Errors
    /// See [`NodeReadError`].
    pub fn read(&self, store: &str, key: &str) -> Result<Answer, NodeReadError> {
        let map = self.0.serving.load();
        let serving = map.get(store).ok_or(NodeReadError::NoVersion)?;
        let value = look_up(serving, key)?.map(|(value, _)| value);
        Ok(Answer { value, version: serving.number })
    }

    /// Reads several keys, all from the version that serves when the read begins.
    ///
    /// # Errors
    /// See [`NodeReadError`]; one key that can't be read fails the whole batch, and so do values that take over
    /// [`BATCH_BYTES_MAX`] together.
    pub fn read_batch<K: AsRef<str>>(&self, store: &str, keys: &[K]) -> Result<BatchAnswer, NodeReadError> {
        // A batch may take long, so it keeps the version and not the whole map.
        let reader = self.reader(store)?;
        let mut values = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for key in keys {
            let found = look_up(&reader.0, key.as_ref())?;
            bytes += found.as_ref().map_or(0, |(_, bytes)| *bytes);
            if bytes > BATCH_BYTES_MAX && keys.len() > 1 {
                return Err(NodeReadError::TooLarge);
            }
            values.push(found.map(|(value, _)| value));
        }
        Ok(BatchAnswer { values, version: reader.version() })
    }
}

fn look_up(serving: &Serving, key: &str) -> Result<Option<(Box<RawValue>, usize)>, NodeReadError> {
    match serving.version.index.look_up(key) {
        LookUp::Found(value, bytes) => Ok(Some((value, bytes))),
        LookUp::Absent => Ok(None),
        LookUp::BadKey(message) => Err(NodeReadError::BadKey { message }),
        LookUp::Damaged(message) => {
            serving.version.damaged.store(true, Ordering::Relaxed);
            Err(NodeReadError::Damaged { version: serving.number, message })
        }
    }
}
