//! History on disk: jobs, their events, and answers kept for `Idempotency-Key`.
//!
//! SQLite in WAL mode. One thread writes, so writes are ordered; reads use connections of their
//! own on the blocking pool. Never decides anything: it keeps what it is given.

mod audit;
mod conditions;
mod idempotency;
mod jobs;
mod outbox;
mod recovery;
mod retention;
mod rows;
mod schedules;
mod tally;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

pub use audit::Deed;
pub use conditions::Condition;
pub use idempotency::{Claim, StoredAnswer};
pub use jobs::{JobFilter, NewEvent, StoredEvent};
pub use outbox::{FailedAttempt, Found, MOST_WAITING, NewNotice, Notice, TargetRecord, Which};
pub use schedules::{Missed, StoredSchedule, StoredVerdict};
pub use tally::EndedJob;

/// Numbered, append-only; `PRAGMA user_version` says how many a file has had.
const MIGRATIONS: &[&str] = &[
    include_str!("store/migrations/0001_jobs.sql"),
    include_str!("store/migrations/0002_recovery.sql"),
    include_str!("store/migrations/0003_schedules.sql"),
    include_str!("store/migrations/0004_notifications.sql"),
    include_str!("store/migrations/0005_retention.sql"),
    include_str!("store/migrations/0006_conditions.sql"),
    include_str!("store/migrations/0007_tries.sql"),
    include_str!("store/migrations/0008_read_backs.sql"),
    include_str!("store/migrations/0009_released_restores.sql"),
];
/// Read connections kept for reuse.
const IDLE_READERS: usize = 4;

type Write = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    writer: mpsc::Sender<Write>,
    readers: Arc<Readers>,
}

#[derive(Debug)]
struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database file cannot be opened.
    #[error("cannot open the history database {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The file was written by a later version of Headrest.
    #[error("the history database {} was written by a later version of Headrest", path.display())]
    TooNew {
        /// Its path.
        path: PathBuf,
    },
    /// A statement failed.
    #[error("the history database cannot {operation}")]
    Statement {
        /// What was being done, as an infinitive.
        operation: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A row holds something that this version cannot read.
    #[error("the history database holds a {what} that cannot be read: {value}")]
    Unreadable {
        /// Which column.
        what: &'static str,
        /// What stands there.
        value: String,
    },
    /// The writer is gone: Headrest is stopping.
    #[error("the history database is closed")]
    Closed,
}

impl Store {
    /// Opens or creates the database and starts its writer.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let opened = |source| StoreError::Open { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(opened)?;
        configure(&connection).map_err(opened)?;
        migrate(&mut connection, path)?;
        let (writer, mut queue) = mpsc::channel::<Write>(256);
        thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                while let Some(write) = queue.blocking_recv() {
                    write(&mut connection);
                }
            })
            .map_err(|error| opened(rusqlite::Error::ToSqlConversionFailure(Box::new(error))))?;
        let readers = Readers { path: path.to_owned(), idle: Mutex::default() };
        Ok(Self { writer, readers: Arc::new(readers) })
    }

    /// Runs `work` on the writer's connection, in the order of the calls.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, wait) = oneshot::channel();
        let write: Write = Box::new(move |connection| {
            // Nobody waits any more when the request was dropped; the write happened all the same.
            let _ = answer.send(work(connection));
        });
        self.writer.send(write).await.map_err(|_| StoreError::Closed)?;
        wait.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs `work` on a read connection, off the async threads.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = Arc::clone(&self.readers);
        let task = tokio::task::spawn_blocking(move || {
            let connection = readers.take()?;
            let answer = work(&connection);
            readers.give_back(connection);
            answer
        });
        task.await.map_err(|_| StoreError::Closed)?
    }
}

impl Readers {
    fn take(&self) -> Result<Connection, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(connection) = idle {
            return Ok(connection);
        }
        let opened = |source| StoreError::Open { path: self.path.clone(), source };
        let connection = Connection::open(&self.path).map_err(opened)?;
        configure(&connection).map_err(opened)?;
        Ok(connection)
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS {
            idle.push(connection);
        }
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A job's row must be on disk before its process starts.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -1024)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Statement { operation: "be brought up to date", source };
    let done: u32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let pending = (1u32..).zip(MIGRATIONS).skip(done as usize);
    if done as usize > MIGRATIONS.len() {
        return Err(StoreError::TooNew { path: path.to_owned() });
    }
    for (number, sql) in pending {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(sql).map_err(failed)?;
        transaction.pragma_update(None, "user_version", number).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}
