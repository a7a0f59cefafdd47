//! Where a recovery should end.

use serde::{Deserialize, Serialize};

/// A recovery target (PostgreSQL manual, 20.5.6 "Recovery Target").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RecoveryTarget {
    /// Everything that was ever committed: the end of the archive and of what `pg_wal` still held.
    Latest,
}

impl RecoveryTarget {
    /// The `type` as it is written in requests.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Latest => "latest",
        }
    }
}
