//! A stanza that has nothing yet: create it, check archiving, take the first full backup, each as
//! a visible job, at once.

use std::time::Duration;

use tokio::time::sleep;

use super::catalog::Freshness;
use super::context::Context;
use super::queue::JobsHandle;
use super::submission::{Denied, Submission};
use crate::domain::job::{BackupSpec, JobKind, JobSpec, JobState};
use crate::domain::{BackupType, StanzaName};
use crate::pgbackrest::info::StanzaStatus;
use crate::postgres::supervisor::Status;

/// Waits between tries, the last one again and again.
const WAITS: [Duration; 3] =
    [Duration::from_mins(1), Duration::from_mins(5), Duration::from_mins(15)];

/// Waits until the supervised server takes writes, then does what is missing, until nothing is.
pub async fn run(context: Context, jobs: JobsHandle, stanza: StanzaName) {
    let work = attend(context.clone(), jobs, stanza);
    let _ = context.shutdown.run_until_cancelled(work).await;
}

async fn attend(context: Context, jobs: JobsHandle, stanza: StanzaName) {
    let mut tries = 0;
    loop {
        let ready = context.postgres.wait_until(Duration::from_hours(24), Status::takes_writes);
        if ready.await.is_err() {
            continue;
        }
        match complete(&context, &jobs, &stanza).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(denied) => tracing::warn!(stanza.name = %stanza, "first start: {denied}"),
        }
        let wait = WAITS[tries.min(WAITS.len() - 1)];
        tries += 1;
        tracing::warn!(
            stanza.name = %stanza,
            "stanza {stanza} is not backed up yet; trying again in {} s", wait.as_secs()
        );
        sleep(wait).await;
    }
}

/// Does what is missing. Answers whether nothing is any more.
async fn complete(
    context: &Context,
    jobs: &JobsHandle,
    stanza: &StanzaName,
) -> Result<bool, Denied> {
    let seen = match context.catalog.observe(stanza, Freshness::New).await {
        Ok(seen) => seen,
        Err(error) => {
            tracing::warn!(stanza.name = %stanza, "cannot tell what is backed up: {error}");
            return Ok(false);
        }
    };
    let created = match seen.stanza.status.meaning() {
        StanzaStatus::MissingPath | StanzaStatus::MissingData => false,
        StanzaStatus::Ok | StanzaStatus::NoBackup => true,
        // Several repositories, not all alike, or something that only a person can judge.
        StanzaStatus::DifferentAcrossRepos
        | StanzaStatus::DatabaseMismatch
        | StanzaStatus::BackupNotFound
        | StanzaStatus::Other(_) => return Ok(!seen.stanza.backups.is_empty()),
    };
    if !seen.stanza.backups.is_empty() {
        return Ok(true);
    }
    let mut steps = Vec::new();
    if !created {
        steps.push(JobSpec::StanzaCreate { stanza: stanza.clone() });
    }
    steps.push(JobSpec::Check { stanza: stanza.clone() });
    steps.push(JobSpec::Backup(BackupSpec::plain(stanza.clone(), BackupType::Full)));
    for spec in steps {
        if spec.kind() == JobKind::Backup && has_backup(context, stanza).await {
            // Somebody was quicker.
            return Ok(true);
        }
        let job = jobs.submit(Submission::of_event(spec, "first-start")).await?;
        let job = jobs.finished(job.id).await?;
        if !matches!(job.state, JobState::Succeeded | JobState::Warned) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn has_backup(context: &Context, stanza: &StanzaName) -> bool {
    let seen = context.catalog.observe(stanza, Freshness::New).await;
    seen.is_ok_and(|seen| !seen.stanza.backups.is_empty())
}
