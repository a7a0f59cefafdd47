//! Schedules made through the API, where each schedule stands, and what became of its moments.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::rows::{column, during, json, parsed, time, time_if_any, to_json};
use super::{Store, StoreError};
use crate::domain::job::{Job, Trigger};
use crate::domain::schedule::run::{Slots, State, Told, Verdict};
use crate::domain::schedule::{Schedule, ScheduleName};

/// Verdicts kept of each schedule.
const KEPT: u32 = 500;

/// A schedule that was made through the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSchedule {
    /// The schedule.
    pub schedule: Schedule,
    /// Grows with every change.
    pub version: u32,
}

/// What became of some moments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVerdict {
    /// What, of which, and why.
    pub told: Told,
    /// When it was decided.
    pub at: Timestamp,
}

/// What a schedule has missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missed {
    /// How many moments, ever.
    pub total: u64,
    /// When the last one was found to be missed.
    pub last: Option<Timestamp>,
}

impl Store {
    /// The schedules that were made through the API; and the names of those that this version cannot
    /// read, with the reason.
    pub async fn schedules(
        &self,
    ) -> Result<(Vec<StoredSchedule>, Vec<(String, String)>), StoreError> {
        self.read(|connection| {
            let failed = during("read schedules");
            let mut statement = connection
                .prepare_cached("SELECT name, spec, version FROM schedules ORDER BY name")
                .map_err(&failed)?;
            let mut rows = statement.query([]).map_err(&failed)?;
            let (mut found, mut unreadable) = (Vec::new(), Vec::new());
            while let Some(row) = rows.next().map_err(&failed)? {
                match json(row, "spec") {
                    Ok(schedule) => {
                        found.push(StoredSchedule { schedule, version: column(row, "version")? });
                    }
                    Err(error) => unreadable.push((column(row, "name")?, error.to_string())),
                }
            }
            Ok((found, unreadable))
        })
        .await
    }

    /// Forgets where schedules stood that there are not any more: when one comes back, what it did
    /// not do meanwhile was not missed.
    pub async fn keep_schedule_states(&self, names: Vec<String>) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("forget where schedules stood");
            connection
                .execute(
                    "DELETE FROM schedule_states WHERE name NOT IN (SELECT value FROM \
                     json_each(?1))",
                    [to_json(&names)],
                )
                .map(drop)
                .map_err(&failed)
        })
        .await
    }

    /// Keeps a schedule, and where it stands from now on.
    pub async fn keep_schedule(
        &self,
        stored: StoredSchedule,
        timing: String,
        state: State,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("keep a schedule");
            let name = stored.schedule.name.as_str();
            let transaction = connection.transaction().map_err(&failed)?;
            transaction
                .execute(
                    "INSERT INTO schedules (name, spec, version, updated_at) VALUES (?1, ?2, ?3, \
                     ?4) ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, version = \
                     excluded.version, updated_at = excluded.updated_at",
                    params![name, to_json(&stored.schedule), stored.version, now.as_microsecond()],
                )
                .map_err(&failed)?;
            put_state(&transaction, name, &timing, &state)?;
            transaction.commit().map_err(&failed)
        })
        .await
    }

    /// Forgets a schedule, where it stood and what became of its moments.
    pub async fn forget_schedule(&self, name: ScheduleName) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("forget a schedule");
            let transaction = connection.transaction().map_err(&failed)?;
            for table in ["schedules", "schedule_states", "schedule_verdicts"] {
                transaction
                    .execute(&format!("DELETE FROM {table} WHERE name = ?1"), [name.as_str()])
                    .map_err(&failed)?;
            }
            transaction.commit().map_err(&failed)
        })
        .await
    }

    /// Where a schedule stands, and the expression and zone that that is about.
    pub async fn schedule_state(
        &self,
        name: ScheduleName,
    ) -> Result<Option<(State, String)>, StoreError> {
        self.read(move |connection| {
            let failed = during("read where a schedule stands");
            connection
                .prepare_cached("SELECT state, timing FROM schedule_states WHERE name = ?1")
                .map_err(&failed)?
                .query_row([name.as_str()], |row| {
                    Ok(json(row, "state").and_then(|state| Ok((state, column(row, "timing")?))))
                })
                .optional()
                .map_err(&failed)?
                .transpose()
        })
        .await
    }

    /// Writes down where a schedule stands and what became of moments, as one transaction.
    pub async fn schedule_turn(
        &self,
        name: ScheduleName,
        timing: String,
        state: State,
        told: Vec<Told>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("write down where a schedule stands");
            let name = name.as_str();
            let transaction = connection.transaction().map_err(&failed)?;
            put_state(&transaction, name, &timing, &state)?;
            for Told { verdict, slots, reason } in &told {
                let (first, last) = (slots.first.as_microsecond(), slots.last.as_microsecond());
                transaction
                    .execute(
                        "INSERT INTO schedule_verdicts (name, verdict, first, last, count, reason, \
                         at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                        params![
                            name,
                            verdict.as_str(),
                            first,
                            last,
                            i64::try_from(slots.count).unwrap_or(i64::MAX),
                            reason,
                            now.as_microsecond()
                        ],
                    )
                    .map_err(&failed)?;
                if *verdict == Verdict::Missed {
                    transaction
                        .execute(
                            "UPDATE schedule_states SET missed_total = missed_total + ?2, \
                             last_missed_at = ?3 WHERE name = ?1",
                            params![
                                name,
                                i64::try_from(slots.count).unwrap_or(i64::MAX),
                                now.as_microsecond()
                            ],
                        )
                        .map_err(&failed)?;
                }
            }
            if !told.is_empty() {
                transaction
                    .execute(
                        "DELETE FROM schedule_verdicts WHERE name = ?1 AND id <= (SELECT id FROM \
                         schedule_verdicts WHERE name = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                        params![name, KEPT],
                    )
                    .map_err(&failed)?;
            }
            transaction.commit().map_err(&failed)
        })
        .await
    }

    /// What became of a schedule's moments, newest first.
    pub async fn schedule_verdicts(
        &self,
        name: ScheduleName,
        limit: u32,
    ) -> Result<Vec<StoredVerdict>, StoreError> {
        self.read(move |connection| {
            let failed = during("read what became of a schedule's moments");
            let mut statement = connection
                .prepare_cached(
                    "SELECT verdict, first, last, count, reason, at FROM schedule_verdicts WHERE \
                     name = ?1 ORDER BY id DESC LIMIT ?2",
                )
                .map_err(&failed)?;
            let mut rows = statement.query(params![name.as_str(), limit]).map_err(&failed)?;
            let mut found = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                let count: i64 = column(row, "count")?;
                let slots = Slots {
                    first: time(row, "first")?,
                    last: time(row, "last")?,
                    count: u64::try_from(count).unwrap_or_default(),
                };
                let told = Told {
                    verdict: parsed(row, "verdict")?,
                    slots,
                    reason: column(row, "reason")?,
                };
                found.push(StoredVerdict { told, at: time(row, "at")? });
            }
            Ok(found)
        })
        .await
    }

    /// What a schedule has missed.
    pub async fn missed_moments(&self, name: ScheduleName) -> Result<Missed, StoreError> {
        self.read(move |connection| {
            let found = connection
                .prepare_cached(
                    "SELECT missed_total, last_missed_at FROM schedule_states WHERE name = ?1",
                )
                .and_then(|mut statement| {
                    statement
                        .query_row([name.as_str()], |row| {
                            let total: i64 = row.get("missed_total")?;
                            let total = u64::try_from(total).unwrap_or_default();
                            Ok(time_if_any(row, "last_missed_at")
                                .map(|last| Missed { total, last }))
                        })
                        .optional()
                })
                .map_err(during("read what was missed"))?;
            found.transpose().map(Option::unwrap_or_default)
        })
        .await
    }

    /// The newest jobs of a trigger, newest first.
    pub async fn jobs_of(&self, trigger: Trigger, limit: u32) -> Result<Vec<Job>, StoreError> {
        self.jobs_where("origin = ?1", trigger.to_string(), limit).await
    }

    /// The job that was accepted under an idempotency key.
    pub async fn job_with_key(&self, key: String) -> Result<Option<Job>, StoreError> {
        Ok(self.jobs_where("idempotency_key = ?1", key, 1).await?.pop())
    }
}

fn put_state(
    connection: &rusqlite::Connection,
    name: &str,
    timing: &str,
    state: &State,
) -> Result<(), StoreError> {
    connection
        .execute(
            "INSERT INTO schedule_states (name, timing, state) VALUES (?1, ?2, ?3) ON CONFLICT \
             (name) DO UPDATE SET timing = excluded.timing, state = excluded.state",
            params![name, timing, to_json(state)],
        )
        .map(drop)
        .map_err(during("write down where a schedule stands"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_missed_is_counted_beyond_what_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("t.db")).unwrap();
        let name: ScheduleName = "nightly".parse().unwrap();
        assert_eq!(store.missed_moments(name.clone()).await.unwrap(), Missed::default());
        let at = |second| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let told = |verdict, second, count| Told {
            verdict,
            slots: Slots { first: at(second), last: at(second), count },
            reason: String::new(),
        };
        let mut second = 0;
        for verdict in [Verdict::Missed, Verdict::Run] {
            let all = (0..=i64::from(KEPT)).map(|n| told(verdict, n, 2)).collect();
            second += 1;
            let state = State::new(at(0));
            store.schedule_turn(name.clone(), "t".into(), state, all, at(second)).await.unwrap();
        }
        let missed = store.missed_moments(name.clone()).await.unwrap();
        assert_eq!(missed, Missed { total: 2 * (u64::from(KEPT) + 1), last: Some(at(1)) });
        assert!(
            store
                .schedule_verdicts(name, 1000)
                .await
                .unwrap()
                .iter()
                .all(|verdict| { verdict.told.verdict == Verdict::Run })
        );
    }
}
