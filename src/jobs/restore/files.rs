//! The files of PGDATA: `pgbackrest restore`, until it succeeds or is given up.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::worker::{self, problem};
use super::{Run, Stop, TRIES};
use crate::domain::job::JobError;
use crate::domain::restore::Phase;
use crate::pgbackrest::command::RestoreInPlace;
use crate::pgbackrest::exit::Context as ExitContext;
use crate::pgbackrest::log::Level;
use crate::pgbackrest::runner::Stopping;
use crate::postgres::control::ControlData;
use crate::postgres::pgdata::{self, Content};

impl Run<'_> {
    /// Runs `pgbackrest restore` until it succeeds.
    pub(super) async fn restore_files(&mut self) -> Result<(), Stop> {
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
    pub(super) fn learn_from_restored(&mut self, control: &ControlData) {
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
                if error.exit_code == Some(41)
                    && error.message.contains("postgresql.auto.conf")
                    && pgdata::is_read_only(&settings) =>
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
}
