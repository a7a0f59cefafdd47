//! What of health is told to somebody, and when.
//!
//! Checks that one fault turns together are one condition, so that the fault is told once: when it
//! gets worse, and when it is healed. What another one explains is not told at all: an archive that
//! cannot be written to because its repository is away is the repository's fault.

use std::collections::BTreeMap;

use super::{Check, CheckId, CheckKey, Level};

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

/// The name of what the age of backups is told under.
const BACKUPS: &str = "backups";
/// The name of what archiving is told under.
pub const ARCHIVING: &str = "archiving";
/// The name of what the repositories are told under.
pub const REPOSITORY: &str = "repository";

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
            CheckId::DiskSpace => "disk-space".to_owned(),
            CheckId::Postgres
            | CheckId::WalGap
            | CheckId::PageChecksums
            | CheckId::Verify
            | CheckId::StopFile
            | CheckId::Schedule
            | CheckId::Versions => key.to_string(),
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

/// Whether a condition that got worse is explained by another one.
pub fn is_explained(name: &ConditionName, all: &BTreeMap<ConditionName, State>) -> bool {
    let repository = all.iter().find(|(name, _)| name.as_str() == REPOSITORY);
    name.as_str() == ARCHIVING && repository.is_some_and(|(_, state)| state.level == Level::Fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: CheckId, level: Level) -> Check {
        Check { key: CheckKey { id, of: None }, level, detail: id.to_string(), hint: "" }
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
        assert!(!is_explained(&archiving, &all));
        let all = conditions(&[&checks[..3], &[check(CheckId::Repository, Level::Fail)]].concat());
        assert!(is_explained(&archiving, &all));
        assert!(!is_explained(&ConditionName(REPOSITORY.to_owned()), &all));
    }
}
