//! What users can do. Each operation is one transaction: it checks, changes what the user may change, lets the controller
//! take the steps that follow from it at once, and keeps who did it and why. It happens whole or not at all, and a refusal
//! says what, why, what follows and what to do ([`OperationError`]).

mod action;
mod artifact;
mod error;
mod freeze;
mod pause;
mod push;
mod region;
mod rollback;
mod schema;
mod steer;
mod store;

use std::sync::Arc;

use tidegate_lifecycle::Registry;
use tidegate_state::{Attributes, Committed, Ref, State, Transaction, TransactionError};

pub use action::OperatorAction;
pub use error::OperationError;
pub use push::{Accepted, StartPush};
pub use rollback::RolledBackTo;
pub use store::NewStore;

use crate::controller::{apply, gather, next};
use crate::engine::file::{ENCODED_MAX, encode_name};
use crate::entities::{Push, PushName, Store};

/// The longest name of a store, a region or a push, in bytes. Paths take up to 256 bytes per id, and gates add to a name.
pub const NAME_BYTES_MAX: usize = 200;
/// The longest reason, comment or attribute that is kept, in bytes.
pub const TEXT_BYTES_MAX: usize = 4 * 1024;

/// The operations on one state.
#[derive(Clone)]
pub struct Operations {
    state: State,
    registry: Arc<Registry>,
    attributes: Attributes,
    beside: Option<Beside>,
}

/// What a caller writes in the transaction of each of its operations, once the operation itself has succeeded.
pub type Beside = Arc<dyn Fn(&mut Transaction) -> Result<(), TransactionError> + Send + Sync>;

impl std::fmt::Debug for Operations {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Operations").finish_non_exhaustive()
    }
}

impl Operations {
    /// Operations on this state, with the hooks that this build has.
    #[must_use]
    pub fn new(state: State, registry: Arc<Registry>) -> Self {
        Operations { state, registry, attributes: Attributes::new(), beside: None }
    }

    /// The same operations, whose transactions say this about themselves: who asked, in which request.
    #[must_use]
    pub fn with_attributes(&self, attributes: Attributes) -> Self {
        Operations { attributes, ..self.clone() }
    }

    /// The same operations, each of which also writes this: who asked for it, for instance. It happens with the operation
    /// or not at all.
    #[must_use]
    pub fn with_beside(&self, beside: Beside) -> Self {
        Operations { beside: Some(beside), ..self.clone() }
    }

    /// The state that they work on.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Transaction, &Registry) -> Result<T, OperationError> + Send + 'static,
    ) -> Result<T, OperationError> {
        Ok(self.commit(work).await?.value)
    }

    /// As [`Operations::write`], with the revision that it came to.
    async fn commit<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Transaction, &Registry) -> Result<T, OperationError> + Send + 'static,
    ) -> Result<Committed<T>, OperationError> {
        let registry = Arc::clone(&self.registry);
        let transaction = self.state.transaction().attributes(self.attributes.clone());
        let beside = self.beside.clone();
        let written = transaction.write(move |transaction| {
            let done = work(transaction, &registry)?;
            if let Some(beside) = &beside {
                beside(transaction)?;
            }
            Ok::<T, OperationError>(done)
        });
        Ok(written.await?)
    }
}

/// Lets the controller take every step that is due for a store, within this transaction.
pub(crate) fn step(transaction: &mut Transaction, registry: &Registry, store: &str) -> Result<(), OperationError> {
    if let Some(view) = gather(transaction, registry, store)? {
        let plan = next(&view, transaction.now());
        apply(transaction, store, plan)?;
    }
    Ok(())
}

fn store_of(transaction: &Transaction, name: &str) -> Result<(Ref<Store>, Store), OperationError> {
    let unknown = || OperationError::StoreUnknown { store: name.to_owned() };
    let store = Ref::<Store>::root(name).map_err(|_| unknown())?;
    let value = transaction.get(&store)?.ok_or_else(unknown)?;
    Ok((store, (*value).clone()))
}

/// A push by its id, whichever store it is of.
fn push_of(transaction: &Transaction, id: &str) -> Result<(String, Ref<Push>, Push), OperationError> {
    let unknown = || OperationError::PushUnknown { push: id.to_owned() };
    let name = Ref::<PushName>::root(id).map_err(|_| unknown())?;
    let name = transaction.get(&name)?.ok_or_else(unknown)?;
    let push =
        Ref::<Store>::root(name.store.clone()).and_then(|store| store.child::<Push>(id)).map_err(|_| unknown())?;
    let value = transaction.get(&push)?.ok_or_else(unknown)?;
    Ok((name.store.clone(), push, (*value).clone()))
}

fn check_name(what: &str, name: &str) -> Result<(), OperationError> {
    let why = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > NAME_BYTES_MAX {
        format!("it has {} bytes, and the limit is {NAME_BYTES_MAX}", name.len())
    } else if matches!(name, "." | "..") {
        "an address can't name it: `.` and `..` mean the folder and the one above it".to_owned()
    } else if name.chars().any(char::is_control) || name.trim() != name {
        "it has control characters, or begins or ends with a blank".to_owned()
    } else if name.chars().any(turns_text) {
        "it has characters that make text run the other way, so that it would not be read as it is".to_owned()
    } else {
        return Ok(());
    };
    Err(OperationError::Invalid { what: format!("the {what} {name:?}"), why })
}

/// Refuses the name of what has a folder on nodes and agents, if no folder can have it.
fn check_folder_name(what: &str, name: &str) -> Result<(), OperationError> {
    check_name(what, name)?;
    if encode_name(name).is_some() {
        return Ok(());
    }
    let why = format!(
        "as a folder's name it has over {ENCODED_MAX} letters: each byte that is no ASCII letter, digit, `-` or `_` takes three"
    );
    Err(OperationError::Invalid { what: format!("the {what} {name:?}"), why })
}

/// Embeddings, overrides and isolates of the direction in which text is read.
fn turns_text(letter: char) -> bool {
    matches!(letter, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

fn check_reason(reason: &str) -> Result<(), OperationError> {
    if reason.trim().is_empty() {
        return Err(OperationError::ReasonMissing);
    }
    if reason.len() > TEXT_BYTES_MAX {
        let why = format!("it has {} bytes, and the limit is {TEXT_BYTES_MAX}", reason.len());
        return Err(OperationError::Invalid { what: "the reason".to_owned(), why });
    }
    Ok(())
}

fn phase_word(push: &Push) -> &'static str {
    use crate::entities::{Phase, PushState};
    match &push.state {
        PushState::Queued => "queued",
        PushState::Running(Phase::Start) => "start",
        PushState::Running(Phase::Build) => "build",
        PushState::Running(Phase::Schema) => "schema",
        PushState::Running(Phase::Upload) => "upload",
        PushState::Running(Phase::Regions) => "rollout",
        PushState::Running(Phase::End) => "end",
        PushState::Running(Phase::GoingBack(_)) => "going back",
        PushState::Ended { .. } => "ended",
    }
}
