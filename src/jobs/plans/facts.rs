//! Everything that a plan depends on, gathered.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::super::archive::{Anew, Archive, databases_of};
use super::super::catalog::{FRESH_ENOUGH, Freshness, Observation};
use super::super::context::{Context, ServerSide};
use super::super::sets;
use super::PlanError;
use crate::clock;
use crate::domain::archive::Segments;
use crate::domain::plan::{Catalogue, Live, Set};
use crate::domain::restore::{Journal, Phase};
use crate::domain::sets::{Judgement, Judgements};
use crate::domain::timeline::{History, Timelines};
use crate::domain::{Lsn, RepoKey, SegmentSize, StanzaName, Timeline, WalSegment};
use crate::pgbackrest::info::{self, StanzaInfo, StanzaStatus};
use crate::pgbackrest::listing;
use crate::postgres::client::{Connection, Position};
use crate::postgres::control::ControlData;
use crate::postgres::pg_wal::{PgWal, segment_of};
use crate::postgres::pgdata::{self, Content};

/// How many restores of the past are asked where their timelines ended.
const JOURNALS: u32 = 100;

/// What was found.
#[derive(Debug, Clone)]
pub struct Ground {
    /// The stanza.
    pub stanza: StanzaName,
    /// What the decision depends on.
    pub catalogue: Catalogue,
    /// What `info` said.
    pub seen: Arc<Observation>,
    /// What each repository's archive has.
    pub archives: BTreeMap<RepoKey, Archive>,
    /// What is in PGDATA; `None` when it cannot be read, or is not ours to look at.
    pub content: Option<Content>,
    /// The system identifier of the cluster that is there, or was before a half-done restore.
    pub system_id: Option<String>,
    /// The system identifier of the cluster that the backups are of.
    pub backups_of: Option<String>,
    /// The device and inode of PGDATA.
    pub pgdata_identity: (u64, u64),
    /// A restore of this PGDATA that was not carried to its end.
    pub half_done: Option<Journal>,
    /// The backups are of another cluster than the one in PGDATA.
    pub other_system: bool,
}

/// Gathers everything for a restore, as fresh as can be.
pub(super) async fn gather(context: &Context, stanza: &StanzaName) -> Result<Ground, PlanError> {
    let side = side_of(context, stanza)?;
    let journal = context
        .journals
        .read(stanza)
        .map_err(|error| PlanError::Journal(crate::telemetry::chain(&error)))?;
    let identity = pgdata::identity(&side.data_dir).unwrap_or_default();
    let half_done = journal.filter(|journal| {
        let same = journal.pgdata_identity == (0, 0) || journal.pgdata_identity == identity;
        same && !journal.data_is_whole()
    });
    collect(context, stanza, Some(side), half_done, true).await
}

/// The same for a look: the repository is not asked more often than a page needs.
pub(super) async fn look(context: &Context, stanza: &StanzaName) -> Result<Ground, PlanError> {
    let side = side_of(context, stanza).ok();
    let journal = context.journals.read(stanza).ok().flatten();
    let half_done = journal.filter(|journal| !journal.data_is_whole());
    collect(context, stanza, side, half_done, false).await
}

/// A look at everything anew.
pub(super) async fn look_anew(context: &Context, stanza: &StanzaName) -> Result<Ground, PlanError> {
    let side = side_of(context, stanza).ok();
    let journal = context.journals.read(stanza).ok().flatten();
    let half_done = journal.filter(|journal| !journal.data_is_whole());
    collect(context, stanza, side, half_done, true).await
}

fn side_of<'a>(context: &'a Context, stanza: &StanzaName) -> Result<&'a ServerSide, PlanError> {
    let side = context.server.as_ref().filter(|side| side.stanza == *stanza);
    side.ok_or_else(|| PlanError::NotSupervised(stanza.clone()))
}

async fn collect(
    context: &Context,
    stanza: &StanzaName,
    side: Option<&ServerSide>,
    half_done: Option<Journal>,
    thorough: bool,
) -> Result<Ground, PlanError> {
    let (freshness, anew) = if thorough {
        (Freshness::New, Anew::All)
    } else {
        (Freshness::Within(FRESH_ENOUGH), Anew::Grown)
    };
    let unavailable =
        |error: super::super::catalog::Unavailable| PlanError::Unavailable(error.reason);
    let seen = context.catalog.observe(stanza, freshness).await.map_err(unavailable)?;
    refuse_unreadable(&seen.stanza)?;
    let content = side.and_then(|side| pgdata::content(&side.data_dir).ok());
    // While a restore recovers, what PGDATA says of itself is the backup's, not the cluster's.
    let recovers = side.is_some_and(|side| pgdata::recovers(&side.data_dir)) || half_done.is_some();
    let control = match side {
        Some(side) => ControlData::read(&side.binaries, &side.env, &side.data_dir).await.ok(),
        None => None,
    };
    let system_id = half_done
        .as_ref()
        .and_then(|journal| journal.system_id.clone())
        .or_else(|| control.as_ref().map(|control| control.system_id.clone()));
    let known = &seen.stanza.databases;
    let other_system = system_id
        .as_ref()
        .is_some_and(|ours| !known.is_empty() && known.iter().all(|db| db.system_id != *ours));
    let of_cluster = system_id.as_deref().filter(|_| !other_system);
    let backups_of =
        databases_of(&seen.stanza, of_cluster).next().map(|database| database.system_id.clone());
    let own_control = control.as_ref().filter(|_| !other_system);
    let size = segment_size(half_done.as_ref(), own_control, &seen.stanza);
    // Before pg_wal is read, and after: a busy server finishes segments in between.
    let ours = side.is_some() && half_done.is_none() && !other_system;
    let position = if ours { position_of(context).await } else { None };
    // Before the archive is listed: what is archived in between is seen there, and what was archived
    // before too. The other way round a segment could be seen in neither.
    let pg_wal = side.and_then(|side| PgWal::read(&side.data_dir.join("pg_wal"), size).ok());
    let archives = context
        .archives
        .look(stanza, &seen.stanza, of_cluster, size, &anew)
        .await
        .map_err(unavailable)?;
    let archive = Archive::union(archives.values(), size);
    let judgements = sets::judge(&context.store, stanza, &seen.stanza).await?;
    let sets = sets_of(&seen.stanza, of_cluster, size, &judgements);

    let recorded = context.store.timelines(stanza.clone()).await?;
    let oldest = sets.iter().map(|set| set.stopped_at).min();
    let samples = match oldest {
        Some(oldest) => context.store.commits(stanza.clone(), oldest).await?,
        None => Vec::new(),
    };
    let mut born = archive.born.clone();
    for (timeline, at) in &recorded {
        let first = born.entry(*timeline).or_insert(*at);
        *first = (*first).min(*at);
    }
    let mut timelines = archive.timelines.clone();
    if let Some(side) = side.filter(|_| !other_system) {
        let pg_wal = side.data_dir.join("pg_wal");
        let kept = context.journals.histories_dir(stanza, system_id.as_deref());
        add_histories(&[&pg_wal, &kept], &mut timelines);
    }
    // What another cluster that this stanza had before was on is no timeline of this one.
    let known = |timeline: &Timeline| {
        *timeline == Timeline::FIRST || timelines.history(*timeline).is_some()
    };
    let trail = recorded.keys().copied().filter(known).collect();
    let mut catalogue = Catalogue {
        now: clock::now(),
        segment_size: size,
        sets,
        timelines,
        born: born.clone(),
        trail,
        archived: archive.segments.clone(),
        archived_at: archive.archived_at.clone(),
        local: Segments::default(),
        current: None,
        live: None,
        last_alive: None,
        ended: ended(&context.store.kept_journals(stanza.clone(), JOURNALS).await?, &born),
        samples,
        points: context.store.restore_points(stanza.clone()).await?,
    };
    if let Some(side) = side.filter(|_| !other_system) {
        let of_control =
            control.as_ref().filter(|control| !recovers && control.facts().out_of_recovery);
        let of_control = of_control.map(|control| control.timeline);
        let pg_wal = pg_wal.unwrap_or_default();
        // What PostgreSQL takes for archived may have been dropped (`archive-push-queue-max`).
        let done = pg_wal.done.iter().filter_map(|path| segment_of(path, size));
        // What no backup needs any more was expired, not dropped.
        let first = catalogue.sets.iter().map(|set| set.archive_start.number()).min();
        let dropped = done.filter(|segment| {
            first.is_none_or(|first| segment.number() >= first) && !catalogue.archived.has(*segment)
        });
        catalogue.local = pg_wal.segments(size).chain(dropped).collect();
        match &half_done {
            Some(journal) => add_half_done(journal, &mut catalogue),
            None => add_server(context, side, of_control, position, &mut catalogue).await,
        }
    }
    Ok(Ground {
        stanza: stanza.clone(),
        catalogue,
        seen,
        archives,
        content,
        system_id,
        backups_of,
        pgdata_identity: side
            .and_then(|side| pgdata::identity(&side.data_dir).ok())
            .unwrap_or_default(),
        half_done,
        other_system,
    })
}

/// Until when each timeline that a restore left was the server's: to the birth of the next, because
/// in between there was no server. Only of those whose WAL is in the archive to its end.
fn ended(
    journals: &[Journal],
    born: &BTreeMap<Timeline, Timestamp>,
) -> BTreeMap<Timeline, Timestamp> {
    let whole = journals.iter().filter(|journal| {
        // Of a crashed server the last commits are in no archive.
        journal.phase == Phase::Done
            && journal.shut_down
            && journal.kept_wal.is_none()
            && journal.unarchived.is_empty()
    });
    let ends = whole.filter_map(|journal| {
        let left = journal.complete_until?;
        let next = born.values().copied().filter(|born| *born > left).min();
        Some((journal.timeline_before?, next.unwrap_or(left)))
    });
    ends.collect()
}

/// What a half-done restore knows of the cluster that was there before it.
fn add_half_done(journal: &Journal, catalogue: &mut Catalogue) {
    let newest_of_trail = catalogue.trail.iter().copied().max();
    catalogue.current = journal.timeline_before.or(newest_of_trail);
    let noted = journal.undo_point.as_ref().map(|point| point.at);
    catalogue.last_alive = journal.complete_until.max(noted);
    let kept = journal.kept_wal.as_deref().map(files).unwrap_or_default();
    let size = catalogue.segment_size;
    catalogue.local = kept.iter().filter_map(|path| segment_of(path, size)).collect();
}

/// What the server in PGDATA adds: where it is, what only it has. `before` is where it was before
/// `pg_wal` was read.
async fn add_server(
    context: &Context,
    side: &ServerSide,
    of_control: Option<Timeline>,
    before: Option<Position>,
    catalogue: &mut Catalogue,
) {
    let size = catalogue.segment_size;
    let now = position_of(context).await;
    if let Some(now) = &now {
        catalogue.live = Some(Live { lsn: now.lsn, next_xid: now.next_xid });
        catalogue.current = Some(now.timeline);
    } else {
        catalogue.current = of_control.or_else(|| catalogue.trail.iter().copied().max());
        // What PGDATA says while it recovers is the backup's.
        catalogue.last_alive = of_control.and_then(|_| pgdata::last_written(&side.data_dir));
    }
    let Some(current) = catalogue.current else { return };
    // Not only its own timeline's: where archiving is broken the one before is not archived either.
    let branch = catalogue.timelines.branch(current);
    let in_pg_wal =
        catalogue.local.each(size).filter(|segment| branch.includes(segment.timeline()));
    // What a running server wrote to meanwhile is there, whatever was seen of it.
    let live = now.filter(|now| now.timeline == current).map(|now| now.lsn);
    let first = before.filter(|before| before.timeline == current).map(|before| before.lsn);
    let number = |lsn: Lsn| lsn.get() / size.get();
    let written = live.map(|live| number(first.unwrap_or(live))..=number(live));
    let written = written.into_iter().flatten();
    let written = written.filter_map(|number| WalSegment::numbered(current, number, size));
    catalogue.local = in_pg_wal.chain(written).collect();
}

/// Where a server that takes writes is.
async fn position_of(context: &Context) -> Option<Position> {
    let status = context.postgres.status();
    let address = status.address.as_ref().filter(|_| status.takes_writes())?;
    let connection = Connection::open(address, || {}).await.ok()?;
    connection.position().await.ok()
}

/// The replication slots of the cluster in PGDATA: a backup has none, and a restore removes them.
pub(super) async fn slots(context: &Context) -> Vec<String> {
    let Some(side) = &context.server else { return Vec::new() };
    let status = context.postgres.status();
    if let Some(address) = status.address.as_ref().filter(|_| status.takes_writes())
        && let Ok(connection) = Connection::open(address, || {}).await
        && let Ok(slots) = connection.replication_slots().await
    {
        return slots;
    }
    let directories = files(&side.data_dir.join("pg_replslot")).into_iter();
    let name = |path: std::path::PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    let mut names: Vec<String> =
        directories.filter(|path| path.is_dir()).filter_map(name).collect();
    names.sort_unstable();
    names
}

/// Histories that are not archived: of the running server, or kept for it.
pub(in crate::jobs) fn add_histories(directories: &[&Path], timelines: &mut Timelines) {
    for path in directories.iter().flat_map(|directory| files(directory)) {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(timeline) = name.and_then(listing::history) else { continue };
        if timelines.history(timeline).is_none()
            && let Ok(text) = std::fs::read_to_string(&path)
            && let Ok(history) = History::parse(&text)
        {
            timelines.insert(timeline, history);
        }
    }
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// A repository that cannot be read is no empty repository.
fn refuse_unreadable(stanza: &StanzaInfo) -> Result<(), PlanError> {
    if matches!(stanza.status.meaning(), StanzaStatus::Other(_)) && stanza.backups.is_empty() {
        let told: Vec<&str> = stanza.repos.iter().map(|r| r.status.message.as_str()).collect();
        return Err(PlanError::Unavailable(format!(
            "the repository cannot be read (wrong cipher pass, permissions, network?): {}",
            told.join("; ")
        )));
    }
    Ok(())
}

/// The size of the cluster's WAL segments: as it says itself, else as its backups tell.
fn segment_size(
    half_done: Option<&Journal>,
    control: Option<&ControlData>,
    stanza: &StanzaInfo,
) -> SegmentSize {
    let of_journal = half_done.and_then(|journal| journal.segment_bytes);
    let of_journal = of_journal.and_then(|bytes| SegmentSize::try_from(bytes).ok());
    let of_sets = || {
        let told = |backup: &info::Backup| {
            SegmentSize::infer(backup.archive_start.as_deref()?, backup.lsn_start?)
        };
        stanza.backups.iter().rev().find_map(told)
    };
    of_journal
        .or_else(|| control.map(|control| control.segment_size))
        .or_else(of_sets)
        .unwrap_or_default()
}

/// The sets of the cluster with this system identifier, or of the newest cluster.
fn sets_of(
    stanza: &StanzaInfo,
    system_id: Option<&str>,
    size: SegmentSize,
    judgements: &Judgements,
) -> Vec<Set> {
    let own: Vec<_> =
        databases_of(stanza, system_id).map(|database| (database.id, database.repo_key)).collect();
    let of_cluster = |backup: &&info::Backup| own.contains(&(backup.database_id, backup.repo_key));
    let set = |backup: &info::Backup| -> Option<Set> {
        let repo = backup.repo_key.unwrap_or(RepoKey::FIRST);
        let judgement = judgements.get(&(repo, backup.label.clone())).cloned();
        Some(Set {
            judgement: judgement.unwrap_or(Judgement::UNVERIFIED),
            label: backup.label.clone(),
            repo,
            stopped_at: backup.stopped_at?,
            lsn_stop: backup.lsn_stop?,
            archive_start: WalSegment::parse(backup.archive_start.as_deref()?, size).ok()?,
            size_bytes: backup.size_bytes,
        })
    };
    stanza.backups.iter().filter(of_cluster).filter_map(set).collect()
}

impl Ground {
    /// When `info` was asked.
    pub fn observed_at(&self) -> Timestamp {
        self.seen.observed_at
    }
}
