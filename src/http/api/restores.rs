//! Restores.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::jobs::{JobView, find, job_page};
use super::stanzas::on_conflict;
use super::{Page, accept, page, page_limit, trigger_of};
use crate::domain::job::{JobKind, JobSpec, OnConflict, RestoreSpec};
use crate::domain::recovery::RecoveryTarget;
use crate::http::auth::Caller;
use crate::http::extract::{Id, IdempotencyKey, Json as Body, Prefer, Query, Stanza};
use crate::http::problem::{ErrorCode, Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::jobs::Submission;
use crate::store::JobFilter;

/// A restore that is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct RestoreRequest {
    /// Where recovery ends.
    target: TargetRequest,
    /// The stanza's name: PGDATA is replaced.
    #[schema(example = "main")]
    confirm: Option<String>,
    /// Whether a full backup is queued once PostgreSQL takes writes again.
    #[serde(default = "yes")]
    #[schema(default = true)]
    backup_after: bool,
    /// What to do when another job has the lane: cancel it (the default, but never another
    /// restore), refuse or queue.
    #[schema(example = "queue")]
    on_conflict: Option<String>,
}

/// Where recovery ends.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct TargetRequest {
    /// latest: everything that was ever committed.
    #[schema(example = "latest")]
    r#type: String,
}

fn yes() -> bool {
    true
}

impl TargetRequest {
    fn parse(&self) -> Outcome<RecoveryTarget> {
        if self.r#type == RecoveryTarget::Latest.as_str() {
            return Ok(RecoveryTarget::Latest);
        }
        let shown = crate::domain::stanza::shown(&self.r#type);
        Err(Problem::field("target.type", format!("{shown} is not one of latest")))
    }
}

/// Restores PGDATA in place, and answers once PostgreSQL takes writes (with `Prefer: wait`).
///
/// Phases: accepted, quiesced, safe-point, stopping, draining, restoring, restored, recovering,
/// verified, promoting, unfencing, done. Until restoring begins it can be cancelled and changes
/// nothing.
#[utoipa::path(post, path = "/stanzas/{stanza}/restores", tag = "restores", params(
    ("stanza" = String, Path, example = "main"),
    ("Prefer" = Option<String>, Header, description = "`wait=N`: answer when the job has ended, at most N seconds from now", example = "wait=600"),
    ("Idempotency-Key" = Option<String>, Header, description = "the same key and body again get the same answer"),
), request_body = RestoreRequest, responses(
    (status = 200, description = "the finished job, with `Prefer: wait`", body = JobView),
    (status = 202, description = "the job", body = JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Stanza(stanza): Stanza,
    Prefer(wait): Prefer,
    key: IdempotencyKey,
    Body(request): Body<RestoreRequest>,
) -> Outcome<Response> {
    let target = request.target.parse()?;
    let on_conflict = on_conflict(request.on_conflict.as_deref(), OnConflict::Cancel)?;
    confirmed(stanza.as_str(), request.confirm.as_deref())?;
    let submission = Submission {
        spec: JobSpec::Restore(RestoreSpec { stanza, target, backup_after: request.backup_after }),
        trigger: trigger_of(&caller),
        by: caller.by.to_owned(),
        on_conflict,
        idempotency_key: key.0,
    };
    accept(&state, submission, wait).await
}

/// Refuses a destructive request that does not name what it destroys.
pub(in crate::http) fn confirmed(stanza: &str, given: Option<&str>) -> Outcome<()> {
    if given == Some(stanza) {
        return Ok(());
    }
    let detail = match given {
        Some(_) => format!("`confirm` does not name the stanza {stanza}"),
        None => format!("a restore replaces PGDATA of stanza {stanza}"),
    };
    let problem = Problem::new(ErrorCode::ConfirmationRequired, detail);
    Err(Problem { field: Some("confirm".to_owned()), ..problem }
        .hint(format!("Send \"confirm\": \"{stanza}\".")))
}

/// Which restores to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct RestoresQuery {
    /// Items per page, at most 200.
    #[param(example = 50, minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Restores, newest first.
#[utoipa::path(get, path = "/restores", tag = "restores", params(RestoresQuery), responses(
    (status = 200, description = "the restores' jobs", body = Page<JobView>),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn list(
    State(state): State<AppState>,
    Query(query): Query<RestoresQuery>,
) -> Outcome<Response> {
    let limit = page_limit(query.limit)?;
    let before = query.cursor.map(|cursor| cursor.parse()).transpose();
    let filter = JobFilter {
        kind: Some(JobKind::Restore),
        before: before.map_err(|_| Problem::field("cursor", "is not one of ours"))?,
        limit: limit + 1,
        ..JobFilter::default()
    };
    Ok(page("/api/v1/restores", job_page(state.store.jobs(filter).await?, limit)))
}

/// One restore: its job, with its phase.
#[utoipa::path(get, path = "/restores/{id}", tag = "restores", params(("id" = String, Path, description = "the job's id")), responses(
    (status = 200, description = "the restore's job", body = JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn show(
    State(state): State<AppState>,
    Id(id): Id,
) -> Outcome<Json<JobView>> {
    let job = find(&state, id).await?;
    if job.spec.kind() == JobKind::Restore {
        return Ok(Json(job.into()));
    }
    let detail = format!("job {id} is a {}, not a restore", job.spec.kind());
    Err(Problem::new(ErrorCode::NoSuchJob, detail))
}
