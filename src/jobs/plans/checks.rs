//! The checks of a plan, made on the facts and on PGDATA.

mod places;
mod set;

use super::super::context::{Context, ServerSide};
use super::super::queue::LaneView;
use super::{Ground, InRepository, PlanRequest};
use crate::domain::StanzaName;
use crate::domain::job::{JobKind, JobResult, JobState};
use crate::domain::plan::Decision;
use crate::domain::plan::check::{Check, CheckId};
use crate::domain::recovery::RecoveryTarget;
use crate::postgres::pgdata::{self, Content, Survey};
use crate::store::JobFilter;

pub(super) async fn all(
    context: &Context,
    ground: &Ground,
    request: &PlanRequest,
    decision: &Decision,
    on_disk: InRepository,
    lane: Option<LaneView>,
) -> Vec<Check> {
    let set = on_disk.manifest.as_deref();
    let mut checks = vec![
        lane_free(lane),
        no_orphans(context, ground),
        repository(ground),
        other_system(ground),
        target(request, decision),
        set::readable(ground, decision, &on_disk),
        set::damaged(decision),
        wal_gap(decision, ground),
    ];
    if let Some(side) = &context.server {
        let uid = rustix::process::geteuid().as_raw();
        let directory = side.data_dir.clone();
        let survey = tokio::task::spawn_blocking(move || pgdata::survey(&directory, uid)).await;
        let (survey, error) = match survey {
            Ok(Ok(survey)) => (survey, None),
            // There is nothing to be replaced.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                (Survey::default(), None)
            }
            Ok(Err(error)) => (Survey::default(), Some(error.to_string())),
            Err(error) => (Survey::default(), Some(error.to_string())),
        };
        checks.extend([
            pgdata_is_ours(side, ground),
            owned_entries(&survey, error),
            wal_loss(context, side, ground),
            space(side, ground, decision, &survey),
            set::layout(set.ok(), &survey),
            places::directories(context, &ground.stanza),
            places::stop_file(context, &ground.stanza),
            configuration_files(side),
        ]);
        if !request.databases.is_empty() {
            checks.push(set::databases(request, set.ok()));
        }
    }
    checks.push(version(context));
    checks
}

fn lane_free(lane: Option<LaneView>) -> Check {
    match lane.and_then(|lane| lane.running) {
        None => Check::pass(CheckId::LaneFree, "no other job of the stanza runs"),
        Some((id, JobKind::Restore)) => Check::warn(
            CheckId::LaneFree,
            format!("restore {id} runs; this one is refused until it has come to its end"),
        ),
        Some((id, kind)) => Check::warn(
            CheckId::LaneFree,
            format!("{kind} job {id} runs and is cancelled when the restore begins"),
        ),
    }
}

fn no_orphans(context: &Context, ground: &Ground) -> Check {
    let Some(side) = &context.server else {
        return Check::pass(CheckId::NoOrphans, "no server of ours");
    };
    match context.journals.try_lock(&side.stanza) {
        Ok(Some(_)) => Check::pass(CheckId::NoOrphans, "no pgbackrest of an earlier restore lives"),
        Ok(None) if ground.half_done.is_some() => {
            Check::warn(CheckId::NoOrphans, "processes of the present restore are at work")
        }
        Ok(None) => Check::warn(
            CheckId::NoOrphans,
            "processes of an earlier pgbackrest restore live; they are ended first",
        ),
        Err(error) => Check::fail(CheckId::NoOrphans, crate::telemetry::chain(&error)),
    }
}

fn repository(ground: &Ground) -> Check {
    let troubled: Vec<String> = ground
        .seen
        .stanza
        .repos
        .iter()
        .filter(|repo| repo.status.code != 0)
        .map(|repo| format!("repository {}: {}", repo.key, repo.status.message))
        .collect();
    if troubled.is_empty() {
        return Check::pass(CheckId::Repository, "every repository can be read");
    }
    Check::warn(CheckId::Repository, troubled.join("; "))
}

fn other_system(ground: &Ground) -> Check {
    let id = CheckId::OtherSystem;
    let known = &ground.seen.stanza.databases;
    match &ground.system_id {
        None => Check::pass(id, "there is no cluster in PGDATA to be replaced"),
        Some(ours) if ground.other_system => {
            let known: Vec<&str> = known.iter().map(|db| db.system_id.as_str()).collect();
            Check::fail(
                id,
                format!(
                    "PGDATA holds the cluster with system identifier {ours}, the backups are of \
                     {}: another database would be replaced",
                    known.join(", ")
                ),
            )
        }
        Some(ours) => Check::pass(id, format!("the backups are of this cluster ({ours})")),
    }
}

fn target(request: &PlanRequest, decision: &Decision) -> Check {
    let target = &request.wish.target;
    if let Some(why) = &decision.uncertain {
        return Check::warn(CheckId::Target, why.clone());
    }
    let text = match target {
        RecoveryTarget::Latest => format!("the end of timeline {}", decision.timeline),
        _ => format!("{target} is on timeline {}, after the end of the set", decision.timeline),
    };
    Check::pass(CheckId::Target, text)
}

fn wal_gap(decision: &Decision, ground: &Ground) -> Check {
    let start = decision.set.archive_start;
    let Some(until) = decision.wal_until else {
        return Check::warn(CheckId::WalGap, "the archive has no WAL of this timeline");
    };
    if decision.gaps.is_empty() {
        let count = until.number().saturating_sub(start.number()) + 1;
        let text = format!("{start} to {until} ({count} in all), without a gap");
        return Check::pass(CheckId::WalGap, text);
    }
    let gaps: Vec<String> = decision.gaps.iter().map(ToString::to_string).collect();
    let alive = if ground.catalogue.live.is_some() {
        " PostgreSQL runs and has everything; what comes after the gap would be lost."
    } else {
        ""
    };
    let text = format!(
        "{} between the set and the target: recovery would wait there until they are back.{alive}",
        gaps.join("; ")
    );
    Check::fail(CheckId::WalGap, text)
}

fn pgdata_is_ours(side: &ServerSide, ground: &Ground) -> Check {
    let (id, shown) = (CheckId::Pgdata, side.data_dir.display());
    match &ground.content {
        Some(Content::Cluster(major)) => {
            Check::pass(id, format!("{shown} holds a cluster of PostgreSQL {major}"))
        }
        Some(Content::Empty) => Check::pass(id, format!("{shown} is empty")),
        Some(Content::HalfRestored(mark)) => {
            Check::warn(id, format!("{shown} is half restored ({mark})"))
        }
        Some(Content::Foreign) => Check::fail(
            id,
            format!(
                "{shown} holds files but no PostgreSQL cluster; a restore would delete them. \
                 Correct postgres.data_dir, or empty it"
            ),
        ),
        None => Check::fail(id, format!("{shown} cannot be read")),
    }
}

fn owned_entries(survey: &Survey, error: Option<String>) -> Check {
    if let Some(error) = error {
        let text =
            format!("cannot look through PGDATA: {error}; a restore may fail on that half way");
        return Check::fail(CheckId::OwnedEntries, text);
    }
    match &survey.foreign {
        None => Check::pass(CheckId::OwnedEntries, "every entry of PGDATA can be replaced"),
        Some(path) => Check::fail(
            CheckId::OwnedEntries,
            format!(
                "{} in PGDATA does not belong to the user PostgreSQL runs as, or cannot be changed \
                 by it; a restore would fail on it half way. Give it to that user, or move it out \
                 of PGDATA",
                path.display()
            ),
        ),
    }
}

/// What is not in the archive is kept in the state directory for the time of the restore.
fn wal_loss(context: &Context, side: &ServerSide, ground: &Ground) -> Check {
    let id = CheckId::WalLoss;
    let catalogue = &ground.catalogue;
    let pending = catalogue.local.each(catalogue.segment_size);
    let count = pending.filter(|segment| !catalogue.archived.has(*segment)).count() as u64;
    let needed = count.saturating_mul(catalogue.segment_size.get());
    let place = context.journals.lock_path(&side.stanza);
    match pgdata::free_bytes(&place) {
        Ok(free) if free < needed => Check::fail(
            id,
            format!(
                "WAL that may not be in the archive yet ({needed} bytes) must be kept, and there are \
                 only {free} bytes free in the state directory"
            ),
        ),
        Ok(_) => Check::pass(
            id,
            format!("WAL that may not be archived yet ({needed} bytes) is pushed, or kept aside"),
        ),
        Err(error) => Check::fail(id, format!("cannot look at the state directory: {error}")),
    }
}

fn space(side: &ServerSide, ground: &Ground, decision: &Decision, survey: &Survey) -> Check {
    let id = CheckId::Space;
    let Some(size) = decision.set.size_bytes else {
        return Check::warn(id, "the size of the set is not known");
    };
    let Ok(free) = pgdata::free_bytes(&side.data_dir) else {
        return Check::warn(id, "the free space cannot be told");
    };
    // WAL comes segment by segment; recovery keeps a few.
    let needed = size.saturating_add(4 * ground.catalogue.segment_size.get());
    let there = free.saturating_add(survey.disk_bytes);
    if needed <= there {
        let text = format!("{needed} bytes are needed, {there} are free or will be replaced");
        return Check::pass(id, text);
    }
    if survey.links.iter().any(|(path, _)| path.parent().is_some_and(|p| p.ends_with("pg_tblspc")))
    {
        let text = format!(
            "the set has {size} bytes, part of them in tablespaces elsewhere; {there} are free or \
             will be replaced in PGDATA"
        );
        return Check::warn(id, text);
    }
    Check::fail(
        id,
        format!(
            "{needed} bytes are needed, and only {there} are free or will be replaced on the file \
             system of {}",
            side.data_dir.display()
        ),
    )
}

fn configuration_files(side: &ServerSide) -> Check {
    let inside: Vec<&str> =
        ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"]
            .into_iter()
            .filter(|name| side.data_dir.join(name).exists())
            .collect();
    if inside.is_empty() {
        return Check::pass(CheckId::ConfigurationFiles, "PGDATA has no configuration files");
    }
    let mut text = format!("{} come back as they were in the backup", inside.join(", "));
    if pgdata::is_read_only(&side.data_dir.join("postgresql.auto.conf")) {
        text.push_str(
            "; postgresql.auto.conf is read-only, and a restore makes it writable: PostgreSQL and \
             pgBackRest need to write to it",
        );
    }
    Check::warn(CheckId::ConfigurationFiles, text)
}

fn version(context: &Context) -> Check {
    let id = CheckId::PgbackrestVersion;
    match &context.version {
        None => Check::fail(id, "pgbackrest cannot be run; see Headrest's log"),
        Some(version) if version.locks_restore() => Check::pass(id, version.to_string()),
        Some(version) => Check::warn(
            id,
            format!(
                "{version} does not lock restores (2.56 and later do): nothing keeps a pgbackrest \
                 that somebody starts by hand away from this one"
            ),
        ),
    }
}

/// What the last restore took, in proportion.
pub(super) async fn downtime(
    context: &Context,
    stanza: &StanzaName,
    decision: &Decision,
) -> Option<u64> {
    let filter = JobFilter {
        kind: Some(JobKind::Restore),
        state: Some(JobState::Succeeded),
        stanza: Some(stanza.clone()),
        limit: 1,
        ..JobFilter::default()
    };
    let jobs = context.store.jobs(filter).await.ok()?;
    let Some(JobResult::Restore(last)) = &jobs.first()?.result else { return None };
    let took = last.downtime_ms?;
    let scaled = match (decision.set.size_bytes, last.size_bytes) {
        (Some(now), Some(then)) if then > 0 => {
            u128::from(took) * u128::from(now) / u128::from(then)
        }
        _ => u128::from(took),
    };
    u64::try_from(scaled.div_ceil(1000)).ok()
}
