//! An empty PGDATA that is to be restored from the repository, and not made by initdb.
//!
//! The restore is an ordinary one. Until there is something to restore from it is tried again and
//! again, and nothing else makes a cluster meanwhile.

use std::time::Duration;

use tokio::time::sleep;

use super::catalog::{FRESH_ENOUGH, Freshness};
use super::context::Context;
use super::plans::{Plan, PlanError, PlanRequest, Planner};
use super::queue::JobsHandle;
use super::submission::Submission;
use crate::domain::StanzaName;
use crate::domain::job::{JobSpec, JobState, OnConflict, RestoreSpec};
use crate::domain::plan::Unreachable;
use crate::domain::recovery::RecoveryTarget;
use crate::postgres::copies;
use crate::postgres::pgdata::{self, Content};
use crate::postgres::supervisor::{Actor, Archiving, Order};
use crate::telemetry;

/// What asks for such a restore. The queue takes it for an empty PGDATA alone.
pub const TRIGGER: &str = "bootstrap";
/// How long until it is tried again.
const WAIT: Duration = Duration::from_secs(30);

/// Restores PGDATA to `target`, once that is possible.
pub async fn run(context: Context, jobs: JobsHandle, target: RecoveryTarget) {
    let work = Box::pin(attend(context.clone(), jobs, target));
    let _ = context.shutdown.run_until_cancelled(work).await;
}

async fn attend(context: Context, jobs: JobsHandle, target: RecoveryTarget) {
    hold(&context, format!("PGDATA is empty and is to be restored to {target}")).await;
    loop {
        if !is_empty(&context) {
            tracing::info!("PGDATA is not empty any more: nothing is restored to {target}");
            return;
        }
        let Err(why) = restore(&context, &jobs, &target).await else { return };
        let wait = WAIT.as_secs();
        let text = format!(
            "PGDATA is empty and cannot be restored to {target}: {why}; trying again in {wait} s"
        );
        hold(&context, text).await;
        sleep(WAIT).await;
    }
}

/// Whether there is nothing that could be lost.
fn is_empty(context: &Context) -> bool {
    let content = context.server.as_ref().map(|side| pgdata::content(&side.data_dir));
    matches!(content, Some(Ok(Content::Empty)))
}

/// The error is why it did not begin. What comes after the beginning is the restore's own affair:
/// it has told it, and nothing is begun again without somebody who has looked.
async fn restore(
    context: &Context,
    jobs: &JobsHandle,
    target: &RecoveryTarget,
) -> Result<(), String> {
    let Some(server) = &context.server else { return Ok(()) };
    let stanza = &server.stanza;
    let plan = plan(context, jobs, stanza, target).await?;
    let refusing: Vec<_> = plan.refusing().iter().map(|check| check.detail.clone()).collect();
    if !refusing.is_empty() {
        return Err(refusing.join("; "));
    }
    let backup_after = server.archiving == Archiving::Ours;
    let spec = RestoreSpec { backup_after, ..plan.spec() };
    let submission = Submission {
        // What somebody else has begun meanwhile goes before; the next try sees what came of it.
        on_conflict: OnConflict::Refuse,
        ..Submission::of_event(JobSpec::Restore(spec), TRIGGER)
    };
    if server.archiving == Archiving::Off {
        copies::mark(&server.state_dir, None).map_err(|error| error.to_string())?;
    }
    let job = jobs.submit(submission).await.map_err(|denied| denied.to_string())?;
    match jobs.finished(job.id).await {
        Ok(job) if matches!(job.state, JobState::Succeeded | JobState::Warned) => {
            if server.archiving == Archiving::Off
                && let Err(error) = copies::mark(&server.state_dir, Some(&server.data_dir))
            {
                tracing::error!("cannot note in PGDATA that this is a copy: {error}");
            }
        }
        Ok(_) | Err(_) => {
            let text = format!("restore {} of an empty PGDATA did not succeed", job.id);
            hold(context, text).await;
        }
    }
    Ok(())
}

/// A Headrest that has only just come here knows of no names and transactions where in the WAL
/// they are. Every backup that ended before will do, so the oldest that can be planned with is taken.
async fn plan(
    context: &Context,
    jobs: &JobsHandle,
    stanza: &StanzaName,
    target: &RecoveryTarget,
) -> Result<Plan, String> {
    let planner = Planner::new(context.clone());
    let mut request = PlanRequest::to(target.clone());
    let mut planned = planner.plan(stanza, request.clone(), jobs.lane(stanza)).await;
    if matches!(planned, Err(PlanError::Refused(Unreachable::UnknownPlace(_)))) {
        let seen = context.catalog.observe(stanza, Freshness::Within(FRESH_ENOUGH)).await;
        let seen = seen.map_err(|error| telemetry::chain(&error))?;
        let newest_database = seen.stanza.backups.iter().map(|backup| backup.database_id).max();
        let mut backups: Vec<_> = seen.stanza.backups.iter().collect();
        backups.retain(|backup| Some(backup.database_id) == newest_database);
        backups.sort_by_key(|backup| backup.stopped_at);
        for backup in backups {
            request.wish.set = Some(backup.label.clone());
            planned = planner.plan(stanza, request.clone(), jobs.lane(stanza)).await;
            if planned.is_ok() {
                break;
            }
        }
    }
    planned.map_err(|error| telemetry::chain(&error))
}

async fn hold(context: &Context, reason: String) {
    // A restore that holds the fence has its own reason.
    let _ = context.postgres.order(Order::Hold(reason), Actor::Operator).await;
}
