//! `[hooks]` in a file: read, with defaults filled in, and not yet judged by the hooks themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::configuration::{HooksConfiguration, Refusal};
use crate::registry::Registry;
use crate::setting;

const NAMESPACE: Uuid = Uuid::from_u128(0x71d6_2a0e_8f53_4a1c_b0f4_93e5_6c0d_1b22);
/// The most threads that a server gives to calls of hooks.
const THREADS_MAX: u32 = 256;
/// The longest value of a setting, in bytes.
const VALUE_BYTES_MAX: usize = 16 * 1024;
/// The most settings of all hooks together.
const SETTINGS_MAX: usize = 1_000;

/// What `[hooks]` says, with defaults in place of what it leaves out.
///
/// ```toml
/// [hooks]
/// enabled = ["data-quality", "region-order", "health-check"]  # asked in this order; every hook of the build if left out
/// threads = 8            # calls at once on one server
/// timeout = "30s"        # of one call, not counting time in the queue
/// wait_interval = "60s"  # when a hook that waits is asked again, unless it names a time
///
/// [hooks.config.region-order]
/// order = ["a", ["b", "c"]]
/// delay = "1h"
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HooksFile {
    /// The hooks that are asked, in order, each once.
    pub enabled: Vec<String>,
    /// How many calls run at once on one server.
    pub threads: u32,
    /// How long a call may take, in milliseconds.
    pub timeout_ms: u64,
    /// When a hook that waits is asked again, in milliseconds.
    pub wait_interval_ms: u64,
    /// Each hook's settings, by hook and key.
    pub hooks: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HooksTable {
    enabled: Option<Vec<String>>,
    threads: Option<u32>,
    timeout: Option<String>,
    wait_interval: Option<String>,
    config: BTreeMap<String, BTreeMap<String, serde_json::Value>>,
}

impl HooksFile {
    /// What is in force where nothing is said: every hook of the build is enabled, none is configured.
    #[must_use]
    pub fn default_of(registry: &Registry) -> HooksFile {
        HooksFile {
            enabled: registry.names().map(str::to_owned).collect(),
            threads: 8,
            timeout_ms: 30_000,
            wait_interval_ms: 60_000,
            hooks: BTreeMap::new(),
        }
    }

    /// Reads the `[hooks]` table of a TOML file; other tables are left to others. A file without that table says nothing
    /// about hooks, and is not taken for one that wants none of them configured.
    ///
    /// # Errors
    /// Text that is no TOML, no table `[hooks]`, keys that there are not, values out of bounds, hooks that this build does not have.
    pub fn from_toml(text: &str, registry: &Registry) -> Result<HooksFile, Refusal> {
        #[derive(Deserialize)]
        struct File {
            hooks: Option<HooksTable>,
        }
        let file: File = toml::from_str(text).map_err(|error| malformed(error.to_string().trim_end()))?;
        let hooks = file.hooks.ok_or_else(|| Refusal {
            countermeasures:
                "Name the file that has it. One with `[hooks]` and nothing below it enables every hook and \
                              configures none"
                    .to_owned(),
            ..malformed("the file has no table `[hooks]`, so it says nothing about hooks")
        })?;
        HooksFile::from_table(hooks, registry)
    }

    /// Reads the table itself from JSON, as the HTTP API takes it.
    ///
    /// # Errors
    /// As [`HooksFile::from_toml`].
    pub fn from_json(table: serde_json::Value, registry: &Registry) -> Result<HooksFile, Refusal> {
        let table = serde_json::from_value(table).map_err(|error| malformed(&error.to_string()))?;
        HooksFile::from_table(table, registry)
    }

    fn from_table(table: HooksTable, registry: &Registry) -> Result<HooksFile, Refusal> {
        let mut file = HooksFile::default_of(registry);
        if let Some(enabled) = table.enabled {
            file.enabled.clear();
            for name in &enabled {
                let name = name.trim();
                if name.is_empty() {
                    return Err(refused("enabled has a hook without a name".to_owned(), registry));
                }
                if registry.get(name).is_none() {
                    return Err(refused(format!("enabled names {name:?}, and there is no such hook"), registry));
                }
                if !file.enabled.iter().any(|there| there == name) {
                    file.enabled.push(name.to_owned());
                }
            }
        }
        if let Some(threads) = table.threads {
            if !(1..=THREADS_MAX).contains(&threads) {
                return Err(malformed(&format!("threads = {threads}: has to be from 1 to {THREADS_MAX}")));
            }
            file.threads = threads;
        }
        let duration = |key: &str, text: Option<String>, default: u64| match text {
            None => Ok(default),
            Some(text) => match setting::duration(&text) {
                Ok(duration) if duration >= Duration::from_millis(100) => {
                    Ok(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
                }
                Ok(_) => Err(malformed(&format!("{key} = {text:?}: is shorter than 100 ms"))),
                Err(reason) => Err(malformed(&format!("{key} = {text:?}: {reason}"))),
            },
        };
        file.timeout_ms = duration("timeout", table.timeout, file.timeout_ms)?;
        file.wait_interval_ms = duration("wait_interval", table.wait_interval, file.wait_interval_ms)?;
        let mut settings = 0;
        for (hook, table) in table.config {
            if registry.get(&hook).is_none() {
                return Err(refused(format!("config.{hook} is for a hook that there is not"), registry));
            }
            let mut values = BTreeMap::new();
            for (key, value) in table {
                let value = text_of(&value)
                    .filter(|text| text.len() <= VALUE_BYTES_MAX)
                    .ok_or_else(|| malformed(&format!("config.{hook}.{key}: is neither text, number, boolean nor a list of them, or has over {VALUE_BYTES_MAX} bytes")))?;
                values.insert(key, value);
                settings += 1;
            }
            file.hooks.insert(hook, values);
        }
        if settings > SETTINGS_MAX {
            return Err(malformed(&format!("{settings} settings of hooks (limit {SETTINGS_MAX})")));
        }
        Ok(file)
    }

    /// Equal for files that say the same, whatever their form.
    #[must_use]
    pub fn digest(&self) -> String {
        let canonical = serde_json::to_vec(self).expect("strings and numbers are always JSON");
        Uuid::new_v5(&NAMESPACE, &canonical).to_string()
    }

    /// As it is published.
    #[must_use]
    pub fn configuration(&self, generation: u64, published_by: &str) -> HooksConfiguration {
        HooksConfiguration {
            generation,
            enabled: self.enabled.clone(),
            threads: self.threads,
            timeout_ms: self.timeout_ms,
            wait_interval_ms: self.wait_interval_ms,
            hooks: self.hooks.clone(),
            published_by: published_by.to_owned(),
            digest: self.digest(),
        }
    }
}

/// Settings are strings. A list is kept as JSON, so that nothing in its items is taken for a separator.
fn text_of(value: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Array(items) => {
            let plain = |item: &Value| !matches!(item, Value::Null | Value::Object(_));
            items.iter().all(plain).then(|| value.to_string())
        }
        Value::Null | Value::Object(_) => None,
    }
}

fn malformed(why: &str) -> Refusal {
    Refusal {
        what: "The hooks configuration was refused".to_owned(),
        why: why.to_owned(),
        consequences: "Nothing was published; what was in force stays in force".to_owned(),
        countermeasures: "Correct the file and apply it again".to_owned(),
    }
}

fn refused(why: String, registry: &Registry) -> Refusal {
    let known = registry.names().collect::<Vec<_>>().join(", ");
    Refusal { countermeasures: format!("Name hooks that this build has: {known}"), ..malformed(&why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<HooksFile, Refusal> {
        HooksFile::from_toml(text, &Registry::shipped())
    }

    #[test]
    fn what_is_left_out_has_its_default_and_other_tables_are_left_alone() {
        let file = read("[hooks]\n[server]\nlisten = \"x\"\n").unwrap();
        assert_eq!(file, HooksFile::default_of(&Registry::shipped()));
        assert_eq!(file.enabled, ["data-quality", "region-order", "health-check", "exec"]);
        assert_eq!((file.timeout_ms, file.wait_interval_ms), (30_000, 60_000));
    }

    #[test]
    fn a_file_that_says_nothing_about_hooks_configures_none_away() {
        for text in ["", "[server]\nlisten = \"x\"\n", "[hookz]\nthreads = 4\n"] {
            let refusal = read(text).unwrap_err();
            assert!(refusal.why.contains("`[hooks]`"), "{text}: {refusal}");
        }
    }

    #[test]
    fn settings_become_text_and_lists_stay_lists() {
        let text = "[hooks]\ntimeout = \"5s\"\n[hooks.config.region-order]\norder = [\"a\", [\"b\", \"c\"]]\n\
                    [hooks.config.data-quality]\nrecords_drop_max = 10\ngolden_present = true\n";
        let file = read(text).unwrap();
        assert_eq!(file.hooks["region-order"]["order"], r#"["a",["b","c"]]"#);
        assert_eq!(file.hooks["data-quality"]["records_drop_max"], "10");
        assert_eq!(file.hooks["data-quality"]["golden_present"], "true");
        assert_eq!(file.timeout_ms, 5_000);
        let json = serde_json::json!({"timeout": "5s", "config": {
            "region-order": {"order": ["a", ["b", "c"]]},
            "data-quality": {"records_drop_max": "10", "golden_present": "true"}}});
        let same = HooksFile::from_json(json, &Registry::shipped()).unwrap();
        assert_eq!(same.digest(), file.digest());
    }

    #[test]
    fn h07_names_are_trimmed_and_asked_once_and_unknown_ones_refused() {
        let file = read("[hooks]\nenabled = [\" region-order \", \"region-order\"]").unwrap();
        assert_eq!(file.enabled, ["region-order"]);
        let refusal = read("[hooks]\nenabled = [\"region-ordr\"]").unwrap_err();
        assert!(refusal.why.contains("region-ordr"), "{refusal}");
        assert!(refusal.countermeasures.contains("data-quality, region-order"), "{refusal}");
        assert!(read("[hooks]\nenabled = [\"\"]").unwrap_err().why.contains("without a name"));
        assert!(read("[hooks.config.nobody]\na = 1").unwrap_err().why.contains("config.nobody"));
    }

    #[test]
    fn g03_unknown_keys_and_values_out_of_bounds_are_refused() {
        for (text, part) in [
            ("[hooks]\nthread = 1", "thread"),
            ("[hooks]\nthreads = 0", "from 1 to 256"),
            ("[hooks]\ntimeout = \"-1s\"", "negative"),
            ("[hooks]\ntimeout = \"1ms\"", "shorter"),
            ("[hooks.config.exec]\na = {}", "config.exec.a"),
            ("[hooks", "TOML"),
        ] {
            let refusal = read(text).unwrap_err();
            assert!(refusal.why.contains(part), "{text}: {refusal}");
        }
    }
}
