//! `store set NAME=VALUE`: which settings there are, and of which kind.

use serde_json::{Map, Value};
use tidegate_api::StorePatch;

use crate::arguments::parse_duration;
use crate::failure::Failure;

/// What a setting's value has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Switch,
    Number,
    Percent,
    Time,
    Bytes,
    Keys,
    OneOf(&'static [&'static str]),
}

/// The settings of [`StorePatch`]; its own reader has the last word.
const SETTINGS: &[(&str, Kind)] = &[
    ("team", Kind::Text),
    ("schema_mode", Kind::OneOf(&["compatible", "any"])),
    ("auto_register_schemas", Kind::Switch),
    ("allow_empty", Kind::Switch),
    ("retention", Kind::Number),
    ("keep_rejected_ms", Kind::Time),
    ("grace_ms", Kind::Time),
    ("keep_pushes", Kind::Number),
    ("golden_keys", Kind::Keys),
    ("on_new_push", Kind::OneOf(&["refuse", "queue", "supersede"])),
    ("embedded_swap", Kind::OneOf(&["alone", "with_region"])),
    ("embedded_dead_percent_max", Kind::Percent),
    ("limits.push_ms", Kind::Time),
    ("limits.region_ms", Kind::Time),
    ("limits.silence_ms", Kind::Time),
    ("limits.confirmation_ms", Kind::Time),
    ("limits.value_bytes", Kind::Bytes),
    ("freshness.expected_every_ms", Kind::Time),
    ("freshness.max_age_ms", Kind::Time),
];

impl Kind {
    /// The value that a text is, if it is one of this kind.
    fn read(self, text: &str) -> Option<Value> {
        let number = || text.parse::<u64>().ok();
        match self {
            Kind::Text => Some(Value::from(text)),
            Kind::Switch => text.parse::<bool>().ok().map(Value::from),
            Kind::Number => text.parse::<u32>().ok().map(Value::from),
            Kind::Percent => text.parse::<u8>().ok().map(Value::from),
            Kind::Bytes => number().map(Value::from),
            Kind::Time => {
                let time = || parse_duration(text).ok().and_then(|time| u64::try_from(time.as_millis()).ok());
                number().or_else(time).map(Value::from)
            }
            Kind::Keys => serde_json::from_str::<Vec<String>>(text).ok().map(Value::from),
            Kind::OneOf(words) => words.contains(&text).then(|| Value::from(text)),
        }
    }

    /// What a value has to be, as the end of a sentence.
    fn expected(self) -> String {
        match self {
            Kind::Text => "a text".to_owned(),
            Kind::Switch => "true or false".to_owned(),
            Kind::Number => format!("a whole number up to {}", u32::MAX),
            Kind::Percent => "a whole number of percent, up to 100".to_owned(),
            Kind::Bytes => "a whole number of bytes".to_owned(),
            Kind::Time => "a time: milliseconds, or a number with a unit such as 90s, 15m, 2h or 1h30m".to_owned(),
            Kind::Keys => "a list of keys, as a JSON array of texts".to_owned(),
            Kind::OneOf(words) => format!("one of {}", words.join(", ")),
        }
    }

    fn example(self) -> &'static str {
        match self {
            Kind::Text => "search",
            Kind::Switch => "true",
            Kind::Number => "3",
            Kind::Percent => "10",
            Kind::Bytes => "1048576",
            Kind::Time => "2h",
            Kind::Keys => "'[\"EDDF\", \"KJFK\"]'",
            Kind::OneOf(words) => words.last().copied().unwrap_or_default(),
        }
    }
}

/// `limits.push_ms=3600000`, or `limits.push_ms=1h`, becomes `{"limits": {"push_ms": 3600000}}`.
pub(super) fn patch_of(settings: &[(String, String)]) -> Result<StorePatch, Failure> {
    let mut patch = Map::new();
    for (name, text) in settings {
        let Some((_, kind)) = SETTINGS.iter().find(|(known, _)| known == name) else {
            return Err(unknown(name));
        };
        let value = kind.read(text).ok_or_else(|| of_another_kind(name, text, *kind))?;
        match name.split_once('.') {
            None => {
                patch.insert(name.clone(), value);
            }
            Some((group, field)) => {
                let group = patch.entry(group).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(fields) = group {
                    fields.insert(field.to_owned(), value);
                }
            }
        }
    }
    serde_json::from_value(Value::Object(patch))
        .map_err(|error| Failure::usage("the settings can't be set", error.to_string(), "Mend what the text names."))
}

fn unknown(name: &str) -> Failure {
    let within: Vec<&str> = SETTINGS
        .iter()
        .map(|(known, _)| *known)
        .filter(|known| known.split_once('.').is_some_and(|(group, field)| group == name || field == name))
        .collect();
    let countermeasures = if within.is_empty() {
        let all: Vec<&str> = SETTINGS.iter().map(|(known, _)| *known).collect();
        format!("There are {}.", all.join(", "))
    } else {
        format!("Did you mean {}?", within.join(", "))
    };
    Failure::usage(format!("{name} can't be set"), format!("There is no setting {name}."), &countermeasures)
}

fn of_another_kind(name: &str, text: &str, kind: Kind) -> Failure {
    Failure::usage(
        format!("{name} can't be set"),
        format!("{name} can't be {text:?}; it is {}.", kind.expected()),
        &format!("Write for instance {name}={}.", kind.example()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    fn patch(settings: &[(&str, &str)]) -> StorePatch {
        let settings: Vec<_> = settings.iter().map(|(name, value)| setting(name, value)).collect();
        patch_of(&settings).unwrap_or_else(|failure| panic!("{}", failure.why()))
    }

    #[test]
    fn settings_are_read_with_their_units() {
        let set = patch(&[("retention", "3"), ("limits.push_ms", "60000"), ("on_new_push", "queue")]);
        assert_eq!(set.retention, Some(3));
        assert_eq!(set.limits.and_then(|limits| limits.push_ms), Some(60_000));
        let set =
            patch(&[("limits.push_ms", "1h30m"), ("grace_ms", "2h"), ("team", "7"), ("golden_keys", r#"["k1"]"#)]);
        assert_eq!(set.limits.and_then(|limits| limits.push_ms), Some(5_400_000));
        assert_eq!(set.grace_ms, Some(7_200_000));
        assert_eq!(set.team.as_deref(), Some("7"));
        assert_eq!(set.golden_keys, Some(vec!["k1".to_owned()]));
    }

    #[test]
    fn each_setting_is_one_that_the_server_knows() {
        for (name, kind) in SETTINGS {
            let example = kind.example().trim_matches('\'');
            assert!(patch_of(&[setting(name, example)]).is_ok(), "{name}={example}");
        }
    }

    #[test]
    fn a_value_of_another_kind_is_refused_with_what_is_expected() {
        let said = |name: &str, value: &str| patch_of(&[setting(name, value)]).err().unwrap().why().to_owned();
        assert_eq!(said("retentoin", "3"), "There is no setting retentoin.");
        assert_eq!(said("limits.push", "3"), "There is no setting limits.push.");
        assert_eq!(
            said("on_new_push", "perhaps"),
            "on_new_push can't be \"perhaps\"; it is one of refuse, queue, supersede."
        );
        assert_eq!(said("retention", "many"), "retention can't be \"many\"; it is a whole number up to 4294967295.");
        assert_eq!(said("allow_empty", "perhaps"), "allow_empty can't be \"perhaps\"; it is true or false.");
        assert!(said("limits.push_ms", "soon").contains("90s, 15m, 2h"));
        // Of several, the one that is wrong is named.
        let settings = [setting("retention", "3"), setting("golden_keys", "k1")];
        assert!(patch_of(&settings).err().unwrap().why().starts_with("golden_keys can't be \"k1\""));
    }
}
