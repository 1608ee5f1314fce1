//! Whether a server, an agent or a node may listen where it is told to.
//!
//! On loopback the machine's own users are its bounds. Beyond, a process without authentication or without TLS is one that was
//! meant otherwise more often than not: it does not start, unless that is asked for by name.

use std::fmt;
use std::net::SocketAddr;

use super::config::{AccessSection, Authentication};

/// What of a process has to be asked for by name, where it listens beyond loopback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// It asks nobody for a token: whoever reaches it may read everything.
    pub allow_anyone: bool,
    /// It speaks no TLS: data and tokens travel in the clear, or something in front of it speaks TLS.
    pub allow_plain_http: bool,
}

/// What keeps a process from listening beyond loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Exposed {
    /// Where it was to listen.
    pub address: SocketAddr,
    /// It would ask nobody for a token.
    pub is_without_authentication: bool,
    /// Tokens and data would travel in the clear.
    pub is_without_tls: bool,
    /// Whether it is an agent or a node, which is told by flags alone.
    pub is_in_region: bool,
}

impl Exposed {
    fn authentication(&self) -> &'static str {
        if self.is_in_region {
            "without authentication: whoever reaches it may read everything. Give it a token of the region (--token-file): \
             then it asks others for one, too. Or, if that is meant, say --allow-anyone"
        } else {
            "without authentication: whoever reaches it may do anything. Remove `authentication = \"off\"` from [access], \
             or, if that is meant, set `allow_anyone = true` there (--allow-anyone)"
        }
    }

    fn tls(&self) -> &'static str {
        if self.is_in_region {
            "without TLS: tokens and data would travel in the clear. Give it a certificate (--tls-certificate, --tls-key), \
             or, if something in front of it speaks TLS, say --allow-plain-http"
        } else {
            "without TLS: tokens and data would travel in the clear. Set `certificate` and `key` in [tls], or, if something \
             in front of it speaks TLS, set `allow_plain_http = true` in [access] (--allow-plain-http)"
        }
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process = if self.is_in_region { "process" } else { "server" };
        write!(formatter, "the {process} can't listen on {}, beyond loopback, ", self.address)?;
        match (self.is_without_authentication, self.is_without_tls) {
            (true, true) => write!(formatter, "{}; nor {}", self.authentication(), self.tls()),
            (true, false) => formatter.write_str(self.authentication()),
            (false, _) => formatter.write_str(self.tls()),
        }
    }
}

/// Whether authentication is required of a server that listens there.
///
/// # Errors
/// [`Exposed`] if it would be open, or in the clear, without that being asked for by name.
pub(crate) fn authentication(
    address: SocketAddr,
    access: &AccessSection,
    has_tls: bool,
) -> Result<Authentication, Exposed> {
    let default = match address.ip().is_loopback() || access.allow_anyone {
        true => Authentication::Off,
        false => Authentication::Required,
    };
    let exposure = Exposure { allow_anyone: access.allow_anyone, allow_plain_http: access.allow_plain_http };
    let authentication = access.authentication.unwrap_or(default);
    check(address, authentication, exposure, has_tls, false)
}

/// Whether authentication is required of an agent or a node that listens there. It asks for tokens if it has one itself: a
/// control plane that asks nobody has no tokens to know others by.
///
/// # Errors
/// [`Exposed`] if it would be open, or in the clear, without that being asked for by name.
pub(crate) fn region_authentication(
    address: SocketAddr,
    has_token: bool,
    exposure: Exposure,
    has_tls: bool,
) -> Result<Authentication, Exposed> {
    let authentication = match has_token && !exposure.allow_anyone {
        true => Authentication::Required,
        false => Authentication::Off,
    };
    check(address, authentication, exposure, has_tls, true)
}

fn check(
    address: SocketAddr,
    authentication: Authentication,
    exposure: Exposure,
    has_tls: bool,
    is_in_region: bool,
) -> Result<Authentication, Exposed> {
    let is_beyond = !address.ip().is_loopback();
    let is_without_authentication = is_beyond && authentication == Authentication::Off && !exposure.allow_anyone;
    let is_without_tls = is_beyond && !has_tls && !exposure.allow_plain_http;
    if is_without_authentication || is_without_tls {
        return Err(Exposed { address, is_without_authentication, is_without_tls, is_in_region });
    }
    Ok(authentication)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(authentication: Option<Authentication>, plain: bool, anyone: bool) -> AccessSection {
        AccessSection { authentication, allow_plain_http: plain, allow_anyone: anyone, ..AccessSection::default() }
    }

    #[test]
    fn what_is_open_or_in_the_clear_has_to_be_asked_for_by_name() {
        use Authentication::{Off, Required};
        let (loopback, beyond) = ("127.0.0.1:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap());
        for (address, access, has_tls, expected) in [
            (loopback, section(None, false, false), false, Ok(Off)),
            (loopback, section(Some(Required), false, false), false, Ok(Required)),
            ("[::1]:1".parse().unwrap(), section(None, false, false), true, Ok(Off)),
            (beyond, section(None, false, false), true, Ok(Required)),
            (beyond, section(None, false, false), false, Err((false, true))),
            (beyond, section(None, true, false), false, Ok(Required)),
            (beyond, section(Some(Off), true, false), false, Err((true, false))),
            (beyond, section(Some(Off), false, false), false, Err((true, true))),
            (beyond, section(Some(Off), false, false), true, Err((true, false))),
            (beyond, section(Some(Off), false, true), true, Ok(Off)),
            (beyond, section(None, true, true), false, Ok(Off)),
            (beyond, section(Some(Required), false, true), true, Ok(Required)),
            (beyond, section(None, false, true), false, Err((false, true))),
        ] {
            let found = authentication(address, &access, has_tls)
                .map_err(|exposed| (exposed.is_without_authentication, exposed.is_without_tls));
            assert_eq!(found, expected, "{address} {access:?} tls: {has_tls}");
        }
    }

    #[test]
    fn the_refusal_names_both_ways_out() {
        let address = "0.0.0.0:1".parse().unwrap();
        let text = |is_in_region| {
            Exposed { address, is_without_authentication: true, is_without_tls: true, is_in_region }.to_string()
        };
        let both = ["loopback", "--allow-anyone", "--allow-plain-http", "without authentication"];
        for (text, other) in [(text(false), "[tls]"), (text(true), "--tls-certificate")] {
            for named in both.iter().chain([&other]) {
                assert!(text.contains(named), "{named}: {text}");
            }
        }
    }

    #[test]
    fn an_agent_or_a_node_asks_for_tokens_if_it_has_one() {
        use Authentication::{Off, Required};
        let (loopback, beyond) = ("127.0.0.1:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap());
        let exposure = |allow_anyone, allow_plain_http| Exposure { allow_anyone, allow_plain_http };
        for (address, has_token, exposure, has_tls, expected) in [
            (loopback, false, exposure(false, false), false, Ok(Off)),
            (loopback, true, exposure(false, false), false, Ok(Required)),
            (loopback, true, exposure(true, false), false, Ok(Off)),
            (beyond, true, exposure(false, false), true, Ok(Required)),
            (beyond, true, exposure(false, true), false, Ok(Required)),
            (beyond, true, exposure(false, false), false, Err((false, true))),
            (beyond, false, exposure(false, false), true, Err((true, false))),
            (beyond, false, exposure(false, false), false, Err((true, true))),
            (beyond, false, exposure(true, false), true, Ok(Off)),
            (beyond, true, exposure(true, true), false, Ok(Off)),
        ] {
            let found = region_authentication(address, has_token, exposure, has_tls)
                .map_err(|exposed| (exposed.is_without_authentication, exposed.is_without_tls));
            assert_eq!(found, expected, "{address} token: {has_token} {exposure:?} tls: {has_tls}");
        }
    }
}
