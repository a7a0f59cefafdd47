//! Answers kept for `Idempotency-Key`.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::rows::during;
use super::{Store, StoreError};
use crate::domain::job::JobId;

/// How long an answer is kept.
const KEPT: Duration = Duration::from_hours(24);

/// An answer that can be given again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The `Location` header, when there was one.
    pub location: Option<String>,
    /// The JSON body.
    pub body: String,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Nobody used it; it is the caller's now.
    Fresh,
    /// The same request is still being answered.
    InProgress,
    /// Another request used it.
    Mismatch,
    /// The same request was answered with this.
    Answered(StoredAnswer),
}

impl Store {
    /// Claims a key for a request with this fingerprint.
    pub async fn claim_key(
        &self,
        key: String,
        fingerprint: String,
        now: Timestamp,
    ) -> Result<Claim, StoreError> {
        self.write(move |connection| {
            let failed = during("claim an idempotency key");
            let oldest = now.as_microsecond() - i64::try_from(KEPT.as_micros()).unwrap_or(i64::MAX);
            connection
                .execute("DELETE FROM idempotency WHERE created_at < ?1", [oldest])
                .map_err(&failed)?;
            let known = connection
                .query_row(
                    "SELECT fingerprint, status, location, body FROM idempotency WHERE key = ?1",
                    [&key],
                    |row| {
                        let status: Option<u16> = row.get(1)?;
                        let body: Option<String> = row.get(3)?;
                        let location = row.get(2)?;
                        let answer = status.zip(body).map(|(status, body)| StoredAnswer {
                            status,
                            location,
                            body,
                        });
                        Ok((row.get::<_, String>(0)?, answer))
                    },
                )
                .optional()
                .map_err(&failed)?;
            Ok(match known {
                None => {
                    connection
                        .execute(
                            "INSERT INTO idempotency (key, fingerprint, created_at) VALUES (?1, \
                             ?2, ?3)",
                            params![key, fingerprint, now.as_microsecond()],
                        )
                        .map_err(&failed)?;
                    Claim::Fresh
                }
                Some((first, _)) if first != fingerprint => Claim::Mismatch,
                Some((_, None)) => Claim::InProgress,
                Some((_, Some(answer))) => Claim::Answered(answer),
            })
        })
        .await
    }

    /// Keeps the answer to the request that claimed the key; without one the key is free again.
    pub async fn settle_key(
        &self,
        key: String,
        answer: Option<StoredAnswer>,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("keep an answer");
            match answer {
                Some(answer) => connection.execute(
                    "UPDATE idempotency SET status = ?2, location = ?3, body = ?4 WHERE key = ?1",
                    params![key, answer.status, answer.location, answer.body],
                ),
                // A key whose request made a job stays taken, whatever became of the answer.
                None => connection.execute(
                    "DELETE FROM idempotency WHERE key = ?1 AND NOT EXISTS (SELECT 1 FROM jobs \
                     WHERE idempotency_key = ?1)",
                    [key],
                ),
            }
            .map(drop)
            .map_err(failed)
        })
        .await
    }

    /// Keys that were claimed and never settled, because Headrest ended in between, each with the
    /// job that its request had made by then.
    pub async fn unsettled_keys(&self) -> Result<Vec<(String, Option<JobId>)>, StoreError> {
        self.read(|connection| {
            let failed = during("read unsettled idempotency keys");
            let mut statement = connection
                .prepare(
                    "SELECT i.key, j.id FROM idempotency i LEFT JOIN jobs j ON j.idempotency_key = \
                     i.key WHERE i.status IS NULL",
                )
                .map_err(&failed)?;
            let rows = statement
                .query_map([], |row| Ok((row.get(0)?, row.get::<_, Option<String>>(1)?)))
                .map_err(&failed)?;
            rows.map(|row| {
                row.map(|(key, id)| (key, id.and_then(|id| id.parse().ok()))).map_err(&failed)
            })
            .collect()
        })
        .await
    }
}
