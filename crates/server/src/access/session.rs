//! Sessions of the page: what a browser has in place of a token.
//!
//! Signing in with a token makes a session: random bits in a cookie, their digest beside the token in the tree. So it holds on
//! every server, outlives a server's restart, ends with its own time and with its token, and what a browser keeps is of no use
//! for the API: a session only reads.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Ref, Snapshot, State, Timestamp, TransactionError};

use super::caller::{Bearer, in_force};
use super::refusal::Refusal;
use super::token::{Presented, RANDOM_BYTES, SecretDigest, Token, mint};
use crate::http::errors::{ApiError, ApiResult};

const COOKIE: &str = "tidegate_session";

/// How long a session holds.
const LIFE: Duration = Duration::from_secs(12 * 60 * 60);

/// How many sessions one token has at most; the oldest goes.
const SESSIONS_MAX: usize = 20;

/// `/tokens/{id}/sessions/{id}`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    digest: String,
    created_at: Timestamp,
    expires_at: Timestamp,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl Entity for Session {
    const COLLECTION: &'static str = "sessions";
    type Parent = Token;
    type Id = String;
}

/// What a session's cookie says: the token's id, and what a token of the session's own would say.
struct Shown {
    place: Ref<Session>,
    digest: SecretDigest,
}

impl Shown {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut cookies = cookies.flat_map(|value| value.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
        let (_, value) = cookies.find(|(name, _)| *name == COOKIE)?;
        let (token, secret) = value.split_once('.')?;
        let Presented { id, digest } = Presented::parse(secret)?;
        let place = Ref::<Token>::root(token).and_then(|token| token.child(id)).ok()?;
        Some(Self { place, digest })
    }
}

/// Whose session a request shows, if it shows one.
pub(super) fn bearer_of(headers: &HeaderMap, snapshot: &Snapshot, now: Timestamp) -> Result<Option<Bearer>, Refusal> {
    let Some(shown) = Shown::of(headers) else { return Ok(None) };
    let session = snapshot.get(&shown.place)?.filter(|session| shown.digest.is(&session.digest));
    session.filter(|session| session.expires_at > now).ok_or(Refusal::SessionOver)?;
    let place = shown.place.parent::<Token>();
    let token = snapshot.get(&place)?.ok_or(Refusal::SessionOver)?;
    in_force(token, now)?;
    Ok(Some(Bearer::of(place.id(), token, true)))
}

/// Begins a session of a token that has been proven. What the cookie is to be set to.
pub(crate) async fn begin(state: &State, bearer: &Bearer, is_secure: bool) -> ApiResult<HeaderValue> {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|error| ApiError::internal(format!("no random bytes: {error}")))?;
    let (id, secret, digest) = mint(random);
    let digest = digest.into_text();
    let token: Ref<Token> = Ref::root(bearer.token.as_str())?;
    let place: Ref<Session> = token.child(id)?;
    let written = state.write(move |transaction| -> Result<(), TransactionError> {
        let now = transaction.now();
        let mut there = transaction.children::<Session>(&token)?;
        there.sort_by_key(|(_, session)| std::cmp::Reverse(session.created_at));
        for (place, (other, session)) in there.iter().enumerate() {
            if session.expires_at <= now || place + 1 >= SESSIONS_MAX {
                transaction.delete(other)?;
            }
        }
        let session = Session { digest: digest.clone(), created_at: now, expires_at: now.after(LIFE) };
        transaction.create(&place, session)
    });
    written.await.map_err(|error| match error.is_retryable() {
        true => ApiError::unavailable("The session could not begin.", format!("{error}.")),
        false => ApiError::internal(error),
    })?;
    cookie(&format!("{}.{secret}", bearer.token), LIFE, is_secure)
}

/// Ends the session that a request shows, if there is one. What the cookie is to be set to.
pub(crate) async fn end(state: &State, headers: &HeaderMap, is_secure: bool) -> ApiResult<HeaderValue> {
    if let Some(shown) = Shown::of(headers) {
        let is_proven = state.snapshot().get(&shown.place)?.is_some_and(|session| shown.digest.is(&session.digest));
        if is_proven {
            let place = shown.place.clone();
            let written = state.write(move |transaction| -> Result<(), TransactionError> {
                transaction.delete(&place)?;
                Ok(())
            });
            written.await.map_err(|error| match error.is_retryable() {
                true => ApiError::unavailable("The session could not end.", format!("{error}.")),
                false => ApiError::internal(error),
            })?;
        }
    }
    cookie("", Duration::ZERO, is_secure)
}

/// No script reads it, no other site's page sends it along.
fn cookie(value: &str, life: Duration, is_secure: bool) -> ApiResult<HeaderValue> {
    let secure = if is_secure { "; Secure" } else { "" };
    let text = format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}{secure}", life.as_secs());
    HeaderValue::from_str(&text).map_err(ApiError::internal)
}
