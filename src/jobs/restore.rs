//! Carrying out an in-place restore, phase by phase (`domain::restore` has the diagram).
//!
//! Written as if the power fails after each line: the journal reaches the disk before the phase it
//! names begins, each phase can be entered again, and PostgreSQL is started only where the journal
//! says that PGDATA is a database.

mod close;
mod drain;
mod files;
mod finish;
mod forks;
mod prepare;
mod quiet;
mod recover;
mod settle;
mod steer;
mod tablespaces;
mod unfence;
mod waiting;
mod wal;
mod wholeness;

use std::collections::BTreeMap;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::{Context, ServerSide};
use super::queue::Helm;
use super::recorder::Recorder;
pub(super) use close::of_done;
pub(super) use wal::give_back;

use super::worker::{Ended, problem};
use crate::clock;
use crate::domain::Lsn;
use crate::domain::job::{JobError, JobId, RestoreResult, RestoreSpec};
use crate::domain::restore::{Awaiting, BootAction, Journal, Phase};
use crate::pgbackrest::log::Level;
use crate::postgres::client::Connection;
use crate::postgres::control::ControlData;
use crate::postgres::supervisor::{Actor, Order, Refusal};

/// How often `pgbackrest restore`, or a promotion, is tried.
const TRIES: u32 = 3;

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

    /// Puts back the kept WAL, starts the server fenced, and follows it to where it ends.
    async fn recover(&mut self) -> Result<Next, Stop> {
        self.place_kept_wal().map_err(|message| {
            Stop::NeedsOperator(problem("storage-write", message, &["Free space, restore again."]))
        })?;
        self.note_recovery_begins();
        self.enter(Phase::Recovering).await?;
        self.follow_recovery().await
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
