//! What handlers share.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::auth::Auth;
use crate::config::ShortRoutes;
use crate::domain::StanzaName;
use crate::jobs::{Catalog, JobsHandle, Keeper, Planner, Wal};
use crate::metrics::Metrics;
use crate::monitor::MonitorHandle;
use crate::notify::Notifier;
use crate::pgbackrest::version::Version;
use crate::postgres::supervisor::PostgresHandle;
use crate::pulse::Pulses;
use crate::scheduler::SchedulerHandle;
use crate::store::Store;

/// What handlers share; clones share it.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Shared>);

/// The shared parts.
#[derive(Debug)]
pub struct Shared {
    /// Jobs: submission, cancellation, lanes.
    pub jobs: JobsHandle,
    /// The server.
    pub postgres: PostgresHandle,
    /// Restore plans, and what can be restored to.
    pub planner: Planner,
    /// The server's WAL.
    pub wal: Wal,
    /// Which backups stay, and pins.
    pub keeper: Keeper,
    /// Schedules.
    pub scheduler: SchedulerHandle,
    /// Health.
    pub monitor: MonitorHandle,
    /// Where the socket of a fenced server is.
    pub fence_dir: Option<PathBuf>,
    /// What the repositories hold.
    pub catalog: Catalog,
    /// History, to be read only.
    pub store: Store,
    /// Who is told what happens.
    pub notifier: Notifier,
    /// Who may do what.
    pub auth: Auth,
    /// The configured stanzas; the supervised server's is the first.
    pub stanzas: Vec<StanzaName>,
    /// What a browser may send as `Host`.
    pub allowed_hosts: Vec<String>,
    /// What the short routes allow.
    pub short_routes: ShortRoutes,
    /// pgBackRest's version, when it could be asked.
    pub pgbackrest: Option<Version>,
    /// What is measured.
    pub metrics: Metrics,
    /// The service's own loops.
    pub pulses: Pulses,
    /// Streams end when this is cancelled.
    pub shutdown: CancellationToken,
}

impl AppState {
    /// Shares the parts.
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl std::ops::Deref for AppState {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}
