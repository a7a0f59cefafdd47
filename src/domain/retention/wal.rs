//! How far back all WAL is kept.
//!
//! pgBackRest counts the backups that are there at the moment, from the newest, whatever will become
//! of them (`removeExpiredArchive` of its source). So what is decided is a backup, and the count is
//! its position among all that are there.

use std::collections::BTreeSet;

use super::{Held, Reason, RepoPlan, Verdict, is_full};
use crate::domain::words::words;
use crate::domain::{BackupLabel, BackupType};

words! {
    /// `repoN-retention-archive-type`: which backups `repoN-retention-archive` counts.
    ArchiveType {
        /// Fulls.
        Full = "full",
        /// Fulls and diffs.
        Diff = "diff",
        /// All.
        Incr = "incr",
    }
}

impl ArchiveType {
    fn counts(self, label: &BackupLabel) -> bool {
        match self {
            Self::Full => label.backup_type() == BackupType::Full,
            Self::Diff => label.backup_type() != BackupType::Incr,
            Self::Incr => true,
        }
    }
}

/// From which backup on all WAL is kept, and how `expire` is told so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalLimit {
    /// The backup.
    pub from: BackupLabel,
    /// `repoN-retention-archive`: its position among those that are there now.
    pub count: u32,
    /// `repoN-retention-archive-type`.
    pub by: ArchiveType,
}

impl RepoPlan {
    /// From which backup on WAL is kept, as long as no backup comes or goes: `own` is what the user
    /// set, otherwise the rules say it. Nothing when no WAL may go.
    pub fn wal_limit(&self, own: Option<(u32, ArchiveType)>) -> Option<WalLimit> {
        let (from, by) = match own {
            Some((count, by)) => {
                let at = usize::try_from(count).ok()?.checked_sub(1)?;
                let from = self.newest_first(by, |verdict| verdict.is_kept()).nth(at)?;
                match self.in_use_from() {
                    // A restore that works with an older one may go on to any moment after it.
                    Some(older) if older < from => (older, ArchiveType::Full),
                    Some(_) | None => (from, by),
                }
            }
            None => (self.wal_from.as_ref()?, ArchiveType::Full),
        };
        let count = position(self.newest_first(by, |_| true), from)?;
        Some(WalLimit { from: from.clone(), count, by })
    }

    /// Once everything that goes is gone: of how many of the newest fulls all WAL is kept; zero when
    /// there is no full.
    pub fn wal_fulls(&self) -> u32 {
        let staying = self.newest_first(ArchiveType::Full, Verdict::is_kept);
        self.wal_from.as_ref().and_then(|from| position(staying, from)).unwrap_or(0)
    }

    /// The full of the oldest backup that something works with, or that stays for an undo.
    fn in_use_from(&self) -> Option<&BackupLabel> {
        let in_use = |verdict: &&Verdict| {
            let works =
                |reason: &Reason| matches!(reason, Reason::InUse(_) | Reason::AfterRestore(..));
            verdict.reasons.iter().any(works)
        };
        let oldest = self.verdicts.iter().filter(in_use).map(|v| v.label.full_label()).min()?;
        self.verdicts.iter().map(|verdict| &verdict.label).find(|label| **label == oldest)
    }

    /// As pgBackRest counts them: by label.
    fn newest_first(
        &self,
        by: ArchiveType,
        is_wanted: impl Fn(&Verdict) -> bool,
    ) -> impl Iterator<Item = &BackupLabel> {
        let wanted = self.verdicts.iter().filter(|v| by.counts(&v.label) && is_wanted(v));
        let mut labels: Vec<&BackupLabel> = wanted.map(|verdict| &verdict.label).collect();
        labels.sort_unstable_by(|a, b| b.cmp(a));
        labels.into_iter()
    }
}

fn position<'a>(
    mut labels: impl Iterator<Item = &'a BackupLabel>,
    label: &BackupLabel,
) -> Option<u32> {
    u32::try_from(labels.position(|other| other == label)? + 1).ok()
}

/// The oldest full of which all WAL is kept.
pub(super) fn wal_from(own: &[&Held], reasons: &[Vec<Reason>]) -> Option<BackupLabel> {
    let with_wal = own.iter().zip(reasons).filter(|(_, why)| why.iter().any(Reason::keeps_wal));
    let wanted: BTreeSet<BackupLabel> =
        with_wal.map(|(backup, _)| backup.label.full_label()).collect();
    let staying =
        own.iter().zip(reasons).filter(|(backup, why)| is_full(backup) && !why.is_empty());
    let labels = staying.map(|(backup, _)| &backup.label);
    labels.filter(|label| wanted.contains(*label)).min().cloned()
}
