//! Before anything is touched: what would be restored, and whether it may be.

use std::time::Duration;

use tokio::time::sleep;

use super::super::catalog::Freshness;
use super::super::context::{Context, ServerSide};
use super::super::recorder::Recorder;
use super::super::worker::problem;
use crate::clock;
use crate::domain::StanzaName;
use crate::domain::job::{JobError, JobId, RestoreSpec};
use crate::domain::restore::{JOURNAL_FORMAT, Journal, Phase};
use crate::domain::{RepoKey, SegmentSize, WalSegment};
use crate::pgbackrest::info::{Backup, StanzaInfo, StanzaStatus};
use crate::pgbackrest::log::Level;
use crate::postgres::control::ControlData;
use crate::postgres::pgdata::{self, Content};

/// How long a pgbackrest that somebody runs outside of Headrest may go on before a restore is
/// refused.
const FOREIGN_LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Resolves and pins what is restored, and refuses what cannot go well.
pub(super) async fn plan(
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
    let seen = context
        .catalog
        .observe(&spec.stanza, Freshness::New)
        .await
        .map_err(|error| problem("repository-unavailable", error.reason, &[]))?;

    let data_dir = &side.data_dir;
    match pgdata::content(data_dir) {
        Ok(Content::Foreign) => {
            return Err(problem(
                "target-not-empty",
                format!("{} holds files but no PostgreSQL cluster", data_dir.display()),
                &["Correct postgres.data_dir."],
            ));
        }
        Ok(Content::Empty | Content::Cluster(_) | Content::HalfRestored(_)) => {}
        Err(error) => {
            let message = format!("cannot read PGDATA {}: {error}", data_dir.display());
            return Err(problem("storage-read", message, &[]));
        }
    }
    refuse_foreign_entries(data_dir.clone()).await?;

    let control = ControlData::read(&side.binaries, &side.env, data_dir).await;
    let control = match control {
        Ok(control) => Some(control),
        Err(error) => {
            let text = format!("no control data of the present cluster: {error}");
            recorder.say(Level::Warn, text).await;
            None
        }
    };
    if let Some(control) = &control {
        refuse_other_system(&seen.stanza, control)?;
    }
    let newest = newest_of(&seen.stanza, control.as_ref())?;
    let mut journal = Journal {
        format: JOURNAL_FORMAT,
        id,
        stanza: spec.stanza.clone(),
        phase: Phase::Accepted,
        written_at: clock::now(),
        by,
        target: spec.target.clone(),
        set: newest.label.clone(),
        repo: newest.repo_key.unwrap_or(RepoKey::FIRST),
        pgdata: data_dir.clone(),
        pgdata_identity: pgdata::identity(data_dir).unwrap_or_default(),
        system_id: control.as_ref().map(|control| control.system_id.clone()),
        timeline: control.as_ref().map(|control| control.timeline),
        segment_bytes: control.as_ref().map(|control| control.segment_size.get()),
        setting_floors: control.map(|control| control.setting_floors).unwrap_or_default(),
        archived_until: None,
        kept_wal: None,
        undo_point: None,
        inherited_from: None,
        attempts: 0,
        last_error: None,
    };
    let same_place = |earlier: &Journal| {
        earlier.pgdata_identity == (0, 0) || earlier.pgdata_identity == journal.pgdata_identity
    };
    if let Some(earlier) = earlier.filter(same_place) {
        journal.inherit(&earlier);
    }
    let text = format!("backup set {} of repository {} is restored", journal.set, journal.repo);
    recorder.say(Level::Info, text).await;
    Ok(journal)
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

/// The newest segment on the journal's timeline that the archive must have, from all that can be
/// known: what precedes the last checkpoint's segment was archived or still shows as `.ready`.
pub(super) async fn archive_end(
    context: &Context,
    control: Option<&ControlData>,
    journal: &Journal,
    segment_size: SegmentSize,
) -> Option<WalSegment> {
    let before_redo = control
        .and_then(|control| WalSegment::parse(&control.redo_segment, segment_size).ok())
        .and_then(super::wal::before);
    let seen = context.catalog.observe(&journal.stanza, Freshness::New).await.ok();
    let in_archive = seen
        .iter()
        .flat_map(|seen| &seen.stanza.archives)
        .filter_map(|archive| archive.max.as_deref())
        .filter_map(|name| WalSegment::parse(name, segment_size).ok())
        // What another timeline has says nothing about ours.
        .filter(|segment| journal.timeline.is_none_or(|ours| segment.timeline() == ours));
    let known_before = journal.archived_until.as_deref();
    let known_before = known_before.and_then(|name| WalSegment::parse(name, segment_size).ok());
    in_archive.chain(before_redo).chain(known_before).max_by_key(WalSegment::number)
}

/// The newest set of the cluster that is there: after an upgrade the repository still has those of
/// the cluster before it.
fn newest_of<'a>(
    stanza: &'a StanzaInfo,
    control: Option<&ControlData>,
) -> Result<&'a Backup, JobError> {
    let Some(control) = control else {
        return stanza.newest_backup().ok_or_else(|| nothing_to_restore(stanza));
    };
    let of_this_cluster = |backup: &&Backup| {
        let mut entries = stanza.databases.iter().filter(|database| {
            database.id == backup.database_id && database.repo_key == backup.repo_key
        });
        entries.all(|database| database.system_id == control.system_id)
    };
    let own = stanza.backups.iter().filter(of_this_cluster);
    own.max_by_key(|backup| (backup.stopped_at, &backup.label)).ok_or_else(|| {
        if stanza.backups.is_empty() {
            return nothing_to_restore(stanza);
        }
        problem(
            "no-such-backup",
            format!(
                "no backup is of the cluster in PGDATA (system identifier {})",
                control.system_id
            ),
            &["Take a full backup of this cluster first."],
        )
    })
}

fn nothing_to_restore(stanza: &StanzaInfo) -> JobError {
    match stanza.status.meaning() {
        StanzaStatus::Other(_) => {
            let told = stanza.repos.iter().map(|repo| repo.status.message.clone());
            let message = told.collect::<Vec<_>>().join("; ");
            let hint = "The repository cannot be read (wrong cipher pass, permissions, network?).";
            problem("repository-unavailable", message, &[hint])
        }
        _ => problem(
            "no-such-backup",
            format!("there is no backup to restore: {}", stanza.status.message),
            &["Take a full backup first."],
        ),
    }
}

pub(super) async fn refuse_foreign_entries(data_dir: std::path::PathBuf) -> Result<(), JobError> {
    let uid = rustix::process::geteuid().as_raw();
    let walk = tokio::task::spawn_blocking(move || pgdata::foreign_entry(&data_dir, uid)).await;
    match walk {
        Ok(Ok(Some(path))) => Err(problem(
            "storage-read",
            format!(
                "{} in PGDATA does not belong to the user PostgreSQL runs as, or cannot be \
                 changed by it; a restore would fail on it half way",
                path.display()
            ),
            &["Give it to that user, or move it out of PGDATA, then restore again."],
        )),
        Ok(Ok(None)) => Ok(()),
        // Not there, or changing under a running server: the restore itself will tell.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

fn refuse_other_system(stanza: &StanzaInfo, control: &ControlData) -> Result<(), JobError> {
    let known: Vec<&str> = stanza.databases.iter().map(|db| db.system_id.as_str()).collect();
    if known.is_empty() || known.contains(&control.system_id.as_str()) {
        return Ok(());
    }
    Err(problem(
        "wrong-cluster",
        format!(
            "PGDATA holds the cluster with system identifier {}, the repository has backups of {}",
            control.system_id,
            known.join(", ")
        ),
        &["Restoring would replace another database. Correct pg1-path or the repository."],
    ))
}
