//! Where artifacts are kept, as people say it, and the store that is there.
//!
//! ```
//! use tidegate_dataset::location::{Environment, StorePlan, StoreSettings};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let settings = StoreSettings {
//!     url: Some(String::from("s3://datasets/tidegate")),
//!     endpoint: Some(String::from("https://minio.example:9000")),
//!     ..StoreSettings::default()
//! };
//! let environment = Environment::of([
//!     ("AWS_ACCESS_KEY_ID", "someone"),
//!     ("AWS_SECRET_ACCESS_KEY", "not for everyone"),
//! ]);
//! let plan = StorePlan::new(&settings, "/var/lib/tidegate/artifacts".as_ref(), &environment)?;
//! assert_eq!(plan.settings()["artifacts.credentials"].value, "AWS_ACCESS_KEY_ID of the environment");
//! let store = plan.open()?;
//! assert_eq!(store.name(), "s3://datasets/tidegate at https://minio.example:9000");
//! # Ok(())
//! # }
//! ```
//!
//! Credentials are looked for as users of S3 know it, and the first that are there are taken:
//!
//! 1. files or variables that the settings name (`access_key_id`, `secret_access_key`, `session_token`);
//! 2. the profile or the credentials file that the settings name;
//! 3. `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`;
//! 4. the profile `AWS_PROFILE`, or `default`, of `~/.aws/credentials` and `~/.aws/config` (or of the files that
//!    `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE` name);
//! 5. a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE` with `AWS_ROLE_ARN`), the container's role, the machine's role.
//!
//! Files are read again once a minute, so that credentials may be renewed in place. Profiles that lead elsewhere
//! (`role_arn`, `sso_session`, `credential_process`) are refused by name, not passed over. No secret is printed.

mod credentials;
mod profile;
mod refusal;
mod s3;
mod settings;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

pub use settings::{Environment, SecretSource, StorePlan, StoreSettings};

pub(crate) use refusal::{describe, is_no_bucket, is_unfit_upload};
pub(crate) use s3::S3;

/// Where artifacts are kept: `file:///a/folder` (or just the folder), or `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A bucket of an S3-compatible store.
    Bucket {
        /// Its name.
        bucket: String,
        /// What all objects' names begin with; empty, or names with `/` between them.
        prefix: String,
    },
}

/// Why a store can't be opened as it is described.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// The location can't be read.
    #[error("`{text}` is no place for artifacts: {why}")]
    Location {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A setting has a value that can't be used.
    #[error("artifacts.{name}: {why}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Credentials were named that are not there or can't be used. Never has one in its text.
    #[error("the credentials for the artifact store can't be used: {why}")]
    Credentials {
        /// Which, and what is wrong with them.
        why: String,
    },
    /// The store's client can't be made.
    #[error("the artifact store can't be used as it is described: {why}")]
    Client {
        /// What it says.
        why: String,
    },
    /// The folder can't be used.
    #[error(transparent)]
    Folder(#[from] crate::artifact::ArtifactError),
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let bad = |why: &str| LocationError::Location { text: text.to_owned(), why: why.to_owned() };
        if let Some(path) = text.strip_prefix("file://") {
            let path = percent_decode_str(path).decode_utf8().map_err(|_| bad("it is no UTF-8"))?;
            if !path.starts_with('/') {
                return Err(bad("after `file://` comes the whole path of a folder, as in `file:///var/lib/artifacts`"));
            }
            return Ok(Self::Folder(PathBuf::from(path.as_ref())));
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
            if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_allowed) {
                return Err(bad("a bucket's name has 3 to 63 lower-case letters, digits, `-`, `.` and `_`"));
            }
            let prefix = prefix.trim_end_matches('/');
            let is_name = |name: &str| {
                let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._=+@".contains(&b);
                !name.is_empty() && name != "." && name != ".." && name.bytes().all(is_plain)
            };
            if prefix.len() > 512 || !(prefix.is_empty() || prefix.split('/').all(is_name)) {
                return Err(bad("a prefix is names of letters, digits and `-._=+@`, with `/` between them"));
            }
            return Ok(Self::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() });
        }
        if text.starts_with('/') {
            return Ok(Self::Folder(PathBuf::from(text)));
        }
        Err(bad("it is neither `s3://bucket/prefix` nor `file:///a/folder`"))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(formatter, "file://{}", path.display()),
            Self::Bucket { bucket, prefix } if prefix.is_empty() => write!(formatter, "s3://{bucket}"),
            Self::Bucket { bucket, prefix } => write!(formatter, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_and_written() {
        for (text, written) in [
            ("s3://datasets", "s3://datasets"),
            ("s3://datasets/", "s3://datasets"),
            ("s3://datasets/a/b=1/", "s3://datasets/a/b=1"),
            ("file:///var/lib/a%20b", "file:///var/lib/a b"),
            ("/var/lib/x", "file:///var/lib/x"),
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), written, "{text}");
        }
    }

    #[test]
    fn what_is_no_location_is_refused_naming_it() {
        for text in [
            "",
            "artifacts",
            "gs://bucket",
            "s3://",
            "s3://ab",
            "s3://Upper",
            "s3://user:secret@bucket",
            "s3://bucket/a//b",
            "s3://bucket/../b",
            "file://relative",
            "https://host/bucket",
        ] {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
