//! Values as JSON: what look-ups answer and manifests hold.
//!
//! Numbers are JSON numbers; NaN and the infinities, which JSON has no number for, are the
//! strings `NaN`, `Infinity` and `-Infinity`; binary is Base64; dates and times are RFC 3339.
//!
//! There is one implementation, by [`Serialize`]: a look-up's text is written straight from the record's bytes, and whatever
//! needs a [`Value`] has it made from the same.

use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use tidegate_api::manifest::{FieldType, ScalarType, Schema};

use super::{Cell, Malformed, Scalar, ValueReader, text};
use crate::key::KeyCodec;

/// A single value.
struct ScalarJson<'a>(Scalar<'a>, ScalarType);

impl Serialize for ScalarJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(scalar, data_type) = *self;
        match scalar {
            Scalar::Boolean(value) => serializer.serialize_bool(value),
            Scalar::Int(value) => serializer.serialize_i32(value),
            Scalar::Long(value) => serializer.serialize_i64(value),
            // By way of its own shortest text: 0.1 stays 0.1 and does not become 0.10000000149.
            Scalar::Float(value) if value.is_finite() => {
                serialize_f64(value.to_string().parse().unwrap_or_else(|_| f64::from(value)), serializer)
            }
            Scalar::Float(value) => serialize_f64(f64::from(value), serializer),
            Scalar::Double(value) => serialize_f64(value, serializer),
            Scalar::String(text) => serializer.serialize_str(text),
            Scalar::Binary(bytes) => serializer.serialize_str(&text::encode_base64(bytes)),
            Scalar::Date(days) => match text::format_date(days) {
                Some(text) => serializer.serialize_str(&text),
                None => serializer.serialize_i32(days),
            },
            Scalar::Timestamp(value) => {
                let text = match data_type {
                    ScalarType::Timestamp { unit, utc } => text::format_timestamp(value, unit, utc),
                    _ => None,
                };
                match text {
                    Some(text) => serializer.serialize_str(&text),
                    None => serializer.serialize_i64(value),
                }
            }
        }
    }
}

fn serialize_f64<S: Serializer>(value: f64, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        finite if finite.is_finite() => serializer.serialize_f64(finite),
        nan if nan.is_nan() => serializer.serialize_str("NaN"),
        positive if positive > 0.0 => serializer.serialize_str("Infinity"),
        _ => serializer.serialize_str("-Infinity"),
    }
}

/// A field.
struct CellJson<'a>(Cell<'a>, FieldType);

impl Serialize for CellJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0, self.1) {
            (Cell::Null, _) => serializer.serialize_unit(),
            (Cell::Scalar(scalar), FieldType::Scalar(data_type) | FieldType::List(data_type)) => {
                ScalarJson(scalar, data_type).serialize(serializer)
            }
            (Cell::List(list), _) => serializer
                .collect_seq(list.elements().map(|element| element.map(|scalar| ScalarJson(scalar, list.element)))),
        }
    }
}

/// All fields of a record as an object: key columns first, then the others in the schema's order.
struct RecordJson<'a> {
    schema: &'a Schema,
    keys: &'a KeyCodec,
    key: &'a [u8],
    value: &'a [u8],
}

impl Serialize for RecordJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::{Error, SerializeMap};

        let Self { schema, keys, key, value } = *self;
        let mut object = serializer.serialize_map(Some(schema.fields.len()))?;
        let scalars = keys.decode(key).map_err(S::Error::custom)?;
        for (column, scalar) in keys.columns().iter().zip(&scalars) {
            object.serialize_entry(&column.name, &ScalarJson(scalar.as_scalar(), column.data_type))?;
        }
        let mut reader = ValueReader::new(value, keys.value_field_count());
        for (position, field) in schema.fields.iter().enumerate() {
            if !keys.is_key_position(position) {
                let cell = reader.next(field.data_type).map_err(S::Error::custom)?;
                object.serialize_entry(&field.name, &CellJson(cell, field.data_type))?;
            }
        }
        object.end()
    }
}

/// A single value as JSON.
pub(crate) fn from_scalar(scalar: Scalar<'_>, data_type: ScalarType) -> Value {
    serde_json::to_value(ScalarJson(scalar, data_type)).expect("a scalar is always JSON: it has no map, and no failure")
}

/// A field as JSON.
pub(crate) fn from_cell(cell: Cell<'_>, data_type: FieldType) -> Value {
    serde_json::to_value(CellJson(cell, data_type)).expect("a field is always JSON: it has no map, and no failure")
}

/// All fields of a record as a JSON object, key columns included.
pub(crate) fn from_record(schema: &Schema, keys: &KeyCodec, key: &[u8], value: &[u8]) -> Result<Value, Malformed> {
    // The one failure that serializing it has.
    serde_json::to_value(RecordJson { schema, keys, key, value }).map_err(|_| Malformed)
}

/// As [`from_record`], as the text of the object.
pub(crate) fn text_of_record(
    schema: &Schema,
    keys: &KeyCodec,
    key: &[u8],
    value: &[u8],
) -> Result<Box<RawValue>, Malformed> {
    serde_json::value::to_raw_value(&RecordJson { schema, keys, key, value }).map_err(|_| Malformed)
}
