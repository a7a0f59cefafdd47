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
use crate::domain::job::{JobSpec, JobState, OnConflict, RestoreSpec, Trigger};
use crate::domain::plan::Unreachable;
use crate::domain::recovery::RecoveryTarget;
use crate::postgres::supervisor::{Actor, Archiving, Order};
use crate::telemetry;

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
        let Err(why) = restore(&context, &jobs, &target).await else { return };
        let wait = WAIT.as_secs();
        hold(
            &context,
            format!("PGDATA is empty and cannot be restored to {target}: {why}; trying again in {wait} s"),
        )
        .await;
        sleep(WAIT).await;
    }
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
        spec: JobSpec::Restore(spec),
        trigger: Trigger::Event("bootstrap".to_owned()),
        by: "headrest".to_owned(),
        on_conflict: OnConflict::Queue,
        idempotency_key: None,
    };
    let job = jobs.submit(submission).await.map_err(|denied| denied.to_string())?;
    match jobs.finished(job.id).await {
        Ok(job) if matches!(job.state, JobState::Succeeded | JobState::Warned) => {}
        Ok(_) | Err(_) => {
            let text = format!("restore {} of an empty PGDATA did not succeed", job.id);
            hold(context, text).await;
        }
    }
    Ok(())
}

/// A Headrest that has only just come here knows of no names and transactions where in the WAL
/// they are. Every backup that ended before will do, so the first one does if any does.
async fn plan(
    context: &Context,
    jobs: &JobsHandle,
    stanza: &StanzaName,
    target: &RecoveryTarget,
) -> Result<Plan, String> {
    let planner = Planner::new(context.clone());
    let mut request = PlanRequest::to(target.clone());
    let planned = planner.plan(stanza, request.clone(), jobs.lane(stanza)).await;
    let planned = match planned {
        Err(PlanError::Refused(Unreachable::UnknownPlace(_))) => {
            let seen = context.catalog.observe(stanza, Freshness::Within(FRESH_ENOUGH)).await;
            let seen = seen.map_err(|error| telemetry::chain(&error))?;
            let first = seen.stanza.backups.iter().min_by_key(|backup| backup.stopped_at);
            request.wish.set = first.map(|backup| backup.label.clone());
            planner.plan(stanza, request, jobs.lane(stanza)).await
        }
        planned => planned,
    };
    planned.map_err(|error| telemetry::chain(&error))
}

async fn hold(context: &Context, reason: String) {
    // A restore that holds the fence has its own reason.
    let _ = context.postgres.order(Order::Hold(reason), Actor::Operator).await;
}
