//! What a build, an artifact, an index and a diff must do. Test names carry the case ids of the
//! acceptance tables.
#![allow(clippy::unwrap_used)]

mod artifacts;
mod builds;
mod diffs;
mod indexes;
mod keys;
mod support;
