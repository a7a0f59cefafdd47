//! Making sure that nobody works in PGDATA: no server, no pgbackrest of an earlier restore.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;

use super::super::worker::problem;
use super::{Run, Stop};
use crate::pgbackrest::log::Level;
use crate::postgres::pgdata::{self, Occupant};
use crate::postgres::stray;
use crate::postgres::supervisor::{Order, Refusal, Status};
use crate::process::{inspect, stop};

impl Run<'_> {
    /// Waits until no process of an earlier `pgbackrest restore` lives: an orphaned worker has
    /// been seen to write to PGDATA 15 s after its main process was gone.
    pub(super) async fn lock_out_orphans(&mut self) -> Result<std::os::fd::OwnedFd, Stop> {
        for round in 0..600u32 {
            let lock = self.context.journals.try_lock(&self.journal.stanza);
            let path = self.context.journals.lock_path(&self.journal.stanza);
            let holders = inspect::holding_open(&path);
            match lock {
                // Where the lock's file was deleted they hold that one.
                Ok(Some(lock)) if holders.is_empty() => return Ok(lock),
                Ok(_) if round == 0 => {
                    let text = "processes of an earlier restore still work; ending them";
                    self.recorder.say(Level::Warn, text).await;
                }
                Ok(_) => {}
                Err(error) => {
                    let message = crate::telemetry::chain(&error);
                    return Err(self.give_up(problem("storage-write", message, &[])));
                }
            }
            for pid in holders {
                stop::signal_process(pid, if round < 50 { Signal::TERM } else { Signal::KILL });
            }
            sleep(Duration::from_millis(100)).await;
        }
        Err(self.give_up(problem(
            "worker-failed",
            "processes of an earlier pgbackrest restore do not end",
            &["End them by hand (ps -ef | grep pgbackrest), then restore again."],
        )))
    }

    /// Stops the server and waits until nobody works in PGDATA any more.
    pub(super) async fn stop_server(&mut self) -> Result<(), Stop> {
        match self.order(Order::Stop).await {
            Ok(()) | Err(Refusal::NotRunning) => {}
            Err(refusal) => return Err(self.refused(&refusal)),
        }
        let stopped =
            self.context.postgres.wait_until(self.side.stop_patience, Status::is_down).await;
        let left = pgdata::servers_in(&self.side.data_dir);
        if stopped.is_err() || !left.is_empty() {
            let error = problem(
                "postgres-running",
                format!("PostgreSQL did not leave PGDATA (processes {left:?})"),
                &["Look at what keeps it; then restore again."],
            );
            return Err(self.give_up(error));
        }
        // A server that was killed leaves its postmaster.pid, and pgbackrest refuses to restore as
        // long as that file is there, whoever it names.
        if matches!(pgdata::occupant(&self.side.data_dir), Ok(Occupant::Stale)) {
            self.recorder.say(Level::Info, "removing the postmaster.pid of a killed server").await;
            if let Err(error) = pgdata::remove_stale_pid_file(&self.side.data_dir) {
                let message = format!("cannot remove the stale postmaster.pid: {error}");
                return Err(self.give_up(problem("storage-write", message, &[])));
            }
        }
        Ok(())
    }

    /// Stops a server that an earlier Headrest left running on PGDATA.
    pub(super) async fn end_stray_server(&mut self, only_fenced: bool) -> Result<(), Stop> {
        let data_dir = &self.side.data_dir;
        let Some(pid) = stray::find(data_dir) else { return Ok(()) };
        if only_fenced && !stray::is_fenced(data_dir) {
            return Ok(());
        }
        let text = format!("stopping the server that is left from before (pid {pid})");
        self.recorder.say(Level::Info, text).await;
        if stray::end(data_dir, pid).await {
            return Ok(());
        }
        Err(Stop::NeedsOperator(problem(
            "postgres-running",
            format!("a server that is left from before does not leave PGDATA (pid {pid})"),
            &["End it by hand, then restore again."],
        )))
    }
}
