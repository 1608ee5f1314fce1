//! Extractors whose refusals have the one shape of errors.

use std::time::Duration;

use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tidegate_api::{ErrorBody, Role, code};
use tidegate_rollout::operations::Beside;
use tidegate_state::{Transaction, TransactionError};

use super::errors::{ApiError, NOTHING_CHANGED};
use crate::access::{Asked, AuditEntry, Caller, claimed_name};

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        expect_media_type(request.headers(), &["application/json"])?;
        let bytes = read(request, state).await?;
        parse_json(&bytes).map(Self)
    }
}

/// What a route takes of a body, for whoever reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// How many bytes.
    pub(crate) bytes: usize,
    /// How long it may take to arrive: less than the whole request may take, so that who sends slowly is told so.
    pub(crate) time: Duration,
    /// The setting of the server's that raises the number of bytes.
    pub(crate) setting: &'static str,
}

/// The bytes of a body, and its media type, which is one of those that the route reads.
pub(crate) async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    let limits = request.extensions().get::<BodyLimits>().copied();
    let reading = Bytes::from_request(request, state);
    let read = match limits {
        Some(limits) => tokio::time::timeout(limits.time, reading).await.map_err(|_| too_slow(limits.time))?,
        None => reading.await,
    };
    read.map_err(|rejection| match (rejection, limits) {
        (BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)), Some(limits)) => {
            let BodyLimits { bytes, setting, .. } = limits;
            too_large(format!("The body has over {bytes} bytes, the limit of this route (`{setting}` of the server)."))
        }
        (BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)), None) => {
            too_large("The body is larger than this route allows.".to_owned())
        }
        (other, _) => {
            ApiError::bad_request("The body could not be read.", format!("{other}: the connection may have broken."))
        }
    })
}

/// A body that did not arrive in time.
fn too_slow(limit: Duration) -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        ErrorBody::new(
            code::TIMED_OUT,
            "The request did not arrive in time.",
            format!("Its body was not there whole after {limit:?}, the limit."),
            NOTHING_CHANGED,
            "Try again over a faster connection, or send less at once.",
        )
        .with_retryable(true),
    )
}

pub(crate) fn too_large(why: String) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorBody::new(
            code::TOO_LARGE,
            "The request is too large.",
            why,
            NOTHING_CHANGED,
            "Send less at once, or raise the limit in the server's configuration.",
        ),
    )
}

/// Parses a JSON body. Its depth is bounded by the parser (128 levels), its size by the route.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        Category::Data => ApiError::invalid(
            "The body does not have the form that this route reads.",
            format!("{error}."),
            "Mend the field that is named; /openapi.json describes every route.",
        ),
        Category::Syntax | Category::Eof | Category::Io => {
            ApiError::bad_request("The body is no JSON.", format!("{error}."))
        }
    })
}

/// Refuses a body of another media type than those that the route reads.
pub(crate) fn expect_media_type<'m>(headers: &HeaderMap, expected: &[&'m str]) -> Result<&'m str, ApiError> {
    let found = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = found.split(';').next().unwrap_or_default().trim();
    expected.iter().find(|expected| essence.eq_ignore_ascii_case(expected)).copied().ok_or_else(|| {
        let found = if found.is_empty() { "none" } else { found };
        ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorBody::new(
                code::UNSUPPORTED_MEDIA_TYPE,
                "The body's media type is not one that this route reads.",
                format!("It reads {}; the header content-type says: {found}.", expected.join(" or ")),
                NOTHING_CHANGED,
                "Set the header content-type to what the body is.",
            ),
        )
    })
}

/// Parameters of the address, behind the question mark.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        axum::extract::Query::<T>::try_from_uri(&parts.uri)
            .map(|query| Self(query.0))
            .map_err(|rejection| bad_query(format!("{}.", rejection.body_text())))
    }
}

/// Parameters that can't be read.
pub(crate) fn bad_query(why: impl Into<String>) -> ApiError {
    ApiError::bad_request("The parameters of the address can't be read.", why)
}

/// An id in the address that can't be read.
pub(crate) fn bad_path(why: &str) -> ApiError {
    ApiError::bad_request("An id in the address can't be read.", format!("{why}."))
}

/// Ids within the address.
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|path| Self(path.0))
            .map_err(|rejection| bad_path(&rejection.body_text()))
    }
}

/// Who acts, and the id of the request, for the record.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    /// The token's name; where authentication is off, the name that the caller gives.
    pub(crate) name: String,
    pub(crate) request: String,
    asked: Asked,
}

impl Actor {
    /// What goes with the transactions that this request makes.
    pub(crate) fn attributes(&self) -> tidegate_state::Attributes {
        let token = self.asked.caller.bearer().map(|bearer| &bearer.token);
        [("user", Some(&self.name)), ("request", Some(&self.request)), ("token", token)]
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.clone())))
            .collect()
    }

    /// Who asks.
    pub(crate) fn caller(&self) -> &Caller {
        &self.asked.caller
    }

    /// What writes the request's entry of the audit trail within a transaction, if it gets one.
    pub(crate) fn beside(&self) -> Option<Beside> {
        self.asked.entry.as_ref().map(AuditEntry::beside)
    }

    /// Writes the request's entry of the audit trail within a transaction of its own.
    pub(crate) fn write_beside(&self, transaction: &mut Transaction) -> Result<(), TransactionError> {
        self.asked.entry.as_ref().map_or(Ok(()), |entry| entry.write(transaction))
    }

    /// The roles that an answer to a pause counts with. Whoever reaches a server without authentication is its operator.
    pub(crate) fn roles(&self) -> Vec<String> {
        let Some(bearer) = self.asked.caller.bearer() else {
            return vec![Role::Operator.to_string(), Role::Admin.to_string()];
        };
        let mut roles = vec![bearer.role.to_string()];
        if bearer.role == Role::Admin {
            roles.push(Role::Operator.to_string());
        }
        roles.extend(bearer.team.as_ref().map(|team| format!("team:{team}")));
        roles
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let asked = Asked::from_request_parts(parts, state).await?;
        let name = match asked.caller.bearer() {
            Some(bearer) => bearer.name.clone(),
            None => claimed_name(&parts.headers),
        };
        let request =
            parts.extensions.get::<super::guard::RequestId>().map_or_else(String::new, |id| id.as_str().to_owned());
        Ok(Self { name, request, asked })
    }
}
