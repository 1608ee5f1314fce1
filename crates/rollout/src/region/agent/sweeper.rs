//! The task that removes copies that nobody needs any more.

use std::sync::Arc;

use super::store::Shared;

/// What the task does, for people.
pub(super) const SWEEPER: &str = "removes copies";

/// Removes copies that nobody needs any more.
pub(super) async fn sweep(shared: Arc<Shared>) {
    let clock = Arc::clone(&shared.options.clock);
    loop {
        match shared.options.artifacts.sweep().await {
            Ok(_) => shared.deaths.works(SWEEPER),
            Err(error) => {
                tracing::warn!(region = %shared.options.region, %error, "copies that nobody needs could not be removed; tried again");
            }
        }
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => return,
            () = clock.sleep_until(clock.now().after(shared.options.limits.heartbeat_every)) => {}
        }
    }
}
