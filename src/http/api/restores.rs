//! Restores: begun, watched, decided about, undone.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::jobs::{JobView, find, job_page};
use super::plans::{PlanBody, TargetRequest, TargetView};
use super::stanzas::on_conflict;
use super::{Page, asked, page, page_limit};
use crate::domain::job::{Job, JobKind, JobSpec, OnConflict, RestoreSpec};
use crate::domain::plan::check::CheckId;
use crate::domain::restore::{Action, Journal};
use crate::domain::{JobId, StanzaName};
use crate::http::auth::Caller;
use crate::http::extract::{Id, IdempotencyKey, Json as Body, Prefer, Query, Stanza};
use crate::http::problem::{CheckView, ErrorCode, Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::jobs::plans::{Plan, PlanRequest};
use crate::jobs::{Denied, Submission};
use crate::store::JobFilter;

/// A restore that is asked for: a plan to carry out, or what to plan.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct RestoreRequest {
    /// The id of a restore plan. Then nothing else of what a plan is asked for.
    plan: Option<String>,
    /// Where recovery ends.
    target: Option<TargetRequest>,
    /// The backup set; when not given the newest that ended before the target and is not known to be
    /// damaged.
    #[schema(example = "20261120-101500F")]
    set: Option<String>,
    /// The repository.
    #[schema(example = 1)]
    repo: Option<u32>,
    /// The timeline to follow: current, latest or a number.
    #[schema(value_type = Option<String>, example = "current")]
    timeline: Option<Value>,
    /// in-place: PGDATA is replaced, by a delta restore.
    #[schema(example = "in-place")]
    mode: Option<String>,
    /// Only these databases; the others become unusable and must be dropped.
    databases: Option<Vec<String>>,
    /// promote (the default), or pause: look first, then promote, retarget or abandon.
    #[schema(example = "pause")]
    on_reached: Option<String>,
    /// Failed checks that you take upon yourself: wal-gap, wal-loss, other-system, damaged-set,
    /// destroyed-database.
    accept: Option<Vec<String>>,
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

fn yes() -> bool {
    true
}

impl RestoreRequest {
    fn body(&self) -> PlanBody {
        PlanBody {
            target: self.target.clone(),
            set: self.set.clone(),
            repo: self.repo,
            timeline: self.timeline.clone(),
            mode: self.mode.clone(),
            databases: self.databases.clone(),
            on_reached: self.on_reached.clone(),
            accept: self.accept.clone(),
        }
    }
}

/// Restores PGDATA in place, and answers once PostgreSQL takes writes (with `Prefer: wait`).
///
/// It is planned first, unless a plan is named; what cannot be reached, or would go wrong, is refused
/// before anything is touched. Phases: accepted, quiesced, safe-point, stopping, draining, restoring,
/// restored, recovering, verified, promoting, unfencing, done. Until restoring begins it can be
/// cancelled and changes nothing.
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
    let body = request.body();
    let parsed = match (&request.plan, body.is_empty()) {
        (Some(_), true) => None,
        (Some(_), false) => {
            return Err(Problem::field("plan", "stands alone: the plan has its own target"));
        }
        (None, _) => Some(body.parse()?),
    };
    let on_conflict = on_conflict(request.on_conflict.as_deref(), OnConflict::Cancel)?;
    confirmed(stanza.as_str(), request.confirm.as_deref())?;
    let plan = match (&request.plan, parsed) {
        (Some(id), _) => {
            lane_for_restore(&state, &stanza, on_conflict)?;
            state.planner.again(&stanza, id, state.jobs.lane(&stanza)).await?
        }
        (None, Some(request)) => plan(&state, &stanza, request, on_conflict).await?,
        (None, None) => return Err(Problem::field("target", "is missing")),
    };
    let spec = RestoreSpec { backup_after: request.backup_after, ..plan.spec() };
    refuse_failed(&plan)?;
    let spec = JobSpec::Restore(spec);
    let submission = Submission { on_conflict, idempotency_key: key.0, ..asked(&caller, spec) };
    super::accept(&state, submission, wait).await
}

/// Plans a restore that is to begin at once, and refuses what would be refused.
pub(in crate::http) async fn plan(
    state: &AppState,
    stanza: &StanzaName,
    request: PlanRequest,
    on_conflict: OnConflict,
) -> Outcome<Plan> {
    lane_for_restore(state, stanza, on_conflict)?;
    let plan = state.planner.plan(stanza, request, state.jobs.lane(stanza)).await?;
    refuse_failed(&plan)?;
    Ok(plan)
}

/// What is restored at present cannot be planned for; and a caller that would rather be refused
/// than wait is.
fn lane_for_restore(state: &AppState, stanza: &StanzaName, on_conflict: OnConflict) -> Outcome<()> {
    let running = state.jobs.lane(stanza).and_then(|lane| lane.running);
    match running {
        Some((job, kind)) if kind == JobKind::Restore || on_conflict == OnConflict::Refuse => {
            Err(Denied::LaneBusy { stanza: stanza.clone(), job, kind }.into())
        }
        Some(_) | None => Ok(()),
    }
}

pub(super) fn refuse_failed(plan: &Plan) -> Outcome<()> {
    let refusing = plan.refusing();
    if refusing.is_empty() {
        return Ok(());
    }
    let space = refusing.iter().all(|check| check.id == CheckId::Space);
    let code = if space { ErrorCode::InsufficientSpace } else { ErrorCode::RestoreRefused };
    let told: Vec<&str> = refusing.iter().map(|check| check.detail.as_str()).collect();
    let acceptable: Vec<&str> = refusing
        .iter()
        .filter(|check| check.id.is_acceptable())
        .map(|check| check.id.as_str())
        .collect();
    let problem = Problem {
        checks: refusing.iter().map(|check| CheckView::from(*check)).collect(),
        ..Problem::new(code, told.join("; "))
    };
    if acceptable.is_empty() {
        return Err(problem);
    }
    Err(problem.hint(format!("To take it upon yourself: \"accept\": {acceptable:?}.")))
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

/// A restore: its job, and what only a restore has.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Restore)]
pub(in crate::http) struct RestoreView {
    #[serde(flatten)]
    job: JobView,
    /// Where recovery ends.
    target: TargetView,
    /// promote or pause.
    on_reached: &'static str,
    /// The backup set; null before it is chosen.
    set: Option<String>,
    /// The timeline that recovery follows.
    timeline: Option<u32>,
    /// The timeline that the server was on before.
    timeline_before: Option<u32>,
    /// Only these databases; all when there are none.
    databases: Vec<String>,
    /// What was accepted.
    accepted: Vec<&'static str>,
    /// What it waits for somebody to decide about; null when it does not.
    awaiting: Option<AwaitingView>,
    /// What can be done to it now: promote, retarget, abandon, undo, release.
    actions: Vec<&'static str>,
    /// Where an undo goes back to; null when the server was not running before.
    undo_point: Option<UndoPointView>,
    /// Until when everything that existed when it began is kept for its undo, unless it is released;
    /// null when nothing is kept.
    #[schema(value_type = Option<String>, format = DateTime)]
    kept_until: Option<Timestamp>,
    /// The restore that this one undoes.
    undoes: Option<String>,
    /// How often pgBackRest was started.
    attempts: u32,
    /// What went wrong last.
    last_error: Option<String>,
}

/// What a restore waits for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Awaiting)]
pub(in crate::http) struct AwaitingView {
    /// target-reached, wal-gap, end-before-target, repository-unavailable, stop-file, disk-full,
    /// directory-missing, role-missing, database-destroyed or no-progress.
    reason: &'static str,
    /// Since when.
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// The WAL segment that is missing, or beyond the end.
    segment: Option<String>,
    /// What is known of it, with pgBackRest's own message where there is one.
    detail: Option<String>,
    /// What to do.
    text: &'static str,
    /// How to look at the data, as root or as the user that PostgreSQL runs as; null when nobody
    /// can connect.
    look: Option<String>,
}

/// Where an undo goes back to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UndoPoint)]
pub(in crate::http) struct UndoPointView {
    /// The timeline.
    timeline: u32,
    /// The position.
    lsn: String,
    /// The restore point's name.
    name: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

impl RestoreView {
    async fn new(state: &AppState, job: Job, spec: &RestoreSpec) -> Outcome<Self> {
        let journal = state.store.kept_journal(job.id).await?;
        let hold = match &journal {
            Some(journal) => state.keeper.held_by(journal).await?,
            None => None,
        };
        let over = job.state.is_final();
        let waits = journal.as_ref().filter(|_| !over);
        let waits = waits.and_then(|journal| Some((journal, journal.awaiting?)));
        let mut actions = waits.map_or_else(Vec::new, |(journal, awaiting)| {
            awaiting.actions(journal.phase, journal.consistent)
        });
        if over && journal.as_ref().is_some_and(|journal| undo_timeline(journal).is_some()) {
            actions.push(Action::Undo);
        }
        if hold.is_some() {
            actions.push(Action::Release);
        }
        let awaiting = waits.map(|(journal, awaiting)| AwaitingView {
            reason: awaiting.as_str(),
            since: journal.awaiting_since,
            segment: journal.awaited_segment.clone(),
            detail: journal.awaited_detail.clone(),
            text: awaiting.advice(),
            look: look(state).filter(|_| journal.consistent),
        });
        let of = |pick: &dyn Fn(&Journal) -> Option<u32>| journal.as_ref().and_then(pick);
        let target = journal.as_ref().map_or(&spec.target, |journal| &journal.target);
        let reached = journal.as_ref().map_or(spec.on_reached, |journal| journal.on_reached);
        let accepted = journal.as_ref().map_or(&spec.accept, |journal| &journal.accept);
        let undo_point = journal.as_ref().and_then(|journal| journal.undo_point.as_ref());
        Ok(Self {
            target: TargetView::from(target),
            on_reached: reached.as_str(),
            set: journal.as_ref().map(|journal| journal.set.to_string()),
            timeline: of(&|journal| journal.timeline.map(|timeline| timeline.get())),
            timeline_before: of(&|journal| journal.timeline_before.map(|timeline| timeline.get())),
            databases: spec.databases.iter().map(ToString::to_string).collect(),
            accepted: accepted.iter().map(|id| id.as_str()).collect(),
            awaiting,
            actions: actions.into_iter().map(Action::as_str).collect(),
            undo_point: undo_point.map(|point| UndoPointView {
                timeline: point.timeline.get(),
                lsn: point.lsn.to_string(),
                name: point.name.clone(),
                at: point.at,
            }),
            kept_until: hold.and_then(|hold| hold.until),
            undoes: spec.undoes.map(|id| id.to_string()),
            attempts: journal.as_ref().map_or(0, |journal| journal.attempts),
            last_error: journal.and_then(|journal| journal.last_error),
            job: job.into(),
        })
    }
}

/// The command line that connects to a fenced server. With a time limit for locks: what a
/// transaction beyond the target had locked stays locked there (`TRUNCATE`, `DROP`, `ALTER`).
fn look(state: &AppState) -> Option<String> {
    let address = state.postgres.status().address?;
    Some(format!(
        "PGOPTIONS='-c lock_timeout=5s' psql -h {} -p {} -U {}",
        state.fence_dir.as_ref()?.display(),
        address.port,
        address.user
    ))
}

/// The timeline that an undo of this restore follows; `None` when it changed nothing.
pub(super) fn undo_timeline(journal: &Journal) -> Option<crate::domain::Timeline> {
    let changed = !journal.phase.data_is_intact();
    let before = journal.undo_point.as_ref().map(|point| point.timeline);
    before.or(journal.timeline_before).filter(|_| changed)
}

pub(super) async fn find_restore(state: &AppState, id: JobId) -> Outcome<(Job, RestoreSpec)> {
    let job = find(state, id).await?;
    match &job.spec {
        JobSpec::Restore(spec) => {
            let spec = spec.clone();
            Ok((job, spec))
        }
        other => {
            let detail = format!("job {id} is a {}, not a restore", other.kind());
            Err(Problem::new(ErrorCode::NoSuchJob, detail))
        }
    }
}

/// One restore: its job with its phase, what it waits for, and what can be done.
#[utoipa::path(get, path = "/restores/{id}", tag = "restores", params(("id" = String, Path, description = "the job's id")), responses(
    (status = 200, description = "the restore", body = RestoreView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn show(
    State(state): State<AppState>,
    Id(id): Id,
) -> Outcome<Json<RestoreView>> {
    let (job, spec) = find_restore(&state, id).await?;
    Ok(Json(RestoreView::new(&state, job, &spec).await?))
}

/// Keeps nothing any more for the undo of a restore: retention decides again about what existed when
/// it began. Without it that is kept for `[retention] after_restore`.
#[utoipa::path(post, path = "/restores/{id}/release", tag = "restores", params(("id" = String, Path, description = "the job's id")), responses(
    (status = 200, description = "the restore", body = RestoreView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn release(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id,
) -> Outcome<Json<RestoreView>> {
    let (job, spec) = find_restore(&state, id).await?;
    if !job.state.is_final() {
        let detail = format!("restore {id} is still under way, and needs what it keeps");
        return Err(Problem { job: Some(id), ..Problem::new(ErrorCode::LaneBusy, detail) });
    }
    state.keeper.release(&spec.stanza, id, caller.by).await?;
    Ok(Json(RestoreView::new(&state, job, &spec).await?))
}
