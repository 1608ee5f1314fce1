//! The fourteen functions of VIP-4, their scopes and what they may answer.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A moment in a push at which hooks are asked. Serialised under VIP-4's name in snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// A hook's setting is about to change; asked once per key and value of the update.
    ValidateHookConfig,
    /// A push is about to start.
    PreStartOfPushJob,
    /// A push has started.
    PostStartOfPushJob,
    /// A new schema is about to be registered, by a push or directly.
    PreSchemaRegistration,
    /// A new schema was registered.
    PostSchemaRegistration,
    /// The manifest is complete; a region is about to get the version.
    PreStoreVersionCreation,
    /// A region got the version and ingests it.
    PostStoreVersionCreation,
    /// A region's embedded clients are about to ingest the version.
    PreStartOfStoreVersionIngestionForDaVinci,
    /// A region's embedded clients ingest the version.
    PostStartOfStoreVersionIngestionForDaVinci,
    /// The region's first node holds the version; once per version and region, also where there was nothing to copy.
    PostStoreVersionLeaderReplication,
    /// A region is about to serve the version.
    PreStoreVersionSwap,
    /// A region serves the version; asked until all hooks proceed in one round (the bake).
    PostStoreVersionSwap,
    /// All regions are done; the push is about to end well.
    PreEndOfPushJob,
    /// The push has ended, in whatever way.
    PostEndOfPushJob,
}

/// What a function is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FunctionScope {
    /// Once per key and value of an update of settings.
    Update,
    /// Once per push (or per direct registration of a schema).
    Push,
    /// Once per push and region.
    Region,
}

/// What a function may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcomes {
    /// Nothing: the step has already happened.
    None,
    /// Proceed or Abort.
    Two,
    /// Proceed, Abort, Wait or Rollback.
    Four,
}

impl Function {
    /// All functions, in the order of a push.
    pub const ALL: [Function; 14] = [
        Function::ValidateHookConfig,
        Function::PreStartOfPushJob,
        Function::PostStartOfPushJob,
        Function::PreSchemaRegistration,
        Function::PostSchemaRegistration,
        Function::PreStoreVersionCreation,
        Function::PostStoreVersionCreation,
        Function::PreStartOfStoreVersionIngestionForDaVinci,
        Function::PostStartOfStoreVersionIngestionForDaVinci,
        Function::PostStoreVersionLeaderReplication,
        Function::PreStoreVersionSwap,
        Function::PostStoreVersionSwap,
        Function::PreEndOfPushJob,
        Function::PostEndOfPushJob,
    ];

    /// VIP-4's name in snake case, as serialised.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Function::ValidateHookConfig => "validate_hook_config",
            Function::PreStartOfPushJob => "pre_start_of_push_job",
            Function::PostStartOfPushJob => "post_start_of_push_job",
            Function::PreSchemaRegistration => "pre_schema_registration",
            Function::PostSchemaRegistration => "post_schema_registration",
            Function::PreStoreVersionCreation => "pre_store_version_creation",
            Function::PostStoreVersionCreation => "post_store_version_creation",
            Function::PreStartOfStoreVersionIngestionForDaVinci => "pre_start_of_store_version_ingestion_for_da_vinci",
            Function::PostStartOfStoreVersionIngestionForDaVinci => {
                "post_start_of_store_version_ingestion_for_da_vinci"
            }
            Function::PostStoreVersionLeaderReplication => "post_store_version_leader_replication",
            Function::PreStoreVersionSwap => "pre_store_version_swap",
            Function::PostStoreVersionSwap => "post_store_version_swap",
            Function::PreEndOfPushJob => "pre_end_of_push_job",
            Function::PostEndOfPushJob => "post_end_of_push_job",
        }
    }

    /// The name for people: `pre-swap`.
    #[must_use]
    pub const fn short_name(self) -> &'static str {
        match self {
            Function::ValidateHookConfig => "validate",
            Function::PreStartOfPushJob => "pre-start",
            Function::PostStartOfPushJob => "post-start",
            Function::PreSchemaRegistration => "pre-schema",
            Function::PostSchemaRegistration => "post-schema",
            Function::PreStoreVersionCreation => "pre-creation",
            Function::PostStoreVersionCreation => "post-creation",
            Function::PreStartOfStoreVersionIngestionForDaVinci => "pre-embedded",
            Function::PostStartOfStoreVersionIngestionForDaVinci => "post-embedded",
            Function::PostStoreVersionLeaderReplication => "replication",
            Function::PreStoreVersionSwap => "pre-swap",
            Function::PostStoreVersionSwap => "post-swap",
            Function::PreEndOfPushJob => "pre-end",
            Function::PostEndOfPushJob => "post-end",
        }
    }

    /// The function with this [short name](Function::short_name) or [name](Function::name).
    #[must_use]
    pub fn from_short_name(text: &str) -> Option<Function> {
        Function::ALL.into_iter().find(|function| function.short_name() == text || function.name() == text)
    }

    /// What it is asked for.
    #[must_use]
    pub const fn scope(self) -> FunctionScope {
        match self {
            Function::ValidateHookConfig => FunctionScope::Update,
            Function::PreStartOfPushJob
            | Function::PostStartOfPushJob
            | Function::PreSchemaRegistration
            | Function::PostSchemaRegistration
            | Function::PreEndOfPushJob
            | Function::PostEndOfPushJob => FunctionScope::Push,
            Function::PreStoreVersionCreation
            | Function::PostStoreVersionCreation
            | Function::PreStartOfStoreVersionIngestionForDaVinci
            | Function::PostStartOfStoreVersionIngestionForDaVinci
            | Function::PostStoreVersionLeaderReplication
            | Function::PreStoreVersionSwap
            | Function::PostStoreVersionSwap => FunctionScope::Region,
        }
    }

    /// What it may answer.
    #[must_use]
    pub const fn outcomes(self) -> Outcomes {
        match self {
            Function::ValidateHookConfig | Function::PreStartOfPushJob | Function::PreSchemaRegistration => {
                Outcomes::Two
            }
            Function::PreStoreVersionCreation
            | Function::PreStartOfStoreVersionIngestionForDaVinci
            | Function::PostStartOfStoreVersionIngestionForDaVinci
            | Function::PreStoreVersionSwap
            | Function::PostStoreVersionSwap
            | Function::PreEndOfPushJob => Outcomes::Four,
            Function::PostStartOfPushJob
            | Function::PostSchemaRegistration
            | Function::PostStoreVersionCreation
            | Function::PostStoreVersionLeaderReplication
            | Function::PostEndOfPushJob => Outcomes::None,
        }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.short_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_is_serialised_and_both_names_lead_back() {
        for function in Function::ALL {
            assert_eq!(serde_json::to_value(function).unwrap(), function.name());
            assert_eq!(Function::from_short_name(function.short_name()), Some(function));
            assert_eq!(Function::from_short_name(function.name()), Some(function));
        }
        assert_eq!(Function::from_short_name("swap"), None);
    }
}
