//! The supervisor's loop.

mod aftermath;
mod looking;

use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use self::aftermath::Awaited;
use super::floors;
use super::launch::{self, Postmaster};
use super::leaving::{self, Leaving};
use super::prepare::{Obstacle, Prepared, prepare};
use super::{Actor, Command, FencedStart, Making, Order, Refusal, Settings, Status};
use crate::clock;
use crate::domain::restart::RestartPolicy;
use crate::postgres::bootstrap::{self, BootstrapError};
use crate::postgres::client::Connection;
use crate::postgres::pgdata;
use crate::postgres::state::{ServerEvent, ServerState};
use crate::postgres::stray;
use crate::postgres::tail::Ring;
use crate::process::End;
use crate::pulse::Pulse;

/// How often a starting server is looked at: a small file, then a connection.
const LOOK_STARTING: Duration = Duration::from_millis(25);
/// How often a server in recovery is looked at.
const LOOK_RECOVERING: Duration = Duration::from_millis(250);
/// How often a serving server is looked at.
const LOOK_SERVING: Duration = Duration::from_secs(5);
/// How often the loop shows that it lives.
const BEAT: Duration = Duration::from_secs(2);
/// When a start that was in somebody's way is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How often a server that is down is looked for, or room for its WAL.
const LOOK_DOWN: Duration = Duration::from_secs(1);
/// How long an immediate stop may take before the postmaster is killed.
const IMMEDIATE_PATIENCE: Duration = Duration::from_secs(30);

/// The rungs of a stop (PostgreSQL manual, 19.5 "Shutting Down the Server").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rung {
    Fast,
    Immediate,
    Kill,
}

pub(super) struct Supervisor {
    settings: Settings,
    status: watch::Sender<Status>,
    lines: Ring,
    pulse: Pulse,
    postmaster: Option<Postmaster>,
    /// The postmaster has ended, and its processes are ending.
    leaving: Option<Leaving>,
    connection: Option<Connection>,
    lost: (mpsc::Sender<u64>, mpsc::Receiver<u64>),
    connections_made: u64,
    policy: RestartPolicy,
    ready_since: Option<Instant>,
    /// What runs is fenced, or will be once it is started.
    fenced: Option<FencedStart>,
    stopping: Option<(Rung, Instant)>,
    start_after_stop: bool,
    stop_after_initdb: bool,
    /// Somebody ordered a start and no server has run since: only then an empty PGDATA is a first
    /// start. One that was emptied under a running server is a disaster.
    may_initdb: bool,
    restart_at: Option<Instant>,
    /// Why it is down, when that may pass without an order.
    awaited: Option<Awaited>,
    /// Since when processes of an ended postmaster are in the way of a start.
    orphans_since: Option<Instant>,
    look_at: Instant,
    /// The newest line of the log before this server was started.
    said_before: u64,
    initdb: Option<JoinHandle<Result<(), BootstrapError>>>,
}

impl Supervisor {
    pub(super) fn new(
        settings: Settings,
        status: watch::Sender<Status>,
        lines: Ring,
        pulse: Pulse,
    ) -> Self {
        Self {
            settings,
            status,
            lines,
            pulse,
            postmaster: None,
            leaving: None,
            connection: None,
            lost: mpsc::channel(4),
            connections_made: 0,
            policy: RestartPolicy::default(),
            ready_since: None,
            fenced: None,
            stopping: None,
            start_after_stop: false,
            stop_after_initdb: false,
            may_initdb: false,
            restart_at: None,
            awaited: None,
            orphans_since: None,
            look_at: Instant::now(),
            said_before: 0,
            initdb: None,
        }
    }

    /// Runs until every handle is gone. A running server is left alone then; whoever ends Headrest
    /// orders a stop first.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        loop {
            self.pulse.beat();
            let has_process = self.state().has_process();
            let beat = Instant::now() + BEAT;
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command { order, by, reply }) => {
                        let answer = self.obey(order, by).await;
                        // Who asked may have gone; the order was carried out all the same.
                        let _ = reply.send(answer);
                    }
                    None => return,
                },
                end = ended(&mut self.postmaster) => self.on_exit(end),
                () = at(self.leaving.as_ref().map(|leaving| leaving.look_at)) => {
                    self.look_who_is_left().await;
                }
                () = at(self.awaited.map(|_| self.look_at)) => self.look_for_awaited().await,
                made = made(&mut self.initdb) => self.on_initdb(made).await,
                Some(number) = self.lost.1.recv() => {
                    if number == self.connections_made && self.connection.take().is_some() {
                        self.went_silent();
                    }
                }
                () = at(self.restart_at) => {
                    self.restart_at = None;
                    self.start().await;
                }
                () = at(self.stopping.map(|(_, deadline)| deadline)) => self.escalate(),
                () = sleep_until(self.look_at), if has_process && self.leaving.is_none() => {
                    self.look().await;
                }
                () = sleep_until(beat) => {}
            }
        }
    }

    async fn obey(&mut self, order: Order, by: Actor) -> Result<(), Refusal> {
        let holder = self.status.borrow().fenced_by;
        // A new restore takes the fence over from one that was given up half way; the lane lets
        // only one of them work.
        if let Some(job) = holder
            && by != Actor::Restore(job)
            && order != Order::RaiseFence
        {
            return Err(Refusal::Fenced(job));
        }
        let state = self.state();
        match order {
            Order::Start => self.start_if_down(state, None).await,
            Order::StartFenced(fenced) => self.start_if_down(state, Some(fenced)).await,
            Order::Stop => {
                self.start_after_stop = false;
                self.stop(state);
                Ok(())
            }
            Order::StopNow => {
                self.start_after_stop = false;
                self.stop(state);
                self.escalate();
                Ok(())
            }
            Order::Restart if state.has_process() => {
                self.stop(state);
                self.start_after_stop = true;
                Ok(())
            }
            Order::Restart => self.start_if_down(state, None).await,
            Order::Reload => match &self.postmaster {
                Some(postmaster) => {
                    postmaster.signal(Signal::HUP);
                    Ok(())
                }
                None => Err(Refusal::NotRunning),
            },
            Order::Hold(reason) => {
                if !state.has_process() {
                    self.give_up(reason);
                    self.status.send_modify(|status| status.held = true);
                }
                Ok(())
            }
            Order::RaiseFence => {
                if let Actor::Restore(job) = by {
                    // A server that was to be restarted stays down: the restore decides now.
                    self.awaited = None;
                    if self.restart_at.take().is_some() {
                        self.change(ServerEvent::StayDown, Some("a restore is at work".to_owned()));
                    }
                    self.status.send_modify(|status| status.fenced_by = Some(job));
                }
                Ok(())
            }
            Order::LowerFence => {
                self.fenced = None;
                self.status.send_modify(|status| status.fenced_by = None);
                Ok(())
            }
        }
    }

    async fn start_if_down(
        &mut self,
        state: ServerState,
        fenced: Option<FencedStart>,
    ) -> Result<(), Refusal> {
        if state == ServerState::Stopping {
            return Err(Refusal::Stopping);
        }
        if state.has_process() || self.initdb.is_some() {
            return Err(Refusal::Running);
        }
        self.may_initdb = fenced.is_none();
        self.fenced = fenced;
        self.policy.reset();
        (self.restart_at, self.awaited, self.orphans_since) = (None, None, None);
        self.status.send_if_modified(|status| std::mem::take(&mut status.held));
        self.start().await;
        Ok(())
    }

    fn stop(&mut self, state: ServerState) {
        if state == ServerState::Stopping {
            // It is under way.
        } else if state.has_process() {
            self.change(ServerEvent::StopAsked, None);
            self.connection = None;
            self.signal(Signal::INT);
            self.stopping = Some((Rung::Fast, Instant::now() + self.settings.config.stop_timeout));
        } else if self.initdb.is_some() {
            // Cut short it would leave a PGDATA that nobody can use.
            self.stop_after_initdb = true;
        } else {
            (self.restart_at, self.awaited) = (None, None);
            self.change(ServerEvent::StayDown, Some("stopped as asked".to_owned()));
        }
    }

    fn escalate(&mut self) {
        if let Some(initdb) = self.initdb.take() {
            // Nobody waits any longer. The marks say at the next start what this left.
            tracing::warn!("the first start is cut short");
            initdb.abort();
            self.stop_after_initdb = false;
            self.change(ServerEvent::StayDown, Some("cut short in its first start".to_owned()));
            self.status.send_modify(|status| status.making = Making::Nothing);
        }
        let Some((rung, _)) = self.stopping else { return };
        if let Some(leaving) = &mut self.leaving {
            leaving.hurry(&self.settings.config.data_dir);
            self.stopping = Some((rung, Instant::now() + IMMEDIATE_PATIENCE));
            return;
        }
        let deadline = Instant::now() + IMMEDIATE_PATIENCE;
        self.stopping = Some(match rung {
            Rung::Fast => {
                tracing::warn!("the fast stop of PostgreSQL takes too long; stopping immediately");
                self.signal(Signal::QUIT);
                (Rung::Immediate, deadline)
            }
            Rung::Immediate | Rung::Kill => {
                tracing::error!(
                    "PostgreSQL does not leave; killing its postmaster. It will recover from WAL \
                     at the next start"
                );
                self.signal(Signal::KILL);
                (Rung::Kill, deadline)
            }
        });
    }

    /// Looks at PGDATA and starts, adopts, or says why not.
    async fn start(&mut self) {
        let fenced = self.fenced.is_some();
        match prepare(&self.settings, fenced, self.may_initdb) {
            Ok(Prepared::Start) => {
                self.said_before = self.lines.newest();
                self.look_for_floors(false).await;
                let raised = self.status.borrow().raised.clone();
                match launch::launch(&self.settings, self.fenced.as_ref(), &raised).await {
                    Ok(postmaster) => self.began(postmaster, false),
                    Err(reason) => self.give_up(reason),
                }
            }
            Ok(Prepared::Adopt(postmaster)) => {
                tracing::info!(
                    process.pid = %postmaster.pid(),
                    "PostgreSQL is running already; taking it over without a restart"
                );
                self.said_before = self.lines.newest();
                self.look_for_floors(true).await;
                self.began(postmaster, true);
            }
            Ok(Prepared::Initdb) => {
                let (first, binaries, env) = (
                    self.settings.first_start.clone(),
                    self.settings.binaries.clone(),
                    self.settings.env.clone(),
                );
                let work = async move { bootstrap::ensure_cluster(&first, &binaries, &env).await };
                self.initdb = Some(tokio::spawn(work));
                self.status.send_modify(|status| status.making = Making::UnderWay);
            }
            Err(Obstacle::Passing(reason)) => {
                tracing::warn!("PostgreSQL is not started yet: {reason}");
                self.change(ServerEvent::Delayed, Some(reason));
                self.restart_at = Some(Instant::now() + TRY_AGAIN);
            }
            Err(Obstacle::Orphans(pid)) => {
                let pgdata = &self.settings.config.data_dir;
                let reason = format!(
                    "processes of an ended postmaster (pid {pid}) still work in {}",
                    pgdata.display()
                );
                let now = Instant::now();
                let since = *self.orphans_since.get_or_insert(now);
                if now.duration_since(since) >= leaving::PATIENCE {
                    stray::tell_orphans(&pgdata::servers_in(pgdata));
                    self.orphans_since = Some(now);
                }
                tracing::warn!("PostgreSQL is not started yet: {reason}");
                self.change(ServerEvent::Delayed, Some(reason));
                self.restart_at = Some(now + TRY_AGAIN);
            }
            Err(Obstacle::Lasting(reason)) => self.give_up(reason),
        }
    }

    /// Finds the settings that the data needs at more than is configured. A fenced server gets its own.
    async fn look_for_floors(&mut self, runs: bool) {
        let raised = match self.fenced {
            Some(_) => Vec::new(),
            None => floors::needed(&self.settings, runs).await,
        };
        for setting in &raised {
            tracing::warn!(
                "PostgreSQL is started with {setting}: there are prepared transactions, and PostgreSQL does \
                 not start without a place for each"
            );
        }
        self.status.send_if_modified(|status| {
            let changed = status.raised != raised;
            status.raised = raised;
            changed
        });
    }

    fn began(&mut self, postmaster: Postmaster, adopted: bool) {
        let pid = postmaster.pid().as_raw_nonzero().get();
        self.postmaster = Some(postmaster);
        self.may_initdb = false;
        self.ready_since = None;
        (self.awaited, self.orphans_since) = (None, None);
        self.look_at = Instant::now() + LOOK_STARTING;
        self.change(ServerEvent::Spawned, None);
        self.status.send_modify(|status| {
            status.pid = Some(pid);
            status.adopted = adopted;
            status.started_at = Some(clock::now());
            status.next_start_at = None;
        });
    }

    async fn on_initdb(&mut self, made: Result<(), BootstrapError>) {
        self.status.send_modify(|status| status.making = Making::Nothing);
        let stop = std::mem::take(&mut self.stop_after_initdb);
        match made {
            Ok(()) => {
                if stop {
                    self.change(ServerEvent::StayDown, Some("stopped as asked".to_owned()));
                } else {
                    self.start().await;
                }
            }
            Err(error) => {
                let reason = crate::telemetry::chain(&error);
                self.status.send_modify(|status| status.making = Making::Failed(reason.clone()));
                self.give_up(reason);
            }
        }
    }

    /// The postmaster is gone. What comes next waits until its processes are.
    fn on_exit(&mut self, end: End) {
        self.postmaster = None;
        self.connection = None;
        self.went_silent();
        self.leaving = Some(Leaving::after(end));
    }

    async fn look_who_is_left(&mut self) {
        let Some(leaving) = &mut self.leaving else { return };
        if leaving.is_over(&self.settings.config.data_dir) {
            let end = leaving.end;
            self.leaving = None;
            self.on_gone(end).await;
        }
    }

    fn give_up(&mut self, reason: String) {
        tracing::error!("PostgreSQL stays down: {reason}");
        (self.restart_at, self.awaited) = (None, None);
        self.change(ServerEvent::GaveUp, Some(reason));
        self.status.send_modify(|status| status.next_start_at = None);
    }

    fn went_silent(&mut self) {
        self.look_at = Instant::now() + LOOK_STARTING;
        if matches!(self.state(), ServerState::Ready | ServerState::Recovering) {
            let reason = "PostgreSQL ended our connection or does not answer".to_owned();
            self.change(ServerEvent::WentSilent, Some(reason));
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(postmaster) = &self.postmaster {
            postmaster.signal(signal);
        }
    }

    fn state(&self) -> ServerState {
        self.status.borrow().state
    }

    fn change(&self, event: ServerEvent, reason: Option<String>) {
        let state = self.state();
        match state.transition(event) {
            Ok(next) => {
                if next != state {
                    // What people, and programs, look for in the log of a database.
                    let words = match next {
                        ServerState::Ready => {
                            ": the database system is ready to accept connections"
                        }
                        _ => "",
                    };
                    tracing::info!(server.state = %next, "PostgreSQL is {next}{words}");
                }
                self.status.send_if_modified(|status| {
                    let changed = status.state != next || status.reason != reason;
                    if status.state != next {
                        status.since = clock::now();
                    }
                    (status.state, status.reason) = (next, reason);
                    changed
                });
            }
            Err(refused) => tracing::error!("a bug in the supervisor: {refused}"),
        }
    }
}

async fn ended(postmaster: &mut Option<Postmaster>) -> End {
    match postmaster {
        Some(postmaster) => postmaster.wait().await,
        None => std::future::pending().await,
    }
}

async fn made(
    initdb: &mut Option<JoinHandle<Result<(), BootstrapError>>>,
) -> Result<(), BootstrapError> {
    match initdb {
        Some(task) => {
            let made = task.await;
            *initdb = None;
            made.unwrap_or_else(|panic| Err(BootstrapError::Initdb(panic.to_string())))
        }
        None => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
