//! What the measurements of the peers share: their arguments, the record of what started when, and the figures printed.
//!
//! Every program of a peer is called `PROGRAM ADDRESS MEASURE JOBS` and prints one line: `drained RATE` with jobs per
//! second, or `picked-up P50 P99` in milliseconds.

pub mod arguments;
pub mod figures;
pub mod starts;
