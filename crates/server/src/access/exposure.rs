//! Whether a server may listen where it is told to.
//!
//! On loopback the machine's own users are its bounds. Beyond, a server without authentication or without TLS is one that was
//! meant otherwise more often than not: it does not start, unless that is asked for by name.

use std::fmt;
use std::net::SocketAddr;

use super::config::{AccessSection, Authentication};

/// What keeps a server from listening beyond loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// Where it was to listen.
    pub address: SocketAddr,
    /// It would ask nobody for a token.
    pub is_without_authentication: bool,
    /// Tokens and data would travel in the clear.
    pub is_without_tls: bool,
}

impl fmt::Display for Exposed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the server can't listen on {}, beyond loopback, ", self.address)?;
        let authentication = "without authentication: whoever reaches it may do anything. Remove `authentication = \
                              \"off\"` from [access], or, if that is meant, set `allow_anyone = true` there \
                              (--allow-anyone)";
        let tls = "without TLS: tokens and data would travel in the clear. Set `certificate` and `key` in [tls], or, if \
                   something in front of it speaks TLS, set `allow_plain_http = true` in [access] (--allow-plain-http)";
        match (self.is_without_authentication, self.is_without_tls) {
            (true, true) => write!(formatter, "{authentication}; nor {tls}"),
            (true, false) => formatter.write_str(authentication),
            (false, _) => formatter.write_str(tls),
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
    let is_loopback = address.ip().is_loopback();
    let default = if is_loopback || access.allow_anyone { Authentication::Off } else { Authentication::Required };
    let authentication = access.authentication.unwrap_or(default);
    let is_without_authentication = !is_loopback && authentication == Authentication::Off && !access.allow_anyone;
    let is_without_tls = !is_loopback && !has_tls && !access.allow_plain_http;
    if is_without_authentication || is_without_tls {
        return Err(Exposed { address, is_without_authentication, is_without_tls });
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
        let text = Exposed { address, is_without_authentication: true, is_without_tls: true }.to_string();
        for named in ["loopback", "--allow-anyone", "--allow-plain-http", "[tls]", "without authentication"] {
            assert!(text.contains(named), "{named}: {text}");
        }
    }
}
