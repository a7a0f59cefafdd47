//! The metrics of `pgbackrest_exporter` 0.24, by the same names, labels and rules.
//!
//! Everybody's boards and alert rules are written for these, so nothing is improved here: what that
//! exporter leaves out is left out, what it fills with 0 is 0. Two things differ. Ages are those of
//! the moment of the scrape, not up to ten minutes old; and `pgbackrest_version_info` is known for
//! every version of pgBackRest, not from 2.55 on. Pure: time and zone are given. The databases of
//! backups are not counted: that takes an `info --set` for each backup.

mod backups;
mod last;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::family::{Family, Labels, flag, number};
use crate::config::MetricsConfig;
use crate::domain::{RepoKey, StanzaName};
use crate::pgbackrest::info::{LockState, StanzaInfo};
use crate::pgbackrest::version::Version;

/// What `info` said last of a stanza; nothing when it could not be asked.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The configured name.
    pub stanza: &'a StanzaName,
    /// The answer.
    pub info: Option<&'a StanzaInfo>,
}

/// When and where it is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The time of the scrape.
    pub now: Timestamp,
    /// The zone of times in labels.
    pub zone: &'a TimeZone,
}

/// A stanza that `info` told of.
#[derive(Clone, Copy)]
struct Told<'a> {
    stanza: &'a StanzaName,
    info: &'a StanzaInfo,
}

/// Every family, those without samples included.
pub fn families(
    seen: &[Seen<'_>],
    version: Option<&Version>,
    config: &MetricsConfig,
    moment: Moment<'_>,
) -> Vec<Family> {
    let told: Vec<Told<'_>> = seen
        .iter()
        .filter_map(|seen| Some(Told { stanza: seen.stanza, info: seen.info? }))
        .collect();
    let mut families = stanzas(&told, config);
    families.extend(repositories(&told));
    families.extend(backups::families(&told, config, moment));
    families.extend(last::families(&told, moment.now));
    families.push(archives(&told, config));
    families.extend(exporter(seen, version, config));
    families
}

fn stanzas(told: &[Told<'_>], config: &MetricsConfig) -> Vec<Family> {
    let of = |value: fn(&StanzaInfo) -> f64| {
        told.iter().map(move |told| (told.labels([]), value(told.info))).collect::<Vec<_>>()
    };
    let complete = of(|info| number(info.status.lock.backup.size_complete_bytes.unwrap_or(0)));
    let held = of(|info| flag(info.status.lock.backup.held));
    let mut families = vec![
        Family::gauge("pgbackrest_stanza_status", "Current stanza status.", of(status)),
        Family::gauge(
            "pgbackrest_stanza_backup_lock_status",
            "Current stanza backup lock status.",
            held.clone(),
        ),
        Family::gauge(
            "pgbackrest_stanza_backup_total_bytes",
            "Total size for backup in progress.",
            of(|info| number(info.status.lock.backup.size_bytes.unwrap_or(0))),
        ),
        Family::gauge(
            "pgbackrest_stanza_backup_complete_bytes",
            "Completed size for backup in progress.",
            complete.clone(),
        ),
        Family::gauge(
            "pgbackrest_stanza_restore_lock_status",
            "Current stanza restore lock status.",
            of(|info| flag(info.status.lock.restore.held)),
        ),
        Family::gauge(
            "pgbackrest_stanza_restore_total_bytes",
            "Total size for restore in progress.",
            of(|info| number(info.status.lock.restore.size_bytes.unwrap_or(0))),
        ),
        Family::gauge(
            "pgbackrest_stanza_restore_complete_bytes",
            "Completed size for restore in progress.",
            of(|info| number(info.status.lock.restore.size_complete_bytes.unwrap_or(0))),
        ),
    ];
    if config.legacy_names {
        families.push(Family::gauge(
            "pgbackrest_stanza_lock_status",
            "Current stanza lock status (the name before exporter 0.23).",
            held,
        ));
        families.push(Family::gauge(
            "pgbackrest_stanza_backup_compete_bytes",
            "Completed size for backup in progress (the name before exporter 0.23).",
            complete,
        ));
    }
    families
}

fn repositories(told: &[Told<'_>]) -> Vec<Family> {
    let copied = |value: fn(&LockState, &str) -> u64| {
        let of_repo = move |told: &Told<'_>, repo: Repo| {
            let bytes = value(&told.info.status.lock.backup, &repo.key);
            (told.labels([("repo_key", repo.key)]), number(bytes))
        };
        told.iter()
            .flat_map(|told| told.repos().into_iter().map(move |repo| of_repo(told, repo)))
            .collect::<Vec<_>>()
    };
    let status = told.iter().flat_map(|told| {
        told.repos().into_iter().map(|repo| {
            (told.labels([("cipher", repo.cipher), ("repo_key", repo.key)]), repo.status)
        })
    });
    vec![
        Family::gauge("pgbackrest_repo_status", "Current repository status.", status),
        Family::gauge(
            "pgbackrest_stanza_backup_repo_total_bytes",
            "Total size for backup in progress to the repository.",
            copied(|lock, key| of_locked(lock, key, |repo| repo.size_bytes)),
        ),
        Family::gauge(
            "pgbackrest_stanza_backup_repo_complete_bytes",
            "Completed size for backup in progress to the repository.",
            copied(|lock, key| of_locked(lock, key, |repo| repo.size_complete_bytes)),
        ),
    ]
}

fn of_locked(
    lock: &LockState,
    key: &str,
    value: fn(&crate::pgbackrest::info::LockedRepo) -> Option<u64>,
) -> u64 {
    lock.repos.iter().find(|repo| repo.key.to_string() == key).and_then(value).unwrap_or(0)
}

fn archives(told: &[Told<'_>], config: &MetricsConfig) -> Family {
    let samples = told.iter().flat_map(|told| {
        told.info.archives.iter().map(|archive| {
            let [min, max] =
                [&archive.min, &archive.max].map(|segment| segment.as_deref().unwrap_or_default());
            // A series of its own for every segment: only for who wants it.
            let shown = |segment: &str| {
                if config.verbose_wal { segment.to_owned() } else { String::new() }
            };
            let labels = told.labels([
                ("database_id", id(archive.database_id)),
                ("pg_version", told.pg_version(archive.database_id, archive.repo_key)),
                ("repo_key", key(archive.repo_key)),
                ("wal_max", shown(max)),
                ("wal_min", shown(min)),
            ]);
            (labels, flag(!min.is_empty() && !max.is_empty()))
        })
    });
    Family::gauge("pgbackrest_wal_archive_status", "Current WAL archive status.", samples)
}

fn exporter(seen: &[Seen<'_>], version: Option<&Version>, config: &MetricsConfig) -> Vec<Family> {
    let fetched = seen.iter().map(|seen| {
        let labels = Labels::new([("stanza", seen.stanza.to_string())]);
        (labels, flag(seen.info.is_some()))
    });
    let ours = env!("CARGO_PKG_VERSION").to_owned();
    let build = Labels::new([
        ("branch", String::new()),
        ("goarch", std::env::consts::ARCH.to_owned()),
        ("goos", std::env::consts::OS.to_owned()),
        ("goversion", String::new()),
        ("revision", String::new()),
        ("tags", String::new()),
        ("version", ours.clone()),
    ]);
    let mut families = vec![
        Family::gauge(
            "pgbackrest_version_info",
            "Information about pgBackRest version: major * 1000000 + minor * 1000 + patch.",
            [(Labels::new([]), version.map_or(0.0, version_number))],
        ),
        Family::gauge(
            "pgbackrest_exporter_status",
            "pgBackRest exporter get data status.",
            fetched,
        ),
        Family::gauge(
            "pgbackrest_exporter_build_info",
            "Information about what exports these metrics: Headrest.",
            [(build, 1.0)],
        ),
    ];
    if config.legacy_names {
        families.push(Family::gauge(
            "pgbackrest_exporter_info",
            "Information about pgBackRest exporter (the name before exporter 0.20).",
            [(Labels::new([("version", ours)]), 1.0)],
        ));
    }
    families
}

/// As `pgbackrest version --output=num` prints it: 2.57.0 is 2057000.
fn version_number(version: &Version) -> f64 {
    let part = |part: u32| u64::from(part);
    number(part(version.major) * 1_000_000 + part(version.minor) * 1000 + part(version.patch))
}

#[expect(clippy::cast_precision_loss, reason = "codes are small")]
fn status(info: &StanzaInfo) -> f64 {
    info.status.code as f64
}

/// Of pgBackRest before 2.32, which had one repository and did not speak of it: 0.
fn key(repo: Option<RepoKey>) -> String {
    repo.map_or_else(|| "0".to_owned(), |repo| repo.to_string())
}

fn id(database: Option<u64>) -> String {
    database.unwrap_or(0).to_string()
}

struct Repo {
    key: String,
    cipher: String,
    status: f64,
}

impl Told<'_> {
    /// The stanza's name and more.
    fn labels<const N: usize>(&self, more: [super::Label; N]) -> Labels {
        Labels::new(more.into_iter().chain([("stanza", self.stanza.to_string())]))
    }

    fn repos(&self) -> Vec<Repo> {
        let none = || "none".to_owned();
        let repos = self.info.repos.iter().map(|repo| Repo {
            key: repo.key.to_string(),
            cipher: repo.cipher.clone().unwrap_or_else(none),
            status: number(u64::try_from(repo.status.code).unwrap_or(99)),
        });
        let mut repos: Vec<_> = repos.collect();
        // Before 2.32. A stanza of which nothing is known at all has no repository to speak of.
        if repos.is_empty() && !self.info.databases.is_empty() {
            repos.push(Repo { key: key(None), cipher: none(), status: 0.0 });
        }
        repos
    }

    fn pg_version(&self, database: Option<u64>, repo: Option<RepoKey>) -> String {
        let mut databases = self.info.databases.iter();
        let found = databases.find(|known| known.id == database && known.repo_key == repo);
        found.and_then(|known| known.version.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
