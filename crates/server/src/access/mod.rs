//! Who may do what.
//!
//! Whoever asks shows a token. The [`table`] says which role may ask which route, and of a team's or a region's token also
//! what the request has to be about; the same table makes `docs/access.md`. What is not in it is refused, and a route that is
//! not in it keeps the server from starting.
//!
//! | what | module |
//! |---|---|
//! | the rules | [`table`], `docs` |
//! | tokens at rest and in hand | `token`, `tokens` |
//! | sessions of the page | `session` |
//! | who asks | `caller` |
//! | what a request is about, and whose that is | `subject`, `artifacts` |
//! | who asks, of any process | `entrance` |
//! | the guard before each route of a server | `guard` |
//! | the guard before each route of an agent or a node, and what it knows of tokens | `region` |
//! | what a region's agent is told of tokens | `handed_out` |
//! | the tokens by which servers ask agents in others' stead | `errand` |
//! | how it refuses | `refusal` |
//! | how much one caller may ask | `buckets` |
//! | the audit trail, and when a token was used last | `audit`, `clerk` |
//! | whether a server may start like this | `exposure` |
//! | `[access]` and `[tls]` | [`config`] |
//!
//! # Invariants
//! - No secret is kept: of a token, and of a session of the page, there is a SHA-256 of 256 random bits. One route shows that,
//!   to the agents of regions, which have to know tokens with the control plane gone; no other does, the watch of the tree
//!   included.
//! - A secret is compared in constant time, and whether a token exists shows in nothing but the time of a look-up in a map.
//! - A session of the page only reads: no cookie ever authorises a change, so that no page of another site can make one.
//! - Reading writes nothing: when a token was used last is noted every few minutes at most, beside the token.
//! - Who shows no token that holds is counted, and not recorded. Of what the bearer of a token may not change a few are.

mod artifacts;
mod audit;
mod buckets;
mod caller;
mod clerk;
pub mod config;
#[cfg(test)]
mod docs;
mod entrance;
pub(crate) mod errand;
mod exposure;
mod guard;
mod handed_out;
mod metrics;
mod refusal;
pub(crate) mod region;
pub(crate) mod session;
mod subject;
pub mod table;
mod token;
mod tokens;

use std::net::IpAddr;
use std::time::{Duration, Instant};

pub(crate) use audit::{AuditEntry, AuditRecord, record_removal};
pub(crate) use buckets::{Buckets, Who};
pub(crate) use caller::{Bearer, Caller, bearer_of_text, claimed_name};
pub(crate) use clerk::Clerk;
pub use exposure::{Exposed, Exposure};
pub(crate) use exposure::{authentication, region_authentication};
pub(crate) use guard::{Asked, Gate, guard};
pub(crate) use handed_out::to_region;
pub(crate) use metrics::AccessMetrics;
pub(crate) use refusal::Refusal;
pub(crate) use token::{Revoked, Token};
pub(crate) use tokens::{create, first_admin, list, revoke};

use config::{AccessLimits, Authentication};

/// What every process's guard works with: whether it asks for tokens, and how much one caller may ask.
pub(crate) struct Door {
    authentication: Authentication,
    requests: Buckets,
    look_ups: Buckets,
    wrong_tokens: Buckets,
    pub(crate) metrics: AccessMetrics,
}

impl Door {
    pub(crate) fn new(authentication: Authentication, limits: &AccessLimits, metrics: AccessMetrics) -> Self {
        let now = Instant::now();
        Self {
            authentication,
            requests: Buckets::new(limits.requests_per_second, limits.requests_burst, now),
            look_ups: Buckets::new(limits.look_ups_per_second, limits.look_ups_burst, now),
            wrong_tokens: Buckets::new(limits.wrong_tokens_per_second, limits.wrong_tokens_burst, now),
            metrics,
        }
    }

    pub(crate) fn is_required(&self) -> bool {
        self.authentication == Authentication::Required
    }

    /// Counts a request of this caller; how long it has to wait if it has asked too much.
    fn admit(&self, who: Who, is_look_up: bool) -> Result<(), Duration> {
        let buckets = if is_look_up { &self.look_ups } else { &self.requests };
        buckets.take(who, Instant::now())
    }

    /// What a wrong token is answered with: that it is wrong, or, where there were too many, to wait.
    pub(crate) fn wrong_token(&self, peer: IpAddr, refusal: Refusal) -> Refusal {
        match self.wrong_tokens.take(Who::peer(peer), Instant::now()) {
            Ok(()) => refusal,
            Err(wait) => Refusal::TooManyWrongTokens { wait },
        }
    }
}

/// What a server's guard works with besides.
pub(crate) struct Access {
    pub(crate) door: Door,
    pub(crate) clerk: Clerk,
    /// Whether cookies are sent over TLS alone.
    pub(crate) secure_cookies: bool,
}

impl Access {
    pub(crate) fn is_required(&self) -> bool {
        self.door.is_required()
    }
}
