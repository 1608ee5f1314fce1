//! Hints of news: a connection that listens, kept up by a task of its own, and what readers have seen since.
//!
//! A notification is an edge, and its content is not trusted: nonsense, or one that is doubled or early, costs a read of the
//! log, and one that is lost or lies about a head the caller's polling interval. What it can do is spare a read: a head that
//! was seen already, as those of what this server has committed itself are, is no news; and where it tells of a few rows, these
//! alone are read, and all the rest of a look only if they are not there.

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
#[derive(Debug, Default)]
pub(super) struct News {
    /// Counts what was told.
    told: watch::Sender<u64>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    epoch: Option<Epoch>,
    head: Revision,
    /// How much was told before the last look at the log began.
    covered: u64,
    unseen: Option<Unseen>,
}

/// What was told and no look at the log has shown yet.
#[derive(Debug, Clone, Copy)]
struct Unseen {
    /// The highest head; none above it where something else was told.
    head: Revision,
    /// The count of what was told last.
    last: u64,
}

/// A look at the log that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    told: u64,
}

impl News {
    /// A notification has arrived.
    pub(super) fn heard(&self, payload: &str) {
        self.tell(payload.parse().map_or(Revision(u64::MAX), Revision));
    }

    /// Something may have happened.
    pub(super) fn told(&self) {
        self.tell(Revision(u64::MAX));
    }

    fn tell(&self, head: Revision) {
        let mut known = self.known.lock();
        if known.head >= head {
            return;
        }
        let highest = known.unseen.map_or(head, |unseen| unseen.head.max(head));
        // Under the lock, so that a look that begins later counts it.
        self.told.send_modify(|count| *count += 1);
        known.unseen = Some(Unseen { head: highest, last: *self.told.borrow() });
    }

    /// To be called before the log is looked at.
    pub(super) fn look(&self) -> Look {
        Look { told: *self.told.borrow() }
    }

    /// Whether all that is known to be new are a few rows of the log, fewer than `rows`.
    pub(super) fn is_a_few_rows(&self, after: Revision, rows: u64) -> bool {
        let unseen = self.known.lock().unseen;
        unseen.is_some_and(|unseen| after < unseen.head && unseen.head.0 - after.0 < rows)
    }

    /// What a look at the log has found, and whether that was more than was known.
    pub(super) fn seen(&self, look: Look, epoch: Epoch, head: Revision) -> bool {
        let mut known = self.known.lock();
        let before = known.head;
        if known.epoch != Some(epoch) || look.told >= known.covered {
            // In order, as looks usually are; a head that was put back is taken over too.
            known.epoch = Some(epoch);
            known.head = head;
            known.covered = known.covered.max(look.told);
        } else {
            known.head = known.head.max(head);
        }
        // What is told while a look goes on may be in it all the same.
        if known.unseen.is_some_and(|unseen| unseen.last <= look.told || unseen.head <= head) {
            known.unseen = None;
        }
        known.head > before
    }

    /// Who waits looks for itself: what is told of a head that is known by now wakes nobody.
    pub(super) fn wake(&self) {
        self.told.send_modify(|_| {});
    }

    /// This server has committed up to `head` itself, and shows it: that is no news for it.
    pub(super) fn committed(&self, epoch: Epoch, head: Revision) {
        let mut known = self.known.lock();
        if known.epoch == Some(epoch) {
            known.head = known.head.max(head);
            if known.unseen.is_some_and(|unseen| unseen.head <= head) {
                known.unseen = None;
            }
        }
    }

    /// Ends when there may be something after `after`, or after `limit`.
    pub(super) async fn wait(&self, after: Revision, limit: Duration) {
        let mut told = self.told.subscribe();
        told.borrow_and_update();
        {
            let known = self.known.lock();
            if known.head > after || known.unseen.is_some() {
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
        let news = News::default();
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

    #[tokio::test]
    async fn d14_heads_that_were_seen_are_no_news_and_nonsense_is() {
        let news = News::default();
        let epoch = Epoch(uuid::Uuid::nil());
        news.seen(news.look(), epoch, Revision(3));
        for payload in ["3", "1"] {
            news.heard(payload);
            let mut waiting = Box::pin(news.wait(Revision(3), Duration::from_secs(3_600)));
            assert!(futures::poll!(&mut waiting).is_pending(), "{payload}");
        }
        for payload in ["4", "", "epoch", "x", "-1", "99999999999999999999"] {
            news.heard(payload);
            news.wait(Revision(3), Duration::MAX).await;
            news.seen(news.look(), epoch, Revision(3));
        }
        let mut waiting = Box::pin(news.wait(Revision(3), Duration::from_secs(3_600)));
        assert!(futures::poll!(&mut waiting).is_pending(), "a head that is not there is looked for once");
    }

    #[test]
    fn d14_a_few_rows_are_news_by_themselves_unless_something_else_was_told() {
        let news = News::default();
        let epoch = Epoch(uuid::Uuid::nil());
        news.seen(news.look(), epoch, Revision(3));
        assert!(!news.is_a_few_rows(Revision(3), 10), "nothing was told");
        news.heard("5");
        assert!(news.is_a_few_rows(Revision(3), 10));
        assert!(!news.is_a_few_rows(Revision(5), 10), "they are known");
        assert!(!news.is_a_few_rows(Revision(3), 2), "more than so many");
        news.heard("12");
        assert!(news.is_a_few_rows(Revision(3), 10) && !news.is_a_few_rows(Revision(2), 10));
        news.heard("epoch");
        assert!(!news.is_a_few_rows(Revision(3), 10));
    }

    #[tokio::test]
    async fn d14_a_look_shows_what_is_told_while_it_goes_on() {
        let news = News::default();
        let epoch = Epoch(uuid::Uuid::nil());
        let look = news.look();
        news.heard("4");
        news.seen(look, epoch, Revision(4));
        let mut waiting = Box::pin(news.wait(Revision(4), Duration::from_secs(3_600)));
        assert!(futures::poll!(&mut waiting).is_pending());
        // But not what was told without a head.
        let look = news.look();
        news.heard("5");
        news.told();
        news.seen(look, epoch, Revision(5));
        news.wait(Revision(5), Duration::MAX).await;
    }

    #[tokio::test]
    async fn d14_what_this_server_has_committed_is_no_news_whichever_comes_first() {
        let news = News::default();
        let epoch = Epoch(uuid::Uuid::nil());
        news.seen(news.look(), epoch, Revision(3));
        news.committed(epoch, Revision(4));
        news.heard("4");
        let mut waiting = Box::pin(news.wait(Revision(4), Duration::from_secs(3_600)));
        assert!(futures::poll!(&mut waiting).is_pending());
        news.heard("5");
        news.committed(epoch, Revision(5));
        let mut waiting = Box::pin(news.wait(Revision(5), Duration::from_secs(3_600)));
        assert!(futures::poll!(&mut waiting).is_pending());
        // The answer to a commit was lost, and its notification was not.
        news.heard("6");
        news.wait(Revision(5), Duration::MAX).await;
    }
}
