//! The WAL of the supervised server, for people: how archiving goes, a new segment, a named point.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::context::{Context, ServerSide};
use super::heartbeat;
use crate::clock;
use crate::domain::plan::RestorePoint;
use crate::domain::recovery::RestorePointName;
use crate::domain::{SegmentSize, StanzaName};
use crate::postgres::client::{ArchiverFacts, Connection, Position, QueryError};
use crate::postgres::control::ControlData;
use crate::postgres::pg_wal::PgWal;
use crate::store::StoreError;

/// How long a new segment may take to be archived before the answer says that it is not yet.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(15);

/// Why something cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// There is no server of ours.
    #[error("Headrest does not supervise the PostgreSQL server of stanza {0}")]
    NotSupervised(StanzaName),
    /// It takes no writes.
    #[error("PostgreSQL takes no writes at present: it is {0}")]
    NotReady(String),
    /// The name is taken.
    #[error("there is a restore point {0} already; choose another name")]
    PointExists(RestorePointName),
    /// The server refused.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// It could not be noted.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is in `pg_wal`, and how its archiving goes.
#[derive(Debug, Clone, Default)]
pub struct WalState {
    /// `pg_stat_archiver`, when the server answers.
    pub archiver: Option<ArchiverFacts>,
    /// Where the server writes.
    pub position: Option<Position>,
    /// Segments and histories whose turn to be archived has come.
    pub ready: Vec<String>,
}

/// A segment that was ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switched {
    /// Its name.
    pub segment: String,
    /// Whether it is in the archive.
    pub archived: bool,
}

/// A handle; clones share it.
#[derive(Debug, Clone)]
pub struct Wal {
    context: Context,
    /// Held while a point is named: the same name must not be given twice.
    naming: Arc<Mutex<()>>,
}

impl Wal {
    /// The WAL of this context's server.
    pub fn new(context: Context) -> Self {
        Self { context, naming: Arc::default() }
    }

    fn side(&self, stanza: &StanzaName) -> Result<&ServerSide, WalError> {
        let side = self.context.server.as_ref().filter(|side| side.stanza == *stanza);
        side.ok_or_else(|| WalError::NotSupervised(stanza.clone()))
    }

    async fn connect(&self, stanza: &StanzaName) -> Result<(&ServerSide, Connection), WalError> {
        let side = self.side(stanza)?;
        let status = self.context.postgres.status();
        let not_ready = || WalError::NotReady(status.state.to_string());
        let address = status.address.as_ref().filter(|_| status.takes_writes());
        let address = address.ok_or_else(not_ready)?;
        Ok((side, Connection::open(address, || {}).await?))
    }

    /// How archiving goes.
    pub async fn state(&self, stanza: &StanzaName) -> Result<WalState, WalError> {
        let side = self.side(stanza)?;
        let control = ControlData::read(&side.binaries, &side.env, &side.data_dir).await.ok();
        let size = control.map_or(SegmentSize::DEFAULT, |control| control.segment_size);
        let wal = PgWal::read(&side.data_dir.join("pg_wal"), size).unwrap_or_default();
        let name = |path: &std::path::PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        let mut state =
            WalState { ready: wal.ready.iter().filter_map(name).collect(), ..WalState::default() };
        if let Ok((_, connection)) = self.connect(stanza).await {
            state.archiver = connection.facts().await.ok().map(|facts| facts.archiver);
            state.position = connection.position().await.ok();
        }
        Ok(state)
    }

    /// Commits an empty transaction and ends the segment, so that everything until now can be
    /// restored once it is archived. Waits a little for that.
    pub async fn switch(&self, stanza: &StanzaName) -> Result<Switched, WalError> {
        let (side, connection) = self.connect(stanza).await?;
        let commit = connection.commit_sample().await?;
        heartbeat::note(&self.context, side, commit).await?;
        let segment = connection.switch_wal().await?;
        let deadline = Instant::now() + ARCHIVE_PATIENCE;
        while Instant::now() < deadline {
            let last = connection.last_archived_wal().await?;
            if last.as_ref().and_then(|last| last.get(8..24)) >= segment.get(8..24) {
                return Ok(Switched { segment, archived: true });
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(Switched { segment, archived: false })
    }

    /// Names this moment.
    pub async fn create_point(
        &self,
        stanza: &StanzaName,
        name: RestorePointName,
    ) -> Result<RestorePoint, WalError> {
        let (side, connection) = self.connect(stanza).await?;
        let _naming = self.naming.lock().await;
        let known = self.context.store.restore_points(stanza.clone()).await?;
        // Recovery stops at the first point of a name, so there must be only one.
        if known.iter().any(|point| point.name == name) {
            return Err(WalError::PointExists(name));
        }
        let before = connection.position().await?;
        let lsn = connection.create_restore_point(&name).await?;
        let point = RestorePoint { name, timeline: before.timeline, lsn, at: clock::now() };
        if !self.context.store.add_restore_point(stanza.clone(), point.clone()).await? {
            return Err(WalError::PointExists(point.name));
        }
        // A commit after it: by then the point is certainly passed.
        heartbeat::beat(&self.context, side, &connection).await.map_err(|missed| match missed {
            heartbeat::MissedBeat::Query(error) => WalError::Query(error),
            heartbeat::MissedBeat::Store(error) => WalError::Store(error),
        })?;
        Ok(point)
    }
}
