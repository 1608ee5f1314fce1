//! Whether the artifact store still bears the installation's mark, as long as the server runs.
//!
//! The tree may become another one under a server (a backup was put back), and the store may lose what is in it. So the mark is
//! looked at again when the tree is another, and every half a minute; and right before a manifest is written or an artifact
//! removed. Without the mark nothing is written into the store and nothing removed from it, and who asks is told why. What is
//! served goes on: nodes have their own copies. A store that can't be reached for a while is no other store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tidegate_api::ArtifactStoreView;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_rollout::entities::SourceStore;
use tidegate_state::{Epoch, Snapshot, State};
use tokio_util::sync::CancellationToken;

use super::mark::known;
use crate::http::errors::ApiError;

/// How often the mark is looked at.
const EVERY: Duration = Duration::from_secs(30);

/// How often it is looked at while it is not there, and whether the tree has become another one.
const LOOK: Duration = Duration::from_secs(1);

/// How long one look may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What a mark is looked for on behalf of.
type Tree = (Epoch, Option<String>);

/// What is known of the mark.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// It is there.
    Right,
    /// It is not: why.
    Wrong(String),
    /// It could not be told, and was not before: why.
    Unknown(String),
}

/// What was found when the store was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Mark,
    Other(String),
    Nothing(String),
}

impl Standing {
    /// What is known after another look. Pure. A store that does not answer is no other one, as long as the tree is the same.
    fn next(&self, is_same_tree: bool, found: Found) -> Self {
        match found {
            Found::Mark => Self::Right,
            Found::Other(why) => Self::Wrong(why),
            Found::Nothing(_) if is_same_tree => self.clone(),
            Found::Nothing(why) => Self::Unknown(why),
        }
    }

    fn trouble(&self) -> Option<&str> {
        match self {
            Self::Right => None,
            Self::Wrong(why) | Self::Unknown(why) => Some(why),
        }
    }
}

/// Looks after the mark of the artifact store.
pub(crate) struct MarkWatch {
    state: State,
    store: ArtifactStore,
    checked: Mutex<Checked>,
    /// How many looks have begun.
    looks: AtomicU64,
    matches: Gauge,
}

/// What came of a look.
struct Checked {
    tree: Tree,
    standing: Standing,
    /// The last look that has learned this: one that began before it says nothing new.
    look: u64,
}

impl Checked {
    /// What is known after a look that ended now, if it says anything new. Pure.
    fn next(&self, look: u64, tree: Tree, found: Found) -> Option<Self> {
        if look < self.look {
            return None;
        }
        let is_same_tree = self.tree == tree;
        // One that has learned nothing does not stand against what an earlier one has seen.
        let has_learned = !is_same_tree || !matches!(found, Found::Nothing(_));
        let standing = self.standing.next(is_same_tree, found);
        Some(Self { tree, standing, look: if has_learned { look } else { self.look } })
    }
}

impl MarkWatch {
    /// Begins with what the start has found: the mark is there.
    pub(crate) async fn begin(state: &State, store: &ArtifactStore, metrics: &mut Registry) -> Arc<Self> {
        // So that what the start has just written is seen. If it can't be now, the watch finds another tree a moment later.
        if let Err(error) = state.flush_within(LOOK).await {
            tracing::debug!(%error, "the artifact store's mark is looked for again in a moment");
        }
        let matches = Gauge::default();
        matches.set(1);
        metrics.register(
            "artifact_store_matches",
            "1 if the artifact store bears the installation's mark, as far as is known; without it nothing is written there",
            matches.clone(),
        );
        let tree = tree_of(&state.snapshot());
        Arc::new(Self {
            state: state.clone(),
            store: store.clone(),
            checked: Mutex::new(Checked { tree, standing: Standing::Right, look: 0 }),
            looks: AtomicU64::new(0),
            matches,
        })
    }

    /// Looks again and again, until the server closes.
    pub(crate) async fn keep(self: Arc<Self>, closing: CancellationToken) {
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = self.look_on() => {}
        }
    }

    async fn look_on(&self) {
        loop {
            let looked_at = tokio::time::Instant::now();
            tokio::time::sleep(LOOK).await;
            while looked_at.elapsed() < EVERY && self.trouble(&self.state.snapshot()).is_none() {
                tokio::time::sleep(LOOK).await;
            }
            self.look().await;
        }
    }

    /// What others are told about the store.
    pub(crate) fn view(&self) -> ArtifactStoreView {
        let snapshot = self.state.snapshot();
        ArtifactStoreView {
            name: self.store.name().to_owned(),
            is_bucket: self.store.folder().is_none(),
            probe: tree_of(&snapshot).1.unwrap_or_default(),
            trouble: self.trouble(&snapshot),
        }
    }

    /// Refuses to write into a store that is known not to be the installation's.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        self.trouble(&self.state.snapshot()).map_or(Ok(()), |why| Err(ApiError::other_artifact_store(why)))
    }

    /// Looks at the mark itself: before something is done that can't be undone.
    pub(crate) async fn check_now(&self) -> Result<(), String> {
        self.look().await;
        self.trouble(&self.state.snapshot()).map_or(Ok(()), Err)
    }

    fn trouble(&self, snapshot: &Snapshot) -> Option<String> {
        let tree = tree_of(snapshot);
        let checked = self.checked.lock();
        if checked.tree != tree {
            return Some(
                "the state was replaced, and whether the store is that of what is there now is being looked at"
                    .to_owned(),
            );
        }
        checked.standing.trouble().map(str::to_owned)
    }

    async fn look(&self) {
        let look = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        let snapshot = self.state.snapshot();
        let tree = tree_of(&snapshot);
        let found = match known(&snapshot) {
            Ok(Some(known)) => self.found(&known).await,
            Ok(None) => {
                Found::Other("the state knows no artifact store; a server that starts makes its own known".to_owned())
            }
            Err(error) => Found::Nothing(error),
        };
        let mut checked = self.checked.lock();
        let Some(next) = checked.next(look, tree, found) else { return };
        if checked.standing != next.standing {
            match next.standing.trouble() {
                Some(why) => tracing::error!(
                    store = self.store.name(),
                    why,
                    "nothing is written into the artifact store: it is not known to be the installation's"
                ),
                None => tracing::info!(store = self.store.name(), "the artifact store is the installation's"),
            }
        }
        self.matches.set(i64::from(next.standing == Standing::Right));
        *checked = next;
    }

    async fn found(&self, known: &SourceStore) -> Found {
        let store = self.store.name();
        match tokio::time::timeout(LIMIT, self.store.check_probe(&known.probe)).await {
            Ok(Ok(())) => Found::Mark,
            Ok(Err(ArtifactError::OtherStore { why, .. })) => Found::Other(format!(
                "{store}: {why}, the mark of the installation, whose store was called {}",
                known.name
            )),
            Ok(Err(error)) => Found::Nothing(error.to_string()),
            Err(_) => Found::Nothing(format!("{store} did not answer within {} s", LIMIT.as_secs())),
        }
    }
}

fn tree_of(snapshot: &Snapshot) -> Tree {
    let known = known(snapshot).ok().flatten();
    (snapshot.epoch(), known.map(|known| known.probe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_does_not_answer_is_no_other_store_unless_the_tree_is_another() {
        let (wrong, unknown) = (Standing::Wrong("w".to_owned()), Standing::Unknown("u".to_owned()));
        let (other, nothing) = (Found::Other("w".to_owned()), Found::Nothing("u".to_owned()));
        for before in [Standing::Right, wrong.clone(), unknown.clone()] {
            for is_same_tree in [true, false] {
                assert_eq!(before.next(is_same_tree, Found::Mark), Standing::Right);
                assert_eq!(before.next(is_same_tree, other.clone()), wrong);
            }
            assert_eq!(before.next(true, nothing.clone()), before);
            assert_eq!(before.next(false, nothing.clone()), unknown);
        }
        assert_eq!(Standing::Right.trouble(), None);
        assert_eq!((wrong.trouble(), unknown.trouble()), (Some("w"), Some("u")));
    }

    #[test]
    fn of_looks_that_cross_the_one_that_began_later_counts_if_it_has_learned_anything() {
        let tree = || (Epoch(uuid::Uuid::nil()), None);
        let begun = Checked { tree: tree(), standing: Standing::Right, look: 0 };
        let (other, nothing) = (|| Found::Other("w".to_owned()), || Found::Nothing("u".to_owned()));
        // The later one found the mark: what the earlier one has seen is over.
        let later = begun.next(2, tree(), Found::Mark).unwrap();
        assert!(later.next(1, tree(), other()).is_none());
        // The later one had no answer: what the earlier one has seen counts.
        let later = begun.next(2, tree(), nothing()).unwrap();
        assert_eq!(later.next(1, tree(), other()).unwrap().standing, Standing::Wrong("w".to_owned()));
        // It was about another tree: the earlier one says nothing about that.
        let another = (Epoch(uuid::Uuid::from_u128(1)), None);
        let later = begun.next(2, another, nothing()).unwrap();
        assert_eq!(later.standing, Standing::Unknown("u".to_owned()));
        assert!(later.next(1, tree(), Found::Mark).is_none());
    }
}
