//! What can be said about a store, what is in force, and where that came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tidegate_api::{Setting, SettingOrigin};

use super::credentials::{self, ProfilePlace};
use super::s3::{self, S3Plan};
use super::{Location, LocationError};
use crate::artifact::ArtifactStore;

const DEFAULT_REGION: &str = "us-east-1";

/// How often a request is repeated that may yet succeed, and for how long.
const RETRIES: u32 = 10;
const RETRY_SECONDS: u64 = 120;

/// How long one request may take. Pieces have 8 MiB.
const REQUEST_SECONDS: u64 = 30;

/// `[artifacts]` of a configuration. All of it may be left out; what is left out comes from the environment and the
/// profile as users of S3 know it, or has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// `s3://bucket/prefix` or `file:///a/folder`. By default a folder beside the other data.
    pub url: Option<String>,
    /// The address of an S3-compatible store, as in `https://minio.example:9000`. By default Amazon's for the region.
    pub endpoint: Option<String>,
    /// The address by which push clients reach that store, where it is another one.
    pub public_endpoint: Option<String>,
    /// The region that the bucket is in. By default `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket stands in the path of a URL and not in the host's name. By default so with an `endpoint`.
    pub path_style: Option<bool>,
    /// Whether an `http://` endpoint may be used, over which keys of requests and data go unencrypted.
    pub allow_http: Option<bool>,
    /// Certificates (PEM) that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The profile to take credentials, region and endpoint from. By default `AWS_PROFILE`, or `default`.
    pub profile: Option<String>,
    /// The file that profiles' credentials are in. By default `~/.aws/credentials`.
    pub credentials_file: Option<PathBuf>,
    /// Where the access key's id is to be read.
    pub access_key_id: Option<SecretSource>,
    /// Where the secret access key is to be read.
    pub secret_access_key: Option<SecretSource>,
    /// Where the session's token is to be read, if there is one.
    pub session_token: Option<SecretSource>,
    /// How often a request is repeated that may yet succeed: 10 by default.
    pub retries: Option<u32>,
    /// For how long it is, in seconds: 120 by default, 240 at most.
    pub retry_seconds: Option<u64>,
    /// How long one request may take, in seconds: 30 by default.
    pub request_seconds: Option<u64>,
}

/// Where a secret is read: `{ file = "/run/secrets/key" }` or `{ variable = "NAME" }`. A secret itself can't be written
/// into a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// A file that has nothing else in it.
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
}

impl fmt::Display for SecretSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(formatter, "the file {}", path.display()),
            Self::Variable(name) => write!(formatter, "the variable {name}"),
        }
    }
}

/// The variables that bear on stores: `HOME` and what begins with `AWS_`.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

// By hand: values may be secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.variables.keys()).finish()
    }
}

impl Environment {
    /// All variables of this process. Those that are no UTF-8 are as if not set.
    #[must_use]
    pub fn of_process() -> Self {
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self { variables: variables.collect() }
    }

    /// These variables and no others.
    pub fn of<N: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (N, V)>) -> Self {
        Self { variables: variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect() }
    }

    /// A variable that is set to something.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// A store that is to be used: what is in force, and where each of it came from.
#[derive(Clone, Debug)]
pub struct StorePlan {
    location: Location,
    s3: Option<S3Plan>,
    settings: BTreeMap<String, Setting>,
}

impl StorePlan {
    /// Works out what is in force. Reads profile files and the files that are named; asks nobody.
    ///
    /// # Errors
    /// See [`LocationError`].
    pub fn new(
        settings: &StoreSettings,
        default_folder: &Path,
        environment: &Environment,
    ) -> Result<Self, LocationError> {
        let mut found = Found::default();
        let location = match &settings.url {
            Some(url) => {
                found.note("url", url, SettingOrigin::File);
                url.parse()?
            }
            None => {
                let folder = Location::Folder(default_folder.to_path_buf());
                found.note("url", folder.to_string(), SettingOrigin::Default);
                folder
            }
        };
        let s3 = match &location {
            Location::Folder(_) => {
                refuse_bucket_settings(settings)?;
                None
            }
            Location::Bucket { bucket, prefix } => {
                Some(plan_s3(bucket.clone(), prefix.clone(), settings, environment, &mut found)?)
            }
        };
        Ok(Self { location, s3, settings: found.settings })
    }

    /// Where artifacts are kept.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Every setting in force with where it came from, by its name in the file. Without secrets.
    #[must_use]
    pub fn settings(&self) -> &BTreeMap<String, Setting> {
        &self.settings
    }

    /// The store. Makes the folder if it is one and not there; of a bucket nothing is asked yet.
    ///
    /// # Errors
    /// See [`LocationError`].
    pub fn open(&self) -> Result<ArtifactStore, LocationError> {
        match (&self.location, &self.s3) {
            (Location::Folder(folder), _) => Ok(ArtifactStore::local(folder)?),
            (Location::Bucket { .. }, Some(plan)) => {
                let name = match &plan.endpoint {
                    Some(endpoint) => format!("{} at {endpoint}", self.location),
                    None => self.location.to_string(),
                };
                Ok(ArtifactStore::s3(s3::open(plan)?, name))
            }
            (Location::Bucket { .. }, None) => unreachable!("a bucket is planned together with its location"),
        }
    }
}

/// Settings as they are found.
#[derive(Default)]
struct Found {
    settings: BTreeMap<String, Setting>,
}

impl Found {
    fn note(&mut self, name: &str, value: impl fmt::Display, origin: SettingOrigin) {
        self.settings.insert(format!("artifacts.{name}"), Setting { value: value.to_string(), origin });
    }

    /// The first of the file, the environment and the profile that says something.
    fn first(
        &mut self,
        name: &'static str,
        file: Option<&String>,
        environment: Option<&str>,
        profile: Option<&str>,
    ) -> Option<String> {
        let of_file = file.map(|value| (value.as_str(), SettingOrigin::File));
        let (value, origin) = of_file
            .or_else(|| environment.map(|value| (value, SettingOrigin::Environment)))
            // Profiles are part of the environment that a process finds itself in.
            .or_else(|| profile.map(|value| (value, SettingOrigin::Environment)))?;
        self.note(name, value, origin);
        Some(value.to_owned())
    }

    fn or_default<T: Copy + fmt::Display>(&mut self, name: &'static str, file: Option<T>, default: T) -> T {
        let origin = if file.is_some() { SettingOrigin::File } else { SettingOrigin::Default };
        let value = file.unwrap_or(default);
        self.note(name, value, origin);
        value
    }
}

/// A folder has no use for what is said about buckets; whoever says it means something else.
fn refuse_bucket_settings(settings: &StoreSettings) -> Result<(), LocationError> {
    let set = [
        ("endpoint", settings.endpoint.is_some()),
        ("public_endpoint", settings.public_endpoint.is_some()),
        ("region", settings.region.is_some()),
        ("path_style", settings.path_style.is_some()),
        ("allow_http", settings.allow_http.is_some()),
        ("ca_file", settings.ca_file.is_some()),
        ("profile", settings.profile.is_some()),
        ("credentials_file", settings.credentials_file.is_some()),
        ("access_key_id", settings.access_key_id.is_some()),
        ("secret_access_key", settings.secret_access_key.is_some()),
        ("session_token", settings.session_token.is_some()),
    ];
    match set.into_iter().find(|(_, is_set)| *is_set) {
        None => Ok(()),
        Some((name, _)) => Err(LocationError::Setting {
            name,
            why: "it is about a bucket, and `url` is not `s3://…`; set `url`, or leave this out".to_owned(),
        }),
    }
}

fn plan_s3(
    bucket: String,
    prefix: String,
    settings: &StoreSettings,
    environment: &Environment,
    found: &mut Found,
) -> Result<S3Plan, LocationError> {
    let from = credentials::choose(settings, environment)?;
    let is_told = settings.access_key_id.is_some() || settings.profile.is_some() || settings.credentials_file.is_some();
    found.note("credentials", &from, if is_told { SettingOrigin::File } else { SettingOrigin::Environment });
    let profile = ProfilePlace::of(settings, environment).read()?.unwrap_or_default();

    let of_environment = environment.get("AWS_ENDPOINT_URL_S3").or_else(|| environment.get("AWS_ENDPOINT_URL"));
    let endpoint = found.first("endpoint", settings.endpoint.as_ref(), of_environment, profile.get("endpoint_url"));
    let public_endpoint = found.first("public_endpoint", settings.public_endpoint.as_ref(), None, None);
    let of_environment = environment.get("AWS_REGION").or_else(|| environment.get("AWS_DEFAULT_REGION"));
    let region = found.first("region", settings.region.as_ref(), of_environment, profile.get("region"));
    let region = region.unwrap_or_else(|| found.or_default("region", None, DEFAULT_REGION).to_owned());
    let of_environment = environment.get("AWS_ALLOW_HTTP").map(|value| value.eq_ignore_ascii_case("true"));
    let allow_http = found.or_default("allow_http", settings.allow_http.or(of_environment), false);
    for (name, endpoint) in [("endpoint", &endpoint), ("public_endpoint", &public_endpoint)] {
        if let Some(endpoint) = endpoint {
            check_endpoint(name, endpoint, allow_http)?;
        }
    }
    let has_point = bucket.contains('.');
    let path_style = found.or_default("path_style", settings.path_style, endpoint.is_some() || has_point);
    if let Some(path) = &settings.ca_file {
        found.note("ca_file", path.display(), SettingOrigin::File);
    }
    let limit = |name: &'static str, value: u64, max: u64| {
        let why = || format!("{value} is not from 1 to {max}");
        if (1..=max).contains(&value) { Ok(Duration::from_secs(value)) } else { Err(setting(name, why())) }
    };
    let retries = found.or_default("retries", settings.retries, RETRIES);
    if retries > 100 {
        return Err(setting("retries", format!("{retries} is more than 100")));
    }
    let retry_seconds = found.or_default("retry_seconds", settings.retry_seconds, RETRY_SECONDS);
    let request_seconds = found.or_default("request_seconds", settings.request_seconds, REQUEST_SECONDS);
    Ok(S3Plan {
        bucket,
        prefix,
        endpoint,
        public_endpoint,
        region,
        path_style,
        allow_http,
        ca_file: settings.ca_file.clone(),
        credentials: from,
        environment: environment.clone(),
        retries: retries as usize,
        // Longer than this, and a request's signature would run out.
        retry_time: limit("retry_seconds", retry_seconds, 240)?,
        request_time: limit("request_seconds", request_seconds, 3600)?,
    })
}

pub(super) fn setting(name: &'static str, why: String) -> LocationError {
    LocationError::Setting { name, why }
}

fn check_endpoint(name: &'static str, endpoint: &str, allow_http: bool) -> Result<(), LocationError> {
    let rest = match (endpoint.strip_prefix("https://"), endpoint.strip_prefix("http://")) {
        (Some(rest), _) => rest,
        (None, Some(rest)) if allow_http => rest,
        (None, Some(_)) => {
            let why =
                format!("{endpoint} is not encrypted; use https://, or set allow_http = true in a network you trust");
            return Err(setting(name, why));
        }
        (None, None) => return Err(setting(name, format!("`{endpoint}` is no http:// or https:// address"))),
    };
    let host = rest.trim_end_matches('/');
    if host.is_empty() || host.contains(['/', '?', '#', '@']) || host.chars().any(char::is_whitespace) {
        // Not quoted: what stands before an `@` may be a secret.
        return Err(setting(name, "it has to be scheme, host and port alone".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> StoreSettings {
        StoreSettings { url: Some("s3://bucket/p".to_owned()), ..StoreSettings::default() }
    }

    fn keys() -> Vec<(&'static str, &'static str)> {
        vec![("AWS_ACCESS_KEY_ID", "the-id"), ("AWS_SECRET_ACCESS_KEY", "hush")]
    }

    fn plan(settings: &StoreSettings, variables: Vec<(&str, &str)>) -> Result<StorePlan, String> {
        let plan = StorePlan::new(settings, Path::new("/data/artifacts"), &Environment::of(variables));
        plan.map_err(|error| error.to_string())
    }

    #[test]
    fn by_default_artifacts_are_in_the_folder_and_nothing_else_is_asked() {
        let plan = plan(&StoreSettings::default(), vec![("AWS_PROFILE", "absent")]).unwrap();
        assert_eq!(plan.location(), &Location::Folder("/data/artifacts".into()));
        let expected = Setting { value: "file:///data/artifacts".to_owned(), origin: SettingOrigin::Default };
        assert_eq!(plan.settings().iter().collect::<Vec<_>>(), [(&"artifacts.url".to_owned(), &expected)]);
    }

    #[test]
    fn the_file_comes_before_the_environment_and_that_before_the_default_and_no_secret_is_shown() {
        let mut variables = keys();
        variables.extend([("AWS_REGION", "eu-north-1"), ("AWS_ENDPOINT_URL", "https://s3.example")]);
        let found = plan(&bucket(), variables.clone()).unwrap();
        let of = |plan: &StorePlan, name: &str| {
            let setting = &plan.settings()[&format!("artifacts.{name}")];
            (setting.value.clone(), setting.origin)
        };
        assert_eq!(of(&found, "region"), ("eu-north-1".to_owned(), SettingOrigin::Environment));
        assert_eq!(of(&found, "endpoint"), ("https://s3.example".to_owned(), SettingOrigin::Environment));
        assert_eq!(of(&found, "path_style"), ("true".to_owned(), SettingOrigin::Default));
        assert_eq!(of(&found, "retries"), ("10".to_owned(), SettingOrigin::Default));
        let told = StoreSettings { region: Some("eu-west-1".to_owned()), path_style: Some(false), ..bucket() };
        let told = plan(&told, variables).unwrap();
        assert_eq!(of(&told, "region"), ("eu-west-1".to_owned(), SettingOrigin::File));
        assert_eq!(of(&told, "path_style"), ("false".to_owned(), SettingOrigin::File));
        for shown in [format!("{told:?}"), format!("{:?}", told.settings())] {
            assert!(!shown.contains("hush") && !shown.contains("the-id"), "{shown}");
        }
        assert_eq!(of(&plan(&bucket(), keys()).unwrap(), "path_style").0, "false");
    }

    #[test]
    fn what_can_not_be_meant_is_refused_naming_the_setting() {
        type Change = fn(&mut StoreSettings);
        let cases: [(Change, &str); 9] = [
            (|s| s.endpoint = Some("http://minio:9000".to_owned()), "allow_http"),
            (|s| s.endpoint = Some("minio:9000".to_owned()), "artifacts.endpoint"),
            (|s| s.endpoint = Some("https://hush@host".to_owned()), "artifacts.endpoint"),
            (|s| s.public_endpoint = Some("https://host/path".to_owned()), "artifacts.public_endpoint"),
            (|s| s.retries = Some(101), "artifacts.retries"),
            (|s| s.retry_seconds = Some(241), "artifacts.retry_seconds"),
            (|s| s.request_seconds = Some(0), "artifacts.request_seconds"),
            (|s| (s.url, s.region) = (None, Some("eu-west-1".to_owned())), "artifacts.region"),
            (|s| s.url = Some("ftp://x".to_owned()), "`ftp://x`"),
        ];
        for (change, expected) in cases {
            let mut settings = bucket();
            change(&mut settings);
            let error = plan(&settings, keys()).unwrap_err();
            assert!(error.contains(expected) && !error.contains("hush"), "{expected}: {error}");
        }
    }
}
