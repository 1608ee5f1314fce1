//! `health-check` against real HTTP servers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use tidegate_lifecycle::{
    Answer, Context, Function, RegionStatus, Registry, StoreLifecycleHooks, StoreVersionLifecycleEventOutcome as Four,
};
use tidegate_state::Timestamp;
use tidegate_state::testing::HeldPort;

/// An application that answers as its path says, and counts who followed its redirect.
struct Application {
    address: SocketAddr,
    followed: Arc<AtomicU64>,
    stop: tokio::task::JoinHandle<()>,
}

impl Drop for Application {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

async fn application() -> Application {
    async fn status(axum::extract::Path(code): axum::extract::Path<u16>) -> StatusCode {
        StatusCode::from_u16(code).unwrap()
    }
    async fn never() -> StatusCode {
        std::future::pending().await
    }
    async fn redirect() -> Redirect {
        Redirect::permanent("/target")
    }
    async fn target(State(followed): State<Arc<AtomicU64>>) -> StatusCode {
        followed.fetch_add(1, Ordering::SeqCst);
        StatusCode::OK
    }
    async fn named(Query(query): Query<BTreeMap<String, String>>) -> Response {
        let expected = query.len() == 2 && query["store"] == STORE && query["x"] == "1";
        if expected { StatusCode::OK.into_response() } else { StatusCode::BAD_REQUEST.into_response() }
    }
    let followed = Arc::new(AtomicU64::new(0));
    let routes = Router::new()
        .route("/status/{code}", get(status))
        .route("/never", get(never))
        .route("/redirect", get(redirect))
        .route("/target", get(target))
        .route("/named", get(named))
        .with_state(Arc::clone(&followed));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    Application { address, followed, stop }
}

const STORE: &str = "a\"} or vector(1) #";

fn hook() -> Arc<dyn StoreLifecycleHooks> {
    (Registry::shipped().get("health-check").unwrap().factory)(&BTreeMap::new()).unwrap()
}

/// Asks about a region that swapped long ago, so that one healthy check is enough to proceed.
fn context(settings: &[(&str, &str)]) -> Context {
    let mut context = Context::new(Function::PostStoreVersionSwap, STORE);
    context.region = Some("a".into());
    context.config = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    context.now = Timestamp(86_400_000);
    let mut region = RegionStatus::default();
    region.reached_at.insert("swapped".into(), Timestamp(0));
    context.regions.insert("a".into(), region);
    context
}

async fn check(url: &str, more: &[(&str, &str)]) -> Answer<Four> {
    let mut settings = vec![("url", url), ("bad_max", "2")];
    settings.extend(more);
    hook().post_store_version_swap(&context(&settings)).await.unwrap()
}

fn waits(answer: &Answer<Four>) -> &str {
    match &answer.outcome {
        Four::Wait { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn g14_2xx_is_healthy_and_everything_else_is_a_failed_check() {
    let application = application().await;
    let base = format!("http://{}", application.address);
    for code in [200, 204] {
        assert_eq!(check(&format!("{base}/status/{code}"), &[]).await.outcome, Four::Proceed, "{code}");
    }
    for (path, part) in
        [("/status/500", "answered 500"), ("/redirect", "answered 308"), ("/status/301", "answered 301")]
    {
        let answer = check(&format!("{base}{path}"), &[]).await;
        assert!(waits(&answer).contains("in a row 1 bad") && waits(&answer).contains(part), "{answer:?}");
    }
    assert_eq!(application.followed.load(Ordering::SeqCst), 0, "a redirect was followed");
    let answer = check(&format!("{base}/never"), &[("timeout", "50ms")]).await;
    assert!(waits(&answer).contains("1 bad") && waits(&answer).contains("did not answer within 50 ms"), "{answer:?}");
    let url = format!("{base}/named?store={{store}}&x=1");
    assert_eq!(check(&url, &[]).await.outcome, Four::Proceed);
}

#[tokio::test]
async fn g14_refused_is_a_failed_check_unless_it_has_a_budget_of_its_own() {
    let nobody = HeldPort::new().unwrap();
    let url = format!("http://127.0.0.1:{}/", nobody.number());
    let answer = check(&url, &[]).await;
    assert!(waits(&answer).contains("1 bad, 0 unreachable"), "{answer:?}");
    let answer = check(&url, &[("unreachable_max", "5")]).await;
    assert!(waits(&answer).contains("0 bad, 1 unreachable") && waits(&answer).contains("could not be asked"));
}

#[tokio::test]
async fn g10_counts_travel_in_the_memo_until_the_third_failure_rolls_back() {
    let application = application().await;
    let url = format!("http://{}/status/503", application.address);
    let mut context = context(&[("url", &url), ("interval", "1m")]);
    for attempt in 1..=2 {
        context.attempt = attempt;
        let answer = hook().post_store_version_swap(&context).await.unwrap();
        assert!(waits(&answer).contains("503"));
        context.memo = answer.memo;
        context.now = context.now.after(Duration::from_secs(60));
    }
    let answer = hook().post_store_version_swap(&context).await.unwrap();
    let Four::Rollback { reason } = answer.outcome else { panic!("{answer:?}") };
    assert!(reason.contains("3 checks in a row were bad (limit 3)") && reason.contains("503"), "{reason}");
}

#[tokio::test]
async fn g40_an_answer_that_says_nothing_has_a_budget_of_its_own() {
    let application = application().await;
    let url = format!("http://{}/status/404", application.address);
    let answer =
        check(&url, &[("no_data_status", "404, 425"), ("no_data_max", "1"), ("no_data_outcome", "abort")]).await;
    let Four::Abort { reason } = answer.outcome else { panic!("{answer:?}") };
    assert!(reason.contains("were no data (limit 1)"), "{reason}");
}
