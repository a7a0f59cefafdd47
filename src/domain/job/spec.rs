//! What jobs are asked for.

use serde::{Deserialize, Serialize};

use super::super::plan::check::CheckId;
use super::super::recovery::{OnReached, RecoveryTarget};
use super::super::restore::Pinned;
use super::super::{Annotations, BackupType, DatabaseName, RepoKey, StanzaName};
use super::upkeep::{AnnotateSpec, ExpireSpec, VerifySpec};
use super::{JobId, JobKind};

/// What a job is to do, with every parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobSpec {
    /// Take a backup.
    Backup(BackupSpec),
    /// Restore PGDATA in place.
    Restore(RestoreSpec),
    /// Check that archiving works end to end.
    Check {
        /// The stanza to check.
        stanza: StanzaName,
    },
    /// Create the stanza in every repository.
    StanzaCreate {
        /// The stanza to create.
        stanza: StanzaName,
    },
    /// Verify what the repositories hold.
    Verify(VerifySpec),
    /// Remove what retention does not keep, or one backup.
    Expire(ExpireSpec),
    /// Change the annotations of a backup.
    Annotate(AnnotateSpec),
}

/// The parameters of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSpec {
    /// What to back up.
    pub stanza: StanzaName,
    /// The repository to back up to; pgBackRest takes the first when not given.
    pub repo: Option<RepoKey>,
    /// The wanted type. pgBackRest makes a full when there is none to build upon.
    pub backup_type: BackupType,
    /// Notes kept with the backup.
    pub annotations: Annotations,
    /// Options of this one run.
    pub options: BackupOptions,
}

/// Options of one backup run; pgBackRest's configuration holds where one is not given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupOptions {
    /// `process-max`: worker processes.
    pub process_max: Option<u16>,
    /// `start-fast`: force a checkpoint instead of waiting for the next.
    pub start_fast: Option<bool>,
    /// `checksum-page`: validate data page checksums.
    pub checksum_page: Option<bool>,
}

/// The parameters of an in-place restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// What to restore.
    pub stanza: StanzaName,
    /// Where recovery ends.
    pub target: RecoveryTarget,
    /// Whether a full backup is queued once PostgreSQL takes writes again.
    pub backup_after: bool,
    /// What the plan chose. Only a job of an earlier version has none.
    #[serde(default)]
    pub pinned: Option<Box<Pinned>>,
    /// What happens when the target is reached.
    #[serde(default = "promote")]
    pub on_reached: OnReached,
    /// Only these databases; all when there are none.
    #[serde(default)]
    pub databases: Vec<DatabaseName>,
    /// Failed checks that the caller takes upon itself.
    #[serde(default)]
    pub accept: Vec<CheckId>,
    /// The restore that this one undoes.
    #[serde(default)]
    pub undoes: Option<JobId>,
}

fn promote() -> OnReached {
    OnReached::Promote
}

impl BackupSpec {
    /// A backup to pgBackRest's first repository, as it is configured.
    pub fn plain(stanza: StanzaName, backup_type: BackupType) -> Self {
        Self {
            stanza,
            repo: None,
            backup_type,
            annotations: Annotations::default(),
            options: BackupOptions::default(),
        }
    }
}

impl RestoreSpec {
    /// A restore of everything, without a plan yet.
    pub fn new(stanza: StanzaName, target: RecoveryTarget) -> Self {
        Self {
            stanza,
            target,
            backup_after: true,
            pinned: None,
            on_reached: OnReached::Promote,
            databases: Vec::new(),
            accept: Vec::new(),
            undoes: None,
        }
    }
}

impl JobSpec {
    /// What the job does.
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Backup(_) => JobKind::Backup,
            Self::Restore(_) => JobKind::Restore,
            Self::Check { .. } => JobKind::Check,
            Self::StanzaCreate { .. } => JobKind::StanzaCreate,
            Self::Verify(_) => JobKind::Verify,
            Self::Expire(_) => JobKind::Expire,
            Self::Annotate(_) => JobKind::Annotate,
        }
    }

    /// The stanza whose lane it takes.
    pub fn stanza(&self) -> &StanzaName {
        match self {
            Self::Backup(spec) => &spec.stanza,
            Self::Restore(spec) => &spec.stanza,
            Self::Check { stanza } | Self::StanzaCreate { stanza } => stanza,
            Self::Verify(spec) => &spec.stanza,
            Self::Expire(spec) => &spec.stanza,
            Self::Annotate(spec) => &spec.stanza,
        }
    }

    /// The repository it was asked to use, when one was named.
    pub fn repo(&self) -> Option<RepoKey> {
        match self {
            Self::Backup(spec) => spec.repo,
            Self::Verify(spec) => spec.repo,
            Self::Expire(spec) => spec.repo,
            Self::Restore(_)
            | Self::Check { .. }
            | Self::StanzaCreate { .. }
            | Self::Annotate(_) => None,
        }
    }
}
