//! Finds the float in a value that JSON has no form for. `serde_json` writes it as `null`, which would read back as
//! another value or not at all, so such a value is refused with the field named.

use std::fmt::Display;

use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleStruct,
    SerializeTupleVariant, Serializer,
};

/// The first float that is not a number or infinite, by the name of its field.
pub(crate) fn not_a_number<T: Serialize + ?Sized>(value: &T) -> Option<String> {
    let mut check = Check { place: Vec::new() };
    match value.serialize(&mut check) {
        Err(Found::Float(field)) => Some(field),
        Err(Found::Other) | Ok(()) => None,
    }
}

struct Check {
    place: Vec<String>,
}

#[derive(Debug)]
enum Found {
    Float(String),
    Other,
}

impl Display for Found {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("not a number")
    }
}
impl std::error::Error for Found {}
impl serde::ser::Error for Found {
    fn custom<T: Display>(_: T) -> Self {
        Found::Other
    }
}

impl Check {
    fn within<T: Serialize + ?Sized>(&mut self, name: String, value: &T) -> Result<(), Found> {
        self.place.push(name);
        value.serialize(&mut *self)?;
        self.place.pop();
        Ok(())
    }

    fn float(&self, finite: bool) -> Result<(), Found> {
        if finite {
            return Ok(());
        }
        let field = self.place.join(".");
        Err(Found::Float(if field.is_empty() { "the value itself".to_owned() } else { field }))
    }
}

macro_rules! fine {
    ($($method:ident: $type:ty),* $(,)?) => {
        $(fn $method(self, _: $type) -> Result<(), Found> { Ok(()) })*
    };
}

impl<'a> Serializer for &'a mut Check {
    type Ok = ();
    type Error = Found;
    type SerializeSeq = Elements<'a>;
    type SerializeTuple = Elements<'a>;
    type SerializeTupleStruct = Elements<'a>;
    type SerializeTupleVariant = Elements<'a>;
    type SerializeMap = Entries<'a>;
    type SerializeStruct = Elements<'a>;
    type SerializeStructVariant = Elements<'a>;

    fine! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_i128: i128, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_u128: u128, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8],
        serialize_unit_struct: &'static str,
    }

    fn serialize_f32(self, value: f32) -> Result<(), Found> {
        self.float(value.is_finite())
    }
    fn serialize_f64(self, value: f64) -> Result<(), Found> {
        self.float(value.is_finite())
    }
    fn serialize_none(self) -> Result<(), Found> {
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Found> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Found> {
        Ok(())
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Found> {
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Found> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Found> {
        self.within(variant.to_owned(), value)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Elements<'a>, Found> {
        Ok(Elements { check: self, index: 0 })
    }
    fn serialize_tuple(self, _: usize) -> Result<Elements<'a>, Found> {
        Ok(Elements { check: self, index: 0 })
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Elements<'a>, Found> {
        Ok(Elements { check: self, index: 0 })
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Elements<'a>, Found> {
        Ok(Elements { check: self, index: 0 })
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Entries<'a>, Found> {
        Ok(Entries { check: self, key: String::new() })
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Elements<'a>, Found> {
        Ok(Elements { check: self, index: 0 })
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Elements<'a>, Found> {
        Ok(Elements { check: self, index: 0 })
    }
}

struct Elements<'a> {
    check: &'a mut Check,
    index: usize,
}

impl Elements<'_> {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Found> {
        let name = self.index.to_string();
        self.index += 1;
        self.check.within(name, value)
    }
}

macro_rules! elements {
    ($($trait:ident: $method:ident),* $(,)?) => {
        $(impl $trait for Elements<'_> {
            type Ok = ();
            type Error = Found;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Found> {
                self.element(value)
            }
            fn end(self) -> Result<(), Found> {
                Ok(())
            }
        })*
    };
}

elements! {
    SerializeSeq: serialize_element, SerializeTuple: serialize_element, SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field,
}

macro_rules! fields {
    ($($trait:ident),* $(,)?) => {
        $(impl $trait for Elements<'_> {
            type Ok = ();
            type Error = Found;
            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Found> {
                self.check.within(name.to_owned(), value)
            }
            fn end(self) -> Result<(), Found> {
                Ok(())
            }
        })*
    };
}

fields! { SerializeStruct, SerializeStructVariant }

struct Entries<'a> {
    check: &'a mut Check,
    key: String,
}

impl SerializeMap for Entries<'_> {
    type Ok = ();
    type Error = Found;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Found> {
        self.key = serde_json::to_value(key).map_or_else(
            |_| "?".to_owned(),
            |key| match key {
                serde_json::Value::String(text) => text,
                other => other.to_string(),
            },
        );
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Found> {
        let key = std::mem::take(&mut self.key);
        self.check.within(key, value)
    }
    fn end(self) -> Result<(), Found> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn s09_a_float_that_is_no_number_is_found_by_its_field_and_an_absent_value_is_fine() {
        #[derive(Serialize)]
        struct Inner {
            limit: Option<f64>,
            ratios: BTreeMap<String, Vec<f32>>,
        }
        let mut value = Inner { limit: None, ratios: BTreeMap::from([("rows".to_owned(), vec![1.0, 2.0])]) };
        assert_eq!(not_a_number(&value), None);
        value.ratios.insert("rows".to_owned(), vec![1.0, f32::NAN]);
        assert_eq!(not_a_number(&value).as_deref(), Some("ratios.rows.1"));
        value.ratios.clear();
        value.limit = Some(f64::INFINITY);
        assert_eq!(not_a_number(&value).as_deref(), Some("limit"));
        value.limit = Some(f64::MAX);
        assert_eq!(not_a_number(&value), None);
    }
}
