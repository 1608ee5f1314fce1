//! Settings are strings; this reads them, with errors that name key, value and what would be accepted.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::contract::HookError;

/// The longest duration that a setting accepts: ten years.
const DURATION_MAX: Duration = Duration::from_secs(3_650 * 86_400);

/// A setting that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value:?}: {reason}")]
pub struct SettingError {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What is wrong with it, and what would be accepted.
    pub reason: String,
}

impl From<SettingError> for HookError {
    fn from(error: SettingError) -> Self {
        HookError::new(error.to_string())
    }
}

/// A hook's settings, for reading.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a>(pub &'a BTreeMap<String, String>);

impl<'a> Settings<'a> {
    /// The value of a key, if it is set to anything but blanks.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.0.get(key).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    fn read<T>(&self, key: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, SettingError> {
        let Some(value) = self.text(key) else { return Ok(None) };
        read(value).map(Some).map_err(|reason| SettingError { key: key.to_owned(), value: value.to_owned(), reason })
    }

    /// A duration: `30s`, `1h 30m`, `250ms`, `14d`.
    ///
    /// # Errors
    /// A text that is none, a negative one, and one over ten years.
    pub fn duration(&self, key: &str) -> Result<Option<Duration>, SettingError> {
        self.read(key, duration)
    }

    /// A number that is finite and not negative, such as a percentage: `10`, `2.5`, `10%`, `10 %`.
    ///
    /// # Errors
    /// A text that is none, a negative number, infinity and NaN.
    pub fn limit(&self, key: &str) -> Result<Option<f64>, SettingError> {
        self.read(key, limit)
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// A text that is none.
    pub fn whole(&self, key: &str) -> Result<Option<u64>, SettingError> {
        self.read(key, |value| {
            value.replace('_', "").parse().map_err(|_| "is no whole number of at least 0".to_owned())
        })
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// Any other text.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, SettingError> {
        self.read(key, |value| match value {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("is neither true nor false".to_owned()),
        })
    }

    /// One of these words.
    ///
    /// # Errors
    /// Any other text, with the words there are.
    pub fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, SettingError> {
        self.read(key, |value| {
            words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
                let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                format!("is none of {}", words.join(", "))
            })
        })
    }

    /// A list: a JSON array of strings, or words between commas.
    ///
    /// # Errors
    /// A text that begins like a JSON array and is not one of strings.
    pub fn list(&self, key: &str) -> Result<Option<Vec<String>>, SettingError> {
        self.read(key, |value| {
            if value.starts_with('[') {
                return serde_json::from_str(value).map_err(|error| format!("is no JSON array of strings: {error}"));
            }
            Ok(value.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
        })
    }
}

/// Reads a duration: numbers with a unit (`ms`, `s`, `m` or `min`, `h`, `d`), one after the other; `0` needs none.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const FORMS: &str = "write it like 30s, 1h 30m, 250ms or 14d";
    let text = text.trim();
    if text.starts_with('-') {
        return Err(format!("is negative; {FORMS}"));
    }
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(format!("is empty; {FORMS}"));
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| format!("is no duration; {FORMS}"))?;
        let behind = behind.trim_start();
        let letters = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(format!("has the unit {unit:?}, which is none; {FORMS}")),
        };
        let part = number.checked_mul(milliseconds).map(Duration::from_millis);
        total = part
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= DURATION_MAX)
            .ok_or_else(|| "is longer than ten years".to_owned())?;
        rest = behind.trim_start();
    }
    Ok(total)
}

fn limit(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim_end();
    let number: f64 = number.parse().map_err(|_| "is no number".to_owned())?;
    if number.is_finite() && number >= 0.0 {
        Ok(number)
    } else {
        Err("is no limit: it has to be finite and not negative".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_what_is_none_is_refused() {
        for (text, milliseconds) in [
            ("30s", 30_000),
            ("1h 30m", 5_400_000),
            ("1h30min", 5_400_000),
            ("250 ms", 250),
            ("14d", 1_209_600_000),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["-5m", "", "5", "5x", "h", "1.5h", "99999999d", "18446744073709551615d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn g17_limits_are_finite_and_not_negative() {
        assert_eq!(limit("10 %"), Ok(10.0));
        assert_eq!(limit("2.5"), Ok(2.5));
        for text in ["NaN", "-1", "inf", "ten"] {
            assert!(limit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_names_key_and_value() {
        let settings = BTreeMap::from([("delay".to_owned(), "-5m".to_owned())]);
        let error = Settings(&settings).duration("delay").unwrap_err();
        assert!(error.to_string().starts_with("delay = \"-5m\": is negative"), "{error}");
    }
}
