//! A small pool of connections that only read, each call in one read transaction, off the async threads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::super::DriverError;
use super::schema;

/// Connections that are open and not in use, and how many more may be.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Idle>>,
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Idle {
    connections: Vec<Connection>,
    closed: bool,
}

impl Readers {
    pub(super) fn new(path: &Path, count: usize) -> Self {
        Readers { path: path.to_owned(), idle: Arc::default(), room: Arc::new(Semaphore::new(count.max(1))) }
    }

    /// Closes connections that are idle, and those in use when they are given back.
    pub(super) fn close(&self) {
        self.room.close();
        let connections = {
            let mut idle = self.idle.lock();
            idle.closed = true;
            std::mem::take(&mut idle.connections)
        };
        drop(connections);
    }

    /// Reads, all within one transaction: as of one moment.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        limit: Duration,
        read: impl FnOnce(&Connection) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let room = match tokio::time::timeout(limit, self.room.clone().acquire_owned()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err(DriverError::Unavailable("the store is closed".to_owned())),
            Err(_) => return Err(DriverError::Unavailable(format!("all readers were busy for {limit:?}"))),
        };
        let path = self.path.clone();
        let pool = self.idle.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _room = room;
            let idle = pool.lock().connections.pop();
            let connection = match idle {
                Some(connection) => connection,
                None => schema::open_reader(&path)?,
            };
            connection.execute_batch("BEGIN")?;
            let outcome = read(&connection);
            // A connection that can't end its transaction is not used again.
            connection.execute_batch("COMMIT")?;
            let mut pool = pool.lock();
            if !pool.closed {
                pool.connections.push(connection);
            }
            outcome
        });
        task.await.map_err(|error| DriverError::Unavailable(format!("a read has failed: {error}")))?
    }
}
