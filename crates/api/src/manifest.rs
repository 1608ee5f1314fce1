//! The manifest of an artifact: what a version consists of, and what is known about its data.
//!
//! A manifest is written last, after every part that it names. Whoever reads one can therefore
//! rely on the parts having existed. Two digests tie things together:
//!
//! - [`Manifest::artifact_id`] is a digest of the schema, the key columns and the parts, so equal
//!   data has an equal id, wherever and whenever it was built;
//! - the manifest's own SHA-256 (kept by the control plane beside the id, and part of the file's
//!   name in an artifact store) covers everything else, statistics included.
//!
//! Nothing here does I/O. The code that makes and checks manifests is `tidegate-dataset`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The manifest format that this release writes, see [`Manifest::format`].
pub const MANIFEST_FORMAT: u32 = 1;

/// The hash function over encoded keys that this release writes, see [`Manifest::hash_function`].
pub const HASH_FUNCTION: &str = "xxh3-64";

/// Everything about an artifact but its data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Manifest {
    /// Format of manifest and parts. A reader refuses formats that it does not know.
    pub format: u32,
    /// Identity of the data: SHA-256 in lower-case hexadecimal over schema, key columns,
    /// partition count, and the digests of the parts in order.
    pub artifact_id: String,
    /// Fields of a record, key columns included, in the order of the parts' columns.
    pub schema: Schema,
    /// Names of the columns that make up the key, in key order.
    pub key_columns: Vec<String>,
    /// Hash over the encoded key that decides the partition: partition = (hash × partition
    /// count) ÷ 2⁶⁴, so that a partition is a range of hashes. Always [`HASH_FUNCTION`] so far.
    pub hash_function: String,
    /// How many partitions, and so parts, there are.
    pub partition_count: u32,
    /// One Parquet file per partition, sorted by key, in partition order.
    pub parts: Vec<Part>,
    /// Records in all parts together.
    pub record_count: u64,
    /// Input rows that repeated a key with the very same value, and were dropped.
    pub duplicate_count: u64,
    /// Digest of the bytes of the input files, whatever their names and order.
    pub input_digest: String,
    /// One entry per field of the schema, in schema order.
    pub statistics: Vec<FieldStatistics>,
    /// The records with the smallest key hashes.
    pub sample: Sample,
    /// What became of the keys that the store names as golden, in the order they were given.
    pub golden: Vec<GoldenKey>,
    /// Digest over all records that does not depend on their order. A copy in any engine that
    /// can list its records can be checked against it.
    pub content_digest: String,
    /// Size of all parts together, in bytes.
    pub bytes: u64,
    /// Size of all values and keys before encoding and compression, in bytes: text and binary
    /// count their length, numbers their width, lists their elements, null nothing.
    pub data_bytes: u64,
}

impl Manifest {
    /// The statistics of one field, if the schema has it.
    #[must_use]
    pub fn field_statistics(&self, name: &str) -> Option<&FieldStatistics> {
        self.statistics.iter().find(|field| field.name == name)
    }
}

/// One file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// File name within the artifact's folder: ASCII letters, digits, `-`, `_` and `.` only.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Records in this part.
    pub rows: u64,
    /// SHA-256 of the file in lower-case hexadecimal.
    pub sha256: String,
}

/// The fields of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Schema {
    /// Fields in order. Names are unique.
    pub fields: Vec<Field>,
}

impl Schema {
    /// The field with this name, if there is one.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The position of the field with this name, if there is one.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }
}

/// A named and typed field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Field {
    /// The column's name.
    pub name: String,
    /// The type of its values, written as text, for example `long` or `list<float>`.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "list<float>")]
    pub data_type: FieldType,
    /// Whether a value may be null. Key columns never are.
    #[serde(default = "nullable_by_default")]
    pub nullable: bool,
}

fn nullable_by_default() -> bool {
    true
}

impl Field {
    /// A field that may be null.
    #[must_use]
    pub fn nullable(name: impl Into<String>, data_type: FieldType) -> Self {
        Self { name: name.into(), data_type, nullable: true }
    }

    /// A field that may not be null.
    #[must_use]
    pub fn required(name: impl Into<String>, data_type: FieldType) -> Self {
        Self { name: name.into(), data_type, nullable: false }
    }
}

/// The type of a field. Its text form (see [`fmt::Display`]) is what JSON and messages use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum FieldType {
    /// A single value.
    Scalar(ScalarType),
    /// A list of values of one type, for example a vector: `list<float>`.
    List(ScalarType),
}

impl FieldType {
    /// `boolean`.
    pub const BOOLEAN: Self = Self::Scalar(ScalarType::Boolean);
    /// `int`.
    pub const INT: Self = Self::Scalar(ScalarType::Int);
    /// `long`.
    pub const LONG: Self = Self::Scalar(ScalarType::Long);
    /// `float`.
    pub const FLOAT: Self = Self::Scalar(ScalarType::Float);
    /// `double`.
    pub const DOUBLE: Self = Self::Scalar(ScalarType::Double);
    /// `string`.
    pub const STRING: Self = Self::Scalar(ScalarType::String);
    /// `binary`.
    pub const BINARY: Self = Self::Scalar(ScalarType::Binary);
    /// `date`.
    pub const DATE: Self = Self::Scalar(ScalarType::Date);

    /// Whether values are vectors of floating point numbers, for which norms are known.
    #[must_use]
    pub fn is_vector(self) -> bool {
        matches!(self, Self::List(ScalarType::Float | ScalarType::Double))
    }
}

/// The type of a single value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScalarType {
    /// `boolean`.
    Boolean,
    /// `int`: 32 bits, signed.
    Int,
    /// `long`: 64 bits, signed.
    Long,
    /// `float`: 32 bits.
    Float,
    /// `double`: 64 bits.
    Double,
    /// `string`: UTF-8 text.
    String,
    /// `binary`: bytes.
    Binary,
    /// `date`: a day without time or zone.
    Date,
    /// `timestamp[ms]`, `timestamp[us, UTC]` and so on.
    Timestamp {
        /// What one step of the stored number means.
        unit: TimeUnit,
        /// Whether it is an instant (UTC) or a reading of some clock on a wall.
        utc: bool,
    },
}

/// The resolution of a timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeUnit {
    /// `ms`.
    Millisecond,
    /// `us`.
    Microsecond,
    /// `ns`.
    Nanosecond,
}

const UNITS: [(TimeUnit, &str); 3] =
    [(TimeUnit::Millisecond, "ms"), (TimeUnit::Microsecond, "us"), (TimeUnit::Nanosecond, "ns")];

impl fmt::Display for ScalarType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("boolean"),
            Self::Int => f.write_str("int"),
            Self::Long => f.write_str("long"),
            Self::Float => f.write_str("float"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Binary => f.write_str("binary"),
            Self::Date => f.write_str("date"),
            Self::Timestamp { unit, utc } => {
                let name = UNITS.iter().find(|(known, _)| known == unit).map_or("?", |(_, name)| name);
                let zone = if *utc { ", UTC" } else { "" };
                write!(f, "timestamp[{name}{zone}]")
            }
        }
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scalar(scalar) => scalar.fmt(f),
            Self::List(scalar) => write!(f, "list<{scalar}>"),
        }
    }
}

/// A text that names no field type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no field type; there are boolean, int, long, float, double, string, binary, date, \
     timestamp[ms|us|ns] with an optional `, UTC`, and list<…> of these"
)]
pub struct UnknownFieldType(pub String);

impl FromStr for ScalarType {
    type Err = UnknownFieldType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownFieldType(text.to_owned());
        Ok(match text {
            "boolean" => Self::Boolean,
            "int" => Self::Int,
            "long" => Self::Long,
            "float" => Self::Float,
            "double" => Self::Double,
            "string" => Self::String,
            "binary" => Self::Binary,
            "date" => Self::Date,
            _ => {
                let inner =
                    text.strip_prefix("timestamp[").and_then(|rest| rest.strip_suffix(']')).ok_or_else(unknown)?;
                let (name, utc) = match inner.strip_suffix("UTC") {
                    Some(rest) => (rest.trim_end().strip_suffix(',').ok_or_else(unknown)?, true),
                    None => (inner, false),
                };
                let unit = UNITS.iter().find(|(_, known)| *known == name).map(|(unit, _)| *unit).ok_or_else(unknown)?;
                Self::Timestamp { unit, utc }
            }
        })
    }
}

impl FromStr for FieldType {
    type Err = UnknownFieldType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = text.strip_prefix("list<").and_then(|rest| rest.strip_suffix('>'));
        match inner {
            Some(inner) => inner.parse().map(Self::List).map_err(|_| UnknownFieldType(text.to_owned())),
            None => text.parse().map(Self::Scalar),
        }
    }
}

impl From<FieldType> for String {
    fn from(field_type: FieldType) -> Self {
        field_type.to_string()
    }
}

impl TryFrom<String> for FieldType {
    type Error = UnknownFieldType;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// What is known about the values of one field over all records of an artifact.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FieldStatistics {
    /// The field's name.
    pub name: String,
    /// Records with a value that is not null.
    pub count: u64,
    /// Records in which it is null. `count + nulls` is the record count.
    pub nulls: u64,
    /// Smallest value (text and binary: its first 256 bytes; NaN does not take part). Absent
    /// where there is no value, and for lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<serde_json::Value>,
    /// Greatest value, as `min`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<serde_json::Value>,
    /// Mean of all values that are numbers and not NaN. Numeric fields only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// Approximate number of distinct values that are not null (a HyperLogLog of 4096
    /// registers: standard error 1.6 %).
    pub distinct: u64,
    /// Values that are NaN. Fields of type `float` and `double` only.
    #[serde(default)]
    pub nans: u64,
    /// What is known about vectors. Fields of type `list<float>` and `list<double>` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<VectorStatistics>,
    /// Size of all values in bytes, counted as in [`Manifest::data_bytes`].
    pub bytes: u64,
}

impl FieldStatistics {
    /// Share of records in which the field is null, from 0 to 1; `None` without records.
    #[must_use]
    pub fn null_ratio(&self) -> Option<f64> {
        let records = self.count.checked_add(self.nulls)?;
        (records > 0).then(|| self.nulls as f64 / records as f64)
    }
}

/// What is known about a field of vectors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VectorStatistics {
    /// Mean of the Euclidean norms of all vectors without a NaN component (null elements count
    /// as zero). Absent where there is none, or where the mean is not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_norm: Option<f64>,
    /// Vectors with at least one component that is NaN. They take no part in `mean_norm`.
    pub with_nan: u64,
    /// Length of the shortest vector; 0 where there is none.
    pub length_min: u64,
    /// Length of the longest vector; 0 where there is none.
    pub length_max: u64,
}

/// The records of an artifact whose keys have the smallest hashes: the same keys in every version
/// that has them, without anyone keeping a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sample {
    /// How many records the sample holds at most. With fewer in it, it holds all there are.
    pub limit: u32,
    /// Ascending by hash.
    pub records: Vec<SampledRecord>,
}

/// A record of a [`Sample`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SampledRecord {
    /// Hash of the encoded key, 16 hexadecimal digits.
    pub hash: String,
    /// The key as people write it: the text of a single column, else a JSON array.
    pub key: String,
    /// Digest of the value, equal only where the whole value is.
    pub value_digest: String,
}

impl Sample {
    /// What became of `previous`, the sample of an earlier version, in the version that this
    /// sample was taken from.
    ///
    /// A key of `previous` can be judged if its hash lies within the range of hashes that this
    /// sample covers: all of them if it holds every record, else up to its greatest hash.
    #[must_use]
    pub fn compare(&self, previous: &Sample) -> SampleComparison {
        let complete = self.records.len() < self.limit as usize;
        let covered = self.records.last().map(|record| record.hash.as_str());
        let mut comparison = SampleComparison::default();
        for before in &previous.records {
            let judged = complete || covered.is_some_and(|limit| before.hash.as_str() <= limit);
            if !judged {
                continue;
            }
            comparison.judged += 1;
            let after = self.records.iter().find(|after| after.hash == before.hash && after.key == before.key);
            match after {
                None => comparison.missing.push(before.key.clone()),
                Some(after) if after.value_digest != before.value_digest => {
                    comparison.changed.push(before.key.clone());
                }
                Some(_) => {}
            }
        }
        comparison
    }
}

/// The answer of [`Sample::compare`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampleComparison {
    /// How many keys of the earlier sample could be judged.
    pub judged: u64,
    /// Those that are gone.
    pub missing: Vec<String>,
    /// Those that are there with another value.
    pub changed: Vec<String>,
}

impl SampleComparison {
    /// Share of the judged keys that are still there, from 0 to 1; `None` if none was judged.
    #[must_use]
    pub fn present_ratio(&self) -> Option<f64> {
        let present = self.judged.saturating_sub(self.missing.len() as u64);
        (self.judged > 0).then(|| present as f64 / self.judged as f64)
    }
}

/// A key that the store wants to be there, and what the version holds for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoldenKey {
    /// The key as the store names it: the text of a single column, else a JSON array.
    pub key: String,
    /// Digest of its value, comparable between versions; absent if the key is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_digest: Option<String>,
    /// Its value, all fields, if the key is there and the value takes no more than 4 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<serde_json::Value>,
}

impl GoldenKey {
    /// Whether the version has this key.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.value_digest.is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sample(limit: u32, records: &[(&str, &str, &str)]) -> Sample {
        Sample {
            limit,
            records: records
                .iter()
                .map(|(hash, key, digest)| SampledRecord {
                    hash: (*hash).to_owned(),
                    key: (*key).to_owned(),
                    value_digest: (*digest).to_owned(),
                })
                .collect(),
        }
    }

    #[test]
    fn every_type_survives_its_text_form() {
        let mut scalars = vec![
            ScalarType::Boolean,
            ScalarType::Int,
            ScalarType::Long,
            ScalarType::Float,
            ScalarType::Double,
            ScalarType::String,
            ScalarType::Binary,
            ScalarType::Date,
        ];
        for (unit, _) in UNITS {
            for utc in [false, true] {
                scalars.push(ScalarType::Timestamp { unit, utc });
            }
        }
        for scalar in scalars {
            for data_type in [FieldType::Scalar(scalar), FieldType::List(scalar)] {
                let text = data_type.to_string();
                assert_eq!(text.parse::<FieldType>().unwrap(), data_type, "{text}");
            }
        }
    }

    #[test]
    fn an_unknown_type_is_refused_naming_it() {
        for text in ["", "text", "list<list<float>>", "timestamp[h]", "timestamp[msUTC]"] {
            let error = text.parse::<FieldType>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn a_field_is_nullable_unless_it_says_otherwise() {
        let field: Field = serde_json::from_str(r#"{"name":"a","type":"list<float>"}"#).unwrap();
        assert_eq!(field, Field::nullable("a", FieldType::List(ScalarType::Float)));
    }

    #[test]
    fn a_sample_judges_only_the_hashes_that_it_covers() {
        let previous = sample(3, &[("01", "a", "x"), ("05", "b", "x"), ("09", "c", "x")]);
        // Full, and covers hashes up to 06: `c` may or may not be in the version.
        let full = sample(3, &[("01", "a", "y"), ("02", "n", "x"), ("06", "m", "x")]);
        let comparison = full.compare(&previous);
        assert_eq!(comparison.judged, 2);
        assert_eq!(comparison.missing, ["b"]);
        assert_eq!(comparison.changed, ["a"]);
        assert_eq!(comparison.present_ratio(), Some(0.5));
        // Not full, so it holds all records there are: `c` is gone.
        let complete = sample(3, &[("01", "a", "x")]);
        assert_eq!(complete.compare(&previous).missing, ["b", "c"]);
        assert_eq!(sample(3, &[]).compare(&sample(3, &[])).present_ratio(), None);
    }

    #[test]
    fn the_null_ratio_of_no_records_is_unknown() {
        assert_eq!(FieldStatistics::default().null_ratio(), None);
        let field = FieldStatistics { count: 3, nulls: 1, ..FieldStatistics::default() };
        assert_eq!(field.null_ratio(), Some(0.25));
    }
}
