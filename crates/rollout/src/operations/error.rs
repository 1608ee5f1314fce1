//! Why an operation was refused, in the words that people get.

use tidegate_api::ErrorBody;
use tidegate_api::error::code;
use tidegate_lifecycle::{PauseError, Refusal};
use tidegate_state::{TransactionError, WriteError};

use crate::entities::{OnNewPush, PushStatus};

/// Why an operation was refused. Nothing was changed then.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OperationError {
    /// There is no such store.
    #[error("there is no store {store:?}")]
    StoreUnknown {
        /// The name that was asked for.
        store: String,
    },
    /// There is a store of this name already.
    #[error("store {store:?} exists already")]
    StoreExists {
        /// The name.
        store: String,
    },
    /// There is no such region.
    #[error("there is no region {region:?}")]
    RegionUnknown {
        /// The name that was asked for.
        region: String,
        /// The regions there are.
        known: Vec<String>,
    },
    /// There is no such push.
    #[error("there is no push {push:?}")]
    PushUnknown {
        /// The id that was asked for.
        push: String,
    },
    /// Another push of the store runs.
    #[error("push {running} of store {store} is {} ({phase})", status.word())]
    PushRunning {
        /// The store.
        store: String,
        /// The push that runs.
        running: String,
        /// Its status.
        status: PushStatus,
        /// What it is doing.
        phase: String,
        /// What the store says about pushes that come meanwhile.
        on_new_push: OnNewPush,
    },
    /// The id is that of a push of another store.
    #[error("push id {push:?} belongs to a push of store {store:?}")]
    PushIdTaken {
        /// The id.
        push: String,
        /// The store that has it.
        store: String,
    },
    /// The id is that of a push with other input.
    #[error("push {push:?} has other input: {first}, not {second}")]
    InputDiffers {
        /// The id.
        push: String,
        /// The input digest that it started with.
        first: String,
        /// The one that comes now.
        second: String,
    },
    /// The push has ended.
    #[error("push {push} has already ended as {}: {reason}", status.word())]
    PushEnded {
        /// The push.
        push: String,
        /// How it ended.
        status: PushStatus,
        /// Why.
        reason: String,
    },
    /// The push is going back, and will end by itself.
    #[error("push {push} is going back already")]
    GoingBack {
        /// The push.
        push: String,
    },
    /// The push is not at the step that this is for.
    #[error("push {push} is at {phase}, and this is for {needed}")]
    WrongPhase {
        /// The push.
        push: String,
        /// Where it is.
        phase: String,
        /// Where it would have to be.
        needed: &'static str,
        /// Whether it may still get there.
        later: bool,
    },
    /// A value is not allowed.
    #[error("{what}: {why}")]
    Invalid {
        /// What was refused.
        what: String,
        /// Why, and what is allowed.
        why: String,
    },
    /// The manifest contradicts the store or the push.
    #[error("the manifest of push {push} is refused: {why}")]
    ManifestRefused {
        /// The push.
        push: String,
        /// Why.
        why: String,
    },
    /// The schema does not fit the store's earlier ones.
    #[error("the schema does not fit store {store}: {}", differences.join("; "))]
    SchemaIncompatible {
        /// The store.
        store: String,
        /// What differs.
        differences: Vec<String>,
    },
    /// A hook said no to a schema.
    #[error("{hook} said Abort: {reason}")]
    SchemaRefused {
        /// The store.
        store: String,
        /// The hook.
        hook: String,
        /// Why.
        reason: String,
    },
    /// A hook said no.
    #[error("{0}")]
    HookRefused(Refusal),
    /// All regions are marked unavailable, or there is none.
    #[error("no region takes part: {}", unavailable.join("; "))]
    NoRegion {
        /// Each region and why it is left out.
        unavailable: Vec<String>,
    },
    /// There is nothing to go back to.
    #[error("store {store} can't go back: {why}")]
    NoWayBack {
        /// The store.
        store: String,
        /// Why.
        why: String,
    },
    /// A region has been told to go back and does not serve what it was told yet.
    #[error("region {region} is told to serve version {told} and serves version {serving} still")]
    AlreadyGoingBack {
        /// The store.
        store: String,
        /// The region, the first of them.
        region: String,
        /// The version that it goes back to.
        told: u64,
        /// The version that it serves.
        serving: u64,
    },
    /// The version was rolled back and is never a target again.
    #[error("version {version} of store {store} was rolled back")]
    RolledBack {
        /// The store.
        store: String,
        /// The version.
        version: u64,
    },
    /// The data of a version is not there.
    #[error("the data of version {version} of store {store} is not there: {why}")]
    DataGone {
        /// The store.
        store: String,
        /// The version.
        version: u64,
        /// Gone, or never complete.
        why: String,
    },
    /// The bytes are being removed at this moment.
    #[error("what is left of {what} is being removed")]
    BeingRemoved {
        /// The artifact or the push.
        what: String,
    },
    /// There is no such gate, or it is no gate that can be opened.
    #[error("{gate:?} is no gate that can be opened: {why}")]
    GateUnknown {
        /// What was asked for.
        gate: String,
        /// Why not, and which there are.
        why: String,
    },
    /// A gate is overridden, and not the data.
    #[error("region {region} does not hold version {version} on enough nodes: {why}")]
    NotIngested {
        /// The region.
        region: String,
        /// The version.
        version: u64,
        /// Which nodes, how many are enough.
        why: String,
    },
    /// A reason is needed, for the record.
    #[error("a reason is needed")]
    ReasonMissing,
    /// There is no such freeze.
    #[error("there is no freeze {freeze:?}")]
    FreezeUnknown {
        /// The id that was asked for.
        freeze: String,
    },
    /// There is no such pause.
    #[error("there is no pause {pause:?}")]
    PauseUnknown {
        /// The id that was asked for.
        pause: String,
    },
    /// A pause was not answered.
    #[error("{0}")]
    Pause(#[from] PauseError),
    /// The state could not be read or written as it should.
    #[error("{0}")]
    State(#[from] TransactionError),
    /// The state can't be written at the moment. It is certain that nothing was.
    #[error("{0}")]
    Unavailable(String),
    /// The database was put back to an older state, and nobody has confirmed it. Nothing was written.
    #[error("{0}")]
    SetBack(String),
    /// The answer to a write was lost: it may have taken place.
    #[error("{0}")]
    Unknown(String),
    /// A fault of the machinery.
    #[error("{0}")]
    Fault(String),
}

impl From<WriteError<OperationError>> for OperationError {
    fn from(error: WriteError<OperationError>) -> Self {
        match error {
            WriteError::Rejected(error) => error,
            set_back @ WriteError::SetBack { .. } => OperationError::SetBack(set_back.to_string()),
            unknown @ WriteError::Unknown { .. } => OperationError::Unknown(unknown.to_string()),
            retryable @ (WriteError::Unavailable { .. } | WriteError::Closed) => {
                OperationError::Unavailable(retryable.to_string())
            }
            other => OperationError::Fault(other.to_string()),
        }
    }
}

impl OperationError {
    /// Whether the same request may succeed later without anyone's help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::Unknown(_) | Self::BeingRemoved { .. } | Self::WrongPhase { later: true, .. }
        )
    }

    /// One of [`tidegate_api::error::code`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::StoreUnknown { .. } => code::STORE_UNKNOWN,
            Self::StoreExists { .. } => code::STORE_EXISTS,
            Self::RegionUnknown { .. } => code::REGION_UNKNOWN,
            Self::PushUnknown { .. } => code::PUSH_UNKNOWN,
            Self::PushRunning { .. } => code::PUSH_RUNNING,
            Self::PushIdTaken { .. } | Self::InputDiffers { .. } => code::PUSH_ID_TAKEN,
            Self::PushEnded { .. } => code::PUSH_ENDED,
            Self::WrongPhase { .. } | Self::GoingBack { .. } => code::WRONG_PHASE,
            Self::Invalid { .. } | Self::ReasonMissing => code::INVALID,
            Self::ManifestRefused { .. } => code::MANIFEST_REFUSED,
            Self::SchemaIncompatible { .. } => code::SCHEMA_INCOMPATIBLE,
            Self::HookRefused(_) | Self::SchemaRefused { .. } => code::HOOK_REFUSED,
            Self::BeingRemoved { .. } | Self::AlreadyGoingBack { .. } => code::CONFLICT,
            Self::NoRegion { .. }
            | Self::NoWayBack { .. }
            | Self::RolledBack { .. }
            | Self::DataGone { .. }
            | Self::GateUnknown { .. }
            | Self::NotIngested { .. }
            | Self::FreezeUnknown { .. }
            | Self::PauseUnknown { .. }
            | Self::Pause(_) => code::REFUSED,
            Self::SetBack(_) => code::SET_BACK,
            Self::Unavailable(_) | Self::Unknown(_) => code::UNAVAILABLE,
            Self::State(_) | Self::Fault(_) => code::INTERNAL,
        }
    }

    /// What, why, what follows and what to do, as the API says it.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        if let Self::HookRefused(refusal) = self {
            return ErrorBody::new(
                self.code(),
                &refusal.what,
                &refusal.why,
                &refusal.consequences,
                &refusal.countermeasures,
            );
        }
        if let Self::SetBack(why) = self {
            return ErrorBody::set_back("The state takes no writes.", why);
        }
        let (what, countermeasures) = self.what_to_do();
        ErrorBody::new(self.code(), what, self.to_string(), self.consequences(), countermeasures)
            .with_retryable(self.is_retryable())
            .with_subjects(self.subjects())
    }

    fn subjects(&self) -> Vec<String> {
        match self {
            Self::StoreUnknown { store } | Self::StoreExists { store } | Self::NoWayBack { store, .. } => {
                vec![store.clone()]
            }
            Self::AlreadyGoingBack { store, region, .. } => vec![store.clone(), region.clone()],
            Self::PushRunning { running, .. } => vec![running.clone()],
            Self::PushUnknown { push } | Self::PushEnded { push, .. } | Self::GoingBack { push } => vec![push.clone()],
            Self::RegionUnknown { region, .. } | Self::NotIngested { region, .. } => vec![region.clone()],
            _ => Vec::new(),
        }
    }

    fn consequences(&self) -> &'static str {
        match self {
            Self::PushEnded { .. } => "Nothing was changed: an end is final.",
            Self::GoingBack { .. } => "Nothing was changed; the push ends by itself when every region is back.",
            Self::AlreadyGoingBack { .. } => "Nothing was changed; the rollback goes on.",
            Self::Unavailable(_) => "Nothing was written; regions go on serving.",
            Self::Unknown(_) => "It is not known whether it was written; regions go on serving.",
            _ => "Nothing was changed.",
        }
    }

    fn what_to_do(&self) -> (String, String) {
        let text = |what: &str, to_do: String| (what.to_owned(), to_do);
        match self {
            Self::StoreUnknown { .. } => {
                text("The store was not found", "List the stores (`tidegate store list`), or create it.".into())
            }
            Self::StoreExists { .. } => text("The store was not created", "Choose another name.".into()),
            Self::RegionUnknown { known, .. } => {
                text("The region was not found", format!("Use one of: {}.", known.join(", ")))
            }
            Self::PushUnknown { .. } => {
                text("The push was not found", "List the store's pushes (`tidegate push list`).".into())
            }
            Self::PushRunning { running, on_new_push, .. } => text(
                "The request was refused",
                match on_new_push {
                    OnNewPush::Refuse => format!(
                        "Wait until {running} ends, or kill it (`tidegate push kill {running}`). With `on_new_push = \
                         queue` a new push would wait its turn; with `supersede` it would end {running}."
                    ),
                    OnNewPush::Queue | OnNewPush::Supersede => {
                        format!("Wait until {running} ends, or kill it (`tidegate push kill {running}`).")
                    }
                },
            ),
            Self::PushIdTaken { store, .. } => {
                text("The push was not started", format!("Choose another id, or push to store {store}."))
            }
            Self::InputDiffers { .. } => text("The push was not started", "Choose another id for other input.".into()),
            Self::PushEnded { .. } => text("The request was refused", "Start a new push with a new id.".into()),
            Self::GoingBack { .. } => text("The request was refused", "Wait until it has ended.".into()),
            Self::WrongPhase { later: true, .. } => text("Not yet", "Try again in a moment.".into()),
            Self::WrongPhase { .. } => text("The request was refused", "Look at the push's status.".into()),
            Self::Invalid { .. } => text("A value was refused", "Correct it and try again.".into()),
            Self::ManifestRefused { .. } => text(
                "The version was not completed",
                "Build it again with a client of this release; the push goes on.".into(),
            ),
            Self::SchemaIncompatible { .. } => text(
                "The schema was not registered",
                "Keep the earlier fields and types, or set the store's schema mode to `any`.".into(),
            ),
            Self::SchemaRefused { store, .. } => (
                format!("The schema was not registered for store {store}"),
                "Register one that the hook lets pass, or change the hook's settings for the store.".to_owned(),
            ),
            Self::HookRefused(refusal) => (refusal.what.clone(), refusal.countermeasures.clone()),
            Self::NoRegion { .. } => {
                text("The push was not started", "Mark a region available (`tidegate region mark`), or add one.".into())
            }
            Self::NoWayBack { .. } => text("Nothing was rolled back", "Push good data instead.".into()),
            Self::AlreadyGoingBack { store, region, .. } => (
                format!("Store `{store}` is going back already"),
                format!(
                    "Wait until region {region} is there (`tidegate region list`). If it does not come back, say so \
                     (`tidegate region mark {region} --unavailable --reason TEXT`): it is not waited for then, and follows \
                     once it is available again. To go back further at once, name the version with --to."
                ),
            ),
            Self::RolledBack { store, version } => text(
                "Nothing was rolled back",
                format!("Release its data as a new version: `tidegate push {store} --from-version {version}`."),
            ),
            Self::DataGone { .. } => text("The push was not started", "Push the data again.".into()),
            Self::BeingRemoved { .. } => text("Not yet", "Try again in a moment.".into()),
            Self::GateUnknown { .. } => {
                text("No gate was opened", "Look at the push's gates (`tidegate push explain`).".into())
            }
            Self::NotIngested { .. } => text(
                "The gate was not opened",
                "A gate can be overridden, missing data can't: wait until enough nodes hold the version.".into(),
            ),
            Self::ReasonMissing => text("The request was refused", "Say why (`--reason`).".into()),
            Self::FreezeUnknown { .. } => text("No freeze was lifted", "List the freezes.".into()),
            Self::PauseUnknown { .. } => text("No pause was answered", "List the pauses.".into()),
            Self::Pause(_) => text("The pause was not answered", "See the reason.".into()),
            Self::State(_) | Self::Fault(_) => {
                text("The request failed", "See the server's log; `tidegate doctor` looks for damage.".into())
            }
            Self::Unavailable(_) => text(
                "The state can't be written now",
                "Where the disk is full, free room on it; else try again in a moment.".into(),
            ),
            Self::SetBack(_) => text("The state takes no writes", "See the server's /readyz.".into()),
            Self::Unknown(_) => {
                text("The state may not have been written", "Look how things stand before it is repeated.".into())
            }
        }
    }
}
