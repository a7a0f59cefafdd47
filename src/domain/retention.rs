//! Retention: which backups stay, and why; which go, and with which call each.
//!
//! # The rules
//!
//! Per repository, each rule names backups that it keeps:
//!
//! - `daily`, `weekly`, `monthly`, `yearly` (grandfather-father-son): the newest backup, of any
//!   type, of each of the newest N days, ISO weeks, months or years *that have a backup*. So do
//!   restic and borg: a week without backups uses up nothing, and today counts though it is not
//!   over. Days begin at midnight of the configured time zone; a backup belongs to the moment at
//!   which it ended.
//! - pgBackRest's own counts (`repoN-retention-full`, `-full-type`, `-diff`), where they are set.
//! - pins, and backups that a restore works with.
//! - restores of the last days: each keeps what existed when it began ([`Hold`]).
//! - always: the newest backup and the newest full.
//!
//! Each rule is asked twice: of all backups, and of those that are not known to be damaged. What
//! either answer keeps stays. So nothing that is good goes for something that is damaged, and what is
//! damaged, which may be all there is of a day, goes no sooner than it would if it were good.
//!
//! What is kept keeps every backup that it needs. A backup goes only if something is configured
//! that limits the backups at all, and no rule keeps it.
//!
//! # Why pgBackRest's own expire is not left to itself
//!
//! `expire` knows nothing of pins, and with `repo1-retention-full=2` it would remove what `yearly`
//! keeps. So a plan is carried out one `expire --set` for each root of what goes (pgBackRest removes
//! with it whatever builds upon it, and all of that goes, too, else it would be needed), with
//! counts that remove nothing else. WAL is then expired by one `expire` that keeps all backups:
//! pgBackRest expires WAL only when there are at least as many fulls as `repoN-retention-archive`
//! says, so it is told exactly [`RepoPlan::wal_limit`]. Pins are not counted there: what is only
//! pinned keeps the WAL that makes it consistent, as pgBackRest keeps that for every backup, and
//! not all WAL since then.
//!
//! Pure: backups, rules and the time are arguments.

mod counts;
mod hold;
mod removal;
mod wal;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::words::words;
use super::{BackupLabel, BackupType, JobId, RepoKey};

pub use hold::Hold;
pub use removal::{Refused, Removal, removal};
pub use wal::{ArchiveType, WalLimit};

/// The most that a count of the policy may be.
pub const MOST: u32 = 1000;

words! {
    /// A calendar period.
    Period {
        /// A day.
        Daily = "daily",
        /// An ISO week.
        Weekly = "weekly",
        /// A month.
        Monthly = "monthly",
        /// A year.
        Yearly = "yearly",
    }
}

/// How many periods of each kind keep a backup. Zero and nothing are the same: the rule is off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Days.
    pub daily: Option<u32>,
    /// ISO weeks.
    pub weekly: Option<u32>,
    /// Months.
    pub monthly: Option<u32>,
    /// Years.
    pub yearly: Option<u32>,
}

impl Policy {
    /// How many periods of this kind count.
    pub fn of(&self, period: Period) -> u32 {
        let count = match period {
            Period::Daily => self.daily,
            Period::Weekly => self.weekly,
            Period::Monthly => self.monthly,
            Period::Yearly => self.yearly,
        };
        count.unwrap_or(0)
    }

    /// Whether any rule is on.
    pub fn is_set(&self) -> bool {
        Period::ALL.iter().any(|period| self.of(*period) > 0)
    }
}

/// `repoN-retention-full` by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullRetention {
    /// So many fulls.
    Count(u32),
    /// The fulls of so many days, and one that is older.
    Days(u32),
}

/// pgBackRest's own options for one repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// `repoN-retention-full`.
    pub full: Option<FullRetention>,
    /// `repoN-retention-diff`.
    pub diff: Option<u32>,
}

impl Counts {
    /// Whether they limit anything.
    pub fn limit(&self) -> bool {
        self.full.is_some() || self.diff.is_some()
    }
}

/// A backup, as far as retention is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its label.
    pub label: BackupLabel,
    /// The repository it is in.
    pub repo: RepoKey,
    /// When it ended.
    pub stopped_at: Option<Timestamp>,
    /// What it needs directly: its prior and its references.
    pub needs: Vec<BackupLabel>,
    /// Bytes that it alone takes in the repository.
    pub own_bytes: Option<u64>,
    /// It is known to be damaged: nothing that is good goes for it.
    pub bad: bool,
}

/// Everything that decides.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The calendar's.
    pub policy: Policy,
    /// Where days begin.
    pub timezone: TimeZone,
    /// pgBackRest's own.
    pub counts: BTreeMap<RepoKey, Counts>,
    /// Pinned backups.
    pub pins: BTreeSet<BackupLabel>,
    /// Backups that something works with, and what.
    pub in_use: BTreeMap<BackupLabel, String>,
    /// Restores for whose undo backups stay.
    pub holds: Vec<Hold>,
}

/// Why a backup stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is the newest.
    Newest,
    /// It is the newest that is not damaged, but not the newest.
    NewestGood,
    /// It is the newest full, of all or of those that are not damaged.
    NewestFull,
    /// It is the newest of a period.
    Period(Period, String),
    /// pgBackRest's own counts keep it.
    Counts,
    /// Somebody pinned it.
    Pinned,
    /// Something works with it.
    InUse(String),
    /// It existed when a restore began, and stays until this moment, or until the restore is over.
    AfterRestore(JobId, Option<Timestamp>),
    /// Another that stays needs it: the newest of these, and how many more.
    NeededBy(BackupLabel, usize),
    /// It is not known when it ended, so no period can be told.
    NoTime,
    /// Nothing is configured that removes such backups.
    NoLimit,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("newest backup"),
            Self::NewestGood => f.write_str("newest backup that is not damaged"),
            Self::NewestFull => f.write_str("newest full"),
            Self::Period(period, name) => write!(f, "{period} {name}"),
            Self::Counts => f.write_str("pgBackRest's own retention"),
            Self::Pinned => f.write_str("pinned"),
            Self::InUse(by) => write!(f, "in use by {by}"),
            Self::AfterRestore(restore, Some(until)) => {
                let until = until.strftime("%Y-%m-%d %H:%M UTC");
                write!(f, "for the undo of restore {restore} until {until}")
            }
            Self::AfterRestore(restore, None) => {
                write!(f, "until restore {restore} is over")
            }
            Self::NeededBy(label, 0) => write!(f, "needed by {label}"),
            Self::NeededBy(label, more) => write!(f, "needed by {label} and {more} more"),
            Self::NoTime => f.write_str("it is not known when it ended"),
            Self::NoLimit => f.write_str("nothing is configured that removes backups"),
        }
    }
}

impl Reason {
    /// Whether all WAL since the backup is kept with it. A restore that works with it may go on to
    /// any moment after it; a pin is for the backup alone.
    fn keeps_wal(&self) -> bool {
        match self {
            Self::Newest
            | Self::NewestGood
            | Self::NewestFull
            | Self::Period(..)
            | Self::Counts
            | Self::InUse(_)
            | Self::AfterRestore(..)
            | Self::NoTime
            | Self::NoLimit => true,
            Self::Pinned | Self::NeededBy(..) => false,
        }
    }
}

/// What happens to one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Its label.
    pub label: BackupLabel,
    /// Every reason why it stays; it goes when there is none.
    pub reasons: Vec<Reason>,
    /// Why it goes.
    pub doom: Option<Doom>,
}

impl Verdict {
    /// Whether it stays.
    pub fn is_kept(&self) -> bool {
        self.doom.is_none()
    }

    /// Whether it stays for more than another's sake.
    pub fn stays_for_itself(&self) -> bool {
        self.reasons.iter().any(|reason| !matches!(reason, Reason::NeededBy(..)))
    }
}

/// Why a backup goes: which rules there are, none of which keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doom {
    /// The calendar's.
    Policy,
    /// pgBackRest's own.
    Counts,
    /// Both.
    Both,
}

impl fmt::Display for Doom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "no day, week, month or year of [retention] keeps it",
            Self::Counts => "it is beyond pgBackRest's own retention",
            Self::Both => {
                "no day, week, month or year of [retention] keeps it, nor does pgBackRest's own \
                 retention"
            }
        })
    }
}

/// What happens in one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoPlan {
    /// The repository.
    pub repo: RepoKey,
    /// One for each backup, oldest first.
    pub verdicts: Vec<Verdict>,
    /// The calls that carry it out, in this order.
    pub removals: Vec<Removal>,
    /// The oldest full of which all WAL is to be kept; nothing when there is no full.
    pub wal_from: Option<BackupLabel>,
}

impl RepoPlan {
    /// The labels that go.
    pub fn doomed(&self) -> impl Iterator<Item = &BackupLabel> {
        self.verdicts.iter().filter(|verdict| !verdict.is_kept()).map(|verdict| &verdict.label)
    }
}

/// Decides about every backup.
pub fn plan(backups: &[Held], rules: &Rules, now: Timestamp) -> Vec<RepoPlan> {
    let repos: BTreeSet<RepoKey> = backups.iter().map(|backup| backup.repo).collect();
    repos
        .into_iter()
        .map(|repo| {
            let mut own: Vec<&Held> = backups.iter().filter(|backup| backup.repo == repo).collect();
            own.sort_by_key(|backup| age(backup));
            plan_repo(repo, &own, rules, now)
        })
        .collect()
}

/// The backups that a full in `repo` would let go if it ended now.
pub fn after_full(
    backups: &[Held],
    rules: &Rules,
    repo: RepoKey,
    now: Timestamp,
) -> Vec<(RepoKey, BackupLabel)> {
    let label = now.strftime("%Y%m%d-%H%M%SF").to_string().parse::<BackupLabel>();
    let full = label.map(|label| Held {
        label,
        repo,
        stopped_at: Some(now),
        needs: Vec::new(),
        own_bytes: None,
        bad: false,
    });
    let all: Vec<Held> = backups.iter().cloned().chain(full).collect();
    let plans = plan(&all, rules, now);
    let of_plan =
        |plan: &RepoPlan| plan.doomed().map(|label| (plan.repo, label.clone())).collect::<Vec<_>>();
    plans.iter().flat_map(of_plan).collect()
}

/// In order of age. (Labels are in the zone of whoever ran pgbackrest; times are not.)
fn age(backup: &Held) -> (Option<Timestamp>, &BackupLabel) {
    (backup.stopped_at, &backup.label)
}

/// `own` is oldest first.
fn plan_repo(repo: RepoKey, own: &[&Held], rules: &Rules, now: Timestamp) -> RepoPlan {
    let counts = rules.counts.get(&repo).copied().unwrap_or_default();
    let mut reasons: Vec<Vec<Reason>> = vec![Vec::new(); own.len()];
    let mut keep = |at: usize, reason: Reason| {
        if !reasons[at].contains(&reason) {
            reasons[at].push(reason);
        }
    };

    let last = |wanted: &dyn Fn(&Held) -> bool| own.iter().rposition(|backup| wanted(backup));
    let newest = last(&|_| true);
    if let Some(at) = newest {
        keep(at, Reason::Newest);
    }
    if let Some(at) = last(&|backup| !backup.bad).filter(|at| Some(*at) != newest) {
        keep(at, Reason::NewestGood);
    }
    for at in [last(&is_full), last(&|backup| is_full(backup) && !backup.bad)].into_iter().flatten()
    {
        keep(at, Reason::NewestFull);
    }
    let all: Vec<usize> = (0..own.len()).collect();
    let good: Vec<usize> = all.iter().copied().filter(|at| !own[*at].bad).collect();
    let mut unlimited = None;
    for places in [&all, &good] {
        let some: Vec<&Held> = places.iter().map(|at| own[*at]).collect();
        for period in Period::ALL {
            for (at, name) in newest_of_each(&some, *period, rules) {
                keep(places[at], Reason::Period(*period, name));
            }
        }
        let by_counts = counts::decide(&some, counts, now);
        for at in by_counts.kept {
            keep(places[at], Reason::Counts);
        }
        // Of all: what is damaged is no less unlimited.
        unlimited.get_or_insert(by_counts.unlimited);
    }
    for (at, backup) in own.iter().enumerate() {
        if rules.pins.contains(&backup.label) {
            keep(at, Reason::Pinned);
        }
        if let Some(by) = rules.in_use.get(&backup.label) {
            keep(at, Reason::InUse(by.clone()));
        }
        if let Some(hold) = hold::longest(&rules.holds, backup) {
            keep(at, Reason::AfterRestore(hold.restore, hold.until));
        }
        if backup.stopped_at.is_none() {
            keep(at, Reason::NoTime);
        }
    }
    let doom = match (rules.policy.is_set(), counts.limit()) {
        (true, true) => Some(Doom::Both),
        (true, false) => Some(Doom::Policy),
        (false, true) => Some(Doom::Counts),
        (false, false) => None,
    };
    if !rules.policy.is_set() {
        for at in unlimited.into_iter().flatten() {
            if reasons[at].is_empty() {
                reasons[at].push(Reason::NoLimit);
            }
        }
    }
    add_needed(own, &mut reasons);

    let wal_from = wal::wal_from(own, &reasons);
    let verdicts: Vec<Verdict> = own
        .iter()
        .zip(reasons)
        .map(|(backup, reasons)| Verdict {
            label: backup.label.clone(),
            doom: doom.filter(|_| reasons.is_empty()),
            reasons,
        })
        .collect();
    let doomed: BTreeSet<&BackupLabel> =
        verdicts.iter().filter(|verdict| !verdict.is_kept()).map(|v| &v.label).collect();
    let removals = removal::removals(own, &doomed);
    RepoPlan { repo, verdicts, removals, wal_from }
}

fn is_full(backup: &Held) -> bool {
    backup.label.backup_type() == BackupType::Full
}

/// The newest backup of each of the newest periods that have one.
fn newest_of_each(own: &[&Held], period: Period, rules: &Rules) -> Vec<(usize, String)> {
    let wanted = rules.policy.of(period) as usize;
    let mut found: Vec<(usize, String)> = Vec::new();
    for (at, backup) in own.iter().enumerate().rev() {
        if found.len() >= wanted {
            break;
        }
        let Some(stopped_at) = backup.stopped_at else { continue };
        let name = name_of(period, stopped_at, &rules.timezone);
        // From new to old: what belongs to a period that has one already is not its newest.
        if found.last().is_none_or(|(_, last)| *last != name) {
            found.push((at, name));
        }
    }
    found
}

/// A period's name: `2026-11-20`, `2026-W47`, `2026-11`, `2026`.
fn name_of(period: Period, at: Timestamp, timezone: &TimeZone) -> String {
    let date = at.to_zoned(timezone.clone()).date();
    match period {
        Period::Daily => date.to_string(),
        Period::Weekly => {
            let week = date.iso_week_date();
            format!("{:04}-W{:02}", week.year(), week.week())
        }
        Period::Monthly => format!("{:04}-{:02}", date.year(), date.month()),
        Period::Yearly => format!("{:04}", date.year()),
    }
}

/// Gives everything that a kept backup needs, directly or through another, its reason.
fn add_needed(own: &[&Held], reasons: &mut [Vec<Reason>]) {
    let places: BTreeMap<&BackupLabel, usize> =
        own.iter().enumerate().map(|(at, backup)| (&backup.label, at)).collect();
    // Newest first. A backup never needs a newer one, but clocks go wrong: hence the second list.
    let mut open: Vec<usize> = (0..own.len()).filter(|at| !reasons[*at].is_empty()).collect();
    let mut needed_by: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let mut seen: BTreeSet<usize> = open.iter().copied().collect();
    while let Some(at) = open.pop() {
        for needed in own[at].needs.iter().filter_map(|label| places.get(label)) {
            if *needed == at {
                continue;
            }
            needed_by.entry(*needed).or_default().insert(at);
            if seen.insert(*needed) {
                open.push(*needed);
            }
        }
    }
    for (at, by) in needed_by {
        if let Some(newest) = by.last() {
            reasons[at].push(Reason::NeededBy(own[*newest].label.clone(), by.len() - 1));
        }
    }
}
