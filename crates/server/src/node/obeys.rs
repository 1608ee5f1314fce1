//! Whom a node obeys.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::data_folder::write_private;

/// Where the highest token is kept.
const FILE: &str = "obeys";

/// The highest token that a node has ever seen.
#[derive(Debug)]
pub(super) struct Obeys {
    path: PathBuf,
    highest: Mutex<u64>,
}

impl Obeys {
    /// What is kept in this folder. Blocks.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE);
        let highest = match fs::read_to_string(&path) {
            Ok(text) => {
                text.trim().parse().map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Obeys { path, highest: Mutex::new(highest) })
    }

    /// Takes note of the token of an order: whether it is obeyed, or else the token that is. Blocks where the token is
    /// higher than all before: it is on the disk before the order is carried out.
    ///
    /// # Errors
    /// It can't be kept on the disk; then it is not obeyed.
    pub(super) fn take(&self, token: u64) -> io::Result<Result<(), u64>> {
        let mut highest = self.highest.lock();
        if token < *highest {
            return Ok(Err(*highest));
        }
        if token > *highest {
            write_private(&self.path, &token.to_string())?;
            *highest = token;
        }
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c19_a_node_obeys_the_highest_token_alone_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let obeys = Obeys::open(folder.path()).unwrap();
        for (token, obeyed) in [(0, Ok(())), (7, Ok(())), (7, Ok(())), (6, Err(7)), (9, Ok(())), (7, Err(9))] {
            assert_eq!(obeys.take(token).unwrap(), obeyed, "{token}");
        }
        let obeys = Obeys::open(folder.path()).unwrap();
        assert_eq!(obeys.take(8).unwrap(), Err(9));
        assert_eq!(obeys.take(9).unwrap(), Ok(()));
        fs::write(folder.path().join(FILE), "x").unwrap();
        assert!(Obeys::open(folder.path()).is_err());
    }
}
