//! What can go wrong with a request.

use std::time::Duration;

use tidegate_api::ErrorBody;

/// Why a request did not get the answer it was made for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of the server is no URL that can be used. Mend the address.
    #[error("`{url}` is no address of a server: {reason}")]
    Url {
        /// The address as it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server could not be reached, or the connection broke, for as long as was tried. It may
    /// be down; nothing is known about requests that may have arrived.
    #[error("could not reach the server at {url} within {tried_for:.1?}: {reason}")]
    Unreachable {
        /// The server's address.
        url: String,
        /// For how long it was tried.
        tried_for: Duration,
        /// The last failure.
        reason: String,
        /// Whether it is certain that no attempt was sent: no connection was ever made.
        surely_not_sent: bool,
    },
    /// The server refused the request, and says why.
    #[error("{body}")]
    Refused {
        /// The status of the answer.
        status: u16,
        /// What the server says.
        body: Box<ErrorBody>,
    },
    /// The answer can't be read: something other than Tidegate answers there, or a release that
    /// is too different.
    #[error("the answer of {url} (status {status}) can't be read: {reason}")]
    Unreadable {
        /// What was asked.
        url: String,
        /// The status of the answer.
        status: u16,
        /// What is wrong with it.
        reason: String,
    },
    /// The artifact store refused a part that was put straight there.
    #[error("the artifact store at {url} refused a part (status {status}): {reason}")]
    StoreRefused {
        /// The store's address.
        url: String,
        /// The status of its answer.
        status: u16,
        /// What it says.
        reason: String,
    },
    /// The time that the caller gave ran out.
    #[error("not done within {limit:.1?}: {what}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// Something on this machine failed: a file that can't be read or sent.
    #[error("{what}: {reason}")]
    Local {
        /// What was tried.
        what: String,
        /// Why it failed.
        reason: String,
    },
}

impl Error {
    /// The code of a refusal, see [`tidegate_api::code`].
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { body, .. } => Some(&body.code),
            _ => None,
        }
    }

    /// What the server said, if it refused.
    #[must_use]
    pub fn body(&self) -> Option<&ErrorBody> {
        match self {
            Self::Refused { body, .. } => Some(body),
            _ => None,
        }
    }

    /// Whether the server could not be reached.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
