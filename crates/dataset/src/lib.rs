#![cfg_attr(test, allow(clippy::unwrap_used))]
//! (documentation follows)

pub mod build;
mod digest;
mod exact_sum;
pub mod infer;
pub mod input;
pub mod key;
mod part;
mod progress;
mod records;
pub mod schema;
mod sort;
mod statistics;
mod value;

pub use infer::{InferredSchema, infer_schema, infer_schema_against};
pub use progress::{Cancel, OnProgress, Phase, Progress, quiet};
pub use value::Malformed;
