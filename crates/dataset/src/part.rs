//! The parts of an artifact: one Parquet file per partition.
//!
//! Columns are written one after the other from a row group's encoded rows, so that at any time
//! only one column's encoder is in memory. Everything that shapes the bytes (row group and page
//! sizes, encoding, compression level, the name of the writer) is fixed here and depends on the
//! data alone; changing any of it changes artifact ids, and so is a new manifest format.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::ArrowSchemaConverter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use sha2::{Digest, Sha256};
use tidegate_api::manifest::{FieldType, Part, Schema};

use crate::index::VALUE_BYTES_MAX;
use crate::key::{KeyCodec, KeyScalar};
use crate::schema::arrow_schema;
use crate::statistics::FieldAccumulator;
use crate::value::{Cell, Malformed, Scalar, decode_field, is_null};

/// A row group ends before the row that would make it larger than this, in encoded bytes.
const ROW_GROUP_BYTES: usize = 2 * 1024 * 1024;
/// What a row counts beside its bytes and per field, so that narrow rows are bounded too.
const ROW_WEIGHT: usize = 32;
const PAGE_BYTES: usize = 64 * 1024;
/// How many values are handed to a column's encoder at a time.
const BATCH_ROWS: usize = 512;

/// What a part's writer needs in memory at most, beside its statistics: the row group's bytes and
/// the places of its rows, one column's open page before and after compression, a batch of its
/// values, and what Parquet keeps about the row groups written so far.
pub(crate) const WRITER_BYTES: usize =
    ROW_GROUP_BYTES + ROW_GROUP_BYTES / ROW_WEIGHT * size_of::<RowPlace>() + 12 * PAGE_BYTES;

/// A part could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartError {
    #[error("{path}: {source}")]
    Disk { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Parquet { path: PathBuf, source: ParquetError },
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Digests and counts what is written.
struct DigestWriter {
    out: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
    /// The error of the disk, which Parquet's error types do not keep.
    error: Arc<std::sync::Mutex<Option<std::io::Error>>>,
}

impl DigestWriter {
    fn keep(&self, error: &std::io::Error) {
        if let Ok(mut kept) = self.error.lock() {
            let copy = match error.raw_os_error() {
                Some(code) => std::io::Error::from_raw_os_error(code),
                None => std::io::Error::new(error.kind(), error.to_string()),
            };
            *kept = Some(copy);
        }
    }
}

impl Write for DigestWriter {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(buffer).inspect_err(|error| self.keep(error))?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let result = self.out.flush();
        result.inspect_err(|error| self.keep(error))
    }
}

/// Where the next column of a row begins.
struct RowPlace {
    key: u32,
    value: u32,
    next: u32,
}

/// Writes one part, row by row in key order.
pub(crate) struct PartWriter<'a> {
    schema: &'a Schema,
    keys: &'a KeyCodec,
    path: PathBuf,
    name: String,
    file: SerializedFileWriter<DigestWriter>,
    error: Arc<std::sync::Mutex<Option<std::io::Error>>>,
    rows: Vec<u8>,
    places: Vec<RowPlace>,
    weight: usize,
    row_count: u64,
    statistics: Vec<FieldAccumulator>,
}

/// Refuses a file whose row groups are larger than a part's: they are decoded whole, and what they decode to is not
/// bounded by the size of the file.
pub(crate) fn check_row_groups(path: &Path) -> Result<(), ParquetError> {
    let file = SerializedFileReader::new(File::open(path)?)?;
    for (number, group) in file.metadata().row_groups().iter().enumerate() {
        // Levels and headers come on top of what the rows themselves take.
        let rows = if group.num_rows() > 1 { 0 } else { VALUE_BYTES_MAX };
        let limit = 4 * ROW_GROUP_BYTES + rows + group.num_columns() * PAGE_BYTES;
        let columns = group.columns().iter().map(|column| usize::try_from(column.uncompressed_size()));
        let bytes = columns.fold(0_usize, |sum, bytes| sum.saturating_add(bytes.unwrap_or(usize::MAX)));
        if bytes > limit {
            return Err(ParquetError::General(format!(
                "row group {number} decodes to {bytes} bytes; those of a part have {limit} at most"
            )));
        }
    }
    Ok(())
}

fn writer_properties(keys: &KeyCodec) -> Result<WriterProperties, ParquetError> {
    let sorting = keys
        .columns()
        .iter()
        .map(|column| SortingColumn { column_idx: column.position as i32, descending: false, nulls_first: false })
        .collect();
    Ok(WriterProperties::builder()
        .set_created_by(String::from("tidegate"))
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_dictionary_enabled(false)
        .set_encoding(Encoding::PLAIN)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_write_batch_size(BATCH_ROWS)
        .set_max_row_group_row_count(None)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_sorting_columns(Some(sorting))
        .build())
}

impl<'a> PartWriter<'a> {
    pub(crate) fn create(
        folder: &Path,
        name: String,
        schema: &'a Schema,
        keys: &'a KeyCodec,
    ) -> Result<Self, PartError> {
        let path = folder.join(&name);
        let out = File::create(&path).map_err(|source| PartError::Disk { path: path.clone(), source })?;
        let error = Arc::new(std::sync::Mutex::new(None));
        let out = DigestWriter {
            out: BufWriter::with_capacity(PAGE_BYTES, out),
            hasher: Sha256::new(),
            bytes: 0,
            error: Arc::clone(&error),
        };
        let open = || {
            let converted = ArrowSchemaConverter::new().convert(&arrow_schema(schema, keys))?;
            let properties = Arc::new(writer_properties(keys)?);
            SerializedFileWriter::new(out, converted.root_schema_ptr(), properties)
        };
        let file = open().map_err(|source| PartError::Parquet { path: path.clone(), source })?;
        Ok(Self {
            schema,
            keys,
            path,
            name,
            file,
            error,
            rows: Vec::new(),
            places: Vec::new(),
            weight: 0,
            row_count: 0,
            statistics: schema.fields.iter().map(|field| FieldAccumulator::new(field.data_type)).collect(),
        })
    }

    /// Adds a row; keys must ascend.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), PartError> {
        let weight = ROW_WEIGHT + 2 * self.schema.fields.len() + key.len() + value.len();
        if self.weight + weight > ROW_GROUP_BYTES && !self.places.is_empty() {
            self.write_row_group()?;
        }
        if self.places.capacity() == 0 {
            // All at once: growing would hold the old and the new ones for a moment.
            self.places.reserve_exact(ROW_GROUP_BYTES / ROW_WEIGHT);
        }
        if self.rows.capacity() == 0 {
            self.rows.reserve_exact(ROW_GROUP_BYTES.max(key.len() + value.len()));
        }
        let start = self.rows.len() as u32;
        let value_start = start + key.len() as u32;
        self.rows.extend_from_slice(key);
        self.rows.extend_from_slice(value);
        self.places.push(RowPlace {
            key: start,
            value: value_start,
            next: value_start + self.keys.value_field_count().div_ceil(8) as u32,
        });
        self.weight += weight;
        self.row_count += 1;
        Ok(())
    }

    fn write_row_group(&mut self) -> Result<(), PartError> {
        let rows = Bytes::from(std::mem::take(&mut self.rows));
        let mut group = RowGroup {
            rows: &rows,
            places: &mut self.places,
            schema: self.schema,
            keys: self.keys,
            statistics: &mut self.statistics,
        };
        let written = self.file.next_row_group().map_err(GroupError::from).and_then(|mut writer| {
            group.write(&mut writer)?;
            writer.close()?;
            Ok(())
        });
        self.places.clear();
        self.weight = 0;
        written.map_err(|error| match error {
            GroupError::Malformed(malformed) => malformed.into(),
            GroupError::Parquet(source) => self.describe(source),
        })?;
        // The same allocation again, if Parquet keeps no reference into it.
        if let Ok(rows) = rows.try_into_mut() {
            self.rows = rows.into();
            self.rows.clear();
        }
        Ok(())
    }

    fn describe(&self, source: ParquetError) -> PartError {
        let disk = self.error.lock().ok().and_then(|mut kept| kept.take());
        match disk {
            Some(source) => PartError::Disk { path: self.path.clone(), source },
            None => PartError::Parquet { path: self.path.clone(), source },
        }
    }

    /// Writes what is left and closes the file.
    pub(crate) fn finish(mut self) -> Result<(Part, Vec<FieldAccumulator>), PartError> {
        if !self.places.is_empty() {
            self.write_row_group()?;
        }
        let closed = self.file.finish().map(drop).and_then(|()| {
            self.file.inner_mut().flush()?;
            Ok(())
        });
        closed.map_err(|source| self.describe(source))?;
        let written = self.file.inner();
        let part = Part {
            name: self.name,
            bytes: written.bytes,
            rows: self.row_count,
            sha256: hex::encode(written.hasher.clone().finalize()),
        };
        Ok((part, self.statistics))
    }
}

enum GroupError {
    Parquet(ParquetError),
    Malformed(Malformed),
}

impl From<ParquetError> for GroupError {
    fn from(error: ParquetError) -> Self {
        Self::Parquet(error)
    }
}

impl From<Malformed> for GroupError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

struct RowGroup<'a> {
    rows: &'a Bytes,
    places: &'a mut [RowPlace],
    schema: &'a Schema,
    keys: &'a KeyCodec,
    statistics: &'a mut [FieldAccumulator],
}

/// A batch of one column's values, as Parquet takes them.
#[derive(Default)]
struct Levels {
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

/// Hands a batch to a column's encoder: values, levels if the column has any, whether it is a list.
type WriteBatch<'w, T> = dyn FnMut(&[T], Option<&Levels>, bool) -> Result<(), ParquetError> + 'w;

impl RowGroup<'_> {
    fn write<W: Write + Send>(&mut self, writer: &mut SerializedRowGroupWriter<'_, W>) -> Result<(), GroupError> {
        let mut value_field = 0;
        for position in 0..self.schema.fields.len() {
            let mut column = writer
                .next_column()?
                .ok_or_else(|| ParquetError::General(String::from("fewer columns than fields")))?;
            let key_order = self.keys.columns().iter().position(|column| column.position == position);
            let field = match key_order {
                Some(order) => FieldPlace::Key(order),
                None => {
                    value_field += 1;
                    FieldPlace::Value(value_field - 1)
                }
            };
            macro_rules! typed {
                ($writer:expr, $convert:expr) => {{
                    let writer = $writer;
                    self.write_column(position, field, $convert, &mut |values, levels, list| {
                        writer.write_batch(
                            values,
                            levels.map(|levels| levels.definition.as_slice()),
                            levels.filter(|_| list).map(|levels| levels.repetition.as_slice()),
                        )?;
                        Ok(())
                    })?
                }};
            }
            match column.untyped() {
                ColumnWriter::BoolColumnWriter(writer) => typed!(writer, &|_, scalar| match scalar {
                    Scalar::Boolean(value) => value,
                    _ => false,
                }),
                ColumnWriter::Int32ColumnWriter(writer) => typed!(writer, &|_, scalar| match scalar {
                    Scalar::Int(value) | Scalar::Date(value) => value,
                    _ => 0,
                }),
                ColumnWriter::Int64ColumnWriter(writer) => typed!(writer, &|_, scalar| match scalar {
                    Scalar::Long(value) | Scalar::Timestamp(value) => value,
                    _ => 0,
                }),
                ColumnWriter::FloatColumnWriter(writer) => typed!(writer, &|_, scalar| match scalar {
                    Scalar::Float(value) => value,
                    _ => 0.0,
                }),
                ColumnWriter::DoubleColumnWriter(writer) => {
                    typed!(writer, &|_, scalar| match scalar {
                        Scalar::Double(value) => value,
                        _ => 0.0,
                    });
                }
                ColumnWriter::ByteArrayColumnWriter(writer) => {
                    typed!(writer, &|rows: &Bytes, scalar| {
                        let bytes = match scalar {
                            Scalar::String(text) => text.as_bytes(),
                            Scalar::Binary(bytes) => bytes,
                            _ => &[],
                        };
                        byte_array(rows, bytes)
                    });
                }
                _ => {
                    let text = String::from("a column of a type that no field has");
                    return Err(ParquetError::General(text).into());
                }
            }
            column.close()?;
        }
        Ok(())
    }

    fn write_column<T>(
        &mut self,
        position: usize,
        place: FieldPlace,
        convert: &dyn Fn(&Bytes, Scalar<'_>) -> T,
        write: &mut WriteBatch<'_, T>,
    ) -> Result<(), GroupError> {
        let field = &self.schema.fields[position];
        let is_key = matches!(place, FieldPlace::Key(_));
        let optional = field.nullable && !is_key;
        let is_list = matches!(field.data_type, FieldType::List(_));
        let mut values: Vec<T> = Vec::new();
        let mut levels = Levels::default();
        // A batch is bounded in bytes and elements too, for Parquet looks at a page's size only
        // between batches.
        let (mut batch_rows, mut batch_bytes) = (0, 0);
        for row in 0..self.places.len() {
            let mut decoded = None;
            let cell = cell_of(self.rows, &mut self.places[row], place, field.data_type, self.keys, &mut decoded)?;
            self.statistics[position].add(&cell);
            let present = i16::from(optional);
            match cell {
                Cell::Null => {
                    levels.definition.push(0);
                    levels.repetition.push(0);
                }
                Cell::Scalar(scalar) => {
                    levels.definition.push(present);
                    levels.repetition.push(0);
                    batch_bytes += scalar.payload_bytes() as usize;
                    values.push(convert(self.rows, scalar));
                }
                Cell::List(list) if list.length == 0 => {
                    levels.definition.push(present);
                    levels.repetition.push(0);
                }
                Cell::List(list) => {
                    for (index, element) in list.elements().enumerate() {
                        levels.repetition.push(i16::from(index > 0));
                        levels.definition.push(present + 1 + i16::from(element.is_some()));
                        if let Some(scalar) = element {
                            batch_bytes += scalar.payload_bytes() as usize;
                            values.push(convert(self.rows, scalar));
                        }
                    }
                }
            }
            batch_rows += 1;
            if batch_rows == BATCH_ROWS || levels.definition.len() >= 8 * BATCH_ROWS || batch_bytes >= PAGE_BYTES / 2 {
                let used = (optional || is_list).then_some(&levels);
                write(&values, used, is_list)?;
                values.clear();
                levels.definition.clear();
                levels.repetition.clear();
                (batch_rows, batch_bytes) = (0, 0);
            }
        }
        if batch_rows > 0 {
            let used = (optional || is_list).then_some(&levels);
            write(&values, used, is_list)?;
        }
        Ok(())
    }
}

/// The present cell of a row; `place` moves on if it is one of the value's.
fn cell_of<'r>(
    rows: &'r [u8],
    place: &mut RowPlace,
    field: FieldPlace,
    data_type: FieldType,
    keys: &KeyCodec,
    decoded: &'r mut Option<KeyScalar<'r>>,
) -> Result<Cell<'r>, Malformed> {
    match field {
        FieldPlace::Key(order) => {
            let key = &rows[place.key as usize..place.value as usize];
            let scalar = decoded.insert(keys.decode_one(key, order)?);
            Ok(Cell::Scalar(scalar.as_scalar()))
        }
        FieldPlace::Value(index) => {
            if is_null(&rows[place.value as usize..], index)? {
                return Ok(Cell::Null);
            }
            let mut position = place.next as usize;
            let cell = decode_field(rows, &mut position, data_type)?;
            place.next = position as u32;
            Ok(cell)
        }
    }
}

#[derive(Clone, Copy)]
enum FieldPlace {
    /// The key column at this position in key order.
    Key(usize),
    /// The field at this position among those of the value.
    Value(usize),
}

/// Bytes that lie within the row group, without a copy; others (keys that had to be unescaped)
/// with one.
fn byte_array(rows: &Bytes, bytes: &[u8]) -> ByteArray {
    let all = rows.as_ptr_range();
    let part = bytes.as_ptr_range();
    if !bytes.is_empty() && all.start <= part.start && part.end <= all.end {
        ByteArray::from(rows.slice_ref(bytes))
    } else {
        ByteArray::from(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn file_of(rows: &[String]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let column: ArrayRef = Arc::new(StringArray::from(rows.to_vec()));
        let batch = RecordBatch::try_from_iter([("v", column)]).unwrap();
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap()))
            .set_dictionary_enabled(false)
            .build();
        let mut writer = ArrowWriter::try_new(file.reopen().unwrap(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        file
    }

    #[test]
    fn what_decodes_to_far_more_than_a_part_may_is_refused_before_it_is_decoded() {
        let check = |rows: &[String]| check_row_groups(file_of(rows).path()).map_err(|error| error.to_string());
        check(&["x".repeat(1000), "y".repeat(1000)]).unwrap();
        // One large value has a row group of its own.
        check(&["x".repeat(20 * 1024 * 1024)]).unwrap();
        let many = check(&["x".repeat(10 * 1024 * 1024), "y".repeat(10 * 1024 * 1024)]).unwrap_err();
        assert!(many.contains("row group 0"), "{many}");
        let huge = file_of(&["x".repeat(80 * 1024 * 1024)]);
        assert!(huge.as_file().metadata().unwrap().len() < 100_000);
        assert!(check_row_groups(huge.path()).is_err());
    }
}
