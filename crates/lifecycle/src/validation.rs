//! Settings are judged before they come into force: keys by the framework, values by the hook that they are for.
//!
//! Invariant: only what an update sets is judged. What is there already, of a hook that is not enabled any more or has
//! become stricter, is never a reason to refuse something else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tidegate_state::Timestamp;

use crate::configuration::{HooksConfiguration, Mode, OnFailure, Refusal};
use crate::contract::{HookError, ValidationContext};
use crate::function::Function;
use crate::gate::TWO_OUTCOME_ATTEMPTS_MAX;
use crate::hooks_file::HooksFile;
use crate::lifecycle::Lifecycle;
use crate::metrics::Counted;
use crate::outcome::{StoreLifecycleEventOutcome as Two, Verdict};
use crate::pool::CallError;
use crate::registry::HookDescriptor;

/// The most overrides of one store.
pub const OVERRIDES_MAX: usize = 200;
/// The longest value of an override, in bytes.
pub const OVERRIDE_BYTES_MAX: usize = 4 * 1024;

/// An update of a store's overrides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverrideUpdate {
    /// Keys (`<hook>.<key>`) and their new values.
    pub set: BTreeMap<String, String>,
    /// Keys that go. One that is not there is no error.
    pub unset: Vec<String>,
}

/// What values are judged against.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The regions there are; none where that is not known yet.
    pub regions: Option<BTreeSet<String>>,
    /// Now.
    pub now: Timestamp,
}

/// Who is judged: the settings of one hook.
struct Subject<'a> {
    descriptor: &'a HookDescriptor,
    store: Option<&'a str>,
    /// The published table, which the hook is made with.
    published: BTreeMap<String, String>,
    /// As it would be with the update in force.
    merged: BTreeMap<String, String>,
}

impl Lifecycle {
    /// A store's overrides with an update in force, if the hooks that it names accept it. All of it, or nothing.
    ///
    /// # Errors
    /// Which key and value is refused, and why.
    pub async fn validate_overrides(
        &self,
        published: &HooksConfiguration,
        store: &str,
        overrides: &BTreeMap<String, String>,
        update: &OverrideUpdate,
        surroundings: &Surroundings,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let mut after = overrides.clone();
        for key in &update.unset {
            after.remove(key);
        }
        after.extend(update.set.clone());
        if after.len() > OVERRIDES_MAX && after.len() > overrides.len() {
            return Err(refuse_override(store, &format!("{} overrides (limit {OVERRIDES_MAX})", after.len()), None));
        }
        for (name, value) in &update.set {
            let (hook, key) = split(store, name)?;
            let Some(descriptor) = self.registry().get(hook) else {
                return Err(refuse_override(store, &self.unknown_hook(published, hook), Some(self.which_hooks())));
            };
            if value.len() > OVERRIDE_BYTES_MAX {
                let why = format!("{name}: {} bytes (limit {OVERRIDE_BYTES_MAX})", value.len());
                return Err(refuse_override(store, &why, None));
            }
            let subject = Subject {
                descriptor,
                store: Some(store),
                published: published.hooks.get(hook).cloned().unwrap_or_default(),
                merged: published.merged(hook, &after),
            };
            self.judge(&subject, key, value, published.timeout(), surroundings)
                .await
                .map_err(|why| refuse_override(store, &format!("{hook}: {why}"), None))?;
        }
        Ok(after)
    }

    /// Asks every hook whether a file's settings are acceptable.
    ///
    /// # Errors
    /// Which hook refuses which key and value, and why.
    pub async fn validate_file(&self, file: &HooksFile, surroundings: &Surroundings) -> Result<(), Refusal> {
        for (hook, settings) in &file.hooks {
            for (key, value) in settings {
                let verdict = match self.registry().get(hook) {
                    None => Err(format!("there is no hook {hook}; there are {}", self.known_hooks())),
                    Some(descriptor) => {
                        let subject =
                            Subject { descriptor, store: None, published: settings.clone(), merged: settings.clone() };
                        self.judge(&subject, key, value, Duration::from_millis(file.timeout_ms), surroundings).await
                    }
                };
                verdict.map_err(|why| Refusal {
                    what: "The hooks configuration was refused".to_owned(),
                    why: format!("{hook}: {why}"),
                    consequences: "Nothing was published; what was in force stays in force".to_owned(),
                    countermeasures: format!("Correct {key} of {hook} and apply the file again"),
                })?;
            }
        }
        Ok(())
    }

    fn which_hooks(&self) -> String {
        format!("Name a hook that this server was built with: {}", self.known_hooks())
    }

    fn known_hooks(&self) -> String {
        self.registry().names().collect::<Vec<_>>().join(", ")
    }

    fn unknown_hook(&self, published: &HooksConfiguration, hook: &str) -> String {
        if published.enabled.iter().any(|name| name == hook) {
            format!(
                "hook {hook} is enabled, but this server was not built with it and can't ask it; ask another server"
            )
        } else {
            format!("there is no hook {hook:?}; there are {}", self.known_hooks())
        }
    }

    /// Judges one key and value.
    async fn judge(
        &self,
        subject: &Subject<'_>,
        key: &str,
        value: &str,
        timeout: Duration,
        surroundings: &Surroundings,
    ) -> Result<(), String> {
        match key {
            "mode" if Mode::parse(value).is_some() => return Ok(()),
            "mode" => return Err(format!("mode = {value:?}: is none of enforce, observe, off")),
            "on_failure" if OnFailure::parse(value).is_some() => return Ok(()),
            "on_failure" => return Err(format!("on_failure = {value:?}: is none of wait, abort, proceed")),
            _ => {}
        }
        if let Some(keys) = subject.descriptor.keys
            && !keys.iter().any(|known| covers(known.key, key))
        {
            let known = keys.iter().map(|known| known.key.replace(".*", ".<name>")).collect::<Vec<_>>().join(", ");
            return Err(format!("{key} = {value:?}: there is no such key; there are {known}, mode, on_failure"));
        }
        let mut failure = String::new();
        for _ in 0..TWO_OUTCOME_ATTEMPTS_MAX {
            match self.ask_to_validate(subject, key, value, timeout, surroundings).await {
                Ok(Ok(Two::Proceed)) => return Ok(()),
                Ok(Ok(Two::Abort { reason })) => return Err(reason),
                Ok(Err(error)) => failure = error.to_string(),
                Err(error @ CallError::Panicked(_)) => failure = error.to_string(),
                // Asking again at once would only hold the user up.
                Err(error) => {
                    failure = error.to_string();
                    break;
                }
            }
        }
        match subject.merged.get("on_failure").and_then(|text| OnFailure::parse(text)) {
            Some(OnFailure::Proceed) => Ok(()),
            Some(OnFailure::Wait | OnFailure::Abort) | None => {
                Err(format!("{key} = {value:?}: could not be judged, the hook failed: {failure}"))
            }
        }
    }

    async fn ask_to_validate(
        &self,
        subject: &Subject<'_>,
        key: &str,
        value: &str,
        timeout: Duration,
        surroundings: &Surroundings,
    ) -> Result<Result<Two, HookError>, CallError> {
        let hook = subject.descriptor.name.clone();
        let context = ValidationContext {
            store: subject.store.map(str::to_owned),
            key: key.to_owned(),
            value: value.to_owned(),
            config: subject.merged.clone(),
            regions: surroundings.regions.clone(),
            now: surroundings.now,
        };
        let factory = Arc::clone(&subject.descriptor.factory);
        let published = subject.published.clone();
        let asked = std::time::Instant::now();
        let started = Arc::new(parking_lot::Mutex::new(asked));
        let stamp = Arc::clone(&started);
        let answer = self
            .pool()
            .call(timeout, move |_| {
                *stamp.lock() = std::time::Instant::now();
                async move { factory(&published)?.validate_hook_config(&context).await.map(|answer| answer.outcome) }
            })
            .await;
        let counted = match &answer {
            Ok(Ok(Two::Proceed)) => Some(Counted::Answered(Some(Verdict::Proceed))),
            Ok(Ok(Two::Abort { .. })) => Some(Counted::Answered(Some(Verdict::Abort))),
            Ok(Err(_)) | Err(CallError::Panicked(_)) => Some(Counted::Failed),
            Err(CallError::TimedOut { .. }) => Some(Counted::TimedOut),
            Err(CallError::QueueFull { .. } | CallError::Closed) => None,
        };
        if let Some(counted) = counted {
            let started = *started.lock();
            let (waited, took) = (started.duration_since(asked), started.elapsed());
            self.metrics().count(&hook, Function::ValidateHookConfig, counted, waited, took);
        }
        answer
    }
}

/// Whether a hook's key, perhaps one for every field, stands for this one.
fn covers(known: &str, key: &str) -> bool {
    match known.strip_suffix('*') {
        Some(beginning) => key.len() > beginning.len() && key.starts_with(beginning),
        None => known == key,
    }
}

fn split<'a>(store: &str, name: &'a str) -> Result<(&'a str, &'a str), Refusal> {
    name.split_once('.').filter(|(hook, key)| !hook.is_empty() && !key.is_empty()).ok_or_else(|| {
        let how = "Write it as <hook>.<key>: region-order.delay".to_owned();
        refuse_override(
            store,
            &format!("{name:?} is not the key of a setting: it does not say of which hook"),
            Some(how),
        )
    })
}

fn refuse_override(store: &str, why: &str, countermeasures: Option<String>) -> Refusal {
    Refusal {
        what: format!("The settings of hooks for store {store} were not changed"),
        why: why.to_owned(),
        consequences: "Nothing of the update was applied".to_owned(),
        countermeasures: countermeasures.unwrap_or_else(|| "Correct it and try again".to_owned()),
    }
}
