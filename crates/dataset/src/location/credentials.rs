//! Whose credentials the store is used with, and reading them again when they are renewed.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use parking_lot::Mutex;

use super::profile::{self, Profile};
use super::settings::{Environment, SecretSource};
use super::{LocationError, StoreSettings};

/// How long credentials of a file are used before it is read again.
const FRESH: Duration = Duration::from_secs(60);

/// The longest secret that is read from a file, in bytes.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Where the credentials come from. Its text has no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Files or variables that the settings name.
    Named { access_key_id: SecretSource, secret_access_key: SecretSource, session_token: Option<SecretSource> },
    /// `AWS_ACCESS_KEY_ID` and its like.
    Environment,
    /// A profile.
    Profile(ProfilePlace),
    /// `AWS_WEB_IDENTITY_TOKEN_FILE` with `AWS_ROLE_ARN`.
    WebIdentity,
    /// The role of the container.
    Container,
    /// The role of the machine.
    Machine,
}

/// A profile and the files that it is looked for in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProfilePlace {
    pub(super) name: String,
    pub(super) credentials: Option<PathBuf>,
    pub(super) config: Option<PathBuf>,
}

impl fmt::Display for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named { access_key_id, secret_access_key, .. } => {
                write!(formatter, "{access_key_id} and {secret_access_key}")
            }
            Self::Environment => formatter.write_str("AWS_ACCESS_KEY_ID of the environment"),
            Self::Profile(place) => place.fmt(formatter),
            Self::WebIdentity => formatter.write_str("the web identity of AWS_WEB_IDENTITY_TOKEN_FILE"),
            Self::Container => formatter.write_str("the container's role"),
            Self::Machine => formatter.write_str("the machine's role"),
        }
    }
}

impl fmt::Display for ProfilePlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "profile `{}`", self.name)?;
        match &self.credentials {
            Some(path) => write!(formatter, " of {}", path.display()),
            None => Ok(()),
        }
    }
}

impl ProfilePlace {
    pub(super) fn of(settings: &StoreSettings, environment: &Environment) -> Self {
        let home = |file: &str| environment.get("HOME").map(|home| Path::new(home).join(".aws").join(file));
        let named = |variable: &str| environment.get(variable).map(PathBuf::from);
        Self {
            name: settings
                .profile
                .as_deref()
                .or_else(|| environment.get("AWS_PROFILE"))
                .unwrap_or("default")
                .to_owned(),
            credentials: settings
                .credentials_file
                .clone()
                .or_else(|| named("AWS_SHARED_CREDENTIALS_FILE"))
                .or_else(|| home("credentials")),
            config: named("AWS_CONFIG_FILE").or_else(|| home("config")),
        }
    }

    pub(super) fn read(&self) -> Result<Option<Profile>, LocationError> {
        profile::read(self.credentials.as_deref(), self.config.as_deref(), &self.name)
            .map_err(|why| LocationError::Credentials { why })
    }

    fn credential(&self, profile: Option<&Profile>) -> Result<AwsCredential, LocationError> {
        let bad = |why: String| LocationError::Credentials { why };
        let profile = profile.ok_or_else(|| {
            let config = self.config.as_deref().map_or(String::new(), |path| format!(" and {}", path.display()));
            bad(format!("there is no {self}{config}; name one that is there, or set AWS_PROFILE"))
        })?;
        match (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")) {
            (Some(key_id), Some(secret_key)) => Ok(AwsCredential {
                key_id: key_id.to_owned(),
                secret_key: secret_key.to_owned(),
                token: profile.get("aws_session_token").map(str::to_owned),
            }),
            (None, None) => Err(bad(match profile.leads_elsewhere() {
                Some(by) => format!(
                    "{self} leads to others by `{by}`, which is not followed here; have them written to a credentials \
                     file (`aws configure export-credentials`), or use the role of the machine"
                ),
                None => format!("{self} has no aws_access_key_id and no aws_secret_access_key"),
            })),
            _ => Err(bad(format!("{self} has only one of aws_access_key_id and aws_secret_access_key"))),
        }
    }
}

/// Chooses by the order that the module tells, and checks that what is chosen can be read.
pub(super) fn choose(settings: &StoreSettings, environment: &Environment) -> Result<Credentials, LocationError> {
    let bad = |why: &str| LocationError::Credentials { why: why.to_owned() };
    match (&settings.access_key_id, &settings.secret_access_key) {
        (Some(access_key_id), Some(secret_access_key)) => {
            let named = Credentials::Named {
                access_key_id: access_key_id.clone(),
                secret_access_key: secret_access_key.clone(),
                session_token: settings.session_token.clone(),
            };
            read(&named, environment)?;
            return Ok(named);
        }
        (None, None) => {}
        _ => return Err(bad("access_key_id and secret_access_key go together, and one of them is not set")),
    }
    let place = ProfilePlace::of(settings, environment);
    let is_told = settings.profile.is_some() || settings.credentials_file.is_some();
    if !is_told {
        match (environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")) {
            (Some(_), Some(_)) => return Ok(Credentials::Environment),
            (None, None) => {}
            _ => return Err(bad("of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY one is not set")),
        }
    }
    let profile = place.read()?;
    let has_key = profile.as_ref().is_some_and(|profile| profile.get("aws_access_key_id").is_some());
    if is_told || has_key || environment.get("AWS_PROFILE").is_some() {
        place.credential(profile.as_ref())?;
        return Ok(Credentials::Profile(place));
    }
    let has = |variable: &str| environment.get(variable).is_some();
    if has("AWS_WEB_IDENTITY_TOKEN_FILE") && has("AWS_ROLE_ARN") {
        return Ok(Credentials::WebIdentity);
    }
    if has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") || has("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        return Ok(Credentials::Container);
    }
    Ok(Credentials::Machine)
}

/// The credentials themselves; `None` where they have to be asked for at a service.
pub(super) fn read(from: &Credentials, environment: &Environment) -> Result<Option<AwsCredential>, LocationError> {
    let variable = |name: &str| {
        let missing = || LocationError::Credentials { why: format!("the environment has no {name}") };
        environment.get(name).map(str::to_owned).ok_or_else(missing)
    };
    let credential = match from {
        Credentials::Named { access_key_id, secret_access_key, session_token } => {
            let secret = |source: &SecretSource| match source {
                SecretSource::Variable(name) => variable(name),
                SecretSource::File(path) => read_secret(path),
            };
            AwsCredential {
                key_id: secret(access_key_id)?,
                secret_key: secret(secret_access_key)?,
                token: session_token.as_ref().map(secret).transpose()?,
            }
        }
        Credentials::Environment => AwsCredential {
            key_id: variable("AWS_ACCESS_KEY_ID")?,
            secret_key: variable("AWS_SECRET_ACCESS_KEY")?,
            token: variable("AWS_SESSION_TOKEN").ok(),
        },
        Credentials::Profile(place) => place.credential(place.read()?.as_ref())?,
        Credentials::WebIdentity | Credentials::Container | Credentials::Machine => return Ok(None),
    };
    Ok(Some(credential))
}

fn read_secret(path: &Path) -> Result<String, LocationError> {
    let failed = |why: String| LocationError::Credentials { why: format!("{}: {why}", path.display()) };
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    let read = file.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(failed(format!("a secret has at most {SECRET_BYTES_MAX} bytes")));
    }
    let secret = text.trim();
    if secret.is_empty() { Err(failed("it is empty".to_owned())) } else { Ok(secret.to_owned()) }
}

/// Credentials of files and variables, read again once they are no longer fresh.
pub(super) struct Renewed {
    from: Credentials,
    environment: Environment,
    known: Mutex<Option<(Instant, Arc<AwsCredential>)>>,
}

impl fmt::Debug for Renewed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Renewed").field("from", &self.from).finish_non_exhaustive()
    }
}

impl Renewed {
    pub(super) fn new(from: Credentials, environment: Environment) -> Self {
        Self { from, environment, known: Mutex::new(None) }
    }

    fn known(&self) -> Option<(Instant, Arc<AwsCredential>)> {
        self.known.lock().clone()
    }
}

#[async_trait]
impl CredentialProvider for Renewed {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let known = self.known();
        if let Some((since, credential)) = &known
            && since.elapsed() < FRESH
        {
            return Ok(Arc::clone(credential));
        }
        let (from, environment) = (self.from.clone(), self.environment.clone());
        let asked = tokio::task::spawn_blocking(move || read(&from, &environment)).await;
        let failed = |why: String| object_store::Error::Generic { store: "S3", source: why.into() };
        let read = asked.map_err(|error| failed(error.to_string()))?;
        let credential = match (read, known) {
            (Ok(Some(credential)), _) => Arc::new(credential),
            (Ok(None), _) => return Err(failed(format!("{} are not in a file", self.from))),
            // A file that is being replaced: what was read before may still be good.
            (Err(error), Some((_, credential))) => {
                tracing::warn!(%error, "going on with the credentials that were read before");
                credential
            }
            (Err(error), None) => return Err(failed(error.to_string())),
        };
        *self.known.lock() = Some((Instant::now(), Arc::clone(&credential)));
        Ok(credential)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new(credentials: &str, config: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join(".aws")).unwrap();
            std::fs::write(folder.path().join(".aws/credentials"), credentials).unwrap();
            std::fs::write(folder.path().join(".aws/config"), config).unwrap();
            Self(folder)
        }

        fn choose(&self, settings: &StoreSettings, variables: &[(&str, &str)]) -> Result<(String, String), String> {
            let home = self.0.path().to_str().unwrap();
            let environment = Environment::of(variables.iter().copied().chain([("HOME", home)]));
            let from = choose(settings, &environment).map_err(|error| error.to_string())?;
            let credential = read(&from, &environment).map_err(|error| error.to_string())?;
            Ok((from.to_string().replace(home, "~"), credential.map_or(String::new(), |credential| credential.key_id)))
        }
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "of-environment"), ("AWS_SECRET_ACCESS_KEY", "s")];

    fn pair(from: &str, key_id: &str) -> Result<(String, String), String> {
        Ok((from.to_owned(), key_id.to_owned()))
    }

    #[test]
    fn credentials_are_taken_in_the_order_that_users_of_s3_know() {
        let home = Home::new(
            "[default]\naws_access_key_id=of-default\naws_secret_access_key=s\n\
             [p]\naws_access_key_id=of-p\naws_secret_access_key=s\n",
            "",
        );
        let none = StoreSettings::default();
        let profile = StoreSettings { profile: Some("p".to_owned()), ..none.clone() };
        let id = home.0.path().join("id");
        std::fs::write(&id, "of-file\n").unwrap();
        let named = StoreSettings {
            access_key_id: Some(SecretSource::File(id)),
            secret_access_key: Some(SecretSource::Variable("MY_SECRET".to_owned())),
            ..profile.clone()
        };
        let with_secret = [KEYS[0], KEYS[1], ("MY_SECRET", "x")];
        let from = "the file ~/id and the variable MY_SECRET";
        assert_eq!(home.choose(&named, &with_secret), pair(from, "of-file"));
        assert_eq!(home.choose(&profile, &KEYS), pair("profile `p` of ~/.aws/credentials", "of-p"));
        assert_eq!(home.choose(&none, &KEYS), pair("AWS_ACCESS_KEY_ID of the environment", "of-environment"));
        let by_variable = [("AWS_PROFILE", "p")];
        assert_eq!(home.choose(&none, &by_variable), pair("profile `p` of ~/.aws/credentials", "of-p"));
        assert_eq!(home.choose(&none, &[]), pair("profile `default` of ~/.aws/credentials", "of-default"));
        let empty = Home::new("", "");
        let web = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")];
        assert_eq!(empty.choose(&none, &web), pair("the web identity of AWS_WEB_IDENTITY_TOKEN_FILE", ""));
        assert_eq!(empty.choose(&none, &[]), pair("the machine's role", ""));
    }

    #[test]
    fn credentials_that_are_named_and_not_there_are_refused_and_not_passed_over() {
        let home = Home::new("[half]\naws_access_key_id=x\n", "[profile role]\nrole_arn=arn:aws:iam::1:role/r\n");
        let none = StoreSettings::default();
        let profile = |name: &str| StoreSettings { profile: Some(name.to_owned()), ..none.clone() };
        let half_named =
            StoreSettings { access_key_id: Some(SecretSource::Variable("X".to_owned())), ..StoreSettings::default() };
        let no_file = StoreSettings {
            secret_access_key: Some(SecretSource::File("/nowhere/secret".into())),
            ..half_named.clone()
        };
        let cases: [(&StoreSettings, &[(&str, &str)], &str); 7] = [
            (&profile("absent"), &KEYS, "no profile `absent`"),
            (&none, &[("AWS_PROFILE", "absent")], "no profile `absent`"),
            (&profile("half"), &[], "only one of"),
            (&profile("role"), &[], "`role_arn`"),
            (&none, &KEYS[..1], "one is not set"),
            (&half_named, &[("X", "x")], "go together"),
            (&no_file, &[("X", "x")], "/nowhere/secret"),
        ];
        for (settings, variables, expected) in cases {
            let error = home.choose(settings, variables).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
