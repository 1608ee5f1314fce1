//! `[access]` and `[tls]` of a server's configuration file.
//!
//! ```toml
//! [server]
//! listen = "0.0.0.0:7600"
//! hosts = ["tidegate.example.com"]     # the names that clients use
//!
//! [access]
//! authentication = "required"          # beyond loopback it is, unless `allow_anyone` is set
//!
//! [tls]
//! certificate = "/etc/tidegate/server.pem"
//! key = "/etc/tidegate/server.key"
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use tidegate_api::{Setting, SettingOrigin};

use crate::config::ConfigError;
use crate::http::tls::{Certificate, TlsError};

/// Whether whoever asks has to show a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authentication {
    /// Every request needs a token, but for the few that the table leaves open.
    Required,
    /// Whoever reaches the server may do anything.
    Off,
}

impl Authentication {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Off => "off",
        }
    }
}

/// `[access]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessSection {
    /// Absent: off on loopback, required beyond.
    pub authentication: Option<Authentication>,
    /// Lets a server listen beyond loopback without TLS: tokens and data then travel in the clear.
    pub allow_plain_http: bool,
    /// Lets a server listen beyond loopback without authentication.
    pub allow_anyone: bool,
    /// How much one caller may ask.
    pub limits: AccessLimitsSection,
}

/// `[access.limits]`: what is absent has its default, see [`AccessLimits`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLimitsSection {
    /// See [`AccessLimits::requests_per_second`].
    pub requests_per_second: Option<u32>,
    /// See [`AccessLimits::requests_burst`].
    pub requests_burst: Option<u32>,
    /// See [`AccessLimits::look_ups_per_second`].
    pub look_ups_per_second: Option<u32>,
    /// See [`AccessLimits::look_ups_burst`].
    pub look_ups_burst: Option<u32>,
    /// See [`AccessLimits::wrong_tokens_burst`].
    pub wrong_tokens_burst: Option<u32>,
}

/// How much one caller may ask: one token, or one address without one. An address is a whole `/64` with IPv6. Loopback
/// without a token has no such limit.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLimits {
    /// Requests a second in the long run, but for look-ups.
    pub requests_per_second: f64,
    /// Requests at once, after a pause.
    pub requests_burst: u32,
    /// Look-ups a second in the long run; a batch is one.
    pub look_ups_per_second: f64,
    /// Look-ups at once, after a pause.
    pub look_ups_burst: u32,
    /// Wrong tokens a second from one address in the long run. Right ones from there are never held up.
    pub wrong_tokens_per_second: f64,
    /// Wrong tokens at once, after a pause.
    pub wrong_tokens_burst: u32,
}

impl Default for AccessLimits {
    fn default() -> Self {
        Self {
            requests_per_second: 1_000.0,
            requests_burst: 2_000,
            look_ups_per_second: 100_000.0,
            look_ups_burst: 100_000,
            wrong_tokens_per_second: 0.5,
            wrong_tokens_burst: 20,
        }
    }
}

impl AccessLimits {
    /// The defaults with what the file says.
    #[must_use]
    pub fn from_section(section: &AccessLimitsSection) -> Self {
        let default = Self::default();
        Self {
            requests_per_second: section.requests_per_second.map_or(default.requests_per_second, f64::from),
            requests_burst: section.requests_burst.unwrap_or(default.requests_burst),
            look_ups_per_second: section.look_ups_per_second.map_or(default.look_ups_per_second, f64::from),
            look_ups_burst: section.look_ups_burst.unwrap_or(default.look_ups_burst),
            wrong_tokens_burst: section.wrong_tokens_burst.unwrap_or(default.wrong_tokens_burst),
            ..default
        }
    }
}

/// `[tls]`. Both files or none; they are read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSection {
    /// The server's certificate and those that it leads to its root by, in PEM form.
    pub certificate: Option<PathBuf>,
    /// Its private key, in PEM form.
    pub key: Option<PathBuf>,
}

impl TlsSection {
    /// Certificate and key, where TLS is to be spoken.
    pub(crate) fn pair(&self) -> Option<(&PathBuf, &PathBuf)> {
        self.certificate.as_ref().zip(self.key.as_ref())
    }

    /// Reads them, where TLS is to be spoken.
    pub(crate) async fn certificate(&self) -> Result<Option<Certificate>, TlsError> {
        match self.pair() {
            Some((certificate, key)) => Certificate::read(certificate, key).await.map(Some),
            None => Ok(None),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let lone = match (&self.certificate, &self.key) {
            (Some(certificate), None) => ("tls.certificate", certificate, "tls.key"),
            (None, Some(key)) => ("tls.key", key, "tls.certificate"),
            _ => return Ok(()),
        };
        let (name, path, other) = lone;
        Err(ConfigError::Setting {
            name: name.to_owned(),
            value: path.display().to_string(),
            why: format!("it needs {other} beside it"),
        })
    }
}

impl AccessSection {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        let rows = [
            ("requests_per_second", limits.requests_per_second),
            ("requests_burst", limits.requests_burst),
            ("look_ups_per_second", limits.look_ups_per_second),
            ("look_ups_burst", limits.look_ups_burst),
            ("wrong_tokens_burst", limits.wrong_tokens_burst),
        ];
        match rows.into_iter().find(|(_, value)| *value == Some(0)) {
            Some((name, _)) => Err(ConfigError::Setting {
                name: format!("access.limits.{name}"),
                value: "0".to_owned(),
                why: "nobody could ask anything".to_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// A name that clients may use for the server: a host without scheme, port or path.
pub(crate) fn check_host(host: &str) -> Result<(), ConfigError> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if !host.is_empty() && host.len() <= 253 && host.chars().all(is_allowed) {
        return Ok(());
    }
    Err(ConfigError::Setting {
        name: "server.hosts".to_owned(),
        value: host.to_owned(),
        why: "a host is a name without scheme, port and path, such as tidegate.example.com".to_owned(),
    })
}

/// What is in force, by its name in the file, with where it came from.
pub(crate) fn settings(
    authentication: Authentication,
    access: &AccessSection,
    tls: &TlsSection,
    hosts: &[String],
) -> BTreeMap<String, Setting> {
    let origin = |is_set: bool| if is_set { SettingOrigin::File } else { SettingOrigin::Default };
    let limits = AccessLimits::from_section(&access.limits);
    let set = &access.limits;
    let mut rows = vec![
        ("access.authentication", authentication.word().to_owned(), access.authentication.is_some()),
        ("access.allow_plain_http", access.allow_plain_http.to_string(), access.allow_plain_http),
        ("access.allow_anyone", access.allow_anyone.to_string(), access.allow_anyone),
        (
            "access.limits.requests_per_second",
            limits.requests_per_second.to_string(),
            set.requests_per_second.is_some(),
        ),
        ("access.limits.requests_burst", limits.requests_burst.to_string(), set.requests_burst.is_some()),
        (
            "access.limits.look_ups_per_second",
            limits.look_ups_per_second.to_string(),
            set.look_ups_per_second.is_some(),
        ),
        ("access.limits.look_ups_burst", limits.look_ups_burst.to_string(), set.look_ups_burst.is_some()),
        ("access.limits.wrong_tokens_burst", limits.wrong_tokens_burst.to_string(), set.wrong_tokens_burst.is_some()),
    ];
    if let Some((certificate, key)) = tls.pair() {
        rows.push(("tls.certificate", certificate.display().to_string(), true));
        rows.push(("tls.key", key.display().to_string(), true));
    }
    if !hosts.is_empty() {
        rows.push(("server.hosts", hosts.join(", "), true));
    }
    rows.into_iter().map(|(name, value, is_set)| (name.to_owned(), Setting { value, origin: origin(is_set) })).collect()
}
