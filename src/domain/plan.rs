//! What a restore would do, decided before anything is touched. Pure: `jobs::plans` gathers the
//! facts, [`decide`] chooses timeline, backup set and WAL range, or refuses with the nearest moment
//! that can be reached.
//!
//! The rules, each from a restore that silently went wrong (design/restore.md):
//! - A set is legal only when it ended before the target; with a later one PostgreSQL promotes the
//!   whole set without a word.
//! - The branch is pinned to a timeline; left alone, a second restore to an older moment follows
//!   the newest timeline and stops early.
//! - A moment means the world as it was then: the timeline that the server was on at that time.
//! - Of the legal sets the newest that is not known to be damaged is taken: the least WAL to replay. A
//!   damaged one is taken only where no other reaches the target; one whose manifest cannot be read
//!   only when there is nothing else, so that the plan can say so.

pub mod check;
mod reach;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::archive::{Gap, Segments};
use super::recovery::{RecoveryTarget, RestorePointName, TargetTimeline};
use super::sets::{Judgement, State};
use super::timeline::{Branch, Timelines};
use super::{BackupLabel, Lsn, RepoKey, SegmentSize, Timeline, WalSegment};

/// `info` tells the end of a backup in whole seconds, cut off: only a second later it is certainly
/// over.
const STOP_MARGIN: SignedDuration = SignedDuration::from_secs(1);

/// A backup set that could be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its label.
    pub label: BackupLabel,
    /// The repository it is in.
    pub repo: RepoKey,
    /// When it ended, in whole seconds.
    pub stopped_at: Timestamp,
    /// Where it is consistent.
    pub lsn_stop: Lsn,
    /// The first WAL segment that it needs; its timeline is the set's.
    pub archive_start: WalSegment,
    /// Bytes of the database.
    pub size_bytes: Option<u64>,
    /// What is known of it.
    pub judgement: Judgement,
}

impl Set {
    /// The first moment that it can be restored to.
    pub fn reachable_from(&self) -> Timestamp {
        self.stopped_at.saturating_add(STOP_MARGIN).unwrap_or(self.stopped_at)
    }
}

/// A commit of which time and place are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The timeline it was made on.
    pub timeline: Timeline,
    /// Not later than the commit.
    pub at: Timestamp,
    /// Not before the end of its record.
    pub lsn: Lsn,
    /// Its transaction id.
    pub xid: u64,
}

/// A named restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its name.
    pub name: RestorePointName,
    /// The timeline it was made on.
    pub timeline: Timeline,
    /// Its position.
    pub lsn: Lsn,
    /// When it was made.
    pub at: Timestamp,
}

/// What a running server that takes writes says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// Where it writes.
    pub lsn: Lsn,
    /// The first transaction id that it has not given out yet.
    pub next_xid: u64,
}

/// Everything that the decision depends on.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// The present moment.
    pub now: Timestamp,
    /// The cluster's.
    pub segment_size: SegmentSize,
    /// The sets of this cluster, of every readable repository.
    pub sets: Vec<Set>,
    /// The history files that are known.
    pub timelines: Timelines,
    /// When each timeline was born: as noted when it was promoted, else when its history file was
    /// archived.
    pub born: BTreeMap<Timeline, Timestamp>,
    /// Those of them that this server has been on for certain.
    pub trail: Vec<Timeline>,
    /// What the archive has, over all readable repositories.
    pub archived: Segments,
    /// When the newest segment of each timeline was archived.
    pub archived_at: BTreeMap<Timeline, Timestamp>,
    /// What only `pg_wal` has, and a restore saves before it begins.
    pub local: Segments,
    /// The timeline that the cluster in PGDATA is on.
    pub current: Option<Timeline>,
    /// The server, when it takes writes.
    pub live: Option<Live>,
    /// When it last wrote, when it does not take writes and all its WAL is there.
    pub last_alive: Option<Timestamp>,
    /// Until when timelines that were left by a restore were the server's, where all their WAL is in
    /// the archive: nothing else was committed on them.
    pub ended: BTreeMap<Timeline, Timestamp>,
    /// Known commits, in order of time.
    pub samples: Vec<Sample>,
    /// Known restore points.
    pub points: Vec<RestorePoint>,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Where recovery ends.
    pub target: RecoveryTarget,
    /// Only this set.
    pub set: Option<BackupLabel>,
    /// Only this repository.
    pub repo: Option<RepoKey>,
    /// Only this timeline's branch.
    pub timeline: Option<TargetTimeline>,
}

/// What will be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The set.
    pub set: Set,
    /// The timeline that recovery follows (`recovery_target_timeline`).
    pub timeline: Timeline,
    /// The last WAL segment that is needed, as far as it is known.
    pub wal_until: Option<WalSegment>,
    /// What is missing of the WAL in between.
    pub gaps: Vec<Gap>,
    /// What is on the server now and will not be there afterwards.
    pub lost: Option<Lost>,
    /// Where the named point that is the target ends, when that is known.
    pub position: Option<Lsn>,
    /// Why it is not certain that the target exists.
    pub uncertain: Option<String>,
    /// Newer sets from which the target could be reached, if they were whole.
    pub passed_over: Vec<(BackupLabel, Judgement)>,
}

/// What a restore to an earlier moment leaves behind. It stays in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The segment that holds the target, as far as it is known.
    pub first: Option<WalSegment>,
    /// The last segment there is.
    pub last: Option<WalSegment>,
}

/// Something that can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A point in time.
    Time(Timestamp),
    /// A position.
    Lsn(Lsn),
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Time(at) => at.fmt(f),
            Self::Lsn(lsn) => lsn.fmt(f),
        }
    }
}

/// Why it cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// There is no backup at all.
    #[error("there is no backup to restore")]
    NoBackup,
    /// None of this repository.
    #[error("repository {0} has no backup to restore")]
    NoBackupInRepo(RepoKey),
    /// The set that was asked for is not there.
    #[error("there is no backup {0}")]
    NoSuchSet(BackupLabel),
    /// The set is on another branch.
    #[error(
        "backup {label} is on timeline {on}, which is not part of timeline {branch} at that point"
    )]
    SetOffBranch {
        /// The set.
        label: BackupLabel,
        /// Its timeline.
        on: Timeline,
        /// The timeline that would be followed.
        branch: Timeline,
    },
    /// The set that was asked for ended after the target.
    #[error(
        "backup {label} ended at {stopped_at}: it cannot be restored to {target}, the first moment \
         it can be restored to is {nearest}"
    )]
    SetTooLate {
        /// The set.
        label: BackupLabel,
        /// When it ended.
        stopped_at: Timestamp,
        /// What was asked for.
        target: RecoveryTarget,
        /// The nearest that can be reached.
        nearest: Moment,
    },
    /// The target is before every backup.
    #[error(
        "{target} is before the end of the first backup on timeline {timeline}; the nearest that \
         can be reached is {nearest}"
    )]
    BeforeFirstBackup {
        /// What was asked for.
        target: RecoveryTarget,
        /// The branch.
        timeline: Timeline,
        /// The nearest that can be reached.
        nearest: Moment,
    },
    /// A moment to come.
    #[error("{target} is in the future; the nearest that can be reached is {nearest}")]
    InFuture {
        /// What was asked for.
        target: RecoveryTarget,
        /// The nearest that can be reached.
        nearest: Moment,
    },
    /// Nothing was committed there any more.
    #[error(
        "{target} is past the end of timeline {timeline}; the nearest that can be reached is \
         {nearest}"
    )]
    PastEnd {
        /// What was asked for.
        target: RecoveryTarget,
        /// The branch.
        timeline: Timeline,
        /// The nearest that can be reached.
        nearest: Moment,
    },
    /// Headrest does not know where this is, so it cannot choose a set that ended before it.
    #[error(
        "Headrest has noted no {0}, so where it is in the WAL is not known, and no backup can be \
         chosen that ended before it; if it exists, name one with `set`"
    )]
    UnknownPlace(RecoveryTarget),
    /// Nobody has ever been on that timeline.
    #[error("there is no timeline {0} in the archive")]
    UnknownTimeline(Timeline),
}

impl Unreachable {
    /// The nearest that can be reached, where there is one.
    pub fn nearest(&self) -> Option<Moment> {
        match self {
            Self::SetTooLate { nearest, .. }
            | Self::BeforeFirstBackup { nearest, .. }
            | Self::InFuture { nearest, .. }
            | Self::PastEnd { nearest, .. } => Some(*nearest),
            Self::NoBackup
            | Self::NoBackupInRepo(_)
            | Self::NoSuchSet(_)
            | Self::SetOffBranch { .. }
            | Self::UnknownPlace(_)
            | Self::UnknownTimeline(_) => None,
        }
    }
}

/// Where a target lies: what a set must have ended before, and by when it is certainly reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// A set must have ended before this.
    set_before: Moment,
    /// A position at or after the target.
    reached_by: Option<Lsn>,
}

/// Chooses, or refuses.
pub fn decide(catalogue: &Catalogue, wish: &Wish) -> Result<Decision, Unreachable> {
    if catalogue.sets.is_empty() {
        return Err(Unreachable::NoBackup);
    }
    let tip = catalogue.timeline_for(wish)?;
    let branch = catalogue.timelines.branch(tip);
    let (place, uncertain) = catalogue.place(wish, &branch)?;
    let candidates = candidates(catalogue, wish, &branch, place)?;
    let size = catalogue.segment_size;
    let ending = |lsn: Lsn| size.number_before(lsn);
    let end = catalogue.end_of(&branch).map(|last| last.number());
    let wal_until = |set: &Set| {
        let until = match (&wish.target, place.and_then(|place| place.reached_by)) {
            (RecoveryTarget::Immediate, _) => Some(ending(set.lsn_stop)),
            (_, Some(lsn)) => Some(ending(lsn)),
            (_, None) => end,
        };
        until.map(|number| branch.segment(number.max(set.archive_start.number()), size))
    };
    let gaps = |set: &Set| {
        let first = set.archive_start.number();
        wal_until(set).map_or_else(Vec::new, |last| catalogue.gaps(&branch, first, last.number()))
    };
    let (set, passed_over) = choose(&candidates, |set| !gaps(set).is_empty());
    let (wal_until, gaps) = (wal_until(set), gaps(set));
    let lost = catalogue.lost(wish, &branch, place);
    let position = match wish.target {
        RecoveryTarget::Name { .. } => place.and_then(|place| place.reached_by),
        _ => None,
    };
    Ok(Decision {
        set: set.clone(),
        timeline: tip,
        wal_until,
        gaps,
        lost,
        position,
        uncertain,
        passed_over,
    })
}

/// The best set, and the newer ones that it is better than. `candidates` are newest first, and not empty.
fn choose<'a>(
    candidates: &[&'a Set],
    has_gap: impl Fn(&Set) -> bool,
) -> (&'a Set, Vec<(BackupLabel, Judgement)>) {
    let newest = |wanted: &dyn Fn(State) -> bool| {
        candidates.iter().position(|set| wanted(set.judgement.state))
    };
    let whole = newest(&|state| !state.is_bad());
    let restorable = newest(&State::can_be_restored);
    let readable = newest(&|state| state != State::Unreadable);
    let all = [whole, restorable, readable].into_iter().flatten();
    // From an older one the way is longer; where that way has a gap, a newer one may have none.
    let without_gap = all.clone().find(|at| !has_gap(candidates[*at]));
    let at = without_gap.or_else(|| all.clone().next()).unwrap_or(0);
    let passed_over = candidates[..at].iter();
    let passed_over = passed_over.map(|set| (set.label.clone(), set.judgement.clone()));
    (candidates[at], passed_over.collect())
}

/// The sets on the branch that ended before the target, newest first; never none.
fn candidates<'a>(
    catalogue: &'a Catalogue,
    wish: &Wish,
    branch: &Branch,
    place: Option<Place>,
) -> Result<Vec<&'a Set>, Unreachable> {
    let legal = |set: &Set| {
        place.is_none_or(|place| match place.set_before {
            Moment::Time(at) => set.reachable_from() <= at,
            Moment::Lsn(lsn) => set.lsn_stop <= lsn,
        })
    };
    let on_branch = |set: &Set| branch.holds(set.archive_start.timeline(), set.lsn_stop);
    let first_moment = |set: &Set| match place.map(|place| place.set_before) {
        Some(Moment::Lsn(_)) => Moment::Lsn(set.lsn_stop),
        Some(Moment::Time(_)) | None => Moment::Time(set.reachable_from()),
    };
    let in_repo = |set: &&Set| wish.repo.is_none_or(|repo| set.repo == repo);
    if let Some(label) = &wish.set {
        let set = catalogue.sets.iter().filter(in_repo).find(|set| set.label == *label);
        let set = set.ok_or_else(|| Unreachable::NoSuchSet(label.clone()))?;
        if !on_branch(set) {
            return Err(Unreachable::SetOffBranch {
                label: label.clone(),
                on: set.archive_start.timeline(),
                branch: branch.tip(),
            });
        }
        if !legal(set) {
            return Err(Unreachable::SetTooLate {
                label: label.clone(),
                stopped_at: set.stopped_at,
                target: wish.target.clone(),
                nearest: first_moment(set),
            });
        }
        return Ok(vec![set]);
    }
    let mut candidates = catalogue.sets.iter().filter(in_repo).peekable();
    if let (None, Some(repo)) = (candidates.peek(), wish.repo) {
        return Err(Unreachable::NoBackupInRepo(repo));
    }
    let candidates: Vec<&Set> = candidates.filter(|set| on_branch(set)).collect();
    let age = |set: &&Set| (set.stopped_at, set.lsn_stop, std::cmp::Reverse(set.repo));
    let mut found: Vec<&Set> = candidates.iter().filter(|set| legal(set)).copied().collect();
    if !found.is_empty() {
        found.sort_by_key(|set| std::cmp::Reverse(age(set)));
        return Ok(found);
    }
    let first = candidates.iter().copied().min_by_key(age).ok_or(Unreachable::NoBackup)?;
    Err(Unreachable::BeforeFirstBackup {
        target: wish.target.clone(),
        timeline: branch.tip(),
        nearest: first_moment(first),
    })
}
