//! What an agent keeps on its own disk, so that after a restart it knows what its region should hold
//! and serve, whether or not the control plane is there.
//!
//! One file per store, replaced as a whole. A file that can't be read is put aside and named in the
//! log: the assignment comes again from the control plane, and the nodes keep what they serve by
//! themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::engine::file;
use crate::entities::{Assignment, Report};
use crate::region::link::Position;
use crate::region::pin::Pins;

/// The format that this release writes.
const FORMAT: u32 = 1;

/// What is kept of one store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoreFile {
    format: u32,
    /// The store's name.
    pub(crate) store: String,
    /// Which of the stores of this name the agent has to do with.
    pub(crate) incarnation: Uuid,
    /// The last assignment; `None`: all of it is being let go.
    pub(crate) assignment: Option<Assignment>,
    /// Where in the control plane's log that was said.
    pub(crate) position: Option<Position>,
    /// The versions that the agent has to do with, by number; also those whose copy is still to be removed.
    #[serde(default)]
    pub(crate) expected: BTreeMap<u64, Expected>,
    /// Versions that were read back and found right, by node.
    #[serde(default)]
    pub(crate) sound: BTreeMap<String, BTreeSet<u64>>,
    /// What is pinned, and was.
    #[serde(default)]
    pub(crate) pins: Pins,
    /// The last report that was written, but for progress.
    pub(crate) report: Option<Report>,
}

/// What a version is made from, and must consist of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Expected {
    /// The artifact that it is made from.
    pub(crate) artifact: String,
    /// SHA-256 of the artifact's manifest.
    pub(crate) manifest_sha256: String,
    /// The digest over all its records, once the manifest was read.
    pub(crate) content_digest: Option<String>,
}

impl StoreFile {
    pub(crate) fn new(store: &str, incarnation: Uuid) -> Self {
        StoreFile {
            format: FORMAT,
            store: store.to_owned(),
            incarnation,
            assignment: None,
            position: None,
            expected: BTreeMap::new(),
            sound: BTreeMap::new(),
            pins: Pins::default(),
            report: None,
        }
    }
}

/// The folder of one agent. All of this blocks.
#[derive(Clone, Debug)]
pub(crate) struct AgentDisk {
    folder: PathBuf,
}

impl AgentDisk {
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(AgentDisk { folder: folder.to_owned() })
    }

    fn path(&self, store: &str) -> io::Result<PathBuf> {
        let name =
            file::encode_name(store).ok_or_else(|| io::Error::other("the store's name is too long for a file"))?;
        Ok(self.folder.join(name).with_extension("json"))
    }

    /// Everything that can be read.
    pub(crate) fn load(&self) -> io::Result<Vec<StoreFile>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(file) => files.push(file),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "what was kept of a store can't be read and is put aside");
                    fs::rename(&path, path.with_extension("damaged"))?;
                }
            }
        }
        files.sort_by(|a, b| a.store.cmp(&b.store));
        Ok(files)
    }

    pub(crate) fn save(&self, file: &StoreFile) -> io::Result<()> {
        let content = serde_json::to_vec_pretty(file).map_err(io::Error::other)?;
        file::replace(&self.path(&file.store)?, &content)
    }

    pub(crate) fn remove(&self, store: &str) -> io::Result<()> {
        file::remove_if_there(&self.path(store)?)
    }
}

fn read(path: &Path) -> io::Result<StoreFile> {
    let file: StoreFile = serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)?;
    if file.format != FORMAT {
        return Err(io::Error::other(format!("format {} is not known; this release reads {FORMAT}", file.format)));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_found_again_and_what_is_damaged_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let disk = AgentDisk::open(folder.path()).unwrap();
        let mut kept = StoreFile::new("a/b", Uuid::nil());
        kept.sound.insert("node-1".to_owned(), [3].into());
        disk.save(&kept).unwrap();
        disk.save(&StoreFile::new("broken", Uuid::nil())).unwrap();
        disk.save(&StoreFile::new("gone", Uuid::nil())).unwrap();
        disk.remove("gone").unwrap();
        fs::write(folder.path().join("broken.json"), b"{").unwrap();
        assert_eq!(disk.load().unwrap(), [kept]);
        assert!(folder.path().join("broken.damaged").exists());
    }
}
