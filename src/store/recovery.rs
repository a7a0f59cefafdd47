//! Known commits, restore points, timelines, and the journals of restores.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

use super::rows::{column, during, json, parsed, time, to_json};
use super::{Store, StoreError};
use crate::domain::plan::{RestorePoint, Sample};
use crate::domain::restore::Journal;
use crate::domain::{JobId, Lsn, StanzaName, Timeline};

/// For how long every known commit is kept; of older ones one in ten minutes.
const KEPT_WHOLE: Duration = Duration::from_hours(7 * 24);
const THINNED_TO: Duration = Duration::from_mins(10);

impl Store {
    /// Remembers a commit.
    pub async fn add_commit(&self, stanza: StanzaName, sample: Sample) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "INSERT INTO commits (stanza, timeline, at, lsn, xid) VALUES (?1, ?2, ?3, ?4, \
                     ?5)",
                    params![
                        stanza.as_str(),
                        sample.timeline.get(),
                        sample.at.as_microsecond(),
                        stored(sample.lsn.get()),
                        stored(sample.xid),
                    ],
                )
                .map(drop)
                .map_err(during("remember a commit"))
        })
        .await
    }

    /// The commits since `from`, in order of time.
    pub async fn commits(
        &self,
        stanza: StanzaName,
        from: Timestamp,
    ) -> Result<Vec<Sample>, StoreError> {
        self.read(move |connection| {
            let failed = during("read known commits");
            let mut statement = connection
                .prepare_cached(
                    "SELECT timeline, at, lsn, xid FROM commits WHERE stanza = ?1 AND at >= ?2 \
                     ORDER BY at",
                )
                .map_err(&failed)?;
            let mut rows = statement
                .query(params![stanza.as_str(), from.as_microsecond()])
                .map_err(&failed)?;
            let mut samples = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                samples.push(Sample {
                    timeline: timeline(row)?,
                    at: time(row, "at")?,
                    lsn: Lsn::new(read(column(row, "lsn")?)),
                    xid: read(column(row, "xid")?),
                });
            }
            Ok(samples)
        })
        .await
    }

    /// Forgets commits before `oldest`, and thins those that are older than a week.
    pub async fn prune_commits(
        &self,
        stanza: StanzaName,
        oldest: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            let failed = during("forget old commits");
            let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
            if let Some(oldest) = oldest {
                connection
                    .execute(
                        "DELETE FROM commits WHERE stanza = ?1 AND at < ?2",
                        params![stanza.as_str(), oldest.as_microsecond()],
                    )
                    .map_err(&failed)?;
            }
            let week = now.as_microsecond().saturating_sub(micros(KEPT_WHOLE));
            connection
                .execute(
                    // The last of a timeline is the last of its slot too, so it stays.
                    "DELETE FROM commits WHERE stanza = ?1 AND at < ?2 AND rowid NOT IN (SELECT \
                     max(rowid) FROM commits WHERE stanza = ?1 AND at < ?2 GROUP BY timeline, at / \
                     ?3)",
                    params![stanza.as_str(), week, micros(THINNED_TO)],
                )
                .map(drop)
                .map_err(&failed)
        })
        .await
    }

    /// Remembers a restore point. `false` when its name is taken.
    pub async fn add_restore_point(
        &self,
        stanza: StanzaName,
        point: RestorePoint,
    ) -> Result<bool, StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "INSERT INTO restore_points (stanza, name, timeline, lsn, at) VALUES (?1, ?2, \
                     ?3, ?4, ?5) ON CONFLICT DO NOTHING",
                    params![
                        stanza.as_str(),
                        point.name.as_str(),
                        point.timeline.get(),
                        stored(point.lsn.get()),
                        point.at.as_microsecond(),
                    ],
                )
                .map(|rows| rows > 0)
                .map_err(during("remember a restore point"))
        })
        .await
    }

    /// The restore points, oldest first.
    pub async fn restore_points(
        &self,
        stanza: StanzaName,
    ) -> Result<Vec<RestorePoint>, StoreError> {
        self.read(move |connection| {
            let failed = during("read restore points");
            let mut statement = connection
                .prepare_cached(
                    "SELECT name, timeline, lsn, at FROM restore_points WHERE stanza = ?1 ORDER BY \
                     at",
                )
                .map_err(&failed)?;
            let mut rows = statement.query([stanza.as_str()]).map_err(&failed)?;
            let mut points = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                points.push(RestorePoint {
                    name: parsed(row, "name")?,
                    timeline: timeline(row)?,
                    lsn: Lsn::new(read(column(row, "lsn")?)),
                    at: time(row, "at")?,
                });
            }
            Ok(points)
        })
        .await
    }

    /// Remembers that this server is on a timeline since then; the first word counts.
    pub async fn add_timeline(
        &self,
        stanza: StanzaName,
        timeline: Timeline,
        born_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "INSERT INTO timelines (stanza, timeline, born_at) VALUES (?1, ?2, ?3) ON \
                     CONFLICT DO NOTHING",
                    params![stanza.as_str(), timeline.get(), born_at.as_microsecond()],
                )
                .map(drop)
                .map_err(during("remember a timeline"))
        })
        .await
    }

    /// The timelines that this server has been on, with the moment each began.
    pub async fn timelines(
        &self,
        stanza: StanzaName,
    ) -> Result<BTreeMap<Timeline, Timestamp>, StoreError> {
        self.read(move |connection| {
            let failed = during("read timelines");
            let mut statement = connection
                .prepare_cached("SELECT timeline, born_at FROM timelines WHERE stanza = ?1")
                .map_err(&failed)?;
            let mut rows = statement.query([stanza.as_str()]).map_err(&failed)?;
            let mut found = BTreeMap::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                found.insert(timeline(row)?, time(row, "born_at")?);
            }
            Ok(found)
        })
        .await
    }

    /// Keeps a copy of a restore's journal.
    pub async fn keep_journal(&self, journal: Journal) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "INSERT INTO restores (id, stanza, journal) VALUES (?1, ?2, ?3) ON CONFLICT \
                     (id) DO UPDATE SET journal = excluded.journal",
                    params![journal.id.to_string(), journal.stanza.as_str(), to_json(&journal)],
                )
                .map(drop)
                .map_err(during("keep a restore's journal"))
        })
        .await
    }

    /// The copy of a restore's journal, `None` for a restore that never began.
    pub async fn kept_journal(&self, id: JobId) -> Result<Option<Journal>, StoreError> {
        self.read(move |connection| {
            let failed = during("read a restore's journal");
            connection
                .prepare_cached("SELECT journal FROM restores WHERE id = ?1")
                .map_err(&failed)?
                .query_row([id.to_string()], |row| Ok(json(row, "journal")))
                .optional()
                .map_err(&failed)?
                .transpose()
        })
        .await
    }

    /// The copies of a stanza's journals of restores that were asked for since a moment, newest first.
    pub async fn journals_since(
        &self,
        stanza: StanzaName,
        since: Timestamp,
    ) -> Result<Vec<Journal>, StoreError> {
        self.journals(stanza, JobId::first_text_of(since), u32::MAX).await
    }

    /// The copies of a stanza's journals, newest first, at most so many.
    pub async fn kept_journals(
        &self,
        stanza: StanzaName,
        limit: u32,
    ) -> Result<Vec<Journal>, StoreError> {
        self.journals(stanza, String::new(), limit).await
    }

    /// The copies of journals whose id is `first` or comes after it.
    async fn journals(
        &self,
        stanza: StanzaName,
        first: String,
        limit: u32,
    ) -> Result<Vec<Journal>, StoreError> {
        self.read(move |connection| {
            let failed = during("read restores' journals");
            let mut statement = connection
                .prepare_cached(
                    "SELECT journal FROM restores WHERE stanza = ?1 AND id >= ?2 ORDER BY id DESC \
                     LIMIT ?3",
                )
                .map_err(&failed)?;
            let mut rows =
                statement.query(params![stanza.as_str(), first, limit]).map_err(&failed)?;
            let mut journals = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                journals.push(json(row, "journal")?);
            }
            Ok(journals)
        })
        .await
    }
}

fn timeline(row: &rusqlite::Row<'_>) -> Result<Timeline, StoreError> {
    let number: u32 = column(row, "timeline")?;
    let unreadable = |_| StoreError::Unreadable { what: "timeline", value: number.to_string() };
    Timeline::try_from(number).map_err(unreadable)
}

/// SQLite's integers have a sign; the bits are kept.
fn stored(number: u64) -> i64 {
    number.cast_signed()
}

fn read(number: i64) -> u64 {
    number.cast_unsigned()
}
