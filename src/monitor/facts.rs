//! The facts of the server and of this machine, which cost little.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::repository::Found;
use super::{Parts, space};
use crate::domain::health::{
    ArchivingFacts, Facts, RepositoryFacts, ScheduleFacts, ServerFacts, TargetFacts, Up,
};
use crate::domain::{JobKind, JobState, StanzaName};
use crate::jobs::context::ServerSide;
use crate::metrics::Notified;
use crate::pgbackrest::command::archive_command;
use crate::pgbackrest::info::{StanzaInfo, StanzaStatus};
use crate::postgres::client::{ArchiveSettings, Connection};
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::{Archiving, Making, Status};
use crate::store::JobFilter;
use crate::telemetry::chain;

/// Where pgBackRest keeps locks and stop files when nobody says otherwise.
const DEFAULT_LOCKS: &str = "/tmp/pgbackrest";
/// Where its repository is when nobody says otherwise.
const DEFAULT_REPOSITORY: &str = "/var/lib/pgbackrest";

/// A server that is down for so long stays down.
const JUST_DOWN: SignedDuration = SignedDuration::from_secs(15);

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub(super) struct Memory {
    connection: Option<Connection>,
    /// Since when archiving fails.
    pub(super) failing_since: Option<Timestamp>,
}

/// Everything that is known of a stanza now.
pub(super) async fn gather(
    parts: &Parts,
    stanza: &StanzaName,
    found: Option<&Found>,
    memory: &mut Memory,
    since: Timestamp,
    now: Timestamp,
) -> Facts {
    let context = &parts.context;
    let side = context.server.as_ref().filter(|side| side.stanza == *stanza);
    let mut facts = Facts::none(since);
    facts.repository = found.and_then(|found| match &found.failed {
        Some(why) => Some(Err(why.clone())),
        None => context.catalog.last(stanza).map(|seen| {
            let seen = seen.map_err(|unavailable| unavailable.reason)?;
            Ok(repository(&seen.stanza))
        }),
    });
    facts.wal = found.and_then(|found| found.wal.clone());
    let views = parts.scheduler.views();
    let own = views.iter().filter(|view| view.schedule.stanza == *stanza && !view.state.paused);
    facts.schedules = own
        .map(|view| ScheduleFacts {
            name: view.schedule.name.to_string(),
            backs_up: view.schedule.kind.backup_type().is_some(),
            trouble: view.state.trouble.clone(),
        })
        .collect();
    facts.verified = verified(parts, stanza).await;
    let Some(side) = side else { return facts };
    facts.not_backed_up = match side.archiving {
        Archiving::Ours => None,
        Archiving::Off => {
            Some("this server is a copy of another one; it is not backed up".to_owned())
        }
        Archiving::NotOurs => Some("backups are turned off".to_owned()),
    };
    let status = context.postgres.status();
    let archiving = if status.takes_writes() {
        archiving(parts, side, &status, memory, now).await
    } else {
        None
    };
    facts.server =
        Some(ServerFacts { up: up(&status, now), started_at: status.started_at, archiving });
    facts.disks = space::disks(places(side));
    facts.stop_file = Some(stop_file(side));
    facts.supported = supported(parts, &status);
    facts
}

/// How the targets of notifications do, for the health and for metrics.
pub(super) async fn targets(parts: &Parts) -> Option<(Vec<TargetFacts>, Vec<Notified>)> {
    let targets = parts.notifier.targets();
    if targets.is_empty() {
        return None;
    }
    let records = match parts.context.store.target_records().await {
        Ok(records) => records,
        Err(error) => {
            tracing::warn!("how targets do is not known: {}", chain(&error));
            return None;
        }
    };
    let all = targets.iter().map(|target| {
        let (name, status) = (&target.config.name, target.status());
        let record = records.get(name).cloned().unwrap_or_default();
        let facts = TargetFacts {
            name: name.clone(),
            waiting: record.oldest_at.map(|since| (record.waiting, since)),
            given_up_at: record.given_up_at,
        };
        let notified = Notified {
            target: name.clone(),
            waiting: record.waiting.into(),
            given_up: status.given_up_total,
            failed: status.failed_total,
        };
        (facts, notified)
    });
    Some(all.unzip())
}

/// What the newest verification that came to its end found.
async fn verified(parts: &Parts, stanza: &StanzaName) -> Option<(Timestamp, Option<String>)> {
    let filter = JobFilter {
        kind: Some(JobKind::Verify),
        stanza: Some(stanza.clone()),
        limit: 5,
        ..JobFilter::default()
    };
    let jobs = parts.context.store.jobs(filter).await.ok()?;
    jobs.into_iter().find_map(|job| {
        let found = match job.state {
            JobState::Succeeded | JobState::Warned => None,
            JobState::Failed => {
                Some(job.error.map_or_else(|| "no reason".to_owned(), |error| error.message))
            }
            JobState::Queued
            | JobState::Running
            | JobState::Cancelling
            | JobState::Cancelled
            | JobState::Interrupted => return None,
        };
        Some((job.finished_at?, found))
    })
}

fn up(status: &Status, now: Timestamp) -> Up {
    if status.takes_writes() {
        return Up::Writes;
    }
    if let Some(restore) = status.fenced_by {
        return Up::Busy(format!("restore {restore} is under way"));
    }
    if let Making::Failed(why) = &status.making {
        return Up::Down(format!("no cluster could be made: {why}"));
    }
    let reason = || status.reason.clone().unwrap_or_else(|| "nobody said why".to_owned());
    match status.state {
        ServerState::Starting
        | ServerState::Recovering
        | ServerState::Stopping
        | ServerState::Ready => Up::Busy(status.state.to_string()),
        ServerState::Down if status.making == Making::UnderWay => {
            Up::Busy("a cluster is being made".to_owned())
        }
        // Between two orders, as at the start.
        ServerState::Down if !status.held && now.duration_since(status.since) < JUST_DOWN => {
            Up::Busy(status.state.to_string())
        }
        ServerState::Down => Up::Held(reason()),
        ServerState::BackingOff | ServerState::Failed => {
            Up::Down(format!("{}: {}", status.state, reason()))
        }
    }
}

async fn archiving(
    parts: &Parts,
    side: &ServerSide,
    status: &Status,
    memory: &mut Memory,
    now: Timestamp,
) -> Option<ArchivingFacts> {
    let settings = settings(status, memory).await?;
    let facts = status.archiver.clone().unwrap_or_default();
    let segment = facts.last_failed_wal.clone().unwrap_or_default();
    let failing = if facts.is_failing() {
        // The statistics tell the last failure, not the first of a row.
        Some((*memory.failing_since.get_or_insert(now), segment))
    } else {
        memory.failing_since = None;
        None
    };
    let ours = archive_command(&parts.context.tool.binary.display().to_string(), &side.stanza);
    let ready = ready(&side.data_dir.join("pg_wal/archive_status"));
    parts.gauges.set_wal_ready(&side.stanza, Some(ready));
    Some(ArchivingFacts {
        enabled: settings.enabled,
        foreign_command: Some(settings.command).filter(|live| *live != ours),
        failing,
        last_archived_at: facts.last_archived_at,
        ready,
        timeout: SignedDuration::try_from(settings.timeout).unwrap_or_default(),
        heartbeat: SignedDuration::try_from(side.heartbeat).unwrap_or_default(),
    })
}

async fn settings(status: &Status, memory: &mut Memory) -> Option<ArchiveSettings> {
    if memory.connection.is_none() {
        memory.connection = Connection::open(status.address.as_ref()?, || {}).await.ok();
    }
    let answer = memory.connection.as_ref()?.archive_settings().await;
    if answer.is_err() {
        // It may have been restarted: with a new connection next time.
        memory.connection = None;
    }
    answer.ok()
}

/// Files whose turn to be archived has come.
fn ready(archive_status: &Path) -> u64 {
    let entries = std::fs::read_dir(archive_status).into_iter().flatten().flatten();
    let ready = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".ready"));
    u64::try_from(ready.count()).unwrap_or(u64::MAX)
}

fn repository(stanza: &StanzaInfo) -> RepositoryFacts {
    let troubles = stanza.repos.iter().filter(|repo| is_trouble(repo.status.meaning()));
    let mut troubles: Vec<String> = troubles
        .map(|repo| format!("repository {}: {}", repo.key, first_line(&repo.status.message)))
        .collect();
    if troubles.is_empty() && is_trouble(stanza.status.meaning()) {
        troubles.push(first_line(&stanza.status.message).to_owned());
    }
    let newest = stanza.newest_backup();
    let full = stanza.backups.iter().filter(|backup| backup.kind.as_str() == "full");
    RepositoryFacts {
        troubles,
        missing: matches!(
            stanza.status.meaning(),
            StanzaStatus::MissingPath | StanzaStatus::MissingData
        ),
        last_backup_at: newest.and_then(|backup| backup.stopped_at),
        last_full_at: full.filter_map(|backup| backup.stopped_at).max(),
        damaged: newest
            .filter(|backup| backup.error == Some(true))
            .map(|backup| backup.label.to_string()),
    }
}

fn is_trouble(status: StanzaStatus) -> bool {
    match status {
        StanzaStatus::Ok
        | StanzaStatus::NoBackup
        | StanzaStatus::MissingPath
        | StanzaStatus::MissingData => false,
        StanzaStatus::DifferentAcrossRepos
        | StanzaStatus::DatabaseMismatch
        | StanzaStatus::BackupNotFound
        | StanzaStatus::Other(_) => true,
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The places whose file systems must not be full.
fn places(side: &ServerSide) -> Vec<(&'static str, PathBuf)> {
    let mut places = vec![
        ("PGDATA", side.data_dir.clone()),
        // It may be a link.
        ("pg_wal", side.data_dir.join("pg_wal/.")),
        ("state_dir", side.state_dir.clone()),
    ];
    let options = &side.user_options;
    let local = options.get("repo1-type").is_none_or(|kind| kind == "posix")
        && !options.is_set("repo1-host");
    if local {
        let path = options.get("repo1-path").unwrap_or(DEFAULT_REPOSITORY);
        places.push(("repository", PathBuf::from(path)));
    }
    places
}

/// The stop file of the stanza, or of all (pgBackRest command reference, "Stop Command").
fn stop_file(side: &ServerSide) -> Option<String> {
    let locks = Path::new(side.user_options.get("lock-path").unwrap_or(DEFAULT_LOCKS));
    let names = [format!("{}.stop", side.stanza), "all.stop".to_owned()];
    let paths = names.map(|name| locks.join(name));
    paths.iter().find(|path| path.exists()).map(|path| path.display().to_string())
}

fn supported(parts: &Parts, status: &Status) -> Option<Result<(), String>> {
    let version = parts.context.version.as_ref()?;
    let text = status.version.as_deref()?;
    let major = text.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u16>().ok()?;
    let supported = version.supports_postgres(major)?;
    Some(if supported {
        Ok(())
    } else {
        Err(format!("{version} does not support PostgreSQL {major}"))
    })
}
