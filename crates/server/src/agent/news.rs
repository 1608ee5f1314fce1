//! News of tokens, which an agent asks the control plane for.

use std::time::Duration;

use tidegate_api::agent::RegionAccess;
use tidegate_rollout::region::RemoteClient;
use tidegate_rollout::region::agent::random_jitter;
use tokio_util::sync::CancellationToken;

use crate::access::region::RegionGuard;

/// How often they are asked for where nobody waits for them: a token that was revoked opens nothing after that.
const EVERY: Duration = Duration::from_secs(5);

/// The shortest pause between two questions, however many wait.
const REST: Duration = Duration::from_millis(500);

/// Keeps what the agent knows of tokens up to date, until it stops.
pub(super) async fn follow(guard: RegionGuard, region: String, client: RemoteClient, closing: CancellationToken) {
    let jitter = random_jitter();
    let segments = ["v1", "regions", &region, "agent", "access"];
    let mut fails = false;
    loop {
        let mark = guard.mark();
        let news = client.json::<Option<RegionAccess>>(&segments, |http, mut url| {
            url.query_pairs_mut().append_pair("known", &mark);
            http.get(url)
        });
        let news = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            news = news => news,
        };
        match news {
            Ok(news) => {
                fails = false;
                guard.heard(news).await;
            }
            Err(error) => {
                if !fails {
                    tracing::warn!(%error, "the control plane does not say who may ask; who might before still may");
                }
                fails = true;
            }
        }
        let pause = EVERY.mul_f64(0.75 + 0.5 * jitter());
        let waiting = async {
            tokio::time::sleep(REST).await;
            // Whoever asked meanwhile is remembered.
            let _ = tokio::time::timeout(pause, guard.wanted()).await;
        };
        tokio::select! {
            biased;
            () = closing.cancelled() => return,
            () = waiting => {}
        }
    }
}
