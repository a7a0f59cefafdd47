//! How a restore comes to its end: what is told, and whose the server is then.

use std::fs;
use std::time::Duration;

use tokio::time::sleep;

use super::super::worker::{Ended, problem};
use super::wal::give_back;
use super::{Run, Stop};
use crate::clock;
use crate::domain::BackupType;
use crate::domain::job::{BackupSpec, JobError, JobResult, JobSpec, Outcome, RestoreSpec};
use crate::domain::restore::{Journal, Phase};
use crate::postgres::pgdata::{self, Content};
use crate::postgres::supervisor::{Actor, Order, Status};

/// How often it is tried to write the end of a restore down.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// The code of what is said of databases that cannot be used.
pub(super) const DESTROYED: &str = "database-destroyed";

impl Run<'_> {
    /// Ends a restore as `stopped` says.
    pub(super) async fn close(&mut self, stopped: Result<(), Stop>, spec: &RestoreSpec) -> Ended {
        let result = Some(JobResult::Restore(self.result.clone()));
        match stopped {
            Ok(()) => of_done(&self.journal, spec),
            Err(Stop::Finished(error)) => {
                // The data is complete: it is the supervisor's and the operators' again.
                if let Err(refusal) = self.order(Order::LowerFence).await {
                    tracing::debug!("the fence was down already: {refusal}");
                }
                Ended { result, error: Some(error), ..Ended::with(Outcome::Failed) }
            }
            Err(Stop::Cancelled) => {
                self.go_on_as_before().await;
                let error = problem("cancelled", "cancelled before anything was changed", &[]);
                Ended { error: Some(error), ..Ended::with(Outcome::Cancelled) }
            }
            Err(Stop::Aborted(error)) => {
                self.go_on_as_before().await;
                let interrupted = self.context.shutdown.is_cancelled();
                let outcome = if interrupted { Outcome::Interrupted } else { Outcome::Failed };
                Ended { error: Some(error), ..Ended::with(outcome) }
            }
            Err(Stop::Later) => Ended { outcome: None, ..Ended::with(Outcome::Interrupted) },
            Err(Stop::NeedsOperator(mut error)) => {
                if self.order(Order::Stop).await.is_ok() {
                    let patience = self.side.stop_patience;
                    let _ = self.context.postgres.wait_until(patience, Status::is_down).await;
                }
                self.journal.last_error = Some(error.message.clone());
                // The fence stays: PGDATA is not a database.
                if self.enter(Phase::NeedsOperator).await.is_err() {
                    tracing::error!("cannot note in the journal that a restore was given up");
                }
                error.hints.push(
                    "PostgreSQL stays down. Correct the cause and restore again: POST \
                     /api/v1/stanzas/STANZA/restores"
                        .to_owned(),
                );
                Ended { result, ..Ended::failed(error) }
            }
        }
    }

    /// Nothing was changed: the server goes on. The journal says so before the WAL that was kept goes, and
    /// before anybody can commit.
    async fn go_on_as_before(&mut self) {
        let pg_wal = self.side.data_dir.join("pg_wal");
        let kept = self.journal.kept_wal.clone();
        let own = self.journal.timeline_before;
        match give_back(&pg_wal, kept.as_deref(), own, self.segment_size()) {
            Ok(()) => self.journal.kept_wal = None,
            Err(error) => {
                // Then it stays where it is.
                tracing::warn!("cannot give back WAL to {}: {error}", pg_wal.display());
            }
        }
        let was_intact = self.journal.phase.data_is_intact();
        match self.journal.phase.transition(Phase::Aborted) {
            Ok(aborted) => self.journal.phase = aborted,
            Err(refused) => tracing::error!("a bug in a restore's end: {refused}"),
        }
        self.journal.wait_for(None, clock::now());
        while let Err(error) = self.write_journal().await {
            tracing::error!("cannot close the restore journal: {}", error.message);
            // The next start of Headrest reads the journal on the disk. Where that would restore once more,
            // PostgreSQL must not take commits meanwhile.
            if was_intact {
                break;
            }
            self.recorder.stands_at(&format!("PostgreSQL stays down: {}", error.message)).await;
            tokio::select! {
                () = sleep(WRITE_EVERY) => {}
                () = self.context.shutdown.cancelled() => return,
            }
        }
        if self.journal.kept_wal.is_none()
            && let Some(kept) = kept
            && let Err(error) = fs::remove_dir_all(&kept)
        {
            tracing::warn!("cannot remove {}: {error}", kept.display());
        }
        self.recorder.phase(Phase::Aborted).await;
        if let Err(refusal) = self.order(Order::LowerFence).await {
            tracing::error!("cannot lower the fence: {refusal}");
            return;
        }
        if self.context.shutdown.is_cancelled() {
            return;
        }
        let content = pgdata::content(&self.side.data_dir);
        let state = self.context.postgres.status().state;
        if !state.has_process() && matches!(content, Ok(Content::Cluster(_))) {
            // It may have been down before, but then somebody wanted it back.
            let _ = self.context.postgres.order(Order::Start, Actor::Operator).await;
        }
    }
}

/// How a restore ended whose journal says that it is done.
pub(in crate::jobs) fn of_done(journal: &Journal, spec: &RestoreSpec) -> Ended {
    let result = journal.result.clone().map(JobResult::Restore);
    // Where Headrest cannot connect a backup could not either.
    let cannot_connect = |warning: &JobError| warning.code != DESTROYED;
    let follow_up = (spec.backup_after && !journal.warning.as_ref().is_some_and(cannot_connect))
        .then(|| full_backup_of(spec));
    let warning = journal.warning.clone();
    if journal.abandoned {
        let mut error =
            problem("cancelled", "abandoned; what was there before the restore is back", &[]);
        if let Some(warning) = warning {
            error.message = format!("{}; {}", error.message, warning.message);
            error.hints = warning.hints;
        }
        return Ended { result, error: Some(error), follow_up, ..Ended::with(Outcome::Cancelled) };
    }
    let outcome = if warning.is_some() { Outcome::Warned } else { Outcome::Succeeded };
    Ended { result, error: warning, follow_up, ..Ended::with(outcome) }
}

fn full_backup_of(spec: &RestoreSpec) -> JobSpec {
    JobSpec::Backup(BackupSpec::plain(spec.stanza.clone(), BackupType::Full))
}
