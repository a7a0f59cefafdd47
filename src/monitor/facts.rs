//! The facts of the server and of this machine, which cost little.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::Parts;
use super::machine::{self, Machine};
use super::repository::Found;
use crate::domain::event::EventKind;
use crate::domain::health::{
    ArchivingFacts, BadSet, Facts, RepositoryFacts, RestoreFacts, ScheduleFacts, ServerFacts,
    TargetFacts, Up,
};
use crate::domain::job::JobResult;
use crate::domain::schedule::run::{Step, Trouble};
use crate::domain::sets::{Judgement, Judgements, State};
use crate::domain::{BackupLabel, JobKind, JobSpec, JobState, RepoKey, StanzaName};
use crate::jobs::context::ServerSide;
use crate::jobs::sets;
use crate::metrics::Notified;
use crate::pgbackrest::command::archive_command;
use crate::pgbackrest::info::{self, StanzaInfo, StanzaStatus};
use crate::postgres::client::{ArchiveSettings, Connection};
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::{Archiving, Making, Status};
use crate::scheduler::View;
use crate::store::{JobFilter, StoreError};
use crate::telemetry::chain;

/// The codes with which a verification says that something is not whole.
const VERDICTS: [&str; 2] = ["verify-errors", "wal-gap"];
/// A run that is held for so long is overdue.
const HELD_TOO_LONG: SignedDuration = SignedDuration::from_mins(15);
/// A run that takes so long hangs.
const RUNS_TOO_LONG: SignedDuration = SignedDuration::from_hours(24);

/// A server that is down for so long stays down.
const JUST_DOWN: SignedDuration = SignedDuration::from_secs(15);

/// How long a server that accepts connections may refuse Headrest's.
const REFUSED_TOO_LONG: SignedDuration = SignedDuration::from_secs(30);

/// When a verification ended, and what it found wrong.
type Verified = Option<(Timestamp, Option<String>)>;

/// What jobs have found and told.
#[derive(Debug)]
struct Told {
    /// As of this event of jobs.
    event: i64,
    verified: Verified,
    /// The newest backup of ours that found damaged pages.
    damaged: Option<String>,
    /// The backups of ours that failed because they cannot be restored.
    failed: BTreeSet<BackupLabel>,
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub(super) struct Memory {
    connection: Option<Connection>,
    machine: Machine,
    repository: Option<Result<RepositoryFacts, String>>,
    told: Option<Told>,
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
    let first = parts.stanzas.first() == Some(stanza);
    let mut facts = Facts::none(since);
    facts.repository = match found {
        None => None,
        // One bad look is no news yet: what was before still counts.
        Some(found) if found.is_unsure => memory.repository.clone(),
        Some(Found { failed: Some(why), .. }) => Some(Err(why.clone())),
        Some(_) => match context.catalog.last(stanza) {
            None => None,
            Some(Err(unavailable)) => Some(Err(unavailable.reason)),
            Some(Ok(seen)) => {
                let judged = sets::judge(&context.store, stanza, &seen.stanza).await;
                let judged = judged.unwrap_or_else(|error| {
                    tracing::warn!("what backups are worth is not known: {}", chain(&error));
                    Judgements::new()
                });
                Some(Ok(repository(&seen.stanza, &judged)))
            }
        },
    };
    memory.repository.clone_from(&facts.repository);
    facts.backing_up = parts
        .jobs
        .lane(stanza)
        .and_then(|lane| lane.running)
        .is_some_and(|(_, kind)| kind == JobKind::Backup);
    facts.wal = found.and_then(|found| found.wal.clone());
    let views = parts.scheduler.views();
    let own = views.iter().filter(|view| view.schedule.stanza == *stanza && !view.state.paused);
    facts.schedules = own
        .map(|view| ScheduleFacts {
            name: view.schedule.name.to_string(),
            kind: view.schedule.kind.job(),
            trouble: view.state.trouble.clone(),
            overdue: overdue(view, now),
        })
        .collect();
    let unreadable = parts.scheduler.unreadable().into_iter();
    facts.schedules.extend(unreadable.filter(|_| first).map(|(name, why)| ScheduleFacts {
        name,
        kind: JobKind::Backup,
        trouble: Some(Trouble {
            missed: true,
            text: format!("it does not run: {why}"),
            told: None,
        }),
        overdue: None,
    }));
    // It changes only when a job does.
    let event = *parts.jobs.events().borrow();
    if memory.told.as_ref().is_none_or(|told| told.event != event) {
        match Told::read(parts, stanza, event).await {
            Ok(told) => memory.told = Some(told),
            Err(error) => tracing::warn!("what jobs have found is not known: {}", chain(&error)),
        }
    }
    if let Some(told) = &memory.told {
        facts.verified.clone_from(&told.verified);
        let damaged =
            facts.repository.as_ref().and_then(|known| known.as_ref().ok()?.damaged.as_ref());
        facts.damage_told = damaged.is_some() && damaged == told.damaged.as_ref();
        if let Some(Ok(known)) = &mut facts.repository {
            for set in &mut known.bad_sets {
                let of_backup = told.failed.contains(&set.label);
                set.reported_by = of_backup.then_some(EventKind::BackupFailed).or(set.reported_by);
            }
        }
    }
    let Some(side) = side else { return facts };
    facts.not_backed_up = match side.archiving {
        Archiving::Ours => None,
        Archiving::Off => {
            Some("this server is a copy of another one; it is not backed up".to_owned())
        }
        Archiving::NotOurs => Some("backups are turned off".to_owned()),
    };
    let status = context.postgres.status();
    let (seen, hangs) = memory.machine.look(side).await;
    parts.gauges.set_wal_ready(stanza, seen.as_ref().map(|seen| seen.ready));
    let archiving = if status.takes_writes() {
        archiving(parts, side, &status, seen.as_ref(), memory, now).await
    } else {
        None
    };
    // A journal that cannot be read is told of by whoever wants to restore.
    let journal = context.journals.read(stanza).ok().flatten();
    facts.restore = journal.as_ref().and_then(RestoreFacts::of);
    let given_up = facts.restore.as_ref().filter(|restore| restore.given_up.is_some());
    let up = match given_up {
        Some(restore) => {
            Up::Down(format!("PGDATA is no database: restore {} was given up", restore.job))
        }
        None => up(&status, now),
    };
    facts.server = Some(ServerFacts {
        up,
        started_at: status.started_at,
        archiving,
        raised: status.raised.iter().map(ToString::to_string).collect(),
    });
    facts.disk_hangs = Some(hangs);
    if let Some(seen) = seen {
        facts.disks = seen.disks;
        facts.stop_file = Some(seen.stop_file);
    }
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

impl Told {
    async fn read(parts: &Parts, stanza: &StanzaName, event: i64) -> Result<Self, StoreError> {
        let filter = JobFilter {
            kind: Some(JobKind::Backup),
            state: Some(JobState::Warned),
            stanza: Some(stanza.clone()),
            limit: 10,
            ..JobFilter::default()
        };
        let warned = parts.context.store.jobs(filter).await?;
        let damaged = warned.into_iter().find_map(|job| match job.result {
            Some(JobResult::Backup(result)) if result.page_errors => Some(result.label.to_string()),
            _ => None,
        });
        let filter = JobFilter {
            kind: Some(JobKind::Backup),
            state: Some(JobState::Failed),
            stanza: Some(stanza.clone()),
            limit: 50,
            ..JobFilter::default()
        };
        let failed = parts.context.store.jobs(filter).await?.into_iter();
        let failed = failed.filter_map(|job| match job.result {
            Some(JobResult::Backup(result)) => Some(result.label),
            _ => None,
        });
        let failed = failed.collect();
        Ok(Self { event, verified: verified(parts, stanza).await?, damaged, failed })
    }
}

async fn verified(parts: &Parts, stanza: &StanzaName) -> Result<Verified, StoreError> {
    let filter = JobFilter {
        kind: Some(JobKind::Verify),
        stanza: Some(stanza.clone()),
        limit: 50,
        ..JobFilter::default()
    };
    let jobs = parts.context.store.jobs(filter).await?;
    Ok(jobs.into_iter().find_map(|job| {
        let at = job.finished_at?;
        match (job.state, &job.spec, job.error) {
            // Only who looked at everything can say that everything is whole.
            (JobState::Succeeded | JobState::Warned, JobSpec::Verify(spec), _) => {
                (spec.set.is_none() && spec.repo.is_none()).then_some((at, None))
            }
            // What could not be looked at is no verdict.
            (JobState::Failed, _, Some(error)) => {
                VERDICTS.contains(&error.code.as_str()).then_some((at, Some(error.message)))
            }
            _ => None,
        }
    }))
}

/// Since when a schedule's run is due and does not come, or does not end, and why.
fn overdue(view: &View, now: Timestamp) -> Option<String> {
    let run = view.state.run.as_ref()?;
    let late = now.duration_since(run.due);
    match &run.step {
        Step::Held { why } if late >= HELD_TOO_LONG => {
            Some(format!("the run of {} waits: {why}", run.slot))
        }
        Step::Running { job } if late >= RUNS_TOO_LONG => {
            Some(format!("job {job} of the run of {} still runs", run.slot))
        }
        Step::Held { .. } | Step::Starting | Step::Running { .. } | Step::Retrying { .. } => None,
    }
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
    if status.state == ServerState::Starting
        && let Some(why) = status.reason.as_ref()
        && now.duration_since(status.since) >= REFUSED_TOO_LONG
    {
        return Up::Down(format!("Headrest cannot connect: {why}"));
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
    seen: Option<&machine::Seen>,
    memory: &mut Memory,
    now: Timestamp,
) -> Option<ArchivingFacts> {
    let settings = settings(status, memory).await?;
    // Just started: nobody has asked yet.
    let facts = status.archiver.clone()?;
    let segment = facts.last_failed_wal.clone().unwrap_or_default();
    let failing = if facts.is_failing() {
        // The statistics tell the last failure, not the first of a row.
        Some((*memory.failing_since.get_or_insert(now), segment))
    } else {
        memory.failing_since = None;
        None
    };
    let ours = archive_command(&parts.context.tool.binary.display().to_string(), &side.stanza);
    let ready = seen?.ready;
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

fn repository(stanza: &StanzaInfo, judgements: &Judgements) -> RepositoryFacts {
    let mut facts = RepositoryFacts::default();
    let mut judge = |who: String, status: StanzaStatus, message: &str| {
        let told = format!("{who}{}", message.trim());
        match status {
            StanzaStatus::Ok | StanzaStatus::NoBackup => {}
            StanzaStatus::MissingPath | StanzaStatus::MissingData => facts.missing.push(told),
            StanzaStatus::Other(_) => {
                facts.away = true;
                facts.troubles.push(told);
            }
            StanzaStatus::DifferentAcrossRepos
            | StanzaStatus::DatabaseMismatch
            | StanzaStatus::BackupNotFound => facts.troubles.push(told),
        }
    };
    for repo in &stanza.repos {
        let who = format!("repository {}: ", repo.key);
        judge(who, repo.status.meaning(), &repo.status.message);
    }
    // That repositories differ is said by what each of them lacks.
    let whole = stanza.status.meaning();
    if stanza.repos.is_empty() || whole == StanzaStatus::DatabaseMismatch {
        judge(String::new(), whole, &stanza.status.message);
    }
    let judgement = |backup: &info::Backup| {
        let repo = backup.repo_key.unwrap_or(RepoKey::FIRST);
        judgements.get(&(repo, backup.label.clone())).unwrap_or(&Judgement::UNVERIFIED)
    };
    let restorable = |backup: &&info::Backup| judgement(backup).state.can_be_restored();
    let mut bad: Vec<_> = stanza.backups.iter().filter(|backup| !restorable(backup)).collect();
    bad.sort_by_key(|backup| std::cmp::Reverse((backup.stopped_at, &backup.label)));
    let bad = bad.into_iter().map(|backup| {
        let judgement = judgement(backup);
        BadSet {
            label: backup.label.clone(),
            why: judgement.why.clone().unwrap_or_default(),
            reported_by: (judgement.state == State::Damaged).then_some(EventKind::VerifyFailed),
        }
    });
    facts.bad_sets = bad.collect();
    let newest = stanza.newest_of(|backup| restorable(&backup));
    let full = stanza.backups.iter().filter(|backup| backup.kind.as_str() == "full");
    let full = full.filter(restorable);
    facts.last_backup_at = newest.and_then(|backup| backup.stopped_at);
    facts.last_full_at = full.filter_map(|backup| backup.stopped_at).max();
    facts.damaged =
        newest.filter(|backup| backup.error == Some(true)).map(|backup| backup.label.to_string());
    facts
}

fn supported(parts: &Parts, status: &Status) -> Option<Result<(), String>> {
    let version = parts.context.version.as_ref()?;
    let text = status.version.as_deref()?;
    let refused = || format!("{version} does not support PostgreSQL {text}");
    version.supports_server(text).map(|supported| supported.then_some(()).ok_or_else(refused))
}
