//! Carrying out an in-place restore, phase by phase (`domain::restore` has the diagram).
//!
//! Written as if the power fails after each line: the journal reaches the disk before the phase it
//! names begins, each phase can be entered again, and PostgreSQL is started only where the journal
//! says that PGDATA is a database.

mod close;
mod drain;
mod finish;
mod prepare;
mod quiet;
mod recover;
mod settle;
mod steer;
mod tablespaces;
mod waiting;
mod wal;
mod wholeness;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::context::{Context, ServerSide};
use super::queue::Helm;
use super::recorder::Recorder;
pub(super) use close::of_done;

use super::worker::{self, Ended, problem};
use crate::clock;
use crate::domain::Lsn;
use crate::domain::job::{JobError, JobId, RestoreResult, RestoreSpec};
use crate::domain::restore::{Awaiting, BootAction, Journal, Phase};
use crate::pgbackrest::command::RestoreInPlace;
use crate::pgbackrest::exit::Context as ExitContext;
use crate::pgbackrest::log::Level;
use crate::pgbackrest::runner::Stopping;
use crate::postgres::client::Connection;
use crate::postgres::control::ControlData;
use crate::postgres::pgdata::{self, Content, PidFile, PostmasterStatus};
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::{Actor, Order, Refusal, Status};

/// How often `pgbackrest restore` is tried.
const TRIES: u32 = 3;
/// How long the server may take to come up for its clients before the restore says so. Crash
/// recovery after this has its own progress.
const START_PATIENCE: Duration = Duration::from_mins(10);

/// For how many seconds a server that serves clients may refuse Headrest until the restore ends
/// without it.
const REFUSED_TOO_LONG_S: u64 = 10;

/// Where a restore begins.
pub(super) enum Begin {
    /// At the beginning.
    Fresh {
        /// The job.
        id: JobId,
        /// Who asked.
        by: String,
    },
    /// Where an earlier Headrest left off.
    Resume(Box<Journal>, BootAction),
}

/// Why a restore does not go on.
enum Stop {
    /// Before anything was changed; PostgreSQL goes on as before.
    Aborted(JobError),
    /// Somebody asked for it, before anything was changed.
    Cancelled,
    /// After files were changed: PostgreSQL stays down.
    NeedsOperator(JobError),
    /// Headrest stops; the journal says where to go on.
    Later,
    /// The data is complete, but something did not work afterwards.
    Finished(JobError),
}

/// What a restore that has touched PGDATA does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Copy the files.
    Restore,
    /// Start the server fenced and follow it.
    Recover,
    /// Give the server back.
    Unfence,
}

struct Run<'a> {
    context: &'a Context,
    side: &'a ServerSide,
    recorder: &'a mut Recorder,
    cancel: &'a CancellationToken,
    helm: Helm,
    journal: Journal,
    result: RestoreResult,
    /// Where recovery began, for progress.
    first_replayed: Option<Lsn>,
    /// Where it was last seen.
    last_replayed: Option<Lsn>,
    /// What recovery waits for, in words.
    waiting_for: Option<String>,
    /// When each reason to wait was notified last.
    told: BTreeMap<Awaiting, Instant>,
}

pub(super) async fn run(
    context: &Context,
    spec: &RestoreSpec,
    begin: Begin,
    recorder: &mut Recorder,
    cancel: &CancellationToken,
    helm: Helm,
) -> Ended {
    let Some(side) = context.server.as_ref() else {
        let message = "Headrest does not supervise the server of this stanza";
        return Ended::failed(problem("postgres-not-supervised", message, &[]));
    };
    let (journal, action) = match begin {
        Begin::Resume(journal, action) => (*journal, Some(action)),
        Begin::Fresh { id, by } => {
            match prepare::journal(context, side, spec, id, by, recorder).await {
                Ok(journal) => (journal, None),
                Err(error) => return Ended::failed(error),
            }
        }
    };
    let result = RestoreResult {
        set: Some(journal.set.clone()),
        repo: Some(journal.repo),
        ..RestoreResult::default()
    };
    let mut run = Run {
        context,
        side,
        recorder,
        cancel,
        helm,
        journal,
        result,
        first_replayed: None,
        last_replayed: None,
        waiting_for: None,
        told: BTreeMap::new(),
    };
    let stopped = match action {
        None => run.begin().await,
        Some(action) => run.resume(action).await,
    };
    run.close(stopped, spec).await
}

impl Run<'_> {
    /// Goes on from an earlier restore that was given up half way. PGDATA is not a database, so
    /// none of the phases in which it counts as intact may stand in the journal.
    async fn take_over(&mut self) -> Result<(), Stop> {
        self.journal.phase = Phase::NeedsOperator;
        self.write_journal().await.map_err(Stop::NeedsOperator)?;
        self.helm.phases.tell(Phase::NeedsOperator, None).await;
        self.order(Order::RaiseFence).await.map_err(|refusal| self.refused(&refusal))?;
        self.end_stray_server(false).await?;
        self.stop_server().await?;
        self.drive(Next::Restore).await
    }

    /// From the moment PGDATA is touched to the end, with the ways back.
    async fn drive(&mut self, mut next: Next) -> Result<(), Stop> {
        loop {
            next = match next {
                Next::Restore => {
                    self.restore_files().await?;
                    Next::Recover
                }
                Next::Recover => self.recover().await?,
                Next::Unfence => return self.unfence().await,
            };
        }
    }

    async fn begin(&mut self) -> Result<(), Stop> {
        if self.journal.inherited_from.is_some() {
            return self.take_over().await;
        }
        self.write_journal().await.map_err(Stop::Aborted)?;
        self.helm.phases.tell(Phase::Accepted, None).await;
        self.recorder.phase(Phase::Accepted).await;
        self.order(Order::RaiseFence).await.map_err(|refusal| self.refused(&refusal))?;

        self.enter(Phase::Quiesced).await?;
        prepare::wait_for_foreign_lock(self.context, &self.journal.stanza, self.recorder)
            .await
            .map_err(Stop::Aborted)?;

        self.enter(Phase::SafePoint).await?;
        self.safe_point().await;

        self.journal.stopped_at = Some(clock::now());
        self.enter(Phase::Stopping).await?;
        self.stop_and_keep_wal().await?;

        self.enter(Phase::Draining).await?;
        self.drain().await?;
        self.drive(Next::Restore).await
    }

    async fn resume(&mut self, action: BootAction) -> Result<(), Stop> {
        let text = format!("Headrest was started again during phase {}", self.journal.phase);
        self.recorder.say(Level::Warn, text).await;
        self.helm.phases.tell(self.journal.phase, None).await;
        match action {
            BootAction::RestoreAgain => {
                self.end_stray_server(false).await?;
                self.stop_server().await?;
                self.drive(Next::Restore).await
            }
            BootAction::Recover => {
                self.end_stray_server(false).await?;
                self.drive(Next::Recover).await
            }
            BootAction::Unfence => {
                // The server may already serve its clients: only a fenced one is stopped.
                self.end_stray_server(true).await?;
                self.drive(Next::Unfence).await
            }
            BootAction::Abort | BootAction::StayDown | BootAction::Nothing => Ok(()),
        }
    }

    /// Runs `pgbackrest restore` until it succeeds.
    async fn restore_files(&mut self) -> Result<(), Stop> {
        (self.result.last_commit_at, self.result.replayed_lsn) = (None, None);
        (self.first_replayed, self.last_replayed) = (None, None);
        self.journal.recovering_since = None;
        // Recovery begins anew, from the archive.
        let accepted = self.journal.accepted_end.take();
        self.journal.accepted_before = accepted.or(self.journal.accepted_before);
        let mut tries = 0;
        loop {
            let lock = self.lock_out_orphans().await?;
            self.journal.attempts += 1;
            tries += 1;
            self.enter(Phase::Restoring).await?;
            let error = match self.run_restore(lock).await {
                Ok(()) => break,
                Err(error) => error,
            };
            if self.context.shutdown.is_cancelled() {
                return Err(Stop::Later);
            }
            self.journal.last_error = Some(error.message.clone());
            if tries >= TRIES {
                return Err(self.given_up_with(error));
            }
            let wait = Duration::from_secs(u64::from(tries) * 2);
            let text = format!(
                "pgbackrest restore failed ({}); trying the same again in {} s",
                error.message,
                wait.as_secs()
            );
            self.recorder.say(Level::Warn, text).await;
            tokio::select! {
                () = sleep(wait) => {}
                () = self.context.shutdown.cancelled() => return Err(Stop::Later),
            }
        }
        if let Some(control) = self.control().await {
            self.learn_from_restored(&control);
        }
        self.clear_tablespaces().await?;
        self.enter(Phase::Restored).await
    }

    /// pgBackRest has failed for good. It removes `pg_control` before anything else (seen with 2.45 to
    /// 2.60), so where that is still the same file PGDATA is what it was before the restore.
    fn given_up_with(&self, error: JobError) -> Stop {
        let now = pgdata::control_file(&self.side.data_dir);
        let untouched = now.is_some()
            && now == self.journal.control_file
            && self.journal.inherited_from.is_none()
            && matches!(pgdata::content(&self.side.data_dir), Ok(Content::Cluster(_)));
        if untouched { Stop::Aborted(error) } else { Stop::NeedsOperator(error) }
    }

    /// What the restored cluster needs to recover: settings at least as high as when it was backed
    /// up, and where PGDATA was lost also the size of its WAL segments.
    fn learn_from_restored(&mut self, control: &ControlData) {
        self.journal.segment_bytes.get_or_insert(control.segment_size.get());
        for (name, value) in &control.setting_floors {
            let floor = self.journal.setting_floors.entry(name.clone()).or_insert(*value);
            *floor = (*floor).max(*value);
        }
    }

    async fn run_restore(&mut self, lock: std::os::fd::OwnedFd) -> Result<(), JobError> {
        let settings = self.side.data_dir.join("postgresql.auto.conf");
        let again = lock.try_clone();
        match (self.pgbackrest_restore(lock, false).await, again) {
            (Err(error), Ok(lock))
                if error.exit_code == Some(41) && pgdata::is_read_only(&settings) =>
            {
                let text = "postgresql.auto.conf is read-only in the backup, so pgBackRest cannot write to \
                            it: restoring once more without that, and making it writable";
                self.recorder.say(Level::Warn, text).await;
                self.pgbackrest_restore(lock, true).await?;
                pgdata::prepare_for_recovery(&self.side.data_dir).map_err(|error| {
                    let message =
                        format!("cannot prepare {} for recovery: {error}", settings.display());
                    problem("storage-write", message, &[])
                })
            }
            (ended, _) => ended,
        }
    }

    /// One run of `pgbackrest restore`.
    async fn pgbackrest_restore(
        &mut self,
        lock: std::os::fd::OwnedFd,
        preserve: bool,
    ) -> Result<(), JobError> {
        let stanza = self.journal.stanza.clone();
        let invocation = RestoreInPlace {
            stanza: &stanza,
            repo: self.journal.repo,
            set: &self.journal.set,
            // pgBackRest looks for its history in the archive; one that is only kept is not there.
            timeline: self.journal.timeline.filter(|timeline| !self.keeps_history(*timeline)),
            databases: &self.journal.databases,
            data_dir: pgdata::behind_link(&self.side.data_dir).as_deref(),
            preserve,
        }
        .invocation();
        self.recorder.next_command();
        let stopping = Stopping {
            // A restore is not cancelled, but when Headrest stops it is ended and resumed later.
            cancel: self.context.shutdown.child_token(),
            hurry: self.context.hurry.clone(),
        };
        let env = self.context.server_env(&stanza);
        let tool = &self.context.tool;
        let ended = tool.follow(&invocation, &env, Some(lock), &stopping, self.recorder).await;
        let never = CancellationToken::new();
        worker::judge(self.context, ExitContext::Restore, ended, self.recorder, &never).map_err(
            |ended| ended.error.unwrap_or_else(|| problem("internal", "no reason was given", &[])),
        )?;
        // Success is what PGDATA shows, not what a program says.
        match pgdata::content(&self.side.data_dir) {
            Ok(Content::Cluster(_)) => Ok(()),
            Ok(other) => Err(problem(
                "pgbackrest-internal",
                format!("pgbackrest restore ended well, but PGDATA shows {other:?}"),
                &[],
            )),
            Err(error) => Err(problem("storage-read", format!("cannot read PGDATA: {error}"), &[])),
        }
    }

    /// Puts back the kept WAL, starts the server fenced, and follows it to where it ends.
    async fn recover(&mut self) -> Result<Next, Stop> {
        self.place_kept_wal().map_err(|message| {
            Stop::NeedsOperator(problem("storage-write", message, &["Free space, restore again."]))
        })?;
        self.note_recovery_begins();
        self.enter(Phase::Recovering).await?;
        self.follow_recovery().await
    }

    /// Gives the server back to its clients.
    async fn unfence(&mut self) -> Result<(), Stop> {
        self.enter(Phase::Unfencing).await?;
        let status = self.context.postgres.status();
        if status.state.has_process() {
            self.stop_server().await?;
        }
        // From here on the server is the supervisor's again, with its restarts.
        self.order(Order::LowerFence).await.map_err(|refusal| self.refused(&refusal))?;
        match self.context.postgres.order(Order::Start, Actor::Operator).await {
            Ok(()) | Err(Refusal::Running) => {}
            Err(refusal) => {
                return Err(Stop::Finished(problem(
                    "postgres-unavailable",
                    format!("the restore is complete, but PostgreSQL was not started: {refusal}"),
                    &["POST /api/v1/processes/postgres/start"],
                )));
            }
        }
        let status = self.wait_for_clients_start().await?;
        if status.state == ServerState::Starting && self.accepts_connections() {
            self.journal.warning = Some(self.cannot_connect(&status));
        } else if status.state != ServerState::Ready {
            let reason = status.reason.unwrap_or_else(|| format!("it is {}", status.state));
            return Err(Stop::Finished(problem(
                "postgres-unavailable",
                format!("the restore is complete, but PostgreSQL does not take writes: {reason}"),
                &["Look at GET /api/v1/processes/postgres/log."],
            )));
        }
        self.settle().await;
        self.warn_of_destroyed();
        self.journal.result = Some(self.result.clone());
        self.enter(Phase::Done).await
    }

    /// Waits until the server serves its clients, or cannot be started, or does not let Headrest in.
    async fn wait_for_clients_start(&mut self) -> Result<Status, Stop> {
        let began = Instant::now();
        let mut refused_since = None;
        loop {
            let ended =
                |status: &Status| matches!(status.state, ServerState::Ready | ServerState::Failed);
            let wait = self.context.postgres.wait_until(Duration::from_secs(1), ended);
            let status = tokio::select! {
                status = wait => match status {
                    Ok(status) => return Ok(status),
                    Err(last) => last,
                },
                () = self.context.shutdown.cancelled() => return Err(Stop::Later),
            };
            if self.accepts_connections() {
                let since = *refused_since.get_or_insert_with(Instant::now);
                let patience = if self.journal.role_missing { 3 } else { REFUSED_TOO_LONG_S };
                if since.elapsed() >= Duration::from_secs(patience) {
                    return Ok(status);
                }
            }
            if began.elapsed() >= START_PATIENCE {
                return Ok(status);
            }
            let reason = status.reason.as_deref().unwrap_or("it has not said why yet");
            let text = format!("PostgreSQL is {}: {reason}", status.state);
            self.recorder.stands_at(&text).await;
        }
    }

    fn accepts_connections(&self) -> bool {
        let file = PidFile::read(&self.side.data_dir).ok().flatten();
        file.is_some_and(|file| file.status == PostmasterStatus::Ready)
    }

    /// Clients can connect, and Headrest cannot.
    fn cannot_connect(&self, status: &Status) -> JobError {
        let role = &self.side.superuser;
        let reason = status.reason.as_deref().unwrap_or("no reason was given");
        if self.journal.role_missing {
            let message = format!(
                "the restore is complete and clients can connect, but the role {role:?} that \
                 Headrest connects as does not exist in the restored data: nothing is backed up or \
                 watched until it does"
            );
            let create =
                format!("Connect as a superuser and run: CREATE ROLE {role:?} SUPERUSER LOGIN");
            let other =
                "Or set postgres.superuser to a superuser that exists, and start Headrest again.";
            return problem("role-missing", message, &[&create, other]);
        }
        let message = format!(
            "the restore is complete and clients can connect, but Headrest cannot: {reason}"
        );
        let hint =
            "Look at the restored pg_hba.conf: it must let Headrest's role in on the Unix socket.";
        problem("headrest-refused", message, &[hint])
    }

    /// Writes the journal for a phase, then says that the phase has begun.
    async fn enter(&mut self, phase: Phase) -> Result<(), Stop> {
        let from = self.journal.phase;
        if from.data_is_intact() {
            // The queue knows first: from then on it refuses a cancel, so one that it took before
            // is seen here.
            self.helm.phases.tell(phase, None).await;
            self.leave_if_asked()?;
        }
        self.journal.wait_for(None, clock::now());
        self.journal.phase = from.transition(phase).map_err(|refused| {
            Stop::NeedsOperator(problem("internal", format!("a bug in Headrest: {refused}"), &[]))
        })?;
        if let Err(error) = self.write_journal().await {
            self.journal.phase = from;
            return Err(self.give_up(error));
        }
        if !from.data_is_intact() {
            self.helm.phases.tell(phase, None).await;
        }
        self.recorder.phase(phase).await;
        Ok(())
    }

    fn leave_if_asked(&self) -> Result<(), Stop> {
        if self.cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        if self.context.shutdown.is_cancelled() {
            let message = "Headrest was stopped before anything was changed";
            return Err(Stop::Aborted(problem("interrupted", message, &[])));
        }
        Ok(())
    }

    /// Writes the journal's file; and a copy into the history, for the undo, and for when the file
    /// is lost. The file is what counts.
    async fn write_journal(&mut self) -> Result<(), JobError> {
        self.journal.written_at = clock::now();
        self.context.journals.write(&self.journal).map_err(|error| {
            let message = crate::telemetry::chain(&error);
            problem("storage-write", message, &["Free space in Headrest's state directory."])
        })?;
        if let Err(error) = self.context.store.keep_journal(self.journal.clone()).await {
            tracing::error!("no copy of the restore journal: {}", crate::telemetry::chain(&error));
        }
        Ok(())
    }

    /// What giving up means now.
    fn give_up(&self, error: JobError) -> Stop {
        match self.journal.phase {
            phase if phase.data_is_intact() => Stop::Aborted(error),
            // The data is complete and may have been written to since.
            Phase::Unfencing | Phase::Done => Stop::Finished(error),
            _ => Stop::NeedsOperator(error),
        }
    }

    fn refused(&self, refusal: &Refusal) -> Stop {
        self.give_up(problem("postgres-unavailable", refusal.to_string(), &[]))
    }

    async fn order(&self, order: Order) -> Result<(), Refusal> {
        self.context.postgres.order(order, Actor::Restore(self.journal.id)).await
    }

    async fn connect(&self) -> Option<Connection> {
        let address = self.context.postgres.status().address?;
        Connection::open(&address, || {}).await.ok()
    }

    async fn control(&self) -> Option<ControlData> {
        let side = self.side;
        ControlData::read(&side.binaries, &side.env, &side.data_dir).await.ok()
    }
}
