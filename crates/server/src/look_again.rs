//! Looking again before something is said to be unknown.
//!
//! Servers that share a database each answer from a snapshot of their own, which may be a moment behind what another has just
//! written. Whoever made a store at one server and asks another for it must not be told that there is none. So before a
//! server says so, it catches up with the database once and looks again: at what a request's address and body name and at
//! its token in the guard before each route, and at the store of a look-up where no region knows it.
//!
//! # Invariants
//! - Who asks goes with a catching-up that began after it had asked, so that it sees all that was written before.
//! - Wrong names and tokens cost the database no more than one query in [`EVERY`], however many there are.
//! - Nobody waits longer than [`LIMIT`]. Where the database does not answer, the answer is that of the snapshot, and for
//!   [`REST`] nobody waits for it at all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_state::State;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How often this server catches up at most for the sake of what it does not know.
const EVERY: Duration = Duration::from_millis(50);
/// How long one catching-up may take.
const FLUSH: Duration = Duration::from_secs(1);
/// How long one who asks waits at most.
const LIMIT: Duration = Duration::from_secs(2);
/// How long it is left alone after it has failed.
const REST: Duration = Duration::from_secs(1);

/// Catches up with other servers, for all who ask together.
#[derive(Debug, Default)]
pub(crate) struct LookAgain {
    /// Whether there are others who write into the state.
    is_shared: bool,
    /// How many times it has begun.
    begun: AtomicU64,
    last: Mutex<Last>,
}

/// The last time that came to its end.
#[derive(Debug, Default)]
struct Last {
    number: u64,
    is_fresh: bool,
    next: Option<Instant>,
}

impl LookAgain {
    pub(crate) fn new(is_shared: bool) -> Self {
        Self { is_shared, ..Self::default() }
    }

    /// Whether other servers write into the state.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Catches up with what was written before the call, and says whether there is reason to look again.
    pub(crate) async fn catch_up(&self, state: &State) -> bool {
        self.is_shared
            && self
                .together(async || match state.flush_within(FLUSH).await {
                    Ok(_) => true,
                    Err(error) => {
                        tracing::debug!(%error, "what is not known is looked for in what was known before");
                        false
                    }
                })
                .await
    }

    async fn together(&self, flush: impl AsyncFnOnce() -> bool) -> bool {
        let before = self.begun.load(Ordering::Acquire);
        let turn = async {
            let mut last = self.last.lock().await;
            if last.number > before {
                return last.is_fresh;
            }
            match last.next {
                Some(next) if !last.is_fresh && last.number > 0 && Instant::now() < next => return false,
                Some(next) => tokio::time::sleep_until(next).await,
                None => {}
            }
            let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
            // Also if whoever asks goes away in the middle of it.
            last.next = Some(Instant::now() + EVERY);
            let is_fresh = flush().await;
            if !is_fresh {
                last.next = Some(Instant::now() + REST);
            }
            (last.number, last.is_fresh) = (number, is_fresh);
            is_fresh
        };
        tokio::time::timeout(LIMIT, turn).await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn flushed(count: &AtomicU64, fresh: bool) -> bool {
        tokio::time::sleep(Duration::from_millis(5)).await;
        count.fetch_add(1, Ordering::Relaxed);
        fresh
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_together_share_what_began_after_they_asked() {
        let (again, count) = (Arc::new(LookAgain::new(true)), Arc::new(AtomicU64::new(0)));
        let ask = || {
            let (again, count) = (Arc::clone(&again), Arc::clone(&count));
            tokio::spawn(async move { again.together(async || flushed(&count, true).await).await })
        };
        // Given one that has begun already…
        let first = ask();
        tokio::time::sleep(Duration::from_millis(1)).await;
        // …those who come now need another, and one is enough for all.
        let later: Vec<_> = (0..1_000).map(|_| ask()).collect();
        for asked in std::iter::once(first).chain(later) {
            assert!(asked.await.unwrap());
        }
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_again_and_again_costs_the_database_little() {
        let (again, count) = (LookAgain::new(true), AtomicU64::new(0));
        let begun = Instant::now();
        for _ in 0..21 {
            assert!(again.together(async || flushed(&count, true).await).await);
        }
        assert!(begun.elapsed() >= EVERY * 20);
        assert_eq!(count.load(Ordering::Relaxed), 21);
    }

    #[tokio::test(start_paused = true)]
    async fn a_database_that_does_not_answer_is_left_alone_and_nobody_waits_for_it() {
        let (again, count) = (LookAgain::new(true), AtomicU64::new(0));
        assert!(!again.together(async || flushed(&count, false).await).await);
        let begun = Instant::now();
        for _ in 0..100 {
            assert!(!again.together(async || flushed(&count, true).await).await);
        }
        assert_eq!((begun.elapsed(), count.load(Ordering::Relaxed)), (Duration::ZERO, 1));
        tokio::time::advance(REST).await;
        assert!(again.together(async || flushed(&count, true).await).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_holds_nobody_up() {
        let (again, count) = (LookAgain::new(true), AtomicU64::new(0));
        let gone = again.together(async || {
            std::future::pending::<()>().await;
            true
        });
        assert!(tokio::time::timeout(Duration::from_millis(10), gone).await.is_err());
        assert!(again.together(async || flushed(&count, true).await).await);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
