//! What a driver offers to the test kit: servers of its own on one store, and what no server can do to its own store
//! (close it, replace it, damage it).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::backup::{Backup, BackupError, unheard};
use crate::clock::ManualClock;
use crate::driver::memory::MemoryStore;
use crate::driver::postgres::{PostgresOptions, PostgresStore};
use crate::driver::sqlite::{SqliteOptions, SqliteStore};
use crate::driver::{Driver, DriverError, Faults, StoredState};

/// A change to what is stored, behind everyone's back.
pub type Tamper = Box<dyn FnOnce(&mut StoredState) + Send>;

/// A store of one driver, made for one test. Implement it to run the suite on a driver of your own.
#[async_trait]
pub trait TestStore: Send + Sync {
    /// A driver for one server, behind a switch of its own.
    fn driver(&self, faults: Faults) -> Arc<dyn Driver>;

    /// Closes and opens the store, as after a restart of every process. All drivers on it have been dropped.
    async fn reopen(&self) -> Result<(), DriverError>;

    /// Drops the store and makes an empty one in its place, behind the servers' backs.
    async fn drop_and_recreate(&self) -> Result<(), DriverError>;

    /// Takes a backup; says its number.
    async fn back_up(&self) -> Result<usize, DriverError>;

    /// Restores a backup under a new epoch.
    async fn restore(&self, backup: usize) -> Result<(), DriverError>;

    /// Puts the store back to a backup behind everyone's back, its epoch as it was.
    async fn set_back_to(&self, backup: usize) -> Result<(), DriverError>;

    /// Changes what is stored behind everyone's back.
    async fn tamper(&self, change: Tamper) -> Result<(), DriverError>;
}

/// Makes stores of one driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// [`MemoryStore`]
    Memory,
    /// [`SqliteStore`] in a folder of its own, removed with it.
    Sqlite,
    /// [`PostgresStore`] in a schema of its own, on the server of [`super::postgres`].
    Postgres,
}

/// Makes a store for a test.
#[async_trait]
pub trait StoreFactory: Send + Sync {
    /// An empty store on this clock.
    async fn make(&self, clock: ManualClock) -> Box<dyn TestStore>;

    /// Why there can be no store here, if so; it has been noted in the table of skips. Cases then end at once.
    fn skipped(&self) -> Option<&'static str> {
        None
    }

    /// After how many steps of a long script the whole store is read and looked through: more than one where that is dear.
    fn read_every(&self) -> usize {
        1
    }
}

#[async_trait]
impl StoreFactory for StoreKind {
    async fn make(&self, clock: ManualClock) -> Box<dyn TestStore> {
        match self {
            StoreKind::Memory => {
                Box::new(MemoryTestStore { store: MemoryStore::with_clock(Arc::new(clock)), backups: Mutex::default() })
            }
            StoreKind::Sqlite => {
                let folder = tempfile::tempdir().expect("a test needs a folder of its own");
                let store = SqliteTestStore { folder, clock, store: Mutex::new(None), backups: Mutex::default() };
                store.open().await.expect("a fresh folder holds no store yet");
                Box::new(store)
            }
            StoreKind::Postgres => Box::new(PostgresTestStore::make(clock).await),
        }
    }

    fn skipped(&self) -> Option<&'static str> {
        match self {
            StoreKind::Memory | StoreKind::Sqlite => None,
            StoreKind::Postgres => super::postgres::skipped(),
        }
    }

    fn read_every(&self) -> usize {
        match self {
            StoreKind::Memory | StoreKind::Sqlite => 1,
            // No divisor of the number of servers that take turns.
            StoreKind::Postgres => 15,
        }
    }
}

struct MemoryTestStore {
    store: MemoryStore,
    backups: Mutex<Vec<StoredState>>,
}

#[async_trait]
impl TestStore for MemoryTestStore {
    fn driver(&self, faults: Faults) -> Arc<dyn Driver> {
        self.store.driver_with(faults)
    }

    async fn reopen(&self) -> Result<(), DriverError> {
        Ok(())
    }

    async fn drop_and_recreate(&self) -> Result<(), DriverError> {
        self.store.drop_and_recreate();
        Ok(())
    }

    async fn back_up(&self) -> Result<usize, DriverError> {
        let mut backups = self.backups.lock();
        backups.push(self.store.backup());
        Ok(backups.len() - 1)
    }

    async fn restore(&self, backup: usize) -> Result<(), DriverError> {
        let backup = self.backups.lock()[backup].clone();
        self.store.restore(backup);
        Ok(())
    }

    async fn set_back_to(&self, backup: usize) -> Result<(), DriverError> {
        let backup = self.backups.lock()[backup].clone();
        self.store.set_back_to(backup);
        Ok(())
    }

    async fn tamper(&self, change: Tamper) -> Result<(), DriverError> {
        self.store.tamper(change);
        Ok(())
    }
}

fn driver_error(error: BackupError) -> DriverError {
    match error {
        BackupError::Driver(error) => error,
        error => DriverError::Configuration(error.to_string()),
    }
}

fn read(path: &std::path::Path) -> Result<Arc<Backup>, DriverError> {
    Backup::read(path).map(Arc::new).map_err(driver_error)
}

struct SqliteTestStore {
    // Dropped after the store, whose files it holds.
    store: Mutex<Option<SqliteStore>>,
    backups: Mutex<Vec<PathBuf>>,
    clock: ManualClock,
    folder: tempfile::TempDir,
}

impl SqliteTestStore {
    async fn open(&self) -> Result<(), DriverError> {
        let path = self.folder.path().join("state.db");
        // The store before it is closed by its own thread, a moment after the last driver has gone.
        let mut tries = 0;
        loop {
            match SqliteStore::open(&path, SqliteOptions::with_clock(Arc::new(self.clock.clone()))) {
                Ok(store) => {
                    *self.store.lock() = Some(store);
                    return Ok(());
                }
                Err(DriverError::Held(_)) if tries < 500 => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn store(&self) -> SqliteStore {
        self.store.lock().clone().expect("the store is open but for the moment in which it is reopened")
    }
}

#[async_trait]
impl TestStore for SqliteTestStore {
    fn driver(&self, faults: Faults) -> Arc<dyn Driver> {
        self.store().driver_with(faults)
    }

    async fn reopen(&self) -> Result<(), DriverError> {
        *self.store.lock() = None;
        self.open().await
    }

    async fn drop_and_recreate(&self) -> Result<(), DriverError> {
        self.store().drop_and_recreate().await
    }

    async fn back_up(&self) -> Result<usize, DriverError> {
        let number = self.backups.lock().len();
        let path = self.folder.path().join(format!("backup-{number}.db"));
        self.store().backup(&path).await.map_err(driver_error)?;
        let mut backups = self.backups.lock();
        backups.push(path);
        Ok(number)
    }

    async fn restore(&self, backup: usize) -> Result<(), DriverError> {
        let path = self.backups.lock()[backup].clone();
        self.store().restore(read(&path)?).await
    }

    async fn set_back_to(&self, backup: usize) -> Result<(), DriverError> {
        let path = self.backups.lock()[backup].clone();
        self.store().set_back_to(read(&path)?).await
    }

    async fn tamper(&self, change: Tamper) -> Result<(), DriverError> {
        self.store().tamper(change).await
    }
}

struct PostgresTestStore {
    store: PostgresStore,
    backups: Mutex<Vec<PathBuf>>,
    folder: tempfile::TempDir,
}

impl PostgresTestStore {
    async fn make(clock: ManualClock) -> Self {
        let server = super::postgres::shared().expect("a case that needs PostgreSQL asks before whether it is skipped");
        let options = PostgresOptions { clock: Some(Arc::new(clock)), ..server.test_options() };
        let store = PostgresStore::new(&server.url(), options).expect("the test server's address is well formed");
        store.driver().open(&[]).await.expect("a schema of its own is empty");
        let folder = tempfile::tempdir().expect("a test has a folder of its own");
        PostgresTestStore { store, backups: Mutex::default(), folder }
    }
}

#[async_trait]
impl TestStore for PostgresTestStore {
    fn driver(&self, faults: Faults) -> Arc<dyn Driver> {
        self.store.driver_with(faults)
    }

    async fn reopen(&self) -> Result<(), DriverError> {
        Ok(())
    }

    async fn drop_and_recreate(&self) -> Result<(), DriverError> {
        self.store.drop_and_recreate().await
    }

    async fn back_up(&self) -> Result<usize, DriverError> {
        let number = self.backups.lock().len();
        let path = self.folder.path().join(format!("{number}.backup"));
        self.store.backup(&path, unheard()).await.map_err(driver_error)?;
        self.backups.lock().push(path);
        Ok(number)
    }

    async fn restore(&self, backup: usize) -> Result<(), DriverError> {
        let path = self.backups.lock()[backup].clone();
        self.store.restore(&*read(&path)?).await
    }

    async fn set_back_to(&self, backup: usize) -> Result<(), DriverError> {
        let path = self.backups.lock()[backup].clone();
        self.store.set_back_to(&*read(&path)?).await
    }

    async fn tamper(&self, change: Tamper) -> Result<(), DriverError> {
        self.store.tamper(change).await
    }
}
