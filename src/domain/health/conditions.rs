//! What of health is told to somebody, and when.
//!
//! Checks that one fault turns together are one condition, so that the fault is told once: when it
//! gets worse, and when it is healed. What another one explains is not told at all: an archive that
//! cannot be written to because its repository is away is the repository's fault.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::super::event::{Event, EventKind, Severity, kind_of};
use super::super::{JobKind, StanzaName};
use super::{Check, CheckId, CheckKey, Facts, Level, ScheduleFacts, Trouble};

/// What is told of together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConditionName(String);

/// How a condition is, with the checks that make it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The worst level of its checks.
    pub level: Level,
    /// Its checks of that level.
    pub checks: Vec<Check>,
}

impl State {
    /// Whether such a check makes it so.
    pub fn is_about(&self, id: CheckId) -> bool {
        self.checks.iter().any(|check| check.key.id == id)
    }
}

/// The name of what the age of backups is told under.
const BACKUPS: &str = "backups";
/// The name of what archiving is told under.
pub const ARCHIVING: &str = "archiving";
/// The name of what the repositories are told under.
pub const REPOSITORY: &str = "repository";

/// How a condition was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// Last.
    pub level: Level,
    /// At worst, since it was last well.
    pub worst: Level,
}

impl Before {
    /// As it was at first: well.
    pub const WELL: Self = Self { level: Level::Pass, worst: Level::Pass };

    /// The same after it has become `level`.
    #[must_use]
    pub fn then(self, level: Level) -> Self {
        let worst = if level == Level::Pass { level } else { level.max(self.worst) };
        Self { level, worst }
    }
}

impl ConditionName {
    /// The condition that a check is part of.
    pub fn of(key: &CheckKey) -> Self {
        let name = match key.id {
            CheckId::ArchiveMode
            | CheckId::ArchiveCommand
            | CheckId::Archiver
            | CheckId::WalReady
            | CheckId::WalAge => ARCHIVING.to_owned(),
            CheckId::LastBackup | CheckId::LastFull => BACKUPS.to_owned(),
            CheckId::Repository => REPOSITORY.to_owned(),
            CheckId::Postgres
            | CheckId::Restore
            | CheckId::WalGap
            | CheckId::BackupSets
            | CheckId::PageChecksums
            | CheckId::Verify
            | CheckId::StopFile
            | CheckId::Schedule
            | CheckId::DiskSpace
            | CheckId::Versions
            | CheckId::Notifications => key.to_string(),
        };
        Self(name)
    }

    /// Whether it is about what a new server does not have yet.
    pub fn is_for_new(&self) -> bool {
        matches!(self.0.as_str(), BACKUPS | REPOSITORY)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The conditions that checks make.
pub fn conditions(checks: &[Check]) -> BTreeMap<ConditionName, State> {
    let mut found: BTreeMap<ConditionName, State> = BTreeMap::new();
    for check in checks {
        let state = found
            .entry(ConditionName::of(&check.key))
            .or_insert(State { level: Level::Pass, checks: Vec::new() });
        if check.level > state.level {
            state.checks.clear();
        }
        state.level = state.level.max(check.level);
        if check.level == state.level {
            state.checks.push(check.clone());
        }
    }
    found
}

/// What is told when a condition has changed from `before`.
pub fn event_of(
    stanza: &StanzaName,
    name: &ConditionName,
    state: &State,
    before: Before,
    facts: &Facts,
    now: Timestamp,
) -> Option<Event> {
    let Before { level: before, worst } = before;
    let details: Vec<&str> = state.checks.iter().map(|check| check.detail.as_str()).collect();
    let hints: Vec<&str> = state.checks.iter().map(|check| check.hint).collect();
    let first = state.checks.first().map(|check| check.key.id)?;
    let worse = state.level > before;
    let schedule = name.as_str().strip_prefix("schedule:");
    let schedule =
        schedule.and_then(|name| facts.schedules.iter().find(|facts| facts.name == name));
    let kind = match (first, state.level) {
        // Who does not get notifications does not get these; they would be told of for ever.
        (CheckId::Notifications, _) => return None,
        (CheckId::Postgres, Level::Fail) => EventKind::ProcessCrashed,
        (CheckId::Postgres, Level::Pass) if worst == Level::Fail => EventKind::ProcessRecovered,
        (CheckId::Repository, Level::Fail) => EventKind::RepoUnavailable,
        (CheckId::Repository, Level::Pass) => EventKind::RepoRecovered,
        (CheckId::WalGap, Level::Fail) => EventKind::WalGap,
        (
            CheckId::WalGap
            | CheckId::ArchiveMode
            | CheckId::ArchiveCommand
            | CheckId::Archiver
            | CheckId::WalReady
            | CheckId::WalAge,
            Level::Pass,
        ) => EventKind::WalRecovered,
        (
            CheckId::ArchiveMode
            | CheckId::ArchiveCommand
            | CheckId::Archiver
            | CheckId::WalReady
            | CheckId::WalAge,
            Level::Warn | Level::Fail,
        ) => EventKind::WalFailing,
        (CheckId::Schedule, Level::Warn | Level::Fail) => match schedule {
            Some(ScheduleFacts { trouble: Some(Trouble { missed: false, .. }), .. }) => {
                EventKind::ScheduleFailed
            }
            Some(ScheduleFacts { trouble: None, .. }) => EventKind::HealthChanged,
            Some(ScheduleFacts { kind: JobKind::Backup, .. }) => EventKind::BackupMissed,
            Some(_) | None => EventKind::ScheduleMissed,
        },
        (
            CheckId::Postgres
            | CheckId::Restore
            | CheckId::LastBackup
            | CheckId::LastFull
            | CheckId::Repository
            | CheckId::WalGap
            | CheckId::BackupSets
            | CheckId::PageChecksums
            | CheckId::Verify
            | CheckId::StopFile
            | CheckId::Schedule
            | CheckId::DiskSpace
            | CheckId::Versions,
            _,
        ) => EventKind::HealthChanged,
    };
    let told_as = match (first, state.level) {
        (_, Level::Pass) => None,
        (CheckId::Verify, _) => Some(EventKind::VerifyFailed),
        (CheckId::Restore, Level::Warn) => Some(EventKind::RestoreWaiting),
        (CheckId::Restore, Level::Fail) => {
            let given_up = facts.restore.as_ref().is_some_and(|restore| restore.given_up.is_some());
            given_up.then_some(EventKind::RestoreFailed)
        }
        (CheckId::BackupSets, _) => reporter_of_sets(facts),
        (CheckId::PageChecksums, _) if facts.damage_told => Some(EventKind::BackupWarned),
        (CheckId::Schedule, _) => schedule.and_then(|schedule| {
            let outcome = schedule.trouble.as_ref()?.told?;
            kind_of(schedule.kind, outcome.into())
        }),
        (_, _) => None,
    };
    let summary = if state.level == Level::Pass {
        format!("{} of {stanza} is well again", name.as_str())
    } else {
        let change = if worse { "" } else { " (it was worse)" };
        format!("{} of {stanza}: {}{change}", name.as_str(), details.join("; "))
    };
    let subject = format!("health:{}", name.as_str());
    let mut lines = details;
    lines.extend(hints.into_iter().filter(|hint| !hint.is_empty()));
    let event = Event::new(kind, now, subject, &summary).with_detail(&lines.join("\n"));
    Some(Event {
        severity: severity(state.level),
        was: Some(severity(worst)),
        told_as,
        schedule: schedule.map(|facts| facts.name.clone()),
        ..event.of_stanza(stanza.clone())
    })
}

/// The event that has reported every backup that cannot be restored, when it is the same one.
fn reporter_of_sets(facts: &Facts) -> Option<EventKind> {
    let known = facts.repository.as_ref()?.as_ref().ok()?;
    let first = known.bad_sets.first()?.reported_by?;
    known.bad_sets.iter().all(|set| set.reported_by == Some(first)).then_some(first)
}

fn severity(level: Level) -> Severity {
    match level {
        Level::Pass => Severity::Info,
        Level::Warn => Severity::Warning,
        Level::Fail => Severity::Critical,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::job::Outcome;
    use super::*;

    #[test]
    fn each_change_has_its_event() {
        let stanza: StanzaName = "main".parse().unwrap();
        let now = Timestamp::from_second(1_795_000_000).unwrap();
        let trouble = |missed, told| Some(Trouble { missed, text: "x".to_owned(), told });
        let table = [
            (CheckId::Postgres, Level::Fail, Level::Pass, "process.crashed", Severity::Critical),
            (CheckId::Postgres, Level::Pass, Level::Fail, "process.recovered", Severity::Info),
            (CheckId::Archiver, Level::Warn, Level::Pass, "wal.failing", Severity::Warning),
            (CheckId::Archiver, Level::Fail, Level::Warn, "wal.failing", Severity::Critical),
            (CheckId::Archiver, Level::Pass, Level::Fail, "wal.recovered", Severity::Info),
            (CheckId::WalGap, Level::Fail, Level::Pass, "wal.gap", Severity::Critical),
            (CheckId::WalGap, Level::Pass, Level::Fail, "wal.recovered", Severity::Info),
            (CheckId::Repository, Level::Fail, Level::Pass, "repo.unavailable", Severity::Critical),
            (CheckId::Repository, Level::Pass, Level::Fail, "repo.recovered", Severity::Info),
            (CheckId::DiskSpace, Level::Warn, Level::Pass, "health.changed", Severity::Warning),
            (CheckId::DiskSpace, Level::Pass, Level::Warn, "health.changed", Severity::Info),
            (CheckId::PageChecksums, Level::Warn, Level::Pass, "health.changed", Severity::Warning),
            (CheckId::Verify, Level::Fail, Level::Pass, "health.changed", Severity::Critical),
            (CheckId::Verify, Level::Pass, Level::Fail, "health.changed", Severity::Info),
            (CheckId::Schedule, Level::Warn, Level::Pass, "backup.missed", Severity::Warning),
        ];
        let nightly = |trouble| Facts {
            schedules: vec![ScheduleFacts {
                name: "nightly".to_owned(),
                kind: JobKind::Backup,
                trouble,
                overdue: None,
            }],
            ..Facts::none(now)
        };
        let facts = nightly(trouble(true, None));
        for (id, level, before, kind, severity) in table {
            let mut check = check(id, level);
            if id == CheckId::Schedule {
                check.key.of = Some("nightly".to_owned());
            }
            let name = ConditionName::of(&check.key);
            let state = State { level, checks: vec![check] };
            let event =
                event_of(&stanza, &name, &state, Before::WELL.then(before), &facts, now).unwrap();
            assert_eq!((event.kind.as_str(), event.severity), (kind, severity), "{id} {level}");
            assert_eq!(event.stanza.as_ref(), Some(&stanza));
            assert_eq!(event.worst(), self::severity(level.max(before)), "{id} {level}");
            let scheduled = event.schedule.is_some();
            assert_eq!(scheduled, id == CheckId::Schedule);
        }
        // What a job has told is for those who do not hear of jobs.
        let damaged = Facts { damage_told: true, ..Facts::none(now) };
        let failed = nightly(trouble(false, Some(Outcome::Failed)));
        for (id, facts, told_as) in [
            (CheckId::Verify, &facts, Some(EventKind::VerifyFailed)),
            (CheckId::PageChecksums, &facts, None),
            (CheckId::PageChecksums, &damaged, Some(EventKind::BackupWarned)),
            (CheckId::Schedule, &facts, None),
            (CheckId::Schedule, &failed, Some(EventKind::BackupFailed)),
            (CheckId::Schedule, &nightly(trouble(false, None)), None),
        ] {
            for level in [Level::Warn, Level::Pass] {
                let mut check = check(id, level);
                check.key.of = (id == CheckId::Schedule).then(|| "nightly".to_owned());
                let name = ConditionName::of(&check.key);
                let state = State { level, checks: vec![check] };
                let event = event_of(&stanza, &name, &state, Before::WELL, facts, now).unwrap();
                let expect = told_as.filter(|_| level == Level::Warn);
                assert_eq!(event.told_as, expect, "{id} {level}");
                if id == CheckId::Schedule
                    && level == Level::Warn
                    && facts.schedules != nightly(trouble(true, None)).schedules
                {
                    assert_eq!(event.kind, EventKind::ScheduleFailed);
                }
            }
        }
        for (level, before) in [(Level::Warn, Level::Pass), (Level::Pass, Level::Warn)] {
            let check = self::check(CheckId::Notifications, level);
            let name = ConditionName::of(&check.key);
            let state = State { level, checks: vec![check] };
            assert_eq!(
                event_of(&stanza, &name, &state, Before::WELL.then(before), &facts, now),
                None
            );
        }
    }

    fn check(id: CheckId, level: Level) -> Check {
        Check { key: CheckKey { id, of: None }, level, detail: id.to_string(), hint: "" }
    }

    #[test]
    fn whoever_heard_of_the_worst_hears_of_the_end() {
        let stanza: StanzaName = "main".parse().unwrap();
        let mut before = Before::WELL;
        let mut heard = Vec::new();
        for level in [Level::Warn, Level::Fail, Level::Warn, Level::Pass, Level::Warn, Level::Pass]
        {
            let check = check(CheckId::Archiver, level);
            let name = ConditionName::of(&check.key);
            let state = State { level, checks: vec![check] };
            let epoch = Timestamp::UNIX_EPOCH;
            let event = event_of(&stanza, &name, &state, before, &Facts::none(epoch), epoch);
            heard.push(event.unwrap().worst() == Severity::Critical);
            before = before.then(level);
        }
        assert_eq!(heard, [false, true, true, true, false, false]);
    }

    #[test]
    fn a_server_that_comes_up_step_by_step_has_recovered() {
        let (stanza, now) = ("main".parse().unwrap(), Timestamp::UNIX_EPOCH);
        let mut before = Before::WELL;
        let mut told = Vec::new();
        for level in [Level::Fail, Level::Warn, Level::Pass, Level::Warn, Level::Pass] {
            let check = check(CheckId::Postgres, level);
            let name = ConditionName::of(&check.key);
            let state = State { level, checks: vec![check] };
            let event = event_of(&stanza, &name, &state, before, &Facts::none(now), now).unwrap();
            told.push(event.kind.as_str());
            before = before.then(level);
        }
        let expect = ["process.crashed", "health.changed", "process.recovered"];
        assert_eq!(told[..3], expect);
        assert_eq!(told[3..], ["health.changed", "health.changed"]);
    }

    #[test]
    fn one_fault_is_one_condition() {
        let checks = [
            check(CheckId::Archiver, Level::Fail),
            check(CheckId::WalReady, Level::Warn),
            check(CheckId::WalAge, Level::Fail),
            check(CheckId::Repository, Level::Pass),
        ];
        let all = conditions(&checks);
        assert_eq!(all.len(), 2);
        let archiving = ConditionName(ARCHIVING.to_owned());
        assert_eq!(all[&archiving].level, Level::Fail);
        let why: Vec<_> = all[&archiving].checks.iter().map(|check| check.key.id).collect();
        assert_eq!(why, [CheckId::Archiver, CheckId::WalAge]);
    }
}
