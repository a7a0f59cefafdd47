//! Decisions about a restore that waits: what it waits for, what can be done, and what must be
//! accepted for it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::plan::check::CheckId;
use super::super::recovery::{OnReached, RecoveryTarget};
use super::super::words::words;
use super::super::{BackupLabel, Lsn, RepoKey, Timeline};
use super::Phase;

words! {
    /// What a restore waits for somebody to decide about.
    Awaiting {
        /// The target was reached and `on_reached` is pause: look, then decide.
        Target = "target-reached",
        /// A WAL segment is missing that should be there. When it comes back, recovery goes on by
        /// itself.
        Gap = "wal-gap",
        /// The WAL ends before the target.
        End = "end-before-target",
        /// The repository does not answer, or does not let us read.
        Repository = "repository-unavailable",
        /// pgBackRest was stopped (`pgbackrest stop`) and gives no WAL.
        StopFile = "stop-file",
        /// There is no room for the WAL that recovery needs.
        Disk = "disk-full",
        /// The place of a tablespace that replay needs is not there.
        Directory = "directory-missing",
        /// The role that Headrest connects as does not exist in the restored data.
        Role = "role-missing",
        /// Something exists at the target, and its files were removed before it.
        Destroyed = "database-destroyed",
        /// Nothing moves, and the reason is not known.
        Standstill = "no-progress",
    }
}

/// What a restore waits for, with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// For what.
    pub reason: Awaiting,
    /// The WAL segment that it needs, where it needs one.
    pub segment: Option<String>,
    /// What is known, in words; empty when the reason says everything.
    pub detail: String,
}

impl Wait {
    /// A wait for a WAL segment.
    pub fn at(
        reason: Awaiting,
        segment: impl std::fmt::Display,
        detail: impl Into<String>,
    ) -> Self {
        Self { reason, segment: Some(segment.to_string()), detail: detail.into() }
    }

    /// A wait for something else.
    pub fn of(reason: Awaiting, detail: impl Into<String>) -> Self {
        Self { reason, segment: None, detail: detail.into() }
    }
}

words! {
    /// What somebody can do to a restore.
    Action {
        /// Promote the server as it is now.
        Promote = "promote",
        /// Go on to another target.
        Retarget = "retarget",
        /// Bring back what was there before.
        Abandon = "abandon",
        /// Restore what was there before this restore, after its end.
        Undo = "undo",
        /// Keep nothing any more for its undo.
        Release = "release",
    }
}

impl Awaiting {
    /// What must be accepted by name to promote a server that waits for this; `None` when nothing
    /// is left out by it.
    pub fn to_be_accepted(self) -> Option<CheckId> {
        match self {
            Self::Target => None,
            Self::Gap
            | Self::Repository
            | Self::StopFile
            | Self::Disk
            | Self::Directory
            | Self::Standstill => Some(CheckId::WalGap),
            Self::End => Some(CheckId::Target),
            Self::Destroyed => Some(CheckId::Destroyed),
            // Nobody can promote it: Headrest cannot connect.
            Self::Role => Some(CheckId::Target),
        }
    }

    /// What somebody can do about it, in words for that person.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Target => {
                "The target is reached. Look at the data, then promote it, go on to another target, \
                 or abandon the restore: then what was there before comes back."
            }
            Self::Gap => {
                "Bring the segment back, and recovery goes on by itself. Or promote what there is, \
                 accepting \"wal-gap\": what comes after the gap is left out. Or choose a target \
                 before it, or abandon the restore."
            }
            Self::End => {
                "The WAL ends before the target. Choose another target, promote what there is, \
                 accepting \"target\", or abandon the restore."
            }
            Self::Repository => {
                "Make the repository answer (is it mounted and reachable, are the credentials right?), \
                 and recovery goes on by itself. Or promote what there is, accepting \"wal-gap\": what \
                 the repository still has is left out. Or abandon the restore."
            }
            Self::StopFile => {
                "Run `pgbackrest start` as the user that PostgreSQL runs as, and recovery goes on by \
                 itself. Or abandon the restore."
            }
            Self::Disk => {
                "Free space on that file system, or enlarge it, and recovery goes on by itself. Never \
                 remove files from pg_wal by hand."
            }
            Self::Directory => {
                "Make that directory, owned by the user that PostgreSQL runs as, or mount what was \
                 there, and recovery goes on by itself. Or choose a target before the tablespace was \
                 made, or abandon the restore."
            }
            Self::Role => {
                "Abandon the restore, choose a target at which the role exists, or set \
                 postgres.superuser to a superuser of that time and start Headrest again."
            }
            Self::Destroyed => {
                "Choose an earlier target, at which it is whole. Or promote what there is, accepting \
                 \"destroyed-database\": then finish what was begun with DROP DATABASE or DROP \
                 TABLESPACE. Or abandon the restore."
            }
            Self::Standstill => {
                "Look at GET /api/v1/processes/postgres/log and at the machine's disks. If it goes on, \
                 nothing has to be done. Else abandon the restore, or promote what there is, accepting \
                 \"wal-gap\"."
            }
        }
    }

    /// What can be done to a restore in this phase that waits for this. `consistent` is whether
    /// Headrest is connected to the recovering server.
    pub fn actions(self, phase: Phase, consistent: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        if matches!(phase, Phase::Recovering | Phase::Verified) {
            if consistent && self != Self::Role {
                actions.push(Action::Promote);
            }
            actions.extend([Action::Retarget, Action::Abandon]);
        }
        actions
    }
}

/// What can be done to a restore that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Steer {
    /// Promote the server as it is now.
    Promote {
        /// What the caller takes upon itself: a gap, or that the target was not reached.
        accept: Vec<CheckId>,
    },
    /// Go on to another target.
    Retarget(Box<NewTarget>),
    /// Give up, and bring back what was there before the restore.
    Abandon(Box<NewTarget>),
}

/// A target that was planned for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTarget {
    /// Where recovery ends.
    pub target: RecoveryTarget,
    /// From what.
    pub pinned: Pinned,
    /// What happens there.
    pub on_reached: OnReached,
}

/// Why a restore cannot be steered so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// It does not wait for anybody.
    #[error("it is in phase {0} and does not wait for a decision")]
    Phase(Phase),
    /// Promoting would leave something behind, which must be accepted by name.
    #[error("promoting now would leave something out, which must be accepted by name: \"{0}\"")]
    NotAccepted(CheckId),
    /// The files do not fit together yet.
    #[error("recovery has not reached a consistent state: there is no database to promote yet")]
    NotConsistent,
}

impl std::fmt::Display for Steer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Promote { accept } if accept.is_empty() => f.write_str("promote"),
            Self::Promote { accept } => {
                let words: Vec<&str> = accept.iter().map(|id| id.as_str()).collect();
                write!(f, "promote, accepting {}", words.join(", "))
            }
            Self::Retarget(new) => write!(f, "to {} ({})", new.target, new.on_reached),
            Self::Abandon(new) => write!(f, "back to timeline {}", new.pinned.timeline),
        }
    }
}

impl Steer {
    /// Whether a restore in this phase, waiting for this, can be steered so.
    pub fn allowed(&self, phase: Phase, awaiting: Option<Awaiting>) -> Result<(), NotNow> {
        let waits = matches!(phase, Phase::Recovering | Phase::Verified);
        let Some(awaiting) = awaiting.filter(|_| waits) else { return Err(NotNow::Phase(phase)) };
        let Self::Promote { accept } = self else { return Ok(()) };
        match awaiting.to_be_accepted() {
            Some(needed) if !accept.contains(&needed) => Err(NotNow::NotAccepted(needed)),
            Some(_) | None => Ok(()),
        }
    }
}

/// What a plan chose, so that every run restores the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// The backup set.
    pub set: BackupLabel,
    /// The repository.
    pub repo: RepoKey,
    /// The timeline that recovery follows.
    pub timeline: Timeline,
    /// The last segment of that timeline's branch that was there.
    pub wal_end: Option<String>,
    /// The segments of older timelines that recovery must not be given, each with the one
    /// that is wanted instead ([`Branch::left_in`]).
    ///
    /// [`Branch::left_in`]: crate::domain::timeline::Branch::left_in
    #[serde(default)]
    pub left_in: BTreeMap<String, String>,
    /// Until when it is known that nothing else was committed on a timeline that was left before.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// The system identifier of the cluster that the set is of.
    #[serde(default)]
    pub system_id: Option<String>,
    /// Where the named point that is the target ends, when that is known.
    #[serde(default)]
    pub position: Option<Lsn>,
    /// The hash of the plan.
    pub plan: String,
    /// When it was made; `None` in the jobs of earlier versions.
    #[serde(default)]
    pub planned_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_steer_when() {
        let promote = |accept: &[CheckId]| Steer::Promote { accept: accept.to_vec() };
        let cases = [
            (promote(&[]), Phase::Verified, Some(Awaiting::Target), Ok(())),
            (promote(&[]), Phase::Verified, None, Err(NotNow::Phase(Phase::Verified))),
            (
                promote(&[]),
                Phase::Recovering,
                Some(Awaiting::Gap),
                Err(NotNow::NotAccepted(CheckId::WalGap)),
            ),
            (promote(&[CheckId::WalGap]), Phase::Recovering, Some(Awaiting::Gap), Ok(())),
            (
                promote(&[CheckId::WalGap]),
                Phase::Recovering,
                Some(Awaiting::End),
                Err(NotNow::NotAccepted(CheckId::Target)),
            ),
            (
                promote(&[CheckId::WalGap]),
                Phase::Restoring,
                Some(Awaiting::Gap),
                Err(NotNow::Phase(Phase::Restoring)),
            ),
        ];
        for (steer, phase, awaiting, expect) in cases {
            assert_eq!(steer.allowed(phase, awaiting), expect, "{steer:?} {phase} {awaiting:?}");
        }
        let text = NotNow::NotAccepted(CheckId::WalGap).to_string();
        assert!(text.contains("wal-gap"), "{text}");
    }
}
