//! Reading input files: finding them, unpacking them, and turning their rows into records.
//!
//! Files are read in the order of their paths, whatever order they were named in, and a file
//! named twice is read once. Every row knows where it came from, for messages about it.

pub(crate) mod csv;
pub(crate) mod parquet;
pub(crate) mod source;

use std::path::{Path, PathBuf};

use tidegate_api::manifest::FieldType;

use crate::key::KeyError;

/// How the records of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values with a header, RFC 4180 (`.csv`); tab-separated for `.tsv`.
    Csv {
        /// What stands between two cells.
        delimiter: u8,
    },
    /// Apache Parquet (`.parquet`, `.pq`).
    Parquet,
}

/// How a file is compressed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (`.gz`).
    Gzip,
    /// Zstandard (`.zst`).
    Zstd,
}

const KNOWN_FORMATS: &str = ".csv, .tsv and .parquet, each also with .gz or .zst";

/// A file of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// Where it is.
    pub path: PathBuf,
    /// How its records are written.
    pub format: Format,
    /// How it is compressed.
    pub compression: Compression,
    /// Its size in bytes, as it is on disk.
    pub bytes: u64,
}

/// A row of an input file, for messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file's path.
    pub file: String,
    /// The row, from 1; a CSV header does not count.
    pub row: u64,
    /// For CSV the line that the row begins on, from 1.
    pub line: Option<u64>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}, row {} (line {line})", self.file, self.row),
            None => write!(f, "{}, row {}", self.file, self.row),
        }
    }
}

/// Why input can't be read. All of these are for the user to mend, but for a failing disk.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// No path was given.
    #[error("no input is named")]
    NothingNamed,
    /// A path does not exist.
    #[error("{path}: there is no such file or folder")]
    NotFound {
        /// The path as given.
        path: String,
    },
    /// A path is a pipe, a socket or a device.
    #[error("{path}: no regular file; input is read more than once, so write it to a file first")]
    NotAFile {
        /// The path.
        path: String,
    },
    /// A folder or pattern has no files.
    #[error("{path}: no file is there")]
    NoFiles {
        /// The path as given.
        path: String,
    },
    /// A pattern can't be read.
    #[error("{pattern}: not a pattern: {why}")]
    BadPattern {
        /// The pattern as given.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file's name does not end in a known way.
    #[error("{path}: unknown format; known are {KNOWN_FORMATS}")]
    UnknownFormat {
        /// The file.
        path: String,
    },
    /// Files of several formats.
    #[error("{first} and {second} are of different formats; one push takes one format")]
    MixedFormats {
        /// A file.
        first: String,
        /// A file of another format.
        second: String,
    },
    /// A file can't be read or unpacked.
    #[error("{path}: can't be read: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A Parquet file can't be read.
    #[error("{path}: not readable as Parquet: {source}")]
    Parquet {
        /// The file.
        path: String,
        /// What the reader says.
        source: ::parquet::errors::ParquetError,
    },
    /// A CSV header can't be used.
    #[error("{path}: the header is not usable: {why}")]
    Header {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// More fields than a dataset may have.
    #[error("{path}: {fields} columns were counted, and there may be {limit}")]
    TooManyFields {
        /// The file.
        path: String,
        /// How many it has.
        fields: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A file's columns are not those that are expected.
    #[error("{path}: its columns are not those of {expected_by}: {}", columns_differ(missing, unexpected))]
    Columns {
        /// The file.
        path: String,
        /// Where the expected columns come from: the schema, or the first file.
        expected_by: String,
        /// Columns that are not there.
        missing: Vec<String>,
        /// Columns that should not be there.
        unexpected: Vec<String>,
    },
    /// A row has more or fewer cells than the header.
    #[error("{place}: {cells} cells where the header has {columns}")]
    Cells {
        /// The row.
        place: Place,
        /// How many it has.
        cells: usize,
        /// How many the header has.
        columns: usize,
    },
    /// A quoted cell is never closed.
    #[error("{place}: a quoted cell is still open at the end of the file; the file may be cut")]
    OpenQuote {
        /// The row in which the quote is opened.
        place: Place,
    },
    /// A cell is not UTF-8.
    #[error("{place}, column `{column}`: not UTF-8")]
    NotUtf8 {
        /// The row.
        place: Place,
        /// The column.
        column: String,
    },
    /// A row is longer than the memory bound allows.
    #[error("{place}: the row takes over {limit} bytes, which is the limit under this memory bound")]
    RowTooLong {
        /// The row.
        place: Place,
        /// The limit in bytes.
        limit: usize,
    },
    /// A value is not of its field's type.
    #[error("{place}, column `{column}`: `{value}` is no {data_type}")]
    Value {
        /// The row.
        place: Place,
        /// The column.
        column: String,
        /// The value, cut to a sensible length.
        value: String,
        /// The type that it should be of.
        data_type: FieldType,
    },
    /// A value is missing where none may be.
    #[error("{place}, column `{column}`: empty, but {}", if *key { "it is part of the key" } else { "the schema says that it may not be null" })]
    Null {
        /// The row.
        place: Place,
        /// The column.
        column: String,
        /// Whether it is part of the key.
        key: bool,
    },
    /// A column is of another type than the schema says.
    #[error("{path}, column `{column}`: of type {found}, where {expected_by} has {expected}")]
    ColumnType {
        /// The file.
        path: String,
        /// The column.
        column: String,
        /// The type in the file.
        found: FieldType,
        /// The type that it should have.
        expected: FieldType,
        /// Where the expected type comes from: the schema, or the first file.
        expected_by: String,
    },
    /// A column is of a type that no field can have.
    #[error("{path}, column `{column}`: type {data_type} is not supported")]
    UnsupportedType {
        /// The file.
        path: String,
        /// The column.
        column: String,
        /// The type, as the file's format names it.
        data_type: String,
    },
    /// The key columns are no key.
    #[error("{path}: {source}")]
    Key {
        /// The file that the columns come from.
        path: String,
        /// What is wrong.
        source: KeyError,
    },
    /// There is not a single row, and so no way to tell, or nothing to build.
    #[error("the input is empty: no record in {files} file(s)")]
    Empty {
        /// How many files there are.
        files: usize,
    },
    /// A file of temporary data could not be written or read.
    #[error("{path}: {}", crate::build::describe_disk_error(source))]
    Disk {
        /// The file or folder.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
}

fn columns_differ(missing: &[String], unexpected: &[String]) -> String {
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!("missing {}", missing.join(", ")));
    }
    if !unexpected.is_empty() {
        parts.push(format!("not expected {}", unexpected.join(", ")));
    }
    parts.join("; ")
}

pub(crate) fn display(path: &Path) -> String {
    path.display().to_string()
}

/// How deep part files may lie in a folder.
const DEPTH_MAX: usize = 16;

/// Finds the files that these paths name: files, folders with part files (at any depth; hidden
/// files and names beginning with `_`, such as `_SUCCESS`, are passed over), and patterns with
/// `*`, `?`, `[…]` and `**`.
///
/// # Errors
/// Where a path names nothing, or a file is of no known format, or they are of different ones.
pub fn discover(paths: &[PathBuf]) -> Result<Vec<InputFile>, InputError> {
    let mut files = Vec::new();
    if paths.is_empty() {
        return Err(InputError::NothingNamed);
    }
    for path in paths {
        let before = files.len();
        let text = path.to_string_lossy();
        if path.exists() {
            collect(path, DEPTH_MAX, &mut files)?;
        } else if text.contains(['*', '?', '[']) {
            let matches = glob::glob(&text).map_err(|error| InputError::BadPattern {
                pattern: text.clone().into_owned(),
                why: error.to_string(),
            })?;
            for found in matches {
                let found = found.map_err(|error| InputError::Read {
                    path: display(error.path()),
                    source: std::io::Error::new(error.error().kind(), error.error().to_string()),
                })?;
                if !is_passed_over(&found) {
                    collect(&found, DEPTH_MAX, &mut files)?;
                }
            }
        } else {
            return Err(InputError::NotFound { path: text.into_owned() });
        }
        if files.len() == before {
            return Err(InputError::NoFiles { path: text.into_owned() });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut seen = std::collections::HashSet::new();
    files.retain(|file| seen.insert(std::fs::canonicalize(&file.path).unwrap_or_else(|_| file.path.clone())));
    if let [first, rest @ ..] = files.as_slice()
        && let Some(second) = rest.iter().find(|file| file.format != first.format)
    {
        return Err(InputError::MixedFormats { first: display(&first.path), second: display(&second.path) });
    }
    Ok(files)
}

fn is_passed_over(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(['.', '_']))
}

fn collect(path: &Path, depth: usize, files: &mut Vec<InputFile>) -> Result<(), InputError> {
    let read_error = |source| InputError::Read { path: display(path), source };
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    if !metadata.is_dir() {
        if !metadata.is_file() {
            return Err(InputError::NotAFile { path: display(path) });
        }
        let (format, compression) = recognise(path)?;
        files.push(InputFile { path: path.to_path_buf(), format, compression, bytes: metadata.len() });
        return Ok(());
    }
    if depth == 0 {
        return Err(read_error(std::io::Error::other(format!("folders are nested deeper than {DEPTH_MAX}"))));
    }
    for entry in std::fs::read_dir(path).map_err(read_error)? {
        let entry = entry.map_err(read_error)?.path();
        if !is_passed_over(&entry) {
            collect(&entry, depth - 1, files)?;
        }
    }
    Ok(())
}

fn recognise(path: &Path) -> Result<(Format, Compression), InputError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let (stem, compression) = if let Some(stem) = name.strip_suffix(".gz") {
        (stem, Compression::Gzip)
    } else if let Some(stem) = name.strip_suffix(".zst") {
        (stem, Compression::Zstd)
    } else {
        (name.as_str(), Compression::None)
    };
    let extension = stem.rsplit_once('.').map(|(_, extension)| extension);
    let format = match extension {
        Some("csv") => Format::Csv { delimiter: b',' },
        Some("tsv") => Format::Csv { delimiter: b'\t' },
        Some("parquet" | "pq") => Format::Parquet,
        _ => {
            return Err(InputError::UnknownFormat { path: display(path) });
        }
    };
    Ok((format, compression))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "k\n").unwrap();
    }

    #[test]
    fn folders_patterns_and_files_name_each_file_once_in_path_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["part-2.csv", "part-1.csv.gz", "sub/part-3.csv", "_SUCCESS", ".x.crc"] {
            touch(&folder.path().join(name));
        }
        let files =
            discover(&[folder.path().join("part-2.csv"), folder.path().to_path_buf(), folder.path().join("part-*")])
                .unwrap();
        let names: Vec<_> = files.iter().map(|file| display(file.path.strip_prefix(folder.path()).unwrap())).collect();
        assert_eq!(names, ["part-1.csv.gz", "part-2.csv", "sub/part-3.csv"]);
        assert_eq!(files[0].compression, Compression::Gzip);
    }

    #[test]
    fn what_names_nothing_or_is_unknown_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let check = |path: &str, expected: &str| {
            let error = discover(&[folder.path().join(path)]).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains(expected), "{error}");
        };
        check("absent.csv", "no such file");
        check("*.csv", "no file is there");
        let pipe = folder.path().join("pipe.csv");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        check("pipe.csv", "no regular file");
        std::fs::remove_file(&pipe).unwrap();
        touch(&folder.path().join("data.xlsx"));
        check("data.xlsx", "known are .csv");
        touch(&folder.path().join("a.csv"));
        touch(&folder.path().join("b.parquet"));
        let mixed = discover(&[folder.path().join("?.*")]).unwrap_err();
        assert!(matches!(mixed, InputError::MixedFormats { .. }), "{mixed}");
        assert!(matches!(discover(&[]), Err(InputError::NothingNamed)));
    }
}
