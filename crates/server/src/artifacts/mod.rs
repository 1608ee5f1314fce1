//! The artifact store that this server was given, whether it is the installation's, and what is removed from it.
//!
//! | what | module |
//! |---|---|
//! | the mark that tells it from others, at the start | `mark` |
//! | whether it still bears the mark, as long as the server runs | `standing` |
//! | a store that lost its mark, made the installation's by an operator | `adoption` |

mod adoption;
mod mark;
mod standing;

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_dataset::location::StorePlan;
use tidegate_rollout::ArtifactRemover;
use tidegate_rollout::entities::Push;
use tidegate_state::State;

pub use adoption::{Adoption, MissingVersion};
pub(crate) use mark::agree;
pub(crate) use standing::MarkWatch;

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
    mark: Arc<MarkWatch>,
}

impl Remover {
    pub(crate) fn new(artifacts: ArtifactStore, uploads: Arc<Uploads>, mark: Arc<MarkWatch>) -> Self {
        Self { artifacts, uploads, mark }
    }
}

#[async_trait]
impl ArtifactRemover for Remover {
    async fn remove_artifact(&self, artifact: &str, _manifest_sha256: &str) -> Result<(), String> {
        // What nobody refers to here may be in use in the installation whose store this is.
        self.mark.check_now().await?;
        self.artifacts.delete(artifact).await.map_err(|error| error.to_string())
    }

    async fn remove_upload(&self, _store: &str, push: &str) -> Result<(), String> {
        self.mark.check_now().await?;
        self.uploads.remove(push).await
    }
}
