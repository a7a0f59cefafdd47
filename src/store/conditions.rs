//! What health was last said to be.

use jiff::Timestamp;
use rusqlite::params;

use super::outbox::{NewNotice, insert_outbox};
use super::rows::{column, during, parsed, time};
use super::{Store, StoreError};
use crate::domain::StanzaName;
use crate::domain::health::Level;

/// What something was last said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The stanza.
    pub stanza: StanzaName,
    /// What it is about.
    pub name: String,
    /// How well it was.
    pub level: Level,
    /// Since when.
    pub since: Timestamp,
    /// The worst that it was since it was last well.
    pub worst: Level,
}

impl Store {
    /// All conditions.
    pub async fn conditions(&self) -> Result<Vec<Condition>, StoreError> {
        self.read(|connection| {
            let failed = during("read conditions");
            let mut statement = connection
                .prepare_cached("SELECT stanza, name, level, since, worst FROM conditions")
                .map_err(&failed)?;
            let mut rows = statement.query([]).map_err(&failed)?;
            let mut found = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                found.push(Condition {
                    stanza: parsed(row, "stanza")?,
                    name: column(row, "name")?,
                    level: parsed(row, "level")?,
                    since: time(row, "since")?,
                    worst: parsed(row, "worst")?,
                });
            }
            Ok(found)
        })
        .await
    }

    /// Keeps a condition and what is told of its change, as one transaction.
    pub async fn change_condition(
        &self,
        condition: Condition,
        notices: Vec<NewNotice>,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("keep a condition");
            let Condition { stanza, name, level, since, worst } = condition;
            let transaction = connection.transaction().map_err(&failed)?;
            insert_outbox(&transaction, &notices)?;
            transaction
                .execute(
                    "INSERT INTO conditions (stanza, name, level, since, worst) VALUES (?1, ?2, ?3, \
                     ?4, ?5) ON CONFLICT (stanza, name) DO UPDATE SET level = excluded.level, since \
                     = excluded.since, worst = excluded.worst",
                    params![
                        stanza.as_str(),
                        name,
                        level.as_str(),
                        since.as_microsecond(),
                        worst.as_str()
                    ],
                )
                .map_err(&failed)?;
            transaction.commit().map_err(&failed)
        })
        .await
    }

    /// Forgets a condition of something that is no more.
    pub async fn forget_condition(
        &self,
        stanza: StanzaName,
        name: String,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "DELETE FROM conditions WHERE stanza = ?1 AND name = ?2",
                    params![stanza.as_str(), name],
                )
                .map(drop)
                .map_err(during("forget a condition"))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_is_what_it_was_said_to_be_last() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("t.db")).unwrap();
        for (level, worst) in [(Level::Fail, Level::Fail), (Level::Warn, Level::Fail)] {
            let condition = Condition {
                stanza: "main".parse().unwrap(),
                name: "archiving".to_owned(),
                level,
                since: Timestamp::from_second(1_700_000_000).unwrap(),
                worst,
            };
            store.change_condition(condition.clone(), Vec::new()).await.unwrap();
            assert_eq!(store.conditions().await.unwrap(), [condition]);
        }
    }
}
