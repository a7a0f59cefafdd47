//! The checks of a plan: each passes, warns or fails with its reason.

use serde::{Deserialize, Serialize};

use super::super::words::words;

words! {
    /// What is checked before a restore.
    CheckId {
        /// No other job of the stanza runs.
        LaneFree = "lane-free",
        /// No worker of an earlier `pgbackrest restore` lives.
        NoOrphans = "no-orphan-workers",
        /// PGDATA is a cluster, or empty.
        Pgdata = "pgdata",
        /// Every entry of PGDATA can be replaced.
        OwnedEntries = "owned-entries",
        /// The repository can be read.
        Repository = "repository",
        /// The backups are of the cluster that is in PGDATA.
        OtherSystem = "other-system",
        /// The target exists.
        Target = "target",
        /// The set can be read, with everything that it refers to.
        SetReadable = "set-readable",
        /// The set is not known to be damaged.
        DamagedSet = "damaged-set",
        /// The WAL from the set to the target is complete.
        WalGap = "wal-gap",
        /// WAL that is not in the archive can be saved.
        WalLoss = "wal-loss",
        /// What is restored fits on the disk.
        Space = "space",
        /// pgBackRest's spool, lock and log directories can be used.
        PgbackrestDirectories = "pgbackrest-directories",
        /// pgBackRest has no stop file.
        StopFile = "stop-file",
        /// Tablespaces and links can be restored where they were.
        Layout = "layout",
        /// The databases that were asked for are in the set.
        Databases = "databases",
        /// Every database and tablespace that exists at the target has its files: found out when recovery
        /// is there.
        Destroyed = "destroyed-database",
        /// The configuration files in PGDATA.
        ConfigurationFiles = "configuration-files",
        /// pgBackRest's version.
        PgbackrestVersion = "pgbackrest-version",
    }
}

words! {
    /// How a check came out.
    Verdict {
        /// Well.
        Pass = "pass",
        /// With something to know.
        Warn = "warn",
        /// The restore is refused, unless the caller may and does accept it.
        Fail = "fail",
    }
}

impl CheckId {
    /// Whether a caller may take its failure upon itself.
    pub fn is_acceptable(self) -> bool {
        match self {
            Self::WalGap
            | Self::WalLoss
            | Self::OtherSystem
            | Self::DamagedSet
            | Self::Destroyed => true,
            Self::LaneFree
            | Self::NoOrphans
            | Self::Pgdata
            | Self::OwnedEntries
            | Self::Repository
            | Self::Target
            | Self::SetReadable
            | Self::Space
            | Self::PgbackrestDirectories
            | Self::StopFile
            | Self::Layout
            | Self::Databases
            | Self::ConfigurationFiles
            | Self::PgbackrestVersion => false,
        }
    }
}

/// One check with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub id: CheckId,
    /// How it came out.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub detail: String,
}

impl Check {
    /// It is well.
    pub fn pass(id: CheckId, detail: impl Into<String>) -> Self {
        Self { id, verdict: Verdict::Pass, detail: detail.into() }
    }

    /// There is something to know.
    pub fn warn(id: CheckId, detail: impl Into<String>) -> Self {
        Self { id, verdict: Verdict::Warn, detail: detail.into() }
    }

    /// It does not go well.
    pub fn fail(id: CheckId, detail: impl Into<String>) -> Self {
        Self { id, verdict: Verdict::Fail, detail: detail.into() }
    }
}

/// The failed checks that nobody accepted, or may accept.
pub fn refusing<'a>(
    checks: &'a [Check],
    accepted: &'a [CheckId],
) -> impl Iterator<Item = &'a Check> {
    checks.iter().filter(|check| {
        let accepted = check.id.is_acceptable() && accepted.contains(&check.id);
        check.verdict == Verdict::Fail && !accepted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_accepted_is() {
        let checks = [
            Check::fail(CheckId::WalGap, "g"),
            Check::fail(CheckId::Space, "s"),
            Check::warn(CheckId::Layout, "l"),
        ];
        let all = CheckId::ALL.to_vec();
        let left = |accepted: &[CheckId]| -> Vec<CheckId> {
            refusing(&checks, accepted).map(|check| check.id).collect()
        };
        assert_eq!(left(&[]), [CheckId::WalGap, CheckId::Space]);
        assert_eq!(left(&all), [CheckId::Space]);
    }
}
