//! What the page shows, ready to be shown: words, tones, times and sizes for people.

use jiff::{Timestamp, Unit};

use crate::domain::health::{Check, Level, span};
use crate::domain::job::{Job, JobState};
use crate::domain::restore::Journal;
use crate::domain::schedule::run::Step;
use crate::domain::sets::State;
use crate::domain::window::Window;
use crate::http::api::jobs::describe;
use crate::jobs::retention::Marks;
use crate::pgbackrest::info::{self, StanzaStatus};
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::{Archiving, Status};
use crate::scheduler::View;

/// How well something is: a word, a mark and a colour, so that none of them carries it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Busy,
    Warn,
    Bad,
}

impl Tone {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Busy => "busy",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }

    pub(super) fn mark(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Busy => "…",
            Self::Warn => "!",
            Self::Bad => "✗",
        }
    }
}

/// A fact with its tone.
#[derive(Debug)]
pub(super) struct Fact {
    pub(super) tone: Tone,
    pub(super) word: String,
    pub(super) detail: String,
}

#[derive(Debug)]
pub(super) struct BackupRow {
    pub(super) label: String,
    pub(super) kind: String,
    pub(super) repo: String,
    pub(super) stopped: Moment,
    pub(super) took: String,
    pub(super) size: String,
    pub(super) added: String,
    pub(super) mark: &'static str,
    pub(super) why: String,
}

/// A check that does not pass.
#[derive(Debug)]
pub(super) struct ProblemRow {
    pub(super) tone: Tone,
    pub(super) level: &'static str,
    pub(super) name: String,
    pub(super) detail: String,
    pub(super) hint: &'static str,
}

#[derive(Debug)]
pub(super) struct ScheduleRow {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) when: String,
    pub(super) tone: Tone,
    pub(super) state: String,
    pub(super) next: Moment,
}

#[derive(Debug)]
pub(super) struct JobRow {
    pub(super) id: String,
    pub(super) what: String,
    pub(super) tone: Tone,
    pub(super) state: &'static str,
    pub(super) when: Moment,
    pub(super) by: String,
    pub(super) percent: Option<String>,
    pub(super) doing: String,
    pub(super) message: String,
    pub(super) hints: Vec<String>,
}

/// A time for people and for machines.
#[derive(Debug, Default)]
pub(super) struct Moment {
    pub(super) machine: String,
    pub(super) human: String,
    pub(super) ago: String,
}

pub(super) fn fact(tone: Tone, word: &str, detail: &str) -> Fact {
    Fact { tone, word: word.to_owned(), detail: detail.to_owned() }
}

/// The answer for a server that is not backed up, and is not meant to be.
pub(super) fn unsafe_on_purpose(archiving: Archiving) -> Option<Fact> {
    match archiving {
        Archiving::Ours => None,
        Archiving::Off => Some(fact(
            Tone::Warn,
            "A copy",
            "made of the backups of another server, whose they are; it is not backed up itself. \
             HEADREST_BOOTSTRAP_ARCHIVE=on makes it the original",
        )),
        Archiving::NotOurs => {
            let detail = "backups are turned off (HEADREST_BACKUPS=off)";
            Some(fact(Tone::Warn, "Not backed up", detail))
        }
    }
}

/// The answer to the question one has at 3 a.m.
pub(super) fn safety_fact(
    newest: Option<&info::Backup>,
    window: Option<&Window>,
    repository: &Fact,
    archive: &Fact,
    now: Timestamp,
) -> Fact {
    let Some(newest) = newest else {
        return match repository.tone {
            Tone::Bad => fact(Tone::Bad, "Not known", "the repository cannot be read"),
            _ => fact(Tone::Bad, "Not safe yet", "there is no backup"),
        };
    };
    let since = newest.stopped_at.map(|at| moment(at, now).human).unwrap_or_default();
    if repository.tone == Tone::Bad {
        return fact(Tone::Bad, "In danger", "the repository reports a problem");
    }
    if archive.tone == Tone::Bad {
        let detail = format!("backups since {since}, but the WAL is not archived");
        return fact(Tone::Bad, "In danger", &detail);
    }
    let Some((from, to)) = window.and_then(|window| window.from().zip(window.to())) else {
        return fact(Tone::Warn, "Backed up", &format!("newest backup {since}"));
    };
    let (from, until) = (moment(from, now), moment(to, now));
    let newest = format!("newest backup {since}");
    if window.is_some_and(|window| window.ranges.len() > 1) {
        let detail = format!(
            "You can restore to moments between {} and {}, but WAL is missing in between; {newest}",
            from.human, until.human
        );
        return fact(Tone::Warn, "Safe with gaps", &detail);
    }
    let detail = format!(
        "You can restore to any moment between {} and {} ({}); {newest}",
        from.human, until.human, until.ago
    );
    fact(Tone::Good, "Safe", &detail)
}

/// A restore that is under way, and what it waits for.
pub(super) fn restoring_fact(journal: Option<&Journal>) -> Fact {
    let Some(journal) = journal else {
        return fact(Tone::Busy, "Restoring", "PostgreSQL is being restored");
    };
    let target = &journal.target;
    match journal.awaiting {
        None => {
            fact(Tone::Busy, "Restoring", &format!("to {target}: {}", journal.phase.describe()))
        }
        Some(awaiting) => {
            let actions = awaiting.actions(journal.phase, journal.consistent);
            let actions: Vec<&str> = actions.iter().map(|action| action.as_str()).collect();
            let possible = match actions.as_slice() {
                [] => String::new(),
                some => format!(" Possible now: {}.", some.join(", ")),
            };
            let text = format!("{}. {}{possible}", journal.waiting_text(), awaiting.advice());
            fact(Tone::Warn, "The restore waits for you", &text)
        }
    }
}

pub(super) fn postgres_fact(status: &Status, now: Timestamp) -> Fact {
    let tone = match (status.fenced_by, status.state) {
        (Some(_), _) => Tone::Busy,
        (None, ServerState::Ready) => Tone::Good,
        (None, ServerState::Starting | ServerState::Recovering | ServerState::Stopping) => {
            Tone::Busy
        }
        (None, ServerState::Down) => Tone::Warn,
        (None, ServerState::BackingOff | ServerState::Failed) => Tone::Bad,
    };
    let word = if status.fenced_by.is_some() { "restoring" } else { status.state.as_str() };
    let detail = match (&status.reason, &status.version) {
        (Some(reason), _) => reason.clone(),
        (None, Some(version)) => {
            format!("PostgreSQL {version}, for {}", span(now.duration_since(status.since)))
        }
        (None, None) => format!("for {}", span(now.duration_since(status.since))),
    };
    fact(tone, word, &detail)
}

pub(super) fn repository_fact(stanza: &info::StanzaInfo) -> Fact {
    let tone = match stanza.status.meaning() {
        StanzaStatus::Ok => Tone::Good,
        StanzaStatus::NoBackup => Tone::Warn,
        StanzaStatus::MissingPath
        | StanzaStatus::MissingData
        | StanzaStatus::DifferentAcrossRepos
        | StanzaStatus::DatabaseMismatch
        | StanzaStatus::BackupNotFound
        | StanzaStatus::Other(_) => Tone::Bad,
    };
    let troubles: Vec<_> = stanza
        .repos
        .iter()
        .filter(|repo| repo.status.code != 0)
        .map(|repo| format!("repository {}: {}", repo.key, repo.status.message))
        .collect();
    let detail = if troubles.is_empty() {
        match stanza.backups.len() {
            1 => "1 backup".to_owned(),
            n => format!("{n} backups"),
        }
    } else {
        troubles.join("; ")
    };
    fact(tone, &stanza.status.message, &detail)
}

pub(super) fn archive_fact(status: &Status, now: Timestamp) -> Fact {
    if status.archiving != Archiving::Ours {
        return fact(Tone::Warn, "off", "nothing of this server is archived by Headrest");
    }
    let Some(archiver) = &status.archiver else {
        return fact(Tone::Busy, "not known", "PostgreSQL does not answer");
    };
    if !archiver.enabled {
        let detail =
            "archive_mode is off: nothing that is committed is backed up; restart PostgreSQL";
        return fact(Tone::Bad, "off", detail);
    }
    if archiver.is_failing() {
        let wal = archiver.last_failed_wal.as_deref().unwrap_or("a segment");
        let when = archiver.last_failed_at.map(|at| moment(at, now).ago).unwrap_or_default();
        return fact(Tone::Bad, "failing", &format!("{wal}, {when}"));
    }
    match archiver.last_archived_at {
        Some(at) => {
            let at = moment(at, now);
            fact(Tone::Good, "archiving", &format!("last segment {} ({})", at.human, at.ago))
        }
        None => fact(Tone::Busy, "nothing yet", "no WAL was archived since the start"),
    }
}

/// The checks that do not pass, worst first.
pub(super) fn problem_rows(checks: &[Check]) -> Vec<ProblemRow> {
    let tone = |level| match level {
        Level::Pass => Tone::Good,
        Level::Warn => Tone::Warn,
        Level::Fail => Tone::Bad,
    };
    let bad = checks.iter().filter(|check| check.level != Level::Pass);
    bad.map(|check| ProblemRow {
        tone: tone(check.level),
        level: check.level.as_str(),
        name: check.key.to_string(),
        detail: check.detail.clone(),
        hint: check.hint,
    })
    .collect()
}

/// "Safe" is not said while a check fails.
pub(super) fn with_problems(safety: Fact, checks: &[Check]) -> Fact {
    let fails = checks.iter().any(|check| check.level == Level::Fail);
    match safety.tone {
        Tone::Good if fails => {
            Fact { tone: Tone::Warn, word: format!("{}, with problems", safety.word), ..safety }
        }
        Tone::Good | Tone::Busy | Tone::Warn | Tone::Bad => safety,
    }
}

/// What is done by itself next.
pub(super) fn next_fact(views: &[&View], now: Timestamp) -> Fact {
    let coming = views.iter().filter_map(|view| Some((view.next?.1, view)));
    match coming.min_by_key(|(due, _)| *due) {
        Some((due, view)) => {
            let detail = format!("{} in {}", view.schedule.kind, span(due.duration_since(now)));
            fact(Tone::Good, view.schedule.name.as_str(), &detail)
        }
        None => fact(Tone::Warn, "none", "nothing is scheduled"),
    }
}

pub(super) fn schedule_row(view: &View, now: Timestamp) -> ScheduleRow {
    let (tone, state) = match (&view.state.trouble, &view.state.run) {
        _ if view.state.paused => (Tone::Warn, "paused".to_owned()),
        (Some(trouble), _) => (Tone::Warn, trouble.text.clone()),
        (None, Some(run)) => match &run.step {
            Step::Held { why } => (Tone::Busy, format!("waits: {why}")),
            Step::Starting | Step::Running { .. } => (Tone::Busy, "running".to_owned()),
            Step::Retrying { .. } => (Tone::Warn, "failed, is tried again".to_owned()),
        },
        (None, None) => (Tone::Good, "on time".to_owned()),
    };
    let schedule = &view.schedule;
    ScheduleRow {
        name: schedule.name.to_string(),
        kind: schedule.kind.as_str(),
        when: format!("{} ({}, {})", schedule.cron.in_words(), schedule.cron, schedule.timezone),
        tone,
        state,
        next: view.next.map(|(_, due)| moment(due, now)).unwrap_or_default(),
    }
}

pub(super) fn backup_row(backup: &info::Backup, marks: &Marks, now: Timestamp) -> BackupRow {
    let judgement = marks.judgement(backup);
    let took = backup.started_at.zip(backup.stopped_at);
    BackupRow {
        label: backup.label.to_string(),
        kind: backup.kind.as_str().to_owned(),
        repo: backup.repo_key.map_or_else(String::new, |key| key.to_string()),
        stopped: backup.stopped_at.map(|at| moment(at, now)).unwrap_or_default(),
        took: took.map(|(start, stop)| span(stop.duration_since(start))).unwrap_or_default(),
        size: backup.size_bytes.map(bytes).unwrap_or_default(),
        added: backup.repo_delta_bytes.map(bytes).unwrap_or_default(),
        mark: match judgement.state {
            State::Good | State::Unverified => "",
            State::PageErrors => "page errors",
            State::Damaged => "damaged",
            State::Unreadable => "unreadable",
        },
        why: judgement.why.clone().unwrap_or_default(),
    }
}

pub(super) fn job_row(job: &Job, now: Timestamp) -> JobRow {
    let tone = match job.state {
        JobState::Succeeded => Tone::Good,
        JobState::Queued | JobState::Running | JobState::Cancelling => Tone::Busy,
        JobState::Warned | JobState::Cancelled | JobState::Interrupted => Tone::Warn,
        JobState::Failed => Tone::Bad,
    };
    let percent = job.progress.percent_hundredths.filter(|_| !job.state.is_final());
    let doing = match job.restore_phase {
        Some(phase) => phase.describe().to_owned(),
        None => job.progress.phase.clone().unwrap_or_default(),
    };
    JobRow {
        id: job.id.to_string(),
        what: describe(&job.spec),
        tone,
        state: job.state.as_str(),
        when: moment(job.finished_at.or(job.started_at).unwrap_or(job.created_at), now),
        by: format!("{} ({})", job.by, job.trigger),
        percent: percent.map(|n| format!("{}.{:02}", n / 100, n % 100)),
        doing,
        message: job.error.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
        hints: job.error.as_ref().map(|error| error.hints.clone()).unwrap_or_default(),
    }
}

pub(super) fn moment(at: Timestamp, now: Timestamp) -> Moment {
    let whole = at.round(Unit::Second).unwrap_or(at);
    Moment {
        machine: whole.to_string(),
        human: whole.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        ago: if at > now {
            format!("in {}", span(at.duration_since(now)))
        } else {
            format!("{} ago", span(now.duration_since(at)))
        },
    }
}

/// Bytes for people, in powers of 1024 as pgBackRest prints them.
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB", "PB"];
    let mut unit = 0;
    let mut tenths = u128::from(n) * 10;
    while tenths >= 10_240 && unit + 1 < units.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn numbers_for_people() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KB"), (23_173_000, "22.0 MB")];
        for (n, expect) in cases {
            assert_eq!(bytes(n), expect);
        }
        assert_eq!(bytes(u64::MAX), "16383.9 PB");
        let spans = [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")];
        for (seconds, expect) in spans {
            assert_eq!(span(SignedDuration::from_secs(seconds)), expect);
        }
    }
}
