//! The second pass over the input: every row parsed by the schema and encoded as a record.

use std::fs::File;
use std::path::{Path, PathBuf};

use tidegate_api::manifest::{FieldType, Schema};

use crate::input::csv::CsvReader;
use crate::input::parquet::{Batch, Batches, Column, ParquetFile};
use crate::input::source::{InputDigest, open_seekable};
use crate::input::{Format, InputError, InputFile, Place, display};
use crate::key::{KeyCodec, shorten};
use crate::progress::{Cancel, OnProgress, Phase, Progress};
use crate::value::{Scalar, ValueEncoder, text};

/// After how many rows progress is reported and cancellation looked at.
const ROWS_PER_CHECK: u64 = 1024;

/// An encoded record and the row that it comes from.
pub(crate) struct Record<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    /// Size of the value without the key, see [`Scalar::payload_bytes`].
    pub(crate) payload_bytes: u64,
    /// Position of the file among the input files.
    pub(crate) file: u32,
    pub(crate) row: u64,
    pub(crate) line: Option<u64>,
}

/// What to read, and how.
pub(crate) struct Reading<'a> {
    pub(crate) files: &'a [InputFile],
    pub(crate) schema: &'a Schema,
    pub(crate) keys: &'a KeyCodec,
    /// The longest row that the reader takes.
    pub(crate) row_bytes_max: usize,
    /// Where compressed Parquet files are unpacked.
    pub(crate) folder: &'a Path,
    pub(crate) progress: OnProgress<'a>,
    pub(crate) cancel: &'a Cancel,
}

/// Gives every record to `sink`, in file and row order, and returns the digest of the input.
pub(crate) fn read_records<E: From<InputError>>(
    reading: &Reading<'_>,
    sink: &mut dyn FnMut(&Record<'_>) -> Result<(), E>,
) -> Result<String, E> {
    let mut pass = Pass {
        reading,
        sink,
        total: reading.files.iter().map(|file| file.bytes).sum(),
        done: 0,
        rows: 0,
        key: Vec::new(),
        value: Vec::new(),
    };
    let mut digest = InputDigest::default();
    for (index, file) in reading.files.iter().enumerate() {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        digest.add(match file.format {
            Format::Csv { delimiter } => pass.read_csv(index, file, delimiter)?,
            Format::Parquet => pass.read_parquet(index, file)?,
        });
        pass.done += file.bytes;
    }
    pass.report(0)?;
    Ok(digest.finish())
}

struct Pass<'p, 'a, E> {
    reading: &'p Reading<'a>,
    sink: &'p mut dyn FnMut(&Record<'_>) -> Result<(), E>,
    total: u64,
    done: u64,
    rows: u64,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// For each field the position of its column in a file.
fn map_columns(path: &Path, schema: &Schema, columns: &[String]) -> Result<Vec<usize>, InputError> {
    let mut positions = Vec::with_capacity(schema.fields.len());
    let mut missing = Vec::new();
    for field in &schema.fields {
        match columns.iter().position(|column| *column == field.name) {
            Some(position) => positions.push(position),
            None => missing.push(field.name.clone()),
        }
    }
    let unexpected: Vec<_> = columns.iter().filter(|column| schema.field(column).is_none()).cloned().collect();
    if missing.is_empty() && unexpected.is_empty() {
        return Ok(positions);
    }
    Err(InputError::Columns { path: display(path), expected_by: String::from("the schema"), missing, unexpected })
}

impl<E: From<InputError>> Pass<'_, '_, E> {
    fn report(&self, bytes_of_file: u64) -> Result<(), InputError> {
        if self.reading.cancel.is_cancelled() {
            return Err(InputError::Cancelled);
        }
        (self.reading.progress)(Progress {
            phase: Phase::Reading,
            done: self.done + bytes_of_file,
            total: self.total,
            records: self.rows,
        });
        Ok(())
    }

    fn read_csv(&mut self, index: u32, file: &InputFile, delimiter: u8) -> Result<[u8; 32], E> {
        let Reading { schema, keys, .. } = *self.reading;
        let mut reader = CsvReader::open(file, delimiter, self.reading.row_bytes_max)?;
        if reader.header().is_empty() {
            return Ok(reader.finish()?);
        }
        let columns = map_columns(&file.path, schema, reader.header())?;
        loop {
            if self.rows.is_multiple_of(ROWS_PER_CHECK) {
                self.report(reader.bytes())?;
            }
            let Some(row) = reader.next()? else { break };
            self.rows += 1;
            let place = || Place { file: display(&file.path), row: row.row, line: Some(row.line) };
            let cell_of = |position: usize| -> Result<Option<Scalar<'_>>, InputError> {
                let cell = row.cell(columns[position]);
                if cell.is_empty() {
                    return Ok(None);
                }
                let field = &schema.fields[position];
                let text = std::str::from_utf8(cell)
                    .map_err(|_| InputError::NotUtf8 { place: place(), column: field.name.clone() })?;
                let scalar = match field.data_type {
                    FieldType::Scalar(scalar) => text::parse(scalar, text),
                    FieldType::List(_) => None,
                };
                scalar.map(Some).ok_or_else(|| InputError::Value {
                    place: place(),
                    column: field.name.clone(),
                    value: shorten(text),
                    data_type: field.data_type,
                })
            };
            let null = |position: usize, key: bool| InputError::Null {
                place: place(),
                column: schema.fields[position].name.clone(),
                key,
            };
            self.key.clear();
            for (order, column) in keys.columns().iter().enumerate() {
                let scalar = cell_of(column.position)?.ok_or_else(|| null(column.position, true))?;
                keys.encode_column(order, scalar, &mut self.key);
            }
            let mut encoder = ValueEncoder::new(&mut self.value, keys.value_field_count());
            for (position, field) in schema.fields.iter().enumerate() {
                if keys.is_key_position(position) {
                    continue;
                }
                match cell_of(position)? {
                    Some(scalar) => encoder.scalar(scalar),
                    None if field.nullable => encoder.null(),
                    None => return Err(null(position, false).into()),
                }
            }
            let payload_bytes = encoder.payload_bytes();
            (self.sink)(&Record {
                key: &self.key,
                value: &self.value,
                payload_bytes,
                file: index,
                row: row.row,
                line: Some(row.line),
            })?;
        }
        Ok(reader.finish()?)
    }

    fn read_parquet(&mut self, index: u32, file: &InputFile) -> Result<[u8; 32], E> {
        let Reading { schema, keys, .. } = *self.reading;
        if file.bytes == 0 {
            return Ok(crate::input::source::Source::open(file)?.finish()?);
        }
        let (opened, digest) = open_seekable(file, self.reading.folder)?;
        let mut rows = ParquetRows::open(opened, &file.path, schema, keys)?;
        let rows_in_file = rows.rows_in_file.max(1);
        let mut read = 0u64;
        loop {
            if read.is_multiple_of(ROWS_PER_CHECK) {
                let share = u128::from(file.bytes) * u128::from(read) / u128::from(rows_in_file);
                self.report(share as u64)?;
            }
            let Some(record) = rows.next()? else { break };
            read += 1;
            self.rows += 1;
            (self.sink)(&Record { file: index, ..record })?;
        }
        Ok(digest)
    }
}

/// The rows of one Parquet file as records, one after the other.
pub(crate) struct ParquetRows<'a> {
    path: PathBuf,
    schema: &'a Schema,
    keys: &'a KeyCodec,
    rows_in_file: u64,
    batches: Batches,
    batch: Option<Batch>,
    /// Position in the batch.
    offset: usize,
    row: u64,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<'a> ParquetRows<'a> {
    /// Fails if the file's columns are not the schema's.
    pub(crate) fn open(file: File, path: &Path, schema: &'a Schema, keys: &'a KeyCodec) -> Result<Self, InputError> {
        let parquet = ParquetFile::open(file, path)?;
        let found = parquet.schema();
        let columns: Vec<_> = found.fields.iter().map(|f| f.name.clone()).collect();
        map_columns(path, schema, &columns)?;
        check_types(path, found, schema, "the schema")?;
        Ok(Self {
            path: path.to_path_buf(),
            schema,
            keys,
            rows_in_file: parquet.rows(),
            batches: parquet.batches()?,
            batch: None,
            offset: 0,
            row: 0,
            key: Vec::new(),
            value: Vec::new(),
        })
    }

    /// The next record; its `file` is 0.
    pub(crate) fn next(&mut self) -> Result<Option<Record<'_>>, InputError> {
        while self.batch.as_ref().is_none_or(|batch| self.offset == batch.rows) {
            self.batch = self.batches.next(self.schema)?;
            self.offset = 0;
            if self.batch.is_none() {
                return Ok(None);
            }
        }
        let offset = self.offset;
        self.offset += 1;
        self.row += 1;
        let payload_bytes = self.encode(offset)?;
        Ok(Some(Record { key: &self.key, value: &self.value, payload_bytes, file: 0, row: self.row, line: None }))
    }

    fn null(&self, position: usize, key: bool) -> InputError {
        InputError::Null {
            place: Place { file: display(&self.path), row: self.row, line: None },
            column: self.schema.fields[position].name.clone(),
            key,
        }
    }

    fn encode(&mut self, offset: usize) -> Result<u64, InputError> {
        let Some(batch) = &self.batch else {
            return Ok(0);
        };
        let (schema, keys) = (self.schema, self.keys);
        self.key.clear();
        for (order, column) in keys.columns().iter().enumerate() {
            let scalar = match &batch.columns[column.position] {
                Column::Scalar(values) => values.get(offset),
                Column::List(..) => None,
            };
            let Some(scalar) = scalar else {
                return Err(self.null(column.position, true));
            };
            keys.encode_column(order, scalar, &mut self.key);
        }
        let mut encoder = ValueEncoder::new(&mut self.value, keys.value_field_count());
        for (position, field) in schema.fields.iter().enumerate() {
            if keys.is_key_position(position) {
                continue;
            }
            match &batch.columns[position] {
                column if column.is_null(offset) => {
                    if !field.nullable {
                        return Err(self.null(position, false));
                    }
                    encoder.null();
                }
                Column::Scalar(values) => match values.get(offset) {
                    Some(scalar) => encoder.scalar(scalar),
                    None => encoder.null(),
                },
                Column::List(list, elements) => {
                    let offsets = list.value_offsets();
                    let range = offsets[offset] as usize..offsets[offset + 1] as usize;
                    encoder.list(range.map(|element| elements.get(element)));
                }
            }
        }
        Ok(encoder.payload_bytes())
    }
}

/// Refuses a file whose columns have other types than expected.
pub(crate) fn check_types(path: &Path, found: &Schema, expected: &Schema, expected_by: &str) -> Result<(), InputError> {
    for field in &found.fields {
        if let Some(known) = expected.field(&field.name)
            && known.data_type != field.data_type
        {
            return Err(InputError::ColumnType {
                path: display(path),
                column: field.name.clone(),
                found: field.data_type,
                expected: known.data_type,
                expected_by: expected_by.to_owned(),
            });
        }
    }
    Ok(())
}
