//! Schedules: when something is to be done by itself, and what is done about a moment that passed.
//!
//! [`slots`] says which moments a schedule has; [`run`] decides, at a given time, what becomes of
//! those that have come. Nothing here waits, asks a clock or starts anything.

pub mod run;
pub mod slots;

use std::fmt;
use std::str::FromStr;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::stanza::shown;
use super::words::words;
use super::{BackupType, JobKind, RepoKey, StanzaName};
pub use slots::{Cron, InvalidCron, InvalidZone, Zone};

/// How late a run that is not to be made up for may still start: a stalled machine is no missed run.
pub const ON_TIME: SignedDuration = SignedDuration::from_mins(5);
/// The longest `within`.
pub const LONGEST_WITHIN: SignedDuration = SignedDuration::from_hours(24 * 31);
/// The longest `jitter`.
pub const LONGEST_JITTER: SignedDuration = SignedDuration::from_hours(24);
/// The most retries.
pub const MOST_RETRIES: u8 = 10;

words! {
    /// What a schedule does.
    ScheduleKind {
        /// A full backup.
        Full = "full",
        /// A differential backup.
        Diff = "diff",
        /// An incremental backup.
        Incr = "incr",
        /// Retention carried out.
        Expire = "expire",
        /// The repository verified.
        Verify = "verify",
        /// Archiving checked end to end.
        Check = "check",
    }
}

words! {
    /// What is done about a run whose moment has passed.
    MissedPolicy {
        /// It starts late, once for all that were missed, if it can within the limit.
        RunOnce = "run-once",
        /// It is left out.
        Skip = "skip",
    }
}

impl ScheduleKind {
    /// The type of backup, when it is one.
    pub fn backup_type(self) -> Option<BackupType> {
        match self {
            Self::Full => Some(BackupType::Full),
            Self::Diff => Some(BackupType::Diff),
            Self::Incr => Some(BackupType::Incr),
            Self::Expire | Self::Verify | Self::Check => None,
        }
    }

    /// What its jobs are.
    pub fn job(self) -> JobKind {
        match self {
            Self::Full | Self::Diff | Self::Incr => JobKind::Backup,
            Self::Expire => JobKind::Expire,
            Self::Verify => JobKind::Verify,
            Self::Check => JobKind::Check,
        }
    }

    /// Whether it needs a server that takes writes.
    pub fn needs_server(self) -> bool {
        match self {
            Self::Full | Self::Diff | Self::Incr | Self::Check => true,
            Self::Expire | Self::Verify => false,
        }
    }
}

/// A schedule's name: 1 to 63 of `a-z`, `0-9`, `_` and `-`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScheduleName(String);

/// Text that is no schedule's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a schedule's name: 1 to 63 of a-z, 0-9, _ and -, starting with a letter or digit"
)]
pub struct InvalidScheduleName(String);

impl ScheduleName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ScheduleName {
    type Err = InvalidScheduleName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The grammar of a stanza's name.
        match text.parse::<StanzaName>() {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(InvalidScheduleName(shown(text))),
        }
    }
}

impl TryFrom<String> for ScheduleName {
    type Error = InvalidScheduleName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ScheduleName> for String {
    fn from(name: ScheduleName) -> Self {
        name.0
    }
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its name.
    pub name: ScheduleName,
    /// The stanza.
    pub stanza: StanzaName,
    /// What it does.
    pub kind: ScheduleKind,
    /// The repository; pgBackRest's choice when not given.
    pub repo: Option<RepoKey>,
    /// Its moments.
    pub cron: Cron,
    /// The zone that they are meant in.
    pub timezone: Zone,
    /// What is done about a run whose moment has passed.
    pub missed: MissedPolicy,
    /// How late a missed run may still start.
    pub within: SignedDuration,
    /// Each run starts up to so much later, always the same for the same moment.
    pub jitter: SignedDuration,
    /// How often a run that failed is tried again.
    pub retries: u8,
}

/// A value of a schedule that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidSchedule {
    /// The field.
    pub field: &'static str,
    /// Why.
    pub message: String,
}

impl Schedule {
    /// What a schedule of that name has when nothing more is said.
    pub fn new(name: ScheduleName, stanza: StanzaName, kind: ScheduleKind, cron: Cron) -> Self {
        Self {
            name,
            stanza,
            kind,
            repo: None,
            cron,
            timezone: Zone::utc(),
            missed: MissedPolicy::RunOnce,
            within: SignedDuration::from_hours(6),
            jitter: SignedDuration::ZERO,
            retries: 3,
        }
    }

    /// What fits a server that nobody configured anything for: a full on Sunday, a diff on every
    /// other day, at two in the night of UTC.
    pub fn defaults(stanza: &StanzaName) -> Vec<Self> {
        let one = |name: &str, kind, cron: &str| {
            let (name, cron) = (name.parse().ok()?, cron.parse().ok()?);
            Some(Self::new(name, stanza.clone(), kind, cron))
        };
        let both = [
            one("weekly-full", ScheduleKind::Full, "0 2 * * SUN"),
            one("daily-diff", ScheduleKind::Diff, "0 2 * * MON-SAT"),
        ];
        both.into_iter().flatten().collect()
    }

    /// Refuses values out of range.
    pub fn check(&self) -> Result<(), InvalidSchedule> {
        let refuse = |field, message: String| Err(InvalidSchedule { field, message });
        if self.within.is_negative() || self.within > LONGEST_WITHIN {
            return refuse("within", "is not from 0 to 31 days".to_owned());
        }
        if self.jitter.is_negative() || self.jitter > LONGEST_JITTER {
            return refuse("jitter", "is not from 0 to 24 hours".to_owned());
        }
        if self.retries > MOST_RETRIES {
            return refuse("retries", format!("{} is not from 0 to {MOST_RETRIES}", self.retries));
        }
        Ok(())
    }

    /// How late a run may start.
    pub fn patience(&self) -> SignedDuration {
        match self.missed {
            MissedPolicy::RunOnce => self.within.max(ON_TIME),
            MissedPolicy::Skip => ON_TIME,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_two() {
        let stanza: StanzaName = "main".parse().unwrap();
        let defaults = Schedule::defaults(&stanza);
        let names: Vec<_> = defaults.iter().map(|schedule| schedule.name.as_str()).collect();
        assert_eq!(names, ["weekly-full", "daily-diff"]);
        assert!(defaults.iter().all(|schedule| schedule.check().is_ok()));
    }

    #[test]
    fn values_out_of_range_are_named() {
        let stanza: StanzaName = "main".parse().unwrap();
        let good = Schedule::defaults(&stanza).remove(0);
        let cases = [
            ("within", Schedule { within: SignedDuration::from_hours(-1), ..good.clone() }),
            ("within", Schedule { within: SignedDuration::from_hours(24 * 32), ..good.clone() }),
            ("jitter", Schedule { jitter: SignedDuration::from_hours(25), ..good.clone() }),
            ("retries", Schedule { retries: 11, ..good.clone() }),
        ];
        for (field, schedule) in cases {
            assert_eq!(schedule.check().unwrap_err().field, field);
        }
        for name in ["", "-a", "A", "a b", &"a".repeat(64)] {
            assert!(name.parse::<ScheduleName>().is_err(), "{name:?}");
        }
    }
}
