//! Pins, and when each backup was verified or read back, and what was found.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rusqlite::{Row, params};

use super::rows::{column, during, parsed, time};
use super::{Store, StoreError};
use crate::domain::sets::{ReadBack, Verified};
use crate::domain::{BackupLabel, JobId, RepoKey, StanzaName};

/// What is known of backups, each by its repository and label.
type OfBackups<T> = BTreeMap<(RepoKey, BackupLabel), T>;

fn key(row: &Row<'_>) -> Result<(RepoKey, BackupLabel), StoreError> {
    let number: u32 = column(row, "repo")?;
    let unreadable = |_| StoreError::Unreadable { what: "repo", value: number.to_string() };
    Ok((RepoKey::try_from(number).map_err(unreadable)?, parsed(row, "label")?))
}

impl Store {
    /// Pins a backup, or takes its pin back. Both are remembered.
    pub async fn set_pin(
        &self,
        stanza: StanzaName,
        label: BackupLabel,
        pinned: bool,
        by: String,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "INSERT INTO pins (stanza, label, pinned, by_whom, at) VALUES (?1, ?2, ?3, ?4, \
                     ?5) ON CONFLICT (stanza, label) DO UPDATE SET pinned = excluded.pinned, \
                     by_whom = excluded.by_whom, at = excluded.at",
                    params![stanza.as_str(), label.as_str(), pinned, by, at.as_microsecond()],
                )
                .map(drop)
                .map_err(during("remember a pin"))
        })
        .await
    }

    /// Every backup that was pinned or unpinned here, and which of the two.
    pub async fn pins(
        &self,
        stanza: StanzaName,
    ) -> Result<BTreeMap<BackupLabel, bool>, StoreError> {
        self.read(move |connection| {
            let failed = during("read pins");
            let mut statement = connection
                .prepare_cached("SELECT label, pinned FROM pins WHERE stanza = ?1")
                .map_err(&failed)?;
            let mut rows = statement.query([stanza.as_str()]).map_err(&failed)?;
            let mut found = BTreeMap::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                found.insert(parsed(row, "label")?, column(row, "pinned")?);
            }
            Ok(found)
        })
        .await
    }

    /// Remembers that nothing is kept for the undo of a restore any more.
    pub async fn release_restore(
        &self,
        stanza: StanzaName,
        restore: JobId,
        by: String,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "INSERT OR IGNORE INTO released_restores (id, stanza, at, by_whom) VALUES (?1, \
                     ?2, ?3, ?4)",
                    params![restore.to_string(), stanza.as_str(), at.as_microsecond(), by],
                )
                .map(drop)
                .map_err(during("remember the release of a restore"))
        })
        .await
    }

    /// The restores for whose undo nothing is kept any more.
    pub async fn released_restores(
        &self,
        stanza: StanzaName,
    ) -> Result<BTreeSet<JobId>, StoreError> {
        self.read(move |connection| {
            let failed = during("read released restores");
            let mut statement = connection
                .prepare_cached("SELECT id FROM released_restores WHERE stanza = ?1")
                .map_err(&failed)?;
            let mut rows = statement.query([stanza.as_str()]).map_err(&failed)?;
            let mut found = BTreeSet::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                found.insert(parsed(row, "id")?);
            }
            Ok(found)
        })
        .await
    }

    /// Remembers what a verification said of some backups.
    pub async fn set_verified(
        &self,
        stanza: StanzaName,
        found: Vec<(RepoKey, BackupLabel, Verified)>,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("remember a verification");
            let transaction = connection.transaction().map_err(&failed)?;
            for (repo, label, verified) in found {
                transaction
                    .execute(
                        "INSERT OR REPLACE INTO verified (stanza, repo, label, at, good) VALUES \
                         (?1, ?2, ?3, ?4, ?5)",
                        params![
                            stanza.as_str(),
                            repo.get(),
                            label.as_str(),
                            verified.at.as_microsecond(),
                            verified.good
                        ],
                    )
                    .map_err(&failed)?;
            }
            transaction.commit().map_err(&failed)
        })
        .await
    }

    /// What is known of every backup that was verified.
    pub async fn verified(&self, stanza: StanzaName) -> Result<OfBackups<Verified>, StoreError> {
        self.of_backups(
            stanza,
            "SELECT repo, label, at, good FROM verified WHERE stanza = ?1",
            |row| Ok(Verified { at: time(row, "at")?, good: column(row, "good")? }),
        )
        .await
    }

    /// Remembers what reading the manifest of a backup found.
    pub async fn set_read_back(
        &self,
        stanza: StanzaName,
        repo: RepoKey,
        label: BackupLabel,
        found: ReadBack,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "INSERT OR REPLACE INTO read_backs (stanza, repo, label, at, problem) VALUES \
                     (?1, ?2, ?3, ?4, ?5)",
                    params![
                        stanza.as_str(),
                        repo.get(),
                        label.as_str(),
                        found.at.as_microsecond(),
                        found.problem
                    ],
                )
                .map(drop)
                .map_err(during("remember the reading of a manifest"))
        })
        .await
    }

    /// What reading the manifests found, of every backup that was read.
    pub async fn read_backs(&self, stanza: StanzaName) -> Result<OfBackups<ReadBack>, StoreError> {
        let sql = "SELECT repo, label, at, problem FROM read_backs WHERE stanza = ?1";
        self.of_backups(stanza, sql, |row| {
            Ok(ReadBack { at: time(row, "at")?, problem: column(row, "problem")? })
        })
        .await
    }

    /// What a query says of backups, each row by its `repo` and `label`.
    async fn of_backups<T: Send + 'static>(
        &self,
        stanza: StanzaName,
        sql: &'static str,
        read: fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<OfBackups<T>, StoreError> {
        self.read(move |connection| {
            let failed = during("read what is known of backups");
            let mut statement = connection.prepare_cached(sql).map_err(&failed)?;
            let mut rows = statement.query([stanza.as_str()]).map_err(&failed)?;
            let mut found = BTreeMap::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                found.insert(key(row)?, read(row)?);
            }
            Ok(found)
        })
        .await
    }

    /// Forgets backups that are gone.
    pub async fn forget_backups(
        &self,
        stanza: StanzaName,
        gone: Vec<(RepoKey, BackupLabel)>,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("forget removed backups");
            let transaction = connection.transaction().map_err(&failed)?;
            for (repo, label) in gone {
                let (stanza, label) = (stanza.as_str(), label.as_str());
                for table in ["verified", "read_backs"] {
                    let delete = format!(
                        "DELETE FROM {table} WHERE stanza = ?1 AND repo = ?2 AND label = ?3"
                    );
                    transaction
                        .execute(&delete, params![stanza, repo.get(), label])
                        .map_err(&failed)?;
                }
                // A label is in one repository: it is the time at which the backup began.
                transaction
                    .execute(
                        "DELETE FROM pins WHERE stanza = ?1 AND label = ?2",
                        params![stanza, label],
                    )
                    .map_err(&failed)?;
            }
            transaction.commit().map_err(&failed)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pins_and_verifications_are_kept_and_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("h.db");
        let store = Store::open(&path).unwrap();
        let stanza: StanzaName = "main".parse().unwrap();
        let label: BackupLabel = "20261120-101500F".parse().unwrap();
        let other: BackupLabel = "20261121-101500F".parse().unwrap();
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        for (label, pinned) in [(&label, true), (&other, true), (&other, false)] {
            let by = "t".to_owned();
            store.set_pin(stanza.clone(), label.clone(), pinned, by, at).await.unwrap();
        }
        let verified = Verified { at, good: true };
        let found = vec![(RepoKey::FIRST, label.clone(), verified)];
        store.set_verified(stanza.clone(), found).await.unwrap();
        let read = ReadBack { at, problem: Some("truncated".to_owned()) };
        store
            .set_read_back(stanza.clone(), RepoKey::FIRST, label.clone(), read.clone())
            .await
            .unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        let pins = store.pins(stanza.clone()).await.unwrap();
        assert_eq!(pins, BTreeMap::from([(label.clone(), true), (other.clone(), false)]));
        let known = store.verified(stanza.clone()).await.unwrap();
        assert_eq!(known, BTreeMap::from([((RepoKey::FIRST, label.clone()), verified)]));
        let known = store.read_backs(stanza.clone()).await.unwrap();
        assert_eq!(known, BTreeMap::from([((RepoKey::FIRST, label.clone()), read)]));
        assert!(store.pins("other".parse().unwrap()).await.unwrap().is_empty());
        store.forget_backups(stanza.clone(), vec![(RepoKey::FIRST, label)]).await.unwrap();
        assert_eq!(store.pins(stanza.clone()).await.unwrap(), BTreeMap::from([(other, false)]));
        assert!(store.verified(stanza.clone()).await.unwrap().is_empty());
        assert!(store.read_backs(stanza).await.unwrap().is_empty());
    }
}
