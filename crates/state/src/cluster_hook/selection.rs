//! Which cluster hooks a server runs, and how many runs of each at once: what its operators tell it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::registration::{RegisterError, Registration};
use super::run::ClusterHook;
use super::runtime::HookHandle;
use crate::state::State;

/// Names of cluster hooks: one, or, with `*` at the end, all that begin so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookNames {
    beginning: String,
    is_prefix: bool,
}

/// A text that stands for no names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cluster hook's name, or the beginning of some with `*` behind it, has to stand there")]
pub struct HookNamesError;

impl FromStr for HookNames {
    type Err = HookNamesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (beginning, is_prefix) = match text.strip_suffix('*') {
            Some(beginning) => (beginning, true),
            None => (text, false),
        };
        if text.is_empty() || beginning.contains('*') {
            return Err(HookNamesError);
        }
        Ok(HookNames { beginning: beginning.to_owned(), is_prefix })
    }
}

impl fmt::Display for HookNames {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.beginning, if self.is_prefix { "*" } else { "" })
    }
}

impl HookNames {
    /// Whether a hook's name is one of them.
    #[must_use]
    pub fn contain(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.beginning) } else { name == self.beginning }
    }

    /// Higher for those that say more: a name above a beginning, a longer beginning above a shorter one.
    fn precision(&self) -> (bool, usize) {
        (!self.is_prefix, self.beginning.len())
    }
}

/// Which cluster hooks a server runs, and how many runs of each at once. By default all, each with its usual room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HookSelection {
    run: Option<Vec<HookNames>>,
    room: Vec<(HookNames, u32)>,
}

impl HookSelection {
    /// These alone.
    #[must_use]
    pub fn run_only(mut self, names: Vec<HookNames>) -> Self {
        self.run = Some(names);
        self
    }

    /// So many runs at once of each of these. Where several such names contain a hook's, those that say most of it hold.
    #[must_use]
    pub fn with_room(mut self, names: HookNames, room: u32) -> Self {
        self.room.push((names, room));
        self
    }

    /// Whether a hook of this name is run.
    #[must_use]
    pub fn runs(&self, name: &str) -> bool {
        self.run.as_ref().is_none_or(|run| run.iter().any(|names| names.contain(name)))
    }

    /// How many runs at once of a hook that usually has `usual`; none where it is not run.
    #[must_use]
    pub fn room(&self, name: &str, usual: u32) -> Option<u32> {
        if !self.runs(name) {
            return None;
        }
        let said = self.room.iter().filter(|(names, _)| names.contain(name)).max_by_key(|(names, _)| names.precision());
        Some(said.map_or(usual, |(_, room)| *room))
    }
}

impl State {
    /// Registers a cluster hook, and runs it on this server if that is among what the server runs: `room` runs at once,
    /// unless the selection says otherwise. If it is not, the hook is registered where no server has registered it yet, so
    /// that its requests wait; a definition that is there stays, since whoever runs it decides which version it runs.
    ///
    /// # Errors
    /// As [`State::register`].
    pub async fn register_selected(
        &self,
        selection: &HookSelection,
        registration: Registration,
        room: u32,
        handler: Arc<dyn ClusterHook>,
    ) -> Result<Option<HookHandle>, RegisterError> {
        match selection.room(registration.name(), room) {
            Some(room) => self.register(registration, room, handler).await.map(Some),
            None => {
                self.register_if_absent(registration).await?;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::cluster_hook::registration::RegistrationEntity;
    use crate::cluster_hook::run::{Outcome, Run};
    use crate::driver::memory::MemoryStore;
    use crate::entity::Ref;
    use crate::state::StateOptions;

    struct Nothing;

    #[async_trait]
    impl ClusterHook for Nothing {
        async fn run(&self, _run: Run) -> Outcome {
            Outcome::Done
        }
    }

    fn names(text: &str) -> HookNames {
        text.parse().unwrap()
    }

    #[test]
    fn k40_names_are_one_name_or_all_with_a_beginning() {
        for (text, name, contained) in [
            ("rollout", "rollout", true),
            ("rollout", "rollout-wake", false),
            ("rollout*", "rollout", true),
            ("rollout-*", "rollout", false),
            ("rollout-*", "rollout-wake", true),
            ("*", "anything", true),
        ] {
            assert_eq!(names(text).contain(name), contained, "{text}: {name}");
            assert_eq!(names(text).to_string(), text);
        }
        for text in ["", "*rollout", "roll*out", "rollout**"] {
            assert_eq!(text.parse::<HookNames>(), Err(HookNamesError), "{text}");
        }
    }

    #[test]
    fn k40_a_server_runs_what_is_selected_with_the_room_that_says_most_of_it() {
        let all = HookSelection::default();
        assert_eq!((all.room("a", 7), all.room("b", 8)), (Some(7), Some(8)));
        assert_eq!(HookSelection::default().run_only(Vec::new()).room("a", 7), None);
        let some = HookSelection::default()
            .run_only(vec![names("call-*"), names("events")])
            .with_room(names("call-a"), 1)
            .with_room(names("call-*"), 2)
            .with_room(names("*"), 3)
            .with_room(names("call-ab*"), 4);
        for (name, room) in [
            ("call-a", Some(1)),
            ("call-b", Some(2)),
            ("call-abc", Some(4)),
            ("events", Some(3)),
            ("call", None),
            ("event", None),
        ] {
            assert_eq!(some.room(name, 9), room, "{name}");
        }
    }

    #[tokio::test]
    async fn k40_what_is_not_run_is_registered_where_nobody_has_and_left_alone_where_somebody_has() {
        let state = State::open(MemoryStore::new().driver(), StateOptions::new("server")).await.unwrap();
        let none = HookSelection::default().run_only(Vec::new());
        let definition = |version| Registration::new("hook", version).on("/things/{thing}").key("{thing}");
        let place = Ref::<RegistrationEntity>::root("hook".to_owned()).unwrap();
        let version = || state.snapshot().get(&place).unwrap().unwrap().version();
        // Given a hook that nobody has registered, when a server does not run it, then it is registered and not run.
        let handle = state.register_selected(&none, definition(1), 1, Arc::new(Nothing)).await.unwrap();
        assert!(handle.is_none());
        assert_eq!(version(), 1);
        // When the code of a server that does not run it is newer, then those that do are not shut out.
        let handle = state.register_selected(&none, definition(2), 1, Arc::new(Nothing)).await.unwrap();
        assert!(handle.is_none());
        assert_eq!(version(), 1);
        // When one comes that runs it, then its code's version holds.
        let handle = state.register_selected(&HookSelection::default(), definition(2), 1, Arc::new(Nothing)).await;
        assert_eq!(handle.unwrap().unwrap().name(), "hook");
        assert_eq!(version(), 2);
        state.close().await;
    }
}
