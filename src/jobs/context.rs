//! What carrying out a job needs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::archive::Archives;
use super::catalog::Catalog;
use super::journal::Journals;
use super::retention::Retention;
use crate::domain::StanzaName;
use crate::pgbackrest::conf::{self, Defaults, UserOptions};
use crate::pgbackrest::runner::Tool;
use crate::pgbackrest::version::Version;
use crate::postgres::client::Password;
use crate::postgres::install::Binaries;
use crate::postgres::supervisor::{Archiving, PostgresHandle};
use crate::postgres::{pgdata, session};
use crate::store::Store;

/// The supervised server's side of a job's needs.
#[derive(Debug, Clone)]
pub struct ServerSide {
    /// The stanza that is the supervised server's.
    pub stanza: StanzaName,
    /// PGDATA.
    pub data_dir: PathBuf,
    /// Headrest's own directory.
    pub state_dir: PathBuf,
    /// Whether its WAL is archived; without that nothing is backed up or restored in place.
    pub archiving: Archiving,
    /// PostgreSQL's programs.
    pub binaries: Binaries,
    /// The superuser that Headrest connects as.
    pub superuser: String,
    /// The superuser's password, when a container was told it.
    pub password: Option<Password>,
    /// The environment of PostgreSQL's programs.
    pub env: BTreeMap<String, String>,
    /// What pgBackRest is told about the server, as it is configured.
    pub defaults: Defaults,
    /// What the user set for pgBackRest.
    pub user_options: UserOptions,
    /// How long stopping it may take, all rungs together.
    pub stop_patience: std::time::Duration,
    /// How often a commit is made of which time and place are noted; zero for never.
    pub heartbeat: std::time::Duration,
    /// Headrest's own executable, which the server runs as its `restore_command`.
    pub headrest: PathBuf,
    /// The pgBackRest that gets WAL for it: as the user configured (`cmd`), else as everywhere.
    pub archive_get: PathBuf,
    /// Where the socket of a fenced server is.
    pub fence_dir: PathBuf,
}

/// What carrying out a job needs; clones share it.
#[derive(Debug, Clone)]
pub struct Context {
    /// pgBackRest.
    pub tool: Arc<Tool>,
    /// Its version, when it could be asked.
    pub version: Option<Version>,
    /// What the repositories hold.
    pub catalog: Catalog,
    /// What their archives have.
    pub archives: Archives,
    /// The server.
    pub postgres: PostgresHandle,
    /// Its side, when it is supervised.
    pub server: Option<ServerSide>,
    /// History.
    pub store: Store,
    /// Restore journals.
    pub journals: Journals,
    /// What is configured of retention.
    pub retention: Retention,
    /// Tells everybody who follows events that there are new ones.
    pub wake: Wake,
    /// Headrest is stopping: jobs end now.
    pub shutdown: CancellationToken,
    /// And without patience.
    pub hurry: CancellationToken,
}

/// The id of the newest stored event. Followers wait for it to change and read the store.
#[derive(Debug, Clone)]
pub struct Wake(watch::Sender<i64>);

impl Wake {
    /// From the newest event stored so far.
    pub fn new(last: i64) -> Self {
        Self(watch::channel(last).0)
    }

    /// Events up to this id are stored now.
    pub fn stored(&self, last: Option<i64>) {
        if let Some(last) = last {
            self.0.send_if_modified(|known| {
                let newer = last > *known;
                *known = last.max(*known);
                newer
            });
        }
    }

    /// Follows it.
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.0.subscribe()
    }
}

impl Context {
    /// Where the running server can be reached, for a pgbackrest that connects to it.
    pub fn server_env(&self, stanza: &StanzaName) -> BTreeMap<String, String> {
        let Some(server) = self.server.as_ref().filter(|server| server.stanza == *stanza) else {
            return BTreeMap::new();
        };
        let mut defaults = server.defaults.clone();
        if let Some(address) = self.postgres.status().address {
            defaults.pg_port = Some(address.port);
            defaults.pg_socket_dir = Some(address.socket_dir.display().to_string());
        }
        let mut env = conf::environment(&defaults, &server.user_options);
        // Whatever is the default of a session, of the cluster, the role or the database.
        let options = session::options(pgdata::major_version(&server.data_dir), false);
        env.insert("PGOPTIONS".to_owned(), options);
        if let Some(password) = &server.password {
            // libpq's: pgBackRest has no option for it.
            env.insert("PGPASSWORD".to_owned(), password.0.expose_secret().to_owned());
        }
        env
    }
}
