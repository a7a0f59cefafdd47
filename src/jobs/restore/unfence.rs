//! The server is given back to its clients.

use std::time::Duration;

use tokio::time::Instant;

use super::super::worker::problem;
use super::{Run, Stop};
use crate::domain::job::JobError;
use crate::domain::restore::Phase;
use crate::postgres::pgdata::{PidFile, PostmasterStatus};
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::{Actor, Order, Refusal, Status};

/// How long the server may take to come up for its clients before the restore says so. Crash
/// recovery after this has its own progress.
const START_PATIENCE: Duration = Duration::from_mins(10);

/// For how many seconds a server that serves clients may refuse Headrest until the restore ends
/// without it.
const REFUSED_TOO_LONG_S: u64 = 10;

impl Run<'_> {
    /// Gives the server back to its clients.
    pub(super) async fn unfence(&mut self) -> Result<(), Stop> {
        self.enter(Phase::Unfencing).await?;
        let status = self.context.postgres.status();
        if status.state.has_process() {
            self.stop_server().await?;
        }
        self.remove_left_segments();
        self.remove_unborn_tablespaces().await;
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
}
