//! Verify and expire as jobs, and what they have to show.

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::stanzas::{on_conflict, repo_of};
use super::{accept, asked};
use crate::domain::BackupLabel;
use crate::domain::job::{
    ExpireResult, ExpireSpec, JobSpec, OnConflict, Removed, VerifyResult, VerifySpec,
};
use crate::http::auth::Caller;
use crate::http::extract::{IdempotencyKey, Json as Body, Prefer, Stanza};
use crate::http::problem::{Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::jobs::Submission;

/// What a verification found.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = VerifyResult)]
pub struct VerifiedView {
    /// Whether everything that was looked at can be restored.
    good: bool,
    /// Backups looked at.
    #[schema(example = 12)]
    backups: u64,
    /// Files of backups looked at.
    files: u64,
    /// WAL segments looked at.
    segments: u64,
    /// What is wrong, a line each; the first hundred.
    #[schema(example = json!(["repository 1: file missing '20261120-101500F/pg_data/base/1/1247.lz4'"]))]
    errors: Vec<String>,
    /// How many there are.
    error_count: u64,
    /// Missing WAL segments, a line for each run of them: between the backups of the current timeline, and
    /// of any backup's own.
    #[schema(example = json!(["repository 1: WAL segment 000000010000000000000004 is missing"]))]
    wal_gaps: Vec<String>,
    /// The same, where retention has them removed: no error.
    wal_expired: Vec<String>,
}

impl From<VerifyResult> for VerifiedView {
    fn from(result: VerifyResult) -> Self {
        let VerifyResult {
            good,
            backups,
            files,
            segments,
            errors,
            error_count,
            wal_gaps,
            wal_expired,
        } = result;
        Self { good, backups, files, segments, errors, error_count, wal_gaps, wal_expired }
    }
}

/// A backup that went, or would go.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = RemovedBackup)]
pub(in crate::http) struct RemovedView {
    /// Its label.
    #[schema(example = "20261120-101500F")]
    label: String,
    /// The repository it was in.
    #[schema(example = 1)]
    repo: u16,
}

impl From<Removed> for RemovedView {
    fn from(removed: Removed) -> Self {
        Self { label: removed.label.to_string(), repo: removed.repo.get() }
    }
}

/// What an expire did.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ExpireResult)]
pub struct ExpiredView {
    /// Whether nothing was done, but said what would be.
    dry_run: bool,
    /// The backups that `info` does not list any more; of a dry run those that would go.
    removed: Vec<RemovedView>,
    /// How many backups are left.
    #[schema(example = 14)]
    kept: u64,
    /// Bytes that the removed backups alone took in the repository, as far as that is known.
    freed_bytes: u64,
}

impl From<ExpireResult> for ExpiredView {
    fn from(result: ExpireResult) -> Self {
        let ExpireResult { dry_run, removed, kept, freed_bytes } = result;
        let removed = removed.into_iter().map(RemovedView::from).collect();
        Self { dry_run, removed, kept, freed_bytes }
    }
}

/// What to verify.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct VerifyRequest {
    /// Only this backup, by its label; everything when not given.
    #[schema(example = "20261120-101500F")]
    set: Option<String>,
    /// Only this repository; every one when not given.
    #[schema(example = 1)]
    repo: Option<u32>,
    /// What to do when another job has the lane: refuse (the default) or queue.
    #[schema(example = "queue")]
    on_conflict: Option<String>,
}

/// What to expire.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ExpireRequest {
    /// This backup, by its label, with all that build upon it; what retention says when not given.
    #[schema(example = "20261120-101500F")]
    set: Option<String>,
    /// Only this repository; every one when not given.
    #[schema(example = 1)]
    repo: Option<u32>,
    /// Only say what would go.
    #[serde(default)]
    dry_run: bool,
    /// What to do when another job has the lane: refuse (the default) or queue.
    #[schema(example = "queue")]
    on_conflict: Option<String>,
}

/// Reads what the repositories hold again, every file, and looks for gaps in the WAL. The job fails
/// with `verify-errors` or `wal-gap`.
#[utoipa::path(post, path = "/stanzas/{stanza}/verify", tag = "backups", params(("stanza" = String, Path, example = "main")), request_body = Option<VerifyRequest>, responses(
    (status = 200, description = "the finished job, with `Prefer: wait`", body = super::jobs::JobView),
    (status = 202, description = "the job", body = super::jobs::JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn verify(
    State(state): State<AppState>,
    caller: Caller,
    Stanza(stanza): Stanza,
    Prefer(wait): Prefer,
    key: IdempotencyKey,
    body: Option<Body<VerifyRequest>>,
) -> Outcome<Response> {
    let request = body.map(|Body(request)| request).unwrap_or_default();
    let (set, repo) = (set_of(request.set.as_deref())?, repo_of(request.repo)?);
    let spec = JobSpec::Verify(VerifySpec { stanza, set, repo });
    let on_conflict = on_conflict(request.on_conflict.as_deref(), OnConflict::Refuse)?;
    let submission = Submission { on_conflict, idempotency_key: key.0, ..asked(&caller, spec) };
    accept(&state, submission, wait).await
}

/// Removes the backups that retention does not keep, or one backup with all that build upon it.
#[utoipa::path(post, path = "/stanzas/{stanza}/expire", tag = "backups", params(("stanza" = String, Path, example = "main")), request_body = Option<ExpireRequest>, responses(
    (status = 200, description = "the finished job, with `Prefer: wait`", body = super::jobs::JobView),
    (status = 202, description = "the job", body = super::jobs::JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn expire(
    State(state): State<AppState>,
    caller: Caller,
    Stanza(stanza): Stanza,
    Prefer(wait): Prefer,
    key: IdempotencyKey,
    body: Option<Body<ExpireRequest>>,
) -> Outcome<Response> {
    let request = body.map(|Body(request)| request).unwrap_or_default();
    let (set, repo) = (set_of(request.set.as_deref())?, repo_of(request.repo)?);
    if let Some(set) = &set {
        // The job looks again; who asks learns it at once.
        state.keeper.look(&stanza).await?.removal(set, repo)?;
    }
    let spec = JobSpec::Expire(ExpireSpec { stanza, set, repo, dry_run: request.dry_run });
    let on_conflict = on_conflict(request.on_conflict.as_deref(), OnConflict::Refuse)?;
    let submission = Submission { on_conflict, idempotency_key: key.0, ..asked(&caller, spec) };
    accept(&state, submission, wait).await
}

fn set_of(text: Option<&str>) -> Outcome<Option<BackupLabel>> {
    let parsed = text.map(str::parse::<BackupLabel>).transpose();
    parsed.map_err(|error| Problem::field("set", error.to_string()))
}
