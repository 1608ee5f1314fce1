//! Small worlds to build artifacts in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::file::reader::{FileReader, SerializedFileReader};
use tempfile::TempDir;
use tidegate_dataset::build::{BuildError, BuildOptions, Builder, BuiltArtifact};
use tidegate_dataset::{Cancel, quiet};

/// A folder with input files and a work folder.
pub(crate) struct World {
    pub(crate) folder: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn parquet(&self, name: &str, columns: Vec<(&str, ArrayRef)>) -> PathBuf {
        let path = self.path(name);
        let columns = columns.into_iter().map(|(name, array)| (name, array, true)).collect::<Vec<_>>();
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        path
    }

    pub(crate) fn options(&self, keys: &[&str]) -> BuildOptions {
        let mut options = BuildOptions::new(keys.iter().copied(), self.path("work"));
        options.partitions = 4;
        options.threads = 2;
        options.memory_bytes = 32 << 20;
        options
    }

    pub(crate) fn build(&self, keys: &[&str], paths: &[PathBuf]) -> BuiltArtifact {
        build(self.options(keys), paths).unwrap()
    }

    pub(crate) fn refuse(&self, keys: &[&str], paths: &[PathBuf]) -> BuildError {
        build(self.options(keys), paths).unwrap_err()
    }
}

pub(crate) fn build(options: BuildOptions, paths: &[PathBuf]) -> Result<BuiltArtifact, BuildError> {
    Builder::new(options).build(paths, &quiet, &Cancel::new())
}

pub(crate) fn array<A: arrow_array::Array + 'static>(values: A) -> ArrayRef {
    Arc::new(values)
}

/// All rows of an artifact's parts as text, read through Parquet's row interface, which shares no
/// code with the reader that the crate uses.
pub(crate) fn rows(artifact: &BuiltArtifact) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for part in &artifact.manifest.parts {
        let path = artifact.folder.join(&part.name);
        let mut of_part = part_rows(&path);
        assert_eq!(of_part.len() as u64, part.rows);
        all.append(&mut of_part);
    }
    all
}

pub(crate) fn part_rows(path: &Path) -> Vec<Vec<String>> {
    let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| row.unwrap().get_column_iter().map(|(_, field)| field.to_string()).collect())
        .collect()
}

/// Every file below a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
