//! Entities that are damaged by hand while servers are up, as they are restarted in turn and all at once.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::testing::damages::{DUMP, Damage, damages};
use tidegate_state::{Feed, FeedItem, OpenError, State, StateOptions};

use super::support::*;

/// How often entities are written behind here.
const BEHIND: Duration = Duration::from_millis(20);

/// How long a start waits for a server that could mend the damage, where none is up.
const NOBODY: Duration = Duration::from_millis(100);

/// How many of the damages are done at once, each to a store of its own.
const AT_ONCE: usize = 4;

/// How far the log reaches back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    Whole,
    Compacted,
}

/// A store that suffers one damage, and what was written to it.
struct World {
    store: PostgresStore,
    schema: String,
    damage: Damage,
    log: Log,
    written: u64,
    expected: BTreeMap<String, i64>,
}

impl World {
    fn new(damage: Damage, log: Log) -> World {
        let schema = shared().fresh_schema();
        let store = store(&shared().url(), &schema);
        World { store, schema, damage, log, written: 0, expected: BTreeMap::new() }
    }

    /// Starts a server, which has the whole tree at once.
    async fn open(&self, name: &str) -> State {
        let (state, _) = open_with(&self.store, name, |mut options| {
            options.entities_behind = BEHIND;
            if self.log == Log::Compacted {
                options.log_keep = Duration::ZERO;
                options.compact_every = 1;
            }
            options
        })
        .await;
        self.has_the_tree(&state);
        state
    }

    /// Not a wrong one, an older or an empty one.
    fn has_the_tree(&self, state: &State) {
        let snapshot = state.snapshot();
        let found: BTreeMap<String, i64> = snapshot
            .roots::<Counter>()
            .map(|found| found.unwrap())
            .map(|(counter, value)| (counter.path().as_str().to_owned(), value.n))
            .collect();
        let what = self.damage.what;
        assert_eq!((snapshot.revision().0, &found), (self.written, &self.expected), "{what}: {}", state.server());
    }

    /// Raises a counter by one; nothing else has made a revision since the last time.
    async fn write(&mut self, state: &State, id: &str) {
        let n = self.expected.entry(counter(id).path().as_str().to_owned()).or_default();
        *n += 1;
        self.written += 1;
        let written = put(state, id, *n).await.unwrap();
        assert_eq!(written.revision.0, self.written, "{}: no change and no request came of it", self.damage.what);
    }

    /// Waits until nobody has anything left to write behind. Everyone has the tree.
    async fn settle(&self, up: [&State; 2]) {
        for state in up {
            state.flush_within(LIMIT).await.unwrap();
            self.has_the_tree(state);
        }
        let driver = self.store.driver();
        eventually(self.damage.what, async || {
            let stored = driver.stored().await.unwrap();
            let is_compacted = self.log == Log::Whole || stored.meta.compacted.0 > 0;
            stored.tree.revision.0 >= self.written && is_compacted
        })
        .await;
    }

    async fn do_damage(&self) {
        sql(&self.store, &self.damage.sql).await;
    }

    /// The next that a server tells is that the busy counter was raised.
    async fn only_told(&self, feed: &mut Feed) {
        let what = self.damage.what;
        let next = tokio::time::timeout(LIMIT, feed.next()).await.unwrap_or_else(|_| panic!("{what}: nothing is told"));
        let Some(FeedItem::Transaction(applied)) = next else { panic!("{what}: the tree was loaded anew") };
        let changed: Vec<&str> = applied.changes.iter().map(|change| change.path.as_str()).collect();
        assert_eq!(changed, ["/counters/busy"], "{what}");
    }

    /// Two servers, with what it takes for every damage to be one.
    async fn begin(&mut self) -> (State, State) {
        let (first, second) = (self.open("first").await, self.open("second").await);
        for id in ["m", "n"] {
            self.write(&first, id).await;
        }
        self.settle([&first, &second]).await;
        sql(&self.store, DUMP).await;
        for id in ["n", "o"] {
            self.write(&second, id).await;
        }
        self.settle([&first, &second]).await;
        (first, second)
    }

    /// The damage is done to servers that are up, and again before each restart of one of two. Both are up at the end, and the
    /// damage is there.
    async fn suffer(&mut self) -> (State, State) {
        let (first, second) = self.begin().await;
        let seen = first.snapshot();
        let mut feed = first.changes(Some((seen.epoch(), seen.revision())));
        self.do_damage().await;
        self.write(&first, "busy").await;
        self.write(&second, "busy").await;
        self.settle([&first, &second]).await;

        self.do_damage().await;
        second.close().await;
        let second = self.open("second").await;
        self.write(&second, "busy").await;
        self.settle([&first, &second]).await;
        for _ in 0..3 {
            self.only_told(&mut feed).await;
        }
        self.do_damage().await;
        first.close().await;
        let first = self.open("first").await;
        self.settle([&first, &second]).await;
        self.do_damage().await;
        (first, second)
    }
}

/// Each damage, to a store of its own.
async fn each_damage<R: Future<Output = ()>>(suffered: impl Fn(Damage) -> R) {
    let damages = damages("/counters/n", r#"{"n": 77}"#, ("entities_mark", "at"));
    futures::stream::iter(damages).map(suffered).buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// D43: the log reaches back to the beginning: servers that are up serve and write on; whoever starts, in turn or after all had
/// stopped, has the tree that the log adds up to.
async fn d43_damaged_entities_are_rebuilt_from_a_log_that_reaches_back() {
    each_damage(async |damage| {
        let mut world = World::new(damage, Log::Whole);
        let (first, second) = world.suffer().await;
        first.close().await;
        second.close().await;
        let (first, second) = (world.open("first").await, world.open("second").await);
        world.write(&first, "busy").await;
        world.settle([&first, &second]).await;
        agree_and_close(&world.store, vec![first, second]).await;
    })
    .await;
}

/// D43: the log is compacted: whoever starts has the tree from a server that is up; where none is, the start is refused, naming
/// what is damaged and what to do.
async fn d43_entities_damaged_behind_a_compacted_log_are_mended_by_who_is_up_or_refused() {
    each_damage(async |damage| {
        let mut world = World::new(damage, Log::Compacted);
        let (first, second) = world.suffer().await;
        first.close().await;
        second.close().await;
        let what = world.damage.what;
        let options = PostgresOptions { mend_limit: NOBODY, ..options(&world.schema) };
        let store = PostgresStore::new(&shared().url(), options).unwrap();
        for name in ["first", "second"] {
            let mut options = StateOptions::new(name);
            options.lease = LEASE;
            let refused = State::open(store.driver(), options).await.map(|_| ());
            let Err(OpenError::Driver(error)) = refused else { panic!("{what}: {refused:?}") };
            let told = error.to_string();
            assert!(told.contains(&world.damage.named) && told.contains("backup"), "{what}: {told}");
        }
        let head = store.driver().meta().await.unwrap().head;
        assert_eq!(head.0, world.written, "{what}: no change and no request came of it");
    })
    .await;
}

super::with_postgres! {
    d43_damaged_entities_are_rebuilt_from_a_log_that_reaches_back,
    d43_entities_damaged_behind_a_compacted_log_are_mended_by_who_is_up_or_refused,
}
