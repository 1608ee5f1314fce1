//! Configuration that decides outcomes: an entity, published from a file, merged with a store's overrides key by key.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Ref, Root};

use crate::function::Function;
use crate::registry::Registry;

/// The configuration in force, at `/configuration/hooks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HooksConfiguration {
    /// Rises with every change.
    pub generation: u64,
    /// The hooks that are asked, in this order, each once.
    pub enabled: Vec<String>,
    /// How many calls run at once on one server.
    pub threads: u32,
    /// How long a call may take, not counting time in the queue, in milliseconds.
    pub timeout_ms: u64,
    /// When a hook that waits is asked again, unless it names a time, in milliseconds.
    pub wait_interval_ms: u64,
    /// Each hook's settings, by hook and key.
    pub hooks: BTreeMap<String, BTreeMap<String, String>>,
    /// Who published it.
    pub published_by: String,
    /// Digest over everything that decides outcomes: equal files have equal digests.
    pub digest: String,
}

impl Entity for HooksConfiguration {
    const COLLECTION: &'static str = "configuration";
    type Parent = Root;
    type Id = String;
}

/// Whether a hook is obeyed: key `mode`, understood for every hook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Asked and obeyed.
    #[default]
    Enforce,
    /// Asked and recorded, never obeyed and never waited for.
    Observe,
    /// Not asked.
    Off,
}

/// What a failed call counts as: key `on_failure`, understood for every hook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Wait; in functions with two outcomes a bounded number of retries, then Abort.
    #[default]
    Wait,
    /// Abort.
    Abort,
    /// Proceed.
    Proceed,
}

/// A hook that takes part in a function, with a store's overrides taken into account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveHook {
    /// Its name.
    pub name: String,
    /// Whether it is obeyed. Never `Off` in what [`HooksConfiguration::effective_hooks`] returns.
    pub mode: Mode,
    /// What a failed call counts as.
    pub on_failure: OnFailure,
}

impl Mode {
    /// The word in a setting.
    #[must_use]
    pub fn parse(text: &str) -> Option<Mode> {
        match text {
            "enforce" => Some(Mode::Enforce),
            "observe" => Some(Mode::Observe),
            "off" => Some(Mode::Off),
            _ => None,
        }
    }
}

impl OnFailure {
    /// The word in a setting.
    #[must_use]
    pub fn parse(text: &str) -> Option<OnFailure> {
        match text {
            "wait" => Some(OnFailure::Wait),
            "abort" => Some(OnFailure::Abort),
            "proceed" => Some(OnFailure::Proceed),
            _ => None,
        }
    }
}

impl HooksConfiguration {
    /// Where it is.
    #[must_use]
    pub fn place() -> Ref<HooksConfiguration> {
        Ref::root("hooks").expect("a constant id")
    }

    /// How long a call may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// When a hook that waits is asked again, unless it names a time.
    #[must_use]
    pub fn wait_interval(&self) -> Duration {
        Duration::from_millis(self.wait_interval_ms)
    }

    /// The settings of one hook for one store: the published table, and over it the store's overrides
    /// (`<hook>.<key>`), key by key, clipped. A hook never sees another's table.
    #[must_use]
    pub fn merged(&self, hook: &str, overrides: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut merged = self.hooks.get(hook).cloned().unwrap_or_default();
        for (key, value) in overrides {
            if let Some(key) = key.strip_prefix(hook).and_then(|rest| rest.strip_prefix('.')) {
                merged.insert(key.to_owned(), value.clone());
            }
        }
        merged
    }

    /// The hooks to ask at a gate of `function` for a store with these overrides, in order. Left out are those that are
    /// `off`, and those of which this build knows that they would do nothing here, so that an unconfigured hook costs no
    /// call (G1). A hook that this build lacks is never left out.
    #[must_use]
    pub fn effective_hooks(
        &self,
        registry: &Registry,
        function: Function,
        overrides: &BTreeMap<String, String>,
    ) -> Vec<EffectiveHook> {
        let mut effective = Vec::new();
        for name in &self.enabled {
            let settings = self.merged(name, overrides);
            let mode = settings.get("mode").and_then(|text| Mode::parse(text)).unwrap_or_default();
            let on_failure = settings.get("on_failure").and_then(|text| OnFailure::parse(text)).unwrap_or_default();
            if mode != Mode::Off && registry.acts(name, function, &settings) {
                effective.push(EffectiveHook { name: name.clone(), mode, on_failure });
            }
        }
        effective
    }
}

/// Why settings were not accepted. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Refusal {
    /// What was refused.
    pub what: String,
    /// Why.
    pub why: String,
    /// What follows.
    pub consequences: String,
    /// What to do.
    pub countermeasures: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}. {}. {}.", self.what, self.why, self.consequences, self.countermeasures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks_file::HooksFile;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn g01_shipped_hooks_are_all_enabled_and_none_is_asked_until_it_is_configured() {
        let registry = Registry::shipped();
        let configuration = HooksFile::default_of(&registry).configuration(1, "tests");
        assert_eq!(configuration.enabled.len(), registry.names().count());
        let modes = map(&[("exec.mode", "enforce"), ("data-quality.on_failure", "abort")]);
        for function in Function::ALL {
            assert_eq!(configuration.effective_hooks(&registry, function, &BTreeMap::new()), []);
            assert_eq!(configuration.effective_hooks(&registry, function, &modes), []);
        }
        let tried = map(&[("region-order.order", "a, b")]);
        let asked = |function| configuration.effective_hooks(&registry, function, &tried).len();
        assert_eq!((asked(Function::PreStoreVersionSwap), asked(Function::PostStoreVersionSwap)), (1, 0));
    }

    #[test]
    fn c20_a_hook_that_this_build_lacks_is_always_asked() {
        let registry = Registry::shipped();
        let mut configuration = HooksFile::default_of(&registry).configuration(1, "tests");
        configuration.enabled.push("mine".to_owned());
        let asked = configuration.effective_hooks(&registry, Function::PreStoreVersionSwap, &BTreeMap::new());
        assert_eq!(asked.iter().map(|hook| hook.name.as_str()).collect::<Vec<_>>(), ["mine"]);
        let off = map(&[("mine.mode", "off")]);
        assert_eq!(configuration.effective_hooks(&registry, Function::PreStoreVersionSwap, &off), []);
    }

    #[test]
    fn h20_settings_are_merged_key_by_key_and_stay_within_their_hook() {
        let registry = Registry::shipped();
        let mut configuration = HooksFile::default_of(&registry).configuration(1, "tests");
        configuration.hooks.insert("exec".to_owned(), map(&[("a", "1"), ("b", "1")]));
        let overrides = map(&[("exec.b", "2"), ("exec-two.a", "3"), ("region-order.delay", "1h")]);
        assert_eq!(configuration.merged("exec", &overrides), map(&[("a", "1"), ("b", "2")]));
        assert_eq!(configuration.merged("region-order", &overrides), map(&[("delay", "1h")]));
    }
}
