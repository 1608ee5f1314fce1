//! The page and what belongs to it.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};

use crate::access::Asked;
use crate::app::App;
use crate::http::errors::ApiResult;
use crate::page::{Content, render};

/// Nothing is loaded from elsewhere, nothing inline is run, and nobody may frame the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'self'; \
                      frame-ancestors 'none'";

/// How many pushes the page shows beside those that run.
const PUSHES: usize = 10;

/// The page: stores, regions, and pushes, live where scripts run.
#[utoipa::path(get, path = "/", tag = "server",
    responses((status = 200, description = "A page for people", body = String, content_type = "text/html")))]
pub(crate) async fn page(State(app): State<App>, asked: Asked) -> ApiResult<Response> {
    let snapshot = app.state().snapshot();
    let scene = app.scene(&snapshot);
    let summaries = scene.pushes(None, 500, |_| true)?;
    let (running, ended): (Vec<_>, Vec<_>) = summaries.iter().partition(|push| !push.state.status.is_terminal());
    let shown = running.into_iter().chain(ended.into_iter().take(PUSHES));
    let mut pushes = Vec::new();
    for push in shown {
        // One that can't be read must not take the page down with it.
        match scene.find_push(&push.state.push).and_then(|found| scene.push_view(&found)) {
            Ok(view) => pushes.push(view),
            Err(error) => tracing::warn!(push = push.state.push, error = ?error.body, "not shown"),
        }
    }
    let content = Content {
        server: app.state().server().to_string(),
        epoch: snapshot.epoch().to_string(),
        revision: snapshot.revision().0,
        now: crate::views::ms(app.state().now()),
        stores: scene.stores()?,
        regions: scene.regions()?,
        pushes,
        signed_in: asked.caller.bearer().filter(|bearer| bearer.by_session).map(|bearer| bearer.name.clone()),
    };
    let mut response = Html(render(&content).into_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response)
}

/// The page's style.
#[utoipa::path(get, path = "/assets/page.css", tag = "server",
    responses((status = 200, description = "A style sheet", body = String, content_type = "text/css")))]
pub(crate) async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("../../assets/page.css"))
}

/// The page's script.
#[utoipa::path(get, path = "/assets/page.js", tag = "server",
    responses((status = 200, description = "A script", body = String, content_type = "text/javascript")))]
pub(crate) async fn script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("../../assets/page.js"))
}

fn asset(media_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, media_type)], text).into_response()
}
