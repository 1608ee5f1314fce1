//! The numbers of versions of stores that are made after a restore.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Root};

/// `/version-floor/stores`: the number that a store which is made from now on gives its first version; 1 where it is not
/// there. Written by restores: a store of the same name may have been made, and have given out numbers, in what was lost,
/// and regions know a version by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionFloor {
    /// The number.
    pub next_version: u64,
}

impl VersionFloor {
    /// The id of the only one.
    pub const ID: &'static str = "stores";
}

impl Entity for VersionFloor {
    const COLLECTION: &'static str = "version-floor";
    type Parent = Root;
    type Id = String;
}
