//! A state's handle on its cluster hooks: registering, handing back, and the tasks behind.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::owner::{Declared, Event, Order, Owner, forward};
use super::registration::{Decision, RegisterError, Registration, RegistrationEntity, decide};
use super::run::ClusterHook;
use crate::core::Core;
use crate::driver::{DriverError, HookNumber, RequestId};
use crate::entity::Ref;
use crate::error::WriteError;
use crate::revision::SubmissionId;
use crate::state::{State, WeakState};
use crate::transaction::{Transaction, TransactionError};

/// How many applied items wait for the owner.
const INTAKE_MAX: usize = 2_048;
/// How much longer than its limit a drain is waited for.
const DRAIN_SLACK: Duration = Duration::from_secs(10);

/// The cluster hooks of one state.
pub(crate) struct Runtime {
    core: Arc<Core>,
    state: WeakState,
    running: Mutex<Option<Running>>,
    /// Set before the owner is told to end: none is started from then on. Looked at under the lock of `running`.
    closed: AtomicBool,
    names: Arc<Mutex<HashSet<String>>>,
}

struct Running {
    sender: mpsc::UnboundedSender<Event>,
    owner: JoinHandle<()>,
    forward: JoinHandle<()>,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Runtime {
    pub(crate) fn new(core: Arc<Core>, state: WeakState) -> Runtime {
        Runtime { core, state, running: Mutex::new(None), closed: AtomicBool::new(false), names: Arc::default() }
    }

    /// Starts the owner with the first hook; a server without hooks has none.
    async fn owner(&self) -> Result<mpsc::UnboundedSender<Event>, RegisterError> {
        if let Some(running) = &*self.running.lock() {
            return Ok(running.sender.clone());
        }
        let unavailable =
            |error: DriverError| RegisterError::Write { reason: error.to_string(), retryable: error.is_retryable() };
        let installation = self.core.driver.meta().await.map_err(unavailable)?.installation;
        let mut running = self.running.lock();
        // An owner that comes after the drain would lease slots, and run what can't be committed any more.
        if self.closed.load(Ordering::SeqCst) {
            return Err(RegisterError::Closed);
        }
        if let Some(running) = &*running {
            return Ok(running.sender.clone());
        }
        let feed = self.core.feed_from_now();
        let begin = feed.snapshot().clone();
        let (sender, events) = mpsc::unbounded_channel();
        let (intake_sender, intake) = mpsc::channel(INTAKE_MAX);
        let owner =
            Owner::new(self.core.clone(), self.state.clone(), sender.clone(), events, intake, &begin, installation);
        *running = Some(Running {
            sender: sender.clone(),
            owner: tokio::spawn(owner.run()),
            forward: tokio::spawn(forward(feed, intake_sender)),
        });
        Ok(sender)
    }

    fn send(&self, order: Order) -> bool {
        self.running.lock().as_ref().is_some_and(|running| running.sender.send(Event::Order(order)).is_ok())
    }

    /// Hands every slot back and leaves. Runs that have not ended at the limit are cancelled and handed back.
    pub(crate) async fn drain(&self, limit: Duration) {
        self.closed.store(true, Ordering::SeqCst);
        let (done, drained) = oneshot::channel();
        if self.send(Order::Drain { limit, done }) && tokio::time::timeout(limit + DRAIN_SLACK, drained).await.is_err()
        {
            tracing::warn!(server = %self.core.server, "the drain did not end within {limit:?}; leases run out by themselves");
        }
        self.kill();
    }

    /// Ends everything at once, as if the process had died.
    pub(crate) fn kill(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(running) = self.running.lock().take() {
            running.owner.abort();
            running.forward.abort();
        }
    }

    /// The requests that run on this server right now.
    pub(crate) async fn running_requests(&self) -> Vec<RequestId> {
        let (done, running) = oneshot::channel();
        if self.send(Order::Running { done }) { running.await.unwrap_or_default() } else { Vec::new() }
    }
}

/// That this server runs a hook. Dropping it ends that: the hook's slots pass on to other servers, and its requests wait
/// where there is none. The registration stays.
#[derive(Debug)]
#[must_use = "dropping it ends running the hook on this server"]
pub struct HookHandle {
    name: String,
    number: HookNumber,
    sender: mpsc::UnboundedSender<Event>,
    names: Arc<Mutex<HashSet<String>>>,
}

impl HookHandle {
    /// The hook's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number that log rows and requests name the hook by.
    #[must_use]
    pub fn number(&self) -> HookNumber {
        self.number
    }
}

impl Drop for HookHandle {
    fn drop(&mut self) {
        self.names.lock().remove(&self.name);
        // Fails only when the server has ended.
        let _ = self.sender.send(Event::Order(Order::Withdraw { number: self.number }));
    }
}

/// What becomes of a registration that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfThere {
    /// A higher definition version replaces it.
    Raise,
    /// It stays.
    Leave,
}

/// Why the transaction that registers a hook was refused.
#[derive(Debug)]
enum Refusal {
    Registration(RegisterError),
    Transaction(TransactionError),
}

impl From<TransactionError> for Refusal {
    fn from(error: TransactionError) -> Self {
        Refusal::Transaction(error)
    }
}

fn register_error(error: WriteError<Refusal>) -> RegisterError {
    match error {
        WriteError::Rejected(Refusal::Registration(error)) => error,
        WriteError::Closed => RegisterError::Closed,
        other => {
            let retryable = other.is_retryable();
            let reason = other
                .map_rejected(|refusal| match refusal {
                    Refusal::Registration(error) => TransactionError::rejected(error.to_string()),
                    Refusal::Transaction(error) => error,
                })
                .to_string();
            RegisterError::Write { reason, retryable }
        }
    }
}

fn registration_of(name: &str) -> Result<Ref<RegistrationEntity>, RegisterError> {
    Ref::root(name.to_owned()).map_err(|error| RegisterError::Write { reason: error.to_string(), retryable: false })
}

impl State {
    /// Registers a cluster hook, and runs it on this server, at most `room` runs at once, until the handle is dropped.
    ///
    /// Registering the same definition again, on any server, changes nothing. A higher definition version replaces a
    /// lower one; a server whose code has a lower one leases none of the hook's slots from then on.
    ///
    /// # Errors
    /// [`RegisterError`]: what is wrong with the definition, what differs from the registered one, or why it could not be
    /// written.
    pub async fn register(
        &self,
        registration: Registration,
        room: u32,
        handler: Arc<dyn ClusterHook>,
    ) -> Result<HookHandle, RegisterError> {
        registration.check()?;
        let name = registration.name.clone();
        let runtime = self.runtime();
        if !runtime.names.lock().insert(name.clone()) {
            return Err(RegisterError::AlreadyHere { name });
        }
        let registered = self.register_named(registration, room, handler).await;
        if registered.is_err() {
            runtime.names.lock().remove(&name);
        }
        registered
    }

    async fn register_named(
        &self,
        registration: Registration,
        room: u32,
        handler: Arc<dyn ClusterHook>,
    ) -> Result<HookHandle, RegisterError> {
        let runtime = self.runtime();
        let number = self.write_registration(&registration, IfThere::Raise).await?;
        let sender = runtime.owner().await?;
        let name = registration.name;
        let hook = Declared { name: name.as_str().into(), version: registration.definition.version, room, handler };
        let (done, declared) = oneshot::channel();
        let order = Order::Declare { number, hook, done };
        sender.send(Event::Order(order)).map_err(|_| RegisterError::Closed)?;
        declared.await.map_err(|_| RegisterError::Closed)?;
        Ok(HookHandle { name, number, sender, names: runtime.names.clone() })
    }

    async fn write_registration(
        &self,
        registration: &Registration,
        if_there: IfThere,
    ) -> Result<HookNumber, RegisterError> {
        let path = registration_of(&registration.name)?;
        let wanted = registration.clone();
        let closure = move |transaction: &mut Transaction| -> Result<HookNumber, Refusal> {
            let there = transaction.get(&path)?;
            let next = match &there {
                Some(there) if if_there == IfThere::Leave => return Ok(there.number),
                Some(there) => there.number,
                None => {
                    let all = transaction.roots::<RegistrationEntity>()?;
                    HookNumber(all.iter().map(|(_, entity)| entity.number.0).max().unwrap_or(0) + 1)
                }
            };
            let decision = decide(there.as_deref(), &wanted, next, transaction.revision());
            match decision.map_err(Refusal::Registration)? {
                Decision::Unchanged(number) => Ok(number),
                Decision::Put(entity) => {
                    let number = entity.number;
                    transaction.put(&path, *entity)?;
                    Ok(number)
                }
            }
        };
        let committed = self.core().submit(closure, Arc::default(), SubmissionId::random(), None).await;
        Ok(committed.map_err(register_error)?.value)
    }

    /// Registers a hook whose code this server lacks or does not run: its requests wait for a server that does.
    ///
    /// # Errors
    /// As [`State::register`].
    pub async fn register_only(&self, registration: Registration) -> Result<HookNumber, RegisterError> {
        registration.check()?;
        self.write_registration(&registration, IfThere::Raise).await
    }

    /// As [`State::register_only`], unless it is registered, or was.
    pub(super) async fn register_if_absent(&self, registration: Registration) -> Result<HookNumber, RegisterError> {
        registration.check()?;
        self.write_registration(&registration, IfThere::Leave).await
    }

    /// Removes a registration: no change makes a request any more, and nothing runs. What waits is kept, is listed, and
    /// runs if the hook is registered again. Says whether it was registered.
    ///
    /// # Errors
    /// [`RegisterError::Write`], [`RegisterError::Closed`]
    pub async fn unregister(&self, name: &str) -> Result<bool, RegisterError> {
        let path = registration_of(name)?;
        let closure = move |transaction: &mut Transaction| -> Result<bool, Refusal> {
            let Some(there) = transaction.get(&path)? else { return Ok(false) };
            if there.removed {
                return Ok(false);
            }
            let mut removed = (*there).clone();
            removed.removed = true;
            removed.catch_up = None;
            transaction.put(&path, removed)?;
            Ok(true)
        };
        let committed = self.core().submit(closure, Arc::default(), SubmissionId::random(), None).await;
        Ok(committed.map_err(register_error)?.value)
    }
}
