//! Queries to the supervised server, over its Unix socket.
//!
//! A handful of them, each with a time limit. Values come back as text (the simple protocol) and
//! are parsed here.

mod catalogue;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::session;
use crate::domain::plan::Sample;
use crate::domain::recovery::RestorePointName;
use crate::domain::{Lsn, Timeline};

pub use catalogue::{Catalogue, ListedDatabase};

/// How long connecting, or a look at the server, may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where and as whom to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The directory of the socket.
    pub socket_dir: PathBuf,
    /// The port, which is part of the socket's name.
    pub port: u16,
    /// The database superuser.
    pub user: String,
    /// The server's major version, for the session's settings.
    pub major: Option<u16>,
    /// Its password, for a server that asks for one on the socket, too.
    pub password: Option<Password>,
}

/// A password that is never shown.
#[derive(Debug, Clone)]
pub struct Password(pub SecretString);

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.0.expose_secret() == other.0.expose_secret()
    }
}

impl Eq for Password {}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The server refused, or the connection broke.
    #[error("PostgreSQL: {}", describe(source))]
    Server {
        /// What was said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// It did not answer in time.
    #[error("PostgreSQL did not answer within {} s", patience.as_secs())]
    TimedOut {
        /// How long it was given.
        patience: Duration,
    },
    /// It answered something unexpected.
    #[error("PostgreSQL answered something unexpected to a query for {0}")]
    Unexpected(&'static str),
}

/// The timeline in a WAL segment's name.
fn timeline_of(file: &str) -> Option<Timeline> {
    Timeline::try_from(u32::from_str_radix(file.get(..8)?, 16).ok()?).ok()
}

fn describe(error: &tokio_postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), |db| format!("{}: {}", db.severity(), db.message()))
}

/// What a look at the server shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Whether it is in recovery, so takes no writes.
    pub in_recovery: bool,
    /// `server_version`, e.g. `15.18 (Debian 15.18-0+deb12u1)`.
    pub version: String,
    /// The archiver's statistics.
    pub archiver: ArchiverFacts,
}

/// `pg_stat_archiver`, and `archive_mode`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiverFacts {
    /// Whether there is an archiver at all (`archive_mode`).
    pub enabled: bool,
    /// Segments archived since the statistics began.
    pub archived_count: u64,
    /// The last one.
    pub last_archived_wal: Option<String>,
    /// When.
    pub last_archived_at: Option<Timestamp>,
    /// Failed attempts since the statistics began.
    pub failed_count: u64,
    /// The last segment that failed.
    pub last_failed_wal: Option<String>,
    /// When.
    pub last_failed_at: Option<Timestamp>,
}

impl ArchiverFacts {
    /// Whether the last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.last_failed_at.is_some_and(|failed| self.last_archived_at.is_none_or(|ok| failed > ok))
    }
}

/// How a server is told to archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveSettings {
    /// `archive_mode` is not off.
    pub enabled: bool,
    /// `archive_command`.
    pub command: String,
    /// `archive_timeout`.
    pub timeout: Duration,
}

/// How far a recovering server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryFacts {
    /// Whether it is still in recovery.
    pub in_recovery: bool,
    /// The last position that was replayed.
    pub replayed: Option<Lsn>,
    /// The commit time of the last transaction that was replayed.
    pub last_commit_at: Option<Timestamp>,
    /// The process that replays.
    pub startup_pid: Option<i32>,
    /// What that process waits at, by PostgreSQL's names, for people.
    pub waits_at: Option<String>,
    /// Whether it is paused: at its target, or because a setting is too low for what it replays.
    pub paused: bool,
}

/// Where a server that takes writes stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Its timeline.
    pub timeline: Timeline,
    /// Where it writes.
    pub lsn: Lsn,
    /// The first transaction id that it has not given out yet.
    pub next_xid: u64,
}

/// What a safe point left in the WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SafePoint {
    /// A commit of which time and place are known.
    pub commit: Sample,
    /// The position of the restore point.
    pub lsn: Lsn,
    /// The segment that must reach the archive.
    pub segment: String,
}

type Connected =
    (Client, tokio_postgres::Connection<tokio_postgres::Socket, tokio_postgres::tls::NoTlsStream>);

async fn connect(config: &tokio_postgres::Config) -> Result<Connected, QueryError> {
    let connecting = timeout(PATIENCE, config.connect(NoTls)).await;
    connecting
        .map_err(|_| QueryError::TimedOut { patience: PATIENCE })?
        .map_err(|source| QueryError::Server { source })
}

impl QueryError {
    /// Whether the server refused with this code.
    fn is(&self, code: &SqlState) -> bool {
        matches!(self, Self::Server { source } if source.code() == Some(code))
    }

    /// Whether the server does not let this role in. Where everybody is trusted, as behind the
    /// fence, that means that there is no such role, or that it may not log in.
    pub fn refuses_the_role(&self) -> bool {
        self.is(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
    }
}

impl Connection {
    /// Connects. `lost` is notified when the connection ends, from whichever side.
    pub async fn open(
        address: &Address,
        lost: impl FnOnce() + Send + 'static,
    ) -> Result<Self, QueryError> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&address.socket_dir)
            .port(address.port)
            .user(&address.user)
            .dbname("postgres")
            .application_name("headrest")
            .options(session::options(address.major, true));
        if let Some(password) = &address.password {
            config.password(password.0.expose_secret());
        }
        let mut connected = connect(&config).await;
        if let Err(error) = &connected
            && error.is(&SqlState::INSUFFICIENT_PRIVILEGE)
        {
            // The role is no superuser: what only those may set is left as it is.
            config.options(session::options(address.major, false));
            connected = connect(&config).await;
        }
        if let Err(error) = &connected
            && (error.is(&SqlState::INVALID_CATALOG_NAME)
                || error.is(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE))
        {
            // Somebody has dropped the database postgres, or is about to.
            config.dbname("template1");
            connected = connect(&config).await;
        }
        let (client, driver) = connected?;
        let driver = tokio::spawn(async move {
            // Why it ended is seen by whoever queries next.
            let _ = driver.await;
            lost();
        });
        Ok(Self { client, driver: driver.abort_handle() })
    }

    /// A look at the server.
    pub async fn facts(&self) -> Result<Facts, QueryError> {
        let row = self
            .row(
                "SELECT pg_is_in_recovery(), current_setting('server_version'), archived_count, \
                 last_archived_wal, extract(epoch FROM last_archived_time) * 1000000, \
                 failed_count, last_failed_wal, extract(epoch FROM last_failed_time) * 1000000, \
                 current_setting('archive_mode') <> 'off' FROM pg_stat_archiver",
                PATIENCE,
            )
            .await?;
        Ok(Facts {
            in_recovery: row.is_true(0),
            version: row.text(1).unwrap_or_default(),
            archiver: ArchiverFacts {
                enabled: row.is_true(8),
                archived_count: row.parse(2).unwrap_or(0),
                last_archived_wal: row.text(3),
                last_archived_at: row.micros(4),
                failed_count: row.parse(5).unwrap_or(0),
                last_failed_wal: row.text(6),
                last_failed_at: row.micros(7),
            },
        })
    }

    /// How the server is told to archive.
    pub async fn archive_settings(&self) -> Result<ArchiveSettings, QueryError> {
        let row = self
            .row(
                "SELECT current_setting('archive_mode') <> 'off', \
                 current_setting('archive_command'), (SELECT setting FROM pg_settings WHERE name = \
                 'archive_timeout')",
                PATIENCE,
            )
            .await?;
        Ok(ArchiveSettings {
            enabled: row.is_true(0),
            command: row.text(1).unwrap_or_default(),
            timeout: Duration::from_secs(row.parse(2).unwrap_or(0)),
        })
    }

    /// Whether the role that we are connected as is a superuser.
    pub async fn is_superuser(&self) -> Result<bool, QueryError> {
        let row = self.row("SELECT current_setting('is_superuser') = 'on'", PATIENCE).await?;
        Ok(row.is_true(0))
    }

    /// How far recovery is.
    pub async fn recovery(&self) -> Result<RecoveryFacts, QueryError> {
        let row = self
            .row(
                "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn(), \
                 extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000, \
                 (SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'), \
                 (SELECT wait_event_type || ':' || wait_event FROM pg_stat_activity WHERE \
                 backend_type = 'startup'), CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END",
                PATIENCE,
            )
            .await?;
        Ok(RecoveryFacts {
            in_recovery: row.is_true(0),
            paused: row.is_true(5),
            replayed: row.parse(1),
            last_commit_at: row.micros(2),
            startup_pid: row.parse(3),
            waits_at: row.text(4),
        })
    }

    /// Commits a transaction that leaves a trace in the WAL, and answers its time and place.
    pub async fn commit_sample(&self) -> Result<Sample, QueryError> {
        // The time is taken before the commit, the position after it.
        let rows = self
            .rows(
                // A commit alone is not flushed at once: its transaction must have written something.
                // "local": a synchronous standby that is away must not hold this up.
                "BEGIN; SET LOCAL synchronous_commit = local; SELECT extract(epoch FROM \
                 clock_timestamp()) * 1000000, pg_current_xact_id(), \
                 pg_logical_emit_message(true, 'headrest', ''); COMMIT; SELECT pg_current_wal_insert_lsn(), \
                 pg_walfile_name(pg_current_wal_insert_lsn())",
                PATIENCE,
            )
            .await?;
        let [before, after] = rows.as_slice() else {
            return Err(QueryError::Unexpected("a commit"));
        };
        let file = after.text(1).unwrap_or_default();
        Ok(Sample {
            timeline: timeline_of(&file).ok_or(QueryError::Unexpected("the timeline"))?,
            at: before.micros(0).ok_or(QueryError::Unexpected("the time"))?,
            lsn: after.parse(0).ok_or(QueryError::Unexpected("the WAL's position"))?,
            xid: before.parse(1).ok_or(QueryError::Unexpected("a transaction id"))?,
        })
    }

    /// Where a server that takes writes stands.
    pub async fn position(&self) -> Result<Position, QueryError> {
        let row = self
            .row(
                "SELECT pg_current_wal_insert_lsn(), pg_walfile_name(pg_current_wal_insert_lsn()), \
                 pg_snapshot_xmax(pg_current_snapshot())",
                PATIENCE,
            )
            .await?;
        let file = row.text(1).unwrap_or_default();
        Ok(Position {
            timeline: timeline_of(&file).ok_or(QueryError::Unexpected("the timeline"))?,
            lsn: row.parse(0).ok_or(QueryError::Unexpected("the WAL's position"))?,
            next_xid: row.parse(2).ok_or(QueryError::Unexpected("a transaction id"))?,
        })
    }

    /// Names this moment. Answers the position of the restore point.
    pub async fn create_restore_point(&self, name: &RestorePointName) -> Result<Lsn, QueryError> {
        // The name's grammar has no quote.
        let row = self.row(&format!("SELECT pg_create_restore_point('{name}')"), PATIENCE).await?;
        row.parse(0).ok_or(QueryError::Unexpected("a restore point"))
    }

    /// Ends the WAL segment that is being written, so that it can be archived. Answers its name.
    pub async fn switch_wal(&self) -> Result<String, QueryError> {
        let row = self.row("SELECT pg_walfile_name(pg_switch_wal())", PATIENCE).await?;
        row.text(0).ok_or(QueryError::Unexpected("a WAL segment's name"))
    }

    /// A commit of which time and place are known, a restore point after it, and a new segment, so
    /// that everything until now can be archived.
    pub async fn safe_point(&self, name: &RestorePointName) -> Result<SafePoint, QueryError> {
        let commit = self.commit_sample().await?;
        let lsn = self.create_restore_point(name).await?;
        let segment = self.switch_wal().await?;
        Ok(SafePoint { commit, lsn, segment })
    }

    /// The last segment that was archived.
    pub async fn last_archived_wal(&self) -> Result<Option<String>, QueryError> {
        Ok(self.row("SELECT last_archived_wal FROM pg_stat_archiver", PATIENCE).await?.text(0))
    }

    /// `archive_mode` and `archive_command`, as they are in force.
    pub async fn archiving(&self) -> Result<(String, String), QueryError> {
        let row = self
            .row(
                "SELECT current_setting('archive_mode'), current_setting('archive_command')",
                PATIENCE,
            )
            .await?;
        Ok((row.text(0).unwrap_or_default(), row.text(1).unwrap_or_default()))
    }

    /// Promotes a standby, waits until it takes writes, and makes that durable.
    pub async fn promote(&self) -> Result<(), QueryError> {
        let row = self.row("SELECT pg_promote(false)", PATIENCE).await?;
        if !row.is_true(0) {
            return Err(QueryError::Unexpected("a promotion"));
        }
        let patience = Duration::from_mins(10);
        let deadline = Instant::now() + patience;
        while self.row("SELECT pg_is_in_recovery()", PATIENCE).await?.is_true(0) {
            if Instant::now() >= deadline {
                return Err(QueryError::TimedOut { patience });
            }
            sleep(Duration::from_millis(10)).await;
        }
        // Until this checkpoint a crash would come up on the old timeline (restore.md).
        self.execute("CHECKPOINT", Duration::from_hours(1)).await
    }

    /// Takes the settings that a restore left in `postgresql.auto.conf` out again.
    pub async fn reset_recovery_settings(&self) -> Result<Vec<String>, QueryError> {
        let rows = self
            .rows(
                "SELECT DISTINCT name FROM pg_file_settings WHERE sourcefile = \
                 current_setting('data_directory') || '/postgresql.auto.conf' AND (name = \
                 'restore_command' OR name LIKE 'recovery\\_target%')",
                PATIENCE,
            )
            .await?;
        let names: Vec<String> = rows.iter().filter_map(|row| row.text(0)).collect();
        for name in &names {
            self.execute(&format!("ALTER SYSTEM RESET {name}"), PATIENCE).await?;
        }
        if !names.is_empty() {
            self.execute("SELECT pg_reload_conf()", PATIENCE).await?;
        }
        Ok(names)
    }

    async fn row(&self, sql: &str, patience: Duration) -> Result<TextRow, QueryError> {
        let first = self.rows(sql, patience).await?.into_iter().next();
        first.ok_or(QueryError::Unexpected("one row"))
    }

    async fn execute(&self, sql: &str, patience: Duration) -> Result<(), QueryError> {
        self.rows(sql, patience).await.map(drop)
    }

    async fn rows(&self, sql: &str, patience: Duration) -> Result<Vec<TextRow>, QueryError> {
        let messages = timeout(patience, self.client.simple_query(sql))
            .await
            .map_err(|_| QueryError::TimedOut { patience })?
            .map_err(|source| QueryError::Server { source })?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(TextRow(
                (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect(),
            )),
            _ => None,
        });
        Ok(rows.collect())
    }
}

struct TextRow(Vec<Option<String>>);

impl TextRow {
    fn text(&self, column: usize) -> Option<String> {
        self.0.get(column).cloned().flatten()
    }

    fn parse<T: std::str::FromStr>(&self, column: usize) -> Option<T> {
        self.text(column)?.parse().ok()
    }

    fn is_true(&self, column: usize) -> bool {
        self.text(column).as_deref() == Some("t")
    }

    /// Microseconds since 1970, as PostgreSQL's numeric prints them.
    fn micros(&self, column: usize) -> Option<Timestamp> {
        let text = self.text(column)?;
        let whole = text.split_once('.').map_or(text.as_str(), |(whole, _)| whole);
        Timestamp::from_microsecond(whole.parse().ok()?).ok()
    }
}
