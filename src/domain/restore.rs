//! The in-place restore: its phases, and what a start of Headrest does with one that was cut off. Its
//! memory is in `journal`, decisions about one that waits are in `steer`.
//!
//! ```text
//!  accepted -> quiesced -> safe-point -> stopping -> draining     the data is intact:
//!      \__________\___________\____________\___________\--------> aborted
//!                                                       |            ^
//!                                                       v            | pg_control is untouched
//!                    .------------------------------ restoring ------'
//!                    |                                  |     ^
//!                    |                                  |     `---.   never start PostgreSQL:
//!                    v                                  |         |   run the same restore again
//!              needs-operator                           v         |
//!                    |                               restored ----|   not promoted: start it fenced,
//!                    `--> restoring                     v         |   it continues; promoted behind
//!                                                .> recovering ---|   our back or unreadable:
//!                                       retarget |      v         |   restore again
//!                                        forward `-- verified ----|   retarget backward, abandon
//!                                                       v         |   control data without the new
//!                                                   promoting ----'   timeline: restore again
//!                                                       v
//!                                                   unfencing         plain start, never restore
//!                                                       v             again: writes may exist
//!                                                     done
//! ```
//! In recovering and verified a restore may wait for somebody ([`Awaiting`]), who promotes,
//! retargets or abandons it ([`Steer`]).
//!
//! The journal is written, and has reached the disk, **before** the phase it names begins. Pure:
//! `jobs::journal` keeps the file, `jobs::restore` carries the phases out.

mod journal;
mod steer;
#[cfg(test)]
mod tests;

use super::Timeline;
use super::words::words;

pub use journal::{FileIdentity, JOURNAL_FORMAT, Journal, MovedAside, Tablespace, UndoPoint};
pub use steer::{Action, Awaiting, NewTarget, NotNow, Pinned, Steer, Wait};

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
        /// `pgbackrest restore` runs. From here on PGDATA counts as no database; only where it turns out
        /// that pgBackRest ended before it touched anything is the restore aborted.
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
                matches!(to, Self::Restoring | Self::Restored | Self::NeedsOperator | Self::Aborted)
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
            Self::Verified => {
                matches!(
                    to,
                    Self::Restoring | Self::Recovering | Self::Promoting | Self::NeedsOperator
                )
            }
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
