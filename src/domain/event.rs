//! What somebody may want to be told: kinds of events, how bad they are, and who wants which.
//!
//! An [`Event`] is a fact with words for people. Where it goes and how is not decided here.

mod of_job;
mod pattern;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::words::words;
use super::{JobId, StanzaName};

pub use of_job::{kind_of, of_job, of_wait};
pub use pattern::{EventPattern, EventPatterns, InvalidPattern};

/// The most characters of an event's detail.
const DETAIL_MAX_CHARS: usize = 4000;
/// The most characters of an event's summary.
const SUMMARY_MAX_CHARS: usize = 300;

words! {
    /// What happened.
    EventKind {
        /// A backup has begun.
        BackupStarted = "backup.started",
        /// A backup was made.
        BackupSucceeded = "backup.succeeded",
        /// A backup was made, with something to look at.
        BackupWarned = "backup.warned",
        /// A backup was not made.
        BackupFailed = "backup.failed",
        /// A scheduled backup was not even tried.
        BackupMissed = "backup.missed",
        /// Somebody cancelled a backup.
        BackupCancelled = "backup.cancelled",
        /// Headrest ended during a backup.
        BackupInterrupted = "backup.interrupted",
        /// A restore has begun.
        RestoreStarted = "restore.started",
        /// A restore is done, PostgreSQL takes writes.
        RestoreSucceeded = "restore.succeeded",
        /// The same, with something to look at.
        RestoreWarned = "restore.warned",
        /// A restore failed.
        RestoreFailed = "restore.failed",
        /// A restore waits for somebody's decision.
        RestoreWaiting = "restore.waiting",
        /// Somebody cancelled a restore.
        RestoreCancelled = "restore.cancelled",
        /// Headrest ended during a restore.
        RestoreInterrupted = "restore.interrupted",
        /// A backup was proven to restore.
        DrillSucceeded = "drill.succeeded",
        /// A backup was not proven to restore.
        DrillFailed = "drill.failed",
        /// A verification has begun.
        VerifyStarted = "verify.started",
        /// The repository's files are what they were.
        VerifySucceeded = "verify.succeeded",
        /// They are not, or could not be read.
        VerifyFailed = "verify.failed",
        /// A check of archiving has begun.
        CheckStarted = "check.started",
        /// Archiving works end to end.
        CheckSucceeded = "check.succeeded",
        /// It does not.
        CheckFailed = "check.failed",
        /// Removing old backups has begun.
        ExpireStarted = "expire.started",
        /// What retention does not keep is removed.
        ExpireSucceeded = "expire.succeeded",
        /// Old backups were not removed.
        ExpireFailed = "expire.failed",
        /// A run of another schedule than a backup's was not even tried.
        ScheduleMissed = "schedule.missed",
        /// A schedule's run failed, and so did every retry.
        ScheduleFailed = "schedule.failed",
        /// WAL is not being archived.
        WalFailing = "wal.failing",
        /// It is again.
        WalRecovered = "wal.recovered",
        /// WAL is missing in the archive.
        WalGap = "wal.gap",
        /// A repository cannot be reached.
        RepoUnavailable = "repo.unavailable",
        /// It can again.
        RepoRecovered = "repo.recovered",
        /// A supervised process left unexpectedly.
        ProcessCrashed = "process.crashed",
        /// It is up again.
        ProcessRecovered = "process.recovered",
        /// A verdict of the health checks is another one.
        HealthChanged = "health.changed",
        /// Somebody tries whether notifications arrive.
        Test = "test",
    }
}

words! {
    /// How bad it is.
    Severity {
        /// Good to know.
        Info = "info",
        /// Somebody should look when there is time.
        Warning = "warning",
        /// Somebody should look now.
        Critical = "critical",
    }
}

words! {
    /// Who may hear of an event.
    Audience {
        /// Whoever wants it.
        All = "all",
        /// Targets that people or programs read; a dead man's switch would take it for the end.
        Readers = "readers",
    }
}

impl EventKind {
    /// How bad such an event usually is.
    pub fn usual_severity(self) -> Severity {
        match self {
            Self::BackupStarted
            | Self::BackupSucceeded
            | Self::BackupCancelled
            | Self::RestoreStarted
            | Self::RestoreSucceeded
            | Self::RestoreCancelled
            | Self::DrillSucceeded
            | Self::VerifyStarted
            | Self::VerifySucceeded
            | Self::CheckStarted
            | Self::CheckSucceeded
            | Self::ExpireStarted
            | Self::ExpireSucceeded
            | Self::WalRecovered
            | Self::RepoRecovered
            | Self::ProcessRecovered
            | Self::Test => Severity::Info,
            Self::BackupWarned
            | Self::BackupMissed
            | Self::BackupInterrupted
            | Self::RestoreWarned
            | Self::RestoreWaiting
            | Self::ExpireFailed
            | Self::ScheduleMissed
            | Self::ScheduleFailed
            | Self::HealthChanged => Severity::Warning,
            Self::BackupFailed
            | Self::RestoreFailed
            | Self::RestoreInterrupted
            | Self::DrillFailed
            | Self::VerifyFailed
            | Self::CheckFailed
            | Self::WalFailing
            | Self::WalGap
            | Self::RepoUnavailable
            | Self::ProcessCrashed => Severity::Critical,
        }
    }

    /// Whether it can be the end of something bad, so that whoever heard of that wants it too.
    pub fn ends_something_bad(self) -> bool {
        match self {
            Self::WalRecovered
            | Self::RepoRecovered
            | Self::ProcessRecovered
            | Self::HealthChanged => true,
            Self::BackupStarted
            | Self::BackupSucceeded
            | Self::BackupWarned
            | Self::BackupFailed
            | Self::BackupMissed
            | Self::BackupCancelled
            | Self::BackupInterrupted
            | Self::RestoreStarted
            | Self::RestoreSucceeded
            | Self::RestoreWarned
            | Self::RestoreFailed
            | Self::RestoreWaiting
            | Self::RestoreCancelled
            | Self::RestoreInterrupted
            | Self::DrillSucceeded
            | Self::DrillFailed
            | Self::VerifyStarted
            | Self::VerifySucceeded
            | Self::VerifyFailed
            | Self::CheckStarted
            | Self::CheckSucceeded
            | Self::CheckFailed
            | Self::ExpireStarted
            | Self::ExpireSucceeded
            | Self::ExpireFailed
            | Self::ScheduleMissed
            | Self::ScheduleFailed
            | Self::WalFailing
            | Self::WalGap
            | Self::RepoUnavailable
            | Self::ProcessCrashed
            | Self::Test => false,
        }
    }
}

/// Something that somebody may want to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub at: Timestamp,
    /// To which stanza, when it is one's.
    pub stanza: Option<StanzaName>,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, e.g. `check:archiver` or `job:ID`: events of one subject follow each
    /// other, and a second one like the first is not told twice while the first still waits.
    pub subject: String,
    /// One line for people.
    pub summary: String,
    /// More of it; may be empty.
    pub detail: String,
    /// The job, when it is one's.
    pub job: Option<JobId>,
    /// The schedule, when it is one's.
    pub schedule: Option<String>,
    /// Who may hear of it.
    #[serde(default = "everybody")]
    pub audience: Audience,
    /// How bad it was at worst before, when it is told of something that goes on.
    #[serde(default)]
    pub was: Option<Severity>,
    /// What a job has told of it already, so that only whoever does not hear of that hears of this.
    #[serde(default)]
    pub told_as: Option<EventKind>,
}

/// The audience of events that were stored before there were audiences.
fn everybody() -> Audience {
    Audience::All
}

impl Event {
    /// An event as bad as its kind usually is, of no stanza, job or schedule.
    pub fn new(kind: EventKind, at: Timestamp, subject: String, summary: &str) -> Self {
        Self {
            kind,
            at,
            stanza: None,
            severity: kind.usual_severity(),
            subject,
            summary: cut(&one_line(summary), SUMMARY_MAX_CHARS),
            detail: String::new(),
            job: None,
            schedule: None,
            audience: Audience::All,
            was: None,
            told_as: None,
        }
    }

    /// How bad it is for whoever was told of what was before: the worse of both.
    pub fn worst(&self) -> Severity {
        self.was.map_or(self.severity, |was| was.max(self.severity))
    }

    /// What a job has told of it already.
    pub fn told_before(&self) -> Option<Self> {
        let kind = self.told_as?;
        let severity = kind.usual_severity();
        Some(Self { kind, severity, was: None, told_as: None, ..self.clone() })
    }

    /// The same with more words, cut to a length that every receiver takes.
    #[must_use]
    pub fn with_detail(mut self, detail: &str) -> Self {
        self.detail = cut(detail, DETAIL_MAX_CHARS);
        self
    }

    /// The same of a stanza.
    #[must_use]
    pub fn of_stanza(mut self, stanza: StanzaName) -> Self {
        self.stanza = Some(stanza);
        self
    }
}

/// A text without line breaks and other control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A text of at most so many characters; the last one says that there was more.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_being_written_and_read() {
        let at = "2026-11-20T14:05:00.000001Z".parse().unwrap();
        for kind in EventKind::ALL {
            let event = Event::new(*kind, at, "check:archiver".into(), "two\nlines")
                .with_detail("more")
                .of_stanza("main".parse().unwrap());
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
            assert_eq!(event.summary, "two lines");
        }
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        for (text, most, expect) in
            [("", 3, ""), ("äöü", 3, "äöü"), ("äöüß", 3, "äö…"), ("abc", 0, "…")]
        {
            assert_eq!(cut(text, most), expect, "{text} to {most}");
        }
    }

    #[test]
    fn what_ends_something_bad_is_told_to_whoever_hears_only_of_bad_things() {
        let good = EventKind::ALL.iter().filter(|kind| kind.as_str().ends_with(".recovered"));
        assert!(good.clone().count() == 3);
        assert!(good.into_iter().all(|kind| kind.ends_something_bad()));
    }
}
