//! Who did what that should be answered for: restores, promotions, what was accepted.

use jiff::Timestamp;
use rusqlite::params;

use super::rows::{column, during, time};
use super::{Store, StoreError};

/// A deed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// Grows from deed to deed.
    pub id: i64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// What, e.g. `restore.promote`.
    pub action: String,
    /// To what: a stanza, a restore.
    pub subject: String,
    /// With which parameters.
    pub detail: String,
}

impl Store {
    /// Writes a deed down.
    pub async fn audit(
        &self,
        at: Timestamp,
        by: String,
        action: &'static str,
        subject: String,
        detail: String,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "INSERT INTO audit (at, by_whom, action, subject, detail) VALUES (?1, ?2, ?3, \
                     ?4, ?5)",
                    params![at.as_microsecond(), by, action, subject, detail],
                )
                .map(drop)
                .map_err(during("write a deed down"))
        })
        .await
    }

    /// Deeds before the one with id `before`, newest first.
    pub async fn deeds(&self, before: Option<i64>, limit: u32) -> Result<Vec<Deed>, StoreError> {
        self.read(move |connection| {
            let failed = during("read deeds");
            let mut statement = connection
                .prepare_cached(
                    "SELECT id, at, by_whom, action, subject, detail FROM audit WHERE ?1 IS NULL \
                     OR id < ?1 ORDER BY id DESC LIMIT ?2",
                )
                .map_err(&failed)?;
            let mut rows = statement.query(params![before, limit]).map_err(&failed)?;
            let mut deeds = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                deeds.push(Deed {
                    id: column(row, "id")?,
                    at: time(row, "at")?,
                    by: column(row, "by_whom")?,
                    action: column(row, "action")?,
                    subject: column(row, "subject")?,
                    detail: column(row, "detail")?,
                });
            }
            Ok(deeds)
        })
        .await
    }
}
