//! Signing in to the page, and out of it.
//!
//! The page is the one thing that people open without a program that has their token. They show the token once, and the
//! browser keeps a session in its place, see [`crate::access::session`].

use axum::Form;
use axum::extract::rejection::FormRejection;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde::Deserialize;
use tidegate_api::ErrorBody;

use crate::access::table::{Who, rule};
use crate::access::{Refusal, session};
use crate::app::App;
use crate::http::errors::{ApiError, ApiResult};
use crate::http::serve::Peer;
use crate::page;

/// Nothing is run, and the form goes to this server alone.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; \
                      frame-ancestors 'none'";

/// What the form sends.
#[derive(Deserialize)]
pub(crate) struct Shown {
    token: String,
}

/// The form.
pub(crate) fn form(refusal: &Refusal) -> Response {
    let message = match refusal {
        Refusal::NoToken => String::new(),
        other => {
            let error = other.error();
            format!("{} {}", error.body.what, error.body.why)
        }
    };
    let mut response = Html(page::sign_in(&message).into_string()).into_response();
    *response.status_mut() = refusal.error().status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// The form to sign in to the page with.
#[utoipa::path(get, path = "/login", tag = "server",
    responses((status = 200, description = "A form for people", body = String, content_type = "text/html"),
        (status = 303, description = "There is no need to: authentication is off")))]
pub(crate) async fn show(State(app): State<App>) -> Response {
    if !app.access().is_required() {
        return Redirect::to("/").into_response();
    }
    let mut response = form(&Refusal::NoToken);
    *response.status_mut() = StatusCode::OK;
    response
}

/// Signs in to the page with a token: the answer sets a cookie that stands for it, for reading alone.
#[utoipa::path(post, path = "/login", tag = "server",
    request_body(content = String, content_type = "application/x-www-form-urlencoded",
        description = "The field `token`"),
    responses((status = 303, description = "Signed in: on to the page"),
        (status = 401, description = "The form again, with what is wrong", body = String, content_type = "text/html"),
        (status = 403, description = "The token's role has no page", body = String, content_type = "text/html"),
        (status = 400, body = ErrorBody), (status = 429, description = "Too many wrong tokens", body = String, content_type = "text/html")))]
pub(crate) async fn sign_in(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    shown: Result<Form<Shown>, FormRejection>,
) -> ApiResult<Response> {
    let Form(shown) = shown
        .map_err(|rejection| ApiError::bad_request("The form can't be read.", format!("{}.", rejection.body_text())))?;
    if !app.access().is_required() {
        return Ok(Redirect::to("/").into_response());
    }
    let bearer = match app.bearer_of_text(shown.token.trim()).await {
        Ok(bearer) => bearer,
        Err(refusal) => {
            let refusal = match peer {
                Some(Extension(Peer(address))) if refusal.is_wrong_token() => {
                    app.access().door.wrong_token(address.ip(), refusal)
                }
                _ => refusal,
            };
            app.access().door.metrics.refused(&refusal);
            return Ok(form(&refusal));
        }
    };
    if let Some(Who::Roles(needed)) = rule("get", "/").map(|rule| rule.who)
        && !needed.contains(&bearer.role)
    {
        let refusal = Refusal::Role { name: bearer.name, role: bearer.role, needed };
        app.access().door.metrics.refused(&refusal);
        return Ok(form(&refusal));
    }
    let cookie = session::begin(app.state(), &bearer, app.access().secure_cookies).await?;
    app.caught_up().await;
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response())
}

/// Ends the session of the page.
#[utoipa::path(post, path = "/logout", tag = "server",
    responses((status = 303, description = "Signed out: on to the form")))]
pub(crate) async fn sign_out(State(app): State<App>, headers: HeaderMap) -> ApiResult<Response> {
    let cookie = session::end(app.state(), &headers, app.access().secure_cookies).await?;
    app.caught_up().await;
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/login")).into_response())
}
