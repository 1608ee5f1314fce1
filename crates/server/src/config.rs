//! A server's configuration file.
//!
//! ```toml
//! [server]
//! name = "server-a"
//! listen = "127.0.0.1:7600"
//!
//! [[regions]]
//! name = "a"
//! nodes = 2
//!
//! [[regions]]
//! name = "far-away"
//! agent = true
//!
//! [artifacts]
//! url = "s3://datasets/tidegate"
//! region = "eu-central-1"
//!
//! [hooks]
//! enabled = ["region-order", "data-quality", "health-check"]
//! wait_interval = "60s"
//!
//! [hooks.config.region-order]
//! order = "a, b, c"
//! delay = "1h"
//! ```
//!
//! `[access]` and `[tls]` are described at [`crate::access::config`], `[server.cluster_hooks]` at [`ClusterHooksSection`].
//!
//! `[server]`, `[artifacts]` (see [`StoreSettings`]) and `[[regions]]` are this server's own. `[hooks]` is published as state by the
//! first server, and later by `tidegate config apply`; a server whose file says something else
//! says so, and gates by what is published.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidegate_api::{Setting, SettingOrigin};

use crate::access::config::{AccessSection, TlsSection, check_host};
use crate::agent::service::ADDRESS_BYTES_MAX;
use crate::database::{LEASE_MAX, LEASE_MIN};
pub use crate::selection::ClusterHooksSection;
use tidegate_dataset::location::StoreSettings;
use tidegate_rollout::region::remote::check_address;

/// The largest configuration file that is read.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How many regions one server hosts at most, and how many nodes one of them has.
const REGIONS_MAX: usize = 64;
const NODES_MAX: u32 = 64;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// What the server itself does.
    pub server: ServerSection,
    /// Where artifacts are kept; by default in a folder beside the other data. All servers have to reach one store.
    pub artifacts: StoreSettings,
    /// Regions that this server hosts. None: `a`, `b` and `c` with two nodes each, unless some
    /// exist already.
    pub regions: Vec<RegionSection>,
    /// Lifecycle hooks, as they are published.
    pub hooks: Option<toml::Table>,
    /// Who may ask this server what.
    pub access: AccessSection,
    /// What it proves itself with.
    pub tls: TlsSection,
}

/// `[server]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerSection {
    /// The name that operators know this server by.
    pub name: Option<String>,
    /// Where it listens. Beyond loopback it needs TLS and authentication, see [`crate::access`].
    pub listen: Option<SocketAddr>,
    /// A PostgreSQL that several servers share, `postgres://user@host/database?sslmode=verify-full`. Better without a
    /// password: a password file (`PGPASSFILE`) or a certificate keeps it out of this file. Absent: a file of its own.
    pub database: Option<String>,
    /// The schema of that database that the installation is in: `tidegate` unless it is set. Installations in one database
    /// have a schema each.
    pub schema: Option<String>,
    /// How long what it leases is its own without a renewal, in seconds: what it was running when it died runs elsewhere
    /// after that. 10 unless it is set; 1 to 600.
    pub lease_seconds: Option<u64>,
    /// Where other servers reach it, `https://server-1.example:7600`: reads of its regions that come to them go there. Where
    /// it listens unless it is set, if that is one address.
    pub advertise: Option<String>,
    /// Certificates (PEM) by which it knows other servers and agents, beside those of the machine.
    pub ca_file: Option<PathBuf>,
    /// The names that clients use for it, beside this machine's own. Requests for others are refused.
    pub hosts: Vec<String>,
    /// A file in which it writes down what its cluster hooks do, line by line, for the checker of guarantees that the fault
    /// runs use (`tidegate_state::testing::history`). It grows, and so does the server, for as long as that is set.
    pub history_file: Option<PathBuf>,
    /// Limits that protect it.
    pub limits: LimitsSection,
    /// Which cluster hooks it runs, and how many runs at once.
    pub cluster_hooks: ClusterHooksSection,
}

impl ServerSection {
    /// The lease, if the file sets it.
    #[must_use]
    pub fn lease(&self) -> Option<Duration> {
        self.lease_seconds.map(Duration::from_secs)
    }
}

/// `[server.limits]`: what is absent has its default, see [`ServerLimits`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// See [`ServerLimits::body_bytes`].
    pub body_bytes: Option<usize>,
    /// See [`ServerLimits::manifest_bytes`].
    pub manifest_bytes: Option<usize>,
    /// See [`ServerLimits::part_bytes`].
    pub part_bytes: Option<u64>,
    /// See [`ServerLimits::requests`].
    pub requests: Option<usize>,
    /// See [`ServerLimits::reads`].
    pub reads: Option<usize>,
    /// See [`ServerLimits::uploads`].
    pub uploads: Option<usize>,
    /// See [`ServerLimits::watches`].
    pub watches: Option<usize>,
    /// See [`ServerLimits::request_time`], in seconds.
    pub request_seconds: Option<u64>,
    /// See [`ServerLimits::batch_keys`].
    pub batch_keys: Option<usize>,
    /// See [`ServerLimits::connections`].
    pub connections: Option<usize>,
    /// See [`ServerLimits::connections_per_address`].
    pub connections_per_address: Option<usize>,
}

/// `[[regions]]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionSection {
    /// Its name.
    pub name: String,
    /// How many serving nodes it has.
    #[serde(default = "two")]
    pub nodes: u32,
    /// How many of them have to hold a version before it counts as ingested. Absent: more than
    /// half.
    #[serde(default)]
    pub enough: Option<u32>,
    /// Whether its nodes load from the source's artifacts, so that nothing is copied.
    #[serde(default)]
    pub shares_source: bool,
    /// Whether an agent of its own hosts it (`tidegate agent`), so that servers leave it alone.
    #[serde(default)]
    pub agent: bool,
}

fn two() -> u32 {
    2
}

impl RegionSection {
    /// A region with two nodes and a copy of its own.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), nodes: two(), enough: None, shares_source: false, agent: false }
    }

    /// How many nodes are enough.
    #[must_use]
    pub fn enough(&self) -> u32 {
        self.enough.unwrap_or(self.nodes / 2 + 1)
    }
}

/// The regions of a server that is told of none.
#[must_use]
pub fn default_regions() -> Vec<RegionSection> {
    ["a", "b", "c"].map(RegionSection::new).into()
}

/// What protects a server from more than it can take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerLimits {
    /// The largest body of a request, but for manifests and parts, in bytes.
    pub body_bytes: usize,
    /// The largest manifest, in bytes.
    pub manifest_bytes: usize,
    /// The largest part, in bytes.
    pub part_bytes: u64,
    /// Requests at once, but for those below.
    pub requests: usize,
    /// Look-ups in batches at once.
    pub reads: usize,
    /// Parts that are received at once.
    pub uploads: usize,
    /// Open watch streams.
    pub watches: usize,
    /// How long a request may take; receiving a part and watching have no such limit, but one on
    /// silence.
    pub request_time: Duration,
    /// Keys in a batch.
    pub batch_keys: usize,
    /// Connections at once. Further ones wait in the system's queue.
    pub connections: usize,
    /// Connections at once from one address beyond loopback. Further ones are closed.
    pub connections_per_address: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            body_bytes: 1024 * 1024,
            manifest_bytes: 16 * 1024 * 1024,
            part_bytes: 64 * 1024 * 1024 * 1024,
            requests: 512,
            reads: 4096,
            uploads: 64,
            watches: 256,
            request_time: Duration::from_secs(30),
            batch_keys: 10_000,
            connections: 8_192,
            connections_per_address: 1_024,
        }
    }
}

impl ServerLimits {
    /// The defaults with what the file says.
    #[must_use]
    pub fn from_section(section: &LimitsSection) -> Self {
        let default = Self::default();
        Self {
            body_bytes: section.body_bytes.unwrap_or(default.body_bytes),
            manifest_bytes: section.manifest_bytes.unwrap_or(default.manifest_bytes),
            part_bytes: section.part_bytes.unwrap_or(default.part_bytes),
            requests: section.requests.unwrap_or(default.requests),
            reads: section.reads.unwrap_or(default.reads),
            uploads: section.uploads.unwrap_or(default.uploads),
            watches: section.watches.unwrap_or(default.watches),
            request_time: section.request_seconds.map_or(default.request_time, Duration::from_secs),
            batch_keys: section.batch_keys.unwrap_or(default.batch_keys),
            connections: section.connections.unwrap_or(default.connections),
            connections_per_address: section.connections_per_address.unwrap_or(default.connections_per_address),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let counts = [
            ("body_bytes", self.body_bytes),
            ("manifest_bytes", self.manifest_bytes),
            ("requests", self.requests),
            ("reads", self.reads),
            ("uploads", self.uploads),
            ("watches", self.watches),
            ("batch_keys", self.batch_keys),
            ("connections", self.connections),
            ("connections_per_address", self.connections_per_address),
        ];
        for (name, value) in counts {
            if value == 0 || value > tokio::sync::Semaphore::MAX_PERMITS {
                return Err(ConfigError::Setting {
                    name: format!("server.limits.{name}"),
                    value: value.to_string(),
                    why: "it has to be above 0 and below 2^60".to_owned(),
                });
            }
        }
        if self.request_time.is_zero() || self.part_bytes == 0 {
            return Err(ConfigError::Setting {
                name: "server.limits".to_owned(),
                value: "0".to_owned(),
                why: "no limit of a server may be 0".to_owned(),
            });
        }
        Ok(())
    }

    /// Every limit with where it came from, by its name in the file.
    #[must_use]
    pub fn settings(&self, section: &LimitsSection) -> BTreeMap<String, Setting> {
        let rows = [
            ("body_bytes", self.body_bytes.to_string(), section.body_bytes.is_some()),
            ("manifest_bytes", self.manifest_bytes.to_string(), section.manifest_bytes.is_some()),
            ("part_bytes", self.part_bytes.to_string(), section.part_bytes.is_some()),
            ("requests", self.requests.to_string(), section.requests.is_some()),
            ("reads", self.reads.to_string(), section.reads.is_some()),
            ("uploads", self.uploads.to_string(), section.uploads.is_some()),
            ("watches", self.watches.to_string(), section.watches.is_some()),
            ("request_seconds", self.request_time.as_secs().to_string(), section.request_seconds.is_some()),
            ("batch_keys", self.batch_keys.to_string(), section.batch_keys.is_some()),
            ("connections", self.connections.to_string(), section.connections.is_some()),
            (
                "connections_per_address",
                self.connections_per_address.to_string(),
                section.connections_per_address.is_some(),
            ),
        ];
        rows.into_iter()
            .map(|(name, value, is_set)| {
                let origin = if is_set { SettingOrigin::File } else { SettingOrigin::Default };
                (format!("server.limits.{name}"), Setting { value, origin })
            })
            .collect()
    }
}

/// Why a configuration file can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("could not read {path}: {reason}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        reason: String,
    },
    /// The file is no TOML, or has a table or key that is not known.
    #[error("{path} can't be used: {reason}")]
    Parse {
        /// The file.
        path: String,
        /// What is wrong, with its line.
        reason: String,
    },
    /// A setting has a value that is not allowed.
    #[error("{name} is `{value}`: {why}")]
    Setting {
        /// The setting's name in the file.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

impl ConfigFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_bounded(path)?, &path.display().to_string())
    }

    /// Parses and checks a file's text; `path` is for messages.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(text: &str, path: &str) -> Result<Self, ConfigError> {
        let file: Self = from_toml(text, path)?;
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), ConfigError> {
        ServerLimits::from_section(&self.server.limits).check()?;
        self.server.cluster_hooks.check()?;
        self.access.check()?;
        self.tls.check()?;
        self.server.hosts.iter().try_for_each(|host| check_host(host))?;
        if let Some(address) = &self.server.advertise {
            check_advertised("server.advertise", address)?;
        }
        let bad = |name: String, value: String, why: &str| ConfigError::Setting { name, value, why: why.to_owned() };
        let lease = self.server.lease();
        if let Some(lease) = lease.filter(|lease| *lease < LEASE_MIN || *lease > LEASE_MAX) {
            let why = "a lease lasts 1 to 600 seconds";
            return Err(bad("server.lease_seconds".to_owned(), lease.as_secs().to_string(), why));
        }
        if self.regions.len() > REGIONS_MAX {
            let count = self.regions.len().to_string();
            let why = format!("a server hosts at most {REGIONS_MAX}");
            return Err(bad("the number of [[regions]]".to_owned(), count, &why));
        }
        let mut names = BTreeSet::new();
        for region in &self.regions {
            let name = format!("regions.{}.name", region.name);
            check_region_name(&region.name).map_err(|why| bad(name.clone(), region.name.clone(), why))?;
            if !names.insert(&region.name) {
                return Err(bad(name, region.name.clone(), "another region has this name"));
            }
            if region.nodes == 0 || region.nodes > NODES_MAX {
                let name = format!("regions.{}.nodes", region.name);
                return Err(bad(name, region.nodes.to_string(), "a region has 1 to 64 nodes"));
            }
            if region.enough() == 0 || region.enough() > region.nodes {
                let name = format!("regions.{}.enough", region.name);
                let why = "it has to be from 1 to the number of nodes";
                return Err(bad(name, region.enough().to_string(), why));
            }
        }
        Ok(())
    }
}

/// The text of a configuration file.
pub(crate) fn read_bounded(path: &Path) -> Result<String, ConfigError> {
    let failed = |reason: String| ConfigError::Read { path: path.display().to_string(), reason };
    let length = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if length > FILE_BYTES_MAX {
        return Err(failed(format!("it has {length} bytes, and a configuration has {FILE_BYTES_MAX} at most")));
    }
    std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))
}

/// What the text of such a file says; `path` is for messages.
pub(crate) fn from_toml<T: DeserializeOwned>(text: &str, path: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Parse { path: path.to_owned(), reason: error.to_string() })
}

/// The address by which others reach a server.
pub(crate) fn check_advertised(name: &str, address: &str) -> Result<(), ConfigError> {
    let long = (address.len() > ADDRESS_BYTES_MAX).then(|| format!("it has over {ADDRESS_BYTES_MAX} bytes"));
    match check_address(address).err().or(long) {
        None => Ok(()),
        Some(why) => Err(ConfigError::Setting { name: name.to_owned(), value: address.to_owned(), why }),
    }
}

/// A region's name is also the name of a folder.
pub(crate) fn check_region_name(name: &str) -> Result<(), &'static str> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 {
        return Err("a region's name has 1 to 64 characters");
    }
    if !name.chars().all(is_allowed) || name.starts_with('.') {
        return Err("a region's name has letters, digits, `-`, `_` and `.`, and does not begin with a point");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_documentation_is_read() {
        let text = r#"
            [server]
            name = "server-a"
            listen = "127.0.0.1:7600"
            [[regions]]
            name = "a"
            [[regions]]
            name = "b"
            nodes = 3
            enough = 2
            agent = true
            [hooks]
            enabled = ["region-order"]
            [hooks.config.region-order]
            order = "a, b"
        "#;
        let file = ConfigFile::parse(text, "tidegate.toml").unwrap();
        assert_eq!(file.server.name.as_deref(), Some("server-a"));
        assert_eq!(file.regions[0], RegionSection::new("a"));
        assert_eq!(file.regions[0].enough(), 2);
        assert_eq!(file.regions[1].enough(), 2);
        assert!(file.regions[1].agent && !file.regions[0].agent);
        assert!(file.hooks.unwrap().contains_key("config"));
    }

    #[test]
    fn what_is_not_allowed_is_refused_naming_it() {
        for (text, named) in [
            ("[servr]", "servr"),
            ("[server]\nlisten = 'everywhere'", "listen"),
            ("[server.limits]\nrequests = 0", "server.limits.requests"),
            ("[server]\nlease_seconds = 0", "server.lease_seconds"),
            ("[server]\nhosts = ['https://example.com']", "server.hosts"),
            ("[access]\nauthentication = 'maybe'", "authentication"),
            ("[access.limits]\nrequests_burst = 0", "access.limits.requests_burst"),
            ("[tls]\nkey = 'server.key'", "tls.certificate"),
            ("[[regions]]\nname = '../a'", "../a"),
            ("[[regions]]\nname = 'a'\n[[regions]]\nname = 'a'", "regions.a.name"),
            ("[[regions]]\nname = 'a'\nnodes = 0", "regions.a.nodes"),
            ("[[regions]]\nname = 'a'\nenough = 3", "regions.a.enough"),
            ("[[regions]]\nname = 'a'\nnode = 3", "node"),
            ("[artifacts]\nsecret_access_key = 'hush'", "secret_access_key"),
            ("[artifacts]\nbucket = 'b'", "bucket"),
        ] {
            let error = ConfigFile::parse(text, "f.toml").unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
