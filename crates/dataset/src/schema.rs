//! Schemas: how Arrow's types map to fields, and which changes between two schemas are safe.

use std::sync::Arc;

use arrow_schema::{DataType, Field as ArrowField, Schema as ArrowSchema, TimeUnit as ArrowUnit};
use tidegate_api::manifest::{Field, FieldType, ScalarType, Schema, TimeUnit};

/// The field type of a column, or `None` if no field can be of that type. Types that only differ
/// in how they are laid out in memory, and integers that fit into a wider one, map to the same.
pub(crate) fn from_arrow(data_type: &DataType) -> Option<FieldType> {
    match data_type {
        DataType::List(element) | DataType::LargeList(element) | DataType::FixedSizeList(element, _) => {
            scalar_from_arrow(element.data_type()).map(FieldType::List)
        }
        scalar => scalar_from_arrow(scalar).map(FieldType::Scalar),
    }
}

fn scalar_from_arrow(data_type: &DataType) -> Option<ScalarType> {
    Some(match data_type {
        DataType::Boolean => ScalarType::Boolean,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => ScalarType::Int,
        DataType::Int64 | DataType::UInt32 => ScalarType::Long,
        DataType::Float32 => ScalarType::Float,
        DataType::Float64 => ScalarType::Double,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => ScalarType::String,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            ScalarType::Binary
        }
        DataType::Dictionary(_, values) => scalar_from_arrow(values)?,
        DataType::Date32 => ScalarType::Date,
        DataType::Timestamp(unit, zone) => ScalarType::Timestamp {
            unit: match unit {
                // Parquet, which artifacts are written in, has no seconds.
                ArrowUnit::Second | ArrowUnit::Millisecond => TimeUnit::Millisecond,
                ArrowUnit::Microsecond => TimeUnit::Microsecond,
                ArrowUnit::Nanosecond => TimeUnit::Nanosecond,
            },
            utc: zone.is_some(),
        },
        _ => return None,
    })
}

/// The Arrow type that a field is read and written as.
pub(crate) fn to_arrow(data_type: FieldType) -> DataType {
    match data_type {
        FieldType::Scalar(scalar) => scalar_to_arrow(scalar),
        FieldType::List(element) => {
            DataType::List(Arc::new(ArrowField::new("element", scalar_to_arrow(element), true)))
        }
    }
}

fn scalar_to_arrow(data_type: ScalarType) -> DataType {
    match data_type {
        ScalarType::Boolean => DataType::Boolean,
        ScalarType::Int => DataType::Int32,
        ScalarType::Long => DataType::Int64,
        ScalarType::Float => DataType::Float32,
        ScalarType::Double => DataType::Float64,
        ScalarType::String => DataType::Utf8,
        ScalarType::Binary => DataType::Binary,
        ScalarType::Date => DataType::Date32,
        ScalarType::Timestamp { unit, utc } => DataType::Timestamp(
            match unit {
                TimeUnit::Millisecond => ArrowUnit::Millisecond,
                TimeUnit::Microsecond => ArrowUnit::Microsecond,
                TimeUnit::Nanosecond => ArrowUnit::Nanosecond,
            },
            utc.then(|| "UTC".into()),
        ),
    }
}

/// The Arrow schema that parts are written with; key columns are never null.
pub(crate) fn arrow_schema(schema: &Schema, keys: &crate::key::KeyCodec) -> ArrowSchema {
    let fields: Vec<_> = schema
        .fields
        .iter()
        .enumerate()
        .map(|(position, field)| {
            let nullable = field.nullable && !keys.is_key_position(position);
            ArrowField::new(&field.name, to_arrow(field.data_type), nullable)
        })
        .collect();
    ArrowSchema::new(fields)
}

/// A change between two schemas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A field that may be null is new. The only change that is safe by itself.
    NullableAdded {
        /// The new field.
        field: Field,
    },
    /// A field that may not be null is new: earlier versions can't have it.
    RequiredAdded {
        /// The new field.
        field: Field,
    },
    /// A field is gone: whoever reads it would miss it.
    Removed {
        /// The field as it was.
        field: Field,
    },
    /// A field has another type.
    TypeChanged {
        /// The field's name.
        name: String,
        /// Its type before.
        before: FieldType,
        /// Its type now.
        after: FieldType,
    },
    /// A field may be null now and might not before.
    BecameNullable {
        /// The field's name.
        name: String,
    },
    /// A field may not be null any more.
    BecameRequired {
        /// The field's name.
        name: String,
    },
}

impl Difference {
    /// Whether readers of the earlier schema are safe with the later one, and the other way
    /// round, so that the change needs no one's leave.
    #[must_use]
    pub fn is_compatible(&self) -> bool {
        matches!(self, Difference::NullableAdded { .. })
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Difference::NullableAdded { field } => {
                write!(f, "field `{}` ({}) is new", field.name, field.data_type)
            }
            Difference::RequiredAdded { field } => {
                write!(f, "field `{}` ({}) is new and may not be null", field.name, field.data_type)
            }
            Difference::Removed { field } => {
                write!(f, "field `{}` ({}) is gone", field.name, field.data_type)
            }
            Difference::TypeChanged { name, before, after } => write!(f, "field `{name}` was {before} and is {after}"),
            Difference::BecameNullable { name } => {
                write!(f, "field `{name}` might not be null and now may")
            }
            Difference::BecameRequired { name } => {
                write!(f, "field `{name}` might be null and now may not")
            }
        }
    }
}

/// All changes from one schema to the next, in the order of the earlier one's fields, then new
/// ones in theirs. Two schemas without difference may still order their fields differently.
#[must_use]
pub fn differences(before: &Schema, after: &Schema) -> Vec<Difference> {
    let mut found = Vec::new();
    for field in &before.fields {
        let Some(now) = after.field(&field.name) else {
            found.push(Difference::Removed { field: field.clone() });
            continue;
        };
        let name = field.name.clone();
        if now.data_type != field.data_type {
            found.push(Difference::TypeChanged { name, before: field.data_type, after: now.data_type });
        } else if now.nullable && !field.nullable {
            found.push(Difference::BecameNullable { name });
        } else if !now.nullable && field.nullable {
            found.push(Difference::BecameRequired { name });
        }
    }
    for field in &after.fields {
        if before.field(&field.name).is_none() {
            let field = field.clone();
            found.push(if field.nullable {
                Difference::NullableAdded { field }
            } else {
                Difference::RequiredAdded { field }
            });
        }
    }
    found
}

/// The changes from one schema to the next that are not safe; none if it is compatible: nullable
/// fields may be added, and no field changes its type or disappears.
#[must_use]
pub fn incompatibilities(before: &Schema, after: &Schema) -> Vec<Difference> {
    let mut found = differences(before, after);
    found.retain(|difference| !difference.is_compatible());
    found
}

/// Why a schema given by a user can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// It has no field, or too many.
    #[error("a schema has 1 to {limit} fields, this one has {fields}")]
    FieldCount {
        /// How many there are.
        fields: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Two fields have one name, or one has none.
    #[error("field name `{name}` is empty or used twice")]
    FieldName {
        /// The name.
        name: String,
    },
    /// The key columns don't fit it.
    #[error(transparent)]
    Key(#[from] crate::key::KeyError),
}

/// Checks a schema that was not inferred: names, number of fields, key columns.
///
/// # Errors
/// Says what is wrong with it.
pub fn validate(schema: &Schema, key_columns: &[String]) -> Result<(), SchemaError> {
    let limit = crate::input::csv::FIELDS_MAX;
    if schema.fields.is_empty() || schema.fields.len() > limit {
        return Err(SchemaError::FieldCount { fields: schema.fields.len(), limit });
    }
    for (position, field) in schema.fields.iter().enumerate() {
        if field.name.is_empty() || schema.position(&field.name) != Some(position) {
            return Err(SchemaError::FieldName { name: field.name.clone() });
        }
    }
    crate::key::KeyCodec::new(schema, key_columns)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(fields: &[(&str, FieldType, bool)]) -> Schema {
        Schema {
            fields: fields
                .iter()
                .map(|(name, data_type, nullable)| Field {
                    name: (*name).to_owned(),
                    data_type: *data_type,
                    nullable: *nullable,
                })
                .collect(),
        }
    }

    #[test]
    fn d5_each_change_is_named_with_field_and_types() {
        let before = schema(&[("k", FieldType::STRING, false), ("a", FieldType::STRING, true)]);
        let check = |after: &[(&str, FieldType, bool)], expected: &[&str], compatible: bool| {
            let after = schema(after);
            let found: Vec<_> = differences(&before, &after).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected);
            assert_eq!(incompatibilities(&before, &after).is_empty(), compatible);
        };
        let key = ("k", FieldType::STRING, false);
        check(&[key, ("a", FieldType::STRING, true)], &[], true);
        check(&[key, ("a", FieldType::LONG, true)], &["field `a` was string and is long"], false);
        check(&[key], &["field `a` (string) is gone"], false);
        let a = ("a", FieldType::STRING, true);
        check(&[key, a, ("b", FieldType::LONG, false)], &["field `b` (long) is new and may not be null"], false);
        check(&[key, a, ("b", FieldType::List(ScalarType::Float), true)], &["field `b` (list<float>) is new"], true);
        check(&[key, ("a", FieldType::STRING, false)], &["field `a` might be null and now may not"], false);
    }

    #[test]
    fn a_schema_that_can_not_be_is_refused() {
        let key = [String::from("k")];
        assert!(validate(&schema(&[("k", FieldType::STRING, false)]), &key).is_ok());
        for (bad, expected) in [
            (schema(&[]), "has 0"),
            (schema(&[("k", FieldType::LONG, false), ("k", FieldType::LONG, true)]), "`k` is empty or used twice"),
            (schema(&[("a", FieldType::LONG, true)]), "the columns are a"),
            (schema(&[("k", FieldType::DOUBLE, true)]), "can't be a key"),
        ] {
            let error = validate(&bad, &key).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
