//! Parts that others put straight into the store, over URLs that were signed for them.
//!
//! A part goes up as a multipart upload whose chunks are put over signed URLs. Whoever has the URLs can put these chunks
//! and do nothing else: only who holds the credentials makes an object of them, and after that no chunk can be put any
//! more. So what is checked once the object is there can't be changed under its checker.

use std::ops::Range;
use std::time::Duration;

use futures::stream::{StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::signer::{SignedUrlOptions, Signer};
use object_store::{Error, ObjectStoreExt};
use tidegate_api::manifest::Part;

use super::{ArtifactError, ArtifactStore};
use crate::location::{S3, is_unfit_upload};

/// The least that a chunk has, but for the last one.
const CHUNK_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// How many chunks an object may have.
const CHUNKS_MAX: u64 = 10_000;

const MIB: u64 = 1024 * 1024;

/// The size of the chunks that a part of this size goes up in, in bytes; the last one has the rest.
#[must_use]
pub fn chunk_bytes(part_bytes: u64) -> u64 {
    part_bytes.div_ceil(CHUNKS_MAX).next_multiple_of(MIB).max(CHUNK_BYTES_MIN)
}

impl ArtifactStore {
    /// Whether parts can be put straight into this store.
    #[must_use]
    pub fn takes_direct_parts(&self) -> bool {
        self.s3.is_some()
    }

    fn direct(&self, id: &str, part: &Part) -> Result<(&S3, ObjectPath), ArtifactError> {
        let object = Self::part_object(id, part)?;
        let Some(s3) = &self.s3 else {
            let source = Error::NotSupported { source: "parts go straight into buckets alone".into() };
            return Err(ArtifactError::store(&object, source));
        };
        let whole = s3.prefix.parts().chain(object.parts()).collect();
        Ok((s3, whole))
    }

    /// Begins to take a part, and answers with the id of its upload.
    ///
    /// # Errors
    /// If the store refuses, or is none that takes parts this way.
    pub async fn begin_direct(&self, id: &str, part: &Part) -> Result<String, ArtifactError> {
        let (s3, object) = self.direct(id, part)?;
        s3.client.create_multipart(&object).await.map_err(|source| ArtifactError::store(&object, source))
    }

    /// URLs over which chunks of a part can be put until they run out. They are secrets for as long. The chunks count
    /// from 0.
    ///
    /// # Errors
    /// If there are no credentials to sign with.
    pub async fn direct_urls(
        &self,
        id: &str,
        part: &Part,
        upload: &str,
        chunks: Range<u32>,
        valid: Duration,
    ) -> Result<Vec<String>, ArtifactError> {
        let (s3, object) = self.direct(id, part)?;
        let sign = |chunk: u32| {
            let object = &object;
            async move {
                let number = (u64::from(chunk) + 1).to_string();
                let options =
                    SignedUrlOptions::default().with_query([("partNumber", number.as_str()), ("uploadId", upload)]);
                let signed = s3.signer.signed_url_opts(object_store::signer::Method::PUT, object, valid, &options);
                signed.await.map(String::from)
            }
        };
        futures::stream::iter(chunks)
            .then(sign)
            .try_collect()
            .await
            .map_err(|source| ArtifactError::store(&object, source))
    }

    /// Makes the part of its chunks, each known by the tag that the store gave for it, and replaces what is there.
    /// Nothing is known of its content then: see [`ArtifactStore::check_part`]. Answers whether it was done: if not, the
    /// upload is not there (any more), or its chunks are not those, and the part has to be sent again.
    ///
    /// # Errors
    /// If the store fails, or is none that takes parts this way.
    pub async fn finish_direct(
        &self,
        id: &str,
        part: &Part,
        upload: &str,
        tags: Vec<String>,
    ) -> Result<bool, ArtifactError> {
        let (s3, object) = self.direct(id, part)?;
        let chunks = tags.into_iter().map(|content_id| PartId { content_id }).collect();
        match s3.client.complete_multipart(&object, &upload.to_owned(), chunks).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) if is_unfit_upload(&error) => Ok(false),
            Err(source) => Err(ArtifactError::store(&object, source)),
        }
    }

    /// Lets go of an upload and its chunks. What is not there is done already.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn abort_direct(&self, id: &str, part: &Part, upload: &str) -> Result<(), ArtifactError> {
        let (s3, object) = self.direct(id, part)?;
        match s3.client.abort_multipart(&object, &upload.to_owned()).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(ArtifactError::store(&object, source)),
        }
    }

    /// Removes a part. What is not there is done already.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn remove_part(&self, id: &str, part: &Part) -> Result<(), ArtifactError> {
        let object = Self::part_object(id, part)?;
        match self.store.delete(&object).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(ArtifactError::store(&object, source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_few_enough_whatever_the_size_of_the_part() {
        for bytes in [1, CHUNK_BYTES_MIN, CHUNK_BYTES_MIN + 1, 160_000 * MIB, 160_000 * MIB + 1, 5 << 40] {
            let chunk = chunk_bytes(bytes);
            assert!(chunk >= CHUNK_BYTES_MIN && bytes.div_ceil(chunk) <= CHUNKS_MAX, "{bytes}: {chunk}");
        }
        assert_eq!(chunk_bytes(1), CHUNK_BYTES_MIN);
    }
}
