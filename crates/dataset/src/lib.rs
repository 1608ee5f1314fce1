#![cfg_attr(test, allow(clippy::unwrap_used))]
//! A dataset version as an immutable artifact: build it from files, describe it, compare it, store
//! it, load it, look keys up in it. Needs no server.
//!
//! ```
//! use tidegate_dataset::build::{BuildOptions, Builder};
//! use tidegate_dataset::index::IndexBuilder;
//! use tidegate_dataset::{Cancel, quiet};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let airports = folder.path().join("airports.csv");
//! std::fs::write(&airports, "icao,city,elevation\nEDDB,Berlin,157\nEGLL,London,83\n")?;
//! let cancel = Cancel::new();
//!
//! // Sorted Parquet files, and a manifest that says all about them.
//! let options = BuildOptions::new(["icao"], folder.path().join("work"));
//! let artifact = Builder::new(options).build(&[airports], &quiet, &cancel)?;
//! assert_eq!(artifact.manifest.record_count, 2);
//! let elevation = artifact.manifest.field_statistics("elevation").expect("it is in the header");
//! assert_eq!(elevation.mean, Some(120.0));
//!
//! // A file that answers look-ups.
//! let index = IndexBuilder::new(folder.path().join("airports.index")).build(
//!     &artifact.folder,
//!     &artifact.manifest,
//!     &quiet,
//!     &cancel,
//! )?;
//! let berlin = index.get_json(&index.key("EDDB")?)?.expect("it is in the file");
//! assert_eq!(berlin["elevation"], 157);
//! # Ok(())
//! # }
//! ```
//!
//! # What is where
//!
//! | module | does |
//! |---|---|
//! | [`input`] | finds files, unpacks and parses CSV and Parquet |
//! | [`infer`] | the first pass: schema and digest of the input |
//! | [`schema`] | checks schemas and says which changes between two are safe |
//! | [`key`] | encodes keys, hashes them, reads them as people write them |
//! | [`build`] | the second pass: sorts within a memory bound, writes parts and manifest |
//! | [`artifact`] | artifacts in an object store: put, get, copy, verify, delete |
//! | [`FolderLock`] | a folder that one process at a time works in |
//! | [`location`] | where that store is, with whose credentials, and opening it |
//! | [`index`] | a node's memory-mapped file for look-ups, its checks and its scrub |
//! | [`diff`](mod@diff) | what is different between two inputs or artifacts |
//!
//! # Invariants
//!
//! - **Same records, same bytes.** An artifact's id is a function of the set of records, schema,
//!   key columns and number of partitions. Files' names, their order, repeated rows, threads and
//!   memory bound don't count; neither does the machine.
//! - **Bounded memory.** Builds, indexes and diffs sort on disk what does not fit.
//! - **Whole or not there.** Artifacts, stored parts and indexes appear by a rename (or the store's
//!   like) after they were complete and checked; what an interruption leaves is never mistaken for
//!   them, and is removed by the next attempt.
//! - **Checked before it counts.** Parts and manifests by SHA-256; each record of an index by a
//!   checksum on every read. A damaged byte gives an error that names the file, never a wrong
//!   value and never a false miss.
//! - **Errors name the place**: file, row, line, column and value for input; the file for damage;
//!   both places for a key with two values.
//!
//! # Limits
//!
//! Fields are scalars ([`ScalarType`](tidegate_api::manifest::ScalarType)) and lists of them; up
//! to 1024 of them. Keys take up to 4096 bytes and are not floating point numbers. A record takes
//! up to a thirty-second of the build's memory bound, and 32 MiB. Functions block unless they are
//! `async`; call them where blocking is allowed. Unix only.

pub mod artifact;
pub mod build;
pub mod diff;
mod digest;
mod exact_sum;
mod folder_lock;
pub mod index;
pub mod infer;
pub mod input;
pub mod key;
pub mod location;
mod part;
mod progress;
mod records;
pub mod schema;
mod sort;
mod statistics;
mod value;

pub use folder_lock::{FolderLock, FolderLockError};
pub use infer::{InferredSchema, infer_schema, infer_schema_against};
pub use progress::{Cancel, OnProgress, Phase, Progress, quiet};
pub use value::Malformed;
