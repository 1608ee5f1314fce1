//! The artifact store that this server was given, whether it is the installation's, and what is removed from it.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_api::ArtifactStoreView;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_dataset::location::StorePlan;
use tidegate_rollout::ArtifactRemover;
use tidegate_rollout::entities::{Push, SourceStore};
use tidegate_state::{Ref, State, TransactionError, WriteError};

use crate::server::{Options, StartError};
use crate::uploads::Uploads;

/// What is in force about the artifact store.
pub(crate) fn plan(options: &Options) -> Result<StorePlan, StartError> {
    let mut settings = options.config.artifacts.clone();
    if let Some(url) = &options.artifacts {
        settings.url = Some(url.clone());
    }
    Ok(StorePlan::new(&settings, &options.data.join("artifacts"), &options.environment)?)
}

/// Checks that the store is the one that all servers of the installation use; the first of them leaves a mark in it.
/// What is known about it then.
///
/// # Errors
/// [`StartError::OtherStore`] if it is another one, [`StartError::Artifacts`] if it can't be told.
pub(crate) async fn agree(state: &State, store: &ArtifactStore) -> Result<SourceStore, StartError> {
    let failed = |source: ArtifactError| StartError::Artifacts { store: store.name().to_owned(), source };
    let prepare = |error: String| StartError::Prepare(error);
    let place = Ref::<SourceStore>::root(SourceStore::ID).map_err(|error| prepare(error.to_string()))?;
    if let Some(known) = state.snapshot().get_arc(&place).map_err(|error| prepare(error.to_string()))? {
        check(store, &known).await?;
        return Ok(SourceStore::clone(&known));
    }
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
    if known.probe != token {
        // Another server was first; its mark counts.
        if let Err(error) = store.remove_probe(&token).await {
            tracing::debug!(%error, "a mark that does not count could not be removed");
        }
        check(store, &known).await?;
    }
    Ok(known)
}

async fn check(store: &ArtifactStore, known: &SourceStore) -> Result<(), StartError> {
    store.check_probe(&known.probe).await.map_err(|error| match error {
        ArtifactError::OtherStore { store, why } => StartError::OtherStore { store, why, known: known.name.clone() },
        source => StartError::Artifacts { store: store.name().to_owned(), source },
    })
}

/// What others are told about the store.
pub(crate) fn view(store: &ArtifactStore, known: &SourceStore) -> ArtifactStoreView {
    ArtifactStoreView { name: store.name().to_owned(), is_bucket: store.folder().is_none(), probe: known.probe.clone() }
}

/// Removes what pushes have sent that no longer take parts.
pub(crate) async fn sweep_uploads(state: &State, uploads: &Uploads) -> Result<(), StartError> {
    let taking = async || {
        // Other servers start pushes too: what they have committed by now has to be seen.
        state.flush().await.map_err(|error| error.to_string())?;
        let pushes = state
            .snapshot()
            .all::<Push>()
            .filter_map(Result::ok)
            .filter(|(_, push)| push.needs_client())
            .map(|(push, _)| push.id())
            .collect();
        Ok(pushes)
    };
    uploads
        .sweep(taking)
        .await
        .map_err(|error| StartError::Prepare(format!("what is left of uploads can't be removed: {error}")))
}

/// Removes bytes that nothing refers to any more.
pub(crate) struct Remover {
    artifacts: ArtifactStore,
    uploads: Arc<Uploads>,
}

impl Remover {
    pub(crate) fn new(artifacts: ArtifactStore, uploads: Arc<Uploads>) -> Self {
        Self { artifacts, uploads }
    }
}

#[async_trait]
impl ArtifactRemover for Remover {
    async fn remove_artifact(&self, artifact: &str, _manifest_sha256: &str) -> Result<(), String> {
        self.artifacts.delete(artifact).await.map_err(|error| error.to_string())
    }

    async fn remove_upload(&self, _store: &str, push: &str) -> Result<(), String> {
        self.uploads.remove(push).await
    }
}
