//! What pgBackRest's own counts keep (its command reference, "Repository Options";
//! `expireFullBackup`, `expireTimeBasedBackup` and `expireDiffBackup` of its source).

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::removal::{dependants, with_dependants};
use super::{Counts, FullRetention, Held, age, is_full};
use crate::domain::{BackupLabel, BackupType};

/// What the counts say, by places.
pub(super) struct Decided {
    /// What a count keeps.
    pub(super) kept: Vec<usize>,
    /// What no count limits.
    pub(super) unlimited: Vec<usize>,
}

/// `own` is oldest first.
pub(super) fn decide(own: &[&Held], counts: Counts, now: Timestamp) -> Decided {
    let fulls: Vec<&Held> = own.iter().rev().filter(|backup| is_full(backup)).copied().collect();
    let kept = match counts.full {
        None => fulls.len(),
        Some(FullRetention::Count(count)) => count as usize,
        Some(FullRetention::Days(days)) => {
            // Before the beginning of time is nothing.
            let oldest = now.checked_sub(SignedDuration::from_hours(24 * i64::from(days))).ok();
            let older = |full: &&Held| {
                full.stopped_at.zip(oldest).is_some_and(|(stopped, oldest)| stopped < oldest)
            };
            fulls.iter().position(older).map_or(fulls.len(), |at| at + 1)
        }
    };
    // One at least.
    let kept: BTreeSet<&BackupLabel> =
        fulls.iter().take(kept.max(1)).map(|full| &full.label).collect();
    let is_fresh = |backup: &Held| kept.contains(&backup.label.full_label());

    // Of the diffs beyond their count each goes with what builds upon it; an incr directly upon a
    // full stays. A full counts as a diff, too.
    let kind = |backup: &Held| backup.label.backup_type();
    let mut diffs = own.iter().rev().filter(|b| kind(b) != BackupType::Incr && is_fresh(b));
    let cut = counts.diff.and_then(|count| diffs.nth((count as usize).saturating_sub(1)));
    let dependants = dependants(own);
    let mut beyond: BTreeSet<BackupLabel> = BTreeSet::new();
    // What builds upon a diff that is within the count.
    let mut within: BTreeSet<BackupLabel> = BTreeSet::new();
    if counts.diff.is_some() {
        for diff in own.iter().filter(|backup| kind(backup) == BackupType::Diff) {
            let is_within = cut.is_none_or(|cut| age(diff) >= age(cut));
            let side = if is_within { &mut within } else { &mut beyond };
            side.extend(with_dependants(&dependants, &diff.label));
        }
    }
    let places = |wanted: &dyn Fn(&Held) -> bool| {
        own.iter().enumerate().filter(|(_, backup)| wanted(backup)).map(|(at, _)| at).collect()
    };
    match counts.full {
        Some(_) => Decided {
            kept: places(&|backup| is_fresh(backup) && !beyond.contains(&backup.label)),
            unlimited: Vec::new(),
        },
        // Without a count of fulls nothing but diffs is limited.
        None => Decided {
            kept: places(&|backup| {
                within.contains(&backup.label) && !beyond.contains(&backup.label)
            }),
            unlimited: places(&|backup| !beyond.contains(&backup.label)),
        },
    }
}
