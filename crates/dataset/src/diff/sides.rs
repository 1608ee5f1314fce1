//! Bringing both sides into the form in which they can be compared: artifacts in local folders,
//! with the same key and the same partitions.

use std::path::{Path, PathBuf};

use tidegate_api::manifest::{FieldType, Manifest, Schema};

use super::{DiffError, DiffInput, DiffOptions};
use crate::artifact::check_manifest;
use crate::build::{BuildError, BuildOptions, Builder, BuiltArtifact};
use crate::infer::infer_files;
use crate::input::{Format, InputError, discover};
use crate::progress::{Cancel, OnProgress};

const PARTITIONS: u32 = 8;

/// A side that is ready to be read.
pub(super) struct Side {
    pub(super) name: String,
    pub(super) manifest: Manifest,
    pub(super) folder: PathBuf,
}

fn name(input: &DiffInput) -> String {
    match input {
        DiffInput::Files(paths) => {
            let names: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
            names.join(", ")
        }
        DiffInput::Artifact(folder) => folder.display().to_string(),
    }
}

/// What is known about a side before anything is built.
struct Known {
    schema: Schema,
    /// Types are guesses from text, and others may suit as well.
    is_text: bool,
    artifact: Option<BuiltArtifact>,
}

pub(super) fn prepare(
    a: &DiffInput,
    b: &DiffInput,
    options: &DiffOptions,
    progress: OnProgress<'_>,
    cancel: &Cancel,
) -> Result<(Side, Side), DiffError> {
    std::fs::create_dir_all(&options.work_dir)
        .map_err(|source| DiffError::Disk { path: options.work_dir.display().to_string(), source })?;
    let artifacts = [open(a)?, open(b)?];
    let key_columns = match artifacts.iter().flatten().next() {
        _ if !options.key_columns.is_empty() => options.key_columns.clone(),
        Some(artifact) => artifact.manifest.key_columns.clone(),
        None => return Err(DiffError::NoKey),
    };
    let [artifact_a, artifact_b] = artifacts;
    let mut known_a = know(a, artifact_a, &key_columns, progress, cancel)?;
    let mut known_b = know(b, artifact_b, &key_columns, progress, cancel)?;
    align(&mut known_a, &mut known_b);
    let partitions = known_a
        .artifact
        .as_ref()
        .or(known_b.artifact.as_ref())
        .map_or(PARTITIONS, |artifact| artifact.manifest.partition_count);
    let make = |input, known, folder: &str| {
        side(Making {
            input,
            known,
            key_columns: &key_columns,
            partitions,
            work_dir: options.work_dir.join(folder),
            memory_bytes: options.memory_bytes,
            progress,
            cancel,
        })
    };
    let (a, b) = (make(a, known_a, "a")?, make(b, known_b, "b")?);
    let describe = |side: &Side| {
        let types: Vec<_> = side
            .manifest
            .key_columns
            .iter()
            .filter_map(|column| side.manifest.schema.field(column))
            .map(|field| format!("{} ({})", field.name, field.data_type))
            .collect();
        types.join(", ")
    };
    if describe(&a) != describe(&b) {
        return Err(DiffError::Keys { a: describe(&a), b: describe(&b) });
    }
    Ok((a, b))
}

/// Removes what was built.
pub(super) fn tidy(options: &DiffOptions) -> Result<(), DiffError> {
    for folder in ["a", "b"] {
        let path = options.work_dir.join(folder);
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(DiffError::Disk { path: path.display().to_string(), source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn open(input: &DiffInput) -> Result<Option<BuiltArtifact>, DiffError> {
    let DiffInput::Artifact(folder) = input else {
        return Ok(None);
    };
    let artifact = BuiltArtifact::open(folder)
        .map_err(|error| DiffError::Artifact { folder: folder.display().to_string(), why: error.to_string() })?;
    check_manifest(&artifact.manifest)?;
    Ok(Some(artifact))
}

fn build_error(input: &DiffInput, source: BuildError) -> DiffError {
    match source {
        BuildError::Cancelled | BuildError::Input(InputError::Cancelled) => DiffError::Cancelled,
        source => DiffError::Build { side: name(input), source: Box::new(source) },
    }
}

fn know(
    input: &DiffInput,
    artifact: Option<BuiltArtifact>,
    key_columns: &[String],
    progress: OnProgress<'_>,
    cancel: &Cancel,
) -> Result<Known, DiffError> {
    if let Some(artifact) = artifact {
        return Ok(Known { schema: artifact.manifest.schema.clone(), is_text: false, artifact: Some(artifact) });
    }
    let DiffInput::Files(paths) = input else { unreachable!("an artifact was opened before") };
    let infer = || {
        let files = discover(paths)?;
        let is_text = files.iter().any(|file| file.format != Format::Parquet);
        let inferred = infer_files(&files, key_columns, None, progress, cancel)?;
        Ok((inferred.schema, is_text))
    };
    let (schema, is_text) = infer().map_err(|error: InputError| build_error(input, BuildError::Input(error)))?;
    Ok(Known { schema, is_text, artifact: None })
}

/// Gives columns of text the other side's type, or one that suits both.
fn align(a: &mut Known, b: &mut Known) {
    for position in 0..a.schema.fields.len() {
        let Some(other) = b.schema.position(&a.schema.fields[position].name) else {
            continue;
        };
        let (type_a, type_b) = (&mut a.schema.fields[position].data_type, &mut b.schema.fields[other].data_type);
        if type_a == type_b {
            continue;
        }
        let joined = match (*type_a, *type_b) {
            (FieldType::LONG, FieldType::DOUBLE) | (FieldType::DOUBLE, FieldType::LONG) => FieldType::DOUBLE,
            _ => FieldType::STRING,
        };
        match (a.is_text, b.is_text) {
            (true, true) => (*type_a, *type_b) = (joined, joined),
            // Whether the text suits is found when it is parsed; else it keeps its own type.
            (true, false) => *type_a = *type_b,
            (false, true) => *type_b = *type_a,
            (false, false) => {}
        }
    }
}

struct Making<'a> {
    input: &'a DiffInput,
    known: Known,
    key_columns: &'a [String],
    partitions: u32,
    work_dir: PathBuf,
    memory_bytes: usize,
    progress: OnProgress<'a>,
    cancel: &'a Cancel,
}

fn side(making: Making<'_>) -> Result<Side, DiffError> {
    let name = name(making.input);
    if let Some(artifact) = &making.known.artifact
        && artifact.manifest.partition_count == making.partitions
        && artifact.manifest.key_columns == making.key_columns
    {
        return Ok(Side { name, manifest: artifact.manifest.clone(), folder: artifact.folder.clone() });
    }
    let paths: Vec<PathBuf> = match (making.input, &making.known.artifact) {
        (_, Some(artifact)) => parts_of(&artifact.manifest, &artifact.folder),
        (DiffInput::Files(paths), None) => paths.clone(),
        (DiffInput::Artifact(folder), None) => vec![folder.clone()],
    };
    let mut schema = making.known.schema.clone();
    // Each turn gives one column back to text, so that there is an end.
    for _ in 0..=schema.fields.len() {
        let mut options = BuildOptions::new(making.key_columns.iter().cloned(), &making.work_dir);
        options.partitions = making.partitions;
        options.memory_bytes = making.memory_bytes;
        options.schema = Some(schema.clone());
        options.allow_empty = true;
        match Builder::new(options).build(&paths, making.progress, making.cancel) {
            Ok(built) => {
                let mut manifest = built.manifest;
                if let Some(artifact) = &making.known.artifact {
                    manifest.duplicate_count = artifact.manifest.duplicate_count;
                }
                return Ok(Side { name, manifest, folder: built.folder });
            }
            Err(BuildError::Input(InputError::Value { column, .. })) if making.known.is_text => {
                if let Some(position) = schema.position(&column) {
                    schema.fields[position].data_type = FieldType::STRING;
                }
            }
            Err(error) => return Err(build_error(making.input, error)),
        }
    }
    Err(DiffError::Cancelled)
}

fn parts_of(manifest: &Manifest, folder: &Path) -> Vec<PathBuf> {
    manifest.parts.iter().map(|part| folder.join(&part.name)).collect()
}
