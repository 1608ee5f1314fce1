//! Artifacts that are being put together, each by one task, whoever waits for it.
//!
//! A request may end before the work does: its time runs out, or the connection breaks. The work goes on, and the
//! request that comes next joins it instead of beginning anew.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate_api::manifest::Manifest;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::http::errors::{ApiError, ApiResult};

/// How long a request waits for the work. Shorter than any limit of a request's time.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many artifacts are put together at once.
const AT_ONCE_MAX: usize = 32;

/// The work of all pushes. Dropping it ends all of it.
#[derive(Debug, Default)]
pub(super) struct Completing {
    by_push: Mutex<HashMap<String, Work>>,
}

#[derive(Debug)]
struct Work {
    manifest: Manifest,
    outcome: watch::Receiver<Option<ApiResult<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Completing {
    /// Waits for the work of this push, which is begun if it is not under way for this manifest.
    pub(super) async fn join<F>(&self, push: &str, manifest: &Manifest, work: F) -> ApiResult<String>
    where
        F: Future<Output = ApiResult<String>> + Send + 'static,
    {
        let mut outcome = self.outcome(push, manifest, work)?;
        let waited = tokio::time::timeout(PATIENCE, outcome.wait_for(Option::is_some)).await;
        let found = match waited {
            Err(_) => {
                return Err(ApiError::unavailable(
                    "The artifact is not complete yet.",
                    "All of its parts are being read to check them.",
                ));
            }
            Ok(found) => found.map(|found| (*found).clone()).ok().flatten(),
        };
        // Told once: what is asked after that is asked anew.
        self.forget(push);
        found.unwrap_or_else(|| Err(ApiError::internal("putting an artifact together ended without an outcome")))
    }

    fn outcome<F>(
        &self,
        push: &str,
        manifest: &Manifest,
        work: F,
    ) -> ApiResult<watch::Receiver<Option<ApiResult<String>>>>
    where
        F: Future<Output = ApiResult<String>> + Send + 'static,
    {
        let mut by_push = self.by_push.lock();
        if let Some(known) = by_push.get(push)
            && known.manifest == *manifest
        {
            return Ok(known.outcome.clone());
        }
        // What is over and was never asked for again makes room.
        by_push.retain(|_, work| work.outcome.borrow().is_none());
        if by_push.len() >= AT_ONCE_MAX && !by_push.contains_key(push) {
            return Err(ApiError::unavailable(
                "The artifact is not complete yet.",
                format!("{AT_ONCE_MAX} others are being checked."),
            ));
        }
        let (sender, outcome) = watch::channel(None);
        let task = tokio::spawn(async move {
            let done = work.await;
            sender.send_replace(Some(done));
        });
        let work = Work { manifest: manifest.clone(), outcome: outcome.clone(), _task: AbortOnDropHandle::new(task) };
        by_push.insert(push.to_owned(), work);
        Ok(outcome)
    }

    /// Ends the work of a push, if there is any.
    pub(super) fn forget(&self, push: &str) {
        self.by_push.lock().remove(push);
    }
}
