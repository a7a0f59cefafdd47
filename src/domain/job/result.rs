//! What a backup and a restore have to show.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::{BackupLabel, BackupType, Lsn, RepoKey, Timeline};

/// The backup that a job made, as `pgbackrest info` lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupResult {
    /// The new backup's label.
    pub label: BackupLabel,
    /// Its real type.
    pub backup_type: BackupType,
    /// The repository it is in.
    pub repo: Option<RepoKey>,
    /// Bytes of the database.
    pub size_bytes: Option<u64>,
    /// Bytes copied for this backup.
    pub delta_bytes: Option<u64>,
    /// Bytes that this backup added to the repository.
    pub repo_delta_bytes: Option<u64>,
    /// Whether page checksum errors were found.
    pub page_errors: bool,
    /// When the backup began.
    pub started_at: Option<Timestamp>,
    /// When the backup ended: it can be restored to any moment from here on.
    pub stopped_at: Option<Timestamp>,
}

/// What a restore reached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RestoreResult {
    /// The backup set that was restored.
    pub set: Option<BackupLabel>,
    /// The repository it came from.
    pub repo: Option<RepoKey>,
    /// The timeline that PostgreSQL is on now.
    pub timeline: Option<Timeline>,
    /// The last position that was replayed.
    pub replayed_lsn: Option<Lsn>,
    /// The commit time of the last transaction that was replayed.
    pub last_commit_at: Option<Timestamp>,
    /// Bytes of the set, restored.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// From the stop of the server until clients could write again.
    #[serde(default)]
    pub downtime_ms: Option<u64>,
}
