//! Requests of cluster hooks.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use tidegate_api::{ErrorBody, QueueAction, QueueEntryState, QueueEntryView, code};
use tidegate_state::driver::HookNumber;
use tidegate_state::{QueueEntry, QueueError, QueueFilter, RequestId, RequestState, Revision};

use crate::app::App;
use crate::http::errors::{ApiError, ApiResult, NOTHING_CHANGED};
use crate::http::extract::{Actor, Path, Query};
use crate::views::ms;

/// How many requests are listed at most.
const LIST_MAX: usize = 10_000;

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    hook: Option<String>,
    state: Option<QueueEntryState>,
}

/// Requests of cluster hooks: of one hook or all, in one state or any.
#[utoipa::path(get, path = "/v1/queue", tag = "queue",
    params(("hook" = Option<String>, Query, description = "Of this cluster hook only"),
        ("state" = Option<QueueEntryState>, Query, description = "In this state only")),
    responses((status = 200, body = Vec<QueueEntryView>), (status = 503, body = ErrorBody)))]
pub(crate) async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> ApiResult<Json<Vec<QueueEntryView>>> {
    if query.state == Some(QueueEntryState::Unknown) {
        return Err(ApiError::bad_request(
            "The parameter `state` is none that a request can be in.",
            "There are waiting, running, retry_at, backing_off, dead, paused and no_server.",
        ));
    }
    let filter = QueueFilter { hook: query.hook, limit: Some(LIST_MAX), ..QueueFilter::default() };
    let entries = app
        .state()
        .queue()
        .list(filter)
        .await
        .map_err(|error| ApiError::unavailable("The queue could not be read.", format!("{error}.")))?;
    let views = entries.iter().map(view);
    Ok(Json(views.filter(|entry| query.state.is_none_or(|state| entry.state == state)).collect()))
}

fn view(entry: &QueueEntry) -> QueueEntryView {
    let (state, behind) = match &entry.state {
        RequestState::Waiting => (QueueEntryState::Waiting, None),
        RequestState::Running => (QueueEntryState::Running, None),
        RequestState::RetryAt(_) => (QueueEntryState::RetryAt, None),
        RequestState::BackingOff(_) => (QueueEntryState::BackingOff, None),
        RequestState::Dead => (QueueEntryState::Dead, None),
        RequestState::PausedBehind(request) => (QueueEntryState::Paused, Some(request.to_string())),
        RequestState::NoServer => (QueueEntryState::NoServer, None),
    };
    QueueEntryView {
        request: entry.request.to_string(),
        hook: entry.hook.to_string(),
        key: entry.key.clone(),
        path: entry.path.as_str().to_owned(),
        state,
        behind,
        attempts: entry.attempts,
        error: entry.error.clone(),
        since: ms(entry.since),
        owner: entry.owner.as_ref().map(ToString::to_string),
    }
}

/// Retries, discards or cancels a request.
#[utoipa::path(post, path = "/v1/queue/{request}/{action}", tag = "queue",
    params(("request" = String, Path, description = "The request's id"),
        ("action" = QueueAction, Path, description = "What to do with it")),
    responses((status = 204, description = "Done"), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)))]
pub(crate) async fn act(
    State(app): State<App>,
    actor: Actor,
    Path((request, action)): Path<(String, QueueAction)>,
) -> ApiResult<StatusCode> {
    let id = parse(&request).ok_or_else(|| {
        ApiError::bad_request(
            format!("`{request}` is no id of a request."),
            "It has the form `revision.sequence.hook`, three numbers, as the queue lists it.",
        )
    })?;
    let queue = app.state().queue();
    let done = match action {
        QueueAction::Retry => queue.retry(id, &actor.name).await,
        QueueAction::Discard => queue.discard(id, &actor.name).await,
        QueueAction::Cancel => queue.cancel(id, &actor.name).await,
    };
    done.map_err(|error| not_done(&request, action, &error))?;
    Ok(StatusCode::NO_CONTENT)
}

fn not_done(request: &str, action: QueueAction, error: &QueueError) -> ApiError {
    let what = format!("Request {request} can't be acted on with `{}`.", action.word());
    let look = "`tidegate queue list` shows the requests there are, and how they stand.";
    match error {
        QueueError::NotThere { .. } => ApiError::absent(code::QUEUE_REQUEST_UNKNOWN, what, format!("{error}."), look),
        QueueError::NotDead { .. } | QueueError::Running { .. } => ApiError::new(
            StatusCode::CONFLICT,
            ErrorBody::new(code::REFUSED, what, format!("{error}."), NOTHING_CHANGED, look),
        ),
        QueueError::Store(_) | QueueError::Write { .. } => ApiError::unavailable(what, format!("{error}.")),
    }
}

/// A request's id from its text form, `revision.sequence.hook`.
fn parse(text: &str) -> Option<RequestId> {
    let mut parts = text.split('.');
    let id = RequestId {
        revision: Revision(parts.next()?.parse().ok()?),
        sequence: parts.next()?.parse().ok()?,
        hook: HookNumber(parts.next()?.parse().ok()?),
    };
    parts.next().is_none().then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_form_and_nothing_else_is_one() {
        let id = parse("17.2.5").unwrap();
        assert_eq!(id.to_string(), "17.2.5");
        for text in ["", "1", "1.2", "1.2.3.4", "a.b.c", "1.2.-3"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
