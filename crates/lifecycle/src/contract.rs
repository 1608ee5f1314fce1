//! The trait that a hook implements: VIP-4's fourteen functions.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use async_trait::async_trait;
use tidegate_state::Timestamp;

use crate::context::Context;
use crate::function::Function;
use crate::outcome::{
    Answer, AnswerDocument, StoreLifecycleEventOutcome as Two, StoreVersionLifecycleEventOutcome as Four,
};

/// A lifecycle hook. Every function proceeds, or does nothing, unless it is written otherwise.
///
/// A function may be called more than once for the same attempt: when a server dies, another one calls again, with the
/// same [`Context::idempotency_key`] and a higher [`Context::fencing_token`]. It is cut at its timeout by dropping its
/// future; one that blocks its thread can't be cut, and costs the server a thread until it returns.
#[async_trait]
pub trait StoreLifecycleHooks: Send + Sync {
    /// Says whether a setting of this hook is acceptable, before it comes into force. Asked once per key and value of an
    /// update; `mode` and `on_failure` are checked by the framework.
    async fn validate_hook_config(&self, _context: &ValidationContext) -> Result<Answer<Two>, HookError> {
        Ok(Two::Proceed.into())
    }
    /// A push is about to start.
    async fn pre_start_of_push_job(&self, _context: &Context) -> Result<Answer<Two>, HookError> {
        Ok(Two::Proceed.into())
    }
    /// A push has started.
    async fn post_start_of_push_job(&self, _context: &Context) -> Result<(), HookError> {
        Ok(())
    }
    /// A schema is about to be registered.
    async fn pre_schema_registration(&self, _context: &Context) -> Result<Answer<Two>, HookError> {
        Ok(Two::Proceed.into())
    }
    /// A schema was registered.
    async fn post_schema_registration(&self, _context: &Context) -> Result<(), HookError> {
        Ok(())
    }
    /// A region is about to get the version; its statistics are known, and nothing has been copied.
    async fn pre_store_version_creation(&self, _context: &Context) -> Result<Answer<Four>, HookError> {
        Ok(Four::Proceed.into())
    }
    /// A region got the version.
    async fn post_store_version_creation(&self, _context: &Context) -> Result<(), HookError> {
        Ok(())
    }
    /// A region's embedded clients are about to ingest the version. They swap on their own once they have, unless the
    /// store says otherwise, so what holds a swap should hold this too.
    async fn pre_start_of_store_version_ingestion_for_da_vinci(
        &self,
        _context: &Context,
    ) -> Result<Answer<Four>, HookError> {
        Ok(Four::Proceed.into())
    }
    /// A region's embedded clients ingest the version.
    async fn post_start_of_store_version_ingestion_for_da_vinci(
        &self,
        _context: &Context,
    ) -> Result<Answer<Four>, HookError> {
        Ok(Four::Proceed.into())
    }
    /// The region's first node holds the version.
    async fn post_store_version_leader_replication(&self, _context: &Context) -> Result<(), HookError> {
        Ok(())
    }
    /// A region is about to serve the version.
    async fn pre_store_version_swap(&self, _context: &Context) -> Result<Answer<Four>, HookError> {
        Ok(Four::Proceed.into())
    }
    /// A region serves the version. Wait lets it bake.
    async fn post_store_version_swap(&self, _context: &Context) -> Result<Answer<Four>, HookError> {
        Ok(Four::Proceed.into())
    }
    /// All regions are done; the push is about to end well.
    async fn pre_end_of_push_job(&self, _context: &Context) -> Result<Answer<Four>, HookError> {
        Ok(Four::Proceed.into())
    }
    /// The push has ended, in whatever way.
    async fn post_end_of_push_job(&self, _context: &Context) -> Result<(), HookError> {
        Ok(())
    }
}

/// Why a hook could not answer. It counts as the hook's `on_failure`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HookError {
    /// What went wrong, for people.
    pub message: String,
    /// When to ask again, where the failure counts as Wait; after the wait interval where it is not given.
    pub ask_again_at: Option<Timestamp>,
}

impl HookError {
    /// A failure with this text.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        HookError { message: message.into(), ask_again_at: None }
    }
}

impl From<Box<dyn Error + Send + Sync>> for HookError {
    fn from(error: Box<dyn Error + Send + Sync>) -> Self {
        HookError::new(error.to_string())
    }
}

/// What a hook is told when one of its settings is about to change.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidationContext {
    /// The store whose override is updated; none for the published configuration.
    pub store: Option<String>,
    /// The key, clipped: `delay`.
    pub key: String,
    /// The new value.
    pub value: String,
    /// This hook's settings as they would be with the whole update in force.
    pub config: BTreeMap<String, String>,
    /// The regions there are; none where that is not known yet.
    pub regions: Option<BTreeSet<String>>,
    /// Now.
    pub now: Timestamp,
}

/// Calls the function that the context names. Functions without outcomes answer Proceed.
pub(crate) async fn call(hook: &dyn StoreLifecycleHooks, context: &Context) -> Result<AnswerDocument, HookError> {
    Ok(match context.function {
        Function::ValidateHookConfig => {
            return Err(HookError::new("validate_hook_config is asked by the validation of settings alone"));
        }
        Function::PreStartOfPushJob => hook.pre_start_of_push_job(context).await?.into(),
        Function::PreSchemaRegistration => hook.pre_schema_registration(context).await?.into(),
        Function::PreStoreVersionCreation => hook.pre_store_version_creation(context).await?.into(),
        Function::PreStartOfStoreVersionIngestionForDaVinci => {
            hook.pre_start_of_store_version_ingestion_for_da_vinci(context).await?.into()
        }
        Function::PostStartOfStoreVersionIngestionForDaVinci => {
            hook.post_start_of_store_version_ingestion_for_da_vinci(context).await?.into()
        }
        Function::PreStoreVersionSwap => hook.pre_store_version_swap(context).await?.into(),
        Function::PostStoreVersionSwap => hook.post_store_version_swap(context).await?.into(),
        Function::PreEndOfPushJob => hook.pre_end_of_push_job(context).await?.into(),
        Function::PostStartOfPushJob => nothing(hook.post_start_of_push_job(context).await?),
        Function::PostSchemaRegistration => nothing(hook.post_schema_registration(context).await?),
        Function::PostStoreVersionCreation => nothing(hook.post_store_version_creation(context).await?),
        Function::PostStoreVersionLeaderReplication => {
            nothing(hook.post_store_version_leader_replication(context).await?)
        }
        Function::PostEndOfPushJob => nothing(hook.post_end_of_push_job(context).await?),
    })
}

fn nothing((): ()) -> AnswerDocument {
    AnswerDocument::PROCEED
}
