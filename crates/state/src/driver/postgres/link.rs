//! A server's connection for one role: made when it is first needed, made anew when it has broken, one at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_postgres::Row;

use super::super::{CommitError, DriverError};
use super::Shared;
use super::connection::{Answer, Call, Connection, Role};
use super::errors::{before_commit_failed, commit_failed, statement_failed};

/// How long passes before a connection that could not be made is tried again, at first and at most.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The way to the database for one role.
pub(super) struct Link {
    shared: Arc<Shared>,
    role: Role,
    state: Mutex<State>,
    /// Whose turn it is where a transaction takes several round trips; in order of arrival.
    turn: Arc<Mutex<()>>,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// When the last attempt failed, with what, and how long the next one waits.
    failed: Option<(Instant, DriverError, Duration)>,
}

impl Link {
    pub(super) fn new(shared: Arc<Shared>, role: Role) -> Link {
        Link { shared, role, state: Mutex::default(), turn: Arc::default() }
    }

    /// The connection. After one that could not be made the next is waited for a little; an attempt that failed while the
    /// caller waited for its turn is the caller's answer too, so that many callers do not wait one after the other.
    pub(super) async fn get(&self) -> Result<Arc<Connection>, DriverError> {
        let came = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(connection) = &state.connection
            && !connection.is_broken()
        {
            return Ok(connection.clone());
        }
        state.connection = None;
        let mut next_pause = PAUSE;
        if let Some((at, error, pause)) = &state.failed {
            if *at >= came {
                return Err(error.clone());
            }
            next_pause = (*pause * 2).min(PAUSE_MAX);
            tokio::time::sleep_until((*at + *pause).into()).await;
        }
        match Connection::open(&self.shared, self.role).await {
            Ok(connection) => {
                state.connection = Some(connection.clone());
                state.failed = None;
                Ok(connection)
            }
            Err(error) => {
                // Spread by a random part, so that servers do not come back in step.
                let pause = next_pause.mul_f64(rand::random_range(0.5..1.0));
                state.failed = Some((Instant::now(), error.clone(), pause));
                Err(error)
            }
        }
    }

    /// Waits until no other transaction of several round trips is going on.
    async fn turn(&self) -> Result<OwnedMutexGuard<()>, DriverError> {
        let limit = self.shared.options.wait_limit();
        tokio::time::timeout(limit, self.turn.clone().lock_owned()).await.map_err(|_| {
            DriverError::Unavailable(format!("others of this server used {} for {limit:?}", self.role.name()))
        })
    }

    /// Begins a transaction that stays open, with the first statements of it in the same round trip.
    pub(super) async fn begin(&self, calls: Vec<Call>) -> Result<(OpenTransaction, Vec<Vec<Row>>), DriverError> {
        let turn = self.turn().await?;
        let connection = self.get().await?;
        let limit = self.shared.options.answer_limit;
        let mut open = OpenTransaction { connection, open: false, limit, _turn: turn };
        let mut all = Vec::with_capacity(calls.len() + 1);
        all.push(Call::plain("BEGIN"));
        all.extend(calls);
        let mut rows = open.run(all).await?;
        rows.remove(0);
        Ok((open, rows))
    }
}

/// A transaction over several round trips. Dropping it rolls it back.
pub(super) struct OpenTransaction {
    connection: Arc<Connection>,
    /// Something of it is on the wire, and COMMIT is not.
    open: bool,
    limit: Duration,
    _turn: OwnedMutexGuard<()>,
}

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        if self.open {
            self.connection.send_rollback();
        }
    }
}

impl OpenTransaction {
    /// Runs statements within it.
    pub(super) async fn run(&mut self, calls: Vec<Call>) -> Result<Vec<Vec<Row>>, DriverError> {
        let OpenTransaction { connection, open, limit, .. } = self;
        let answers = connection.run_each(calls, *limit, || *open = true).await?;
        answers.into_iter().collect::<Result<_, _>>().map_err(|error| statement_failed(&error))
    }

    /// Runs the last statements and commits, in one round trip.
    pub(super) async fn commit(mut self, mut calls: Vec<Call>) -> Result<Vec<Vec<Row>>, CommitError> {
        calls.push(Call::plain("COMMIT"));
        let expected = calls.len();
        let OpenTransaction { connection, open, limit, .. } = &mut self;
        let mut sent = false;
        let answers = connection
            .run_each(calls, *limit, || {
                sent = true;
                *open = false;
            })
            .await;
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) if sent => return Err(CommitError::Unknown(error)),
            Err(error) => return Err(CommitError::NotCommitted(error)),
        };
        if !sent || answers.len() < expected {
            // Something could not be sent, and then COMMIT was not: a rollback was sent, or the connection is gone.
            let error = answers.into_iter().find_map(Answer::err);
            let error = error.map_or_else(
                || DriverError::Unavailable("the commit could not be sent".to_owned()),
                |error| statement_failed(&error),
            );
            return Err(CommitError::NotCommitted(error));
        }
        let mut rows = Vec::with_capacity(expected);
        for (place, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(answer) => rows.push(answer),
                Err(error) if place + 1 == expected => return Err(commit_failed(&error)),
                Err(error) => return Err(before_commit_failed(&error)),
            }
        }
        rows.pop();
        Ok(rows)
    }
}
