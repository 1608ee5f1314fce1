//! One connection, from the handshake to its end.
//!
//! In the clear HTTP/1.1 is spoken; over TLS what both sides agree on, HTTP/2 or HTTP/1.1. Whichever it is, a connection on
//! which nothing is asked for a time is closed: that bounds slow heads, unfinished handshakes of HTTP/2 and idle connections
//! alike.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::guard::HEAD_BYTES_MAX;
use super::serve::{Peer, Service};
use super::unstalled::Unstalled;

/// The most headers of a request.
const HEADERS_MAX: usize = 100;

/// Requests at once on one connection, with HTTP/2.
const STREAMS_MAX: u32 = 256;

/// How often a silent HTTP/2 connection is asked whether it lives.
const PING: Duration = Duration::from_secs(20);

/// How long an idle connection has to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// Shakes hands, and answers what is asked, until either side closes.
pub(super) async fn converse(service: &Service, stream: TcpStream, peer: SocketAddr, closing: CancellationToken) {
    // Answers are small and waited for.
    let _ = stream.set_nodelay(true);
    let stream = Unstalled::new(stream, service.limits.stalled);
    let Some(acceptor) = &service.tls else {
        return speak(service, stream, false, peer, closing).await;
    };
    let handshake = tokio::time::timeout(service.limits.handshake, acceptor.accept(stream));
    let done = tokio::select! {
        biased;
        () = closing.cancelled() => return,
        done = handshake => done,
    };
    match done {
        Ok(Ok(stream)) => {
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            speak(service, stream, is_http2, peer, closing).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a TLS handshake failed");
            service.metrics.handshakes_failed.inc();
        }
        Err(_) => {
            tracing::debug!(%peer, "a TLS handshake took too long");
            service.metrics.handshakes_failed.inc();
        }
    }
}

async fn speak<S>(service: &Service, stream: S, is_http2: bool, peer: SocketAddr, closing: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::new());
    let answer = {
        let (router, activity) = (service.router.clone(), Arc::clone(&activity));
        hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let asked = Activity::begin(&activity);
            request.extensions_mut().insert(Peer(peer));
            let answered = router.clone().oneshot(request.map(axum::body::Body::new));
            async move {
                let response: Response = answered.await?;
                Ok::<_, Infallible>(response.map(|body| Counted { body, _asked: asked }))
            }
        })
    };
    let stream = TokioIo::new(stream);
    let idle = service.limits.head;
    let ended = if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .serve_connection(stream, answer);
        attend(connection, &activity, idle, closing).await
    } else {
        let connection = http1::Builder::new()
            // Slow heads are bounded as silence is, without a timer for each request.
            .header_read_timeout(None)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(stream, answer);
        attend(connection, &activity, idle, closing).await
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended");
    }
}

/// Drives a connection to its end; asks it to end where nothing is asked for too long, or the server closes.
async fn attend<C>(
    connection: C,
    activity: &Activity,
    idle: Duration,
    closing: CancellationToken,
) -> Result<(), C::Error>
where
    C: GracefulConnection,
{
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // Who closes the server sets a limit to this.
            return connection.await;
        }
        () = activity.until_idle_for(idle) => {}
    }
    connection.as_mut().graceful_shutdown();
    // One that has not even begun does not know how to end.
    tokio::time::timeout(GOODBYE, connection).await.unwrap_or(Ok(()))
}

/// How many requests of a connection are under way, and when the last of them ended. Requests only leave it here: whoever
/// waits for the connection to be idle looks when that may be so, so that no request wakes anybody.
struct Activity {
    begun: Instant,
    asked: AtomicUsize,
    /// In milliseconds since it began.
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { begun: Instant::now(), asked: AtomicUsize::new(0), last: AtomicU64::new(0) }
    }

    fn begin(activity: &Arc<Self>) -> Asked {
        activity.asked.fetch_add(1, Ordering::AcqRel);
        Asked(Arc::clone(activity))
    }

    fn end(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(since, Ordering::AcqRel);
        self.asked.fetch_sub(1, Ordering::AcqRel);
    }

    async fn until_idle_for(&self, limit: Duration) {
        loop {
            // In this order: a request that ends in between has left its time.
            let is_idle = self.asked.load(Ordering::Acquire) == 0;
            let since = self.begun + Duration::from_millis(self.last.load(Ordering::Acquire));
            let now = Instant::now();
            let due = if is_idle { since + limit } else { now + limit };
            if due <= now {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// A request that is under way, until its answer has been sent.
struct Asked(Arc<Activity>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// An answer's body, whose request is under way as long as it is there.
struct Counted {
    body: axum::body::Body,
    _asked: Asked,
}

impl Body for Counted {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    use super::*;
    use crate::http::serve::{ConnectionLimits, ConnectionMetrics, serve};

    /// A server whose connections may be idle for a moment only.
    async fn hasty(router: Router) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<std::io::Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = ConnectionLimits { head: Duration::from_millis(50), ..ConnectionLimits::default() };
        let service = Service { router, tls: None, limits, metrics: ConnectionMetrics::default() };
        let closing = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, service, closing.clone()));
        (address, closing, serving)
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_ends_the_connection() {
        let (address, closing, serving) = hasty(Router::new().route("/", get(|| async { "here" }))).await;
        for begun in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: x\r\nname: val"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(begun.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // It ends, with an error of HTTP's at most.
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{begun}");
        }
        closing.cancel();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_takes_its_time_is_no_idle_connection() {
        let (told, tell) = oneshot::channel::<()>();
        let (reached, reach) = oneshot::channel::<()>();
        let both = Arc::new(parking_lot::Mutex::new(Some((tell, reached))));
        let slow = get(move || {
            let both = both.lock().take();
            async move {
                let (tell, reached) = both.expect("asked once");
                reached.send(()).unwrap();
                tell.await.unwrap();
                "at last"
            }
        });
        let (address, closing, serving) = hasty(Router::new().route("/", slow)).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        reach.await.unwrap();
        // Another connection is idle meanwhile, and is closed: so much time has passed.
        let mut idle = TcpStream::connect(address).await.unwrap();
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
        told.send(()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("at last"), "{answer}");
        closing.cancel();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn closing_lets_an_answer_end_and_takes_no_more() {
        let (told, tell) = oneshot::channel::<()>();
        let (reached, reach) = oneshot::channel::<()>();
        let both = Arc::new(parking_lot::Mutex::new(Some((tell, reached))));
        let slow = get(move || {
            let both = both.lock().take();
            async move {
                let (tell, reached) = both.expect("asked once");
                reached.send(()).unwrap();
                tell.await.unwrap();
                "at last"
            }
        });
        let (address, closing, serving) = hasty(Router::new().route("/", slow)).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        reach.await.unwrap();
        closing.cancel();
        told.send(()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("at last"), "{answer}");
        serving.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
