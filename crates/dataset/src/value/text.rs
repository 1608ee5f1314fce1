//! Values as text: how CSV cells and keys are read, and how dates and times are written.

use jiff::civil;
use tidegate_api::manifest::{ScalarType, TimeUnit};

use super::Scalar;

/// Reads a value of this type from its text; `None` if the text is none. Binary has no text form
/// here.
pub(crate) fn parse(data_type: ScalarType, text: &str) -> Option<Scalar<'_>> {
    Some(match data_type {
        ScalarType::String => Scalar::String(text),
        ScalarType::Boolean => Scalar::Boolean(parse_boolean(text)?),
        ScalarType::Int => Scalar::Int(text.parse().ok()?),
        ScalarType::Long => Scalar::Long(text.parse().ok()?),
        ScalarType::Float => Scalar::Float(text.parse().ok()?),
        ScalarType::Double => Scalar::Double(text.parse().ok()?),
        ScalarType::Date => Scalar::Date(parse_date(text)?),
        ScalarType::Timestamp { unit, utc } => Scalar::Timestamp(parse_timestamp(text, unit, utc)?),
        ScalarType::Binary => return None,
    })
}

pub(crate) fn parse_boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

const EPOCH: civil::Date = civil::date(1970, 1, 1);

fn parse_date(text: &str) -> Option<i32> {
    // jiff reads a date out of a longer text too; a cell with a time in it is no date.
    if text.len() > 10 && !text.starts_with('-') {
        return None;
    }
    let date: civil::Date = text.parse().ok()?;
    Some(date.since(EPOCH).ok()?.get_days())
}

fn nanoseconds_per(unit: TimeUnit) -> i128 {
    match unit {
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    }
}

fn parse_timestamp(text: &str, unit: TimeUnit, utc: bool) -> Option<i64> {
    let civil_as_utc = || -> Option<jiff::Timestamp> {
        let reading: civil::DateTime = text.parse().ok()?;
        Some(reading.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    };
    let instant = match text.parse::<jiff::Timestamp>() {
        // A clock on a wall has no offset: such a text is of another type.
        Ok(_) if !utc => return None,
        Ok(instant) => instant,
        Err(_) => civil_as_utc()?,
    };
    let nanoseconds = instant.as_nanosecond();
    let step = nanoseconds_per(unit);
    // A finer time than the type can hold is refused, never rounded.
    (nanoseconds % step == 0).then_some(())?;
    i64::try_from(nanoseconds / step).ok()
}

/// A date as `2024-02-29`; `None` if it is outside of the years −9999 to 9999.
pub(crate) fn format_date(days: i32) -> Option<String> {
    let date = EPOCH.checked_add(jiff::Span::new().try_days(i64::from(days)).ok()?).ok()?;
    Some(date.to_string())
}

/// A timestamp as RFC 3339 (`…Z` if it is an instant); `None` outside of the years −9999 to 9999.
pub(crate) fn format_timestamp(value: i64, unit: TimeUnit, utc: bool) -> Option<String> {
    let nanoseconds = i128::from(value).checked_mul(nanoseconds_per(unit))?;
    let instant = jiff::Timestamp::from_nanosecond(nanoseconds).ok()?;
    Some(if utc { instant.to_string() } else { jiff::tz::TimeZone::UTC.to_datetime(instant).to_string() })
}

/// Writes a value as people and keys spell it. What has no other form is written as a number.
pub(crate) fn format(scalar: Scalar<'_>, data_type: ScalarType) -> String {
    match scalar {
        Scalar::Boolean(value) => value.to_string(),
        Scalar::Int(value) => value.to_string(),
        Scalar::Long(value) => value.to_string(),
        Scalar::Float(value) => value.to_string(),
        Scalar::Double(value) => value.to_string(),
        Scalar::String(text) => text.to_owned(),
        Scalar::Binary(bytes) => encode_base64(bytes),
        Scalar::Date(days) => format_date(days).unwrap_or_else(|| days.to_string()),
        Scalar::Timestamp(value) => match data_type {
            ScalarType::Timestamp { unit, utc } => format_timestamp(value, unit, utc),
            _ => None,
        }
        .unwrap_or_else(|| value.to_string()),
    }
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 as in RFC 4648 §4, with padding.
pub(crate) fn encode_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0u8; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let group = u32::from_be_bytes(group);
        for position in 0..4 {
            if position <= chunk.len() {
                let digit = group >> (18 - 6 * position) & 63;
                text.push(char::from(BASE64[digit as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// The inverse of [`encode_base64`]; `None` if the text is not exactly what that writes.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in text.as_bytes().chunks(4) {
        let digits = chunk.iter().take_while(|byte| **byte != b'=').count();
        if chunk.len() != 4 || digits < 2 {
            return None;
        }
        let mut group = 0u32;
        for byte in &chunk[..digits] {
            let digit = BASE64.iter().position(|known| known == byte)?;
            group = group << 6 | digit as u32;
        }
        group <<= 6 * (4 - digits);
        bytes.extend_from_slice(&group.to_be_bytes()[1..digits]);
    }
    // Padding in the middle, or bits that no byte holds, would give two texts to one key.
    (encode_base64(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_the_rfc_has_it() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(encode_base64(bytes.as_bytes()), text);
            assert_eq!(decode_base64(text).as_deref(), Some(bytes.as_bytes()));
        }
        for text in ["Zg=", "Zh==", "Zg==Zg==", "Z===", "Z*=="] {
            assert_eq!(decode_base64(text), None, "{text}");
        }
    }

    #[test]
    fn dates_and_times_survive_their_text() {
        for (text, days) in [("1970-01-01", 0), ("1969-12-31", -1), ("2024-02-29", 19_782)] {
            assert_eq!(parse_date(text), Some(days), "{text}");
            assert_eq!(format_date(days).as_deref(), Some(text));
        }
        assert_eq!(parse_date("2024-02-30"), None);
        assert_eq!(parse_date("2024-02-29T10:00:00"), None);
        let millisecond = TimeUnit::Millisecond;
        for (text, utc, value) in
            [("2024-02-29T10:00:00.5Z", true, 1_709_200_800_500), ("2024-02-29T10:00:00.5", false, 1_709_200_800_500)]
        {
            assert_eq!(parse_timestamp(text, millisecond, utc), Some(value), "{text}");
            assert_eq!(format_timestamp(value, millisecond, utc).as_deref(), Some(text));
        }
        assert_eq!(parse_timestamp("2024-02-29T12:00:00+02:00", millisecond, true), Some(1_709_200_800_000));
        assert_eq!(parse_timestamp("2024-02-29 10:00:00", millisecond, true), Some(1_709_200_800_000));
        assert_eq!(parse_timestamp("2024-02-29T10:00:00.0005Z", millisecond, true), None);
        assert_eq!(parse_timestamp("2024-02-29T10:00:00Z", millisecond, false), None);
        assert_eq!(format_date(i32::MAX), None);
    }
}
