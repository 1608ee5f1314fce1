//! The one thread that writes: it takes all work that has come together, carries it out in one transaction, each piece
//! in a savepoint of its own, and answers once one flush has made it durable.
//!
//! Invariants: a piece of work is answered after the transaction that it was part of has ended, and never twice; what
//! servers read from memory changes after that transaction is durable and before anyone is answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::super::DriverError;
use super::super::entities_mark::EntitiesMark;
use super::super::leases::Leases;
use super::Shared;
use super::entities::read_mark;
use super::records::Kinds;
use super::schema::leaves_commit_open;
use super::tail::Effect;
use crate::revision::Revision;

/// How many pieces of work wait for the writer at most; more wait for room.
const QUEUE_MAX: usize = 1_024;

/// How many pieces of work share one transaction at most.
const GROUP_MAX: usize = 256;

/// How long other work waits for the commit of a session that is under way, so that one flush carries both.
const GATHER: Duration = Duration::from_micros(150);

/// How work has failed.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) error: DriverError,
    /// Whether it may nevertheless be found done by a recovery.
    pub(super) unknown: bool,
}

/// A piece of work. It may be carried out more than once, each time on a store without a trace of the time before.
pub(super) trait Work: Send {
    fn apply(&mut self, writer: &mut Writer) -> Result<(), DriverError>;
    fn finish(self: Box<Self>, outcome: Result<(), Failed>);
    fn is_commit(&self) -> bool;
}

struct Task<F, T, H> {
    apply: F,
    value: Option<T>,
    answer: oneshot::Sender<Result<T, Failed>>,
    is_commit: bool,
    // What the work holds until it is done: the write lock, if anything.
    held: H,
    _room: OwnedSemaphorePermit,
}

impl<F, T, H> Work for Task<F, T, H>
where
    F: FnMut(&mut Writer) -> Result<T, DriverError> + Send,
    T: Send,
    H: Send,
{
    fn apply(&mut self, writer: &mut Writer) -> Result<(), DriverError> {
        self.value = Some((self.apply)(writer)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), Failed>) {
        let Task { value, answer, held, .. } = *self;
        // The lock first: who waits for it can go on while the answer travels.
        drop(held);
        let value = value.ok_or_else(|| Failed {
            error: DriverError::Unavailable("the work was not carried out".to_owned()),
            unknown: false,
        });
        // Whoever asked may be gone; the work is done all the same.
        let _ = answer.send(outcome.and(value));
    }

    fn is_commit(&self) -> bool {
        self.is_commit
    }
}

/// The way to the writer, bounded.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    came: Condvar,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Waiting {
    works: VecDeque<Box<dyn Work>>,
    commits: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        Queue { waiting: Mutex::default(), came: Condvar::new(), room: Arc::new(Semaphore::new(QUEUE_MAX)) }
    }

    /// Hands work to the writer and waits for its answer. The work is carried out even if the caller goes away.
    pub(super) async fn run<T, H>(
        &self,
        limit: Duration,
        is_commit: bool,
        held: H,
        apply: impl FnMut(&mut Writer) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, Failed>
    where
        T: Send + 'static,
        H: Send + 'static,
    {
        let failed = |text: String, unknown| Failed { error: DriverError::Unavailable(text), unknown };
        let room = match tokio::time::timeout(limit, self.room.clone().acquire_owned()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err(failed("the store is closed".to_owned(), false)),
            Err(_) => {
                return Err(failed(format!("the writer's queue of {QUEUE_MAX} had no room for {limit:?}"), false));
            }
        };
        let (answer, answered) = oneshot::channel();
        let task = Task { apply, value: None, answer, is_commit, held, _room: room };
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(failed("the store is closed".to_owned(), false));
            }
            waiting.commits += usize::from(is_commit);
            waiting.works.push_back(Box::new(task));
        }
        self.came.notify_one();
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(failed("the store's writer has ended".to_owned(), true)),
            Err(_) => Err(failed(format!("the disk has not answered within {limit:?}"), true)),
        }
    }

    /// Everything that has come; none once the queue is closed and empty. Where a session is under way whose commit is
    /// still to come, that is waited for a moment.
    fn take(&self, commit_expected: impl Fn() -> bool) -> Option<Vec<Box<dyn Work>>> {
        let mut waiting = self.waiting.lock();
        while waiting.works.is_empty() {
            if waiting.closed {
                return None;
            }
            self.came.wait(&mut waiting);
        }
        if waiting.commits == 0 && commit_expected() {
            let until = Instant::now() + GATHER;
            while waiting.commits == 0 && !waiting.closed && commit_expected() {
                if self.came.wait_until(&mut waiting, until).timed_out() {
                    break;
                }
            }
        }
        let count = waiting.works.len().min(GROUP_MAX);
        let works: Vec<Box<dyn Work>> = waiting.works.drain(..count).collect();
        waiting.commits -= works.iter().filter(|work| work.is_commit()).count();
        Some(works)
    }

    /// Takes no more work; what waits is still carried out.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.room.close();
        self.came.notify_all();
    }
}

/// What the writer's thread owns. The fields beside the connection follow the transaction in progress.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) shared: Arc<Shared>,
    pub(super) head: Revision,
    pub(super) compacted: Revision,
    pub(super) entities: EntitiesMark,
    pub(super) leases: Leases,
    pub(super) kinds: Arc<Kinds>,
    staged: Vec<Effect>,
    /// The fields do not follow the store any more, since reading them anew has failed.
    stale: bool,
}

impl Writer {
    /// Reads what is stored, and starts from it.
    pub(super) fn new(connection: Connection, shared: Arc<Shared>) -> Result<Self, DriverError> {
        let mut writer = Writer {
            connection,
            shared,
            head: Revision::ZERO,
            compacted: Revision::ZERO,
            entities: EntitiesMark::default(),
            leases: Leases::default(),
            kinds: Arc::default(),
            staged: Vec::new(),
            stale: false,
        };
        writer.reload()?;
        Ok(writer)
    }

    /// Says what is to be seen once the work in progress is durable.
    pub(super) fn stage(&mut self, effect: Effect) {
        self.staged.push(effect);
    }

    /// Reads the fields anew, after a transaction or a part of one was rolled back.
    pub(super) fn reload(&mut self) -> Result<(), DriverError> {
        self.stale = true;
        let known = super::stored::read_known(&self.connection, self.shared.options.tail_bounds())?;
        self.head = known.head;
        self.compacted = known.compacted;
        self.leases = known.leases;
        self.kinds = known.kinds;
        self.entities = read_mark(&self.connection)?.0;
        self.stale = false;
        Ok(())
    }

    /// Carries out work until the queue is closed and empty.
    pub(super) fn work(mut self) {
        let shared = self.shared.clone();
        while let Some(works) = shared.queue.take(|| shared.session_under_way()) {
            self.carry_out(works);
        }
        // Ends the write-ahead log, so that the file is whole by itself; a start would do the same.
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "closing the store's file failed; the next start recovers it");
        }
    }

    fn carry_out(&mut self, mut works: Vec<Box<dyn Work>>) {
        match self.attempt(&mut works) {
            Ok(outcomes) => {
                for (work, outcome) in works.into_iter().zip(outcomes) {
                    work.finish(outcome.map_err(|error| Failed { error, unknown: false }));
                }
            }
            // One piece may be what failed the whole: each gets a transaction of its own.
            Err(failed) if works.len() > 1 && !failed.unknown => {
                for work in works {
                    self.carry_out(vec![work]);
                }
            }
            Err(failed) => {
                for work in works {
                    work.finish(Err(failed.clone()));
                }
            }
        }
    }

    /// One transaction for all. An error is one of the transaction as a whole, which then has left no trace, or none that
    /// is known.
    fn attempt(&mut self, works: &mut [Box<dyn Work>]) -> Result<Vec<Result<(), DriverError>>, Failed> {
        let certain = |error: DriverError| Failed { error, unknown: false };
        self.staged.clear();
        if self.stale {
            self.reload().map_err(certain)?;
        }
        self.execute("BEGIN IMMEDIATE").map_err(certain)?;
        let alone = works.len() == 1;
        let mut outcomes = Vec::with_capacity(works.len());
        for work in works.iter_mut() {
            match self.apply_one(work.as_mut(), alone) {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => return Err(self.undo(error, false)),
            }
        }
        if outcomes.iter().all(Result::is_err) {
            self.undo(DriverError::Unavailable(String::new()), false);
            return Ok(outcomes);
        }
        if let Err(error) = self.connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])) {
            let open = leaves_commit_open(&error);
            let failed = self.undo(error.into(), open);
            // What is copied into the database gives room in the write-ahead log to the next. It may fail as well.
            let _ = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            return Err(failed);
        }
        self.shared.set_uncertain(false);
        let staged = std::mem::take(&mut self.staged);
        self.shared.publish(staged);
        Ok(outcomes)
    }

    /// The inner result is the work's own; the outer one fails if the transaction is lost.
    fn apply_one(&mut self, work: &mut dyn Work, alone: bool) -> Result<Result<(), DriverError>, DriverError> {
        if !alone {
            self.execute("SAVEPOINT piece")?;
        }
        let staged = self.staged.len();
        let Err(error) = work.apply(self) else {
            if !alone {
                self.execute("RELEASE piece")?;
            }
            return Ok(Ok(()));
        };
        // Some errors, a full disk among them, may roll the whole transaction back.
        if self.connection.is_autocommit() {
            return Err(error);
        }
        self.staged.truncate(staged);
        if !alone {
            self.execute("ROLLBACK TO piece")?;
            self.execute("RELEASE piece")?;
            self.reload()?;
        }
        Ok(Err(error))
    }

    /// Rolls back. Where it is open whether the commit's last frame is in the write-ahead log, another commit is made to
    /// follow: it takes that frame's place, and then it is certain that nothing of ours is there.
    fn undo(&mut self, error: DriverError, open: bool) -> Failed {
        self.staged.clear();
        if !self.connection.is_autocommit() && self.execute("ROLLBACK").is_err() {
            self.stale = true;
        }
        let unknown = open && {
            self.shared.set_uncertain(true);
            let followed = self.execute("UPDATE meta SET follow_ups = follow_ups + 1").is_ok();
            self.shared.set_uncertain(!followed);
            !followed
        };
        if let Err(error) = self.reload() {
            tracing::warn!(%error, "the store can't be read; it is tried again with the next write");
        }
        Failed { error, unknown }
    }

    fn execute(&self, sql: &str) -> Result<(), DriverError> {
        self.connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}
