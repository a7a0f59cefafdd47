//! Families with a sample for each backup, or several.

use jiff::Timestamp;

use super::super::family::{Family, Labels, flag, number};
use super::{Moment, Told, id, key};
use crate::config::MetricsConfig;
use crate::domain::{BackupLabel, BackupType};
use crate::pgbackrest::info::Backup;

/// Name, help and value of a family.
type Of = (&'static str, &'static str, fn(&Backup) -> f64);

/// Families of nothing but the labels that all have.
const PLAIN: &[Of] = &[
    ("pgbackrest_backup_size_bytes", "Full uncompressed size of the database.", size),
    ("pgbackrest_backup_delta_bytes", "Amount of data in the database to actually backup.", delta),
    (
        "pgbackrest_backup_repo_size_bytes",
        "Full compressed files size to restore the database from backup.",
        repo_size,
    ),
    ("pgbackrest_backup_repo_delta_bytes", "Compressed files size in backup.", repo_delta),
    ("pgbackrest_backup_repo_size_map_bytes", "Size of block incremental map.", size_map),
    ("pgbackrest_backup_repo_delta_map_bytes", "Size of block incremental delta map.", delta_map),
    ("pgbackrest_backup_error_status", "Backup error status.", error),
    ("pgbackrest_backup_annotations", "Number of annotations in backup.", annotations),
];

struct Entry<'a> {
    told: &'a Told<'a>,
    backup: &'a Backup,
    labels: Labels,
}

pub(super) fn families(
    told: &[Told<'_>],
    config: &MetricsConfig,
    moment: Moment<'_>,
) -> Vec<Family> {
    let entries: Vec<Entry<'_>> = told
        .iter()
        .flat_map(|told| {
            told.info.backups.iter().map(move |backup| Entry {
                told,
                backup,
                labels: told.labels([
                    ("backup_name", backup.label.to_string()),
                    ("backup_type", backup.kind.as_str().to_owned()),
                    ("block_incr", block_incr(backup)),
                    ("database_id", id(backup.database_id)),
                    ("repo_key", key(backup.repo_key)),
                ]),
            })
        })
        .collect();
    let mut families = vec![
        Family::gauge(
            "pgbackrest_backup_info",
            "Backup info.",
            entries.iter().map(|entry| (info_labels(entry), 1.0)),
        ),
        Family::gauge(
            "pgbackrest_backup_duration_seconds",
            "Backup duration.",
            entries.iter().map(|entry| {
                let times = [
                    ("start_time", local(entry.backup.started_at, moment)),
                    ("stop_time", local(entry.backup.stopped_at, moment)),
                ];
                (entry.labels.and(times), duration(entry.backup))
            }),
        ),
    ];
    families.extend(PLAIN.iter().map(|(name, help, value)| {
        let samples = entries.iter().map(|entry| (entry.labels.clone(), value(entry.backup)));
        Family::gauge(name, help, samples)
    }));
    if config.reference_count {
        families.push(Family::gauge(
            "pgbackrest_backup_references",
            "Number of references to another backup (backup reference list).",
            entries.iter().flat_map(|entry| {
                references(entry.backup).map(|(of, count)| (entry.labels.and([of]), count))
            }),
        ));
    }
    families
}

fn info_labels(entry: &Entry<'_>) -> Labels {
    let backup = entry.backup;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let lsn =
        |lsn: Option<crate::domain::Lsn>| lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
    entry.labels.and([
        ("backrest_ver", text(&backup.pgbackrest_version)),
        ("lsn_start", lsn(backup.lsn_start)),
        ("lsn_stop", lsn(backup.lsn_stop)),
        ("pg_version", entry.told.pg_version(backup.database_id, backup.repo_key)),
        ("prior", backup.prior.as_ref().map(BackupLabel::to_string).unwrap_or_default()),
        ("wal_start", text(&backup.archive_start)),
        ("wal_stop", text(&backup.archive_stop)),
    ])
}

fn local(time: Option<Timestamp>, moment: Moment<'_>) -> String {
    let shown = |time: Timestamp| time.to_zoned(moment.zone.clone()).strftime("%F %T").to_string();
    time.map(shown).unwrap_or_default()
}

/// `y` only when the sizes of both maps are told.
pub(super) fn block_incr(backup: &Backup) -> String {
    let both = backup.repo_size_map.is_some() && backup.repo_delta_map.is_some();
    (if both { "y" } else { "n" }).to_owned()
}

/// How many backups of each type it needs, with the label that says which type.
pub(super) fn references(backup: &Backup) -> [(super::super::Label, f64); 3] {
    BackupType::ALL.map(|wanted| {
        let of_type = |label: &&BackupLabel| label.backup_type() == wanted;
        let count = backup.reference.iter().filter(of_type).count();
        (("ref_backup", wanted.to_string()), number(u64::try_from(count).unwrap_or(u64::MAX)))
    })
}

pub(super) fn duration(backup: &Backup) -> f64 {
    let (Some(start), Some(stop)) = (backup.started_at, backup.stopped_at) else { return 0.0 };
    stop.duration_since(start).as_secs_f64()
}

pub(super) fn size(backup: &Backup) -> f64 {
    number(backup.size_bytes.unwrap_or(0))
}

pub(super) fn delta(backup: &Backup) -> f64 {
    number(backup.delta_bytes.unwrap_or(0))
}

pub(super) fn repo_size(backup: &Backup) -> f64 {
    number(backup.repo_size_bytes.unwrap_or(0))
}

pub(super) fn repo_delta(backup: &Backup) -> f64 {
    number(backup.repo_delta_bytes.unwrap_or(0))
}

pub(super) fn size_map(backup: &Backup) -> f64 {
    number(backup.repo_size_map.unwrap_or(0))
}

pub(super) fn delta_map(backup: &Backup) -> f64 {
    number(backup.repo_delta_map.unwrap_or(0))
}

pub(super) fn error(backup: &Backup) -> f64 {
    flag(backup.error.unwrap_or(false))
}

pub(super) fn annotations(backup: &Backup) -> f64 {
    number(u64::try_from(backup.annotations.len()).unwrap_or(u64::MAX))
}
