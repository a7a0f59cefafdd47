//! What a start of Headrest finds of an earlier one: unfinished jobs, and above all a restore.
//!
//! Runs before anything may start PostgreSQL.

use std::time::Duration;

use rustix::process::Pid;

use super::context::{ServerSide, Wake};
use super::journal::{JournalError, Journals};
use super::recorder::event;
use super::restore::{self, give_back};
use super::worker::{Ended, problem};
use crate::clock;
use crate::domain::SegmentSize;
use crate::domain::job::{
    Job, JobError, JobEvent, JobId, JobKind, JobSpec, Outcome, RestoreSpec, Trigger,
};
use crate::domain::restore::{BootAction, Journal, Phase, on_boot};
use crate::postgres::control::ControlData;
use crate::postgres::{pgdata, stray};
use crate::process::inspect::{self, ProcessIdentity};
use crate::process::stop;
use crate::store::{JobFilter, Store, StoreError};

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// A restore to go on with.
    pub resume: Option<(Job, Journal, BootAction)>,
    /// PostgreSQL must not be started but by this restore.
    pub fenced_by: Option<JobId>,
    /// What should follow a restore that was done, and was not asked for yet.
    pub follow_up: Option<JobSpec>,
}

/// Why nothing may be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The history cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The restore journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Reads the restore journal, ends what is left of earlier jobs, and closes those jobs.
pub async fn look_back(
    store: &Store,
    journals: &Journals,
    wake: &Wake,
    side: Option<&ServerSide>,
) -> Result<Found, BootError> {
    let unfinished = store.unfinished_jobs().await?;
    for (job, process) in &unfinished {
        if let Some(process) = process {
            end_leftovers(job.id, process).await;
        }
    }
    let mut found = Found::default();
    let journal = match side {
        Some(side) => journal_of(store, journals, side).await?,
        None => None,
    };
    if let (Some(side), Some(journal)) = (side, &journal) {
        found = unfinished_restore(store, journals, side, journal.clone(), &unfinished).await?;
    }
    let resumed = found.resume.as_ref().map(|(job, ..)| job.id);
    let done = journal.filter(|journal| journal.phase == Phase::Done);
    for (job, _) in unfinished {
        let own = done.as_ref().filter(|journal| journal.id == job.id);
        match (own, job.spec.clone()) {
            (Some(journal), JobSpec::Restore(spec)) => {
                close(store, wake, job, restore::of_done(journal, &spec)).await?;
            }
            _ if Some(job.id) != resumed => close(store, wake, job, interrupted()).await?,
            _ => {}
        }
    }
    if let Some(journal) = done {
        found.follow_up = owed_backup(store, &journal).await?;
    }
    settle_keys(store).await?;
    Ok(found)
}

/// The restore journal; from its copy in the history when its file is gone.
async fn journal_of(
    store: &Store,
    journals: &Journals,
    side: &ServerSide,
) -> Result<Option<Journal>, BootError> {
    let read = journals.read(&side.stanza)?;
    if read.is_some() {
        return Ok(read);
    }
    let newest = store.kept_journals(side.stanza.clone(), 1).await?.into_iter().next();
    let Some(copy) = newest.filter(|copy| !copy.phase.is_over()) else { return Ok(None) };
    let sound = matches!(pgdata::content(&side.data_dir), Ok(pgdata::Content::Cluster(_)))
        && !pgdata::recovers(&side.data_dir);
    if copy.phase == Phase::NeedsOperator && sound {
        // Somebody has mended PGDATA and moved the journal away, as it says there.
        return Ok(None);
    }
    tracing::error!(
        job.id = %copy.id, restore.phase = %copy.phase,
        "the restore journal is gone; its copy in the history says that restore {} was in phase {}",
        copy.id, copy.phase
    );
    journals.write(&copy)?;
    Ok(Some(copy))
}

async fn unfinished_restore(
    store: &Store,
    journals: &Journals,
    side: &ServerSide,
    mut journal: Journal,
    unfinished: &[(Job, Option<String>)],
) -> Result<Found, BootError> {
    if journal.phase.is_over() {
        return Ok(Found::default());
    }
    let id = journal.id;
    let identity = pgdata::identity(&side.data_dir).unwrap_or_default();
    if journal.pgdata_identity != (0, 0) && journal.pgdata_identity != identity {
        tracing::error!(
            job.id = %id,
            "the restore journal is about another directory than the present {}: nothing is \
             started. Mount the right one and start Headrest again",
            side.data_dir.display()
        );
        return Ok(Found { fenced_by: Some(id), ..Found::default() });
    }
    // A fenced server that is still there is ended before its control data is believed.
    if matches!(journal.phase, Phase::Recovering | Phase::Verified | Phase::Promoting)
        && let Some(postmaster) = stray::find(&side.data_dir)
    {
        tracing::info!(process.pid = %postmaster, "ending the fenced server of an earlier restore");
        stray::end(&side.data_dir, postmaster).await;
    }
    let control = ControlData::read(&side.binaries, &side.env, &side.data_dir).await.ok();
    let action = on_boot(&journal, control.map(|control| control.facts()));
    tracing::warn!(
        job.id = %id, restore.phase = %journal.phase,
        "an earlier Headrest ended in phase {} of restore {id}: {action:?}", journal.phase
    );
    match action {
        BootAction::Nothing => Ok(Found::default()),
        BootAction::Abort => {
            // Not there if it did not come to that.
            let kept = journals.kept_wal_dir(&journal);
            let pg_wal = side.data_dir.join("pg_wal");
            let size = journal.segment_bytes.and_then(|bytes| SegmentSize::try_from(bytes).ok());
            let (own, size) = (journal.timeline_before, size.unwrap_or_default());
            let given = give_back(&pg_wal, Some(&kept), own, size);
            journal.kept_wal = given.as_ref().err().map(|_| kept.clone());
            journal.phase = Phase::Aborted;
            journal.written_at = clock::now();
            journals.write(&journal)?;
            match given {
                Ok(()) => {
                    let _ = std::fs::remove_dir_all(&kept);
                }
                Err(error) => {
                    tracing::warn!("cannot give back WAL to {}: {error}", pg_wal.display());
                }
            }
            store.keep_journal(journal).await?;
            Ok(Found::default())
        }
        BootAction::StayDown => Ok(Found { fenced_by: Some(id), ..Found::default() }),
        BootAction::RestoreAgain | BootAction::Recover | BootAction::Unfence => {
            let known = unfinished.iter().find(|(job, _)| job.id == id).map(|(job, _)| job.clone());
            let mut job = match known {
                Some(job) => job,
                None => adopt(store, &journal).await?,
            };
            job.restore_phase = Some(journal.phase);
            // It waits for nobody before its server is back.
            journal.wait_for(None, clock::now());
            store.keep_journal(journal.clone()).await?;
            let resume = Some((job, journal, action));
            Ok(Found { resume, fenced_by: Some(id), follow_up: None })
        }
    }
}

/// The journal is the truth: a restore that the history does not know as running is added to it.
async fn adopt(store: &Store, journal: &Journal) -> Result<Job, StoreError> {
    let now = clock::now();
    let spec = JobSpec::Restore(RestoreSpec {
        on_reached: journal.on_reached,
        databases: journal.databases.clone(),
        accept: journal.accept.clone(),
        undoes: journal.undoes,
        ..RestoreSpec::new(journal.stanza.clone(), journal.target.clone())
    });
    let trigger = Trigger::Event("restore-journal".to_owned());
    let known = store.job(journal.id).await?.is_some();
    // The id of a job that has ended is not used again.
    let id = if known { JobId::new(now) } else { journal.id };
    let job = Job::queued(id, spec, trigger, journal.by.clone(), now);
    store.insert_job(job.clone(), None).await?;
    Ok(job)
}

/// Ends the processes that an earlier Headrest left at work for a job.
async fn end_leftovers(job: JobId, process: &str) {
    let Ok(identity) = serde_json::from_str::<ProcessIdentity>(process) else { return };
    let Some(group) = Pid::from_raw(identity.pid) else { return };
    // A pid that another process has by now is not ours; one that nobody has, while its group has
    // members, can only be ours, because a group's id is not given away while it has any.
    let other = ProcessIdentity::of(group).is_some_and(|now| now != identity);
    if other || inspect::group_members(group).is_empty() {
        return;
    }
    let how = stop::stop_group(group, Duration::from_secs(10)).await;
    tracing::warn!(job.id = %job, process.group = %group, ?how, "ended what job {job} left behind");
}

/// The full backup after a restore, when Headrest ended between the end of the restore and asking for
/// that.
async fn owed_backup(store: &Store, journal: &Journal) -> Result<Option<JobSpec>, StoreError> {
    let Some(job) = store.job(journal.id).await? else { return Ok(None) };
    let JobSpec::Restore(spec) = &job.spec else { return Ok(None) };
    let Some(owed) = restore::of_done(journal, spec).follow_up else { return Ok(None) };
    let filter = JobFilter {
        kind: Some(JobKind::Backup),
        stanza: Some(journal.stanza.clone()),
        limit: 100,
        ..JobFilter::default()
    };
    let backups = store.jobs(filter).await?;
    let since = backups.iter().any(|backup| backup.created_at >= journal.written_at);
    Ok((!since).then_some(owed))
}

/// How a job ended that Headrest left under way.
fn interrupted() -> Ended {
    let error = problem(
        "interrupted",
        "Headrest ended while this job was under way",
        &["Start it again if it is still wanted."],
    );
    let error = Some(JobError { retryable: true, ..error });
    Ended { error, ..Ended::with(Outcome::Interrupted) }
}

/// Closes a job that nobody works for any more.
async fn close(store: &Store, wake: &Wake, mut job: Job, ended: Ended) -> Result<(), StoreError> {
    (job.result, job.error) = (ended.result, ended.error);
    let outcome = ended.outcome.unwrap_or(Outcome::Interrupted);
    if let Err(refused) = job.apply(JobEvent::Finish(outcome), clock::now()) {
        tracing::error!(job.id = %job.id, "a bug in the boot: {refused}");
        return Ok(());
    }
    tracing::warn!(job.id = %job.id, "job {} had not been closed: it {outcome}", job.id);
    let data = serde_json::json!({ "state": job.state, "outcome": job.state.outcome() });
    let last = store.update_state(job, vec![event("state", data.to_string())]).await?;
    wake.stored(last);
    Ok(())
}

/// A request that was cut off is free to be made again, unless its job was made: such a key stays
/// claimed, and the job is found through the list of jobs.
async fn settle_keys(store: &Store) -> Result<(), StoreError> {
    for (key, job) in store.unsettled_keys().await? {
        if job.is_none() {
            store.settle_key(key, None).await?;
        }
    }
    Ok(())
}
