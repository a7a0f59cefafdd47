//! Health: what the facts mean, now. Facts are gathered elsewhere; ages are judged at the moment
//! somebody asks.
//!
//! A check fails when data is being lost or could not be brought back; it warns when somebody
//! should look before that happens.

mod checks;
pub mod conditions;

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::event::EventKind;
use super::restore::{Journal, Phase};
use super::schedule::run::Trouble;
use super::words::words;
use super::{BackupLabel, JobId, JobKind};

/// How long a server that is new may be without a backup before that is a failure.
pub const FIRST_BACKUP: SignedDuration = SignedDuration::from_mins(15);

words! {
    /// How well something is.
    Level {
        /// As it should be.
        Pass = "pass",
        /// Somebody should look.
        Warn = "warn",
        /// Data is being lost, or could not be brought back.
        Fail = "fail",
    }
}

words! {
    /// What is checked.
    CheckId {
        /// The server runs.
        Postgres = "postgres",
        /// No restore waits for somebody, or was given up half way.
        Restore = "restore",
        /// There is a recent backup.
        LastBackup = "last-backup",
        /// There is a recent full backup.
        LastFull = "last-full",
        /// Every repository can be read and is sound.
        Repository = "repository",
        /// The server archives at all.
        ArchiveMode = "archive-mode",
        /// It archives with the command that it was started with.
        ArchiveCommand = "archive-command",
        /// Segments are archived without failures.
        Archiver = "archiver",
        /// Few segments wait.
        WalReady = "wal-ready",
        /// The newest archived segment is young.
        WalAge = "wal-age",
        /// No segment is missing since the newest backup.
        WalGap = "wal-gap",
        /// Every backup can be restored, as far as is known.
        BackupSets = "backup-sets",
        /// The newest backups found no damaged page.
        PageChecksums = "page-checksums",
        /// The newest verification found the repository whole.
        Verify = "verify",
        /// Nobody stopped pgBackRest.
        StopFile = "stop-file",
        /// A schedule does what it should.
        Schedule = "schedule",
        /// There is room.
        DiskSpace = "disk-space",
        /// pgBackRest supports this PostgreSQL.
        Versions = "versions",
        /// Notifications arrive.
        Notifications = "notifications",
    }
}

/// From where on a check warns or fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thresholds {
    /// The age of the newest backup.
    pub last_backup: (SignedDuration, SignedDuration),
    /// The age of the newest full backup.
    pub last_full: (SignedDuration, SignedDuration),
    /// For how long archiving may fail before that is a failure; it warns at once.
    pub archiver_fail: SignedDuration,
    /// Segments that wait.
    pub wal_ready: (u64, u64),
    /// The age of the newest archived segment, in multiples of `archive_timeout`.
    pub wal_age: (u32, u32),
    /// Free space, in percent.
    pub disk_free: (u8, u8),
}

impl Default for Thresholds {
    fn default() -> Self {
        let hours = SignedDuration::from_hours;
        Self {
            last_backup: (hours(26), hours(50)),
            last_full: (hours(8 * 24), hours(15 * 24)),
            archiver_fail: SignedDuration::from_mins(10),
            wal_ready: (16, 128),
            wal_age: (3, 10),
            disk_free: (15, 5),
        }
    }
}

/// How a supervised server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Up {
    /// It takes writes.
    Writes,
    /// It is on its way, or a restore has it: what it does.
    Busy(String),
    /// It is down because somebody wants that.
    Held(String),
    /// It is down and should not be.
    Down(String),
}

/// The supervised server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// How it is.
    pub up: Up,
    /// Since when the postmaster runs.
    pub started_at: Option<Timestamp>,
    /// How it archives, when it could be asked.
    pub archiving: Option<ArchivingFacts>,
    /// Settings that its data needs at more than is configured, each with both values.
    pub raised: Vec<String>,
}

/// A restore that is under way, or that was given up half way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreFacts {
    /// Its job.
    pub job: JobId,
    /// Where it is.
    pub phase: Phase,
    /// What it waits for: since when, in words, and what to do.
    pub waits: Option<(Timestamp, String, &'static str)>,
    /// Why it was given up half way.
    pub given_up: Option<String>,
}

impl RestoreFacts {
    /// What a journal says, when its restore is not over.
    pub fn of(journal: &Journal) -> Option<Self> {
        if journal.phase.is_over() {
            return None;
        }
        let given_up = (journal.phase == Phase::NeedsOperator)
            .then(|| journal.last_error.clone().unwrap_or_default());
        let waits = journal.awaiting.map(|awaiting| {
            let since = journal.awaiting_since.unwrap_or(journal.written_at);
            (since, journal.waiting_text(), awaiting.advice())
        });
        Some(Self { job: journal.id, phase: journal.phase, waits, given_up })
    }
}

/// How a server archives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchivingFacts {
    /// `archive_mode` is not off.
    pub enabled: bool,
    /// `archive_command`, when it is another than ours.
    pub foreign_command: Option<String>,
    /// Since when every attempt fails, and with which segment.
    pub failing: Option<(Timestamp, String)>,
    /// When a segment was archived last.
    pub last_archived_at: Option<Timestamp>,
    /// Segments that wait.
    pub ready: u64,
    /// `archive_timeout`; zero for none.
    pub timeout: SignedDuration,
    /// How often Headrest commits something; zero for never.
    pub heartbeat: SignedDuration,
}

/// What `info` said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepositoryFacts {
    /// What is wrong with the repositories; nothing when that is empty.
    pub troubles: Vec<String>,
    /// One of them cannot be read, or does not answer.
    pub away: bool,
    /// In which of them the stanza was not created.
    pub missing: Vec<String>,
    /// When the newest backup ended.
    pub last_backup_at: Option<Timestamp>,
    /// When the newest full backup ended.
    pub last_full_at: Option<Timestamp>,
    /// The newest backup, when it found damaged pages.
    pub damaged: Option<String>,
    /// The backups that cannot be restored, newest first.
    pub bad_sets: Vec<BadSet>,
}

/// A backup that cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSet {
    /// Its label.
    pub label: BackupLabel,
    /// Why.
    pub why: String,
    /// The event of the job that has already reported it.
    pub reported_by: Option<EventKind>,
}

/// The archive, compared with the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WalFacts {
    /// What is missing since the newest backup.
    pub missing: Vec<String>,
    /// What is missing before it: earlier moments cannot be restored to.
    pub missing_before: Vec<String>,
    /// A segment that the server takes for archived and no repository has.
    pub dropped: Option<String>,
}

/// Room on a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What is on it, e.g. `PGDATA`.
    pub what: String,
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// Its size in bytes.
    pub total_bytes: u64,
}

/// How a schedule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleFacts {
    /// Its name.
    pub name: String,
    /// What its jobs are.
    pub kind: JobKind,
    /// What went wrong last.
    pub trouble: Option<Trouble>,
    /// Why a run that is due does not come, or does not end.
    pub overdue: Option<String>,
}

/// How a target of notifications does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFacts {
    /// Its name.
    pub name: String,
    /// How many wait for it, and since when the oldest does.
    pub waiting: Option<(u32, Timestamp)>,
    /// When one was last given up.
    pub given_up_at: Option<Timestamp>,
}

/// What is known of a stanza.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Since when Headrest runs: a new server has no backup in its first minutes.
    pub since: Timestamp,
    /// Why the server is not backed up, when it is not meant to be.
    pub not_backed_up: Option<String>,
    /// The supervised server; `None` beside one.
    pub server: Option<ServerFacts>,
    /// Its restore that is not over.
    pub restore: Option<RestoreFacts>,
    /// What `info` said, or why it said nothing; `None` until it was asked.
    pub repository: Option<Result<RepositoryFacts, String>>,
    /// A backup is under way: it may take long, and it is what the age of backups asks for.
    pub backing_up: bool,
    /// The archive; `None` until it was looked at.
    pub wal: Option<WalFacts>,
    /// A job of ours made the newest backup, and has told of the damaged pages that it found.
    pub damage_told: bool,
    /// The newest verification: when, and what it found wrong.
    pub verified: Option<(Timestamp, Option<String>)>,
    /// The stop file that is there, once it was looked for.
    pub stop_file: Option<Option<String>>,
    /// Schedules of the stanza.
    pub schedules: Vec<ScheduleFacts>,
    /// File systems.
    pub disks: Vec<Disk>,
    /// Whether one of them does not answer.
    pub disk_hangs: Option<bool>,
    /// Whether this pgBackRest supports this PostgreSQL, when that is known; else why not.
    pub supported: Option<Result<(), String>>,
    /// Targets of notifications. They are no stanza's, and told with one of them.
    pub targets: Vec<TargetFacts>,
}

impl Facts {
    /// Nothing is known yet.
    pub fn none(since: Timestamp) -> Self {
        Self {
            since,
            not_backed_up: None,
            server: None,
            restore: None,
            repository: None,
            backing_up: false,
            damage_told: false,
            wal: None,
            verified: None,
            stop_file: None,
            schedules: Vec::new(),
            disks: Vec::new(),
            disk_hangs: None,
            supported: None,
            targets: Vec::new(),
        }
    }

    /// Whether a repository cannot be reached, which explains why nothing is archived.
    pub fn repository_is_away(&self) -> bool {
        match &self.repository {
            Some(Ok(repository)) => repository.away,
            Some(Err(_)) => true,
            None => false,
        }
    }

    /// Whether jobs have already reported every backup that cannot be restored.
    pub fn bad_sets_reported(&self) -> bool {
        let Some(Ok(repository)) = &self.repository else { return true };
        repository.bad_sets.iter().all(|set| set.reported_by.is_some())
    }

    /// What that means at `now`, worst first.
    pub fn judge(&self, thresholds: &Thresholds, now: Timestamp) -> Vec<Check> {
        let mut checks = checks::all(self, thresholds, now);
        checks.sort_by_key(|check| (std::cmp::Reverse(check.level), check.key.clone()));
        checks
    }
}

/// What is checked, and of what there is more than one, which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckKey {
    /// What is checked.
    pub id: CheckId,
    /// Which one, e.g. the schedule's name.
    pub of: Option<String>,
}

impl fmt::Display for CheckKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.of {
            Some(of) => write!(f, "{}:{of}", self.id),
            None => self.id.fmt(f),
        }
    }
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// About what.
    pub key: CheckKey,
    /// How well it is.
    pub level: Level,
    /// Why, with names and numbers.
    pub detail: String,
    /// What to do; empty when there is nothing to do.
    pub hint: &'static str,
}

/// A length of time for people, in one unit.
pub fn span(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// The worst level.
pub fn worst(checks: &[Check]) -> Level {
    checks.iter().map(|check| check.level).max().unwrap_or(Level::Pass)
}

#[cfg(test)]
mod tests;
