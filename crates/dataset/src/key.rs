//! Keys: how one or more columns become the bytes that records are hashed, sorted and found by.
//!
//! ```text
//! key    = column*             in key order
//! column = boolean: 1 byte; int, date: 4 bytes; long, timestamp: 8 bytes, all big-endian with
//!          the sign bit turned, so that bytes sort as numbers do
//!        | string, binary: the bytes as they are if the column is the last one; else with each
//!          00 written as 00 FF, and 00 00 behind
//! ```
//!
//! The encoding is **injective** (no two keys have the same bytes, whatever their columns hold)
//! and **order-preserving** (bytes sort as the columns do, one after the other). Floating point
//! numbers can't be keys: they have several spellings of one value.

use serde_json::Value;
use tidegate_api::manifest::{FieldType, ScalarType, Schema};
use xxhash_rust::xxh3::xxh3_64;

use crate::value::{Malformed, Scalar, json, text};

/// The longest encoded key, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;

/// An encoded key, see the [module's description](self).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyBytes(Vec<u8>);

impl KeyBytes {
    /// The encoded bytes.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The xxh3-64 hash of the encoded key, which decides its partition and its place in an index.
    #[must_use]
    #[inline]
    pub fn hash(&self) -> u64 {
        hash(&self.0)
    }
}

#[inline]
pub(crate) fn hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// The partition of a key with this hash: equal ranges of hashes, in order.
#[must_use]
pub fn partition_of(hash: u64, partitions: u32) -> u32 {
    ((u128::from(hash) * u128::from(partitions)) >> 64) as u32
}

/// Why columns can't be a key, or a text is no key of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No key column was named.
    #[error("no key column is named; a dataset needs at least one")]
    NoColumns,
    /// A column is named twice.
    #[error("key column `{column}` is named twice")]
    RepeatedColumn {
        /// The column.
        column: String,
    },
    /// A column is not there.
    #[error("there is no key column `{column}`; the columns are {}", available.join(", "))]
    MissingColumn {
        /// The column that was asked for.
        column: String,
        /// The columns there are.
        available: Vec<String>,
    },
    /// A column's type can't be a key.
    #[error(
        "column `{column}` is of type {data_type} and can't be a key; keys are boolean, int, \
         long, string, binary, date or timestamp"
    )]
    UnsupportedType {
        /// The column.
        column: String,
        /// Its type.
        data_type: FieldType,
    },
    /// A text or a JSON value is no key.
    #[error("`{given}` is no key: {why}")]
    NotAKey {
        /// What was given, cut to a sensible length.
        given: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A key column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: ScalarType,
    /// Its position among the schema's fields.
    pub position: usize,
}

/// Encodes and decodes the keys of one schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyCodec {
    columns: Vec<KeyColumn>,
    field_count: usize,
}

/// A decoded key column: as [`Scalar`], but with text and binary of its own, for an encoded
/// string may have to be changed back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum KeyScalar<'a> {
    Borrowed(Scalar<'a>),
    String(String),
    Binary(Vec<u8>),
}

impl KeyScalar<'_> {
    pub(crate) fn as_scalar(&self) -> Scalar<'_> {
        match self {
            KeyScalar::Borrowed(scalar) => *scalar,
            KeyScalar::String(text) => Scalar::String(text),
            KeyScalar::Binary(bytes) => Scalar::Binary(bytes),
        }
    }
}

impl KeyCodec {
    /// The codec for these key columns of this schema.
    ///
    /// # Errors
    /// Where the columns are no key of the schema, see [`KeyError`].
    pub fn new(schema: &Schema, key_columns: &[String]) -> Result<Self, KeyError> {
        if key_columns.is_empty() {
            return Err(KeyError::NoColumns);
        }
        let mut columns: Vec<KeyColumn> = Vec::with_capacity(key_columns.len());
        for name in key_columns {
            if columns.iter().any(|column| column.name == *name) {
                return Err(KeyError::RepeatedColumn { column: name.clone() });
            }
            let position = schema.position(name).ok_or_else(|| KeyError::MissingColumn {
                column: name.clone(),
                available: schema.fields.iter().map(|f| f.name.clone()).collect(),
            })?;
            let data_type = match schema.fields[position].data_type {
                FieldType::Scalar(scalar) if !matches!(scalar, ScalarType::Float | ScalarType::Double) => scalar,
                data_type => {
                    return Err(KeyError::UnsupportedType { column: name.clone(), data_type });
                }
            };
            columns.push(KeyColumn { name: name.clone(), data_type, position });
        }
        Ok(Self { columns, field_count: schema.fields.len() })
    }

    /// The key columns, in key order.
    #[must_use]
    pub fn columns(&self) -> &[KeyColumn] {
        &self.columns
    }

    pub(crate) fn is_key_position(&self, position: usize) -> bool {
        self.columns.iter().any(|column| column.position == position)
    }

    pub(crate) fn value_field_count(&self) -> usize {
        self.field_count - self.columns.len()
    }

    /// Appends one column; they must come in key order. The scalar must be of the column's type.
    pub(crate) fn encode_column(&self, column: usize, scalar: Scalar<'_>, out: &mut Vec<u8>) {
        let last = column + 1 == self.columns.len();
        match scalar {
            Scalar::Boolean(value) => out.push(u8::from(value)),
            Scalar::Int(value) | Scalar::Date(value) => {
                out.extend((value as u32 ^ 1 << 31).to_be_bytes());
            }
            Scalar::Long(value) | Scalar::Timestamp(value) => {
                out.extend((value as u64 ^ 1 << 63).to_be_bytes());
            }
            Scalar::String(text) => encode_text(text.as_bytes(), last, out),
            Scalar::Binary(bytes) => encode_text(bytes, last, out),
            // `new` lets no such column in.
            Scalar::Float(_) | Scalar::Double(_) => {}
        }
    }

    /// Decodes all columns.
    pub(crate) fn decode<'a>(&self, key: &'a [u8]) -> Result<Vec<KeyScalar<'a>>, Malformed> {
        let mut rest = key;
        let mut scalars = Vec::with_capacity(self.columns.len());
        for (index, column) in self.columns.iter().enumerate() {
            let last = index + 1 == self.columns.len();
            scalars.push(decode_column(&mut rest, column.data_type, last)?);
        }
        if rest.is_empty() { Ok(scalars) } else { Err(Malformed) }
    }

    /// Decodes one column.
    pub(crate) fn decode_one<'a>(&self, key: &'a [u8], order: usize) -> Result<KeyScalar<'a>, Malformed> {
        let mut rest = key;
        for (index, column) in self.columns.iter().enumerate() {
            let last = index + 1 == self.columns.len();
            let scalar = decode_column(&mut rest, column.data_type, last)?;
            if index == order {
                return Ok(scalar);
            }
        }
        Err(Malformed)
    }

    /// Reads a key as people write it: the text of a single column just as it is (`EDDB`, `42`);
    /// several columns as a JSON array in key order (`["DE", 42]`) or a JSON object.
    ///
    /// # Errors
    /// [`KeyError::NotAKey`], saying what is expected.
    pub fn parse_text(&self, given: &str) -> Result<KeyBytes, KeyError> {
        if let [column] = self.columns.as_slice() {
            let mut out = Vec::new();
            self.append_text(0, column, given, &mut out)?;
            return finish(out, given);
        }
        let parsed: Value = serde_json::from_str(given).map_err(|_| KeyError::NotAKey {
            given: shorten(given),
            why: format!(
                "the key has the columns {}, so write a JSON array of their values, in this order",
                self.column_names()
            ),
        })?;
        self.parse_json(&parsed)
    }

    /// Reads a key from JSON: the value of a single column, an array in key order, or an object
    /// with exactly the key columns.
    ///
    /// # Errors
    /// [`KeyError::NotAKey`], saying what is expected.
    pub fn parse_json(&self, given: &Value) -> Result<KeyBytes, KeyError> {
        let refuse = |why: String| KeyError::NotAKey { given: shorten(&given.to_string()), why };
        let values: Vec<&Value> = match given {
            Value::Array(values) => values.iter().collect(),
            Value::Object(object) => {
                let mut values = Vec::with_capacity(self.columns.len());
                for column in &self.columns {
                    let value = object
                        .get(&column.name)
                        .ok_or_else(|| refuse(format!("key column `{}` is missing", column.name)))?;
                    values.push(value);
                }
                if let Some(other) = object.keys().find(|name| !self.columns.iter().any(|column| column.name == **name))
                {
                    return Err(refuse(format!("`{other}` is no key column")));
                }
                values
            }
            single => vec![single],
        };
        if values.len() != self.columns.len() {
            return Err(refuse(format!(
                "it has {} values and the key has {} columns: {}",
                values.len(),
                self.columns.len(),
                self.column_names()
            )));
        }
        let mut out = Vec::new();
        for (index, (column, value)) in self.columns.iter().zip(values).enumerate() {
            let text_form = match (value, column.data_type) {
                (Value::String(text), _) => text.clone(),
                (Value::Number(number), data_type) if data_type != ScalarType::String => number.to_string(),
                (Value::Bool(value), ScalarType::Boolean) => value.to_string(),
                _ => {
                    return Err(refuse(format!("column `{}` is of type {}", column.name, column.data_type)));
                }
            };
            self.append_text(index, column, &text_form, &mut out)?;
        }
        finish(out, &given.to_string())
    }

    fn append_text(&self, index: usize, column: &KeyColumn, given: &str, out: &mut Vec<u8>) -> Result<(), KeyError> {
        let binary;
        let scalar = if column.data_type == ScalarType::Binary {
            binary = text::decode_base64(given);
            binary.as_deref().map(Scalar::Binary)
        } else {
            text::parse(column.data_type, given)
        };
        let scalar = scalar.ok_or_else(|| KeyError::NotAKey {
            given: shorten(given),
            why: format!("column `{}` is of type {}", column.name, column.data_type),
        })?;
        self.encode_column(index, scalar, out);
        Ok(())
    }

    /// Writes a key as [`KeyCodec::parse_text`] reads it.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are no key of this codec.
    pub fn to_text(&self, key: &[u8]) -> Result<String, Malformed> {
        let scalars = self.decode(key)?;
        if let ([column], [scalar]) = (self.columns.as_slice(), scalars.as_slice()) {
            return Ok(text::format(scalar.as_scalar(), column.data_type));
        }
        let values = self
            .columns
            .iter()
            .zip(&scalars)
            .map(|(column, scalar)| json::from_scalar(scalar.as_scalar(), column.data_type))
            .collect();
        Ok(Value::Array(values).to_string())
    }

    fn column_names(&self) -> String {
        let names: Vec<_> = self.columns.iter().map(|c| c.name.as_str()).collect();
        names.join(", ")
    }
}

fn finish(out: Vec<u8>, given: &str) -> Result<KeyBytes, KeyError> {
    if out.len() > KEY_BYTES_MAX {
        return Err(KeyError::NotAKey {
            given: shorten(given),
            why: format!("it takes {} bytes, the limit is {KEY_BYTES_MAX}", out.len()),
        });
    }
    Ok(KeyBytes(out))
}

/// At most 80 characters of a text, for messages.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn encode_text(bytes: &[u8], last: bool, out: &mut Vec<u8>) {
    if last {
        out.extend_from_slice(bytes);
        return;
    }
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out.extend([0, 0]);
}

fn decode_column<'a>(rest: &mut &'a [u8], data_type: ScalarType, last: bool) -> Result<KeyScalar<'a>, Malformed> {
    fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
        let (head, tail) = rest.split_first_chunk::<N>().ok_or(Malformed)?;
        *rest = tail;
        Ok(*head)
    }
    Ok(KeyScalar::Borrowed(match data_type {
        ScalarType::Boolean => Scalar::Boolean(take::<1>(rest)? != [0]),
        ScalarType::Int => Scalar::Int((u32::from_be_bytes(take(rest)?) ^ 1 << 31) as i32),
        ScalarType::Date => Scalar::Date((u32::from_be_bytes(take(rest)?) ^ 1 << 31) as i32),
        ScalarType::Long => Scalar::Long((u64::from_be_bytes(take(rest)?) ^ 1 << 63) as i64),
        ScalarType::Timestamp { .. } => Scalar::Timestamp((u64::from_be_bytes(take(rest)?) ^ 1 << 63) as i64),
        ScalarType::Float | ScalarType::Double => return Err(Malformed),
        ScalarType::String | ScalarType::Binary => {
            let is_text = data_type == ScalarType::String;
            if last {
                let bytes = std::mem::take(rest);
                return Ok(KeyScalar::Borrowed(if is_text {
                    Scalar::String(std::str::from_utf8(bytes).map_err(|_| Malformed)?)
                } else {
                    Scalar::Binary(bytes)
                }));
            }
            let bytes = decode_escaped(rest)?;
            return Ok(if is_text {
                KeyScalar::String(String::from_utf8(bytes).map_err(|_| Malformed)?)
            } else {
                KeyScalar::Binary(bytes)
            });
        }
    }))
}

fn decode_escaped(rest: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Vec::new();
    loop {
        let zero = rest.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
        bytes.extend_from_slice(&rest[..zero]);
        let mark = *rest.get(zero + 1).ok_or(Malformed)?;
        *rest = &rest[zero + 2..];
        match mark {
            0 => return Ok(bytes),
            0xff => bytes.push(0),
            _ => return Err(Malformed),
        }
    }
}
