//! Digests over records and artifacts.

use sha2::{Digest, Sha256};
use tidegate_api::manifest::{HASH_FUNCTION, MANIFEST_FORMAT, Part, Schema};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128, xxh3_128_with_seed};

use crate::key::KeyCodec;
use crate::value::{Cell, Malformed, Scalar, ValueReader};

/// A digest over a set of records that does not depend on their order: the sum (modulo 2¹²⁸) of
/// one hash per record, over key and value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContentDigest(u128);

impl ContentDigest {
    /// Adds a record; `key_hash` is the hash of its encoded key.
    pub(crate) fn add(&mut self, key_hash: u64, key: &[u8], value: &[u8]) {
        // The second hash of the key ties all its bytes in: 64 bits alone could meet.
        let seed = xxh3_64_with_seed(key, key_hash);
        self.0 = self.0.wrapping_add(xxh3_128_with_seed(value, seed));
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    pub(crate) fn to_text(self) -> String {
        format!("{:032x}", self.0)
    }
}

/// A digest of one value that is equal in every schema in which the value's fields are equal:
/// fields are tied in by name, and a null counts as if the field were not there.
pub(crate) fn value_digest(schema: &Schema, keys: &KeyCodec, value: &[u8]) -> Result<String, Malformed> {
    let mut reader = ValueReader::new(value, keys.value_field_count());
    let mut sum = 0u128;
    let mut scratch = Vec::new();
    for (position, field) in schema.fields.iter().enumerate() {
        if keys.is_key_position(position) {
            continue;
        }
        scratch.clear();
        scratch.extend_from_slice(field.name.as_bytes());
        scratch.push(0);
        scratch.extend_from_slice(field.data_type.to_string().as_bytes());
        scratch.push(0);
        let encode = |scalar: Option<Scalar<'_>>, out: &mut Vec<u8>| match scalar {
            None => out.push(0),
            Some(scalar) => {
                out.push(1);
                scalar.encode(out);
            }
        };
        match reader.next(field.data_type)? {
            Cell::Null => continue,
            Cell::Scalar(scalar) => encode(Some(scalar), &mut scratch),
            Cell::List(list) => list.elements().for_each(|element| encode(element, &mut scratch)),
        }
        sum = sum.wrapping_add(xxh3_128(&scratch));
    }
    Ok(format!("{sum:032x}"))
}

/// The identity of an artifact: equal for equal parts of an equal schema, however they came to be.
pub(crate) fn artifact_id(schema: &Schema, key_columns: &[String], parts: &[Part]) -> String {
    let mut hasher = Sha256::new();
    let mut line = |text: &str| {
        // Each entry with its length, so that no two lists of entries run into the same bytes.
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    line("tidegate artifact");
    line(&MANIFEST_FORMAT.to_string());
    line(HASH_FUNCTION);
    line(&schema.fields.len().to_string());
    for field in &schema.fields {
        line(&field.name);
        line(&field.data_type.to_string());
        line(if field.nullable { "nullable" } else { "required" });
    }
    line(&key_columns.len().to_string());
    key_columns.iter().for_each(|column| line(column));
    line(&parts.len().to_string());
    for part in parts {
        line(&part.name);
        line(&part.sha256);
    }
    hex::encode(hasher.finalize())
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
