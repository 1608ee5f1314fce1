//! What an agent keeps of itself on its own disk: who it is, and whether it was replaced.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::engine::file;

/// The format that this release writes.
const FORMAT: u32 = 1;

/// The file's name, which no store's file can have.
const FILE: &str = "identity";

/// An agent's identity. It goes with the folder: an agent that starts in the same folder is the same agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    format: u32,
    /// The agent's id.
    pub(crate) agent: Uuid,
    /// Who hosts the region instead, in words, if the agent was told so and has not hosted it since.
    #[serde(default)]
    pub(crate) replaced_by: Option<String>,
    /// The last token that the agent was given: nodes obey no lower one.
    #[serde(default)]
    pub(crate) token: u64,
}

/// Where an agent keeps its identity. All of this blocks.
#[derive(Clone, Debug)]
pub(crate) struct IdentityFile(PathBuf);

impl IdentityFile {
    /// The identity kept in this folder, or a new one with this id.
    pub(crate) fn open(folder: &Path, new: Uuid) -> io::Result<(Self, Identity)> {
        fs::create_dir_all(folder)?;
        let path = folder.join(FILE);
        let file = IdentityFile(path);
        match fs::read(&file.0) {
            Ok(bytes) => match serde_json::from_slice::<Identity>(&bytes) {
                Ok(identity) if identity.format == FORMAT => return Ok((file, identity)),
                Ok(identity) => {
                    let why = format!("format {} is not known; this release reads {FORMAT}", identity.format);
                    return Err(io::Error::other(format!("{}: {why}", file.0.display())));
                }
                Err(error) => {
                    // A new identity waits until the lease of the one that was lost has run out, and all goes on.
                    tracing::error!(path = %file.0.display(), %error, "the agent's identity can't be read; it gets a new one");
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let identity = Identity { format: FORMAT, agent: new, replaced_by: None, token: 0 };
        file.save(&identity)?;
        Ok((file, identity))
    }

    pub(crate) fn save(&self, identity: &Identity) -> io::Result<()> {
        file::replace(&self.0, &serde_json::to_vec_pretty(identity).map_err(io::Error::other)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_the_same_after_a_restart_and_another_if_its_file_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (file, first) = IdentityFile::open(folder.path(), Uuid::from_u128(1)).unwrap();
        let replaced = Identity { replaced_by: Some("another".to_owned()), ..first.clone() };
        file.save(&replaced).unwrap();
        assert_eq!(IdentityFile::open(folder.path(), Uuid::from_u128(2)).unwrap().1, replaced);
        fs::write(folder.path().join(FILE), b"{").unwrap();
        assert_eq!(IdentityFile::open(folder.path(), Uuid::from_u128(3)).unwrap().1.agent, Uuid::from_u128(3));
    }
}
