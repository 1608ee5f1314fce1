//! Whether the artifact store is the one that all servers of the installation use: a mark in it says so, whose token is in the
//! state tree. The first server leaves it.

use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_rollout::entities::SourceStore;
use tidegate_state::{Ref, Snapshot, State, TransactionError, WriteError};

use super::adoption::{self, Adoption};
use crate::server::StartError;

/// Where the tree keeps what it knows about the installation's artifact store.
pub(super) fn place() -> Result<Ref<SourceStore>, String> {
    Ref::root(SourceStore::ID).map_err(|error| error.to_string())
}

/// What the tree knows about the installation's artifact store.
pub(super) fn known(snapshot: &Snapshot) -> Result<Option<SourceStore>, String> {
    let known = snapshot.get(&place()?).map_err(|error| error.to_string())?;
    Ok(known.cloned())
}

/// Checks that the store is the one that all servers of the installation use; the first of them leaves a mark in it. If
/// `adopts`, a store without any mark is made the installation's; what that came to.
///
/// # Errors
/// [`StartError::OtherStore`] if it is another one, [`StartError::Artifacts`] if it can't be told,
/// [`StartError::AnothersStore`] if it is to be adopted and bears another mark.
pub(crate) async fn agree(state: &State, store: &ArtifactStore, adopts: bool) -> Result<Option<Adoption>, StartError> {
    if let Some(known) = known(&state.snapshot()).map_err(StartError::Prepare)? {
        return match check(store, &known).await {
            Err(StartError::OtherStore { .. }) if adopts => adoption::adopt(state, store, &known).await.map(Some),
            checked => {
                if adopts && checked.is_ok() {
                    tracing::warn!(
                        store = store.name(),
                        "the artifact store bears the installation's mark: there is nothing to adopt, and no need to say so"
                    );
                }
                checked.map(|()| None)
            }
        };
    }
    leave_first(state, store).await.map(|()| None)
}

async fn leave_first(state: &State, store: &ArtifactStore) -> Result<(), StartError> {
    let failed = |source: ArtifactError| StartError::Artifacts { store: store.name().to_owned(), source };
    let prepare = |error: String| StartError::Prepare(error);
    let place = place().map_err(prepare)?;
    // The mark comes first: whoever finds the token in the tree has to find the mark in the store.
    let token = uuid::Uuid::new_v4().simple().to_string();
    store.put_probe(&token).await.map_err(failed)?;
    store.check_probe(&token).await.map_err(failed)?;
    let (mark, name) = (token.clone(), store.name().to_owned());
    let written = state
        .write(move |transaction| -> Result<SourceStore, TransactionError> {
            if let Some(known) = transaction.get(&place)? {
                return Ok(SourceStore::clone(&known));
            }
            let first = SourceStore { probe: mark.clone(), name: name.clone(), since: transaction.now() };
            transaction.create(&place, first.clone())?;
            Ok(first)
        })
        .await;
    let known = written.map_err(|error: WriteError<TransactionError>| prepare(error.to_string()))?.value;
    if known.probe == token {
        return Ok(());
    }
    // Another server was first; its mark counts.
    if let Err(error) = store.remove_probe(&token).await {
        tracing::debug!(%error, "a mark that does not count could not be removed");
    }
    check(store, &known).await
}

async fn check(store: &ArtifactStore, known: &SourceStore) -> Result<(), StartError> {
    store.check_probe(&known.probe).await.map_err(|error| match error {
        ArtifactError::OtherStore { store, why } => StartError::OtherStore { store, why, known: known.name.clone() },
        source => StartError::Artifacts { store: store.name().to_owned(), source },
    })
}
