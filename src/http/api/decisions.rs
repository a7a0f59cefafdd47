//! Decisions about a restore: promote, retarget, abandon, undo.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use utoipa::ToSchema;

use super::asked;
use super::jobs::JobView;
use super::plans::{TargetRequest, accept, on_reached};
use super::restores::{confirmed, find_restore, plan, refuse_failed, undo_timeline};
use crate::domain::job::{Job, JobSpec, OnConflict, RestoreSpec};
use crate::domain::plan::Wish;
use crate::domain::plan::check::CheckId;
use crate::domain::recovery::{OnReached, RecoveryTarget, TargetTimeline};
use crate::domain::restore::{Journal, NewTarget, Phase, Steer};
use crate::domain::{JobId, Timeline};
use crate::http::auth::Caller;
use crate::http::extract::{Id, IdempotencyKey, Json as Body, Prefer};
use crate::http::problem::{ErrorCode, Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::jobs::Submission;
use crate::jobs::plans::PlanRequest;

/// What is accepted by a promotion.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PromoteRequest {
    /// What is left out by it: target, when the WAL ends before the target; destroyed-database, when
    /// something that exists at the target has lost its files; wal-gap for every other reason to wait.
    #[schema(example = json!(["wal-gap"]))]
    accept: Option<Vec<String>>,
}

/// Promotes a restore that waits: at its target, or, if you accept what is left out, where it is.
#[utoipa::path(post, path = "/restores/{id}/promote", tag = "restores", params(("id" = String, Path, description = "the job's id")), request_body = Option<PromoteRequest>, responses(
    (status = 202, description = "it is written down and being done", body = JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn promote(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id,
    body: Option<Body<PromoteRequest>>,
) -> Outcome<Response> {
    find_restore(&state, id).await?;
    let request = body.map(|Body(request)| request).unwrap_or_default();
    let steer = Steer::Promote { accept: accept(request.accept.as_deref())? };
    steered(&state, id, steer, &caller).await
}

/// Another target for a restore that waits.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct RetargetRequest {
    /// Where recovery ends now.
    target: TargetRequest,
    /// promote or pause; as before when not given.
    #[schema(example = "pause")]
    on_reached: Option<String>,
    /// Failed checks that you take upon yourself.
    accept: Option<Vec<String>>,
}

/// Sends a restore that waits on to another target: forward by replaying on, without copying
/// anything again; backward by restoring again.
#[utoipa::path(post, path = "/restores/{id}/retarget", tag = "restores", params(("id" = String, Path, description = "the job's id")), request_body = RetargetRequest, responses(
    (status = 202, description = "it is written down and being done", body = JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn retarget(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id,
    Body(request): Body<RetargetRequest>,
) -> Outcome<Response> {
    let (job, spec) = find_restore(&state, id).await?;
    let journal = state.store.kept_journal(id).await?;
    let before = journal.as_ref().map_or(spec.on_reached, |journal| journal.on_reached);
    let reached = match request.on_reached.as_deref() {
        Some(word) => on_reached(Some(word))?,
        None => before,
    };
    let target = request.target.parse()?;
    waiting(&job, journal.as_ref())?;
    let accepted = accept(request.accept.as_deref())?;
    // A time means the world as it was then; everything else is on the branch that is being followed.
    let timeline = match &target {
        RecoveryTarget::Lsn { .. } | RecoveryTarget::Xid { .. } | RecoveryTarget::Latest => {
            journal.as_ref().and_then(|journal| journal.timeline)
        }
        RecoveryTarget::Time { .. } | RecoveryTarget::Name { .. } | RecoveryTarget::Immediate => {
            None
        }
    };
    let timeline = timeline.map(TargetTimeline::Number);
    let wish = Wish { target, set: None, repo: None, timeline };
    let new = new_target(&state, &spec, wish, reached, accepted).await?;
    steered(&state, id, Steer::Retarget(Box::new(new)), &caller).await
}

/// A confirmation.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Confirmation {
    /// The stanza's name.
    #[schema(example = "main")]
    confirm: Option<String>,
    /// Failed checks that you take upon yourself.
    accept: Option<Vec<String>>,
}

/// Gives up a restore that waits: what was there before it is brought back.
#[utoipa::path(post, path = "/restores/{id}/abandon", tag = "restores", params(("id" = String, Path, description = "the job's id")), request_body = Option<Confirmation>, responses(
    (status = 202, description = "it is written down and being done", body = JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn abandon(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id,
    body: Option<Body<Confirmation>>,
) -> Outcome<Response> {
    let (job, spec) = find_restore(&state, id).await?;
    let request = body.map(|Body(request)| request).unwrap_or_default();
    confirmed(spec.stanza.as_str(), request.confirm.as_deref())?;
    let journal = state.store.kept_journal(id).await?;
    waiting(&job, journal.as_ref())?;
    let timeline = journal.as_ref().and_then(undo_timeline);
    let timeline = timeline.ok_or_else(|| {
        let detail = "what was there before is not known: PGDATA could not be read then";
        Problem::new(ErrorCode::NothingToUndo, detail)
    })?;
    let wish = back_to(timeline);
    let mut accepted = accept(request.accept.as_deref())?;
    accepted.extend(spec.accept.iter().copied());
    // What was there before was the whole cluster.
    let whole = RestoreSpec { databases: Vec::new(), ..spec };
    let new = new_target(&state, &whole, wish, OnReached::Promote, accepted).await?;
    steered(&state, id, Steer::Abandon(Box::new(new)), &caller).await
}

fn waiting(job: &Job, journal: Option<&Journal>) -> Outcome<()> {
    if !job.state.is_final() && journal.is_some_and(|journal| journal.awaiting.is_some()) {
        return Ok(());
    }
    let phase = job.restore_phase.map_or("none", Phase::as_str);
    let detail = format!("restore {} is in phase {phase} and does not wait for a decision", job.id);
    Err(Problem { job: Some(job.id), ..Problem::new(ErrorCode::RestoreNotWaiting, detail) })
}

/// The whole of a timeline: everything that was ever committed on it.
fn back_to(timeline: Timeline) -> Wish {
    Wish {
        target: RecoveryTarget::Latest,
        set: None,
        repo: None,
        timeline: Some(TargetTimeline::Number(timeline)),
    }
}

async fn new_target(
    state: &AppState,
    spec: &RestoreSpec,
    wish: Wish,
    on_reached: OnReached,
    accept: Vec<CheckId>,
) -> Outcome<NewTarget> {
    let target = wish.target.clone();
    let request = PlanRequest { wish, on_reached, databases: spec.databases.clone(), accept };
    let plan = state.planner.plan(&spec.stanza, request, None).await?;
    refuse_failed(&plan)?;
    Ok(NewTarget { target, pinned: plan.pinned(), on_reached })
}

async fn steered(state: &AppState, id: JobId, steer: Steer, caller: &Caller) -> Outcome<Response> {
    let job = state.jobs.steer(id, steer, caller.by).await?;
    Ok((StatusCode::ACCEPTED, Json(JobView::from(job))).into_response())
}

fn yes() -> bool {
    true
}

/// An undo that is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct UndoRequest {
    /// The stanza's name: PGDATA is replaced.
    #[schema(example = "main")]
    confirm: Option<String>,
    /// Whether a full backup is queued once PostgreSQL takes writes again.
    #[serde(default = "yes")]
    #[schema(default = true)]
    backup_after: bool,
    /// Failed checks that you take upon yourself.
    accept: Option<Vec<String>>,
}

/// Undoes a restore: brings back everything that was committed before it, by restoring the timeline
/// that the server was on then. An undo is a restore like any other and can be undone too.
#[utoipa::path(post, path = "/restores/{id}/undo", tag = "restores", params(
    ("id" = String, Path, description = "the job's id"),
    ("Prefer" = Option<String>, Header, description = "`wait=N`: answer when the job has ended, at most N seconds from now", example = "wait=600"),
    ("Idempotency-Key" = Option<String>, Header, description = "the same key and body again get the same answer"),
), request_body = UndoRequest, responses(
    (status = 200, description = "the finished job, with `Prefer: wait`", body = JobView),
    (status = 202, description = "the job", body = JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn undo(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id,
    Prefer(wait): Prefer,
    key: IdempotencyKey,
    Body(request): Body<UndoRequest>,
) -> Outcome<Response> {
    let (job, spec) = find_restore(&state, id).await?;
    confirmed(spec.stanza.as_str(), request.confirm.as_deref())?;
    let accept = accept(request.accept.as_deref())?;
    if !job.state.is_final() {
        let detail = format!("restore {id} is still under way; abandon it instead");
        return Err(Problem { job: Some(id), ..Problem::new(ErrorCode::NothingToUndo, detail) });
    }
    let journal = state.store.kept_journal(id).await?;
    let timeline = journal.as_ref().and_then(undo_timeline).ok_or_else(|| {
        let detail = format!("restore {id} changed nothing that could be undone");
        Problem { job: Some(id), ..Problem::new(ErrorCode::NothingToUndo, detail) }
    })?;
    let plan_request = PlanRequest {
        wish: back_to(timeline),
        on_reached: OnReached::Promote,
        databases: Vec::new(),
        accept,
    };
    let plan = plan(&state, &spec.stanza, plan_request, OnConflict::Cancel).await?;
    let spec = RestoreSpec { backup_after: request.backup_after, undoes: Some(id), ..plan.spec() };
    let submission = Submission {
        on_conflict: OnConflict::Cancel,
        idempotency_key: key.0,
        ..asked(&caller, JobSpec::Restore(spec))
    };
    super::accept(&state, submission, wait).await
}
