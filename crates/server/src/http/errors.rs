//! Errors of the API: one shape, whatever went wrong.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tidegate_api::{ErrorBody, code};

/// An error with the status that fits it.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) body: Box<ErrorBody>,
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

/// What follows from nearly every refusal.
pub(crate) const NOTHING_CHANGED: &str = "Nothing was changed.";

impl ApiError {
    pub(crate) fn new(status: StatusCode, body: ErrorBody) -> Self {
        Self { status, body: Box::new(body) }
    }

    /// A request that can't be read.
    pub(crate) fn bad_request(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            ErrorBody::new(
                code::BAD_REQUEST,
                what,
                why,
                NOTHING_CHANGED,
                "Mend the request; /openapi.json describes every route.",
            ),
        )
    }

    /// A request that can be read, with a value that is not allowed.
    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>, countermeasures: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            ErrorBody::new(code::INVALID, what, why, NOTHING_CHANGED, countermeasures),
        )
    }

    /// Something that is not there.
    pub(crate) fn absent(
        code: &str,
        what: impl Into<String>,
        why: impl Into<String>,
        countermeasures: impl Into<String>,
    ) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorBody::new(code, what, why, NOTHING_CHANGED, countermeasures))
    }

    pub(crate) fn store_unknown(store: &str) -> Self {
        Self::absent(
            code::STORE_UNKNOWN,
            format!("There is no store `{store}`."),
            "No store of this name was created, or it was deleted.",
            "`tidegate store list` shows the stores there are; `tidegate store create` makes one.",
        )
    }

    pub(crate) fn push_unknown(push: &str) -> Self {
        Self::absent(
            code::PUSH_UNKNOWN,
            format!("There is no push `{push}`."),
            "No push of this id was started, or its records have been removed by retention.",
            "`tidegate push list` shows the pushes there are.",
        )
    }

    pub(crate) fn region_unknown(region: &str, known: &[String]) -> Self {
        let why = if known.is_empty() {
            "There are no regions at all.".to_owned()
        } else {
            format!("There are: {}.", known.join(", "))
        };
        Self::absent(
            code::REGION_UNKNOWN,
            format!("There is no region `{region}`."),
            why,
            "Name one of the regions there are.",
        )
    }

    /// A fault of the server's own. The details are in its log, under the id that is named.
    pub(crate) fn internal(details: impl std::fmt::Display) -> Self {
        let id = uuid::Uuid::new_v4().simple();
        tracing::error!(%id, %details, "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorBody::new(
                code::INTERNAL,
                "The server could not answer.",
                "It met a fault of its own; its log has the details.",
                "Whether something was changed is uncertain; what was asked for may not have happened.",
                format!("Look into the server's log for {id}, and report it if it comes again."),
            ),
        )
    }

    /// Something that passes by itself.
    pub(crate) fn unavailable(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorBody::new(
                code::UNAVAILABLE,
                what,
                why,
                NOTHING_CHANGED,
                "Try again in a moment. If it stays so, look at /readyz and the server's log.",
            )
            .with_retryable(true),
        )
    }

    /// The server can't do its work (yet).
    pub(crate) fn not_ready(why: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorBody::new(
                code::UNAVAILABLE,
                "The server is not ready.",
                why,
                "What needs what is missing is refused until then; nothing is lost by that.",
                "Wait, or ask another server. If it stays so, the server's log says what it waits for.",
            )
            .with_retryable(true),
        )
    }

    /// The database was put back, and nobody has confirmed it.
    pub(crate) fn set_back(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::set_back(what, why))
    }

    /// The artifact store is not known to be the installation's.
    pub(crate) fn other_artifact_store(why: String) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorBody::new(
                code::OTHER_ARTIFACT_STORE,
                "Nothing is written into the artifact store.",
                format!("It is not known to be this installation's: {why}."),
                "The push waits, and goes on once the store is right. Regions go on serving what they hold.",
                "Give this server the store that fits its database ([artifacts] or --artifacts). If what was in it is lost, \
                 start one server with --adopt-artifact-store: that leaves the mark anew and says what is missing.",
            )
            .with_retryable(true),
        )
    }

    /// No room on the disk that holds artifacts, or whatever else the file system says.
    pub(crate) fn disk(what: impl Into<String>, error: &std::io::Error) -> Self {
        let is_full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        if !is_full {
            return Self::internal(format!("{}: {error}", what.into()));
        }
        Self::new(
            StatusCode::INSUFFICIENT_STORAGE,
            ErrorBody::new(
                code::DISK_FULL,
                what,
                format!("No space is left on the disk that holds artifacts ({error})."),
                "What had arrived stays; the push goes on when there is room.",
                "Free some space on that disk, or lower the retention of stores.",
            )
            .with_retryable(true),
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let passes = self.status == StatusCode::SERVICE_UNAVAILABLE && self.body.retryable;
        let mut response = (self.status, Json(self.body)).into_response();
        if passes {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<tidegate_rollout::operations::OperationError> for ApiError {
    fn from(error: tidegate_rollout::operations::OperationError) -> Self {
        let body = error.body();
        let status = match body.code.as_str() {
            _ if matches!(
                error,
                tidegate_rollout::OperationError::Pause(tidegate_lifecycle::PauseError::NotAllowed { .. })
            ) =>
            {
                StatusCode::FORBIDDEN
            }
            _ if matches!(
                error,
                tidegate_rollout::OperationError::PauseUnknown { .. }
                    | tidegate_rollout::OperationError::FreezeUnknown { .. }
            ) =>
            {
                StatusCode::NOT_FOUND
            }
            code::STORE_UNKNOWN | code::REGION_UNKNOWN | code::PUSH_UNKNOWN => StatusCode::NOT_FOUND,
            code::INVALID | code::MANIFEST_REFUSED | code::HOOK_REFUSED => StatusCode::UNPROCESSABLE_ENTITY,
            code::UNAVAILABLE | code::SET_BACK => StatusCode::SERVICE_UNAVAILABLE,
            code::INTERNAL => {
                tracing::error!(%error, "an operation failed");
                StatusCode::INTERNAL_SERVER_ERROR
            }
            // It contradicts how things stand: what runs, what has ended, what there is.
            _ => StatusCode::CONFLICT,
        };
        Self::new(status, body)
    }
}
