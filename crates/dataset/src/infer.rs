//! The first pass over the input: which fields it has, and its digest.
//!
//! Parquet says what its columns are. For CSV every cell is looked at; a column is `long` if all
//! its cells are whole numbers that fit, `double` if all are numbers, `boolean` if all are `true`
//! or `false`, and `string` otherwise. Numbers that text would not survive as (`007`, `+5`, an
//! identifier of twenty digits) make a column `string`. A key column is never `double`, for such
//! keys would not be found again; it is `string` then.
//!
//! Every column but the key is nullable. Columns that a registered schema knows keep their types:
//! whether their cells fit is found by the second pass, which names the row.

use std::path::PathBuf;

use tidegate_api::manifest::{Field, FieldType, Schema};

use crate::input::csv::CsvReader;
use crate::input::parquet::ParquetFile;
use crate::input::source::{InputDigest, Source, open_seekable};
use crate::input::{Format, InputError, InputFile, Place, discover, display};
use crate::key::KeyCodec;
use crate::progress::{Cancel, OnProgress, Phase, Progress, quiet};
use crate::records::check_types;
use crate::value::text::parse_boolean;

/// The longest CSV row that the first pass takes, in bytes.
const ROW_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What the first pass found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferredSchema {
    /// The fields. Those of a registered schema come first, in its order.
    pub schema: Schema,
    /// Rows of input, duplicates included.
    pub rows: u64,
    /// Size of the input files in bytes, as they are on disk.
    pub bytes: u64,
    /// Digest of the bytes of the input files, whatever their names and order.
    pub input_digest: String,
}

/// Looks at the whole input once and says what it is, see the [module's description](self).
///
/// # Errors
/// See [`InputError`]. An input without rows is no error here, unless there is not even a header
/// to tell the columns from.
pub fn infer_schema(paths: &[PathBuf], key_columns: &[String]) -> Result<InferredSchema, InputError> {
    infer_schema_against(paths, key_columns, None, &quiet, &Cancel::new())
}

/// [`infer_schema`] for an input that is to follow a registered schema: columns that it knows
/// have its types and nullability.
///
/// The answer may differ from the registered schema (columns may be new or gone, and Parquet
/// columns have the types that they have); [`crate::schema::differences`] says how.
///
/// # Errors
/// As [`infer_schema`]; an input without even a header has the registered schema.
pub fn infer_schema_against(
    paths: &[PathBuf],
    key_columns: &[String],
    registered: Option<&Schema>,
    progress: OnProgress<'_>,
    cancel: &Cancel,
) -> Result<InferredSchema, InputError> {
    let files = discover(paths)?;
    infer_files(&files, key_columns, registered, progress, cancel)
}

pub(crate) fn infer_files(
    files: &[InputFile],
    key_columns: &[String],
    registered: Option<&Schema>,
    progress: OnProgress<'_>,
    cancel: &Cancel,
) -> Result<InferredSchema, InputError> {
    let total = files.iter().map(|file| file.bytes).sum();
    let mut inference = Inference { registered, progress, cancel, total, done: 0, rows: 0, columns: None };
    let mut digest = InputDigest::default();
    for file in files {
        digest.add(match file.format {
            Format::Csv { delimiter } => inference.look_at_csv(file, delimiter)?,
            Format::Parquet => inference.look_at_parquet(file)?,
        });
        inference.done += file.bytes;
    }
    inference.report(0)?;
    let rows = inference.rows;
    let schema = inference.schema(files, key_columns)?;
    Ok(InferredSchema { schema, rows, bytes: total, input_digest: digest.finish() })
}

/// The columns of the first file that has any, and what all files so far say about them.
struct Columns {
    first_file: String,
    names: Vec<String>,
    guesses: Vec<Guess>,
}

struct Inference<'a> {
    registered: Option<&'a Schema>,
    progress: OnProgress<'a>,
    cancel: &'a Cancel,
    total: u64,
    done: u64,
    rows: u64,
    columns: Option<Columns>,
}

impl Inference<'_> {
    fn report(&self, bytes_of_file: u64) -> Result<(), InputError> {
        if self.cancel.is_cancelled() {
            return Err(InputError::Cancelled);
        }
        (self.progress)(Progress {
            phase: Phase::Inferring,
            done: self.done + bytes_of_file,
            total: self.total,
            records: self.rows,
        });
        Ok(())
    }

    fn guess_for(&self, name: &str) -> Guess {
        match self.registered.and_then(|schema| schema.field(name)) {
            Some(field) => Guess::Known(field.data_type),
            None => Guess::Open(CellKinds::default()),
        }
    }

    /// For each column of this file the position of its guess.
    fn columns_of(&mut self, file: &InputFile, names: &[String]) -> Result<Vec<usize>, InputError> {
        let guesses: Vec<_> = names.iter().map(|name| self.guess_for(name)).collect();
        let columns = self.columns.get_or_insert_with(|| Columns {
            first_file: display(&file.path),
            names: names.to_vec(),
            guesses,
        });
        let positions: Vec<_> =
            names.iter().filter_map(|name| columns.names.iter().position(|known| known == name)).collect();
        if positions.len() == names.len() && names.len() == columns.names.len() {
            return Ok(positions);
        }
        let lacks = |of: &[String], from: &[String]| -> Vec<String> {
            of.iter().filter(|name| !from.contains(name)).cloned().collect()
        };
        Err(InputError::Columns {
            path: display(&file.path),
            expected_by: columns.first_file.clone(),
            missing: lacks(&columns.names, names),
            unexpected: lacks(names, &columns.names),
        })
    }

    fn look_at_csv(&mut self, file: &InputFile, delimiter: u8) -> Result<[u8; 32], InputError> {
        let mut reader = CsvReader::open(file, delimiter, ROW_BYTES_MAX)?;
        if reader.header().is_empty() {
            return reader.finish();
        }
        let names = reader.header().to_vec();
        let positions = self.columns_of(file, &names)?;
        loop {
            if self.rows.is_multiple_of(1024) {
                self.report(reader.bytes())?;
            }
            let Some(row) = reader.next()? else { break };
            self.rows += 1;
            let Some(columns) = &mut self.columns else { break };
            for (cell, position) in positions.iter().enumerate() {
                if let Guess::Open(kinds) = &mut columns.guesses[*position]
                    && !kinds.add(row.cell(cell))
                {
                    return Err(InputError::NotUtf8 {
                        place: Place { file: display(&file.path), row: row.row, line: Some(row.line) },
                        column: names[cell].clone(),
                    });
                }
            }
        }
        reader.finish()
    }

    fn look_at_parquet(&mut self, file: &InputFile) -> Result<[u8; 32], InputError> {
        if file.bytes == 0 {
            return Source::open(file)?.finish();
        }
        let (opened, digest) = open_seekable(file, &std::env::temp_dir())?;
        let parquet = ParquetFile::open(opened, &file.path)?;
        let schema = parquet.schema();
        let names: Vec<_> = schema.fields.iter().map(|f| f.name.clone()).collect();
        let first = self.columns.is_none();
        let positions = self.columns_of(file, &names)?;
        self.rows += parquet.rows();
        self.report(file.bytes)?;
        let Some(columns) = &mut self.columns else {
            return Ok(digest);
        };
        if first {
            columns.guesses = schema.fields.iter().map(|f| Guess::Known(f.data_type)).collect();
        }
        let expected = Schema {
            fields: positions
                .iter()
                .zip(&schema.fields)
                .map(|(position, field)| match &columns.guesses[*position] {
                    Guess::Known(data_type) => Field::nullable(&field.name, *data_type),
                    Guess::Open(_) => field.clone(),
                })
                .collect(),
        };
        check_types(&file.path, schema, &expected, &columns.first_file)?;
        Ok(digest)
    }

    fn schema(self, files: &[InputFile], key_columns: &[String]) -> Result<Schema, InputError> {
        let Some(columns) = self.columns else {
            return self.registered.cloned().ok_or(InputError::Empty { files: files.len() });
        };
        let mut fields = Vec::with_capacity(columns.names.len());
        for (name, guess) in columns.names.iter().zip(&columns.guesses) {
            let is_key = key_columns.contains(name);
            let data_type = match guess {
                Guess::Known(data_type) => *data_type,
                Guess::Open(kinds) => kinds.field_type(is_key),
            };
            let nullable = match self.registered.and_then(|schema| schema.field(name)) {
                Some(field) => field.nullable,
                None => !is_key,
            };
            fields.push(Field { name: name.clone(), data_type, nullable });
        }
        // A registered schema's order is kept, so that equal fields make equal schemas.
        let rank =
            |field: &Field| self.registered.and_then(|schema| schema.position(&field.name)).unwrap_or(usize::MAX);
        fields.sort_by_key(rank);
        let schema = Schema { fields };
        KeyCodec::new(&schema, key_columns).map_err(|source| InputError::Key { path: columns.first_file, source })?;
        Ok(schema)
    }
}

#[derive(Debug)]
enum Guess {
    /// The file or the registered schema says it.
    Known(FieldType),
    /// By the cells seen so far.
    Open(CellKinds),
}

/// Which types all cells of a column could have.
#[derive(Debug)]
struct CellKinds {
    any: bool,
    long: bool,
    double: bool,
    boolean: bool,
    /// All whole numbers survive as `double`, should the column turn out to be that.
    exact: bool,
    /// There was a number, not only `NaN` and the like.
    number: bool,
}

impl Default for CellKinds {
    fn default() -> Self {
        Self { any: false, long: true, double: true, boolean: true, exact: true, number: false }
    }
}

/// Whole numbers up to this are exact as `double`.
const EXACT_MAX: u64 = 1 << 53;

impl CellKinds {
    /// Takes a cell into account; `false` if it is not UTF-8.
    fn add(&mut self, cell: &[u8]) -> bool {
        if cell.is_empty() {
            return true;
        }
        self.any = true;
        if !(self.long || self.double || self.boolean) {
            return cell.is_ascii() || std::str::from_utf8(cell).is_ok();
        }
        let Ok(text) = std::str::from_utf8(cell) else {
            return false;
        };
        self.boolean = self.boolean && parse_boolean(text).is_some();
        if self.long || self.double {
            match number_kind(text) {
                NumberKind::Whole(value) => {
                    self.number = true;
                    self.exact &= value.unsigned_abs() <= EXACT_MAX;
                }
                NumberKind::Fraction => {
                    self.number = true;
                    self.long = false;
                }
                NumberKind::NotFinite => self.long = false,
                NumberKind::None => {
                    self.long = false;
                    self.double = false;
                }
            }
        }
        true
    }

    fn field_type(&self, is_key: bool) -> FieldType {
        if !self.any {
            FieldType::STRING
        } else if self.long {
            FieldType::LONG
        } else if self.double && self.number && self.exact && !is_key {
            FieldType::DOUBLE
        } else if self.boolean {
            FieldType::BOOLEAN
        } else {
            FieldType::STRING
        }
    }
}

enum NumberKind {
    Whole(i64),
    Fraction,
    NotFinite,
    None,
}

/// What kind of number a text is, if as such it could be written out again without loss.
fn number_kind(text: &str) -> NumberKind {
    if matches!(text, "NaN" | "inf" | "-inf" | "Infinity" | "-Infinity") {
        return NumberKind::NotFinite;
    }
    let digits = text.strip_prefix('-').unwrap_or(text).as_bytes();
    let leading_zero = digits.len() > 1 && digits[0] == b'0' && digits[1].is_ascii_digit();
    if !digits.first().is_some_and(u8::is_ascii_digit) || leading_zero {
        return NumberKind::None;
    }
    if digits.iter().all(u8::is_ascii_digit) {
        return match text.parse() {
            Ok(_) if text == "-0" => NumberKind::Fraction,
            Ok(value) => NumberKind::Whole(value),
            Err(_) => NumberKind::None,
        };
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => NumberKind::Fraction,
        _ => NumberKind::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d13_a_column_is_what_all_its_cells_are() {
        let check = |cells: &[&str], is_key: bool, expected: FieldType| {
            let mut kinds = CellKinds::default();
            for cell in cells {
                assert!(kinds.add(cell.as_bytes()));
            }
            assert_eq!(kinds.field_type(is_key), expected, "{cells:?}");
        };
        check(&["1", "-20", "", "9223372036854775807"], false, FieldType::LONG);
        check(&["1", "2.5", "-1e3"], false, FieldType::DOUBLE);
        check(&["1", "2.5"], true, FieldType::STRING);
        check(&["2.5", "NaN", "-inf"], false, FieldType::DOUBLE);
        check(&["NaN"], false, FieldType::STRING);
        check(&["true", "False", ""], false, FieldType::BOOLEAN);
        check(&["true", "1"], false, FieldType::STRING);
        check(&["007", "A1"], false, FieldType::STRING);
        check(&["007", "12"], false, FieldType::STRING);
        check(&["00.5"], false, FieldType::STRING);
        check(&["0", "0.5"], false, FieldType::DOUBLE);
        check(&["+5"], false, FieldType::STRING);
        check(&[" 5"], false, FieldType::STRING);
        check(&["-0"], false, FieldType::DOUBLE);
        check(&["12345678901234567890"], false, FieldType::STRING);
        check(&["9007199254740993", "0.5"], false, FieldType::STRING);
        check(&["1e999"], false, FieldType::STRING);
        check(&["", ""], false, FieldType::STRING);
        check(&[], true, FieldType::STRING);
    }
}
