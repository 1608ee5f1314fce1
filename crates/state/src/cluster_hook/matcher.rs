//! Matching: which hooks a change asks to run, and under which key. Compiled from the registrations of one tree.
//!
//! Invariant: the answer follows from the registrations in the tree before the transaction and from the path alone, so
//! that every server, whatever code it has, makes the same requests (design: a registration is data).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::pattern::Pattern;
use super::registration::{Delivery, RegistrationEntity};
use super::slots::SlotLayout;
use super::template::{BoundTemplate, Template};
use crate::driver::{HookNumber, RequestId, SlotId};
use crate::entity::{Entity, EntityId};
use crate::path::Path;
use crate::revision::Revision;
use crate::tree::Tree;

/// One level of collections; patterns hang where their collections end.
#[derive(Debug, Default)]
struct Level {
    exact: Vec<Candidate>,
    below: Vec<Candidate>,
    next: Vec<(Box<str>, Level)>,
}

#[derive(Debug, Clone)]
struct Candidate {
    hook: HookNumber,
    pattern: Arc<Pattern>,
}

/// What a change asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Requested {
    /// Hooks that asked for what exists and had not come to this entity: it is asked for before the change is.
    pub(crate) existing_first: Vec<HookNumber>,
    /// The hooks that the change itself asks to run, by number.
    pub(crate) hooks: Vec<HookNumber>,
}

/// The registrations of one tree, ready to be matched.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    top: Level,
    hooks: HashMap<HookNumber, Arc<Definitions>, FixedState>,
    catching_up: Vec<Arc<Definitions>>,
}

impl Matcher {
    /// Whether a change of this path changes the registrations.
    pub(crate) fn concerns(path: &Path) -> bool {
        path.depth() == 1 && path.collection() == RegistrationEntity::COLLECTION
    }

    /// Compiles the registrations of a tree.
    pub(crate) fn of(tree: &Tree) -> Arc<Matcher> {
        let mut matcher = Matcher::default();
        for path in tree.children(&Path::root(), RegistrationEntity::COLLECTION) {
            let Some(node) = tree.get(path) else { continue };
            let name = String::from_text(&path.id()).unwrap_or_default();
            match node.document.get::<RegistrationEntity>() {
                Ok(entity) => matcher.add(&name, entity),
                // Only a newer release can have written it; its changes are not requested by this one.
                Err(reason) => tracing::error!(hook = name, %reason, "a cluster hook's registration can't be read"),
            }
        }
        Arc::new(matcher)
    }

    pub(crate) fn add(&mut self, name: &str, entity: &RegistrationEntity) {
        let definitions = match Definitions::new(name, entity) {
            Ok(definitions) => Arc::new(definitions),
            Err(error) => {
                tracing::error!(hook = name, %error, "a cluster hook's registration is malformed");
                return;
            }
        };
        if !entity.removed {
            for bound in &definitions.current().bound {
                let mut level = &mut self.top;
                for collection in bound.pattern.collections() {
                    let at = match level.next.iter().position(|(name, _)| &**name == collection) {
                        Some(at) => at,
                        None => {
                            level.next.push((collection.into(), Level::default()));
                            level.next.len() - 1
                        }
                    };
                    level = &mut level.next[at].1;
                }
                let candidates = if bound.pattern.reaches_below() { &mut level.below } else { &mut level.exact };
                candidates.push(Candidate { hook: entity.number, pattern: bound.pattern.clone() });
            }
            if entity.catch_up.is_some() {
                self.catching_up.push(definitions.clone());
            }
        }
        self.hooks.insert(entity.number, definitions);
    }

    /// The hooks that a change of this path asks to run, by number, each once.
    pub(crate) fn hooks_for(&self, path: &Path) -> Vec<HookNumber> {
        let mut found = Vec::new();
        let mut take = |candidates: &[Candidate]| {
            for candidate in candidates {
                if candidate.pattern.ids_match(path) && !found.contains(&candidate.hook) {
                    found.push(candidate.hook);
                }
            }
        };
        let mut level = &self.top;
        take(&level.below);
        let mut segments = path.as_str().split('/').skip(1);
        let mut whole = path.depth() > 0;
        while let (Some(collection), Some(_)) = (segments.next(), segments.next()) {
            let Some((_, next)) = level.next.iter().find(|(name, _)| &**name == collection) else {
                whole = false;
                break;
            };
            level = next;
            take(&level.below);
        }
        if whole {
            take(&level.exact);
        }
        found.sort_unstable();
        found
    }

    /// All that a change asks for. `existed_since` is the revision that last changed the entity before this change; none
    /// if the change creates it.
    pub(crate) fn requested(&self, path: &Path, existed_since: Option<Revision>) -> Requested {
        let hooks = self.hooks_for(path);
        let mut existing_first = Vec::new();
        if let (Some(changed_at), false) = (existed_since, self.catching_up.is_empty()) {
            for definitions in &self.catching_up {
                let Some(catch_up) = &definitions.entity.catch_up else { continue };
                let to_come = catch_up.cursor.as_ref().is_none_or(|cursor| cursor < path);
                if to_come && changed_at <= catch_up.since && hooks.contains(&definitions.entity.number) {
                    existing_first.push(definitions.entity.number);
                }
            }
        }
        Requested { existing_first, hooks }
    }

    /// Whether the log row must carry what was there before: an `EveryChange` hook is among these.
    pub(crate) fn wants_before(&self, hooks: &[HookNumber]) -> bool {
        hooks.iter().any(|hook| {
            self.hooks.get(hook).is_some_and(|definitions| definitions.entity.delivery() == Delivery::EveryChange)
        })
    }

    /// The definitions of one hook, removed ones too.
    pub(crate) fn hook(&self, hook: HookNumber) -> Option<&Arc<Definitions>> {
        self.hooks.get(&hook)
    }

    /// All hooks, removed ones too, in no order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Definitions>> {
        self.hooks.values()
    }
}

#[derive(Debug)]
struct Bound {
    pattern: Arc<Pattern>,
    template: BoundTemplate,
}

#[derive(Debug)]
struct Period {
    /// The last revision that matched by it; none for the current one.
    until: Option<Revision>,
    bound: Vec<Bound>,
}

/// One hook's registration, parsed: what keys its requests have, now and under earlier definitions.
#[derive(Debug)]
pub(crate) struct Definitions {
    pub(crate) name: Arc<str>,
    pub(crate) entity: RegistrationEntity,
    pub(crate) template: Template,
    periods: Vec<Period>,
}

impl Definitions {
    pub(crate) fn new(name: &str, entity: &RegistrationEntity) -> Result<Definitions, super::pattern::PatternError> {
        let template = Template::parse(&entity.definition.key)?;
        let bind = |patterns: &[String]| {
            let mut bound = Vec::with_capacity(patterns.len());
            for pattern in patterns {
                let pattern = Pattern::parse(pattern)?;
                let template = template.bind(&pattern)?;
                bound.push(Bound { pattern: Arc::new(pattern), template });
            }
            Ok(bound)
        };
        let mut periods = Vec::with_capacity(entity.earlier.len() + 1);
        for earlier in &entity.earlier {
            periods.push(Period { until: Some(earlier.until), bound: bind(&earlier.patterns)? });
        }
        periods.push(Period { until: None, bound: bind(&entity.definition.patterns)? });
        Ok(Definitions { name: name.into(), entity: entity.clone(), template, periods })
    }

    fn current(&self) -> &Period {
        self.periods.last().expect("made with one period at least")
    }

    /// The key of a request for a change of this path at this revision. None if no pattern of that time fits, which
    /// is so for no request in the log.
    pub(crate) fn key_of<'p>(&self, path: &'p Path, revision: Revision) -> Option<Cow<'p, str>> {
        let period = self.periods.iter().find(|period| period.until.is_none_or(|until| revision <= until))?;
        period.bound.iter().find(|bound| bound.pattern.matches(path)).map(|bound| bound.template.key(path))
    }

    /// The slot of a request, and its key.
    pub(crate) fn slot_of<'p>(&self, path: &'p Path, request: RequestId) -> Option<(SlotId, Cow<'p, str>)> {
        let key = self.key_of(path, request.revision)?;
        let layout = self.entity.layout_at(request.revision);
        Some((layout.slot_of(self.entity.number, &key), key))
    }

    /// Whether the patterns in force cover a path.
    pub(crate) fn covers(&self, path: &Path) -> bool {
        self.current().bound.iter().any(|bound| bound.pattern.matches(path))
    }

    /// Where a key of a slot was in the layouts before that slot's.
    pub(crate) fn earlier_slots(&self, slot: SlotId, key: &str) -> impl Iterator<Item = SlotId> {
        let layouts = self.layouts();
        let place = layouts.iter().position(|layout| layout.contains(slot)).unwrap_or(0);
        layouts[..place].iter().map(move |layout| layout.slot_of(self.entity.number, key))
    }

    /// No request at or below this revision is a slot's own, whatever its watermark says: that of a slot which nobody had
    /// before only says up to where the log was compacted. Nor is an action on what was handed to the slot: whoever handed it
    /// over had taken in every row up to here, and had it settled.
    pub(crate) fn begins(&self, slot: SlotId) -> Revision {
        self.layouts().iter().find(|layout| layout.contains(slot)).map_or(Revision::ZERO, |layout| layout.since)
    }

    /// The layouts, the oldest first.
    pub(crate) fn layouts(&self) -> &[SlotLayout] {
        &self.entity.layouts
    }
}

#[cfg(test)]
mod tests {
    use super::super::registration::{CatchUp, Decision, Registration, decide};
    use super::*;

    fn entity(registration: &Registration, number: u32) -> RegistrationEntity {
        match decide(None, registration, HookNumber(number), Revision(10)) {
            Ok(Decision::Put(entity)) => *entity,
            other => panic!("{other:?}"),
        }
    }

    fn path(text: &str) -> Path {
        Path::parse(text).unwrap()
    }

    #[test]
    fn k04_each_hook_is_asked_for_once_however_many_of_its_patterns_match() {
        let mut matcher = Matcher::default();
        let both =
            Registration::new("b", 1).on("/stores/{s}/**").on("/stores/{s}/versions/*").key("{s}").latest_state();
        let versions = Registration::new("a", 1).on("/stores/{s}/versions/*").key("{s}");
        let all = Registration::new("c", 1).on("/**").key("all").latest_state();
        matcher.add("b", &entity(&both, 2));
        matcher.add("a", &entity(&versions, 1));
        matcher.add("c", &entity(&all, 3));
        let hooks = |text: &str| matcher.hooks_for(&path(text)).iter().map(|hook| hook.0).collect::<Vec<_>>();
        assert_eq!(hooks("/stores/x/versions/1"), [1, 2, 3]);
        assert_eq!(hooks("/stores/x"), [2, 3]);
        assert_eq!(hooks("/stores/x/pushes/1/gates/y"), [2, 3]);
        assert_eq!(hooks("/regions/x"), [3]);
        assert!(matcher.wants_before(&[HookNumber(1), HookNumber(3)]));
        assert!(!matcher.wants_before(&[HookNumber(2), HookNumber(3)]));
    }

    #[test]
    fn k25_a_removed_registration_matches_nothing_and_still_knows_its_keys() {
        let mut matcher = Matcher::default();
        let mut removed = entity(&Registration::new("a", 1).on("/stores/{s}").key("{s}"), 1);
        removed.removed = true;
        matcher.add("a", &removed);
        assert!(matcher.hooks_for(&path("/stores/x")).is_empty());
        let definitions = matcher.hook(HookNumber(1)).unwrap();
        assert_eq!(definitions.key_of(&path("/stores/x"), Revision(20)).unwrap(), "x");
    }

    #[test]
    fn k38_a_request_keeps_the_key_of_the_definition_that_made_it() {
        let first = entity(&Registration::new("a", 1).on("/x/{a}/y/{b}").key("{a}"), 1);
        let second = Registration::new("a", 2).on("/x/{b}/y/{a}").key("{a}");
        let Ok(Decision::Put(raised)) = decide(Some(&first), &second, HookNumber(2), Revision(50)) else { panic!() };
        let definitions = Definitions::new("a", &raised).unwrap();
        let path = path("/x/one/y/two");
        assert_eq!(definitions.key_of(&path, Revision(50)).unwrap(), "one");
        assert_eq!(definitions.key_of(&path, Revision(51)).unwrap(), "two");
    }

    #[test]
    fn k23_a_change_of_what_is_still_to_be_asked_for_asks_for_it_first() {
        let mut matcher = Matcher::default();
        let mut hook = entity(&Registration::new("a", 1).on("/stores/{s}").key("{s}").from_existing(), 1);
        assert_eq!(hook.catch_up, Some(CatchUp { since: Revision(9), cursor: None }));
        hook.catch_up = Some(CatchUp { since: Revision(9), cursor: Some(path("/stores/m")) });
        matcher.add("a", &hook);
        let first = |text: &str, existed| matcher.requested(&path(text), existed).existing_first.len();
        assert_eq!(first("/stores/x", Some(Revision(9))), 1, "was there, and is to come");
        assert_eq!(first("/stores/x", Some(Revision(10))), 0, "changed since, so it was asked for then");
        assert_eq!(first("/stores/x", None), 0, "is new");
        assert_eq!(first("/stores/m", Some(Revision(9))), 0, "was asked for");
        assert_eq!(first("/stores/a", Some(Revision(9))), 0, "was asked for");
    }
}
