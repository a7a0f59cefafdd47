//! The in-place restore: its phases, its journal, and what a start of Headrest does with one.
//!
//! ```text
//!  accepted -> quiesced -> safe-point -> stopping -> draining     the data is intact:
//!      \__________\___________\____________\___________\--------> aborted
//!                                                       |
//!                                                       v
//!                    .------------------------------ restoring <--.   never start PostgreSQL:
//!                    v                                  |         |   run the same restore again
//!              needs-operator                           v         |
//!                    |                               restored ----|   not promoted: start it fenced,
//!                    `--> restoring                     v         |   it continues; promoted behind
//!                                                   recovering ---|   our back or unreadable:
//!                                                       v         |   restore again
//!                                                    verified ----|
//!                                                       v         |   control data without the new
//!                                                   promoting ----'   timeline: restore again
//!                                                       v
//!                                                   unfencing         plain start, never restore
//!                                                       v             again: writes may exist
//!                                                     done
//! ```
//! The journal is written, and has reached the disk, **before** the phase it names begins. Pure:
//! `jobs::journal` keeps the file, `jobs::restore` carries the phases out.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::recovery::RecoveryTarget;
use super::words::words;
use super::{BackupLabel, JobId, Lsn, RepoKey, StanzaName, Timeline};

words! {
    /// A phase of a restore.
    Phase {
        /// The request was taken; nothing was touched.
        Accepted = "accepted",
        /// No backup, expire or verify runs any more.
        Quiesced = "quiesced",
        /// A last commit is being made and archived.
        SafePoint = "safe-point",
        /// PostgreSQL is being stopped.
        Stopping = "stopping",
        /// WAL that is not in the archive is being pushed or kept aside.
        Draining = "draining",
        /// `pgbackrest restore` runs. From here on PGDATA is not a database.
        Restoring = "restoring",
        /// The files are complete.
        Restored = "restored",
        /// PostgreSQL replays WAL, fenced.
        Recovering = "recovering",
        /// The end of recovery was reached and looked at.
        Verified = "verified",
        /// PostgreSQL is being promoted, fenced.
        Promoting = "promoting",
        /// PostgreSQL is being given back to its clients.
        Unfencing = "unfencing",
        /// It takes writes.
        Done = "done",
        /// Given up before anything was changed.
        Aborted = "aborted",
        /// Given up after files were changed; PostgreSQL stays down until somebody decides.
        NeedsOperator = "needs-operator",
    }
}

/// A step from one phase to another that must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a restore in phase {from} cannot go to {to}")]
pub struct RefusedStep {
    /// The phase it is in.
    pub from: Phase,
    /// The phase that was tried.
    pub to: Phase,
}

impl Phase {
    /// The next phase, or a refusal.
    pub fn transition(self, to: Self) -> Result<Self, RefusedStep> {
        let allowed = match self {
            Self::Accepted => matches!(to, Self::Quiesced | Self::Aborted),
            Self::Quiesced => matches!(to, Self::SafePoint | Self::Aborted),
            Self::SafePoint => matches!(to, Self::Stopping | Self::Aborted),
            Self::Stopping => matches!(to, Self::Draining | Self::Aborted),
            Self::Draining => matches!(to, Self::Restoring | Self::Aborted),
            Self::Restoring => {
                matches!(to, Self::Restoring | Self::Restored | Self::NeedsOperator)
            }
            Self::Restored => {
                matches!(to, Self::Restoring | Self::Recovering | Self::NeedsOperator)
            }
            Self::Recovering => {
                matches!(
                    to,
                    Self::Restoring | Self::Recovering | Self::Verified | Self::NeedsOperator
                )
            }
            Self::Verified => matches!(to, Self::Restoring | Self::Recovering | Self::Promoting),
            Self::Promoting => {
                matches!(to, Self::Restoring | Self::Unfencing | Self::NeedsOperator)
            }
            Self::Unfencing => matches!(to, Self::Unfencing | Self::Done),
            Self::NeedsOperator => matches!(to, Self::Restoring),
            Self::Done | Self::Aborted => false,
        };
        if allowed { Ok(to) } else { Err(RefusedStep { from: self, to }) }
    }

    /// Whether PGDATA is as it was before the restore began.
    pub fn data_is_intact(self) -> bool {
        match self {
            Self::Accepted
            | Self::Quiesced
            | Self::SafePoint
            | Self::Stopping
            | Self::Draining
            | Self::Aborted => true,
            Self::Restoring
            | Self::Restored
            | Self::Recovering
            | Self::Verified
            | Self::Promoting
            | Self::Unfencing
            | Self::Done
            | Self::NeedsOperator => false,
        }
    }

    /// Whether the restore is over, one way or the other.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }

    /// What happens in it, in words for a person.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Accepted => "accepted; nothing was touched yet",
            Self::Quiesced => "waiting until no backup runs any more",
            Self::SafePoint => "archiving a last commit",
            Self::Stopping => "stopping PostgreSQL",
            Self::Draining => "saving WAL that is not in the archive yet",
            Self::Restoring => "copying files from the repository",
            Self::Restored => "the files are complete",
            Self::Recovering => "PostgreSQL replays WAL; clients cannot connect yet",
            Self::Verified => "the end of recovery was reached",
            Self::Promoting => "promoting PostgreSQL to a new timeline",
            Self::Unfencing => "starting PostgreSQL for its clients",
            Self::Done => "done; PostgreSQL takes writes",
            Self::Aborted => "given up before anything was changed",
            Self::NeedsOperator => {
                "stopped half way; PostgreSQL stays down until you restore again"
            }
        }
    }
}

/// A moment on the old timeline to which an undo could go back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoPoint {
    /// The timeline before the restore.
    pub timeline: Timeline,
    /// The position of the restore point.
    pub lsn: Lsn,
    /// The name of the restore point.
    pub name: String,
    /// When it was made.
    pub at: Timestamp,
}

/// The restore's memory on disk, one per stanza.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// The format of this file.
    pub format: u32,
    /// The job.
    pub id: JobId,
    /// The stanza.
    pub stanza: StanzaName,
    /// The phase that has begun.
    pub phase: Phase,
    /// When this was written.
    pub written_at: Timestamp,
    /// Who asked.
    pub by: String,
    /// Where recovery ends.
    pub target: RecoveryTarget,
    /// The backup set, pinned: a second run restores the same.
    pub set: BackupLabel,
    /// The repository, pinned.
    pub repo: RepoKey,
    /// PGDATA.
    pub pgdata: PathBuf,
    /// The device and inode of PGDATA: another disk mounted there is another database.
    pub pgdata_identity: (u64, u64),
    /// The cluster's system identifier, when it could be read.
    pub system_id: Option<String>,
    /// The timeline the cluster was on, when it could be read. Recovery follows this one.
    pub timeline: Option<Timeline>,
    /// The segment size in bytes, when it could be read.
    pub segment_bytes: Option<u64>,
    /// Settings that a hot standby needs at least at these values (`max_connections` and kin).
    pub setting_floors: BTreeMap<String, u64>,
    /// The newest segment that is in the archive on that timeline. Waiting for this one or an
    /// older one is a gap, waiting for a later one is the end.
    pub archived_until: Option<String>,
    /// Where WAL that is not in the archive was kept.
    pub kept_wal: Option<PathBuf>,
    /// Where an undo could go back to.
    pub undo_point: Option<UndoPoint>,
    /// The half-done restore of the same PGDATA whose knowledge was taken over.
    pub inherited_from: Option<JobId>,
    /// How often `pgbackrest restore` was started.
    pub attempts: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// The format this version writes.
pub const JOURNAL_FORMAT: u32 = 1;

impl Journal {
    /// Takes over what only an earlier, half-done restore of the same PGDATA still knows: its
    /// pg_control is gone or half recovered, and the WAL it kept exists nowhere else. A restore
    /// that was unfencing had its data complete: nothing is taken over from it.
    pub fn inherit(&mut self, earlier: &Self) {
        let complete = earlier.phase == Phase::Unfencing;
        if complete || earlier.phase.data_is_intact() || earlier.phase.is_over() {
            return;
        }
        self.inherited_from = Some(earlier.id);
        self.system_id = earlier.system_id.clone().or_else(|| self.system_id.take());
        self.timeline = earlier.timeline.or(self.timeline);
        self.segment_bytes = earlier.segment_bytes.or(self.segment_bytes);
        if !earlier.setting_floors.is_empty() {
            self.setting_floors.clone_from(&earlier.setting_floors);
        }
        self.archived_until.clone_from(&earlier.archived_until);
        self.kept_wal.clone_from(&earlier.kept_wal);
        self.undo_point.clone_from(&earlier.undo_point);
    }
}

/// What `pg_controldata` says, as far as a start needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFacts {
    /// "Latest checkpoint's TimeLineID".
    pub timeline: Timeline,
    /// Whether "Database cluster state" is one that only a cluster out of recovery has:
    /// "in production", "shutting down" or "shut down".
    pub out_of_recovery: bool,
}

/// What a start of Headrest does when it finds a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootAction {
    /// Close the restore as aborted and start PostgreSQL as always.
    Abort,
    /// Do not start PostgreSQL; run the same restore again.
    RestoreAgain,
    /// Put back the kept WAL and start PostgreSQL fenced; recovery continues.
    Recover,
    /// Start PostgreSQL as always and finish.
    Unfence,
    /// Do not start PostgreSQL; wait for somebody.
    StayDown,
    /// The restore was over; start PostgreSQL as always.
    Nothing,
}

/// Decides from the journal and the control data. `control` is `None` when it cannot be read.
pub fn on_boot(journal: &Journal, control: Option<ControlFacts>) -> BootAction {
    match journal.phase {
        Phase::Accepted
        | Phase::Quiesced
        | Phase::SafePoint
        | Phase::Stopping
        | Phase::Draining => BootAction::Abort,
        Phase::Restoring => BootAction::RestoreAgain,
        // PostgreSQL was not started on it yet: its pg_control is the backup's.
        Phase::Restored if control.is_some() => BootAction::Recover,
        Phase::Restored => BootAction::RestoreAgain,
        Phase::Recovering | Phase::Verified => match control {
            // Promoted by somebody else's hand, or by a crash at an unlucky moment: writes may
            // exist or recovery may have ended early. Only a new restore is certain.
            Some(facts) if facts.out_of_recovery && promoted(journal, facts) => {
                BootAction::RestoreAgain
            }
            Some(_) => BootAction::Recover,
            None => BootAction::RestoreAgain,
        },
        Phase::Promoting => match control {
            Some(facts) if facts.out_of_recovery && promoted(journal, facts) => BootAction::Unfence,
            Some(_) | None => BootAction::RestoreAgain,
        },
        Phase::Unfencing => BootAction::Unfence,
        Phase::NeedsOperator => BootAction::StayDown,
        Phase::Done | Phase::Aborted => BootAction::Nothing,
    }
}

/// Whether the control data shows a timeline that a promotion made.
pub fn promoted(journal: &Journal, control: ControlFacts) -> bool {
    journal.timeline.is_none_or(|before| control.timeline > before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn journal(phase: Phase) -> Journal {
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        Journal {
            format: JOURNAL_FORMAT,
            id: JobId::new(at),
            stanza: "main".parse().unwrap(),
            phase,
            written_at: at,
            by: "test".into(),
            target: RecoveryTarget::Latest,
            set: "20261120-101500F".parse().unwrap(),
            repo: RepoKey::try_from(1).unwrap(),
            pgdata: "/data".into(),
            pgdata_identity: (1, 2),
            system_id: Some("7300000000000000001".into()),
            timeline: Some(Timeline::try_from(3).unwrap()),
            segment_bytes: Some(16 << 20),
            setting_floors: BTreeMap::new(),
            archived_until: None,
            kept_wal: None,
            undo_point: None,
            inherited_from: None,
            attempts: 0,
            last_error: None,
        }
    }

    fn control(timeline: u32, out_of_recovery: bool) -> ControlFacts {
        ControlFacts { timeline: Timeline::try_from(timeline).unwrap(), out_of_recovery }
    }

    #[test]
    fn boot_table() {
        use BootAction as B;
        let cases = [
            (Phase::Accepted, Some(control(3, true)), B::Abort),
            (Phase::Draining, Some(control(3, true)), B::Abort),
            (Phase::Restoring, None, B::RestoreAgain),
            (Phase::Restoring, Some(control(3, true)), B::RestoreAgain),
            (Phase::Restored, Some(control(3, false)), B::Recover),
            // The backup was taken "in production": that is what a fresh restore shows.
            (Phase::Restored, Some(control(3, true)), B::Recover),
            (Phase::Restored, Some(control(2, true)), B::Recover),
            (Phase::Recovering, Some(control(3, false)), B::Recover),
            (Phase::Recovering, None, B::RestoreAgain),
            (Phase::Recovering, Some(control(4, true)), B::RestoreAgain),
            (Phase::Verified, Some(control(3, false)), B::Recover),
            (Phase::Promoting, Some(control(3, false)), B::RestoreAgain),
            (Phase::Promoting, Some(control(4, false)), B::RestoreAgain),
            (Phase::Promoting, Some(control(4, true)), B::Unfence),
            (Phase::Promoting, None, B::RestoreAgain),
            (Phase::Unfencing, None, B::Unfence),
            (Phase::NeedsOperator, Some(control(3, true)), B::StayDown),
            (Phase::Done, Some(control(4, true)), B::Nothing),
            (Phase::Aborted, Some(control(3, true)), B::Nothing),
        ];
        for (phase, facts, expect) in cases {
            assert_eq!(on_boot(&journal(phase), facts), expect, "{phase} {facts:?}");
        }
    }

    proptest! {
        /// Whatever is asked for in whatever order: once files were changed, no way leads back to
        /// "aborted", and "done" is only reached through promotion and unfencing.
        #[test]
        fn no_way_around(steps in proptest::collection::vec(
            proptest::sample::select(Phase::ALL.to_vec()), 0..60)
        ) {
            let mut phase = Phase::Accepted;
            let mut seen = vec![phase];
            for step in steps {
                if let Ok(next) = phase.transition(step) {
                    if !phase.data_is_intact() {
                        prop_assert_ne!(next, Phase::Aborted);
                    }
                    phase = next;
                    seen.push(next);
                }
            }
            if phase == Phase::Done {
                for must in [Phase::Restoring, Phase::Restored, Phase::Promoting, Phase::Unfencing] {
                    prop_assert!(seen.contains(&must));
                }
            }
        }

        #[test]
        fn an_unfencing_restore_is_never_run_again(timeline in 1u32..9, out: bool) {
            let action = on_boot(&journal(Phase::Unfencing), Some(control(timeline, out)));
            prop_assert_eq!(action, BootAction::Unfence);
        }
    }

    #[test]
    fn a_second_restore_inherits_what_only_the_first_knows() {
        let mut earlier = journal(Phase::NeedsOperator);
        earlier.kept_wal = Some("/state/kept".into());
        let mut next = journal(Phase::Accepted);
        (next.timeline, next.system_id) = (None, None);
        next.inherit(&earlier);
        assert_eq!(next.kept_wal, earlier.kept_wal);
        assert_eq!(next.timeline, earlier.timeline);

        let mut fresh = journal(Phase::Accepted);
        fresh.inherit(&Journal { phase: Phase::Done, ..earlier });
        assert_eq!(fresh.kept_wal, None);
    }
}
