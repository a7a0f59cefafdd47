//! Jobs and their events.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, named_params, params};

use super::rows::{column, during, json, json_if_any, parsed, time, time_if_any, to_json};
use super::{Store, StoreError};
use crate::domain::job::{Job, JobId, JobKind, JobState, Progress};
use crate::domain::restore::Phase;
use crate::domain::{JobSpec, StanzaName};

/// An event to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// When.
    pub at: Timestamp,
    /// `log`, `state`, `progress` or `phase`.
    pub kind: &'static str,
    /// The level of a log line.
    pub level: Option<&'static str>,
    /// pgBackRest's process number (0 is the main one) of a log line.
    pub process: Option<u16>,
    /// The line, or JSON for the other kinds.
    pub text: String,
}

/// A stored event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Grows with every event of every job; clients resume by it.
    pub id: i64,
    /// The job.
    pub job: JobId,
    /// When.
    pub at: Timestamp,
    /// `log`, `state`, `progress` or `phase`.
    pub kind: String,
    /// The level of a log line.
    pub level: Option<String>,
    /// pgBackRest's process number of a log line.
    pub process: Option<u16>,
    /// The line, or JSON for the other kinds.
    pub text: String,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only this kind.
    pub kind: Option<JobKind>,
    /// Only this state.
    pub state: Option<JobState>,
    /// Only this stanza.
    pub stanza: Option<StanzaName>,
    /// Only jobs created before this one.
    pub before: Option<JobId>,
    /// At most so many.
    pub limit: u32,
}

const COLUMNS: &str = "id, state, origin, by_whom, created_at, started_at, finished_at, spec, \
                       progress, restore_phase, result, error, tried_again";

impl Store {
    /// Adds a job.
    pub async fn insert_job(
        &self,
        job: Job,
        idempotency_key: Option<String>,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "INSERT INTO jobs (id, kind, stanza, state, origin, by_whom, created_at, spec, \
                     progress, idempotency_key, tried_again) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, \
                     ?9, ?10, ?11)",
                    params![
                        job.id.to_string(),
                        job.spec.kind().as_str(),
                        job.spec.stanza().as_str(),
                        job.state.as_str(),
                        job.trigger.to_string(),
                        job.by,
                        job.created_at.as_microsecond(),
                        to_json(&job.spec),
                        to_json(&job.progress),
                        idempotency_key,
                        job.tried_again,
                    ],
                )
                .map(drop)
                .map_err(during("add a job"))
        })
        .await
    }

    /// Writes a job's state and what came of it, and events with it, as one transaction.
    /// Answers the id of the last event.
    pub async fn update_state(
        &self,
        job: Job,
        events: Vec<NewEvent>,
    ) -> Result<Option<i64>, StoreError> {
        self.write(move |connection| {
            let failed = during("update a job");
            let transaction = connection.transaction().map_err(&failed)?;
            transaction
                .execute(
                    "UPDATE jobs SET state = :state, started_at = :started, finished_at = \
                     :finished, result = :result, error = :error, process = CASE WHEN :final \
                     THEN NULL ELSE process END WHERE id = :id",
                    named_params! {
                        ":state": job.state.as_str(),
                        ":started": job.started_at.map(Timestamp::as_microsecond),
                        ":finished": job.finished_at.map(Timestamp::as_microsecond),
                        ":result": job.result.as_ref().map(to_json),
                        ":error": job.error.as_ref().map(to_json),
                        ":final": job.state.is_final(),
                        ":id": job.id.to_string(),
                    },
                )
                .map_err(&failed)?;
            let last = insert_events(&transaction, job.id, &events)?;
            transaction.commit().map_err(&failed)?;
            Ok(last)
        })
        .await
    }

    /// Appends events of a job and, where it is given, how far the job is.
    /// Answers the id of the last event.
    pub async fn append_events(
        &self,
        job: JobId,
        progress: Option<(Progress, Option<Phase>)>,
        events: Vec<NewEvent>,
    ) -> Result<Option<i64>, StoreError> {
        self.write(move |connection| {
            let failed = during("append events");
            let transaction = connection.transaction().map_err(&failed)?;
            if let Some((progress, phase)) = progress {
                transaction
                    .execute(
                        "UPDATE jobs SET progress = ?2, restore_phase = ?3 WHERE id = ?1",
                        params![
                            job.to_string(),
                            to_json(&progress),
                            phase.map(|phase| phase.as_str())
                        ],
                    )
                    .map_err(&failed)?;
            }
            let last = insert_events(&transaction, job, &events)?;
            transaction.commit().map_err(&failed)?;
            Ok(last)
        })
        .await
    }

    /// Remembers which process works for a job, as JSON, so that a later start can find it.
    pub async fn set_job_process(&self, job: JobId, process: String) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .execute(
                    "UPDATE jobs SET process = ?2 WHERE id = ?1",
                    params![job.to_string(), process],
                )
                .map(drop)
                .map_err(during("note a job's process"))
        })
        .await
    }

    /// A job by its id.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        self.read(move |connection| {
            let failed = during("read a job");
            connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1"))
                .map_err(&failed)?
                .query_row([id.to_string()], |row| Ok(job_of(row)))
                .optional()
                .map_err(&failed)?
                .transpose()
        })
        .await
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, filter: JobFilter) -> Result<Vec<Job>, StoreError> {
        self.read(move |connection| {
            let failed = during("list jobs");
            let mut statement = connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM jobs WHERE (:kind IS NULL OR kind = :kind) AND (:state \
                     IS NULL OR state = :state) AND (:stanza IS NULL OR stanza = :stanza) AND \
                     (:before IS NULL OR id < :before) ORDER BY id DESC LIMIT :limit"
                ))
                .map_err(&failed)?;
            let mut rows = statement
                .query(named_params! {
                    ":kind": filter.kind.map(JobKind::as_str),
                    ":state": filter.state.map(JobState::as_str),
                    ":stanza": filter.stanza.as_ref().map(StanzaName::as_str),
                    ":before": filter.before.map(|id| id.to_string()),
                    ":limit": filter.limit,
                })
                .map_err(&failed)?;
            let mut jobs = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                jobs.push(job_of(row)?);
            }
            Ok(jobs)
        })
        .await
    }

    /// The newest jobs of which one column has one value.
    pub(super) async fn jobs_where(
        &self,
        condition: &'static str,
        value: String,
        limit: u32,
    ) -> Result<Vec<Job>, StoreError> {
        self.read(move |connection| {
            let failed = during("list jobs");
            let mut statement = connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM jobs WHERE {condition} ORDER BY id DESC LIMIT ?2"
                ))
                .map_err(&failed)?;
            let mut rows = statement.query(params![value, limit]).map_err(&failed)?;
            let mut jobs = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                jobs.push(job_of(row)?);
            }
            Ok(jobs)
        })
        .await
    }

    /// Jobs that have not ended, oldest first, with the process that was noted for them.
    pub async fn unfinished_jobs(&self) -> Result<Vec<(Job, Option<String>)>, StoreError> {
        self.read(|connection| {
            let failed = during("list unfinished jobs");
            let mut statement = connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS}, process FROM jobs WHERE state IN ('queued', 'running', \
                     'cancelling') ORDER BY id"
                ))
                .map_err(&failed)?;
            let mut rows = statement.query([]).map_err(&failed)?;
            let mut jobs = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                jobs.push((job_of(row)?, column(row, "process")?));
            }
            Ok(jobs)
        })
        .await
    }

    /// Events after the one with id `after`, oldest first; of one job, or of all.
    pub async fn events(
        &self,
        job: Option<JobId>,
        after: i64,
        kind: Option<&'static str>,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.read(move |connection| {
            let failed = during("read events");
            // Two statements, so that each can use its index.
            let by_job = if job.is_some() { "job_id = :job AND" } else { ":job IS NULL AND" };
            let mut statement = connection
                .prepare_cached(&format!(
                    "SELECT id, job_id, at, kind, level, process, text FROM events WHERE {by_job} \
                     id > :after AND (:kind IS NULL OR kind = :kind) ORDER BY id LIMIT :limit"
                ))
                .map_err(&failed)?;
            let mut rows = statement
                .query(named_params! {
                    ":job": job.map(|id| id.to_string()),
                    ":after": after,
                    ":kind": kind,
                    ":limit": limit,
                })
                .map_err(&failed)?;
            let mut events = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                events.push(StoredEvent {
                    id: column(row, "id")?,
                    job: parsed(row, "job_id")?,
                    at: time(row, "at")?,
                    kind: column(row, "kind")?,
                    level: column(row, "level")?,
                    process: column(row, "process")?,
                    text: column(row, "text")?,
                });
            }
            Ok(events)
        })
        .await
    }

    /// The id of the newest event, 0 when there is none.
    pub async fn last_event_id(&self) -> Result<i64, StoreError> {
        self.read(|connection| {
            connection
                .query_row("SELECT coalesce(max(id), 0) FROM events", [], |row| row.get(0))
                .map_err(during("read the newest event"))
        })
        .await
    }
}

fn insert_events(
    connection: &rusqlite::Connection,
    job: JobId,
    events: &[NewEvent],
) -> Result<Option<i64>, StoreError> {
    let failed = during("append events");
    let mut statement = connection
        .prepare_cached(
            "INSERT INTO events (job_id, at, kind, level, process, text) VALUES (?1, ?2, ?3, ?4, \
             ?5, ?6)",
        )
        .map_err(&failed)?;
    let job = job.to_string();
    let mut last = None;
    for event in events {
        let at = event.at.as_microsecond();
        statement
            .execute(params![job, at, event.kind, event.level, event.process, event.text])
            .map_err(&failed)?;
        last = Some(connection.last_insert_rowid());
    }
    Ok(last)
}

fn job_of(row: &Row<'_>) -> Result<Job, StoreError> {
    let spec: JobSpec = json(row, "spec")?;
    let origin: String = column(row, "origin")?;
    let phase: Option<String> = column(row, "restore_phase")?;
    Ok(Job {
        id: parsed(row, "id")?,
        spec,
        trigger: origin
            .clone()
            .try_into()
            .map_err(|_| StoreError::Unreadable { what: "origin", value: origin })?,
        by: column(row, "by_whom")?,
        state: parsed(row, "state")?,
        created_at: time(row, "created_at")?,
        started_at: time_if_any(row, "started_at")?,
        finished_at: time_if_any(row, "finished_at")?,
        progress: json(row, "progress")?,
        restore_phase: phase
            .map(|word| {
                word.parse()
                    .map_err(|_| StoreError::Unreadable { what: "restore_phase", value: word })
            })
            .transpose()?,
        result: json_if_any(row, "result")?,
        error: json_if_any(row, "error")?,
        tried_again: column(row, "tried_again")?,
    })
}
