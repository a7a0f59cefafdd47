//! Families of the newest backup of each type, over all repositories and by repository.
//!
//! The type is a slot: a newer full is also the last diff and the last incr, a newer diff is also the
//! last incr. Without any full there is nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::super::family::{Family, Labels};
use super::{Told, backups, key};
use crate::domain::{BackupType, RepoKey};
use crate::pgbackrest::info::{Backup, BackupKind};

/// Name, help and value of a family.
type Of = (&'static str, &'static str, fn(&Backup) -> f64);

const PLAIN: &[Of] = &[
    (
        "pgbackrest_backup_last_duration_seconds",
        "Backup duration for the last full, differential or incremental backup.",
        backups::duration,
    ),
    (
        "pgbackrest_backup_last_size_bytes",
        "Full uncompressed size of the database in the last full, differential or incremental \
         backup.",
        backups::size,
    ),
    (
        "pgbackrest_backup_last_delta_bytes",
        "Amount of data in the database to actually backup in the last full, differential or \
         incremental backup.",
        backups::delta,
    ),
    (
        "pgbackrest_backup_last_repo_size_bytes",
        "Full compressed files size to restore the database from the last full, differential or \
         incremental backup.",
        backups::repo_size,
    ),
    (
        "pgbackrest_backup_last_repo_delta_bytes",
        "Compressed files size in the last full, differential or incremental backup.",
        backups::repo_delta,
    ),
    (
        "pgbackrest_backup_last_repo_size_map_bytes",
        "Size of block incremental map in the last full, differential or incremental backup.",
        backups::size_map,
    ),
    (
        "pgbackrest_backup_last_repo_delta_map_bytes",
        "Size of block incremental delta map in the last full, differential or incremental backup.",
        backups::delta_map,
    ),
    (
        "pgbackrest_backup_last_error_status",
        "Error status in the last full, differential or incremental backup.",
        backups::error,
    ),
    (
        "pgbackrest_backup_last_annotations",
        "Number of annotations in the last full, differential or incremental backup.",
        backups::annotations,
    ),
];

struct Slot<'a> {
    backup: &'a Backup,
    labels: Labels,
}

pub(super) fn families(told: &[Told<'_>], now: Timestamp) -> Vec<Family> {
    let overall: Vec<Slot<'_>> =
        told.iter().flat_map(|told| slots(told, told.info.backups.iter(), None)).collect();
    let by_repo: Vec<Slot<'_>> = told
        .iter()
        .flat_map(|told| {
            let mut repos: BTreeMap<Option<RepoKey>, Vec<&Backup>> = BTreeMap::new();
            for backup in &told.info.backups {
                repos.entry(backup.repo_key).or_default().push(backup);
            }
            repos.into_iter().flat_map(|(repo, backups)| slots(told, backups, Some(key(repo))))
        })
        .collect();
    let ages = |slots: &[Slot<'_>]| -> Vec<_> {
        slots.iter().map(|slot| (slot.labels.clone(), age(slot.backup, now))).collect()
    };
    let mut families = vec![Family::gauge(
        "pgbackrest_backup_since_last_completion_seconds",
        "Seconds since the last completed full, differential or incremental backup.",
        ages(&overall),
    )];
    families.extend(PLAIN.iter().map(|(name, help, value)| {
        Family::gauge(
            name,
            help,
            overall.iter().map(|slot| (slot.labels.clone(), value(slot.backup))),
        )
    }));
    families.push(Family::gauge(
        "pgbackrest_backup_last_references",
        "Number of references to another backup (backup reference list) in the last full, \
         differential or incremental backup.",
        overall.iter().flat_map(|slot| {
            backups::references(slot.backup).map(|(of, count)| (slot.labels.and([of]), count))
        }),
    ));
    families.push(Family::gauge(
        "pgbackrest_backup_repo_since_last_completion_seconds",
        "Seconds since the last completed full, differential or incremental backup in the \
         repository.",
        ages(&by_repo),
    ));
    families.push(Family::gauge(
        "pgbackrest_backup_repo_last_duration_seconds",
        "Backup duration for the last full, differential or incremental backup in the repository.",
        by_repo.iter().map(|slot| (slot.labels.clone(), backups::duration(slot.backup))),
    ));
    families
}

/// The three slots; none without a full.
fn slots<'a>(
    told: &Told<'_>,
    backups: impl IntoIterator<Item = &'a Backup>,
    repo: Option<String>,
) -> Vec<Slot<'a>> {
    let mut newest: [Option<&Backup>; 3] = [None; 3];
    for backup in backups {
        let BackupKind::Known(kind) = backup.kind else { continue };
        let fills: &[usize] = match kind {
            BackupType::Full => &[0, 1, 2],
            BackupType::Diff => &[1, 2],
            BackupType::Incr => &[2],
        };
        for slot in fills {
            if newest[*slot].is_none_or(|known| backup.stopped_at > known.stopped_at) {
                newest[*slot] = Some(backup);
            }
        }
    }
    if newest[0].is_none() {
        return Vec::new();
    }
    let repo = repo.map(|repo| ("repo_key", repo));
    let filled = BackupType::ALL.into_iter().zip(newest);
    filled
        .filter_map(|(slot, backup)| {
            let backup = backup?;
            let labels = told
                .labels([
                    ("backup_type", slot.to_string()),
                    ("block_incr", backups::block_incr(backup)),
                ])
                .and(repo.clone());
            Some(Slot { backup, labels })
        })
        .collect()
}

/// Whole seconds, as pgBackRest counts.
fn age(backup: &Backup, now: Timestamp) -> f64 {
    let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
    backup.stopped_at.map_or(0.0, |stop| whole.duration_since(stop).as_secs_f64())
}
