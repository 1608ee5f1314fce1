//! Building the artifact with `tidegate-dataset`.

use std::path::{Path, PathBuf};

use tidegate_api::manifest::{Manifest, Schema};
use tidegate_api::{InputFault, PushAccepted};
use tidegate_dataset::build::{BuildError, BuildOptions, Builder, BuiltArtifact};
use tidegate_dataset::input::InputError;
use tidegate_dataset::{Cancel, InferredSchema, OnProgress, Phase, infer_schema_against};

use super::{PushError, advice};

/// What is being done with the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildPhase {
    /// It is read for the first time: schema and digest. Counted in bytes.
    Inspecting,
    /// It is parsed and sorted. Counted in bytes.
    Reading,
    /// Sorted parts are written. Counted in records.
    Writing,
}

impl From<Phase> for BuildPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Inferring => Self::Inspecting,
            Phase::Reading => Self::Reading,
            Phase::Writing | Phase::Copying | Phase::Verifying | Phase::Indexing | Phase::Comparing => Self::Writing,
        }
    }
}

/// Why the artifact could not be built.
#[derive(Debug)]
pub(super) enum BuildFailed {
    /// The push has ended, and the work was stopped.
    Cancelled,
    /// The input, or this machine.
    Failed { kind: InputFault, message: String, to_do: String },
}

/// What is to be built, and where.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) paths: Vec<PathBuf>,
    pub(super) key_columns: Vec<String>,
    pub(super) partitions: u32,
    pub(super) registered: Option<Schema>,
    pub(super) golden_keys: Vec<String>,
    pub(super) allow_empty: bool,
    pub(super) value_bytes_max: u64,
    pub(super) memory_bytes: Option<u64>,
    pub(super) work: PathBuf,
}

/// A built artifact in a folder.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) manifest: Manifest,
    pub(super) folder: PathBuf,
    /// Whether an earlier run had built it.
    pub(super) reused: bool,
}

impl Plan {
    pub(super) fn new(accepted: &PushAccepted, paths: &[PathBuf], memory_bytes: Option<u64>, work: &Path) -> Self {
        Self {
            paths: paths.to_vec(),
            key_columns: accepted.key_columns.clone(),
            partitions: accepted.partitions,
            registered: accepted.schema.as_ref().map(|known| known.schema.clone()),
            golden_keys: accepted.golden_keys.clone(),
            allow_empty: accepted.allow_empty,
            value_bytes_max: accepted.value_bytes_max,
            memory_bytes,
            work: work.join("build"),
        }
    }

    /// Reads the input for the first time. Blocks.
    pub(super) fn inspect(&self, progress: OnProgress<'_>, cancel: &Cancel) -> Result<InferredSchema, BuildFailed> {
        let registered = self.registered.as_ref();
        let inferred =
            infer_schema_against(&self.paths, &self.key_columns, registered, progress, cancel).map_err(input_failed)?;
        if inferred.rows == 0 && !self.allow_empty {
            return Err(BuildFailed::Failed {
                kind: InputFault::Input,
                message: "the input is empty: it has no record".to_owned(),
                to_do: advice::about_emptiness(),
            });
        }
        Ok(inferred)
    }

    /// Builds the artifact, or finds the one that an earlier run has built of the same. Blocks.
    pub(super) fn build(
        &self,
        schema: &Schema,
        input_digest: &str,
        progress: OnProgress<'_>,
        cancel: &Cancel,
    ) -> Result<Built, BuildFailed> {
        if let Some(built) = self.built_before(schema, input_digest) {
            return Ok(built);
        }
        let mut options = BuildOptions::new(self.key_columns.clone(), &self.work);
        options.partitions = self.partitions;
        options.schema = Some(schema.clone());
        options.input_digest = Some(input_digest.to_owned());
        options.golden_keys = self.golden_keys.clone();
        options.allow_empty = self.allow_empty;
        options.value_bytes_max = Some(self.value_bytes_max);
        if let Some(bytes) = self.memory_bytes {
            options.memory_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        let built = Builder::new(options).build(&self.paths, progress, cancel).map_err(build_failed)?;
        Ok(Built { manifest: built.manifest, folder: built.folder, reused: false })
    }

    fn built_before(&self, schema: &Schema, input_digest: &str) -> Option<Built> {
        let built = BuiltArtifact::open(self.work.join("artifact")).ok()?;
        let manifest = &built.manifest;
        let golden = manifest.golden.iter().map(|golden| &golden.key);
        let same = manifest.schema == *schema
            && manifest.input_digest == input_digest
            && manifest.key_columns == self.key_columns
            && manifest.partition_count == self.partitions
            && golden.eq(&self.golden_keys)
            && manifest.parts.iter().all(|part| {
                let file = std::fs::metadata(built.folder.join(&part.name));
                file.is_ok_and(|file| file.len() == part.bytes)
            });
        same.then_some(Built { manifest: built.manifest, folder: built.folder, reused: true })
    }
}

fn input_failed(error: InputError) -> BuildFailed {
    let kind = match &error {
        InputError::Cancelled => return BuildFailed::Cancelled,
        InputError::Disk { .. } => InputFault::Fault,
        _ => InputFault::Input,
    };
    BuildFailed::Failed { kind, message: error.to_string(), to_do: advice::about_input(&error) }
}

fn build_failed(error: BuildError) -> BuildFailed {
    let kind = match error {
        BuildError::Cancelled => return BuildFailed::Cancelled,
        BuildError::Input(error) => return input_failed(error),
        BuildError::Disk { .. } | BuildError::Busy { .. } | BuildError::Part { .. } | BuildError::Option { .. } => {
            InputFault::Fault
        }
        _ => InputFault::Input,
    };
    BuildFailed::Failed { kind, message: error.to_string(), to_do: advice::about_build(&error) }
}

/// Finds the input files, so that a path that names nothing is told before a push is started.
pub(super) fn discover(paths: &[PathBuf]) -> Result<(), PushError> {
    let found = tidegate_dataset::input::discover(paths).map(|_| ());
    found.map_err(|error| PushError::Input { message: error.to_string(), to_do: advice::about_input(&error) })
}
