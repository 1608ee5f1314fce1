//! The tail: learns of new revisions by hint and by jittered polling, applies them in order, and loads the tree anew when
//! the log was compacted past this server or the store has another epoch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Core, Head, apply};
use crate::driver::DriverError;
use crate::feed::FeedEvent;
use crate::testing::points::name as point;

/// How long news wait for the committer to read them, which would do it twice otherwise.
const READ_BY_COMMITTER: Duration = Duration::from_millis(5);

pub(super) async fn run(core: Arc<Core>) {
    let mut failing = false;
    loop {
        let after = core.applied.borrow().1;
        // Spread by a random part, so that servers do not poll in step.
        let poll = core.options.poll.mul_f64(rand::random_range(0.8..1.2));
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            () = core.tail_wake.notified() => {}
            () = core.driver.wait_for_news(after, poll) => {
                core.commit_in_progress().await;
                // Under its lock, so that a commit that was made is shown, too.
                if core.head.lock().await.snapshot.revision() > after {
                    // The committer was there first; what it has not seen is still news.
                    continue;
                }
            }
        }
        let epoch = core.applied.borrow().0;
        let caught_up = match core.catch_up().await {
            Err(DriverError::Compacted { .. } | DriverError::EpochChanged { .. }) => core.reload().await,
            caught_up => caught_up.map(|_| ()),
        };
        match caught_up {
            Ok(()) => {
                core.silent.store(false, Ordering::Relaxed);
                if failing {
                    tracing::info!(server = %core.server, "the store answers again");
                }
                failing = false;
            }
            Err(error) => {
                core.silent.store(error.is_retryable(), Ordering::Relaxed);
                core.note_set_back(&error, epoch).await;
                core.metrics.tail_errors.inc();
                if !failing {
                    tracing::warn!(server = %core.server, %error, "the log can't be read; the last snapshot is served on");
                }
                failing = true;
                tokio::select! {
                    biased;
                    () = core.stop.cancelled() => return,
                    () = tokio::time::sleep(poll.min(Duration::from_millis(200))) => {}
                }
            }
        }
    }
}

impl Core {
    /// Waits a moment for a commit that is about to read the log: it reads what is new as soon as it has the lock.
    async fn commit_in_progress(&self) {
        let mut reading = self.committer_reads.subscribe();
        if *reading.borrow_and_update() {
            let _ = tokio::time::timeout(READ_BY_COMMITTER, reading.wait_for(|reads| !reads)).await;
        }
    }

    /// Reads and applies what is new in the log. Says whether there was anything.
    pub(super) async fn catch_up(&self) -> Result<bool, DriverError> {
        let mut any = false;
        loop {
            let (epoch, after) = {
                let head = self.head.lock().await;
                (head.snapshot.epoch(), head.snapshot.revision())
            };
            let page = self.driver.read_log(epoch, after, apply::PAGE_ROWS).await?;
            if page.head < after {
                return Err(DriverError::SetBack { head: page.head, seen: after });
            }
            self.metrics.tail_lag.set(i64::try_from(page.head.0 - after.0).unwrap_or(i64::MAX));
            if page.rows.is_empty() {
                return Ok(any);
            }
            self.points.pass(point::TAIL_BEFORE_APPLY).await;
            let mut head = self.head.lock().await;
            if head.snapshot.epoch() != epoch {
                continue;
            }
            self.points.pass(point::TAIL_BEFORE_PUBLISH).await;
            let applied = self.apply(&mut head, &page.rows)?;
            any = true;
            if applied >= page.head {
                self.metrics.tail_lag.set(0);
                return Ok(true);
            }
        }
    }

    /// Loads the tree anew and tells every feed to start again from it.
    pub(super) async fn reload(&self) -> Result<(), DriverError> {
        let loaded = apply::load(&*self.driver).await?;
        let mut head = self.head.lock().await;
        let there = &head.snapshot;
        if there.epoch() == loaded.snapshot.epoch() && there.revision() >= loaded.snapshot.revision() {
            // Another task was quicker.
            return Ok(());
        }
        let applied = there.revision();
        let is_other_epoch = there.epoch() != loaded.snapshot.epoch();
        let mut unresolved = std::mem::take(&mut head.unresolved);
        for (submission, revision) in &mut unresolved {
            // Its row may be among those that were skipped by loading; it is not among those that were applied.
            if revision.is_none() {
                match self.driver.find_submission(*submission, applied).await {
                    Ok(found) => *revision = found,
                    Err(error) => {
                        head.unresolved = unresolved;
                        return Err(error);
                    }
                }
            }
        }
        tracing::info!(
            server = %self.server, from = %head.snapshot.revision(), to = %loaded.snapshot.revision(),
            "the tree was loaded anew"
        );
        let mut renewed = loaded.into_head();
        renewed.unresolved = unresolved;
        *head = renewed;
        if is_other_epoch && self.set_back.swap(None).is_some() {
            tracing::warn!(server = %self.server, "the store has another epoch: this server writes and runs again");
        }
        self.reloaded(&head);
        Ok(())
    }

    fn reloaded(&self, head: &Head) {
        self.metrics.reloads.inc();
        self.recent.lock().clear();
        self.published.store(head.snapshot.clone().into_inner());
        // Fails only when nobody listens.
        let _ = self.feed.send(FeedEvent::Reset(head.snapshot.clone()));
        self.applied.send_replace((head.snapshot.epoch(), head.snapshot.revision()));
    }

    /// Takes note of how a write has failed: a store without room stays so until one has succeeded.
    pub(crate) fn note_failed_write(&self, error: &DriverError) {
        if !matches!(error, DriverError::Full(_)) {
            return;
        }
        if self.full.swap(Some(Arc::new(error.to_string()))).is_none() {
            tracing::error!(server = %self.server, %error, "nothing can be written until there is room; what is there is read on");
        }
    }

    /// Takes note that a write has succeeded.
    pub(crate) fn note_write(&self) {
        // Nearly always there is nothing to take back, and looking is cheap.
        if self.full.load().is_some() && self.full.swap(None).is_some() {
            tracing::info!(server = %self.server, "the store has room again");
        }
    }

    /// Whether the store does not answer at the moment.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// What the store said when it had no room for the last write, if so.
    pub(crate) fn full(&self) -> Option<Arc<String>> {
        self.full.load_full()
    }
}
