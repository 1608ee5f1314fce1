//! Whether an agent or a node may listen where it is told to.
//!
//! Reads are open to whoever reaches it, and it speaks no TLS itself. So beyond loopback both have to be asked for by name,
//! with the words that a server takes.

use std::fmt;
use std::net::SocketAddr;

/// What was asked for by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Whoever reaches it may read everything.
    pub allow_anyone: bool,
    /// Data and the region's token may travel in the clear, or something in front of it speaks TLS.
    pub allow_plain_http: bool,
}

/// What keeps an agent or a node from listening beyond loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Exposed {
    /// Where it was to listen.
    pub address: SocketAddr,
    /// What was asked for by name.
    pub exposure: Exposure,
}

impl fmt::Display for Exposed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the process can't listen on {}, beyond loopback: ", self.address)?;
        let open = "whoever reaches it may read everything (--allow-anyone, if that is meant)";
        let clear = "data and the region's token would travel in the clear (--allow-plain-http, if something in front of \
                     it speaks TLS)";
        match (self.exposure.allow_anyone, self.exposure.allow_plain_http) {
            (false, false) => write!(formatter, "{open}, and {clear}"),
            (false, true) => formatter.write_str(open),
            (true, _) => formatter.write_str(clear),
        }
    }
}

impl Exposure {
    /// Whether a process may listen there.
    ///
    /// # Errors
    /// [`Exposed`] if it would be open, or in the clear, without that being asked for by name.
    pub(crate) fn check(self, address: SocketAddr) -> Result<(), Exposed> {
        if address.ip().is_loopback() || (self.allow_anyone && self.allow_plain_http) {
            return Ok(());
        }
        Err(Exposed { address, exposure: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_both_have_to_be_asked_for_by_name() {
        let (loopback, beyond) = ("127.0.0.1:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap());
        let exposure = |allow_anyone, allow_plain_http| Exposure { allow_anyone, allow_plain_http };
        assert!(Exposure::default().check(loopback).is_ok());
        assert!(exposure(true, true).check(beyond).is_ok());
        for (given, named) in [
            (exposure(false, false), &["--allow-anyone", "--allow-plain-http"][..]),
            (exposure(true, false), &["--allow-plain-http"]),
            (exposure(false, true), &["--allow-anyone"]),
        ] {
            let text = given.check(beyond).unwrap_err().to_string();
            let asked: Vec<&str> =
                ["--allow-anyone", "--allow-plain-http"].into_iter().filter(|flag| text.contains(flag)).collect();
            assert_eq!(asked, named, "{text}");
        }
    }
}
