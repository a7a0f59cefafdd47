//! Which backups stay and go, and why; one that is removed, pinned or annotated.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

use super::backups::BackupView;
use super::jobs::JobView;
use super::stanzas::on_conflict;
use super::upkeep::RemovedView;
use super::{accept_as, asked, trigger_of};
use crate::domain::job::{
    AnnotateSpec, ExpireSpec, Job, JobSpec, JobState, OnConflict, Removed, Trigger,
};
use crate::domain::retention::{Refused, Removal, RepoPlan};
use crate::domain::{Annotations, BackupLabel, RepoKey, StanzaName};
use crate::http::auth::Caller;
use crate::http::extract::{Json as Body, Named, Prefer, Query, Stanza};
use crate::http::problem::{ErrorCode, Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::jobs::Submission;
use crate::jobs::catalog::Freshness;
use crate::jobs::retention::{Ground, PIN_KEY, RetentionError};

/// How long a change of annotations is waited for.
const ANNOTATE_PATIENCE: Duration = Duration::from_secs(60);
/// How long the copy of a pin in the repository is waited for; the pin counts without it.
const COPY_PATIENCE: Duration = Duration::from_secs(10);

/// What stays and goes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Retention)]
pub(in crate::http) struct RetentionView {
    /// `[retention]` of the configuration.
    policy: PolicyView,
    /// One for each repository with backups.
    repos: Vec<RepoView>,
    /// What the user should know.
    warnings: Vec<String>,
    /// When pgBackRest was asked.
    #[schema(value_type = String, format = DateTime)]
    observed_at: Timestamp,
}

/// `[retention]` of Headrest's configuration. Null: off.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RetentionPolicy)]
pub(in crate::http) struct PolicyView {
    /// Whether backups may be pinned.
    pins: bool,
    /// Days of which the newest backup is kept.
    #[schema(example = 14)]
    daily: Option<u32>,
    /// ISO weeks.
    #[schema(example = 5)]
    weekly: Option<u32>,
    /// Months.
    #[schema(example = 12)]
    monthly: Option<u32>,
    /// Years.
    #[schema(example = 3)]
    yearly: Option<u32>,
    /// Where days begin.
    #[schema(example = "Europe/Berlin")]
    timezone: Option<String>,
    /// For how many seconds everything stays that existed when a restore began.
    #[schema(example = 1_209_600)]
    after_restore_s: u64,
}

/// One repository.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RetentionRepo)]
pub(in crate::http) struct RepoView {
    /// Its key.
    #[schema(example = 1)]
    repo: u16,
    /// pgBackRest's own options that count.
    #[schema(example = json!({"repo1-retention-full": "2"}))]
    options: BTreeMap<String, String>,
    /// Every backup, newest first.
    backups: Vec<VerdictView>,
    /// What carries it out, in this order.
    calls: Vec<CallView>,
    /// Afterwards: of how many of the newest fulls all WAL is kept, unless
    /// `repoN-retention-archive` says otherwise.
    wal_fulls: u32,
}

/// What happens to a backup.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RetentionVerdict)]
pub(in crate::http) struct VerdictView {
    /// Its label.
    #[schema(example = "20261120-101500F")]
    label: String,
    /// Whether it stays.
    kept: bool,
    /// Every reason why it stays.
    #[schema(example = json!(["daily 2026-11-20", "weekly 2026-W47", "pinned"]))]
    reasons: Vec<String>,
    /// Why it goes; null when it stays.
    doomed: Option<String>,
}

/// One `expire --set`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RetentionCall)]
pub(in crate::http) struct CallView {
    /// The set that is named.
    set: String,
    /// Everything that goes with it, itself first.
    removes: Vec<String>,
}

impl CallView {
    fn new(removal: &Removal) -> Self {
        Self { set: removal.set.to_string(), removes: strings(&removal.removes) }
    }
}

fn strings(labels: &[BackupLabel]) -> Vec<String> {
    labels.iter().map(ToString::to_string).collect()
}

impl RepoView {
    fn new(ground: &Ground, plan: &RepoPlan) -> Self {
        let options = ground.options.get(&plan.repo).into_iter().flatten().cloned().collect();
        let verdicts = plan.verdicts.iter().rev();
        Self {
            repo: plan.repo.get(),
            options,
            backups: verdicts
                .map(|verdict| VerdictView {
                    label: verdict.label.to_string(),
                    kept: verdict.is_kept(),
                    reasons: verdict.reasons.iter().map(ToString::to_string).collect(),
                    doomed: verdict.doom.map(|doom| doom.to_string()),
                })
                .collect(),
            calls: plan.removals.iter().map(CallView::new).collect(),
            wal_fulls: plan.wal_fulls(),
        }
    }
}

/// What an expire would remove now, and why every other backup stays.
#[utoipa::path(get, path = "/stanzas/{stanza}/retention", tag = "backups", params(("stanza" = String, Path, example = "main")), responses(
    (status = 200, description = "what stays and goes", body = RetentionView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn preview(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
) -> Outcome<Json<RetentionView>> {
    let ground = state.keeper.look(&stanza).await?;
    super::backups::readable(std::sync::Arc::clone(&ground.seen))?;
    let plans = ground.plan();
    let config = state.keeper.config();
    Ok(Json(RetentionView {
        policy: PolicyView {
            pins: config.pins,
            daily: config.policy.daily,
            weekly: config.policy.weekly,
            monthly: config.policy.monthly,
            yearly: config.policy.yearly,
            timezone: config.timezone.iana_name().map(str::to_owned),
            after_restore_s: config.after_restore.as_secs().unsigned_abs(),
        },
        repos: plans.iter().map(|plan| RepoView::new(&ground, plan)).collect(),
        warnings: ground.warnings(&plans),
        observed_at: ground.seen.observed_at,
    }))
}

/// How a backup is removed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct RemoveQuery {
    /// `true`: only say what would go.
    dry_run: Option<bool>,
    /// Only from this repository.
    repo: Option<String>,
    /// What to do when another job has the lane: refuse (the default) or queue.
    #[param(example = "queue")]
    on_conflict: Option<String>,
}

/// A removal that was accepted.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Removal)]
pub(in crate::http) struct RemovalView {
    #[serde(flatten)]
    job: JobView,
    /// Everything that goes: the backup, and all that build upon it.
    removes: Vec<RemovedView>,
}

/// What a removal does, or would do.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum RemovalAnswer {
    /// With `dry_run=true`.
    Preview(RemovalPreview),
    /// Otherwise.
    Job(Box<RemovalView>),
}

/// What a removal would do.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RemovalPreview {
    /// Always true.
    dry_run: bool,
    /// Everything that would go: the backup, and all that build upon it.
    removes: Vec<RemovedView>,
    /// Bytes that they alone take in the repository, as far as that is known.
    freed_bytes: u64,
}

/// Removes a backup, and all that build upon it.
#[utoipa::path(delete, path = "/stanzas/{stanza}/backups/{label}", tag = "backups", params(
    ("stanza" = String, Path, example = "main"),
    ("label" = String, Path, example = "20261120-101500F"),
    RemoveQuery,
    ("Prefer" = Option<String>, Header, description = "`wait=N`: answer when the job has ended, at most N seconds from now", example = "wait=60"),
), responses(
    (status = 200, description = "with `dry_run=true`: what would go; with `Prefer: wait` the finished job", body = RemovalAnswer),
    (status = 202, description = "the job, and what goes", body = RemovalView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn remove(
    State(state): State<AppState>,
    caller: Caller,
    Stanza(stanza): Stanza,
    Named(label): Named,
    Query(query): Query<RemoveQuery>,
    Prefer(wait): Prefer,
) -> Outcome<Response> {
    let label = parse_label(&label)?;
    let on_conflict = on_conflict(query.on_conflict.as_deref(), OnConflict::Refuse)?;
    let repo = query.repo.map(|text| text.parse::<RepoKey>()).transpose();
    let repo = repo.map_err(|error| Problem::field("repo", error.to_string()))?;
    let ground = state.keeper.look(&stanza).await?;
    let going = ground.removal(&label, repo)?;
    let removed = going.iter().flat_map(|(repo, removal)| {
        removal.removes.iter().map(|label| Removed { label: label.clone(), repo: *repo })
    });
    let removed: Vec<Removed> = removed.collect();
    if query.dry_run == Some(true) {
        let is_going = |repo: RepoKey, label: &BackupLabel| {
            removed.iter().any(|one| one.repo == repo && one.label == *label)
        };
        let own = ground.backups.iter().filter(|held| is_going(held.repo, &held.label));
        let freed_bytes = own.filter_map(|held| held.own_bytes).sum();
        let removes = removed.into_iter().map(RemovedView::from).collect();
        let preview = RemovalPreview { dry_run: true, removes, freed_bytes };
        return Ok(Json(RemovalAnswer::Preview(preview)).into_response());
    }
    let spec = ExpireSpec { stanza, set: Some(label), repo, dry_run: false };
    let submission = Submission { on_conflict, ..asked(&caller, JobSpec::Expire(spec)) };
    let removes = removed.into_iter().map(RemovedView::from).collect();
    let answer = |job| RemovalAnswer::Job(Box::new(RemovalView { job, removes }));
    accept_as(&state, submission, wait, answer).await
}

/// What to change of a backup.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ChangeRequest {
    /// Annotations to add or replace; null or an empty text removes one.
    #[serde(default)]
    #[schema(example = json!({"ticket": "OPS-42", "old": null}))]
    annotations: BTreeMap<String, Option<String>>,
    /// Whether it is pinned: a pinned backup stays until it is unpinned.
    #[schema(example = true)]
    pinned: Option<bool>,
    /// What to do when another job has the lane, which annotations need: refuse (the default) or
    /// queue.
    #[schema(example = "queue")]
    on_conflict: Option<String>,
}

/// Pins, unpins or annotates a backup. A pin counts at once, whatever runs; a copy of it is written
/// into the repository as the annotation `headrest-pin` as soon as the lane is free.
#[utoipa::path(patch, path = "/stanzas/{stanza}/backups/{label}", tag = "backups", params(
    ("stanza" = String, Path, example = "main"), ("label" = String, Path, example = "20261120-101500F"),
), request_body = ChangeRequest, responses(
    (status = 200, description = "the backup as it is now", body = BackupView),
    (status = 202, description = "the job that annotates it waits for the lane", body = JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn change(
    State(state): State<AppState>,
    caller: Caller,
    Stanza(stanza): Stanza,
    Named(label): Named,
    Body(request): Body<ChangeRequest>,
) -> Outcome<Response> {
    let label = parse_label(&label)?;
    let on_conflict = on_conflict(request.on_conflict.as_deref(), OnConflict::Refuse)?;
    let spec = annotation_spec(&stanza, &label, request.annotations)?;
    find(&state, &stanza, &label).await?;
    // A pin counts whatever becomes of the rest, and is taken back only after it.
    let copy = match request.pinned {
        Some(true) => Some(state.keeper.set_pin(&stanza, &label, true, caller.by).await?),
        Some(false) | None => None,
    };
    let annotated = match spec {
        Some(spec) => annotate_as_asked(&state, spec, &caller, on_conflict).await,
        None => Ok(None),
    };
    let copy = match request.pinned {
        Some(false) if annotated.is_ok() => {
            Some(state.keeper.set_pin(&stanza, &label, false, caller.by).await?)
        }
        Some(_) | None => copy,
    };
    if let Some(copy) = copy {
        let trigger = Trigger::Event("pin".to_owned());
        let queue = OnConflict::Queue;
        let is_busy = state.jobs.lane(&stanza).is_some_and(|lane| lane.running.is_some());
        let patience = if is_busy { Duration::ZERO } else { COPY_PATIENCE };
        if let Err(problem) = annotate(&state, copy, trigger, caller.by, queue, patience).await {
            tracing::warn!("the pin of {label} counts, but is not copied: {}", problem.detail);
        }
    }
    let waiting = annotated?;
    if let Some(job) = waiting {
        return Ok((StatusCode::ACCEPTED, Json(JobView::from(job))).into_response());
    }
    let view = find(&state, &stanza, &label).await?;
    Ok(Json(view).into_response())
}

fn parse_label(text: &str) -> Outcome<BackupLabel> {
    text.parse::<BackupLabel>().map_err(|error| Problem::field("label", error.to_string()))
}

/// The change as a job; nothing when there is none.
fn annotation_spec(
    stanza: &StanzaName,
    label: &BackupLabel,
    wanted: BTreeMap<String, Option<String>>,
) -> Outcome<Option<AnnotateSpec>> {
    let refused = |detail: String| Problem::field("annotations", detail);
    if wanted.contains_key(PIN_KEY) {
        return Err(refused(format!("{PIN_KEY} is Headrest's own: use \"pinned\"")));
    }
    let mut pairs = BTreeMap::new();
    let mut remove = Vec::new();
    for (key, value) in wanted {
        match value.filter(|value| !value.is_empty()) {
            Some(value) => {
                pairs.insert(key, value);
            }
            None => remove.push(key),
        }
    }
    // Keys that go must be keys, too.
    let gone = remove.iter().map(|key| (key.clone(), "-".to_owned())).collect();
    Annotations::parse(gone).map_err(|error| refused(error.to_string()))?;
    let annotations = Annotations::parse(pairs).map_err(|error| refused(error.to_string()))?;
    let some = !annotations.is_empty() || !remove.is_empty();
    Ok(some.then(|| AnnotateSpec {
        stanza: stanza.clone(),
        set: label.clone(),
        annotations,
        remove,
    }))
}

/// Annotates; answers the job when it still waits for the lane.
async fn annotate_as_asked(
    state: &AppState,
    spec: AnnotateSpec,
    caller: &Caller,
    on_conflict: OnConflict,
) -> Outcome<Option<Job>> {
    let (trigger, by) = (trigger_of(caller), caller.by);
    let job = annotate(state, spec, trigger, by, on_conflict, ANNOTATE_PATIENCE).await?;
    match job.state {
        JobState::Succeeded => Ok(None),
        JobState::Queued | JobState::Running | JobState::Cancelling => Ok(Some(job)),
        JobState::Warned | JobState::Failed | JobState::Cancelled | JobState::Interrupted => {
            let message = job.error.map_or_else(String::new, |error| error.message);
            let problem = Problem::new(ErrorCode::RepositoryUnavailable, message);
            Err(Problem { job: Some(job.id), ..problem })
        }
    }
}

/// Annotates, and waits for it at most so long.
async fn annotate(
    state: &AppState,
    spec: AnnotateSpec,
    trigger: Trigger,
    by: &str,
    on_conflict: OnConflict,
    patience: Duration,
) -> Outcome<Job> {
    let submission = Submission::new(JobSpec::Annotate(spec), trigger, by);
    let submission = Submission { on_conflict, ..submission };
    let job = state.jobs.submit(submission).await?;
    let finished = timeout(patience, state.jobs.finished(job.id)).await.ok().transpose()?;
    Ok(finished.unwrap_or(job))
}

/// A backup as it is now.
async fn find(state: &AppState, stanza: &StanzaName, label: &BackupLabel) -> Outcome<BackupView> {
    let seen = state.catalog.observe(stanza, Freshness::New).await?;
    let backup = seen.stanza.backups.iter().find(|backup| backup.label == *label);
    let backup = backup.ok_or_else(|| Problem::from(Refused::Unknown(label.clone())))?;
    let marks = state.keeper.marks(stanza, &seen.stanza).await?;
    Ok(BackupView::new(backup, &marks))
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let detail = refused.to_string();
        match refused {
            Refused::Unknown(_) => Self::new(ErrorCode::NoSuchBackup, detail),
            Refused::Pinned(_) => Self::new(ErrorCode::BackupPinned, detail)
                .hint("PATCH it with {\"pinned\": false} first."),
            Refused::AfterRestore(..) => Self::new(ErrorCode::BackupInUse, detail).hint(
                "If that restore will not be undone, release it first: POST \
                 /api/v1/restores/ID/release.",
            ),
            Refused::InUse(..) | Refused::LastFull(..) => Self::new(ErrorCode::BackupInUse, detail),
        }
    }
}

impl From<RetentionError> for Problem {
    fn from(error: RetentionError) -> Self {
        let detail = error.to_string();
        match error {
            RetentionError::Unavailable(error) => error.into(),
            RetentionError::Store(error) => error.into(),
            RetentionError::Journal(error) => {
                // The client learns no paths; whoever reads the log does.
                tracing::error!("{}", crate::telemetry::chain(&error));
                let detail = "what a restore works with cannot be told; see Headrest's log";
                Self::new(ErrorCode::Internal, detail)
            }
            RetentionError::Refused(refused) => refused.into(),
            RetentionError::PinsOff => Self::new(ErrorCode::PinsOff, detail),
            RetentionError::Unfinished(_) => Self::new(ErrorCode::BackupInUse, detail).hint(
                "Restore once more until a restore has come to its end, then release this one.",
            ),
            RetentionError::Removing(_) => {
                Self { retry_after_s: Some(30), ..Self::new(ErrorCode::LaneBusy, detail) }
            }
        }
    }
}
