//! Notifications that wait to be delivered, in order for each target.
//!
//! A row is stored with what it tells of, and leaves when it was delivered. Of each target a
//! bounded number is kept; the oldest goes first.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction, named_params, params};

use super::rows::{column, during, json, time, time_if_any, to_json};
use super::{Store, StoreError};
use crate::domain::event::Event;

/// The most notifications that wait for one target.
pub const MOST_WAITING: u32 = 10_000;
/// The most that were given up and are kept, of one target.
const MOST_GIVEN_UP: u32 = 1000;

/// A notification to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNotice {
    /// Its id for the receiver, the same over all attempts.
    pub delivery: String,
    /// For whom.
    pub target: String,
    /// When it was made.
    pub at: Timestamp,
    /// What it tells.
    pub event: Event,
}

/// A notification that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Its place in the order.
    pub id: i64,
    /// Its id for the receiver.
    pub delivery: String,
    /// What it tells.
    pub event: Event,
    /// Since when it waits.
    pub created_at: Timestamp,
    /// How often the same happened again since.
    pub repeats: u32,
    /// Failed attempts.
    pub attempts: u32,
    /// How many of them the receiver refused.
    pub refusals: u32,
    /// When to try next.
    pub due_at: Timestamp,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedAttempt {
    /// The notification's place in the order.
    pub id: i64,
    /// For whom it was.
    pub target: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub error: String,
    /// Whether the receiver refused it.
    pub refused: bool,
    /// When to try again; never when not given.
    pub due_at: Option<Timestamp>,
}

/// How a target did last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetRecord {
    /// When something was last delivered.
    pub delivered_at: Option<Timestamp>,
    /// When an attempt last failed.
    pub failed_at: Option<Timestamp>,
    /// Why.
    pub error: Option<String>,
    /// Notifications that wait.
    pub waiting: u32,
    /// Notifications that were given up.
    pub given_up: u32,
}

impl Store {
    /// Adds notifications.
    pub async fn add_notices(&self, notices: Vec<NewNotice>) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("add notifications");
            let transaction = connection.transaction().map_err(&failed)?;
            insert_outbox(&transaction, &notices)?;
            transaction.commit().map_err(&failed)
        })
        .await
    }

    /// Adds the notifications of all job events up to `cursor`, and moves the cursor there, as one
    /// transaction: however often Headrest ends in between, each event is told once.
    pub async fn add_job_notices(
        &self,
        notices: Vec<NewNotice>,
        cursor: i64,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("add notifications of jobs");
            let transaction = connection.transaction().map_err(&failed)?;
            insert_outbox(&transaction, &notices)?;
            transaction
                .execute("UPDATE outbox_cursor SET event_id = ?1", [cursor])
                .map_err(&failed)?;
            transaction.commit().map_err(&failed)
        })
        .await
    }

    /// Up to which event of jobs notifications were made; the newest one when there was no cursor.
    pub async fn job_cursor(&self) -> Result<i64, StoreError> {
        self.write(|connection| {
            let failed = during("find where notifications of jobs go on");
            connection
                .execute(
                    "INSERT OR IGNORE INTO outbox_cursor (only_one, event_id) SELECT 1, \
                     coalesce(max(id), 0) FROM events",
                    [],
                )
                .map_err(&failed)?;
            connection
                .query_row("SELECT event_id FROM outbox_cursor", [], |row| row.get(0))
                .map_err(&failed)
        })
        .await
    }

    /// Forgets what waits for targets that are not named any more, and, when there are none at
    /// all, up to where notifications of jobs were made. Answers how many were forgotten.
    pub async fn keep_targets(&self, names: Vec<String>) -> Result<usize, StoreError> {
        self.write(move |connection| {
            let failed = during("forget targets");
            let transaction = connection.transaction().map_err(&failed)?;
            let names_json = to_json(&names);
            let forgotten = transaction
                .execute(
                    "DELETE FROM outbox WHERE target NOT IN (SELECT value FROM json_each(?1))",
                    [&names_json],
                )
                .map_err(&failed)?;
            transaction
                .execute(
                    "DELETE FROM outbox_targets WHERE target NOT IN (SELECT value FROM \
                     json_each(?1))",
                    [&names_json],
                )
                .map_err(&failed)?;
            if names.is_empty() {
                transaction.execute("DELETE FROM outbox_cursor", []).map_err(&failed)?;
            }
            transaction.commit().map_err(&failed)?;
            Ok(forgotten)
        })
        .await
    }

    /// The notification that a target is to get next.
    pub async fn next_notice(&self, target: String) -> Result<Option<Notice>, StoreError> {
        self.read(move |connection| {
            let failed = during("read the next notification");
            connection
                .prepare_cached(
                    "SELECT id, delivery, event, created_at, repeats, attempts, refusals, due_at \
                     FROM outbox WHERE target = ?1 AND given_up = 0 ORDER BY id LIMIT 1",
                )
                .map_err(&failed)?
                .query_row([target], |row| Ok(notice_of(row)))
                .optional()
                .map_err(&failed)?
                .transpose()
        })
        .await
    }

    /// A notification was delivered.
    pub async fn notice_delivered(
        &self,
        id: i64,
        target: String,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("note a delivery");
            let transaction = connection.transaction().map_err(&failed)?;
            transaction.execute("DELETE FROM outbox WHERE id = ?1", [id]).map_err(&failed)?;
            note_delivery(&transaction, &target, at)?;
            transaction.commit().map_err(&failed)
        })
        .await
    }

    /// Something was delivered to a target that did not wait here: a test.
    pub async fn target_reached(&self, target: String, at: Timestamp) -> Result<(), StoreError> {
        self.write(move |connection| note_delivery(connection, &target, at)).await
    }

    /// A notification was not delivered.
    pub async fn notice_failed(&self, attempt: FailedAttempt) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("note a failed delivery");
            let transaction = connection.transaction().map_err(&failed)?;
            transaction
                .execute(
                    "UPDATE outbox SET attempts = attempts + 1, refusals = refusals + :refused, \
                     due_at = coalesce(:due, due_at), given_up = :due IS NULL, error = :error \
                     WHERE id = :id",
                    named_params! {
                        ":refused": attempt.refused,
                        ":due": attempt.due_at.map(Timestamp::as_microsecond),
                        ":error": attempt.error,
                        ":id": attempt.id,
                    },
                )
                .map_err(&failed)?;
            transaction
                .execute(
                    "INSERT INTO outbox_targets (target, failed_at, error) VALUES (?1, ?2, ?3) ON \
                     CONFLICT (target) DO UPDATE SET failed_at = excluded.failed_at, error = \
                     excluded.error",
                    params![attempt.target, attempt.at.as_microsecond(), attempt.error],
                )
                .map_err(&failed)?;
            if attempt.due_at.is_none() {
                drop_oldest(&transaction, &attempt.target, true, MOST_GIVEN_UP)?;
            }
            transaction.commit().map_err(&failed)
        })
        .await
    }

    /// How every target did that something was ever stored for.
    pub async fn target_records(&self) -> Result<BTreeMap<String, TargetRecord>, StoreError> {
        self.read(|connection| {
            let failed = during("read how targets did");
            let mut records: BTreeMap<String, TargetRecord> = BTreeMap::new();
            let mut statement = connection
                .prepare_cached("SELECT target, delivered_at, failed_at, error FROM outbox_targets")
                .map_err(&failed)?;
            let mut rows = statement.query([]).map_err(&failed)?;
            while let Some(row) = rows.next().map_err(&failed)? {
                let record = records.entry(column(row, "target")?).or_default();
                record.delivered_at = time_if_any(row, "delivered_at")?;
                record.failed_at = time_if_any(row, "failed_at")?;
                record.error = column(row, "error")?;
            }
            let mut statement = connection
                .prepare_cached(
                    "SELECT target, sum(given_up = 0) AS waiting, sum(given_up) AS given_up FROM \
                     outbox GROUP BY target",
                )
                .map_err(&failed)?;
            let mut rows = statement.query([]).map_err(&failed)?;
            while let Some(row) = rows.next().map_err(&failed)? {
                let record = records.entry(column(row, "target")?).or_default();
                record.waiting = column(row, "waiting")?;
                record.given_up = column(row, "given_up")?;
            }
            Ok(records)
        })
        .await
    }
}

/// Adds notifications within a transaction of somebody whose change they tell of. Where the last
/// one that waits about the same subject says the same, that one is counted up instead: with
/// something else in between, what happens again must be told again, or the last word that the
/// receiver hears would be a wrong one.
pub(super) fn insert_outbox(
    transaction: &Transaction<'_>,
    notices: &[NewNotice],
) -> Result<(), StoreError> {
    let failed = during("add a notification");
    for NewNotice { delivery, target, at, event } in notices {
        let stanza = event.stanza.as_ref().map(|stanza| stanza.as_str());
        let last: Option<(i64, String, String)> = transaction
            .prepare_cached(
                "SELECT id, kind, severity FROM outbox WHERE target = ?1 AND subject = ?2 AND \
                 stanza IS ?3 AND given_up = 0 ORDER BY id DESC LIMIT 1",
            )
            .map_err(&failed)?
            .query_row(params![target, event.subject, stanza], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()
            .map_err(&failed)?;
        if let Some((id, kind, severity)) = last
            && kind == event.kind.as_str()
            && severity == event.severity.as_str()
        {
            transaction
                .execute("UPDATE outbox SET repeats = repeats + 1 WHERE id = ?1", [id])
                .map_err(&failed)?;
            continue;
        }
        transaction
            .execute(
                "INSERT INTO outbox (delivery, target, kind, severity, stanza, subject, event, \
                 created_at, due_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
                params![
                    delivery,
                    target,
                    event.kind.as_str(),
                    event.severity.as_str(),
                    stanza,
                    event.subject,
                    to_json(event),
                    at.as_microsecond(),
                ],
            )
            .map_err(&failed)?;
    }
    let targets: BTreeSet<&String> = notices.iter().map(|notice| &notice.target).collect();
    for target in targets {
        let dropped = drop_oldest(transaction, target, false, MOST_WAITING)?;
        if dropped > 0 {
            tracing::error!(
                notify.target = %target,
                "more than {MOST_WAITING} notifications wait for {target}: the oldest {dropped} \
                 are dropped"
            );
        }
    }
    Ok(())
}

/// Keeps the newest of a target's notifications. Answers how many went.
fn drop_oldest(
    transaction: &Transaction<'_>,
    target: &str,
    given_up: bool,
    keep: u32,
) -> Result<usize, StoreError> {
    transaction
        .prepare_cached(
            "DELETE FROM outbox WHERE target = ?1 AND given_up = ?2 AND id <= (SELECT id FROM \
             outbox WHERE target = ?1 AND given_up = ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3)",
        )
        .and_then(|mut statement| statement.execute(params![target, given_up, keep]))
        .map_err(during("drop the oldest notifications"))
}

fn note_delivery(
    connection: &rusqlite::Connection,
    target: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    connection
        .execute(
            "INSERT INTO outbox_targets (target, delivered_at) VALUES (?1, ?2) ON CONFLICT \
             (target) DO UPDATE SET delivered_at = excluded.delivered_at",
            params![target, at.as_microsecond()],
        )
        .map(drop)
        .map_err(during("note a delivery"))
}

fn notice_of(row: &Row<'_>) -> Result<Notice, StoreError> {
    Ok(Notice {
        id: column(row, "id")?,
        delivery: column(row, "delivery")?,
        event: json(row, "event")?,
        created_at: time(row, "created_at")?,
        repeats: column(row, "repeats")?,
        attempts: column(row, "attempts")?,
        refusals: column(row, "refusals")?,
        due_at: time(row, "due_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::{EventKind, Severity};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn notice(number: i64, kind: EventKind, subject: &str) -> NewNotice {
        let event = Event::new(kind, at(number), subject.to_owned(), "something");
        NewNotice { delivery: number.to_string(), target: "ops".into(), at: at(number), event }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("t.db")).unwrap();
        (directory, store)
    }

    async fn drain(store: &Store) -> Vec<(String, u32)> {
        let mut told = Vec::new();
        while let Some(next) = store.next_notice("ops".into()).await.unwrap() {
            told.push((next.event.kind.to_string(), next.repeats));
            store.notice_delivered(next.id, "ops".into(), at(99)).await.unwrap();
        }
        told
    }

    #[tokio::test]
    async fn the_same_again_is_counted_unless_something_else_was_between() {
        use EventKind::{WalFailing, WalRecovered};
        let (_directory, store) = store();
        let mut other_stanza = notice(6, WalFailing, "wal");
        other_stanza.event.stanza = Some("b".parse().unwrap());
        let mut worse = notice(7, WalFailing, "wal");
        worse.event.severity = Severity::Info;
        let notices = vec![
            notice(1, WalFailing, "wal"),
            notice(2, WalFailing, "wal"),
            notice(3, WalFailing, "another"),
            notice(4, WalRecovered, "wal"),
            notice(5, WalFailing, "wal"),
            other_stanza,
            worse,
        ];
        store.add_notices(notices).await.unwrap();
        let told = drain(&store).await;
        let told: Vec<_> = told.iter().map(|(kind, repeats)| (kind.as_str(), *repeats)).collect();
        let expect = [
            ("wal.failing", 1),
            ("wal.failing", 0),
            ("wal.recovered", 0),
            ("wal.failing", 0),
            ("wal.failing", 0),
            ("wal.failing", 0),
        ];
        assert_eq!(told, expect);
        store.add_notices(vec![notice(8, WalFailing, "wal")]).await.unwrap();
        assert_eq!(drain(&store).await.len(), 1, "delivered ones do not count");
    }

    #[tokio::test]
    async fn the_oldest_goes_when_there_are_too_many() {
        let (_directory, store) = store();
        let more = i64::from(MOST_WAITING) + 2;
        let notices: Vec<_> = (0..more)
            .map(|number| notice(number, EventKind::BackupFailed, &number.to_string()))
            .collect();
        store.add_notices(notices).await.unwrap();
        let first = store.next_notice("ops".into()).await.unwrap().unwrap();
        assert_eq!(first.delivery, "2");
        let records = store.target_records().await.unwrap();
        assert_eq!(records["ops"].waiting, MOST_WAITING);
    }

    #[tokio::test]
    async fn attempts_are_counted_and_a_given_up_one_stands_in_nobodys_way() {
        let (_directory, store) = store();
        let both = [1, 2].map(|n| notice(n, EventKind::BackupFailed, &n.to_string()));
        store.add_notices(both.to_vec()).await.unwrap();
        let mut failed = FailedAttempt {
            id: store.next_notice("ops".into()).await.unwrap().unwrap().id,
            target: "ops".into(),
            at: at(3),
            error: "answered 500".into(),
            refused: false,
            due_at: Some(at(8)),
        };
        store.notice_failed(failed.clone()).await.unwrap();
        let next = store.next_notice("ops".into()).await.unwrap().unwrap();
        assert_eq!((next.delivery.as_str(), next.attempts, next.refusals), ("1", 1, 0));
        assert_eq!((next.due_at, next.created_at), (at(8), at(1)));
        (failed.refused, failed.due_at) = (true, None);
        store.notice_failed(failed).await.unwrap();
        let next = store.next_notice("ops".into()).await.unwrap().unwrap();
        assert_eq!(next.delivery, "2");
        let record = store.target_records().await.unwrap().remove("ops").unwrap();
        assert_eq!((record.waiting, record.given_up), (1, 1));
        assert_eq!(record.error.as_deref(), Some("answered 500"));
    }

    #[tokio::test]
    async fn targets_that_are_not_configured_any_more_are_forgotten() {
        let (_directory, store) = store();
        store.add_notices(vec![notice(1, EventKind::WalGap, "wal")]).await.unwrap();
        assert_eq!(store.keep_targets(vec!["ops".into()]).await.unwrap(), 0);
        assert_eq!(store.keep_targets(vec!["other".into()]).await.unwrap(), 1);
        assert!(store.next_notice("ops".into()).await.unwrap().is_none());
    }
}
