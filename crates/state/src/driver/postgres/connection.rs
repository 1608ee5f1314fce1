//! One connection: how it is set up, and how statements are put on it one right behind the other.
//!
//! Invariants: the statements of one call to [`Connection::run`] stand next to each other on the wire, so that a
//! transaction that is sent in one go is never mixed with another's; a connection that did not answer in time, or was
//! closed, is never used again.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::FutureExt;
use futures::future::MaybeDone;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::error::{DbError, Severity, SqlState};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Error, NoTls, Row, SimpleQueryMessage, Statement};
use tokio_util::sync::CancellationToken;

use super::super::DriverError;
use super::Shared;
use super::errors::{connect_failed, statement_failed};
use super::stalled::end_stalled;

/// The oldest server that has what is used here, as `server_version_num`.
const SERVER_VERSION_MIN: u32 = 150_000;

/// How long a connection that is given up may take to send what it was handed.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Sessions: the write lock, and commits.
    Commit,
    /// Receipts, and who leases which slot.
    Settle,
    /// The log's tail, records, starts.
    Read,
    /// Entities written behind, compaction, pruning.
    Upkeep,
    /// Hints of news, and heartbeats.
    Watch,
    /// Migrations, backups and restores: made for one call.
    Open,
}

impl Role {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Role::Commit => "tidegate-commit",
            Role::Settle => "tidegate-settle",
            Role::Read => "tidegate-read",
            Role::Upkeep => "tidegate-upkeep",
            Role::Watch => "tidegate-watch",
            Role::Open => "tidegate-open",
        }
    }
}

/// A value of a statement.
pub(super) type Value = Box<dyn ToSql + Sync + Send>;

/// A statement with its values.
pub(super) struct Call {
    pub(super) sql: Arc<str>,
    pub(super) values: Vec<Value>,
}

impl Call {
    pub(super) fn new(sql: impl Into<Arc<str>>, values: Vec<Value>) -> Call {
        Call { sql: sql.into(), values }
    }

    /// A statement without values.
    pub(super) fn plain(sql: impl Into<Arc<str>>) -> Call {
        Call::new(sql, Vec::new())
    }
}

/// Boxes each value of a statement.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$(Box::new($value) as $crate::driver::postgres::connection::Value),*] };
}
pub(super) use values;

/// The answer of one statement.
pub(super) type Answer = Result<Vec<Row>, Error>;

type Step = MaybeDone<Pin<Box<dyn Future<Output = Answer> + Send>>>;

pub(super) struct Connection {
    shared: Arc<Shared>,
    client: Arc<Client>,
    statements: Mutex<HashMap<Arc<str>, Statement>>,
    /// Held while statements are put on the wire, never over an await.
    order: Mutex<()>,
    broken: AtomicBool,
    /// Cancelled when the connection has ended.
    ended: CancellationToken,
    /// Cancelled when nobody needs it any more.
    given_up: CancellationToken,
    /// Cancelled when it has to end at once.
    broken_off: CancellationToken,
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("broken", &self.is_broken()).finish()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Its task sends what it was handed, within its limit, and ends.
        self.given_up.cancel();
    }
}

impl Connection {
    /// Connects, and sets the limits of the role.
    pub(super) async fn open(shared: &Arc<Shared>, role: Role) -> Result<Arc<Connection>, DriverError> {
        let limit = shared.options.connect_limit;
        let place = &shared.target.place;
        match tokio::time::timeout(limit, Self::connect(shared, role)).await {
            Ok(connection) => connection,
            Err(_) => Err(DriverError::Unavailable(format!(
                "{place} did not answer within {limit:?}; check host and port, and what lies between"
            ))),
        }
    }

    async fn connect(shared: &Arc<Shared>, role: Role) -> Result<Arc<Connection>, DriverError> {
        let options = &shared.options;
        let mut config = shared.target.config();
        config
            .application_name(shared.application_name(role))
            .keepalives(true)
            .keepalives_idle(options.keepalive)
            .keepalives_interval((options.keepalive / 3).max(Duration::from_secs(1)))
            .keepalives_retries(3)
            .tcp_user_timeout(options.answer_limit);
        let failed = |error: Error| connect_failed(&error, &shared.target.place);
        let ended = CancellationToken::new();
        let given_up = CancellationToken::new();
        let broken_off = CancellationToken::new();
        let tokens = (ended.clone(), given_up.clone(), broken_off.clone());
        let client = match shared.target.tls.connector() {
            None => {
                let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
                tokio::spawn(drive(connection, shared.clone(), tokens));
                client
            }
            Some(connector) => {
                let (client, connection) = config.connect(connector).await.map_err(failed)?;
                tokio::spawn(drive(connection, shared.clone(), tokens));
                client
            }
        };
        let connection = Arc::new(Connection {
            shared: shared.clone(),
            client: Arc::new(client),
            statements: Mutex::default(),
            order: Mutex::default(),
            broken: AtomicBool::new(false),
            ended,
            given_up,
            broken_off,
        });
        connection.set_up(shared, role).await?;
        Ok(connection)
    }

    async fn set_up(&self, shared: &Shared, role: Role) -> Result<(), DriverError> {
        let place = &shared.target.place;
        let answered = self.client.simple_query("SHOW server_version_num").await;
        let answered = answered.map_err(|error| connect_failed(&error, place))?;
        let version = answered.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse::<u32>().ok(),
            _ => None,
        });
        let version = version.unwrap_or(0);
        if version < SERVER_VERSION_MIN {
            return Err(DriverError::Configuration(format!(
                "{place} is PostgreSQL {}, and {} or later is needed; nothing was written. Upgrade the database",
                version / 10_000,
                SERVER_VERSION_MIN / 10_000
            )));
        }
        let settings = shared.options.settings(role);
        self.client.batch_execute(&settings).await.map_err(|error| connect_failed(&error, place))?;
        // Not every system can tell; the other limits hold without it.
        let _ = self.client.batch_execute(&shared.options.connection_check()).await;
        if role == Role::Commit {
            self.prepare_ahead(super::session::STATEMENTS).await;
        }
        if role == Role::Watch {
            let listen = format!("LISTEN {}", shared.channel);
            self.client.batch_execute(&listen).await.map_err(|error| connect_failed(&error, place))?;
            // What was told before it listened was missed.
            shared.news.told();
        }
        Ok(())
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire) || self.client.is_closed()
    }

    /// Ends it at once; the database rolls back what is open on it when it notices.
    pub(super) fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
        self.broken_off.cancel();
    }

    /// Ends when the connection has.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    pub(super) async fn prepared(&self, sql: &Arc<str>) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.lock().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.lock().insert(sql.clone(), statement.clone());
        Ok(statement)
    }

    /// Prepares statements together, so that the first transaction that holds a lock does not have to. What can't be
    /// prepared yet is prepared when it is used.
    async fn prepare_ahead(&self, statements: &[&str]) {
        let preparing = statements.iter().map(|sql| async move { self.prepared(&Arc::from(*sql)).await.map(drop) });
        for failed in futures::future::join_all(preparing).await.into_iter().filter_map(Result::err) {
            tracing::debug!(error = %failed, "a statement can't be prepared ahead");
        }
    }

    async fn steps(&self, calls: Vec<Call>) -> Result<Vec<Step>, Error> {
        let mut steps = Vec::with_capacity(calls.len());
        for Call { sql, values } in calls {
            let statement = self.prepared(&sql).await?;
            let client = self.client.clone();
            let step = async move {
                let values: Vec<&(dyn ToSql + Sync)> =
                    values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
                client.query(&statement, &values).await
            };
            steps.push(futures::future::maybe_done(step.boxed()));
        }
        Ok(steps)
    }

    /// Puts the statements on the wire in one go. `on_wire` is told once they are there; dropped before, nothing is.
    /// The answers are in order; after one that could not be sent there are none, and ROLLBACK was sent in its place.
    async fn answers(&self, calls: Vec<Call>, on_wire: impl FnOnce()) -> Vec<Answer> {
        let mut steps = match self.steps(calls).await {
            Ok(steps) => steps,
            Err(error) => return vec![Err(error)],
        };
        {
            let _order = self.order.lock();
            let mut context = Context::from_waker(Waker::noop());
            let mut sent = 0;
            for step in &mut steps {
                sent += 1;
                // Polled once: that hands the statement to the connection's task.
                let _ = Pin::new(&mut *step).poll(&mut context);
                let answer = Pin::new(&mut *step).output_mut();
                if answer.is_some_and(|answer| answer.as_ref().is_err_and(|error| error.as_db_error().is_none())) {
                    // An error of this side: it could not be sent, and what follows must not be.
                    let _ = self.client.batch_execute("ROLLBACK").now_or_never();
                    break;
                }
            }
            steps.truncate(sent);
            on_wire();
        }
        let mut answers = Vec::with_capacity(steps.len());
        for mut step in steps {
            (&mut step).await;
            answers.extend(Pin::new(&mut step).take_output());
        }
        answers
    }

    /// As [`Connection::answers`], within a limit. Past it the connection is not used any more.
    pub(super) async fn run_each(
        &self,
        calls: Vec<Call>,
        limit: Duration,
        on_wire: impl FnOnce(),
    ) -> Result<Vec<Answer>, DriverError> {
        match tokio::time::timeout(limit, self.answers(calls, on_wire)).await {
            Ok(answers) => {
                // Whoever is told of its end before its task has noticed must not be given it again.
                if answers.iter().any(|answer| answer.as_ref().is_err_and(has_ended)) {
                    self.break_off();
                }
                if answers.iter().any(|answer| answer.as_ref().is_err_and(has_waited_in_vain)) {
                    end_stalled(&self.shared).await;
                }
                Ok(answers)
            }
            Err(_) => {
                self.break_off();
                Err(DriverError::Unavailable(format!("the database has not answered within {limit:?}")))
            }
        }
    }

    /// Runs statements, each on its own or as they are; the first error counts.
    pub(super) async fn run(&self, calls: Vec<Call>, limit: Duration) -> Result<Vec<Vec<Row>>, DriverError> {
        let answers = self.run_each(calls, limit, || ()).await?;
        answers.into_iter().collect::<Result<_, _>>().map_err(|error| statement_failed(&error))
    }

    /// Runs statements as one transaction, in one round trip.
    pub(super) async fn transaction(&self, calls: Vec<Call>, limit: Duration) -> Result<Vec<Vec<Row>>, DriverError> {
        self.transaction_with("BEGIN", calls, limit).await
    }

    /// Reads as of one moment, in one round trip.
    pub(super) async fn snapshot(&self, calls: Vec<Call>, limit: Duration) -> Result<Vec<Vec<Row>>, DriverError> {
        self.transaction_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", calls, limit).await
    }

    async fn transaction_with(
        &self,
        begin: &'static str,
        calls: Vec<Call>,
        limit: Duration,
    ) -> Result<Vec<Vec<Row>>, DriverError> {
        let mut all = Vec::with_capacity(calls.len() + 2);
        all.push(Call::plain(begin));
        all.extend(calls);
        all.push(Call::plain("COMMIT"));
        let mut rows = self.run(all, limit).await?;
        rows.pop();
        rows.remove(0);
        Ok(rows)
    }

    /// Puts ROLLBACK on the wire without waiting for its answer. Without an open transaction it does nothing.
    pub(super) fn send_rollback(&self) {
        let _order = self.order.lock();
        let _ = self.client.batch_execute("ROLLBACK").now_or_never();
    }
}

/// Whether an error says that its connection has ended.
fn has_ended(error: &Error) -> bool {
    let is_fatal = |error: &DbError| matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
    error.is_closed() || error.as_db_error().is_some_and(is_fatal)
}

/// Whether an error says that a lock was waited for, for longer than a holder that does as it should can keep it.
fn has_waited_in_vain(error: &Error) -> bool {
    error.code().is_some_and(|code| *code == SqlState::LOCK_NOT_AVAILABLE)
}

/// Carries a connection's traffic until it ends, is given up, or is broken off.
async fn drive<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    shared: Arc<Shared>,
    (ended, given_up, broken_off): (CancellationToken, CancellationToken, CancellationToken),
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let _ended = ended.drop_guard();
    let channel = shared.channel.clone();
    let traffic = poll_fn(|context| {
        loop {
            match connection.poll_message(context) {
                Poll::Ready(Some(Ok(AsyncMessage::Notification(told)))) if told.channel() == channel => {
                    shared.news.heard(told.payload());
                }
                Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => {
                    tracing::debug!(message = notice.message(), "the database says");
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "a connection to the database has ended");
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    let farewell = async {
        given_up.cancelled().await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        () = traffic => {}
        () = broken_off.cancelled() => {}
        () = farewell => {}
    }
}
