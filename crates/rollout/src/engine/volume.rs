//! How much room there is where a folder is.

use std::path::{Path, PathBuf};

use crate::engine::EngineError;

/// The room on a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Bytes that may still be written.
    pub(crate) free_bytes: u64,
    /// Which file system it is.
    pub(crate) volume: String,
}

/// The room where this folder is, or would be: the nearest folder above it that exists.
pub(crate) async fn room(folder: &Path) -> Result<Room, EngineError> {
    let folder = folder.to_owned();
    let measured = tokio::task::spawn_blocking(move || measure(folder)).await;
    let measured = measured.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    measured.map_err(|error| EngineError::retry(format!("the free space of a disk can't be read: {error}")))
}

fn measure(mut folder: PathBuf) -> std::io::Result<Room> {
    while !folder.exists() {
        if !folder.pop() {
            break;
        }
    }
    let file_system = rustix::fs::statvfs(&folder)?;
    let place = rustix::fs::stat(&folder)?;
    Ok(Room {
        free_bytes: file_system.f_bavail.saturating_mul(file_system.f_frsize),
        volume: format!("device {}", place.st_dev),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn n2_the_room_of_a_folder_that_is_not_there_yet_is_that_of_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let there = room(folder.path()).await.unwrap();
        let not_there = room(&folder.path().join("a/b")).await.unwrap();
        assert_eq!(there.volume, not_there.volume);
        assert!(there.free_bytes > 0);
    }
}
