//! Handing a file of an artifact on to another process, whole or in part.

use std::ops::Range;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};

use super::{ArtifactError, ArtifactStore, is_part_name, manifest_digest};

/// Which bytes of a file are asked for. What reaches beyond its end is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRange {
    /// From one place to another, the second not included.
    Between(u64, u64),
    /// From a place to the end.
    From(u64),
    /// So many at the end.
    Last(u64),
}

/// A file of an artifact, as it is read.
pub struct ArtifactFile {
    /// How many bytes it has in all.
    pub size: u64,
    /// Which of them these are.
    pub range: Range<u64>,
    /// The bytes. They are as they are stored: who gets them checks their digest.
    pub bytes: BoxStream<'static, Result<Bytes, ArtifactError>>,
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file.
    #[error("there is no file {file} of artifact {artifact}")]
    NotFound {
        /// The artifact.
        artifact: String,
        /// The file.
        file: String,
    },
    /// The range begins behind the end of the file.
    #[error("the file has {size} bytes")]
    Range {
        /// How many bytes the file has.
        size: u64,
    },
    /// The store could not be read, or the name is none.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl ArtifactStore {
    /// Opens a part or a manifest of an artifact, by its file's name.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn open_file(
        &self,
        artifact: &str,
        file: &str,
        range: Option<FileRange>,
    ) -> Result<ArtifactFile, FileError> {
        let object = Self::object(artifact, file)?;
        if !is_part_name(file) && manifest_digest(&object).is_none() {
            return Err(ArtifactError::BadName { name: crate::key::shorten(file) }.into());
        }
        let failed = |source: object_store::Error| match source {
            object_store::Error::NotFound { .. } => {
                FileError::NotFound { artifact: artifact.to_owned(), file: file.to_owned() }
            }
            source => ArtifactError::store(&object, source).into(),
        };
        let size = self.store.head(&object).await.map_err(failed)?.size;
        let wanted = match range {
            None => 0..size,
            Some(FileRange::Between(from, to)) => from..to.min(size),
            Some(FileRange::From(from)) => from..size,
            Some(FileRange::Last(bytes)) => size.saturating_sub(bytes)..size,
        };
        if range.is_some() && wanted.is_empty() {
            return Err(FileError::Range { size });
        }
        if wanted.is_empty() {
            return Ok(ArtifactFile { size, range: wanted, bytes: futures::stream::empty().boxed() });
        }
        let options = GetOptions { range: Some(GetRange::Bounded(wanted.clone())), ..GetOptions::default() };
        let got = self.store.get_opts(&object, options).await.map_err(failed)?;
        let bytes = got.into_stream().map(move |chunk| chunk.map_err(|source| ArtifactError::store(&object, source)));
        Ok(ArtifactFile { size, range: wanted, bytes: bytes.boxed() })
    }
}
