//! Files that uploads and copies to a local store leave when they are cut off.

use std::path::Path;
use std::time::Duration;

use tidegate_api::manifest::Part;
use xxhash_rust::xxh3::xxh3_64;

use super::ArtifactError;

/// What a part is called while it is copied. Another content has another name, and the local store lists no such file.
pub(super) fn unfinished_name(part: &Part) -> String {
    format!("{}#{}", part.name, xxh3_64(part.sha256.as_bytes()))
}

/// While it writes, the local store calls an object `{name}#{number}`; parts have no `#`.
fn is_unfinished(name: &str) -> bool {
    name.rsplit_once('#')
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

pub(super) fn remove(root: &Path, older_than: Duration) -> Result<u64, ArtifactError> {
    let mut removed = 0;
    for artifact in list(root)?.into_iter().filter(|path| path.is_dir()) {
        removed += remove_within(&artifact, older_than)?;
    }
    Ok(removed)
}

/// Removes all of them in the folder of an artifact that is deleted, and the folder if it is empty then.
pub(super) fn remove_of(artifact: &Path) -> Result<(), ArtifactError> {
    if remove_within(artifact, Duration::ZERO)? > 0 {
        // Not empty: somebody writes it anew.
        let _ = std::fs::remove_dir(artifact);
    }
    Ok(())
}

fn remove_within(artifact: &Path, older_than: Duration) -> Result<u64, ArtifactError> {
    let mut removed = 0;
    for path in list(artifact)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A file that is gone or has no age was finished, or is not ours to judge.
        let age = std::fs::metadata(&path)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| modified.elapsed().ok());
        if is_unfinished(&name) && age.is_some_and(|age| age >= older_than) {
            match std::fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(disk_error(&path, error)),
            }
        }
    }
    Ok(removed)
}

fn list(folder: &Path) -> Result<Vec<std::path::PathBuf>, ArtifactError> {
    match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(disk_error(folder, error)),
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(|error| disk_error(folder, error)),
    }
}

fn disk_error(path: &Path, source: std::io::Error) -> ArtifactError {
    ArtifactError::Disk { path: path.display().to_string(), source }
}
