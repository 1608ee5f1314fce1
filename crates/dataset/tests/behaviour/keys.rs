//! The encoding of keys: injective, order-preserving, and at one with its text form.

use proptest::prelude::*;
use serde_json::{Value, json};
use tidegate_api::manifest::{Field, FieldType, ScalarType, Schema, TimeUnit};
use tidegate_dataset::key::{KEY_BYTES_MAX, KeyCodec, KeyError, partition_of};

fn codec(types: &[FieldType]) -> KeyCodec {
    let names: Vec<String> = (0..types.len()).map(|n| format!("c{n}")).collect();
    let fields = names.iter().zip(types).map(|(name, data_type)| Field::required(name, *data_type)).collect();
    KeyCodec::new(&Schema { fields }, &names).unwrap()
}

/// Texts that are likely to run into each other: few letters, and the bytes that escapes use.
fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof![Just('\0'), Just('\u{1}'), Just('a'), Just('b'), Just('ÿ')], 0..5)
        .prop_map(|letters| letters.into_iter().collect())
}

proptest! {
    #[test]
    fn d14_keys_are_equal_only_if_their_columns_are_and_sort_as_they_do(
        a in (text(), any::<i64>(), text()),
        b in (text(), any::<i64>(), text()),
    ) {
        let codec = codec(&[FieldType::STRING, FieldType::LONG, FieldType::STRING]);
        let encode = |(x, n, y): &(String, i64, String)| codec.parse_json(&json!([x, n, y])).unwrap();
        let order = (a.0.as_bytes(), a.1, a.2.as_bytes()).cmp(&(b.0.as_bytes(), b.1, b.2.as_bytes()));
        prop_assert_eq!(encode(&a).cmp(&encode(&b)), order);
        let written = codec.to_text(encode(&a).as_bytes()).unwrap();
        prop_assert_eq!(codec.parse_text(&written).unwrap(), encode(&a));
    }

    #[test]
    fn d14_two_texts_never_run_together(a in (text(), text()), b in (text(), text())) {
        let codec = codec(&[FieldType::STRING, FieldType::STRING]);
        let encode = |(x, y): &(String, String)| codec.parse_json(&json!([x, y])).unwrap();
        prop_assert_eq!(encode(&a) == encode(&b), a == b);
    }

    #[test]
    fn partitions_are_ranges_of_hashes(a in any::<u64>(), b in any::<u64>(), partitions in 1u32..5000) {
        let (a, b) = (a.min(b), a.max(b));
        prop_assert!(partition_of(a, partitions) <= partition_of(b, partitions));
        prop_assert!(partition_of(b, partitions) < partitions);
    }
}

#[test]
fn keys_are_read_and_written_as_people_do() {
    let timestamp = FieldType::Scalar(ScalarType::Timestamp { unit: TimeUnit::Millisecond, utc: true });
    for (data_type, text) in [
        (FieldType::STRING, "EDDB"),
        (FieldType::STRING, "[1]"),
        (FieldType::STRING, ""),
        (FieldType::LONG, "-42"),
        (FieldType::INT, "2147483647"),
        (FieldType::BOOLEAN, "true"),
        (FieldType::BINARY, "AP8="),
        (FieldType::DATE, "2024-02-29"),
        (timestamp, "2024-02-29T10:00:00.5Z"),
    ] {
        let codec = codec(&[data_type]);
        let key = codec.parse_text(text).unwrap();
        assert_eq!(codec.to_text(key.as_bytes()).unwrap(), text);
        assert_eq!(codec.parse_json(&Value::from(text)).unwrap(), key, "{text}");
    }
    let codec = codec(&[FieldType::STRING, FieldType::LONG]);
    let key = codec.parse_text(r#"["a",1]"#).unwrap();
    assert_eq!(codec.parse_json(&json!({"c1": 1, "c0": "a"})).unwrap(), key);
}

#[test]
fn what_is_no_key_is_refused_saying_what_is_expected() {
    let one = codec(&[FieldType::LONG]);
    let two = codec(&[FieldType::STRING, FieldType::LONG]);
    for (error, expected) in [
        (one.parse_text("x"), "column `c0` is of type long"),
        (one.parse_json(&json!(1.5)), "column `c0` is of type long"),
        (one.parse_json(&json!(null)), "column `c0` is of type long"),
        (two.parse_text("a"), "write a JSON array"),
        (two.parse_text("[\"a\"]"), "1 values and the key has 2 columns: c0, c1"),
        (two.parse_json(&json!({"c0": "a"})), "key column `c1` is missing"),
        (two.parse_json(&json!({"c0": "a", "c1": 1, "x": 1})), "`x` is no key column"),
        (two.parse_json(&json!([1, 1])), "column `c0` is of type string"),
    ] {
        let error = error.unwrap_err();
        assert!(matches!(error, KeyError::NotAKey { .. }));
        assert!(error.to_string().contains(expected), "{error}");
    }
    let long = codec(&[FieldType::STRING]).parse_text(&"x".repeat(KEY_BYTES_MAX + 1));
    assert!(long.unwrap_err().to_string().contains("limit is 4096"));
}
