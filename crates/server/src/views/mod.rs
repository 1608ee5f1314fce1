//! From a snapshot to what the API shows. Pure: no I/O, and time comes in as an argument.

pub(crate) mod cluster;
pub(crate) mod explain;
pub(crate) mod gate;
pub(crate) mod job;
pub(crate) mod later;
pub(crate) mod push;
pub(crate) mod region;
pub(crate) mod store;
pub(crate) mod words;

use tidegate_api::EpochMs;
use tidegate_lifecycle::Registry;
use tidegate_state::{ReadError, Snapshot, Timestamp};

use crate::http::errors::ApiError;

/// What a view is made from.
#[derive(Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) registry: &'a Registry,
    pub(crate) now: Timestamp,
}

/// A time as the API has it.
pub(crate) fn ms(time: Timestamp) -> EpochMs {
    u64::try_from(time.0).unwrap_or(0)
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        ApiError::internal(error)
    }
}

impl From<tidegate_state::PathError> for ApiError {
    fn from(error: tidegate_state::PathError) -> Self {
        ApiError::bad_request("An id can't be used.", format!("{error}."))
    }
}
