//! What stands before each route: who asks, may they, and what is written down of it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tidegate_api::{AuditOutcome, Role};
use tidegate_state::{Snapshot, TransactionError};

use super::Door;
use super::audit::{AuditEntry, AuditRecord};
use super::caller::{Bearer, Caller, bearer_of, claimed_name};
use super::entrance::{Guarded, check_role, rule_of, who_asks};
use super::refusal::Refusal;
use super::subject::{self, Subject, is_of_team};
use super::table::{CONFIRM_SET_BACK, Rule};
use super::token::Token;
use crate::app::App;
use crate::http::errors::ApiError;
use crate::http::extract::read;
use crate::http::guard::{RequestId, no_method};
use crate::http::serve::Peer;
use crate::routes::sign_in;

/// How often a stream's caller is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the guard of one route knows.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) app: App,
    /// The route's rules, one for each of its methods.
    pub(crate) rules: Arc<[&'static Rule]>,
    /// Whether the route is for look-ups, which have a limit of their own.
    pub(crate) is_look_up: bool,
}

/// Who asked a request that was let in, for its handler.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) caller: Caller,
    /// Its entry in the audit trail, if it gets one.
    pub(crate) entry: Option<Arc<AuditEntry>>,
    rule: &'static Rule,
    subject: Arc<Subject>,
}

impl Asked {
    /// Whether a list may show what belongs to a store.
    pub(crate) fn sees_store(&self, store: &str, snapshot: &Snapshot) -> bool {
        self.caller.team().is_none_or(|team| is_of_team(store, team, snapshot))
    }

    /// Whether the request would still be let in.
    fn still_holds(&self, app: &App) -> bool {
        let Some(bearer) = self.caller.bearer() else { return true };
        let snapshot = app.state().snapshot();
        let token = tidegate_state::Ref::<Token>::root(bearer.token.as_str()).ok();
        let token = token.and_then(|token| snapshot.get(&token).ok().flatten());
        token.is_some_and(|token| token.status(app.state().now()) == tidegate_api::TokenStatus::Active)
            && self.subject.check(self.rule, bearer, &snapshot).is_ok()
    }

    /// Waits until the request would no longer be let in: a stream ends then.
    pub(crate) async fn until_over(&self, app: &App) {
        while self.still_holds(app) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, _: &S) -> Result<Self, Self::Rejection> {
        let asked = parts.extensions.get::<Self>().cloned();
        asked.ok_or_else(|| ApiError::internal("a route without a guard"))
    }
}

/// Lets a request in, or refuses it; afterwards writes down what came of it.
pub(crate) async fn guard(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let Some(rule) = rule_of(&gate.rules, request.method()) else {
        return no_method(request.method().clone(), request.uri().clone()).await.into_response();
    };
    let wants_page = rule.path == "/" && accepts_html(&request);
    match enter(&gate, rule, request).await {
        Ok((request, asked)) => {
            let response = next.run(request).await;
            record(&gate.app, &asked, response).await
        }
        Err(Stopped::Refused(refusal)) => {
            gate.app.access().door.metrics.refused(&refusal);
            match wants_page && refusal.error().status == StatusCode::UNAUTHORIZED {
                true => sign_in::form(&refusal),
                false => refusal.into_response(),
            }
        }
        Err(Stopped::Unread(error)) => error.into_response(),
    }
}

/// Why a request does not get to its route.
enum Stopped {
    Refused(Refusal),
    /// What it is about can't be read.
    Unread(ApiError),
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

async fn enter(gate: &Gate, rule: &'static Rule, request: Request) -> Result<(Request, Asked), Stopped> {
    let app = &gate.app;
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let is_reading = request.method().is_safe();
    let caller = who_asks(app, rule, gate.is_look_up, request.headers(), is_reading, peer).await?;
    if let Err(refusal) = check_role(app, rule, &caller) {
        return Err(turned_away(app, rule, &caller, request, refusal).await);
    }
    let is_scoped = caller.bearer().is_some_and(|bearer| matches!(bearer.role, Role::Team | Role::Region));
    // What it is about decides nothing for the others, and look-ups are many.
    let is_looked_for = app.is_shared() && !gate.is_look_up;
    let (mut subject, mut request) = if is_scoped || rule.recorded || is_looked_for {
        by_address(request).await
    } else {
        (Subject::default(), request)
    };
    if subject::is_in_body(rule) && (is_scoped || rule.recorded) {
        let read = with_body(subject.clone(), rule, request).await?;
        request = read.0;
        match read.1 {
            Ok(named) => subject = named,
            // Whoever may change everything is told by the route itself what is wrong with the body.
            Err(error) if is_scoped => return Err(Stopped::Unread(error)),
            Err(_) => {}
        }
    }
    if app.is_shared() && !is_settled(&subject, rule, &caller, &app.state().snapshot()) {
        // Another server may have made it just now. What is still not there is for the route to refuse.
        app.look_again().await;
    }
    if let Some(bearer) = caller.bearer()
        && let Err(refusal) = subject.check(rule, bearer, &app.state().snapshot())
    {
        if keeps_refusal(app, rule, &caller) {
            note_refused(app, &entry_of(app, rule, &caller, &subject, &request));
        }
        return Err(refusal.into());
    }
    if rule.recorded
        && rule.path != CONFIRM_SET_BACK
        && let Some(why) = app.set_back()
    {
        // Said here for all of them, before a handler has done anything beside the state.
        return Err(Stopped::Unread(ApiError::set_back("Nothing can be changed.", why)));
    }
    let entry = rule.recorded.then(|| Arc::new(entry_of(app, rule, &caller, &subject, &request)));
    let asked = Asked { caller, entry, rule, subject: Arc::new(subject) };
    request.extensions_mut().insert(asked.clone());
    Ok((request, asked))
}

/// The entry of the audit trail for a request.
fn entry_of(app: &App, rule: &'static Rule, caller: &Caller, subject: &Subject, request: &Request) -> AuditEntry {
    let snapshot = app.state().snapshot();
    let bearer = caller.bearer();
    let user = bearer.map_or_else(|| claimed_name(request.headers()), |bearer| bearer.name.clone());
    let id = request.extensions().get::<RequestId>().map_or_else(String::new, |id| id.as_str().to_owned());
    let store = subject.store(rule, &snapshot);
    let entry = AuditEntry::new(rule, bearer, user, id, request.uri().path(), store, subject.named(rule));
    entry.with_asked_for(subject.asked_for())
}

/// Writes down what the bearer of a token wanted to change whose role may not, as far as there is room.
async fn turned_away(app: &App, rule: &'static Rule, caller: &Caller, request: Request, refusal: Refusal) -> Stopped {
    if !keeps_refusal(app, rule, caller) {
        return refusal.into();
    }
    let (mut subject, request) = by_address(request).await;
    let (parts, body) = request.into_parts();
    if subject::is_in_body(rule) {
        // Where the body can't be read, what it names is not known; that it was refused is.
        let read = with_body(subject.clone(), rule, Request::from_parts(parts.clone(), body)).await;
        subject = read.ok().and_then(|(_, named)| named.ok()).unwrap_or(subject);
    }
    let request = Request::from_parts(parts, Body::empty());
    note_refused(app, &entry_of(app, rule, caller, &subject, &request));
    refusal.into()
}

/// Whether what this caller may not change is written down.
fn keeps_refusal(app: &App, rule: &Rule, caller: &Caller) -> bool {
    let Some(bearer) = caller.bearer().filter(|_| rule.recorded) else { return false };
    let has_room = app.access().clerk.has_room_for_refusal(&bearer.token);
    if !has_room {
        app.access().door.metrics.left_out.inc();
    }
    has_room
}

/// Writes down what its bearer may not change.
fn note_refused(app: &App, entry: &AuditEntry) {
    keep(app, entry.record(app.state().now(), AuditOutcome::Refused, Some(StatusCode::FORBIDDEN.as_u16())));
}

/// Writes down what came to nothing, as far as there is room.
fn keep(app: &App, record: AuditRecord) {
    if !app.access().clerk.refused(record) {
        app.access().door.metrics.left_out.inc();
    }
}

/// Whether a newer snapshot would make no difference. What is somebody else's is no different from what is not there, so that
/// the time of an answer tells a team nothing of other teams' names.
fn is_settled(subject: &Subject, rule: &Rule, caller: &Caller, snapshot: &Snapshot) -> bool {
    subject.is_known(snapshot) && caller.bearer().is_none_or(|bearer| subject.check(rule, bearer, snapshot).is_ok())
}

impl Guarded for App {
    fn door(&self) -> &Door {
        &self.access().door
    }

    async fn bearer(&self, headers: &HeaderMap, is_reading: bool) -> Result<Bearer, Refusal> {
        self.find_bearer(|snapshot, now| bearer_of(headers, is_reading, snapshot, now)).await
    }

    fn used(&self, bearer: &Bearer) {
        self.access().clerk.used(&bearer.token, &self.state().snapshot(), self.state().now());
    }
}

/// What a request is about, as far as its address says.
async fn by_address(request: Request) -> (Subject, Request) {
    let (mut parts, body) = request.into_parts();
    let path = RawPathParams::from_request_parts(&mut parts, &()).await.ok();
    (Subject::of_address(path.as_ref(), &parts.uri), Request::from_parts(parts, body))
}

/// Reads the body for what it names, and puts it back.
async fn with_body(
    subject: Subject,
    rule: &Rule,
    request: Request,
) -> Result<(Request, Result<Subject, ApiError>), Stopped> {
    let (parts, body) = request.into_parts();
    // Within the limits that the route has for whoever reads it.
    let bytes = read(Request::from_parts(parts.clone(), body), &()).await.map_err(Stopped::Unread)?;
    let subject = subject.with_body(rule, &bytes);
    Ok((Request::from_parts(parts, Body::from(bytes)), subject))
}

/// Writes down what came of a request, unless its own transaction has.
async fn record(app: &App, asked: &Asked, response: Response) -> Response {
    let Some(entry) = &asked.entry else { return response };
    let status = response.status();
    let outcome = if status.is_success() || status.is_redirection() {
        AuditOutcome::Done
    } else if status.is_client_error() {
        AuditOutcome::Refused
    } else {
        AuditOutcome::Failed
    };
    let record = entry.record(app.state().now(), outcome, Some(status.as_u16()));
    if outcome != AuditOutcome::Done {
        keep(app, record);
        return response;
    }
    if !entry.is_with_change() {
        let written =
            app.state().write(move |transaction| -> Result<(), TransactionError> { record.append(transaction) });
        if let Err(error) = written.await {
            tracing::error!(%error, user = ?asked.caller.bearer().map(|bearer| &bearer.name), route = asked.rule.path,
                "a change is not in the audit trail");
        }
    }
    response
}

fn accepts_html(request: &Request) -> bool {
    let accepted = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accepted.is_some_and(|accepted| accepted.contains("text/html"))
}
