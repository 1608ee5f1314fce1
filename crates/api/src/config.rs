//! The configuration in force.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;

/// What is in force and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigView {
    /// The hooks configuration, which is state and the same for all servers.
    pub hooks: HooksConfigView,
    /// The settings of the server that answers.
    pub server: ServerConfigView,
}

/// The hooks configuration in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HooksConfigView {
    /// Rises with every change that is published.
    pub generation: u64,
    /// Hooks that are asked, in the order in which they are.
    pub enabled: Vec<String>,
    /// How many calls run at once on a server.
    pub threads: u32,
    /// How long a call may take.
    pub timeout_ms: u64,
    /// After how long a gate is asked again.
    pub wait_interval_ms: u64,
    /// Settings by hook and key.
    pub hooks: BTreeMap<String, BTreeMap<String, String>>,
    /// Who published it.
    pub published_by: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<EpochMs>,
    /// Digest of the content.
    pub digest: String,
    /// Hooks that the answering server was built with, and what each of them can be told.
    #[serde(default)]
    pub known: Vec<HookSettingsView>,
}

/// A hook that a server was built with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HookSettingsView {
    /// Its name.
    pub hook: String,
    /// The keys of its settings, if it says which there are.
    #[serde(default)]
    pub keys: Vec<String>,
}

/// The settings of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerConfigView {
    /// The server's name.
    pub server: String,
    /// The release it runs.
    pub release: String,
    /// Every setting, with where it came from, by its name in the file.
    pub settings: BTreeMap<String, Setting>,
    /// In which way the hooks configuration of its file differs from what is published; absent
    /// if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_differs: Option<String>,
}

/// A setting and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Setting {
    /// The value as text.
    pub value: String,
    /// Where it came from.
    pub origin: SettingOrigin,
}

/// Where a setting came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SettingOrigin {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File,
    /// An environment variable.
    Environment,
    /// A flag of the command line.
    Flag,
}

/// Publishes a hooks configuration, as JSON. The same route takes the TOML of the file's
/// `[hooks]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HooksConfigUpdate {
    /// Hooks that are asked, in the order in which they are. Absent: every shipped hook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<Vec<String>>,
    /// How many calls run at once on a server. Absent: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// How long a call may take, for example `30s`. Absent: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// After how long a gate is asked again, for example `60s`. Absent: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_interval: Option<String>,
    /// Settings by hook and key.
    #[serde(default)]
    pub config: BTreeMap<String, BTreeMap<String, String>>,
}
