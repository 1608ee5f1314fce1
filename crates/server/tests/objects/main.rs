//! Artifacts in a bucket: an S3 server of the tests' own on a free port, the real client of object stores, the real
//! server and the real push client.
#![allow(clippy::unwrap_used)]

mod artifacts;
mod bucket;
mod faults;
mod places;
mod pushes;
mod world;
