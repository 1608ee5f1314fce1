//! Which cluster hooks this server runs, and how many runs at once: what its file says, and whether that can be meant.
//!
//! ```toml
//! [server.cluster_hooks]
//! run = ["rollout*", "lifecycle-events"]
//!
//! [server.cluster_hooks.room]
//! rollout = 4
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use tidegate_api::{Setting, SettingOrigin};
use tidegate_lifecycle::{EVENT_HOOK, Registry, call_hooks};
use tidegate_rollout::RolloutHooks;
use tidegate_rollout::entities::{Call, RegistrationCall};
use tidegate_state::{HookNames, HookSelection};

use crate::config::ConfigError;
use crate::database;
use crate::server::Options;

/// How many runs of one hook at once a server can be told to take at most.
const ROOM_MAX: u32 = 1_024;

/// The setting that says which hooks are run.
const RUN: &str = "server.cluster_hooks.run";

/// `[server.cluster_hooks]`. The names are those that `tidegate cluster` shows; `*` at the end of one stands for all that
/// begin so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterHooksSection {
    /// The hooks that this server runs. Absent: all. What it does not run waits for a server that does.
    pub run: Option<Vec<String>>,
    /// How many runs at once it takes, by hook; 1 to 1 024. Where several names are a hook's, the longest holds.
    pub room: BTreeMap<String, u32>,
}

impl ClusterHooksSection {
    /// Checks what can be checked without the hooks of a build.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.parse().map(|_| ())
    }

    fn parse(&self) -> Result<HookSelection, ConfigError> {
        let mut selection = HookSelection::default();
        if let Some(run) = &self.run {
            if run.is_empty() {
                // Servers of one name would not notice each other, and operators would not see it.
                let why = "a server that runs no cluster hook at all is not in `tidegate cluster`; let it run one that \
                           costs next to nothing, such as `rollout-uptime`";
                return Err(refused(RUN, "[]", why));
            }
            let names = run.iter().map(|text| names(RUN, text)).collect::<Result<_, _>>()?;
            selection = selection.run_only(names);
        }
        for (text, room) in &self.room {
            let setting = room_of(text);
            if *room == 0 || *room > ROOM_MAX {
                let why = format!(
                    "a server takes 1 to {ROOM_MAX} runs of a hook at once; what it is not to run is left out of `run`"
                );
                return Err(refused(&setting, &room.to_string(), &why));
            }
            selection = selection.with_room(names(&setting, text)?, *room);
        }
        Ok(selection)
    }

    /// What it selects of the hooks that there are.
    ///
    /// # Errors
    /// [`ConfigError::Setting`]: names that are no hook's, and room for what is not run.
    fn select(&self, hooks: &BTreeSet<String>) -> Result<HookSelection, ConfigError> {
        let selection = self.parse()?;
        let listed = self.run.iter().flatten().map(|text| (RUN.to_owned(), text));
        let roomy = self.room.keys().map(|text| (room_of(text), text));
        for (setting, text) in listed.chain(roomy) {
            let names = names(&setting, text)?;
            let mut named = hooks.iter().filter(|hook| names.contain(hook)).peekable();
            if named.peek().is_none() {
                let all: Vec<&str> = hooks.iter().map(String::as_str).collect();
                let why = format!("this build has no cluster hook of that name; it has {}", all.join(", "));
                return Err(refused(&setting, text, &why));
            }
            if !named.any(|hook| selection.runs(hook)) {
                let why =
                    format!("this server does not run it, so that it needs no room; add it to `{RUN}`, or remove this");
                return Err(refused(&setting, text, &why));
            }
        }
        Ok(selection)
    }

    /// What of it is to be shown, by its name in the file.
    pub(crate) fn settings(&self) -> BTreeMap<String, Setting> {
        let (run, origin) = match &self.run {
            Some(run) => (run.join(", "), SettingOrigin::File),
            None => ("all".to_owned(), SettingOrigin::Default),
        };
        let rooms = self
            .room
            .iter()
            .map(|(text, room)| (room_of(text), Setting { value: room.to_string(), origin: SettingOrigin::File }));
        rooms.chain([(RUN.to_owned(), Setting { value: run, origin })]).collect()
    }
}

fn room_of(text: &str) -> String {
    format!("server.cluster_hooks.room.{text}")
}

fn refused(setting: &str, value: &str, why: &str) -> ConfigError {
    ConfigError::Setting { name: setting.to_owned(), value: value.to_owned(), why: why.to_owned() }
}

fn names(setting: &str, text: &str) -> Result<HookNames, ConfigError> {
    text.parse().map_err(|error: tidegate_state::HookNamesError| refused(setting, text, &error.to_string()))
}

/// The cluster hooks of a build with these lifecycle hooks.
fn cluster_hooks(registry: &Registry) -> BTreeSet<String> {
    let calls = call_hooks::<Call>(registry).chain(call_hooks::<RegistrationCall>(registry));
    RolloutHooks::names().into_iter().chain(calls).chain([EVENT_HOOK.to_owned()]).collect()
}

/// What a server with these options runs. Says what it does not.
///
/// # Errors
/// [`ConfigError::Setting`]
pub(crate) fn selection(options: &Options) -> Result<HookSelection, ConfigError> {
    let hooks = cluster_hooks(&options.registry);
    let selection = options.config.server.cluster_hooks.select(&hooks)?;
    let left: Vec<&str> = hooks.iter().map(String::as_str).filter(|hook| !selection.runs(hook)).collect();
    if !left.is_empty() {
        let left = left.join(", ");
        if database::database(options).is_some() {
            tracing::info!(hooks = left, "other servers have to run these cluster hooks; this one does not");
        } else {
            tracing::warn!(
                hooks = left,
                "nobody runs these cluster hooks: this server does not, and its database is its own"
            );
        }
    }
    Ok(selection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFile;

    fn section(text: &str) -> ClusterHooksSection {
        ConfigFile::parse(text, "f.toml").unwrap().server.cluster_hooks
    }

    #[test]
    fn k40_a_server_that_is_told_nothing_runs_everything_with_the_usual_room() {
        let hooks = cluster_hooks(&Registry::shipped());
        let selection = section("").select(&hooks).unwrap();
        assert_eq!(selection, HookSelection::default());
        assert!(hooks.iter().all(|hook| selection.room(hook, 7) == Some(7)));
        assert_eq!(section("").settings()[RUN].value, "all");
    }

    #[test]
    fn k40_a_server_runs_what_its_file_names_with_the_room_that_it_gives() {
        let text = r#"
            [server.cluster_hooks]
            run = ["rollout", "lifecycle-call-*"]
            [server.cluster_hooks.room]
            rollout = 1
            "lifecycle-*" = 1024
            lifecycle-call-region-order = 2
        "#;
        let section = section(text);
        let selection = section.select(&cluster_hooks(&Registry::shipped())).unwrap();
        for (hook, room) in [
            ("rollout", Some(1)),
            ("rollout-wake", None),
            ("lifecycle-events", None),
            ("lifecycle-registration-call-exec", None),
            ("lifecycle-call-exec", Some(1_024)),
            ("lifecycle-call-region-order", Some(2)),
        ] {
            assert_eq!(selection.room(hook, 7), room, "{hook}");
        }
        let settings = section.settings();
        let shown = |name: &str| (settings[name].value.as_str(), settings[name].origin);
        assert_eq!(shown(RUN), ("rollout, lifecycle-call-*", SettingOrigin::File));
        assert_eq!(shown("server.cluster_hooks.room.rollout"), ("1", SettingOrigin::File));
    }

    #[test]
    fn k40_hooks_of_ones_own_are_as_known_as_those_that_are_shipped() {
        let own = Registry::empty().with("mine", |_| Err(tidegate_lifecycle::HookError::new("not made here")));
        let section = section("[server.cluster_hooks]\nrun = ['lifecycle-call-mine']");
        assert!(section.select(&cluster_hooks(&own)).is_ok());
        assert!(section.select(&cluster_hooks(&Registry::shipped())).is_err());
    }

    #[test]
    fn k40_what_can_not_be_meant_is_refused_with_what_to_do() {
        let hooks = cluster_hooks(&Registry::shipped());
        for (text, named, advice) in [
            ("run = []", "server.cluster_hooks.run", "rollout-uptime"),
            ("run = ['']", "server.cluster_hooks.run", "name"),
            ("run = ['*-wake']", "*-wake", "beginning"),
            ("run = ['rolout']", "rolout", "rollout-clean-up"),
            ("run = ['rollout', 'x*']", "x*", "lifecycle-events"),
            ("room.rolout = 1", "server.cluster_hooks.room.rolout", "rollout"),
            ("room.rollout = 0", "server.cluster_hooks.room.rollout", "1 to 1024"),
            ("room.rollout = 1025", "server.cluster_hooks.room.rollout", "1 to 1024"),
            ("room.rollout = -1", "-1", "u32"),
            ("run = ['rollout-*']\nroom.rollout = 1", "server.cluster_hooks.room.rollout", "add it to"),
            ("runs = ['rollout']", "runs", "room"),
        ] {
            let file = ConfigFile::parse(&format!("[server.cluster_hooks]\n{text}"), "f.toml");
            let selected = file.and_then(|file| file.server.cluster_hooks.select(&hooks));
            let error = selected.unwrap_err().to_string();
            assert!(error.contains(named) && error.contains(advice), "{text}: {error}");
        }
    }
}
