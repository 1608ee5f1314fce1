//! G10: what servers declared of their hooks, and what they run and own by it.

use std::collections::HashMap;

use super::checker::{Checker, Rule, RunLine};
use super::{HistoryEvent, Line};
use crate::driver::HookNumber;

/// What each server declared of each hook, from which line on: version and room.
pub(super) type Declarations<'a> = HashMap<(&'a str, HookNumber), Vec<(usize, u32, u32)>>;

pub(super) fn declarations(lines: &[Line]) -> Declarations<'_> {
    let mut found = Declarations::new();
    for (place, line) in lines.iter().enumerate() {
        if let HistoryEvent::Declared { hook, version, room } = &line.event {
            found.entry((&line.server, *hook)).or_default().push((place, *version, *room));
        }
    }
    found
}

impl Checker<'_> {
    /// What a server had last declared of a hook before a line: version and room.
    pub(super) fn told(&self, server: &str, hook: HookNumber, place: usize) -> Option<(u32, u32)> {
        let told = self.declarations.get(&(server, hook))?;
        told.iter().rev().find(|(at, ..)| *at < place).map(|(_, version, room)| (*version, *room))
    }

    /// The cap of a hook in the cluster.
    pub(super) fn cap(&self, hook: HookNumber) -> Option<usize> {
        let named = self.expectation.caps.get(&hook).copied();
        named.or_else(|| self.registered.get(&hook)?.cap)
    }

    pub(super) fn check_declared(&mut self, rule: Rule, server: &str, hook: HookNumber, place: usize) {
        if !self.declarations.is_empty() && self.told(server, hook, place).is_none() {
            self.violation(rule, &[place], format!("{server} has not declared hook {}", hook.0));
        }
        if self.expectation.declared.is_empty() {
            return;
        }
        let declared = self.expectation.declared.get(server).and_then(|hooks| hooks.get(&hook)).copied();
        let needed = self.expectation.versions.get(&hook).copied().unwrap_or(0);
        match declared {
            None => self.violation(rule, &[place], format!("{server} does not run hook {}", hook.0)),
            Some(version) if version < needed => {
                let what =
                    format!("{server} knows hook {} in version {version} only, and {needed} is in force", hook.0);
                self.violation(rule, &[place], what);
            }
            Some(_) => {}
        }
    }

    /// G10: the code of a run has the version that was in force when its request was made, or a later one.
    pub(super) fn check_version(&mut self, run: &RunLine) {
        let hook = run.request.hook;
        let needed = self.registered.get(&hook).and_then(|known| known.needed(run.request.revision, run.snapshot));
        let told = self.told(&run.server, hook, run.line);
        if let (Some(needed), Some((version, _))) = (needed, told)
            && version < needed
        {
            let what = format!("{} ran {} in version {version}, and it asks for {needed}", run.server, run.request);
            self.violation(Rule::UnknownHookRun, &[run.line], what);
        }
    }
}
