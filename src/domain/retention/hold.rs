//! What a restore keeps from retention: everything that existed when it began, for its undo and for
//! the moments of the timeline before it.

use jiff::{SignedDuration, Timestamp};

use super::Held;
use crate::domain::JobId;
use crate::domain::restore::Journal;

/// A restore for whose sake backups stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// The restore's job.
    pub restore: JobId,
    /// Backups that ended by then stay.
    pub before: Timestamp,
    /// Until when; `None`: until the restore is over.
    pub until: Option<Timestamp>,
}

impl Hold {
    /// The hold of a restore that is over: `after` long from the moment at which it stopped the
    /// server. `None` when it changed nothing, or when what was there before is back.
    pub fn of(journal: &Journal, after: SignedDuration, now: Timestamp) -> Option<Self> {
        if journal.phase.data_is_intact() || journal.abandoned {
            return None;
        }
        let before = journal.stopped_at.unwrap_or(journal.written_at);
        let until = before.saturating_add(after).unwrap_or(Timestamp::MAX);
        (until > now).then_some(Self { restore: journal.id, before, until: Some(until) })
    }

    /// The hold of a restore that is not over yet.
    pub fn of_unfinished(journal: &Journal) -> Self {
        let before = journal.stopped_at.unwrap_or(journal.written_at);
        Self { restore: journal.id, before, until: None }
    }

    /// Whether a backup stays for it. One of which the end is not known stays anyway.
    pub(super) fn holds(&self, held: &Held) -> bool {
        held.stopped_at.is_some_and(|stopped_at| stopped_at <= self.before)
    }
}

/// The hold that lasts longest of those that keep a backup.
pub(super) fn longest<'a>(holds: &'a [Hold], held: &Held) -> Option<&'a Hold> {
    let keeping = holds.iter().filter(|hold| hold.holds(held));
    keeping.max_by_key(|hold| (hold.until.unwrap_or(Timestamp::MAX), hold.restore))
}
