//! What an agent or a node takes of those who ask it, and the file that says so.
//!
//! ```toml
//! [server.limits]
//! requests = 1024
//! request_seconds = 10
//!
//! [access.limits]
//! look_ups_per_second = 5000
//! ```
//!
//! The names are those of a server's file, so that one table tells of both; those that such a process has no use for are
//! refused.

use std::path::Path;

use serde::Deserialize;

use crate::access::config::{AccessLimits, AccessLimitsSection, AccessSection};
use crate::config::{ConfigError, LimitsSection, ServerLimits, from_toml, read_bounded};

/// What protects an agent or a node. Without a file it has a server's defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceLimits {
    /// Sizes, numbers and times of requests and connections.
    pub service: ServerLimits,
    /// How much one caller may ask.
    pub access: AccessLimits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    server: Server,
    access: Access,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Server {
    limits: Limits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Access {
    limits: AccessLimitsSection,
}

/// Those of a server's limits that an agent or a node has.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    body_bytes: Option<usize>,
    requests: Option<usize>,
    reads: Option<usize>,
    request_seconds: Option<u64>,
    batch_keys: Option<usize>,
    connections: Option<usize>,
    connections_per_address: Option<usize>,
}

/// Their names.
#[cfg(test)]
pub(crate) const NAMES: &[&str] =
    &["body_bytes", "requests", "reads", "request_seconds", "batch_keys", "connections", "connections_per_address"];

impl ServiceLimits {
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
        let file: File = from_toml(text, path)?;
        let Limits { body_bytes, requests, reads, request_seconds, batch_keys, connections, connections_per_address } =
            file.server.limits;
        let section = LimitsSection {
            body_bytes,
            requests,
            reads,
            request_seconds,
            batch_keys,
            connections,
            connections_per_address,
            ..LimitsSection::default()
        };
        let service = ServerLimits::from_section(&section);
        service.check()?;
        let access = AccessSection { limits: file.access.limits, ..AccessSection::default() };
        access.check()?;
        Ok(Self { service, access: AccessLimits::from_section(&access.limits) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_says_is_in_force_and_the_rest_is_as_it_is_with_a_server() {
        let text = "[server.limits]\nrequests = 3\nconnections = 7\n[access.limits]\nrequests_burst = 5\n";
        let limits = ServiceLimits::parse(text, "f.toml").unwrap();
        assert_eq!((limits.service.requests, limits.service.connections, limits.access.requests_burst), (3, 7, 5));
        assert_eq!(limits.service.reads, ServerLimits::default().reads);
        assert_eq!(ServiceLimits::parse("", "f.toml").unwrap(), ServiceLimits::default());
        for (name, value) in NAMES.iter().map(|name| (name, 9)) {
            ServiceLimits::parse(&format!("[server.limits]\n{name} = {value}"), "f.toml").unwrap();
        }
        for (text, named) in [
            ("[server.limits]\nuploads = 3", "uploads"),
            ("[server]\nlisten = '127.0.0.1:1'", "listen"),
            ("[server.limits]\nreads = 0", "server.limits.reads"),
            ("[server.limits]\nconnections = 0", "server.limits.connections"),
            ("[access.limits]\nlook_ups_burst = 0", "access.limits.look_ups_burst"),
        ] {
            let error = ServiceLimits::parse(text, "f.toml").unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
