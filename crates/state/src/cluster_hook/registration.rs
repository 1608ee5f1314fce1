//! Registrations: which changes a cluster hook is for, as data in the tree, so that every server matches against the
//! same set, also one that lacks the hook's code.
//!
//! Invariants:
//! - A hook's number is never given to another hook; a removed registration stays, marked, so that what waits is kept.
//! - A registration's definition version never falls. One version has one definition.
//! - The key's template and the delivery never change under one name: that would be a new hook.
//! - Under which key a request runs follows from the definition that was in force at its revision.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pattern::{Pattern, PatternError};
use super::slots::{SLOTS_MAX, SlotLayout};
use super::template::Template;
use crate::driver::HookNumber;
use crate::entity::{Entity, Root};
use crate::path::Path;
use crate::revision::Revision;

/// How many slots a hook has unless it says otherwise: enough to spread over a dozen servers.
const SLOTS_DEFAULT: u32 = 32;
/// The longest name of a hook, in bytes; it is an id in the tree.
const NAME_BYTES_MAX: usize = 128;
/// The most patterns that a registration can have.
const PATTERNS_MAX: usize = 64;
/// The most runs at once that a cluster-wide cap can allow.
const CAP_MAX: u32 = 1_024;

/// Which runs a hook is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// One run for each change, deletions included, with before and after, in order per key. A dead letter pauses its key.
    EveryChange,
    /// One run for however many changes of a key came since the last one started; it reads the snapshot. What a
    /// controller wants. A change brings a key forward that waits for a time.
    LatestState,
}

/// What a new registration begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Changes after the registration.
    Now,
    /// One run for each entity in scope that exists, then changes.
    Existing,
}

/// Describes a cluster hook. Build it, then hand it to `State::register` with the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    pub(crate) name: String,
    pub(crate) definition: Definition,
}

/// What a definition version stands for; all that two servers must agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definition {
    pub(crate) version: u32,
    pub(crate) patterns: Vec<String>,
    pub(crate) key: String,
    pub(crate) delivery: Delivery,
    pub(crate) start: Start,
    /// Failed runs until a dead letter; none is unlimited.
    pub(crate) attempts: Option<u32>,
    pub(crate) backoff_first_ms: u64,
    pub(crate) backoff_max_ms: u64,
    pub(crate) cap: Option<u32>,
    pub(crate) slots: u32,
}

impl Registration {
    /// A hook of this name, whose code has this definition version. Without further calls it gets every change, from now
    /// on, five attempts with a backoff from one second to five minutes, no cap, and 32 slots; patterns and key must be set.
    #[must_use]
    pub fn new(name: impl Into<String>, version: u32) -> Registration {
        Registration {
            name: name.into(),
            definition: Definition {
                version,
                patterns: Vec::new(),
                key: String::new(),
                delivery: Delivery::EveryChange,
                start: Start::Now,
                attempts: Some(5),
                backoff_first_ms: 1_000,
                backoff_max_ms: 300_000,
                cap: None,
                slots: SLOTS_DEFAULT,
            },
        }
    }

    /// Adds a path pattern: `/stores/{store}/pushes/{push}`; `*` matches any id, a trailing `/**` also all below.
    #[must_use]
    pub fn on(mut self, pattern: impl Into<String>) -> Self {
        self.definition.patterns.push(pattern.into());
        self
    }

    /// Sets the key's template over ids that every pattern binds: `{store}`. Runs of one key never overlap.
    #[must_use]
    pub fn key(mut self, template: impl Into<String>) -> Self {
        self.definition.key = template.into();
        self
    }

    /// Coalesced runs: [`Delivery::LatestState`].
    #[must_use]
    pub fn latest_state(mut self) -> Self {
        self.definition.delivery = Delivery::LatestState;
        self
    }

    /// A run for each change: [`Delivery::EveryChange`]. The default.
    #[must_use]
    pub fn every_change(mut self) -> Self {
        self.definition.delivery = Delivery::EveryChange;
        self
    }

    /// Runs for changes after the registration only. The default.
    #[must_use]
    pub fn from_now(mut self) -> Self {
        self.definition.start = Start::Now;
        self
    }

    /// Runs once for each entity in scope that exists when the hook is first registered, then for changes.
    #[must_use]
    pub fn from_existing(mut self) -> Self {
        self.definition.start = Start::Existing;
        self
    }

    /// How many runs of a request may fail before it is a dead letter; at least 1.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.definition.attempts = Some(attempts);
        self
    }

    /// Failed runs are tried again for ever. For controllers.
    #[must_use]
    pub fn attempts_unlimited(mut self) -> Self {
        self.definition.attempts = None;
        self
    }

    /// How long after a failed run the next one starts: about `first` after the first, twice as long after each
    /// further one, up to `max`; jittered by up to a quarter less.
    #[must_use]
    pub fn backoff(mut self, first: Duration, max: Duration) -> Self {
        self.definition.backoff_first_ms = u64::try_from(first.as_millis()).unwrap_or(u64::MAX);
        self.definition.backoff_max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// At most so many runs at once in the whole cluster, at most 1 024. Costs a lease per permit; without it only each
    /// server's own room bounds the runs.
    #[must_use]
    pub fn runs_in_cluster(mut self, cap: u32) -> Self {
        self.definition.cap = Some(cap);
        self
    }

    /// How many slots the keys hash to, at most 4 096: the most servers that can share the hook. Changing it takes a
    /// higher definition version, and effect when the old slots are drained.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.definition.slots = slots;
        self
    }

    /// The hook's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks everything that can be checked without the tree.
    pub(crate) fn check(&self) -> Result<(), RegisterError> {
        let definition = &self.definition;
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return Err(RegisterError::OutOfBounds {
                what: "the length of the hook's name",
                value: self.name.len() as u64,
                bounds: "1 to 128 bytes",
            });
        }
        if definition.patterns.is_empty() {
            return Err(PatternError::NoPattern.into());
        }
        let bounds: [(&'static str, u64, bool, &'static str); 5] = [
            (
                "the number of patterns",
                definition.patterns.len() as u64,
                definition.patterns.len() <= PATTERNS_MAX,
                "1 to 64",
            ),
            ("slots", definition.slots.into(), (1..=SLOTS_MAX).contains(&definition.slots), "1 to 4096"),
            (
                "attempts",
                definition.attempts.unwrap_or(1).into(),
                definition.attempts != Some(0),
                "1 or more, or attempts_unlimited()",
            ),
            (
                "runs_in_cluster",
                definition.cap.unwrap_or(1).into(),
                definition.cap.is_none_or(|cap| (1..=CAP_MAX).contains(&cap)),
                "1 to 1024",
            ),
            (
                "the first backoff in milliseconds",
                definition.backoff_first_ms,
                definition.backoff_first_ms <= definition.backoff_max_ms,
                "at most the longest backoff",
            ),
        ];
        for (what, value, fine, bounds) in bounds {
            if !fine {
                return Err(RegisterError::OutOfBounds { what, value, bounds });
            }
        }
        let template = Template::parse(&definition.key)?;
        for pattern in &definition.patterns {
            template.bind(&Pattern::parse(pattern)?)?;
        }
        Ok(())
    }
}

/// Why a hook could not be registered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegisterError {
    /// A pattern or the key's template is malformed, or they don't fit each other.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A number is out of its bounds.
    #[error("{what} is {value}; allowed: {bounds}")]
    OutOfBounds {
        /// Which number.
        what: &'static str,
        /// What was asked for.
        value: u64,
        /// What is allowed.
        bounds: &'static str,
    },
    /// The same name and version are registered with another definition. Raise the version to change it.
    #[error("hook {name:?} is registered in version {version} with another definition: {}; raise the version to change it", .differs.join("; "))]
    Differs {
        /// The hook.
        name: String,
        /// The version.
        version: u32,
        /// What differs, each with both values.
        differs: Vec<String>,
    },
    /// The key's template or the delivery is not what the hook was first registered with.
    #[error(
        "{what} of hook {name:?} is {registered:?} and can't become {asked:?}: that is a new hook, and needs a new name"
    )]
    NewHook {
        /// The hook.
        name: String,
        /// `the key's template` or `the delivery`.
        what: &'static str,
        /// As registered.
        registered: String,
        /// As asked for.
        asked: String,
    },
    /// This server already runs a hook of this name; drop its handle first.
    #[error("this server already runs hook {name:?}")]
    AlreadyHere {
        /// The hook.
        name: String,
    },
    /// The registration could not be written; nothing was registered.
    #[error("the registration could not be written: {reason}")]
    Write {
        /// The write's own error.
        reason: String,
        /// Whether the same call may succeed later.
        retryable: bool,
    },
    /// The state is closed, or closing.
    #[error("the state is closed")]
    Closed,
}

/// A registration as it stands in the tree, under `/cluster-hooks/{name}`. Written by `State::register` alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegistrationEntity {
    pub(crate) number: HookNumber,
    pub(crate) definition: Definition,
    /// Which patterns were in force up to which revision, the oldest first; the current ones are in `definition`.
    #[serde(default)]
    pub(crate) earlier: Vec<EarlierPatterns>,
    /// The slots, the oldest layout first. The last one is current; those before it wait to be drained.
    pub(crate) layouts: Vec<SlotLayout>,
    /// How far asking for what exists has come; none when it is done.
    #[serde(default)]
    pub(crate) catch_up: Option<CatchUp>,
    /// Makes no more requests; what waits is kept.
    #[serde(default)]
    pub(crate) removed: bool,
}

/// Patterns that were in force once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EarlierPatterns {
    /// The last revision that matched by them.
    pub(crate) until: Revision,
    pub(crate) patterns: Vec<String>,
}

/// The state of asking for a run for each entity that was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CatchUp {
    /// Entities that last changed at or below this revision were there.
    pub(crate) since: Revision,
    /// Entities up to this path (by the bytes of its text) have been asked for.
    pub(crate) cursor: Option<Path>,
}

impl Entity for RegistrationEntity {
    const COLLECTION: &'static str = "cluster-hooks";
    type Parent = Root;
    type Id = String;
}

impl RegistrationEntity {
    /// The number that log rows name the hook by.
    #[must_use]
    pub fn number(&self) -> HookNumber {
        self.number
    }

    /// The definition version in force.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.definition.version
    }

    /// Which runs the hook is given.
    #[must_use]
    pub fn delivery(&self) -> Delivery {
        self.definition.delivery
    }

    /// The path patterns in force.
    #[must_use]
    pub fn patterns(&self) -> &[String] {
        &self.definition.patterns
    }

    /// The key's template.
    #[must_use]
    pub fn key_template(&self) -> &str {
        &self.definition.key
    }

    /// Failed runs until a dead letter; none is unlimited.
    #[must_use]
    pub fn attempts(&self) -> Option<u32> {
        self.definition.attempts
    }

    /// How many runs at once in the whole cluster; none is unbounded.
    #[must_use]
    pub fn runs_in_cluster(&self) -> Option<u32> {
        self.definition.cap
    }

    /// Whether the registration was removed.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// The number of slots in force for new requests.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.current_layout().count
    }

    pub(crate) fn current_layout(&self) -> SlotLayout {
        *self.layouts.last().expect("a registration has a layout from its first day, and the last is never removed")
    }

    /// The layout that a request of this revision belongs to.
    pub(crate) fn layout_at(&self, revision: Revision) -> SlotLayout {
        let fitting = self.layouts.iter().find(|layout| layout.until.is_none_or(|until| revision <= until));
        *fitting.unwrap_or(self.layouts.last().expect("as above"))
    }
}

/// What registering comes to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// The registration stands as asked for, or in a higher version.
    Unchanged(HookNumber),
    /// This is to be written.
    Put(Box<RegistrationEntity>),
}

/// Decides what a registration does to what stands in the tree.
///
/// `next_number` is above every number that was ever given out; `revision` is the one that the transaction would take.
pub(crate) fn decide(
    existing: Option<&RegistrationEntity>,
    wanted: &Registration,
    next_number: HookNumber,
    revision: Revision,
) -> Result<Decision, RegisterError> {
    let before = Revision(revision.0.saturating_sub(1));
    let catch_up = (wanted.definition.start == Start::Existing).then_some(CatchUp { since: before, cursor: None });
    let Some(existing) = existing else {
        let layouts = vec![SlotLayout { generation: 0, count: wanted.definition.slots, since: before, until: None }];
        return Ok(Decision::Put(Box::new(RegistrationEntity {
            number: next_number,
            definition: wanted.definition.clone(),
            earlier: Vec::new(),
            layouts,
            catch_up,
            removed: false,
        })));
    };
    let new_hook = |what, registered: String, asked: String| {
        Err(RegisterError::NewHook { name: wanted.name.clone(), what, registered, asked })
    };
    if existing.definition.key != wanted.definition.key {
        return new_hook("the key's template", existing.definition.key.clone(), wanted.definition.key.clone());
    }
    if existing.definition.delivery != wanted.definition.delivery {
        let text = |delivery: Delivery| format!("{delivery:?}");
        return new_hook("the delivery", text(existing.definition.delivery), text(wanted.definition.delivery));
    }
    if wanted.definition.version < existing.definition.version {
        return Ok(Decision::Unchanged(existing.number));
    }
    if wanted.definition.version == existing.definition.version {
        let differs = differences(&existing.definition, &wanted.definition);
        if !differs.is_empty() {
            return Err(RegisterError::Differs {
                name: wanted.name.clone(),
                version: wanted.definition.version,
                differs,
            });
        }
        if !existing.removed {
            return Ok(Decision::Unchanged(existing.number));
        }
    }
    let mut entity = existing.clone();
    if entity.definition.patterns != wanted.definition.patterns {
        entity.earlier.push(EarlierPatterns { until: revision, patterns: entity.definition.patterns.clone() });
    }
    if entity.definition.slots != wanted.definition.slots {
        let last = entity.layouts.last_mut().expect("a registration always has a layout");
        last.until = Some(revision);
        let generation = last.generation + 1;
        entity.layouts.push(SlotLayout { generation, count: wanted.definition.slots, since: revision, until: None });
    }
    if entity.removed {
        // What changed meanwhile made no requests, so what exists is asked for again where the hook wants that.
        entity.removed = false;
        entity.catch_up = catch_up;
    }
    entity.definition = wanted.definition.clone();
    Ok(Decision::Put(Box::new(entity)))
}

/// What differs between two definitions, each with both values.
fn differences(registered: &Definition, asked: &Definition) -> Vec<String> {
    let mut differs = Vec::new();
    let mut compare = |what: &str, registered: String, asked: String| {
        if registered != asked {
            differs.push(format!("{what}: {registered} is registered, {asked} was asked for"));
        }
    };
    compare("patterns", format!("{:?}", registered.patterns), format!("{:?}", asked.patterns));
    compare("key", format!("{:?}", registered.key), format!("{:?}", asked.key));
    compare("delivery", format!("{:?}", registered.delivery), format!("{:?}", asked.delivery));
    compare("start", format!("{:?}", registered.start), format!("{:?}", asked.start));
    let attempts = |attempts: Option<u32>| attempts.map_or("unlimited".to_owned(), |number| number.to_string());
    compare("attempts", attempts(registered.attempts), attempts(asked.attempts));
    compare(
        "backoff",
        format!("{} to {} ms", registered.backoff_first_ms, registered.backoff_max_ms),
        format!("{} to {} ms", asked.backoff_first_ms, asked.backoff_max_ms),
    );
    let cap = |cap: Option<u32>| cap.map_or("none".to_owned(), |number| number.to_string());
    compare("runs in the cluster", cap(registered.cap), cap(asked.cap));
    compare("slots", registered.slots.to_string(), asked.slots.to_string());
    differs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(version: u32) -> Registration {
        Registration::new("sync", version).on("/stores/{store}").key("{store}")
    }

    fn put(decision: Result<Decision, RegisterError>) -> RegistrationEntity {
        match decision {
            Ok(Decision::Put(entity)) => *entity,
            other => panic!("{other:?}"),
        }
    }

    fn first() -> RegistrationEntity {
        put(decide(None, &hook(2), HookNumber(7), Revision(10)))
    }

    #[test]
    fn k24_the_same_definition_again_is_no_change() {
        let decision = decide(Some(&first()), &hook(2), HookNumber(8), Revision(20)).unwrap();
        assert_eq!(decision, Decision::Unchanged(HookNumber(7)));
    }

    #[test]
    fn k24_another_definition_under_the_same_version_is_refused_naming_what_differs() {
        let other = hook(2).attempts(9).slots(4);
        let error = decide(Some(&first()), &other, HookNumber(8), Revision(20)).unwrap_err().to_string();
        assert!(error.contains("attempts: 5 is registered, 9 was asked for"), "{error}");
        assert!(error.contains("slots: 32 is registered, 4 was asked for"), "{error}");
        assert!(!error.contains("backoff"), "{error}");
    }

    #[test]
    fn k38_a_higher_version_replaces_and_a_lower_one_never_does() {
        let raised = put(decide(Some(&first()), &hook(3).on("/regions/{store}"), HookNumber(8), Revision(20)));
        assert_eq!((raised.number, raised.version()), (HookNumber(7), 3));
        assert_eq!(raised.earlier[0].until, Revision(20));
        let lower = decide(Some(&raised), &hook(1).attempts(1), HookNumber(8), Revision(30)).unwrap();
        assert_eq!(lower, Decision::Unchanged(HookNumber(7)));
    }

    #[test]
    fn k38_another_template_or_delivery_is_a_new_hook() {
        let other = Registration::new("sync", 3).on("/stores/{store}").key("x{store}");
        let error = decide(Some(&first()), &other, HookNumber(8), Revision(20)).unwrap_err().to_string();
        assert!(error.contains("new hook"), "{error}");
        let error = decide(Some(&first()), &hook(3).latest_state(), HookNumber(8), Revision(20)).unwrap_err();
        assert!(matches!(error, RegisterError::NewHook { what: "the delivery", .. }));
    }

    #[test]
    fn k25_put_back_a_removed_registration_keeps_its_number() {
        let mut removed = first();
        removed.removed = true;
        let back = put(decide(Some(&removed), &hook(2), HookNumber(8), Revision(20)));
        assert!(!back.removed);
        assert_eq!(back.number, HookNumber(7));
    }

    #[test]
    fn k49_another_number_of_slots_opens_a_layout_of_the_next_generation() {
        let raised = put(decide(Some(&first()), &hook(3).slots(64), HookNumber(8), Revision(20)));
        assert_eq!(raised.layout_at(Revision(20)).count, 32);
        assert_eq!(raised.layout_at(Revision(21)).count, 64);
        assert_eq!(raised.current_layout().generation, 1);
    }

    #[test]
    fn k36_bad_patterns_templates_and_numbers_are_refused_before_anything_is_written() {
        assert!(matches!(
            Registration::new("x", 1).key("{a}").check(),
            Err(RegisterError::Pattern(PatternError::NoPattern))
        ));
        assert!(hook(1).check().is_ok());
        assert!(matches!(hook(1).on("/stores/*").check(), Err(RegisterError::Pattern(PatternError::Unbound { .. }))));
        for bad in [hook(1).slots(0), hook(1).slots(5_000), hook(1).attempts(0), hook(1).runs_in_cluster(0)] {
            assert!(matches!(bad.check(), Err(RegisterError::OutOfBounds { .. })), "{bad:?}");
        }
        let backwards = hook(1).backoff(Duration::from_secs(2), Duration::from_secs(1));
        assert!(matches!(backwards.check(), Err(RegisterError::OutOfBounds { .. })));
    }
}
