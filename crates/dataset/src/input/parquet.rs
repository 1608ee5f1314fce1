//! Parquet: the schema of a file, and its rows as scalars.

use std::fs::File;
use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, ListArray,
    RecordBatch, StringArray,
};
use arrow_cast::cast;
use arrow_schema::{DataType, Field as ArrowField, TimeUnit as ArrowUnit};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use tidegate_api::manifest::{Field, FieldType, ScalarType, Schema};

use super::csv::FIELDS_MAX;
use super::{InputError, display};
use crate::schema;
use crate::value::Scalar;

/// About how many bytes of data one batch of rows has.
const BATCH_BYTES: u64 = 256 * 1024;

fn parquet_error(path: &std::path::Path) -> impl Fn(parquet::errors::ParquetError) -> InputError {
    let path = display(path);
    move |source| InputError::Parquet { path: path.clone(), source }
}

fn arrow_error(path: &std::path::Path) -> impl Fn(arrow_schema::ArrowError) -> InputError {
    let convert = parquet_error(path);
    move |source| convert(source.into())
}

/// An open Parquet file.
pub(crate) struct ParquetFile {
    builder: ParquetRecordBatchReaderBuilder<File>,
    path: std::path::PathBuf,
    schema: Schema,
}

impl ParquetFile {
    /// Reads the file's footer. Fields are nullable; the names of columns of other types than a
    /// field can have are refused.
    pub(crate) fn open(file: File, path: &std::path::Path) -> Result<Self, InputError> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet_error(path))?;
        let columns = builder.schema().fields();
        if columns.len() > FIELDS_MAX {
            return Err(InputError::TooManyFields { path: display(path), fields: columns.len(), limit: FIELDS_MAX });
        }
        let mut fields = Vec::with_capacity(columns.len());
        for column in columns {
            let data_type = schema::from_arrow(column.data_type()).ok_or_else(|| InputError::UnsupportedType {
                path: display(path),
                column: column.name().clone(),
                data_type: column.data_type().to_string(),
            })?;
            fields.push(Field::nullable(column.name(), data_type));
        }
        Ok(Self { builder, path: path.to_path_buf(), schema: Schema { fields } })
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    pub(crate) fn rows(&self) -> u64 {
        u64::try_from(self.builder.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// Reads the rows, a batch of bounded size at a time.
    pub(crate) fn batches(self) -> Result<Batches, InputError> {
        let rows = self.rows();
        let bytes: i64 = self.builder.metadata().row_groups().iter().map(|group| group.total_byte_size()).sum();
        // What is stated for the file may be off for its encoding; the bound is a rough one.
        let row_bytes = (u64::try_from(bytes).unwrap_or(0) / rows.max(1)).max(32);
        let batch_rows = (BATCH_BYTES / row_bytes).clamp(16, 2048) as usize;
        let reader = self.builder.with_batch_size(batch_rows).build().map_err(parquet_error(&self.path))?;
        Ok(Batches { reader, path: self.path })
    }
}

pub(crate) struct Batches {
    reader: ParquetRecordBatchReader,
    path: std::path::PathBuf,
}

impl Batches {
    /// The next batch: the columns of these fields, which the file has with these types.
    pub(crate) fn next(&mut self, schema: &Schema) -> Result<Option<Batch>, InputError> {
        let Some(batch) = self.reader.next() else {
            return Ok(None);
        };
        let batch = batch.map_err(arrow_error(&self.path))?;
        Ok(Some(Batch::new(&batch, schema).map_err(arrow_error(&self.path))?))
    }
}

/// Rows in columns.
pub(crate) struct Batch {
    pub(crate) rows: usize,
    pub(crate) columns: Vec<Column>,
}

impl Batch {
    fn new(batch: &RecordBatch, schema: &Schema) -> Result<Self, arrow_schema::ArrowError> {
        let mut columns = Vec::with_capacity(schema.fields.len());
        for field in &schema.fields {
            let index = batch.schema().index_of(&field.name)?;
            columns.push(Column::new(batch.column(index), field.data_type)?);
        }
        Ok(Self { rows: batch.num_rows(), columns })
    }
}

/// One column of a batch, in the one memory layout that its field type has here.
pub(crate) enum Column {
    Scalar(ScalarColumn),
    List(ListArray, ScalarColumn),
}

impl Column {
    fn new(array: &ArrayRef, data_type: FieldType) -> Result<Self, arrow_schema::ArrowError> {
        match data_type {
            FieldType::Scalar(scalar) => Ok(Column::Scalar(ScalarColumn::new(array, scalar)?)),
            FieldType::List(element) => {
                let inner = match array.data_type() {
                    DataType::List(inner) | DataType::LargeList(inner) | DataType::FixedSizeList(inner, _) => {
                        inner.data_type().clone()
                    }
                    other => other.clone(),
                };
                let target = DataType::List(Arc::new(ArrowField::new("element", inner, true)));
                let list = as_type::<ListArray>(cast(array, &target)?)?;
                let elements = ScalarColumn::new(list.values(), element)?;
                Ok(Column::List(list, elements))
            }
        }
    }

    pub(crate) fn is_null(&self, row: usize) -> bool {
        match self {
            Column::Scalar(column) => column.get(row).is_none(),
            Column::List(list, _) => list.is_null(row),
        }
    }
}

/// A column of scalars.
pub(crate) enum ScalarColumn {
    Boolean(BooleanArray),
    Int(Int32Array),
    Date(Int32Array),
    Long(Int64Array),
    Timestamp(Int64Array),
    Float(Float32Array),
    Double(Float64Array),
    String(StringArray),
    Binary(BinaryArray),
}

fn as_type<T: Array + Clone + 'static>(array: ArrayRef) -> Result<T, arrow_schema::ArrowError> {
    array
        .as_any()
        .downcast_ref::<T>()
        .cloned()
        .ok_or_else(|| arrow_schema::ArrowError::CastError(format!("unexpected layout {}", array.data_type())))
}

impl ScalarColumn {
    fn new(array: &ArrayRef, data_type: ScalarType) -> Result<Self, arrow_schema::ArrowError> {
        Ok(match data_type {
            ScalarType::Boolean => Self::Boolean(as_type(cast(array, &DataType::Boolean)?)?),
            ScalarType::Int => Self::Int(as_type(cast(array, &DataType::Int32)?)?),
            ScalarType::Date => Self::Date(as_type(cast(array, &DataType::Int32)?)?),
            ScalarType::Long => Self::Long(as_type(cast(array, &DataType::Int64)?)?),
            ScalarType::Timestamp { .. } => {
                let unit = match array.data_type() {
                    DataType::Timestamp(ArrowUnit::Second, zone) => {
                        cast(array, &DataType::Timestamp(ArrowUnit::Millisecond, zone.clone()))?
                    }
                    _ => Arc::clone(array),
                };
                Self::Timestamp(as_type(cast(&unit, &DataType::Int64)?)?)
            }
            ScalarType::Float => Self::Float(as_type(cast(array, &DataType::Float32)?)?),
            ScalarType::Double => Self::Double(as_type(cast(array, &DataType::Float64)?)?),
            ScalarType::String => Self::String(as_type(cast(array, &DataType::Utf8)?)?),
            ScalarType::Binary => Self::Binary(as_type(cast(array, &DataType::Binary)?)?),
        })
    }

    #[inline]
    pub(crate) fn get(&self, row: usize) -> Option<Scalar<'_>> {
        macro_rules! value {
            ($array:expr, $variant:path) => {
                $array.is_valid(row).then(|| $variant($array.value(row)))
            };
        }
        match self {
            Self::Boolean(array) => value!(array, Scalar::Boolean),
            Self::Int(array) => value!(array, Scalar::Int),
            Self::Date(array) => value!(array, Scalar::Date),
            Self::Long(array) => value!(array, Scalar::Long),
            Self::Timestamp(array) => value!(array, Scalar::Timestamp),
            Self::Float(array) => value!(array, Scalar::Float),
            Self::Double(array) => value!(array, Scalar::Double),
            Self::String(array) => value!(array, Scalar::String),
            Self::Binary(array) => value!(array, Scalar::Binary),
        }
    }
}
