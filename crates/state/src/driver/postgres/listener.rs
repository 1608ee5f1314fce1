//! Hints of news: a connection that listens, kept up by a task of its own, and what readers have seen since.
//!
//! A notification is an edge, and its content is not trusted: whatever is told makes one look at the log worth while. So
//! a nonsense, doubled or early one costs a read, and a lost one the caller's polling interval.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::connection::Call;
use super::driver::Links;
use crate::revision::{Epoch, Revision};

/// How long the listener waits before it connects again.
const AGAIN: Duration = Duration::from_millis(100);

/// What is known about news without asking the database.
#[derive(Debug)]
pub(super) struct News {
    /// Counts what was told.
    told: watch::Sender<u64>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    epoch: Option<Epoch>,
    head: Revision,
    /// Everything up to this count was told before the last look at the log began.
    covered: u64,
}

/// A look at the log that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    told: u64,
}

impl News {
    pub(super) fn new() -> News {
        News { told: watch::Sender::new(0), known: Mutex::default() }
    }

    /// Something may have happened.
    pub(super) fn told(&self) {
        self.told.send_modify(|count| *count += 1);
    }

    /// To be called before the log is looked at.
    pub(super) fn look(&self) -> Look {
        Look { told: *self.told.borrow() }
    }

    /// What a look at the log has found.
    pub(super) fn seen(&self, look: Look, epoch: Epoch, head: Revision) {
        let mut known = self.known.lock();
        if known.epoch != Some(epoch) || look.told >= known.covered {
            // In order, as looks usually are; a head that was put back is taken over too.
            known.epoch = Some(epoch);
            known.head = head;
            known.covered = known.covered.max(look.told);
        }
    }

    /// This server has committed up to `head` itself.
    pub(super) fn committed(&self, epoch: Epoch, head: Revision) {
        {
            let mut known = self.known.lock();
            if known.epoch == Some(epoch) {
                known.head = known.head.max(head);
            }
        }
        self.told();
    }

    /// Ends when there may be something after `after`, or after `limit`.
    pub(super) async fn wait(&self, after: Revision, limit: Duration) {
        let mut told = self.told.subscribe();
        let count = *told.borrow_and_update();
        {
            let known = self.known.lock();
            if known.head > after || count > known.covered {
                return;
            }
        }
        // Whether there was news or the limit is over, the caller looks for itself.
        let _ = tokio::time::timeout(limit, told.changed()).await;
    }
}

/// The task that keeps the listening connection up. Dropping it ends the task.
#[derive(Debug)]
pub(super) struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Listener {
    pub(super) fn start(links: &Arc<Links>) -> Listener {
        Listener(tokio::spawn(listen(Arc::downgrade(links))))
    }
}

/// Connects, and asks now and then whether the connection is still there: one that only listens would not notice.
async fn listen(links: Weak<Links>) {
    loop {
        let Some(held) = links.upgrade() else { return };
        let (keepalive, limit) = (held.shared.options.keepalive, held.shared.options.answer_limit);
        let connection = held.watch.get().await;
        drop(held);
        match connection {
            Ok(connection) => {
                tokio::select! {
                    () = connection.ended() => {}
                    () = tokio::time::sleep(keepalive) => {
                        if connection.run(vec![Call::plain("SELECT 1")], limit.min(keepalive)).await.is_err() {
                            connection.break_off();
                        }
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "no connection that listens; the log is polled meanwhile");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn d14_what_is_told_between_a_look_and_the_wait_is_not_missed() {
        let news = News::new();
        let epoch = Epoch(uuid::Uuid::nil());
        let look = news.look();
        news.told();
        news.seen(look, epoch, Revision(3));
        // Told after the look began: it may not have seen it.
        news.wait(Revision(3), Duration::MAX).await;
        let look = news.look();
        news.seen(look, epoch, Revision(3));
        let mut waiting = Box::pin(news.wait(Revision(3), Duration::from_secs(3_600)));
        assert!(futures::poll!(&mut waiting).is_pending());
        news.told();
        waiting.await;
        // Behind what is known there is nothing to wait for.
        news.wait(Revision(2), Duration::MAX).await;
    }
}
