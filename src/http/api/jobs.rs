//! Jobs: lists, one, its log, its end.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::upkeep::{ExpiredView, VerifiedView};
use super::{Page, page, page_limit};
use crate::domain::StanzaName;
use crate::domain::job::{
    BackupResult, Job, JobError, JobResult, JobSpec, Progress, RestoreResult,
};
use crate::http::auth::Caller;
use crate::http::extract::{Id, Query, find_stanza};
use crate::http::problem::{Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::pgbackrest::log::Level;
use crate::store::{JobFilter, StoredEvent};

/// A job.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobView {
    /// Its id, a UUID of version 7.
    #[schema(example = "019aa0c4-6d2e-7cc1-a3a5-2f3ef8f1b0d1")]
    id: String,
    /// backup, restore, check, stanza-create, verify, expire or annotate.
    #[schema(example = "backup")]
    kind: &'static str,
    /// The stanza whose lane it takes.
    #[schema(example = "main")]
    stanza: String,
    /// The repository it was asked to use; null when none was named.
    #[schema(example = 1)]
    repo: Option<u16>,
    /// What asked for it: api, dashboard, short-route, schedule:NAME or event:NAME.
    #[schema(example = "api")]
    trigger: String,
    /// Who asked for it.
    #[schema(example = "admin-token")]
    by: String,
    /// queued, running, cancelling, succeeded, warned, failed, cancelled or interrupted.
    #[schema(example = "running")]
    state: &'static str,
    /// How it ended; null until it has.
    #[schema(example = "succeeded")]
    outcome: Option<&'static str>,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When work began.
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
    /// How far it is.
    progress: ProgressView,
    /// Of a restore: where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    restore: Option<RestorePhaseView>,
    /// What it has to show; null when it has nothing.
    result: Option<ResultView>,
    /// Why it failed, or what to look at when it warned.
    error: Option<ErrorView>,
    /// Where to go from here.
    links: JobLinks,
}

/// How far a job is. What is not known is null.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Progress)]
pub struct ProgressView {
    /// Bytes copied so far.
    bytes_done: Option<u64>,
    /// Bytes to copy in all.
    bytes_total: Option<u64>,
    /// 0 to 100, with two decimals.
    #[schema(example = 42.17)]
    percent: Option<f64>,
    /// Seconds left at the pace so far.
    eta_s: Option<u64>,
    /// What it is doing.
    phase: Option<String>,
}

/// Where a restore stands.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = RestorePhase)]
pub struct RestorePhaseView {
    /// accepted, quiesced, safe-point, stopping, draining, restoring, restored, recovering,
    /// verified, promoting, unfencing, done, aborted or needs-operator.
    #[schema(example = "recovering")]
    phase: &'static str,
    /// The same in words.
    text: &'static str,
}

/// What a job has to show. Which fields are there depends on its kind.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = JobResult)]
pub enum ResultView {
    /// Of a backup.
    Backup {
        /// The new backup's label.
        #[schema(example = "20261120-101500F")]
        label: String,
        /// Its real type: a diff or incr without a prior full becomes a full.
        #[schema(example = "full")]
        r#type: &'static str,
        /// The repository it is in.
        repo: Option<u16>,
        /// Bytes of the database.
        size_bytes: Option<u64>,
        /// Bytes copied for this backup.
        delta_bytes: Option<u64>,
        /// Bytes that this backup added to the repository.
        repo_delta_bytes: Option<u64>,
        /// Whether page checksum errors were found.
        page_errors: bool,
        /// When the backup began.
        #[schema(value_type = Option<String>, format = DateTime)]
        started_at: Option<Timestamp>,
        /// When it ended: it can be restored to any moment from here on.
        #[schema(value_type = Option<String>, format = DateTime)]
        stopped_at: Option<Timestamp>,
    },
    /// Of a restore.
    Restore {
        /// The backup set that was restored.
        set: Option<String>,
        /// The repository it came from.
        repo: Option<u16>,
        /// The timeline that PostgreSQL is on now.
        timeline: Option<u32>,
        /// The last position that was replayed.
        #[schema(example = "0/16B6C50")]
        replayed_lsn: Option<String>,
        /// The commit time of the last transaction that was replayed.
        #[schema(value_type = Option<String>, format = DateTime)]
        last_commit_at: Option<Timestamp>,
        /// Bytes of the set.
        size_bytes: Option<u64>,
        /// From the stop of PostgreSQL until it took writes again.
        downtime_ms: Option<u64>,
    },
    /// Of a verification.
    Verify(VerifiedView),
    /// Of an expire.
    Expire(ExpiredView),
}

/// Why a job failed.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = JobError)]
pub struct ErrorView {
    /// The kind of problem, e.g. lock-held, postgres-unavailable, archive-timeout, stanza-stopped,
    /// repository-corrupt, insufficient-storage, interrupted, cancelled.
    #[schema(example = "lock-held")]
    code: String,
    /// pgBackRest's exit code; null when it did not exit by itself.
    #[schema(example = 50)]
    exit_code: Option<i32>,
    /// pgBackRest's name for it.
    #[schema(example = "LockAcquireError")]
    exit_name: Option<String>,
    /// What happened.
    message: String,
    /// What to do next.
    hints: Vec<String>,
    /// Whether the same job may succeed when tried again later.
    retryable: bool,
}

/// Where to go from a job.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct JobLinks {
    /// The job.
    #[serde(rename = "self")]
    this: String,
    /// Its log.
    log: String,
    /// Its events, live.
    events: String,
}

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        let this = format!("/api/v1/jobs/{}", job.id);
        Self {
            id: job.id.to_string(),
            kind: job.spec.kind().as_str(),
            stanza: job.spec.stanza().to_string(),
            repo: job.spec.repo().map(|repo| repo.get()),
            trigger: job.trigger.to_string(),
            by: job.by,
            state: job.state.as_str(),
            outcome: job.state.outcome().map(|outcome| outcome.as_str()),
            created_at: job.created_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            progress: job.progress.into(),
            restore: job
                .restore_phase
                .map(|phase| RestorePhaseView { phase: phase.as_str(), text: phase.describe() }),
            result: job.result.map(ResultView::from),
            error: job.error.map(ErrorView::from),
            links: JobLinks { log: format!("{this}/log"), events: format!("{this}/events"), this },
        }
    }
}

impl From<Progress> for ProgressView {
    fn from(progress: Progress) -> Self {
        Self {
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            percent: progress.percent_hundredths.map(|n| f64::from(n) / 100.0),
            eta_s: progress.eta_s,
            phase: progress.phase,
        }
    }
}

impl From<JobResult> for ResultView {
    fn from(result: JobResult) -> Self {
        match result {
            JobResult::Backup(BackupResult {
                label,
                backup_type,
                repo,
                size_bytes,
                delta_bytes,
                repo_delta_bytes,
                page_errors,
                started_at,
                stopped_at,
            }) => Self::Backup {
                label: label.to_string(),
                r#type: backup_type.as_str(),
                repo: repo.map(|repo| repo.get()),
                size_bytes,
                delta_bytes,
                repo_delta_bytes,
                page_errors,
                started_at,
                stopped_at,
            },
            JobResult::Restore(RestoreResult {
                set,
                repo,
                timeline,
                replayed_lsn,
                last_commit_at,
                size_bytes,
                downtime_ms,
            }) => Self::Restore {
                set: set.map(|set| set.to_string()),
                repo: repo.map(|repo| repo.get()),
                timeline: timeline.map(|timeline| timeline.get()),
                replayed_lsn: replayed_lsn.map(|lsn| lsn.to_string()),
                last_commit_at,
                size_bytes,
                downtime_ms,
            },
            JobResult::Verify(result) => Self::Verify(result.into()),
            JobResult::Expire(result) => Self::Expire(result.into()),
        }
    }
}

impl From<JobError> for ErrorView {
    fn from(error: JobError) -> Self {
        let JobError { code, exit_code, exit_name, message, hints, retryable } = error;
        Self { code, exit_code, exit_name, message, hints, retryable }
    }
}

/// Which jobs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct JobsQuery {
    /// backup, restore, check, stanza-create, verify, expire or annotate.
    kind: Option<String>,
    /// queued, running, cancelling, succeeded, warned, failed, cancelled or interrupted.
    state: Option<String>,
    /// Only this stanza's.
    stanza: Option<String>,
    /// Items per page, at most 200.
    #[param(example = 50, minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Jobs, newest first.
#[utoipa::path(get, path = "/jobs", tag = "jobs", params(JobsQuery), responses(
    (status = 200, description = "jobs, newest first", body = Page<JobView>),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn list(
    State(state): State<AppState>,
    Query(query): Query<JobsQuery>,
) -> Outcome<Response> {
    let word = |field: &'static str, error: crate::domain::words::UnknownWord| {
        Problem::field(field, error.to_string())
    };
    let limit = page_limit(query.limit)?;
    let filter = JobFilter {
        kind: query.kind.map(|kind| kind.parse()).transpose().map_err(|e| word("kind", e))?,
        state: query.state.map(|state| state.parse()).transpose().map_err(|e| word("state", e))?,
        stanza: stanza_of(&state, query.stanza.as_deref())?,
        before: query
            .cursor
            .map(|cursor| cursor.parse())
            .transpose()
            .map_err(|_| Problem::field("cursor", "is not one of ours"))?,
        limit: limit + 1,
    };
    Ok(page("/api/v1/jobs", job_page(state.store.jobs(filter).await?, limit)))
}

fn stanza_of(state: &AppState, name: Option<&str>) -> Outcome<Option<StanzaName>> {
    name.map(|name| find_stanza(state, name)).transpose()
}

/// A page from one job more than fits on it.
pub(super) fn job_page(mut jobs: Vec<Job>, limit: u32) -> Page<JobView> {
    let limit = limit as usize;
    let more = jobs.len() > limit;
    jobs.truncate(limit);
    let next_cursor = jobs.last().filter(|_| more).map(|job| job.id.to_string());
    Page { items: jobs.into_iter().map(JobView::from).collect(), next_cursor }
}

/// One job.
#[utoipa::path(get, path = "/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "the job's id")), responses(
    (status = 200, description = "the job", body = JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn show(
    State(state): State<AppState>,
    Id(id): Id,
) -> Outcome<Json<JobView>> {
    Ok(Json(find(&state, id).await?.into()))
}

pub(in crate::http) async fn find(state: &AppState, id: crate::domain::JobId) -> Outcome<Job> {
    let job = state.store.job(id).await?;
    job.ok_or_else(|| crate::jobs::Denied::NoSuchJob(id).into())
}

/// Asks for a job's end. A restore that has begun to change files cannot be cancelled any more.
#[utoipa::path(post, path = "/jobs/{id}/cancel", tag = "jobs", params(("id" = String, Path, description = "the job's id")), responses(
    (status = 202, description = "it is being ended", body = JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn cancel(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id,
) -> Outcome<Response> {
    let job = state.jobs.cancel(id, caller.by).await?;
    Ok((StatusCode::ACCEPTED, Json(JobView::from(job))).into_response())
}

/// Which lines of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct LogQuery {
    /// Only lines after the one with this id.
    after: Option<i64>,
    /// Only lines at least this grave: error, warn, info, detail, debug or trace.
    level: Option<String>,
}

/// One line of a job's log.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct LogLineView {
    /// Grows from line to line; pass the last one as `after`.
    id: i64,
    /// When it was said.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// error, warn, info, detail, debug or trace.
    level: Option<String>,
    /// pgBackRest's process number; 0 is the main one, null is Headrest itself.
    process: Option<u16>,
    /// The text.
    text: String,
}

impl From<StoredEvent> for LogLineView {
    fn from(event: StoredEvent) -> Self {
        let StoredEvent { id, at, level, process, text, .. } = event;
        Self { id, at, level, process, text }
    }
}

/// A job's log: as text, or with `Accept: application/x-ndjson` one JSON object a line.
#[utoipa::path(get, path = "/jobs/{id}/log", tag = "jobs", params(("id" = String, Path, description = "the job's id"), LogQuery), responses(
    (status = 200, description = "the lines", content(
        (String = "text/plain"),
        (LogLineView = "application/x-ndjson"),
    )),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn log(
    State(state): State<AppState>,
    Id(id): Id,
    Query(query): Query<LogQuery>,
    headers: axum::http::HeaderMap,
) -> Outcome<Response> {
    let level = query.level.as_deref().map(str::parse::<Level>).transpose();
    let level = level.map_err(|error| Problem::field("level", error.to_string()))?;
    find(&state, id).await?;
    let lines = log_lines(&state, id, query.after.unwrap_or(0), level).await?;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let as_json = accept.is_some_and(|accept| accept.contains("application/x-ndjson"));
    let (kind, body) = if as_json {
        let text: String = lines
            .into_iter()
            .filter_map(|line| serde_json::to_string(&LogLineView::from(line)).ok())
            .map(|line| line + "\n")
            .collect();
        ("application/x-ndjson", text)
    } else {
        ("text/plain; charset=utf-8", lines.iter().map(as_text).collect())
    };
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// The lines of a job's log.
pub(in crate::http) async fn log_lines(
    state: &AppState,
    id: crate::domain::JobId,
    after: i64,
    level: Option<Level>,
) -> Outcome<Vec<StoredEvent>> {
    let mut lines = state.store.events(Some(id), after, Some("log"), 20_000).await?;
    if let Some(most) = level {
        let of = |line: &StoredEvent| line.level.as_deref().and_then(|text| text.parse().ok());
        lines.retain(|line| of(line).is_none_or(|level: Level| level <= most));
    }
    Ok(lines)
}

/// A log line as pgBackRest would print it.
pub(in crate::http) fn as_text(line: &StoredEvent) -> String {
    let level = line.level.as_deref().unwrap_or("info").to_uppercase();
    let process = line.process.map_or_else(|| "   ".to_owned(), |n| format!("P{n:02}"));
    format!("{:.3} {process} {level:>6}: {}\n", line.at, line.text)
}

/// The short description of what a job does, e.g. `full backup`.
pub(in crate::http) fn describe(spec: &JobSpec) -> String {
    match spec {
        JobSpec::Backup(backup) => format!("{} backup", backup.backup_type),
        JobSpec::Restore(restore) => match restore.undoes {
            Some(_) => "undo of a restore".to_owned(),
            None => format!("restore to {}", restore.target),
        },
        JobSpec::Check { .. } => "check".to_owned(),
        JobSpec::StanzaCreate { .. } => "stanza-create".to_owned(),
        JobSpec::Verify(_) => "verify".to_owned(),
        JobSpec::Expire(expire) => match &expire.set {
            Some(set) => format!("expire of {set}"),
            None => "expire".to_owned(),
        },
        JobSpec::Annotate(annotate) => format!("annotate {}", annotate.set),
    }
}
