//! Before anything is touched: the journal made from what the plan pinned, and a last look whether
//! it still holds.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;

use super::super::archive::databases_of;
use super::super::catalog::Freshness;
use super::super::context::{Context, ServerSide};
use super::super::plans::{PlanRequest, Planner};
use super::super::recorder::Recorder;
use super::super::worker::problem;
use crate::clock;
use crate::domain::StanzaName;
use crate::domain::job::{JobError, JobId, RestoreSpec};
use crate::domain::plan::Wish;
use crate::domain::plan::check::CheckId;
use crate::domain::recovery::TargetTimeline;
use crate::domain::restore::{Journal, Pinned};
use crate::domain::{SegmentSize, WalSegment};
use crate::pgbackrest::log::Level;
use crate::postgres::control::ControlData;
use crate::postgres::pgdata;

/// How old a look at the repository may be that follows another one.
const RECENT: Duration = Duration::from_secs(1);
/// How long a plan holds for a job that begins at once.
const PLAN_HOLDS: SignedDuration = SignedDuration::from_secs(2);
/// How long a pgbackrest that somebody runs outside of Headrest may go on before a restore is
/// refused.
const FOREIGN_LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Makes the journal, or says why the restore cannot begin.
pub(super) async fn journal(
    context: &Context,
    side: &ServerSide,
    spec: &RestoreSpec,
    id: JobId,
    by: String,
    recorder: &mut Recorder,
) -> Result<Journal, JobError> {
    let earlier = context
        .journals
        .read(&spec.stanza)
        .map_err(|error| problem("restore-journal", crate::telemetry::chain(&error), &[]))?;
    let pinned = pin(context, spec).await?;
    let data_dir = &side.data_dir;
    let control = match ControlData::read(&side.binaries, &side.env, data_dir).await {
        Ok(control) => Some(control),
        Err(error) => {
            let text = format!("no control data of the present cluster: {error}");
            recorder.say(Level::Warn, text).await;
            None
        }
    };
    // Of another cluster, which is to be replaced, nothing says anything about the backups' cluster.
    let control = control.filter(|control| {
        pinned.system_id.as_ref().is_none_or(|backups_of| control.system_id == *backups_of)
    });
    // While something recovers in PGDATA its control data is the backup's.
    let own = control.as_ref().filter(|_| !pgdata::recovers(data_dir));
    let timeline = pinned.timeline;
    let (stanza, target) = (spec.stanza.clone(), spec.target.clone());
    let accepted = Journal::accepted(id, stanza, by, target, pinned, clock::now());
    let mut journal = Journal {
        pgdata: data_dir.clone(),
        pgdata_identity: pgdata::identity(data_dir).unwrap_or_default(),
        system_id: accepted
            .system_id
            .clone()
            .or_else(|| control.as_ref().map(|control| control.system_id.clone())),
        timeline_before: own.map(|control| control.timeline),
        segment_bytes: control.as_ref().map(|control| control.segment_size.get()),
        setting_floors: control.map(|control| control.setting_floors).unwrap_or_default(),
        on_reached: spec.on_reached,
        databases: spec.databases.clone(),
        accept: spec.accept.clone(),
        undoes: spec.undoes,
        ..accepted
    };
    let same_place = |earlier: &Journal| {
        earlier.pgdata_identity == (0, 0) || earlier.pgdata_identity == journal.pgdata_identity
    };
    if let Some(earlier) = earlier.filter(same_place) {
        journal.inherit(&earlier);
    }
    if let Some(undoes) = spec.undoes
        && journal.kept_wal.is_none()
    {
        bring_kept_wal(context, &mut journal, undoes).await?;
    }
    let text = format!(
        "backup set {} of repository {} is restored, to {} on timeline {}",
        journal.set, journal.repo, journal.target, timeline
    );
    recorder.say(Level::Info, text).await;
    Ok(journal)
}

/// What the plan pinned. It was made when the restore was asked for: if the job has waited since, it
/// is made again, as is that of a request without a plan (of an earlier version).
async fn pin(context: &Context, spec: &RestoreSpec) -> Result<Pinned, JobError> {
    let pinned = spec.pinned.as_deref();
    let is_recent = |at: Timestamp| clock::now().duration_since(at).abs() <= PLAN_HOLDS;
    if let Some(pinned) = pinned.filter(|pinned| pinned.planned_at.is_some_and(is_recent)) {
        return Ok(pinned.clone());
    }
    let request = PlanRequest {
        wish: Wish {
            target: spec.target.clone(),
            set: pinned.map(|pinned| pinned.set.clone()),
            repo: pinned.map(|pinned| pinned.repo),
            timeline: pinned.map(|pinned| TargetTimeline::Number(pinned.timeline)),
        },
        on_reached: spec.on_reached,
        databases: spec.databases.clone(),
        accept: spec.accept.clone(),
    };
    let plan = Planner::new(context.clone()).plan(&spec.stanza, request, None).await;
    let plan = plan.map_err(|error| {
        let hint = "Make a new plan: POST /api/v1/stanzas/STANZA/restore-plans";
        problem("plan-stale", crate::telemetry::chain(&error), &[hint])
    })?;
    let refusing = plan.refusing();
    if !refusing.is_empty() {
        let told: Vec<String> =
            refusing.iter().map(|check| format!("{}: {}", check.id, check.detail)).collect();
        return Err(problem("restore-refused", told.join("; "), &[]));
    }
    Ok(plan.pinned())
}

/// An undo needs the WAL that the restore it undoes had kept and could not archive since.
async fn bring_kept_wal(
    context: &Context,
    journal: &mut Journal,
    undoes: JobId,
) -> Result<(), JobError> {
    let kept = context.store.kept_journal(undoes).await;
    let kept = kept.map_err(|error| problem("internal", crate::telemetry::chain(&error), &[]))?;
    let Some(undone) = kept else { return Ok(()) };
    let Some(kept) = undone.kept_wal else { return Ok(()) };
    if !kept.exists() {
        if journal.accept.contains(&CheckId::WalLoss) {
            return Ok(());
        }
        let message = format!(
            "the WAL that restore {undoes} had kept in {} is gone, and only it had the last commits of \
             before",
            kept.display()
        );
        let hint = "Undo it with \"accept\": [\"wal-loss\"] if what the archive has is enough.";
        return Err(problem("restore-refused", message, &[hint]));
    }
    let own = context.journals.kept_wal_dir(journal);
    super::wal::copy_directory(&kept, &own).map_err(|error| {
        let message = format!("cannot take over the WAL kept in {}: {error}", kept.display());
        problem("storage-write", message, &["Free space in the state directory."])
    })?;
    journal.kept_wal = Some(own);
    journal.unarchived = undone.unarchived;
    Ok(())
}

/// A backup or expire that somebody runs by hand would be hurt, or hurt us: `expire` has been seen
/// to kill a restore. Ours are excluded by the lane.
pub(super) async fn wait_for_foreign_lock(
    context: &Context,
    stanza: &StanzaName,
    recorder: &mut Recorder,
) -> Result<(), JobError> {
    let deadline = tokio::time::Instant::now() + FOREIGN_LOCK_PATIENCE;
    let mut said = false;
    loop {
        let seen = context.catalog.observe(stanza, Freshness::New).await;
        if !seen.is_ok_and(|seen| seen.stanza.status.lock.backup.held) {
            return Ok(());
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(JobError {
                retryable: true,
                ..problem(
                    "lock-held",
                    "a pgbackrest backup or expire that Headrest did not start is running",
                    &["Wait for its end or end it, then restore again."],
                )
            });
        }
        if !said {
            said = true;
            let text = "waiting for a pgbackrest that was started outside of Headrest";
            recorder.say(Level::Info, text).await;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// The newest segment on the timeline that the server was on that the archive must have, from all
/// that can be known: what precedes the last checkpoint's segment was archived or still shows as
/// `.ready`.
pub(super) async fn archive_end(
    context: &Context,
    control: Option<&ControlData>,
    journal: &Journal,
    segment_size: SegmentSize,
) -> Option<WalSegment> {
    let before_redo = control
        .and_then(|control| WalSegment::parse(&control.redo_segment, segment_size).ok())
        .and_then(|segment| segment.previous());
    // The server is down: what was pushed since a recent look is known to the caller.
    let seen = match context.catalog.last(&journal.stanza) {
        Some(Ok(seen)) if seen.age() <= RECENT => Some(seen),
        _ => context.catalog.observe(&journal.stanza, Freshness::New).await.ok(),
    };
    let stanza = seen.as_ref().map(|seen| &seen.stanza);
    let own: Vec<_> = stanza
        .into_iter()
        .flat_map(|stanza| databases_of(stanza, journal.system_id.as_deref()))
        .map(|database| (database.repo_key, database.id))
        .collect();
    let in_archive = stanza
        .into_iter()
        .flat_map(|stanza| &stanza.archives)
        .filter(|archive| own.contains(&(archive.repo_key, archive.database_id)))
        .filter_map(|archive| archive.max.as_deref())
        .filter_map(|name| WalSegment::parse(name, segment_size).ok())
        // What another timeline has says nothing about ours.
        .filter(|segment| journal.timeline.is_none_or(|ours| segment.timeline() == ours));
    let known_before = journal.archived_until.as_deref();
    let known_before = known_before.and_then(|name| WalSegment::parse(name, segment_size).ok());
    in_archive.chain(before_redo).chain(known_before).max_by_key(WalSegment::number)
}

/// Once more, now that nobody changes PGDATA any more: an entry that cannot be replaced would be
/// found only when `pg_control` is gone.
pub(super) async fn refuse_foreign_entries(data_dir: std::path::PathBuf) -> Result<(), JobError> {
    let uid = rustix::process::geteuid().as_raw();
    let walk = tokio::task::spawn_blocking(move || pgdata::survey(&data_dir, uid)).await;
    let path = match walk {
        Ok(Ok(pgdata::Survey { foreign: Some(path), .. })) => path,
        Ok(Ok(_)) => return Ok(()),
        // Not there: the restore itself will tell.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(Err(error)) => {
            let message = format!("cannot look through PGDATA: {error}");
            return Err(problem("storage-read", message, &["Correct that, then restore again."]));
        }
        Err(error) => return Err(problem("internal", error.to_string(), &[])),
    };
    Err(problem(
        "storage-read",
        format!(
            "{} in PGDATA does not belong to the user PostgreSQL runs as, or cannot be changed by \
             it; a restore would fail on it half way",
            path.display()
        ),
        &["Give it to that user, or move it out of PGDATA, then restore again."],
    ))
}
