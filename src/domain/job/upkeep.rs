//! Jobs that keep a repository in order: what they are asked for, and what they have to show.

use serde::{Deserialize, Serialize};

use super::super::{Annotations, BackupLabel, RepoKey, StanzaName};

/// The parameters of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifySpec {
    /// What to verify.
    pub stanza: StanzaName,
    /// Only this backup; everything when not given.
    #[serde(default)]
    pub set: Option<BackupLabel>,
    /// Only this repository; every one when not given.
    #[serde(default)]
    pub repo: Option<RepoKey>,
}

/// The parameters of an expire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpireSpec {
    /// What to expire from.
    pub stanza: StanzaName,
    /// This backup, with all that build upon it; without it what retention says.
    #[serde(default)]
    pub set: Option<BackupLabel>,
    /// Only this repository; every one when not given.
    #[serde(default)]
    pub repo: Option<RepoKey>,
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// The parameters of a change of annotations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnotateSpec {
    /// The stanza.
    pub stanza: StanzaName,
    /// The backup.
    pub set: BackupLabel,
    /// What is added or replaced.
    pub annotations: Annotations,
    /// The keys of what is removed.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyResult {
    /// Whether everything that was looked at can be restored.
    pub good: bool,
    /// Backups looked at.
    pub backups: u64,
    /// Files of backups looked at.
    pub files: u64,
    /// WAL segments looked at.
    pub segments: u64,
    /// What is wrong with what pgBackRest verifies, a line each; the first hundred.
    pub errors: Vec<String>,
    /// How many there are.
    pub error_count: u64,
    /// WAL segments that are missing, a line for each run of them.
    pub wal_gaps: Vec<String>,
    /// The same, where retention has them removed, so that it is no error.
    pub wal_expired: Vec<String>,
}

/// A backup that went, or would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Its label.
    pub label: BackupLabel,
    /// Where it was.
    pub repo: RepoKey,
}

/// What an expire did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpireResult {
    /// Whether nothing was done, but said what would be.
    pub dry_run: bool,
    /// What is not listed any more; of a dry run what would go.
    pub removed: Vec<Removed>,
    /// How many backups are left.
    pub kept: u64,
    /// Bytes that the removed backups alone took in the repository, as far as that is known.
    pub freed_bytes: u64,
}
