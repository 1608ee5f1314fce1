//! What a part's own footer says of it, held against the manifest.
//!
//! Gates decide by the manifest's statistics before anything is loaded, and the manifest is its client's word. A part's Parquet
//! footer counts its rows, and the nulls of its fields, as well; to look there costs one small read.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path as ObjectPath;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use tidegate_api::manifest::{Manifest, Part};

use super::{ArtifactError, ArtifactStore};

/// How much is read from the end of a part at first: all of the footer, nearly always.
const TAIL_BYTES: u64 = 64 * 1024;

/// The largest footer that is read, in bytes.
const FOOTER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What stands behind the footer: its length, and the letters of the format.
const END_BYTES: usize = 8;
const MAGIC: &[u8] = b"PAR1";

/// How many parts are looked at, at once.
const AT_ONCE: usize = 8;

/// What a footer counts.
struct Counts {
    rows: u64,
    /// By field; of a field that is not here the footer says nothing.
    nulls: BTreeMap<String, u64>,
}

impl ArtifactStore {
    /// Holds what a manifest counts against the footers of its parts, which are all there: the rows of each part, and over all
    /// of them the nulls of each field.
    ///
    /// # Errors
    /// [`ArtifactError::BadManifest`] with both numbers where they differ, or if a part is no Parquet file.
    pub async fn check_counts(&self, manifest: &Manifest) -> Result<(), ArtifactError> {
        let refuse = |why: String| Err(ArtifactError::BadManifest { artifact: manifest.artifact_id.clone(), why });
        for field in &manifest.statistics {
            if u128::from(field.count) + u128::from(field.nulls) != u128::from(manifest.record_count) {
                return refuse(format!(
                    "of field `{}` it counts {} values and {} nulls, and it has {} records",
                    crate::key::shorten(&field.name),
                    field.count,
                    field.nulls,
                    manifest.record_count
                ));
            }
        }
        let looks: Vec<_> = manifest.parts.iter().map(|part| self.counts(&manifest.artifact_id, part)).collect();
        let counts: Vec<Counts> = futures::stream::iter(looks).buffered(AT_ONCE).try_collect().await?;
        for (part, counts) in manifest.parts.iter().zip(&counts) {
            if part.rows != counts.rows {
                return refuse(format!(
                    "of part `{}` it says that it has {} rows, and the part itself has {}",
                    part.name, part.rows, counts.rows
                ));
            }
        }
        for field in &manifest.statistics {
            let nulls: Option<Vec<u64>> = counts.iter().map(|counts| counts.nulls.get(&field.name).copied()).collect();
            let Some(nulls) = nulls else { continue };
            let found: u128 = nulls.into_iter().map(u128::from).sum();
            if found != u128::from(field.nulls) {
                return refuse(format!(
                    "of field `{}` it counts {} nulls, and its parts have {found}",
                    crate::key::shorten(&field.name),
                    field.nulls
                ));
            }
        }
        Ok(())
    }

    /// The last bytes of an object of this size.
    async fn end_of(&self, object: &ObjectPath, size: u64, bytes: u64) -> Result<Bytes, ArtifactError> {
        let read = self.store.get_range(object, size.saturating_sub(bytes)..size).await;
        read.map_err(|source| ArtifactError::store(object, source))
    }

    async fn counts(&self, id: &str, part: &Part) -> Result<Counts, ArtifactError> {
        let object = Self::part_object(id, part)?;
        let bad = |why: &str| ArtifactError::BadManifest {
            artifact: id.to_owned(),
            why: format!("its part `{}` is no Parquet file: {why}", part.name),
        };
        let mut tail = self.end_of(&object, part.bytes, TAIL_BYTES).await?;
        let Some(end) = tail.len().checked_sub(END_BYTES) else { return Err(bad("it is too short")) };
        let (length, magic) = tail[end..].split_at(END_BYTES - MAGIC.len());
        if magic != MAGIC {
            return Err(bad("it does not end as one"));
        }
        let length = u64::from(u32::from_le_bytes(length.try_into().expect("four bytes are split off")));
        let needed = length + END_BYTES as u64;
        if needed > part.bytes || needed > FOOTER_BYTES_MAX {
            return Err(bad("its footer is too long"));
        }
        if (tail.len() as u64) < needed {
            tail = self.end_of(&object, part.bytes, needed).await?;
        }
        let begin = tail.len() - needed as usize;
        let footer = tail.slice(begin..tail.len() - END_BYTES);
        // It is the client's: should it be too much for the reader, that is this part's error.
        let read = tokio::task::spawn_blocking(move || ParquetMetaDataReader::decode_metadata(&footer)).await;
        let footer = read.map_err(|_| bad("its footer can't be read"))?.map_err(|_| bad("its footer can't be read"))?;
        counts_of(&footer).ok_or_else(|| bad("its footer counts less than nothing"))
    }
}

fn counts_of(footer: &ParquetMetaData) -> Option<Counts> {
    let mut counts = Counts { rows: 0, nulls: BTreeMap::new() };
    let mut unknown = Vec::new();
    for group in footer.row_groups() {
        counts.rows = counts.rows.checked_add(u64::try_from(group.num_rows()).ok()?)?;
        for column in group.columns() {
            // Of a list the footer counts what is in it.
            let [name] = column.column_path().parts() else { continue };
            match column.statistics().and_then(|statistics| statistics.null_count_opt()) {
                Some(nulls) => {
                    let sum = counts.nulls.entry(name.clone()).or_default();
                    *sum = sum.checked_add(nulls)?;
                }
                None => unknown.push(name.clone()),
            }
        }
    }
    if footer.row_groups().is_empty() {
        let fields = footer.file_metadata().schema_descr().columns().iter();
        let flat = fields.filter(|column| column.path().parts().len() == 1);
        counts.nulls.extend(flat.map(|column| (column.name().to_owned(), 0)));
    }
    for name in unknown {
        counts.nulls.remove(&name);
    }
    Some(counts)
}
