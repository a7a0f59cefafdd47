//! Notifications that wait to be delivered, in order for each target. One that does not arrive while
//! others do is put aside; then the order is kept among those about the same subject only.
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
    /// How many of the last of them the receiver refused, in a row.
    pub refusals: u32,
    /// Since when it does.
    pub refused_since: Option<Timestamp>,
    /// When to try next.
    pub due_at: Timestamp,
}

/// Which notification of those that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The next in order. One that others were put behind of is not in it, nor is what follows
    /// that one about the same subject.
    Next,
    /// Of those that were put aside, the one that is due first.
    Aside,
    /// One about another subject than all before it, to find out whether only the one of this id
    /// does not arrive; of these the one that was tried least.
    Behind(i64),
}

/// A notification that was found.
#[derive(Debug)]
pub struct Found {
    /// Its place in the order.
    pub id: i64,
    /// It, or why it cannot be read: then it never will.
    pub notice: Result<Notice, StoreError>,
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
    /// Since when the oldest of them does.
    pub oldest_at: Option<Timestamp>,
    /// Notifications that were given up.
    pub given_up: u32,
    /// When the last of them was.
    pub given_up_at: Option<Timestamp>,
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

    /// A notification that waits for a target.
    pub async fn waiting(&self, target: String, which: Which) -> Result<Option<Found>, StoreError> {
        self.read(move |connection| {
            let failed = during("read the next notification");
            let (condition, order, after) = match which {
                Which::Next => (format!("aside = 0 AND {}", not_after("e.aside = 1")), "id", 0),
                Which::Aside => ("aside = 1".to_owned(), "due_at, id", 0),
                Which::Behind(id) => {
                    (format!("aside = 0 AND {}", not_after("1")), "attempts, id", id)
                }
            };
            let sql = format!(
                "SELECT id, delivery, event, created_at, repeats, attempts, refusals, \
                 refused_since, due_at FROM outbox AS o WHERE target = ?1 AND given_up = 0 AND id > \
                 ?2 AND {condition} ORDER BY {order} LIMIT 1"
            );
            connection
                .prepare_cached(&sql)
                .map_err(&failed)?
                .query_row(params![target, after], |row| {
                    Ok(Found { id: row.get("id")?, notice: notice_of(row) })
                })
                .optional()
                .map_err(&failed)
        })
        .await
    }

    /// A notification does not arrive while others do: those do not wait for it any more, unless
    /// they are about the same.
    pub async fn put_aside(&self, id: i64) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute("UPDATE outbox SET aside = 1 WHERE id = ?1", [id])
                .map(drop)
                .map_err(during("put a notification aside"))
        })
        .await
    }

    /// A notification was delivered, as `notice` says. What happened again meanwhile is told as
    /// another one, of the id `again`.
    pub async fn notice_delivered(
        &self,
        notice: &Notice,
        target: String,
        again: String,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let (id, repeats) = (notice.id, notice.repeats);
        self.write(move |connection| {
            let failed = during("note a delivery");
            let transaction = connection.transaction().map_err(&failed)?;
            let gone = transaction
                .execute("DELETE FROM outbox WHERE id = ?1 AND repeats = ?2", [id, repeats.into()])
                .map_err(&failed)?;
            if gone == 0 {
                transaction
                    .execute(
                        "UPDATE outbox SET delivery = ?3, repeats = repeats - ?2 - 1, created_at = \
                         ?4, due_at = ?4, attempts = 0, refusals = 0, refused_since = NULL, aside = \
                         0, error = NULL WHERE id = ?1",
                        params![id, repeats, again, at.as_microsecond()],
                    )
                    .map_err(&failed)?;
            }
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
                    "UPDATE outbox SET attempts = attempts + 1, refusals = CASE WHEN :refused THEN \
                     refusals + 1 ELSE 0 END, refused_since = CASE WHEN :refused THEN \
                     coalesce(refused_since, :at) END, due_at = coalesce(:due, due_at), given_up = \
                     :due IS NULL, given_up_at = CASE WHEN :due IS NULL THEN :at END, error = \
                     :error WHERE id = :id",
                    named_params! {
                        ":at": attempt.at.as_microsecond(),
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
                    "SELECT target, sum(given_up = 0) AS waiting, sum(given_up) AS given_up, min(CASE \
                     WHEN given_up = 0 THEN created_at END) AS oldest_at, max(given_up_at) AS \
                     given_up_at FROM outbox GROUP BY target",
                )
                .map_err(&failed)?;
            let mut rows = statement.query([]).map_err(&failed)?;
            while let Some(row) = rows.next().map_err(&failed)? {
                let record = records.entry(column(row, "target")?).or_default();
                record.waiting = column(row, "waiting")?;
                record.given_up = column(row, "given_up")?;
                record.oldest_at = time_if_any(row, "oldest_at")?;
                record.given_up_at = time_if_any(row, "given_up_at")?;
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

/// The condition that no earlier notification about the same subject waits, of those that `which`
/// is true for.
fn not_after(which: &str) -> String {
    format!(
        "NOT EXISTS (SELECT 1 FROM outbox AS e WHERE e.target = o.target AND e.given_up = 0 AND \
         e.subject = o.subject AND e.stanza IS o.stanza AND e.id < o.id AND {which})"
    )
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
        refused_since: time_if_any(row, "refused_since")?,
        due_at: time(row, "due_at")?,
    })
}

#[cfg(test)]
mod tests;
