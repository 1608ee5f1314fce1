//! The canonical encoding of a record's value: all fields that are not part of the key.
//!
//! ```text
//! value  = nulls field*        nulls: one bit per field, lowest first, 1 = null
//! field  = boolean: 1 byte; int, float, date: 4; long, double, timestamp: 8 (little-endian)
//!        | string, binary: length (varint) and bytes
//!        | list: (length × 2 + has nulls) as varint, one null bit per element if it has nulls,
//!          then the elements that are not null
//! ```
//!
//! Fields come in schema order; a null takes no bytes. Every NaN is stored as the same one, so
//! that equal values, and only they, have equal bytes. This is what sorted runs and the node's
//! index hold, and what digests are taken over.

pub(crate) mod json;
pub(crate) mod text;

use tidegate_api::manifest::{FieldType, ScalarType};

/// One value of a scalar type. The variants mirror [`ScalarType`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scalar<'a> {
    Boolean(bool),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
    String(&'a str),
    Binary(&'a [u8]),
    /// Days since 1970-01-01.
    Date(i32),
    /// Units (as the type says) since 1970-01-01T00:00.
    Timestamp(i64),
}

impl Scalar<'_> {
    /// What this value counts in statistics of size and against a store's size limit.
    pub(crate) fn payload_bytes(&self) -> u64 {
        match self {
            Scalar::Boolean(_) => 1,
            Scalar::Int(_) | Scalar::Float(_) | Scalar::Date(_) => 4,
            Scalar::Long(_) | Scalar::Double(_) | Scalar::Timestamp(_) => 8,
            Scalar::String(text) => text.len() as u64,
            Scalar::Binary(bytes) => bytes.len() as u64,
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Scalar::Boolean(value) => out.push(u8::from(value)),
            Scalar::Int(value) | Scalar::Date(value) => out.extend(value.to_le_bytes()),
            Scalar::Long(value) | Scalar::Timestamp(value) => out.extend(value.to_le_bytes()),
            Scalar::Float(value) => {
                let value = if value.is_nan() { f32::NAN } else { value };
                out.extend(value.to_bits().to_le_bytes());
            }
            Scalar::Double(value) => {
                let value = if value.is_nan() { f64::NAN } else { value };
                out.extend(value.to_bits().to_le_bytes());
            }
            Scalar::String(text) => encode_bytes(text.as_bytes(), out),
            Scalar::Binary(bytes) => encode_bytes(bytes, out),
        }
    }
}

fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Appends a LEB128 number.
pub(crate) fn encode_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a LEB128 number and moves `position` behind it.
pub(crate) fn decode_varint(bytes: &[u8], position: &mut usize) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*position).ok_or(Malformed)?;
        *position += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

/// Bytes that are no encoding of a record of this schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no record of this schema")]
pub struct Malformed;

/// Builds one value, field by field in schema order.
#[derive(Debug)]
pub(crate) struct ValueEncoder<'o> {
    out: &'o mut Vec<u8>,
    field: usize,
    payload_bytes: u64,
}

impl<'o> ValueEncoder<'o> {
    /// Starts a value of so many fields in `out`, which is cleared.
    pub(crate) fn new(out: &'o mut Vec<u8>, fields: usize) -> Self {
        out.clear();
        out.resize(fields.div_ceil(8), 0);
        Self { out, field: 0, payload_bytes: 0 }
    }

    pub(crate) fn null(&mut self) {
        self.out[self.field / 8] |= 1 << (self.field % 8);
        self.field += 1;
    }

    pub(crate) fn scalar(&mut self, scalar: Scalar<'_>) {
        self.field += 1;
        self.payload_bytes += scalar.payload_bytes();
        scalar.encode(self.out);
    }

    pub(crate) fn list<'a>(&mut self, elements: impl Iterator<Item = Option<Scalar<'a>>> + Clone) {
        self.field += 1;
        let (mut length, mut has_nulls) = (0u64, false);
        for element in elements.clone() {
            length += 1;
            has_nulls |= element.is_none();
        }
        encode_varint(length * 2 + u64::from(has_nulls), self.out);
        if has_nulls {
            let nulls = self.out.len();
            self.out.resize(nulls + (length as usize).div_ceil(8), 0);
            for (position, element) in elements.clone().enumerate() {
                if element.is_none() {
                    self.out[nulls + position / 8] |= 1 << (position % 8);
                }
            }
        }
        for scalar in elements.flatten() {
            self.payload_bytes += scalar.payload_bytes();
            scalar.encode(self.out);
        }
    }

    /// Size of all values so far, see [`Scalar::payload_bytes`].
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }
}

/// One field of one record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cell<'a> {
    Null,
    Scalar(Scalar<'a>),
    List(ListCell<'a>),
}

/// A list within an encoded value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ListCell<'a> {
    pub(crate) element: ScalarType,
    pub(crate) length: usize,
    nulls: Option<&'a [u8]>,
    /// Exactly the elements that are not null; checked when the cell was read.
    bytes: &'a [u8],
}

impl<'a> ListCell<'a> {
    pub(crate) fn elements(&self) -> impl Iterator<Item = Option<Scalar<'a>>> + use<'a> {
        let Self { element, length, nulls, bytes } = *self;
        let mut position = 0;
        (0..length).map(move |index| {
            if nulls.is_some_and(|nulls| nulls[index / 8] >> (index % 8) & 1 == 1) {
                return None;
            }
            decode_scalar(bytes, &mut position, element).ok()
        })
    }

    pub(crate) fn payload_bytes(&self) -> u64 {
        self.elements().flatten().map(|scalar| scalar.payload_bytes()).sum()
    }
}

fn take<'a>(bytes: &'a [u8], position: &mut usize, length: usize) -> Result<&'a [u8], Malformed> {
    let end = position.checked_add(length).ok_or(Malformed)?;
    let taken = bytes.get(*position..end).ok_or(Malformed)?;
    *position = end;
    Ok(taken)
}

fn take_array<const N: usize>(bytes: &[u8], position: &mut usize) -> Result<[u8; N], Malformed> {
    take(bytes, position, N)?.try_into().map_err(|_| Malformed)
}

#[inline]
fn decode_scalar<'a>(bytes: &'a [u8], position: &mut usize, data_type: ScalarType) -> Result<Scalar<'a>, Malformed> {
    Ok(match data_type {
        ScalarType::Boolean => Scalar::Boolean(take_array::<1>(bytes, position)? != [0]),
        ScalarType::Int => Scalar::Int(i32::from_le_bytes(take_array(bytes, position)?)),
        ScalarType::Date => Scalar::Date(i32::from_le_bytes(take_array(bytes, position)?)),
        ScalarType::Long => Scalar::Long(i64::from_le_bytes(take_array(bytes, position)?)),
        ScalarType::Timestamp { .. } => Scalar::Timestamp(i64::from_le_bytes(take_array(bytes, position)?)),
        ScalarType::Float => Scalar::Float(f32::from_le_bytes(take_array(bytes, position)?)),
        ScalarType::Double => Scalar::Double(f64::from_le_bytes(take_array(bytes, position)?)),
        ScalarType::String | ScalarType::Binary => {
            let length = usize::try_from(decode_varint(bytes, position)?).map_err(|_| Malformed)?;
            let taken = take(bytes, position, length)?;
            if data_type == ScalarType::String {
                Scalar::String(std::str::from_utf8(taken).map_err(|_| Malformed)?)
            } else {
                Scalar::Binary(taken)
            }
        }
    })
}

/// Reads one field at `position` and moves it behind the field. The caller has looked at the
/// null bits and knows that the field is not null.
#[inline]
pub(crate) fn decode_field<'a>(
    bytes: &'a [u8],
    position: &mut usize,
    data_type: FieldType,
) -> Result<Cell<'a>, Malformed> {
    let element = match data_type {
        FieldType::Scalar(scalar) => {
            return decode_scalar(bytes, position, scalar).map(Cell::Scalar);
        }
        FieldType::List(element) => element,
    };
    let head = decode_varint(bytes, position)?;
    let length = usize::try_from(head / 2).map_err(|_| Malformed)?;
    let (nulls, present) = if head % 2 == 1 {
        let nulls = take(bytes, position, length.div_ceil(8))?;
        let null_count: u32 = nulls.iter().map(|byte| byte.count_ones()).sum();
        let present = length.checked_sub(null_count as usize).ok_or(Malformed)?;
        (Some(nulls), present)
    } else {
        (None, length)
    };
    let start = *position;
    match element {
        ScalarType::String | ScalarType::Binary => {
            for _ in 0..present {
                decode_scalar(bytes, position, element)?;
            }
        }
        fixed => {
            let width = match fixed {
                ScalarType::Boolean => 1,
                ScalarType::Int | ScalarType::Float | ScalarType::Date => 4,
                _ => 8,
            };
            take(bytes, position, present.checked_mul(width).ok_or(Malformed)?)?;
        }
    }
    Ok(Cell::List(ListCell { element, length, nulls, bytes: &bytes[start..*position] }))
}

/// Whether a field is null, by its position among the fields of the value.
#[inline]
pub(crate) fn is_null(value: &[u8], field: usize) -> Result<bool, Malformed> {
    Ok(value.get(field / 8).ok_or(Malformed)? >> (field % 8) & 1 == 1)
}

/// Reads the fields of a value one after the other.
#[derive(Clone, Debug)]
pub(crate) struct ValueReader<'a> {
    value: &'a [u8],
    position: usize,
    field: usize,
}

impl<'a> ValueReader<'a> {
    pub(crate) fn new(value: &'a [u8], fields: usize) -> Self {
        Self { value, position: fields.div_ceil(8), field: 0 }
    }

    pub(crate) fn next(&mut self, data_type: FieldType) -> Result<Cell<'a>, Malformed> {
        let null = is_null(self.value, self.field)?;
        self.field += 1;
        if null {
            return Ok(Cell::Null);
        }
        decode_field(self.value, &mut self.position, data_type)
    }
}
