//! How a caller is refused: always in the one shape of errors, always with what to do.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tidegate_api::{ErrorBody, Role, code};

use crate::http::errors::{ApiError, NOTHING_CHANGED};

/// Why a request is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It shows no token.
    NoToken,
    /// What it shows does not have the form of one.
    NoTokenForm,
    /// There is no such token, or its secret is another one.
    WrongToken,
    /// The token's time is over.
    Expired { name: String },
    /// The token was revoked.
    Revoked { name: String },
    /// The session of the page is over.
    SessionOver,
    /// No token of this role may ask this.
    Role { name: String, role: Role, needed: &'static [Role] },
    /// The role may ask this, but about something else.
    Scope { name: String, owner: String, about: String },
    /// The caller asks more than it may.
    TooManyRequests { wait: Duration },
    /// Too many wrong tokens came from there.
    TooManyWrongTokens { wait: Duration },
    /// What was ordered is done for those alone who know a secret.
    NoSecret { whose: &'static str, what_to_do: &'static str },
    /// What is kept of the token, or of what the request is about, can't be read.
    Unreadable(String),
}

impl Refusal {
    /// Its name in metrics.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::NoTokenForm | Self::WrongToken => "wrong_token",
            Self::Expired { .. } => "expired",
            Self::Revoked { .. } => "revoked",
            Self::SessionOver => "session_over",
            Self::Role { .. } => "role",
            Self::Scope { .. } => "scope",
            Self::TooManyRequests { .. } => "rate",
            Self::TooManyWrongTokens { .. } => "wrong_token_rate",
            Self::NoSecret { .. } => "no_secret",
            Self::Unreadable(_) => "unreadable",
        }
    }

    /// Whether somebody may be trying tokens.
    pub(crate) fn is_wrong_token(&self) -> bool {
        matches!(self, Self::NoTokenForm | Self::WrongToken)
    }

    /// Whether it may be that another server has just made what is not known here. A wrong secret is no different from an
    /// unknown token, so that the time of an answer tells nobody which of the two it is.
    pub(crate) fn may_be_new(&self) -> bool {
        matches!(self, Self::WrongToken | Self::SessionOver)
    }

    fn wait(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { wait } | Self::TooManyWrongTokens { wait } => Some(*wait),
            _ => None,
        }
    }

    pub(crate) fn error(&self) -> ApiError {
        let unauthenticated = |what: &str, why: &str, what_to_do: &str| {
            let body = ErrorBody::new(code::UNAUTHENTICATED, what, why, NOTHING_CHANGED, what_to_do);
            ApiError::new(StatusCode::UNAUTHORIZED, body)
        };
        let ask =
            "Ask an admin for a token (`tidegate token create`), and give it with TIDEGATE_TOKEN or --token-file.";
        match self {
            Self::NoToken => unauthenticated(
                "The request shows no token.",
                "This server asks everybody for one.",
                "Give a token with TIDEGATE_TOKEN or --token-file; in HTTP it is the header `authorization: Bearer TOKEN`.",
            ),
            Self::NoTokenForm => unauthenticated(
                "What the request shows is no token.",
                "A token has the form tg_ID_SECRET, in one header `authorization: Bearer TOKEN`.",
                "Look whether all of it was copied, and nothing else with it.",
            ),
            Self::WrongToken => unauthenticated("The token is wrong.", "No token has this id and this secret.", ask),
            Self::Expired { name } => {
                unauthenticated("The token has expired.", &format!("The time of token `{name}` is over."), ask)
            }
            Self::Revoked { name } => {
                unauthenticated("The token was revoked.", &format!("Token `{name}` holds no longer."), ask)
            }
            Self::SessionOver => unauthenticated(
                "The session is over.",
                "A session of the page ends with its time, and with its token.",
                "Open the page, and sign in again.",
            ),
            Self::Role { name, role, needed } => {
                let roles: Vec<&str> = needed.iter().map(|role| role.word()).collect();
                forbidden(
                    format!("Token `{name}` may not do this."),
                    format!("Its role is `{role}`, and this is for: {}.", roles.join(", ")),
                    "Use a token of one of these roles; docs/access.md says which role may do what.",
                )
            }
            Self::Scope { name, owner, about } => forbidden(
                format!("Token `{name}` may not do this."),
                format!("It is for {owner} alone, and {about}."),
                "Use a token that this belongs to, or ask an operator.",
            ),
            Self::TooManyRequests { wait } => too_many(
                "There are too many requests.",
                format!("The caller has used up what it may ask; there is room again in {wait:.1?}."),
                "Ask less often, or raise [access.limits] in the server's configuration.",
            ),
            Self::TooManyWrongTokens { wait } => too_many(
                "There are too many wrong tokens.",
                format!("Many came from this address; the next is looked at in {wait:.1?}."),
                "Mend the token. One that is right is let in at any time.",
            ),
            Self::NoSecret { whose, what_to_do } => ApiError::new(
                StatusCode::FORBIDDEN,
                ErrorBody::new(
                    code::REFUSED,
                    "The order is refused.",
                    format!("It does not have the secret {whose}."),
                    NOTHING_CHANGED,
                    *what_to_do,
                ),
            ),
            Self::Unreadable(reason) => ApiError::internal(reason),
        }
    }
}

fn forbidden(what: String, why: String, what_to_do: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, ErrorBody::new(code::FORBIDDEN, what, why, NOTHING_CHANGED, what_to_do))
}

fn too_many(what: &str, why: String, what_to_do: &str) -> ApiError {
    let body = ErrorBody::new(code::RATE_LIMITED, what, why, NOTHING_CHANGED, what_to_do).with_retryable(true);
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, body)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.error().into_response();
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"tidegate\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(wait) = self.wait() {
            // Whole seconds, rounded up.
            let seconds = HeaderValue::from(wait.as_secs().saturating_add(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}
