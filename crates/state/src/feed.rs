//! A feed: what this server applies, in order and without a gap, however slowly it is read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::change::Applied;
use crate::core::{Core, Replay};
use crate::driver::DriverError;
use crate::revision::{Epoch, Revision};
use crate::snapshot::Snapshot;

/// How many rows are reread at once.
const PAGE_ROWS: usize = 500;
const RETRY: Duration = Duration::from_millis(200);

/// What is sent to all feeds of a state.
#[derive(Debug, Clone)]
pub(crate) enum FeedEvent {
    Applied(Arc<Applied>),
    Reset(Snapshot),
}

/// An item of a [`Feed`].
#[derive(Debug, Clone)]
pub enum FeedItem {
    /// The whole tree: start from here. The first item of a feed that did not resume, and again whenever the transactions
    /// in between are not to be had (the log was compacted past the feed, or the store has another epoch).
    Snapshot(Snapshot),
    /// The next transaction.
    Transaction(Arc<Applied>),
}

/// What this server applies from some revision on, in order and without a gap. One that is read slowly rereads the log.
pub struct Feed {
    core: Arc<Core>,
    receiver: broadcast::Receiver<FeedEvent>,
    /// The tree at the last revision that was handed out.
    at: Snapshot,
    /// Reread from the log, and not handed out yet.
    reread: VecDeque<Arc<Applied>>,
    /// Some transactions were missed in the stream and are to be reread.
    lagging: bool,
    /// The snapshot is to be handed out first.
    fresh: bool,
}

impl Feed {
    pub(crate) fn new(core: Arc<Core>, receiver: broadcast::Receiver<FeedEvent>, at: Snapshot) -> Feed {
        Feed { core, receiver, at, reread: VecDeque::new(), lagging: false, fresh: false }
    }

    /// From a place that was seen before, if it is among the last transactions that this server has applied; else with a
    /// snapshot first, which is the cheaper way by then.
    pub(crate) fn resume(core: Arc<Core>, from: Option<(Epoch, Revision)>) -> Feed {
        let mut feed = core.feed_from_now();
        feed.fresh = true;
        let Some((epoch, revision)) = from else { return feed };
        if epoch != feed.at.epoch() || revision > feed.at.revision() {
            return feed;
        }
        if revision == feed.at.revision() {
            feed.fresh = false;
            return feed;
        }
        if let Some((at, transactions)) = core.recent_after(epoch, revision) {
            feed.fresh = false;
            feed.at = at;
            feed.reread = transactions;
        }
        feed
    }

    /// The snapshot at the last item that was handed out.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.at
    }

    /// The next item. None once the state is closed. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<FeedItem> {
        loop {
            if self.fresh {
                self.fresh = false;
                return Some(FeedItem::Snapshot(self.at.clone()));
            }
            if let Some(applied) = self.reread.pop_front() {
                self.at = applied.snapshot.clone();
                return Some(FeedItem::Transaction(applied));
            }
            if self.lagging {
                let stop = self.core.stop.clone();
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return None,
                    () = self.reread() => {}
                }
                continue;
            }
            let stop = self.core.stop.clone();
            let event = tokio::select! {
                biased;
                event = self.receiver.recv() => event,
                () = stop.cancelled() => return None,
            };
            match event {
                Ok(FeedEvent::Applied(applied)) => {
                    let same_epoch = applied.snapshot.epoch() == self.at.epoch();
                    if same_epoch && applied.revision <= self.at.revision() {
                        continue;
                    }
                    if same_epoch && applied.revision == self.at.revision().next() {
                        self.at = applied.snapshot.clone();
                        return Some(FeedItem::Transaction(applied));
                    }
                    self.lagging = true;
                }
                Ok(FeedEvent::Reset(snapshot)) => {
                    let stale = snapshot.epoch() == self.at.epoch() && snapshot.revision() <= self.at.revision();
                    if !stale {
                        self.at = snapshot.clone();
                        return Some(FeedItem::Snapshot(snapshot));
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => self.lagging = true,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// Reads what was missed from the log, up to what this server shows.
    async fn reread(&mut self) {
        let shown = self.core.snapshot();
        if shown.epoch() != self.at.epoch() {
            self.start_again();
            return;
        }
        if shown.revision() <= self.at.revision() {
            self.lagging = false;
            return;
        }
        match self.core.driver.read_log(self.at.epoch(), self.at.revision(), PAGE_ROWS).await {
            Ok(page) => {
                let mut replay = Replay::from(self.at.clone());
                for row in page.rows.iter().filter(|row| row.revision <= shown.revision()) {
                    if row.revision != replay.revision().next() {
                        break;
                    }
                    self.reread.push_back(replay.row(row));
                }
                replay.finish();
                if self.reread.is_empty() {
                    tokio::time::sleep(RETRY).await;
                }
            }
            Err(DriverError::Compacted { .. } | DriverError::EpochChanged { .. }) => self.start_again(),
            Err(error) => {
                tracing::debug!(%error, "a feed that lags can't reread the log yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    fn start_again(&mut self) {
        self.receiver = self.core.subscribe();
        self.at = self.core.snapshot();
        self.lagging = false;
        self.fresh = true;
    }
}
