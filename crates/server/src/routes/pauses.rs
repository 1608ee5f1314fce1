//! Pauses: gates that are held for a person.

use axum::Json;
use axum::extract::State;
use tidegate_api::pause::{PauseAnswerRequest, PauseAnswerView, PauseView};
use tidegate_api::{ErrorBody, Verdict};
use tidegate_lifecycle as lifecycle;
use tidegate_lifecycle::Pause;

use crate::access::Asked;
use crate::app::App;
use crate::http::errors::{ApiError, ApiResult};
use crate::http::extract::{Actor, Body, Path};
use crate::views::{ms, words};

/// All pauses: those that wait for an answer, and those that were answered and are still kept.
#[utoipa::path(get, path = "/v1/pauses", tag = "pauses",
    responses((status = 200, body = Vec<PauseView>)))]
pub(crate) async fn list(State(app): State<App>, asked: Asked) -> ApiResult<Json<Vec<PauseView>>> {
    let snapshot = app.state().snapshot();
    let mut pauses = Vec::new();
    for item in snapshot.roots::<Pause>() {
        let (pause, value) = item?;
        if asked.sees_store(&value.store, &snapshot) {
            pauses.push(view(pause.id(), value));
        }
    }
    Ok(Json(pauses))
}

/// Answers a pause. Its gate is asked at once.
#[utoipa::path(post, path = "/v1/pauses/{pause}/answer", tag = "pauses",
    request_body = PauseAnswerRequest,
    params(("pause" = String, Path, description = "The pause's id")),
    responses((status = 200, body = PauseView), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody)))]
pub(crate) async fn answer(
    State(app): State<App>,
    actor: Actor,
    Path(pause): Path<String>,
    Body(request): Body<PauseAnswerRequest>,
) -> ApiResult<Json<PauseView>> {
    let verdict = match request.verdict {
        Verdict::Proceed => lifecycle::Verdict::Proceed,
        Verdict::Abort => lifecycle::Verdict::Abort,
        Verdict::Rollback => lifecycle::Verdict::Rollback,
        Verdict::Wait | Verdict::Unknown => {
            return Err(ApiError::invalid(
                "The pause was not answered.",
                "A pause is answered with `proceed`, `abort` or `rollback`.",
                "Choose one of these; to go on waiting, do nothing.",
            ));
        }
    };
    let who = lifecycle::Actor { user: actor.name.clone(), roles: actor.roles() };
    let operations = app.operations_of(&actor);
    let answered = operations.answer_pause(&pause, who, verdict, &request.comment).await?;
    app.caught_up().await;
    Ok(Json(view(pause, &answered)))
}

fn view(id: String, pause: &Pause) -> PauseView {
    PauseView {
        id,
        store: pause.store.clone(),
        push: pause.push.clone(),
        region: pause.region.clone(),
        gate: pause.function.short_name().to_owned(),
        hook: pause.hook.clone(),
        reason: pause.reason.clone(),
        may_answer: pause.may_answer.clone(),
        since: ms(pause.since),
        until: pause.until.map(ms),
        when_run_out: words::verdict(pause.when_run_out),
        answer: pause.answer.as_ref().map(|answer| PauseAnswerView {
            verdict: words::verdict(answer.verdict),
            by: answer.by.clone(),
            at: ms(answer.at),
            comment: answer.comment.clone(),
        }),
    }
}
