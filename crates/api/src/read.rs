//! Look-ups, one by one and in batches.
//!
//! A key is written as the text of its one column; where the key has several columns, as a JSON
//! array of their values in key order.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The answer to a look-up of one key that is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KeyAnswer {
    /// The key as it was asked for.
    pub key: String,
    /// The record, key columns included.
    #[schema(value_type = Object)]
    pub value: serde_json::Value,
    /// The version that answered.
    pub version: u64,
    /// The region that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The node that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Keys to look up in one version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// The keys.
    pub keys: Vec<String>,
}

/// The answer to a batch: all of one version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchAnswer {
    /// The version that answered.
    pub version: u64,
    /// The region that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The node that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// One entry per key, in the order of the request.
    pub values: Vec<KeyValue>,
}

/// One entry of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KeyValue {
    /// The key as it was asked for.
    pub key: String,
    /// The record, or null if the version has no such key.
    #[schema(value_type = Option<Object>)]
    pub value: Option<serde_json::Value>,
}
