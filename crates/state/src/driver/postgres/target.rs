//! Where the database is and who comes: connection strings, `PG*` variables and password files as users of libpq know
//! them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslMode, TargetSessionAttrs};

use super::super::DriverError;
use super::tls::{RootCertificates, Tls, TlsMode, TlsOptions};

/// Parameters that are libpq's and not `tokio_postgres`'s, or that we have to know ourselves.
#[derive(Default)]
struct Own {
    sslmode: Option<String>,
    sslrootcert: Option<String>,
    sslcert: Option<String>,
    sslkey: Option<String>,
    passfile: Option<String>,
}

impl Own {
    /// Takes a parameter that is ours; says whether it was.
    fn take(&mut self, name: &str, value: &str) -> bool {
        let place = match name {
            "sslmode" => &mut self.sslmode,
            "sslrootcert" => &mut self.sslrootcert,
            "sslcert" => &mut self.sslcert,
            "sslkey" => &mut self.sslkey,
            "passfile" => &mut self.passfile,
            // Without effect here: the encoding is always UTF-8, and there is no GSSAPI.
            "client_encoding" | "gssencmode" | "krbsrvname" | "sslcompression" | "sslsni" => return true,
            _ => return false,
        };
        *place = Some(value.to_owned());
        true
    }
}

/// A database to connect to. Has the password, and never shows it.
pub(super) struct Target {
    config: Config,
    pub(super) tls: Tls,
    /// Host, port, database and user, for messages.
    pub(super) place: String,
}

impl fmt::Debug for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.place)
    }
}

impl Target {
    /// Reads a connection string (a URL or `name=value` pairs) and completes it from `variable`, as the process's
    /// environment is for libpq.
    pub(super) fn parse(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Target, DriverError> {
        let mut own = Own::default();
        let rest = match text.split_once("://") {
            Some(("postgres" | "postgresql", after)) => {
                expect_escaped(after)?;
                strip_url(text, &mut own)?
            }
            // A value of a pair may hold this, too.
            Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') => {
                return Err(refused(&format!("it begins with {scheme}://")));
            }
            _ if !text.trim().is_empty() && !text.contains('=') => {
                return Err(refused("it is neither a URL nor pairs of NAME=VALUE"));
            }
            _ => strip_pairs(text, &mut own)?,
        };
        let mut config = Config::from_str(&rest).map_err(|error| {
            // The error names a parameter at most; the string itself may have a password.
            refused(&super::errors::plain(&error))
        })?;
        complete(&mut config, &mut own, variable)?;
        let home = variable("HOME").map(PathBuf::from);
        if config.get_password().is_none() {
            let file = own.passfile.clone().or_else(|| variable("PGPASSFILE")).map(PathBuf::from);
            if let Some(file) = file.or_else(|| Some(home.as_ref()?.join(".pgpass")))
                && let Some(password) = password_from(&file, &config)
            {
                config.password(password);
            }
        }
        let tls = Tls::new(tls_options(&own, home.as_deref())?)?;
        let only_sockets = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        config.ssl_mode(match tls.mode() {
            _ if only_sockets => SslMode::Disable,
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
        });
        if config.get_hosts().len() > 1 && config.get_target_session_attrs() == TargetSessionAttrs::Any {
            // Of several hosts it is the one that can be written to.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let place = place_of(&config);
        Ok(Target { config, tls, place })
    }

    /// What a connection is made with, the limits and the name of its role still to be set.
    pub(super) fn config(&self) -> Config {
        self.config.clone()
    }
}

fn refused(why: &str) -> DriverError {
    DriverError::Configuration(format!(
        "the connection string of the database can't be used: {why}; it looks like \
         postgres://user@host:5432/database?sslmode=verify-full"
    ))
}

fn decoded(text: &str) -> Result<String, DriverError> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| refused("a parameter is not UTF-8"))?.into_owned())
}

/// Refuses a URL in which a password, most likely, ends early: what follows it would be taken for a host, and be shown.
fn expect_escaped(after_scheme: &str) -> Result<(), DriverError> {
    let address = after_scheme.split('?').next().unwrap_or_default();
    let (authority, path) = address.split_once('/').unwrap_or((address, ""));
    if authority.matches('@').count() > 1 || path.contains('@') {
        return Err(refused("within a user's name or password @ is written %40, / is %2F and : is %3A"));
    }
    Ok(())
}

/// Variables of libpq that ask for something which is not to be had here. Connecting without it would be less than what was
/// asked for, or to somewhere else.
const UNKNOWN: [&str; 8] = [
    "PGSERVICE",
    "PGHOSTADDR",
    "PGREQUIREAUTH",
    "PGREQUIREPEER",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGSSLMINPROTOCOLVERSION",
    "PGSSLMAXPROTOCOLVERSION",
];

/// Takes our parameters out of the query of a URL.
fn strip_url(text: &str, own: &mut Own) -> Result<String, DriverError> {
    let Some((base, query)) = text.split_once('?') else { return Ok(text.to_owned()) };
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| refused("a parameter has no value"))?;
        if !own.take(&decoded(name)?, &decoded(value)?) {
            kept.push(pair);
        }
    }
    Ok(if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) })
}

/// Takes our parameters out of `name=value` pairs, whose values may be quoted.
fn strip_pairs(text: &str, own: &mut Own) -> Result<String, DriverError> {
    let mut kept = String::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(|| refused("a parameter has no value"))?;
        let after = after.trim_start();
        let quoted = after.starts_with('\'');
        let mut value = String::new();
        let mut end = after.len();
        let mut characters = after.char_indices().skip(usize::from(quoted));
        let mut closed = !quoted;
        while let Some((place, character)) = characters.next() {
            match character {
                '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                '\'' if quoted => {
                    end = place + 1;
                    closed = true;
                    break;
                }
                character if !quoted && character.is_whitespace() => {
                    end = place;
                    break;
                }
                character => value.push(character),
            }
        }
        if !closed {
            return Err(refused("a quoted value does not end"));
        }
        if !own.take(name.trim(), &value) {
            let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
            kept.push_str(&format!("{}='{escaped}' ", name.trim()));
        }
        rest = after[end..].trim_start();
    }
    Ok(kept)
}

/// Fills in from the environment what the string leaves out.
fn complete(config: &mut Config, own: &mut Own, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), DriverError> {
    if let Some(name) = UNKNOWN.into_iter().find(|name| variable(name).is_some()) {
        return Err(refused(&format!("{name} is set, which is not known here; unset it")));
    }
    if config.get_channel_binding() == ChannelBinding::Prefer {
        match variable("PGCHANNELBINDING").as_deref() {
            None | Some("prefer") => {}
            Some("require") => drop(config.channel_binding(ChannelBinding::Require)),
            Some("disable") => drop(config.channel_binding(ChannelBinding::Disable)),
            Some(_) => return Err(refused("PGCHANNELBINDING is none of disable, prefer, require")),
        }
    }
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        let socket = Path::new("/var/run/postgresql");
        match variable("PGHOST") {
            Some(hosts) => hosts.split(',').for_each(|host| {
                config.host(host);
            }),
            None if socket.exists() => {
                config.host_path(socket);
            }
            None => {
                config.host("localhost");
            }
        }
    }
    if config.get_ports().is_empty()
        && let Some(ports) = variable("PGPORT")
    {
        for port in ports.split(',') {
            config.port(port.parse().map_err(|_| refused("PGPORT is not a port"))?);
        }
    }
    if config.get_user().is_none()
        && let Some(user) = ["PGUSER", "USER", "LOGNAME"].into_iter().find_map(variable)
    {
        config.user(user);
    }
    if config.get_dbname().is_none()
        && let Some(database) = variable("PGDATABASE")
    {
        config.dbname(database);
    }
    if config.get_password().is_none()
        && let Some(password) = variable("PGPASSWORD")
    {
        config.password(password);
    }
    if config.get_options().is_none()
        && let Some(options) = variable("PGOPTIONS")
    {
        config.options(options);
    }
    for (place, name) in [
        (&mut own.sslmode, "PGSSLMODE"),
        (&mut own.sslrootcert, "PGSSLROOTCERT"),
        (&mut own.sslcert, "PGSSLCERT"),
        (&mut own.sslkey, "PGSSLKEY"),
    ] {
        if place.is_none() {
            *place = variable(name);
        }
    }
    Ok(())
}

fn tls_options(own: &Own, home: Option<&Path>) -> Result<TlsOptions, DriverError> {
    let in_home = |name: &str| home.map(|home| home.join(".postgresql").join(name)).filter(|file| file.exists());
    let root = match own.sslrootcert.as_deref() {
        Some("system") => Some(RootCertificates::System),
        Some(file) => Some(RootCertificates::File(file.into())),
        None => in_home("root.crt").map(RootCertificates::File),
    };
    let mode = match own.sslmode.as_deref() {
        None if matches!(root, Some(RootCertificates::System)) => TlsMode::VerifyFull,
        None | Some("prefer" | "allow") => TlsMode::Prefer,
        Some("disable") => TlsMode::Disable,
        // With a root certificate at hand it is checked, as libpq does.
        Some("require") if root.is_some() => TlsMode::VerifyCa,
        Some("require") => TlsMode::Require,
        Some("verify-ca") => TlsMode::VerifyCa,
        Some("verify-full") => TlsMode::VerifyFull,
        Some(other) => {
            return Err(refused(&format!(
                "sslmode {other:?} is none of disable, allow, prefer, require, verify-ca, verify-full"
            )));
        }
    };
    Ok(TlsOptions {
        mode,
        root,
        certificate: own.sslcert.as_ref().map(PathBuf::from).or_else(|| in_home("postgresql.crt")),
        key: own.sslkey.as_ref().map(PathBuf::from).or_else(|| in_home("postgresql.key")),
    })
}

fn place_of(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(place, host)| {
        let port = ports.get(place).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            Host::Unix(folder) => format!("{}:{port}", folder.display()),
        }
    });
    let hosts = hosts.collect::<Vec<_>>().join(",");
    let user = config.get_user().unwrap_or("(the system's user)");
    let database = config.get_dbname().or(config.get_user()).unwrap_or("(named as the user)");
    format!("the database {database:?} at {hosts} (user {user:?})")
}

/// The first entry of a password file that fits. A file that others may read is not used, as libpq does.
fn password_from(file: &Path, config: &Config) -> Option<String> {
    let metadata = std::fs::metadata(file).ok()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if metadata.permissions().mode() & 0o077 != 0 {
            tracing::warn!(file = %file.display(), "the password file is not used, since others may read it; chmod 600 it");
            return None;
        }
    }
    if metadata.len() > 1 << 20 {
        return None;
    }
    let text = std::fs::read_to_string(file).ok()?;
    let user = config.get_user().unwrap_or_default();
    let database = config.get_dbname().unwrap_or(user);
    let ports = config.get_ports();
    let fits = |pattern: &str, value: &str| pattern == "*" || pattern == value;
    // One password goes to all hosts: that of the first one which has an entry.
    config.get_hosts().iter().enumerate().find_map(|(place, host)| {
        let host = match host {
            Host::Tcp(name) => name,
            Host::Unix(_) => "localhost",
        };
        let port = ports.get(place).or(ports.first()).copied().unwrap_or(5432).to_string();
        text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
            let fields = password_fields(line);
            let [in_host, in_port, in_database, in_user, password] = &fields[..] else { return None };
            let all = fits(in_host, host) && fits(in_port, &port) && fits(in_database, database) && fits(in_user, user);
            all.then(|| password.clone())
        })
    })
}

/// Five fields between colons; a backslash escapes the next character.
fn password_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let last = fields.len() - 1;
        match character {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields[last].extend(characters.next()),
            character => fields[last].push(character),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Target, DriverError> {
        let variables: BTreeMap<_, _> = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Target::parse(text, &|name| variables.get(name).cloned())
    }

    #[test]
    fn d11_connection_strings_are_read_as_libpq_reads_them() {
        let target = parse("postgres://u:secret@db.example:6000/d?sslmode=require&connect_timeout=3", &[]).unwrap();
        assert_eq!(target.place, "the database \"d\" at db.example:6000 (user \"u\")");
        assert_eq!((target.tls.mode(), target.config.get_ssl_mode()), (TlsMode::Require, SslMode::Require));
        let target = parse("host=/tmp/run user='o''x' sslmode = verify-full", &[]);
        assert!(target.is_err(), "a quote is escaped by a backslash: {target:?}");
        let target = parse(r"host=/tmp/run user='o\'x'   sslmode =disable password=' '", &[]).unwrap();
        assert_eq!(target.config.get_user(), Some("o'x"));
        assert_eq!(target.config.get_password(), Some(&b" "[..]));
        let environment =
            [("PGHOST", "h"), ("PGPORT", "7"), ("PGUSER", "u"), ("PGDATABASE", "d"), ("PGSSLMODE", "disable")];
        let target = parse("", &environment).unwrap();
        assert_eq!(target.place, "the database \"d\" at h:7 (user \"u\")");
        assert_eq!(target.tls.mode(), TlsMode::Disable);
        let target = parse("postgres://h/d", &[("USER", "somebody"), ("PGCHANNELBINDING", "require")]).unwrap();
        assert_eq!(target.config.get_user(), Some("somebody"), "the system's, as psql takes it");
        assert_eq!(target.config.get_channel_binding(), ChannelBinding::Require);
    }

    #[test]
    fn d11_what_a_variable_asks_for_and_is_not_to_be_had_is_refused_and_not_passed_over() {
        for (name, value) in
            [("PGSERVICE", "production"), ("PGREQUIREAUTH", "scram-sha-256"), ("PGCHANNELBINDING", "x")]
        {
            let error = parse("postgres://u@h/d", &[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn d11_what_is_wrong_with_a_string_is_said_without_its_secret() {
        for text in [
            "postgres://u:secret@h/d?sslmode=maybe",
            "postgres://u:secret@h:port/d",
            "postgres://u:secret@h/d?what=1",
            "host=h password='secret",
            "mysql://u:secret@h/d",
            "h:5432",
            "postgres://u:p@secret@h/d",
            "postgres://u:p/secret@h/d",
            "postgres://u:p@ss/secret@h/d",
            "postgres://u:secret@h/d?sslmode=verify-ca",
            "postgres://u:secret@h/d?sslmode=verify-ca&sslrootcert=/nowhere/root.crt",
        ] {
            let error = parse(text, &[]).unwrap_err();
            assert!(matches!(error, DriverError::Configuration(_)), "{text}: {error:?}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn d11_passwords_come_from_a_file_that_nobody_else_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pgpass");
        std::fs::write(&file, "# comment\nother:*:*:*:no\nh:5432:*:u\\:x:se\\:cret:1\n*:*:d:u:second\n").unwrap();
        let passfile = file.to_str().unwrap();
        let password = |text: &str| {
            let target = parse(text, &[("PGPASSFILE", passfile)]).unwrap();
            target.config.get_password().map(|password| String::from_utf8(password.to_vec()).unwrap())
        };
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(password("postgres://u@h/d"), None);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(password("postgres://u@h/d").as_deref(), Some("second"));
        assert_eq!(password("postgres://u%3Ax@h/d").as_deref(), Some("se:cret:1"));
        assert_eq!(password("postgres://u@h/e"), None);
        assert_eq!(password("postgres://u:own@h/d").as_deref(), Some("own"));
        // Of several hosts the second one has an entry.
        assert_eq!(password("postgres://u%3Ax@unknown,h/e").as_deref(), Some("se:cret:1"));
    }
}
