//! Backups: lists, one, a new one.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::stanzas::{observe, on_conflict, repo_of};
use super::{Page, accept, asked, page, page_limit};
use crate::domain::job::{BackupOptions, BackupSpec, JobSpec, OnConflict};
use crate::domain::{Annotations, BackupLabel, BackupType, RepoKey};
use crate::http::auth::Caller;
use crate::http::extract::{IdempotencyKey, Json as Body, Named, Prefer, Query, Stanza};
use crate::http::problem::{ErrorCode, Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::jobs::Submission;
use crate::jobs::catalog::Observation;
use crate::jobs::retention::Marks;
use crate::pgbackrest::info::{self, StanzaStatus};

/// A backup, as `pgbackrest info` lists it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Backup)]
pub(in crate::http) struct BackupView {
    /// Its label.
    #[schema(example = "20261120-101500F_20261120-111500D")]
    label: String,
    /// full, diff or incr.
    #[schema(example = "diff")]
    r#type: String,
    /// The repository it is in.
    #[schema(example = 1)]
    repo: Option<u16>,
    /// The backup it builds upon.
    prior: Option<String>,
    /// Every backup it needs.
    references: Vec<String>,
    /// When it began.
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    /// When it ended: it can be restored to any moment from here on.
    #[schema(value_type = Option<String>, format = DateTime)]
    stopped_at: Option<Timestamp>,
    /// Seconds it took.
    duration_s: Option<i64>,
    /// Bytes of the database.
    size_bytes: Option<u64>,
    /// Bytes copied for this backup.
    delta_bytes: Option<u64>,
    /// Bytes in the repository, with all it references; null for block-incremental backups.
    repo_size_bytes: Option<u64>,
    /// Bytes that this backup added to the repository.
    repo_delta_bytes: Option<u64>,
    /// The first and last WAL segment it needs.
    wal: WalView,
    /// Whether page checksum errors were found; null when not known.
    page_errors: Option<bool>,
    /// What it is worth: good (verified), unverified, page-errors (the database had damaged pages when it
    /// was made), damaged (in the repository) or unreadable (its manifest). A restore takes one
    /// with page errors, or a damaged one, only when nothing else reaches its target, and never an
    /// unreadable one.
    #[schema(example = "unverified")]
    state: &'static str,
    /// Why it is bad; null when it is not.
    state_reason: Option<String>,
    /// When that was found out; null when nothing was.
    #[schema(value_type = Option<String>, format = DateTime)]
    state_since: Option<Timestamp>,
    /// Whether it is pinned: it stays until it is unpinned.
    pinned: bool,
    /// When it was last verified and found to be good; null when it was not, or was found damaged
    /// since.
    #[schema(value_type = Option<String>, format = DateTime)]
    verified_at: Option<Timestamp>,
    /// Notes kept with it.
    annotations: BTreeMap<String, String>,
    /// The pgBackRest that made it.
    pgbackrest_version: Option<String>,
}

/// The WAL that a backup needs.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = BackupWal)]
pub(in crate::http) struct WalView {
    /// The first segment.
    start: Option<String>,
    /// The last segment.
    stop: Option<String>,
    /// Where it begins.
    #[schema(example = "0/2000028")]
    lsn_start: Option<String>,
    /// Where it is consistent.
    #[schema(example = "0/2000100")]
    lsn_stop: Option<String>,
}

impl BackupView {
    /// A backup with what Headrest knows of it.
    pub(super) fn new(backup: &info::Backup, marks: &Marks) -> Self {
        let key = (backup.repo_key.unwrap_or(RepoKey::FIRST), backup.label.clone());
        let verified = marks.verified.get(&key).filter(|verified| verified.good);
        let judgement = marks.judgement(backup);
        let duration = backup.started_at.zip(backup.stopped_at);
        Self {
            label: backup.label.to_string(),
            r#type: backup.kind.as_str().to_owned(),
            repo: backup.repo_key.map(|key| key.get()),
            prior: backup.prior.as_ref().map(ToString::to_string),
            references: backup.reference.iter().map(ToString::to_string).collect(),
            started_at: backup.started_at,
            stopped_at: backup.stopped_at,
            duration_s: duration.map(|(start, stop)| stop.duration_since(start).as_secs()),
            size_bytes: backup.size_bytes,
            delta_bytes: backup.delta_bytes,
            repo_size_bytes: backup.repo_size_bytes,
            repo_delta_bytes: backup.repo_delta_bytes,
            wal: WalView {
                start: backup.archive_start.clone(),
                stop: backup.archive_stop.clone(),
                lsn_start: backup.lsn_start.map(|lsn| lsn.to_string()),
                lsn_stop: backup.lsn_stop.map(|lsn| lsn.to_string()),
            },
            page_errors: backup.error,
            state: judgement.state.as_str(),
            state_reason: judgement.why.clone(),
            state_since: judgement.since,
            pinned: marks.pins.contains(&backup.label),
            verified_at: verified.map(|verified| verified.at),
            annotations: backup.annotations.clone(),
            pgbackrest_version: backup.pgbackrest_version.clone(),
        }
    }
}

/// A backup with everything that is known of it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct BackupDetail {
    #[serde(flatten)]
    backup: BackupView,
    /// Every backup it needs, directly or through another.
    needs: Vec<String>,
    /// Every backup that needs it: what expires with it.
    needed_by: Vec<String>,
    /// The databases in it.
    databases: Vec<DatabaseInBackup>,
    /// The tablespaces in it.
    tablespaces: Vec<Place>,
    /// The links in it.
    links: Vec<Place>,
    /// Files with page checksum errors.
    page_error_files: Vec<String>,
}

/// A database in a backup.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct DatabaseInBackup {
    /// Its name.
    name: String,
    /// Its OID.
    oid: Option<u64>,
}

/// A tablespace or link.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Place {
    /// Its name.
    name: String,
    /// Where it leads.
    destination: String,
}

/// Which backups to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct BackupsQuery {
    /// full, diff or incr.
    r#type: Option<String>,
    /// Only this repository's.
    repo: Option<String>,
    /// Only those that ended at this time or later; RFC 3339 with offset.
    from: Option<String>,
    /// Only those that ended at this time or earlier; RFC 3339 with offset.
    to: Option<String>,
    /// Items per page, at most 200.
    #[param(example = 50, minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Backups, newest first.
#[utoipa::path(get, path = "/stanzas/{stanza}/backups", tag = "backups", params(("stanza" = String, Path, example = "main"), BackupsQuery), responses(
    (status = 200, description = "the backups", body = Page<BackupView>),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn list(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
    Query(query): Query<BackupsQuery>,
    headers: HeaderMap,
) -> Outcome<Response> {
    let wanted = query.r#type.map(|text| text.parse::<BackupType>()).transpose();
    let wanted = wanted.map_err(|error| Problem::field("type", error.to_string()))?;
    let repo = query.repo.map(|text| text.parse::<RepoKey>()).transpose();
    let repo = repo.map_err(|error| Problem::field("repo", error.to_string()))?;
    let (from, to) = (time("from", query.from.as_deref())?, time("to", query.to.as_deref())?);
    let limit = page_limit(query.limit)? as usize;
    let seen = readable(observe(&state, &stanza, &headers).await?)?;
    let mut backups: Vec<&info::Backup> = seen
        .stanza
        .backups
        .iter()
        .filter(|backup| wanted.is_none_or(|kind| backup.kind.as_str() == kind.as_str()))
        .filter(|backup| repo.is_none_or(|repo| backup.repo_key == Some(repo)))
        .filter(|backup| from.is_none_or(|from| backup.stopped_at >= Some(from)))
        .filter(|backup| to.is_none_or(|to| backup.stopped_at.is_some_and(|at| at <= to)))
        .collect();
    backups.sort_by_key(|backup| {
        std::cmp::Reverse((backup.stopped_at, &backup.label, backup.repo_key))
    });
    if let Some(cursor) = query.cursor {
        let at = backups.iter().position(|backup| cursor_of(backup) == cursor);
        let at =
            at.ok_or_else(|| Problem::field("cursor", "is not one of ours, or has expired"))?;
        backups.drain(..=at);
    }
    let more = backups.len() > limit;
    backups.truncate(limit);
    let next_cursor = backups.last().filter(|_| more).map(|backup| cursor_of(backup));
    let marks = state.keeper.marks(&stanza, &seen.stanza).await?;
    let items = backups.into_iter().map(|backup| BackupView::new(backup, &marks)).collect();
    Ok(page(&format!("/api/v1/stanzas/{stanza}/backups"), Page { items, next_cursor }))
}

fn cursor_of(backup: &info::Backup) -> String {
    let repo = backup.repo_key.map_or(0, |key| key.get());
    format!("{}.{repo}", backup.label)
}

fn time(field: &'static str, text: Option<&str>) -> Outcome<Option<Timestamp>> {
    let parsed = text.map(str::parse::<Timestamp>).transpose();
    parsed.map_err(|_| {
        Problem::field(field, "is not an RFC 3339 time with an offset, e.g. 2026-11-20T10:00:00Z")
    })
}

/// An empty list of a repository that cannot be read would be a lie.
pub(super) fn readable(seen: std::sync::Arc<Observation>) -> Outcome<std::sync::Arc<Observation>> {
    let stanza = &seen.stanza;
    if matches!(stanza.status.meaning(), StanzaStatus::Other(_)) && stanza.backups.is_empty() {
        let told: Vec<_> = stanza.repos.iter().map(|repo| repo.status.message.as_str()).collect();
        let detail = format!("{}: {}", stanza.status.message, told.join("; "));
        return Err(Problem::new(ErrorCode::RepositoryUnavailable, detail));
    }
    Ok(seen)
}

/// One backup by its label; `latest` is the newest.
#[utoipa::path(get, path = "/stanzas/{stanza}/backups/{label}", tag = "backups", params(
    ("stanza" = String, Path, example = "main"), ("label" = String, Path, example = "latest"),
), responses(
    (status = 200, description = "the backup", body = BackupDetail),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn show(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
    Named(label): Named,
    headers: HeaderMap,
) -> Outcome<Json<BackupDetail>> {
    let wanted = match label.as_str() {
        "latest" => None,
        text => Some(
            text.parse::<BackupLabel>()
                .map_err(|error| Problem::field("label", error.to_string()))?,
        ),
    };
    let seen = readable(observe(&state, &stanza, &headers).await?)?;
    let found = match &wanted {
        Some(label) => seen.stanza.backups.iter().find(|backup| backup.label == *label),
        None => seen.stanza.newest_backup(),
    };
    let backup = found.ok_or_else(|| {
        let what = wanted.as_ref().map_or("any backup".to_owned(), ToString::to_string);
        let detail = format!("stanza {stanza} has not {what}: {}", seen.stanza.status.message);
        Problem::new(ErrorCode::NoSuchBackup, detail)
    })?;
    // Of one whose manifest cannot be read nothing more is known, and its state says so.
    let set = state.keeper.details(&stanza, backup).await?;
    let set = set.unwrap_or_else(|_| std::sync::Arc::new(backup.clone()));
    let marks = state.keeper.marks(&stanza, &seen.stanza).await?;
    let labels = |set: std::collections::BTreeSet<BackupLabel>| {
        set.iter().map(ToString::to_string).collect()
    };
    Ok(Json(BackupDetail {
        backup: BackupView::new(backup, &marks),
        needs: labels(seen.stanza.needs(&backup.label)),
        needed_by: labels(seen.stanza.needed_by(&backup.label)),
        databases: set
            .database_refs
            .iter()
            .map(|database| DatabaseInBackup { name: database.name.clone(), oid: database.oid })
            .collect(),
        tablespaces: set
            .tablespaces
            .iter()
            .map(|place| Place { name: place.name.clone(), destination: place.destination.clone() })
            .collect(),
        links: set
            .links
            .iter()
            .map(|link| Place { name: link.name.clone(), destination: link.destination.clone() })
            .collect(),
        page_error_files: set.error_list.clone(),
    }))
}

/// A backup that is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct BackupRequest {
    /// full, diff or incr.
    #[schema(example = "full")]
    r#type: String,
    /// The repository to back up to; pgBackRest takes the first when not given.
    #[schema(example = 1)]
    repo: Option<u32>,
    /// Notes kept with the backup: at most 32, printable, one line each.
    #[serde(default)]
    #[schema(example = json!({"ticket": "OPS-42"}))]
    annotations: BTreeMap<String, String>,
    /// What to do when another job has the lane: refuse (the default) or queue.
    #[schema(example = "queue")]
    on_conflict: Option<String>,
    /// Options of this one run.
    options: Option<BackupOptionsRequest>,
}

/// Options of one backup run; pgBackRest's configuration holds where one is not given.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct BackupOptionsRequest {
    /// Worker processes, 1 to 999 (`process-max`).
    #[schema(example = 2, minimum = 1, maximum = 999)]
    process_max: Option<u16>,
    /// Whether to force a checkpoint instead of waiting for the next (`start-fast`).
    start_fast: Option<bool>,
    /// Whether to validate data page checksums (`checksum-page`).
    checksum_page: Option<bool>,
}

/// Takes a backup.
#[utoipa::path(post, path = "/stanzas/{stanza}/backups", tag = "backups", params(
    ("stanza" = String, Path, example = "main"),
    ("Prefer" = Option<String>, Header, description = "`wait=N`: answer when the job has ended, at most N seconds from now", example = "wait=60"),
    ("Idempotency-Key" = Option<String>, Header, description = "the same key and body again get the same answer"),
), request_body = BackupRequest, responses(
    (status = 200, description = "the finished job, with `Prefer: wait`", body = super::jobs::JobView),
    (status = 202, description = "the job", body = super::jobs::JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Stanza(stanza): Stanza,
    Prefer(wait): Prefer,
    key: IdempotencyKey,
    Body(request): Body<BackupRequest>,
) -> Outcome<Response> {
    let backup_type =
        request.r#type.parse().map_err(|error: crate::domain::backup::InvalidBackupType| {
            Problem::field("type", error.to_string())
        })?;
    let repo = repo_of(request.repo)?;
    let annotations = Annotations::parse(request.annotations)
        .map_err(|error| Problem::field("annotations", error.to_string()))?;
    let options = request.options.unwrap_or_default();
    if options.process_max.is_some_and(|n| !(1..=999).contains(&n)) {
        return Err(Problem::field("options.process_max", "is not from 1 to 999"));
    }
    let spec = BackupSpec {
        stanza,
        repo,
        backup_type,
        annotations,
        options: BackupOptions {
            process_max: options.process_max,
            start_fast: options.start_fast,
            checksum_page: options.checksum_page,
        },
    };
    let on_conflict = on_conflict(request.on_conflict.as_deref(), OnConflict::Refuse)?;
    let spec = JobSpec::Backup(spec);
    let submission = Submission { on_conflict, idempotency_key: key.0, ..asked(&caller, spec) };
    accept(&state, submission, wait).await
}
