//! The task that owns the server process, and the handle that everybody else holds.
//!
//! One actor starts, watches and stops PostgreSQL; commands reach it through a channel, its
//! status is read from a `watch`. It never waits for anything long: initdb, a stop and a start are
//! events of its loop, so it can always be asked. While a restore holds the fence only that
//! restore may start or stop anything.

mod actor;
mod floors;
mod launch;
mod leaving;
mod prepare;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::bootstrap::FirstStart;
use super::client::{Address, ArchiverFacts, Password};
use super::install::Binaries;
use super::state::ServerState;
use super::tail::Ring;
pub use floors::Raised;
pub use launch::fence_dir;

use crate::config::PostgresConfig;
use crate::domain::JobId;
use crate::domain::words::words;

words! {
    /// Whether the server's WAL is archived.
    Archiving {
        /// By pgBackRest, as its command line says.
        Ours = "on",
        /// It must not be: the server is a copy of one that archives to the same place.
        Off = "off",
        /// That is somebody else's business.
        NotOurs = "not-ours",
    }
}

/// What the supervisor needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The configured section.
    pub config: PostgresConfig,
    /// The programs.
    pub binaries: Binaries,
    /// The environment of the server, and so of its `archive_command`.
    pub env: BTreeMap<String, String>,
    /// Whether it archives.
    pub archiving: Archiving,
    /// `archive_command` for the command line.
    pub archive_command: String,
    /// The superuser's password, when a container was told it.
    pub password: Option<Password>,
    /// Headrest's own directory.
    pub state_dir: PathBuf,
    /// What a first start makes.
    pub first_start: FirstStart,
    /// Why the server must not be started on its own, if there is a reason: an unfinished
    /// restore holds the fence from the beginning.
    pub fenced_by: Option<JobId>,
}

/// What a fenced start adds: settings that win over every configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FencedStart {
    /// `recovery_target_timeline`.
    pub timeline: String,
    /// The target's settings, name and value; none for the end of all WAL.
    pub target: Vec<(&'static str, String)>,
    /// `restore_command`, instead of the one that the restore wrote.
    pub restore_command: String,
    /// Settings that a hot standby needs at least at these values.
    pub setting_floors: BTreeMap<String, u64>,
}

/// The making of a cluster, on a first start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Making {
    /// None is made, or it is made.
    Nothing,
    /// One is being made.
    UnderWay,
    /// None could be made, and why.
    Failed(String),
}

/// What is known of the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Where it stands.
    pub state: ServerState,
    /// Since when.
    pub since: Timestamp,
    /// Why, when it is down, failed or backing off.
    pub reason: Option<String>,
    /// The restore that holds the fence.
    pub fenced_by: Option<JobId>,
    /// Whether it archives.
    pub archiving: Archiving,
    /// The postmaster.
    pub pid: Option<i32>,
    /// Whether it was started by an earlier Headrest.
    pub adopted: bool,
    /// When the process was started or adopted.
    pub started_at: Option<Timestamp>,
    /// Starts after an unexpected exit.
    pub restarts: u64,
    /// How the last process ended.
    pub last_exit: Option<String>,
    /// When it will be started again.
    pub next_start_at: Option<Timestamp>,
    /// Where it can be reached.
    pub address: Option<Address>,
    /// Whether the server runs and lets none of the roles in that Headrest can connect as.
    pub no_role: bool,
    /// `server_version`.
    pub version: Option<String>,
    /// `pg_stat_archiver`, as of some seconds ago.
    pub archiver: Option<ArchiverFacts>,
    /// Settings that it was started with, because its data needs more than is configured.
    pub raised: Vec<Raised>,
    /// Whether it stays down on purpose, and waits for somebody.
    pub held: bool,
    /// What has become of the cluster that is to be made.
    pub making: Making,
}

/// Who gives a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A person, a program, or Headrest's own life cycle.
    Operator,
    /// The restore that holds the fence.
    Restore(JobId),
}

/// What can be asked of the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Start it for its clients.
    Start,
    /// Start it for the restore alone.
    StartFenced(FencedStart),
    /// Stop it, fast.
    Stop,
    /// Stop it without patience: the next rung of the ladder at once.
    StopNow,
    /// Stop and start it.
    Restart,
    /// Read the configuration files again.
    Reload,
    /// Stay down and say why, until somebody orders a start.
    Hold(String),
    /// From now on only this restore gives commands.
    RaiseFence,
    /// Everybody may give commands again.
    LowerFence,
}

/// Why an order was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A restore holds the fence.
    #[error(
        "restore {0} holds PGDATA: nobody else starts or stops PostgreSQL until a restore has \
         come to its end"
    )]
    Fenced(JobId),
    /// It is running already.
    #[error("PostgreSQL is running already")]
    Running,
    /// It is not running.
    #[error("PostgreSQL is not running")]
    NotRunning,
    /// It is being stopped.
    #[error("PostgreSQL is being stopped")]
    Stopping,
    /// Headrest does not supervise a server.
    #[error("Headrest runs beside a PostgreSQL server that it does not supervise")]
    NotSupervised,
    /// Headrest is stopping.
    #[error("Headrest is stopping")]
    ShuttingDown,
}

struct Command {
    order: Order,
    by: Actor,
    reply: oneshot::Sender<Result<(), Refusal>>,
}

/// A handle to the supervisor; clones share it. Without a supervised server it refuses orders.
#[derive(Debug, Clone)]
pub struct PostgresHandle {
    orders: Option<mpsc::Sender<Command>>,
    status: watch::Receiver<Status>,
    /// The server's last lines.
    pub lines: Ring,
}

impl PostgresHandle {
    /// Starts the supervisor's task. The server is started as soon as somebody asks.
    pub fn spawn(
        settings: Settings,
        pulse: crate::pulse::Pulse,
        stop_following: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (orders, inbox) = mpsc::channel(16);
        let (publish, status) =
            watch::channel(Status::down(settings.fenced_by, settings.archiving));
        let lines = Ring::default();
        let output = super::tail::OutputFile::at(settings.state_dir.join("log/postgres.log"));
        let following = lines.clone();
        tokio::spawn(async move { output.follow(following, stop_following).await });
        let actor = actor::Supervisor::new(settings, publish, lines.clone(), pulse);
        let task = tokio::spawn(actor.run(inbox));
        (Self { orders: Some(orders), status, lines }, task)
    }

    /// A handle when there is nothing to supervise.
    pub fn beside() -> Self {
        // The sender may go: the last value stays readable.
        let (_, status) = watch::channel(Status::down(None, Archiving::Ours));
        Self { orders: None, status, lines: Ring::default() }
    }

    /// Whether there is a supervised server.
    pub fn is_supervised(&self) -> bool {
        self.orders.is_some()
    }

    /// What is known now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows the status.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Gives an order; answers when it was taken, not when it is done.
    pub async fn order(&self, order: Order, by: Actor) -> Result<(), Refusal> {
        let orders = self.orders.as_ref().ok_or(Refusal::NotSupervised)?;
        let (reply, answer) = oneshot::channel();
        let command = Command { order, by, reply };
        orders.send(command).await.map_err(|_| Refusal::ShuttingDown)?;
        answer.await.map_err(|_| Refusal::ShuttingDown)?
    }

    /// Waits until the status satisfies `wanted`, at most so long. Answers the last status.
    pub async fn wait_until(
        &self,
        patience: Duration,
        mut wanted: impl FnMut(&Status) -> bool,
    ) -> Result<Status, Status> {
        let mut status = self.status.clone();
        let found = timeout(patience, status.wait_for(|status| wanted(status))).await;
        match found {
            Ok(Ok(status)) => Ok(status.clone()),
            Ok(Err(_)) | Err(_) => Err(self.status()),
        }
    }
}

impl Status {
    fn down(fenced_by: Option<JobId>, archiving: Archiving) -> Self {
        Self {
            state: ServerState::Down,
            since: crate::clock::now(),
            reason: None,
            fenced_by,
            archiving,
            pid: None,
            adopted: false,
            started_at: None,
            restarts: 0,
            last_exit: None,
            next_start_at: None,
            address: None,
            no_role: false,
            version: None,
            archiver: None,
            raised: Vec::new(),
            held: false,
            making: Making::Nothing,
        }
    }

    /// Whether nothing of the server runs, not even what makes its cluster.
    pub fn is_down(&self) -> bool {
        !self.state.has_process() && self.making != Making::UnderWay
    }

    /// Whether clients can write.
    pub fn takes_writes(&self) -> bool {
        self.state == ServerState::Ready && self.fenced_by.is_none()
    }
}
