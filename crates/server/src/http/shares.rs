//! How much of what there is little of one caller may hold at once, so that there is some left for others.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::StatusCode;
use parking_lot::Mutex;
use tidegate_api::{ErrorBody, code};

use super::errors::{ApiError, NOTHING_CHANGED};
use crate::access::Bearer;

/// What each token holds of something.
#[derive(Debug)]
pub(crate) struct Shares {
    /// What it is called, for people.
    name: &'static str,
    each: usize,
    held: Mutex<HashMap<String, usize>>,
}

/// One of what a token holds, until this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    token: String,
}

impl Shares {
    /// Half of all, at least one.
    pub(crate) fn half_of(name: &'static str, all: usize) -> Arc<Self> {
        Arc::new(Self { name, each: (all / 2).max(1), held: Mutex::default() })
    }

    /// One more for this caller. Who shows no token has no share: nobody is to be protected from programs of the same
    /// machine, and others are bounded by their address.
    pub(crate) fn enter(self: &Arc<Self>, bearer: Option<&Bearer>) -> Result<Option<Share>, ApiError> {
        let Some(bearer) = bearer else { return Ok(None) };
        let mut held = self.held.lock();
        let count = held.entry(bearer.token.clone()).or_default();
        if *count >= self.each {
            return Err(self.used_up(&bearer.name));
        }
        *count += 1;
        Ok(Some(Share { shares: Arc::clone(self), token: bearer.token.clone() }))
    }

    fn used_up(&self, name: &str) -> ApiError {
        let why =
            format!("Token `{name}` has {} {} open, which is as many as one token may have.", self.each, self.name);
        let body = ErrorBody::new(
            code::OVERLOADED,
            "The server has no room for another request of this kind.",
            why,
            NOTHING_CHANGED,
            "End one of them first, or raise the limit in the server's configuration.",
        );
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, body.with_retryable(true))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock();
        if let Some(count) = held.get_mut(&self.token) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::Role;

    use super::*;

    #[test]
    fn a_token_holds_half_and_leaves_the_rest_to_others() {
        let bearer = |token: &str| Bearer {
            token: token.to_owned(),
            name: token.to_owned(),
            role: Role::Team,
            team: None,
            region: None,
            by_session: false,
        };
        let shares = Shares::half_of("watches", 5);
        let (one, other) = (bearer("one"), bearer("other"));
        let first = shares.enter(Some(&one)).unwrap();
        let _second = shares.enter(Some(&one)).unwrap();
        assert!(shares.enter(Some(&one)).is_err());
        let _others = shares.enter(Some(&other)).unwrap();
        assert!(shares.enter(None).unwrap().is_none());
        drop(first);
        let _third = shares.enter(Some(&one)).unwrap();
        assert_eq!(shares.held.lock().len(), 2);
    }
}
