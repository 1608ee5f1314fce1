//! Values as JSON: what look-ups answer and manifests hold.
//!
//! Numbers are JSON numbers; NaN and the infinities, which JSON has no number for, are the
//! strings `NaN`, `Infinity` and `-Infinity`; binary is Base64; dates and times are RFC 3339.

use serde_json::{Map, Value};
use tidegate_api::manifest::{FieldType, ScalarType, Schema};

use super::{Cell, Malformed, Scalar, ValueReader, text};
use crate::key::KeyCodec;

fn from_f64(value: f64) -> Value {
    match serde_json::Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None if value.is_nan() => "NaN".into(),
        None if value > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}

/// A single value as JSON.
pub(crate) fn from_scalar(scalar: Scalar<'_>, data_type: ScalarType) -> Value {
    match scalar {
        Scalar::Boolean(value) => value.into(),
        Scalar::Int(value) => value.into(),
        Scalar::Long(value) => value.into(),
        // By way of its own shortest text: 0.1 stays 0.1 and does not become 0.10000000149.
        Scalar::Float(value) if value.is_finite() => {
            from_f64(value.to_string().parse().unwrap_or_else(|_| f64::from(value)))
        }
        Scalar::Float(value) => from_f64(f64::from(value)),
        Scalar::Double(value) => from_f64(value),
        Scalar::String(text) => text.into(),
        Scalar::Binary(bytes) => text::encode_base64(bytes).into(),
        Scalar::Date(days) => text::format_date(days).map_or_else(|| days.into(), Value::from),
        Scalar::Timestamp(value) => match data_type {
            ScalarType::Timestamp { unit, utc } => text::format_timestamp(value, unit, utc),
            _ => None,
        }
        .map_or_else(|| value.into(), Value::from),
    }
}

/// A field as JSON.
pub(crate) fn from_cell(cell: Cell<'_>, data_type: FieldType) -> Value {
    match (cell, data_type) {
        (Cell::Null, _) => Value::Null,
        (Cell::Scalar(scalar), FieldType::Scalar(data_type) | FieldType::List(data_type)) => {
            from_scalar(scalar, data_type)
        }
        (Cell::List(list), _) => list
            .elements()
            .map(|element| element.map_or(Value::Null, |scalar| from_scalar(scalar, list.element)))
            .collect::<Vec<_>>()
            .into(),
    }
}

/// All fields of a record as a JSON object, key columns included.
pub(crate) fn from_record(schema: &Schema, keys: &KeyCodec, key: &[u8], value: &[u8]) -> Result<Value, Malformed> {
    let mut object = Map::new();
    for (column, scalar) in keys.columns().iter().zip(keys.decode(key)?) {
        object.insert(column.name.clone(), from_scalar(scalar.as_scalar(), column.data_type));
    }
    let mut reader = ValueReader::new(value, keys.value_field_count());
    for (position, field) in schema.fields.iter().enumerate() {
        if !keys.is_key_position(position) {
            let cell = reader.next(field.data_type)?;
            object.insert(field.name.clone(), from_cell(cell, field.data_type));
        }
    }
    Ok(Value::Object(object))
}
