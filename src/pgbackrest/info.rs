//! What `pgbackrest info --output=json` says, read tolerantly.
//!
//! pgBackRest adds fields in almost every version, so every field may be absent, null or of an
//! unexpected type, and what is not known is passed over; only output that is no JSON array is an
//! error. This module must not judge (see [`StanzaStatus`] for the codes' meaning), run anything,
//! or invent values: what is missing stays `None`. Fields: design/pgbackrest.md, section 3.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use crate::domain::{
    backup::{BackupLabel, BackupType},
    repo::RepoKey,
    stanza::StanzaName,
    wal::Lsn,
};

/// Output that is not info JSON at all.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    #[error("pgbackrest info printed no valid JSON")]
    Json(#[source] serde_json::Error),
    #[error("pgbackrest info printed JSON that is no array of stanzas")]
    NotAnArray,
}

/// One stanza, over all its repositories.
#[derive(Debug, Clone, PartialEq)]
pub struct StanzaInfo {
    /// As printed: `[invalid]` stands for a repository that could not be read.
    pub name: String,
    pub status: Status,
    /// `none`, `aes-256-cbc`, or `mixed`.
    pub cipher: Option<String>,
    pub repos: Vec<RepoInfo>,
    pub databases: Vec<Database>,
    pub archives: Vec<Archive>,
    /// Those with a valid label, in printed order: by repository and label.
    pub backups: Vec<Backup>,
    /// How many entries of `backup` were passed over because their label is none.
    pub skipped_backups: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// See [`Status::meaning`]; 99 where pgBackRest gives none, never a silent 0.
    pub code: i64,
    pub message: String,
    pub lock: Lock,
}

/// What runs now, as far as the lock files on this host tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    /// Backup or expire.
    pub backup: LockState,
    /// From 2.56 on.
    pub restore: LockState,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockState {
    pub held: bool,
    /// Bytes to be copied in all, from 2.48 on.
    pub size_bytes: Option<u64>,
    /// Bytes copied so far, from 2.48 on.
    pub size_complete_bytes: Option<u64>,
    /// The same by repository, from 2.59 on; of a backup only, and only while one runs.
    pub repos: Vec<LockedRepo>,
}

/// What a running backup copies to one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedRepo {
    pub key: RepoKey,
    pub size_bytes: Option<u64>,
    pub size_complete_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoInfo {
    pub key: RepoKey,
    pub cipher: Option<String>,
    pub status: RepoStatus,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoStatus {
    pub code: i64,
    /// With code 99 it holds the whole error, several lines long.
    pub message: String,
}

/// The meaning of a status code, of a stanza or of one of its repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StanzaStatus {
    Ok,
    MissingPath,
    NoBackup,
    MissingData,
    DifferentAcrossRepos,
    DatabaseMismatch,
    BackupNotFound,
    /// 99 is pgBackRest's "other"; the message of the repository says what it is.
    Other(i64),
}

/// One entry of the stanza's database history; the last is the current one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    pub id: Option<u64>,
    pub repo_key: Option<RepoKey>,
    /// A 64-bit number as text, because it exceeds 2^53; empty if absent.
    pub system_id: String,
    /// Such as `15` or `9.6`.
    pub version: Option<String>,
}

/// The WAL range of one database history entry in one repository. Gaps in it are invisible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    pub database_id: Option<u64>,
    pub repo_key: Option<RepoKey>,
    /// Such as `15-1`.
    pub id: String,
    /// Segment names; absent when nothing is archived.
    pub min: Option<String>,
    pub max: Option<String>,
}

/// The type that info states. A type that this version does not know is kept as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupKind {
    Known(BackupType),
    Other(String),
}

/// One backup. The last four lists are filled only by `info --set`.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    pub label: BackupLabel,
    /// By the label where info states none.
    pub kind: BackupKind,
    pub prior: Option<BackupLabel>,
    /// Every backup that this one needs.
    pub reference: Vec<BackupLabel>,
    /// Names of the first and last WAL segment that the backup needs.
    pub archive_start: Option<String>,
    pub archive_stop: Option<String>,
    pub lsn_start: Option<Lsn>,
    pub lsn_stop: Option<Lsn>,
    pub started_at: Option<Timestamp>,
    pub stopped_at: Option<Timestamp>,
    /// Of the database, uncompressed.
    pub size_bytes: Option<u64>,
    /// Copied by this backup, uncompressed.
    pub delta_bytes: Option<u64>,
    /// In the repository, with all that it references; absent for block incremental backups.
    pub repo_size_bytes: Option<u64>,
    /// Added to the repository by this backup.
    pub repo_delta_bytes: Option<u64>,
    /// Size in bytes of the block maps (block incremental).
    pub repo_size_map: Option<u64>,
    pub repo_delta_map: Option<u64>,
    pub database_id: Option<u64>,
    pub repo_key: Option<RepoKey>,
    /// Page checksum errors were found; the backup itself counts as done.
    pub error: Option<bool>,
    pub annotations: BTreeMap<String, String>,
    /// Of the pgBackRest that made it.
    pub pgbackrest_version: Option<String>,
    pub tablespaces: Vec<Tablespace>,
    pub links: Vec<Link>,
    /// Databases, without templates.
    pub database_refs: Vec<DatabaseRef>,
    /// Files with page checksum errors, relative to the data directory.
    pub error_list: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    pub name: String,
    pub oid: Option<u64>,
    pub destination: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub destination: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseRef {
    pub name: String,
    pub oid: Option<u64>,
}

/// Reads the complete output of `info --output=json`.
pub fn parse(json: &[u8]) -> Result<Vec<StanzaInfo>, InfoError> {
    match serde_json::from_slice(json).map_err(InfoError::Json)? {
        Value::Array(stanzas) => Ok(stanzas.iter().filter(|v| v.is_object()).map(stanza).collect()),
        _ => Err(InfoError::NotAnArray),
    }
}

/// The stanza of that name.
pub fn find<'a>(stanzas: &'a [StanzaInfo], name: &StanzaName) -> Option<&'a StanzaInfo> {
    stanzas.iter().find(|stanza| stanza.name == name.as_str())
}

/// Why the manifest of a single set cannot be read, from the status of `info --set`. `None` when
/// something else is wrong, of which nothing follows about the manifest.
pub fn manifest_problem(code: i64, message: &str) -> Option<String> {
    match StanzaStatus::from_code(code) {
        StanzaStatus::BackupNotFound => Some("the repository does not have it".to_owned()),
        StanzaStatus::Other(_) => {
            // "[FormatError] unable to load …:", then an error for the manifest and one for its copy.
            let (first, errors) = message.split_once('\n').unwrap_or((message, ""));
            let is_kind = |word: &&str| {
                word.ends_with("Error") && word.bytes().all(|byte| byte.is_ascii_alphabetic())
            };
            let kind = |line: &'_ str| line.split_once(": ").map(|(kind, _)| kind.to_owned());
            let mut kinds = errors.lines().filter_map(kind).filter(|kind| is_kind(&kind.as_str()));
            let own = first.strip_prefix('[').and_then(|rest| rest.split_once("] "));
            let (own, what) = own?;
            let is_it = what.starts_with("unable to load backup manifest")
                && OF_CONTENT.contains(&own)
                && kinds.all(|kind| OF_CONTENT.contains(&kind.as_str()));
            is_it.then(|| errors.lines().next().unwrap_or(first).to_owned())
        }
        _ => None,
    }
}

/// pgBackRest's errors that say that a file is there and is no manifest, or is not there.
const OF_CONTENT: [&str; 5] =
    ["FormatError", "JsonFormatError", "ChecksumError", "CryptoError", "FileMissingError"];

impl StanzaStatus {
    /// pgBackRest's `INFO_STANZA_STATUS_CODE_…`.
    pub const fn from_code(code: i64) -> Self {
        match code {
            0 => Self::Ok,
            1 => Self::MissingPath,
            2 => Self::NoBackup,
            3 => Self::MissingData,
            4 => Self::DifferentAcrossRepos,
            5 => Self::DatabaseMismatch,
            6 => Self::BackupNotFound,
            other => Self::Other(other),
        }
    }
}

impl Status {
    pub const fn meaning(&self) -> StanzaStatus {
        StanzaStatus::from_code(self.code)
    }
}

impl RepoStatus {
    pub const fn meaning(&self) -> StanzaStatus {
        StanzaStatus::from_code(self.code)
    }
}

impl BackupKind {
    /// The word that info prints.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(known) => known.as_str(),
            Self::Other(other) => other,
        }
    }
}

impl StanzaInfo {
    /// The backup that stopped last, over all repositories; one without a stop time comes first.
    pub fn newest_backup(&self) -> Option<&Backup> {
        self.newest_of(|_| true)
    }

    /// The same of some of them.
    pub fn newest_of(&self, wanted: impl Fn(&Backup) -> bool) -> Option<&Backup> {
        let some = self.backups.iter().filter(|backup| wanted(backup));
        some.max_by_key(|backup| (backup.stopped_at, &backup.label))
    }

    /// Every backup that `label` needs, directly or through another, without itself. A label in
    /// the result that is not in `backups` is missing from the repositories.
    pub fn needs(&self, label: &BackupLabel) -> BTreeSet<BackupLabel> {
        let mut found = BTreeSet::new();
        let mut open = vec![label];
        while let Some(wanted) = open.pop() {
            for backup in self.backups.iter().filter(|backup| backup.label == *wanted) {
                open.extend(backup.direct_needs().filter(|needed| found.insert(*needed)));
            }
        }
        found.remove(label);
        found.into_iter().cloned().collect()
    }

    /// Every backup that needs `label`, directly or through another: what expires with it.
    pub fn needed_by(&self, label: &BackupLabel) -> BTreeSet<BackupLabel> {
        let mut found = BTreeSet::from([label]);
        let mut known = 0;
        while known < found.len() {
            known = found.len();
            for backup in &self.backups {
                if backup.direct_needs().any(|needed| found.contains(needed)) {
                    found.insert(&backup.label);
                }
            }
        }
        found.remove(label);
        found.into_iter().cloned().collect()
    }
}

impl Backup {
    fn direct_needs(&self) -> impl Iterator<Item = &BackupLabel> {
        self.reference.iter().chain(&self.prior)
    }
}

fn stanza(value: &Value) -> StanzaInfo {
    let entries = list(&value["backup"]);
    let backups: Vec<Backup> = entries.iter().filter_map(backup).collect();
    StanzaInfo {
        name: text(&value["name"]).unwrap_or_default(),
        status: status(&value["status"]),
        cipher: text(&value["cipher"]),
        repos: list(&value["repo"]).iter().filter_map(repo).collect(),
        databases: list(&value["db"]).iter().map(database).collect(),
        archives: list(&value["archive"]).iter().map(archive).collect(),
        skipped_backups: entries.len() - backups.len(),
        backups,
    }
}

fn status(value: &Value) -> Status {
    let lock = |value: &Value| LockState {
        held: value["held"].as_bool().unwrap_or(false),
        size_bytes: value["size"].as_u64(),
        size_complete_bytes: value["size-cplt"].as_u64(),
        repos: list(&value["repo"]).iter().filter_map(locked_repo).collect(),
    };
    let RepoStatus { code, message } = repo_status(value);
    let locks = &value["lock"];
    Status {
        code,
        message,
        lock: Lock { backup: lock(&locks["backup"]), restore: lock(&locks["restore"]) },
    }
}

fn locked_repo(value: &Value) -> Option<LockedRepo> {
    Some(LockedRepo {
        key: repo_key(&value["key"])?,
        size_bytes: value["size"].as_u64(),
        size_complete_bytes: value["size-cplt"].as_u64(),
    })
}

fn repo_status(value: &Value) -> RepoStatus {
    RepoStatus {
        code: value["code"].as_i64().unwrap_or(99),
        message: text(&value["message"]).unwrap_or_default(),
    }
}

fn repo(value: &Value) -> Option<RepoInfo> {
    let cipher = text(&value["cipher"]);
    Some(RepoInfo { key: repo_key(&value["key"])?, cipher, status: repo_status(&value["status"]) })
}

fn database(value: &Value) -> Database {
    Database {
        id: value["id"].as_u64(),
        repo_key: repo_key(&value["repo-key"]),
        system_id: text(&value["system-id"]).unwrap_or_default(),
        version: text(&value["version"]),
    }
}

fn archive(value: &Value) -> Archive {
    Archive {
        database_id: value["database"]["id"].as_u64(),
        repo_key: repo_key(&value["database"]["repo-key"]),
        id: text(&value["id"]).unwrap_or_default(),
        min: text(&value["min"]),
        max: text(&value["max"]),
    }
}

fn backup(value: &Value) -> Option<Backup> {
    let label: BackupLabel = parsed(&value["label"])?;
    let kind = match text(&value["type"]) {
        Some(word) => word.parse().map_or(BackupKind::Other(word), BackupKind::Known),
        None => BackupKind::Known(label.backup_type()),
    };
    let time = |value: &Value| Timestamp::from_second(value.as_i64()?).ok();
    let (info, repository) = (&value["info"], &value["info"]["repository"]);
    Some(Backup {
        kind,
        prior: parsed(&value["prior"]),
        reference: list(&value["reference"]).iter().filter_map(parsed).collect(),
        archive_start: text(&value["archive"]["start"]),
        archive_stop: text(&value["archive"]["stop"]),
        lsn_start: parsed(&value["lsn"]["start"]),
        lsn_stop: parsed(&value["lsn"]["stop"]),
        started_at: time(&value["timestamp"]["start"]),
        stopped_at: time(&value["timestamp"]["stop"]),
        size_bytes: info["size"].as_u64(),
        delta_bytes: info["delta"].as_u64(),
        repo_size_bytes: repository["size"].as_u64(),
        repo_delta_bytes: repository["delta"].as_u64(),
        repo_size_map: repository["size-map"].as_u64(),
        repo_delta_map: repository["delta-map"].as_u64(),
        database_id: value["database"]["id"].as_u64(),
        repo_key: repo_key(&value["database"]["repo-key"]),
        error: value["error"].as_bool(),
        annotations: annotations(&value["annotation"]),
        pgbackrest_version: text(&value["backrest"]["version"]),
        tablespaces: list(&value["tablespace"]).iter().map(tablespace).collect(),
        links: list(&value["link"]).iter().map(link).collect(),
        database_refs: list(&value["database-ref"]).iter().map(database_ref).collect(),
        error_list: list(&value["error-list"]).iter().filter_map(text).collect(),
        label,
    })
}

fn annotations(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

fn tablespace(value: &Value) -> Tablespace {
    let Link { name, destination } = link(value);
    Tablespace { name, oid: value["oid"].as_u64(), destination }
}

fn link(value: &Value) -> Link {
    Link {
        name: text(&value["name"]).unwrap_or_default(),
        destination: text(&value["destination"]).unwrap_or_default(),
    }
}

fn database_ref(value: &Value) -> DatabaseRef {
    DatabaseRef { name: text(&value["name"]).unwrap_or_default(), oid: value["oid"].as_u64() }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A string as it is, a number in its own digits.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn parsed<T: std::str::FromStr>(value: &Value) -> Option<T> {
    value.as_str()?.parse().ok()
}

fn repo_key(value: &Value) -> Option<RepoKey> {
    RepoKey::try_from(u32::try_from(value.as_u64()?).ok()?).ok()
}

#[cfg(test)]
mod tests;
