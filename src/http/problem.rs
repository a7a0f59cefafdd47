//! Errors as answers: RFC 9457 problem details. The only place that knows statuses.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::JobId;
use crate::domain::plan::Unreachable;
use crate::domain::plan::check::Check;
use crate::domain::restore::NotNow;
use crate::domain::words::words;
use crate::jobs::Denied;
use crate::jobs::catalog::Unavailable;
use crate::jobs::plans::{PlanError, Stale};
use crate::store::StoreError;

words! {
    /// The codes of the API's own answers. A job's `error.code` has further ones, see the schema.
    ErrorCode {
        /// The body is no JSON.
        MalformedJson = "malformed-json",
        /// No token, or a wrong one.
        Unauthenticated = "unauthenticated",
        /// Not allowed.
        Forbidden = "forbidden",
        /// A form or script without its token.
        Csrf = "csrf",
        /// `Host` is not one of `allowed_hosts`.
        HostNotAllowed = "host-not-allowed",
        /// No such path.
        NotFound = "not-found",
        /// No such stanza.
        NoSuchStanza = "no-such-stanza",
        /// No such backup.
        NoSuchBackup = "no-such-backup",
        /// The backup, or one that builds upon it, is pinned.
        BackupPinned = "backup-pinned",
        /// The backup cannot be spared at present.
        BackupInUse = "backup-in-use",
        /// Pins are turned off.
        PinsOff = "pins-off",
        /// No such job.
        NoSuchJob = "no-such-job",
        /// No such process.
        NoSuchProcess = "no-such-process",
        /// No such target of notifications.
        NoSuchNotification = "no-such-notification",
        /// The path exists, the method does not.
        MethodNotAllowed = "method-not-allowed",
        /// Another job has the stanza's lane.
        LaneBusy = "lane-busy",
        /// The job has ended already.
        JobEnded = "job-ended",
        /// The restore has begun to change files.
        TooLateToCancel = "too-late-to-cancel",
        /// PostgreSQL runs already.
        PostgresRunning = "postgres-running",
        /// PostgreSQL does not run.
        PostgresStopped = "postgres-stopped",
        /// A restore holds PostgreSQL.
        PostgresFenced = "postgres-fenced",
        /// Headrest does not supervise this server.
        PostgresNotSupervised = "postgres-not-supervised",
        /// This server is not backed up, so nothing of that can be done.
        BackupsOff = "backups-off",
        /// The target of a restore cannot be reached.
        TargetOutsideWindow = "target-outside-window",
        /// The target is before the end of the backup, or of every backup.
        TargetBeforeBackup = "target-before-backup",
        /// A check of the plan failed that was not, or cannot be, accepted.
        RestoreRefused = "restore-refused",
        /// What would be restored does not fit on the disk.
        InsufficientSpace = "insufficient-space",
        /// There is no such plan any more.
        PlanExpired = "plan-expired",
        /// Something has changed since the plan was made.
        PlanStale = "plan-stale",
        /// The restore does not wait for this decision.
        RestoreNotWaiting = "restore-not-waiting",
        /// There is nothing to undo.
        NothingToUndo = "nothing-to-undo",
        /// No such schedule.
        NoSuchSchedule = "no-such-schedule",
        /// The name of a schedule is taken.
        ScheduleExists = "schedule-exists",
        /// The schedule is not the API's to change.
        ScheduleReadOnly = "schedule-read-only",
        /// A change that does not say what it is about.
        PreconditionRequired = "precondition-required",
        /// What is to be changed has changed.
        PreconditionFailed = "precondition-failed",
        /// The name of a restore point is taken.
        RestorePointExists = "restore-point-exists",
        /// A destructive request without its confirmation.
        ConfirmationRequired = "confirmation-required",
        /// A field or parameter that cannot be taken.
        InvalidField = "invalid-field",
        /// The key was used for another request.
        IdempotencyMismatch = "idempotency-mismatch",
        /// The first request with this key is still being answered.
        IdempotencyInProgress = "idempotency-in-progress",
        /// The body is too large.
        PayloadTooLarge = "payload-too-large",
        /// The body is not declared as JSON.
        UnsupportedMediaType = "unsupported-media-type",
        /// The body took too long to arrive.
        RequestTimeout = "request-timeout",
        /// Too many attempts.
        RateLimited = "rate-limited",
        /// `pgbackrest info` cannot be had.
        RepositoryUnavailable = "repository-unavailable",
        /// PostgreSQL cannot be reached or started.
        PostgresUnavailable = "postgres-unavailable",
        /// Headrest is stopping.
        ShuttingDown = "shutting-down",
        /// A bug, or a disk of ours; the log has it.
        Internal = "internal",
    }
}

impl ErrorCode {
    fn status(self) -> StatusCode {
        match self {
            Self::MalformedJson => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::Csrf => StatusCode::FORBIDDEN,
            Self::HostNotAllowed => StatusCode::MISDIRECTED_REQUEST,
            Self::NotFound
            | Self::NoSuchStanza
            | Self::NoSuchBackup
            | Self::NoSuchJob
            | Self::NoSuchSchedule
            | Self::NoSuchProcess
            | Self::NoSuchNotification => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::LaneBusy
            | Self::BackupPinned
            | Self::BackupInUse
            | Self::PinsOff
            | Self::JobEnded
            | Self::TooLateToCancel
            | Self::PostgresRunning
            | Self::PostgresStopped
            | Self::PostgresFenced
            | Self::PostgresNotSupervised
            | Self::BackupsOff
            | Self::RestoreRefused
            | Self::PlanExpired
            | Self::PlanStale
            | Self::RestoreNotWaiting
            | Self::NothingToUndo
            | Self::RestorePointExists
            | Self::ScheduleExists
            | Self::ScheduleReadOnly
            | Self::IdempotencyInProgress => StatusCode::CONFLICT,
            Self::InsufficientSpace => StatusCode::INSUFFICIENT_STORAGE,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::ConfirmationRequired
            | Self::InvalidField
            | Self::TargetOutsideWindow
            | Self::TargetBeforeBackup
            | Self::IdempotencyMismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::PreconditionRequired => StatusCode::PRECONDITION_REQUIRED,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::RepositoryUnavailable | Self::PostgresUnavailable | Self::ShuttingDown => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::MalformedJson => "The body is not valid JSON",
            Self::Unauthenticated => "A token is needed",
            Self::Forbidden => "Not allowed",
            Self::Csrf => "The request does not come from a page of Headrest",
            Self::HostNotAllowed => "This host name is not allowed",
            Self::NotFound => "No such path",
            Self::NoSuchStanza => "No such stanza",
            Self::NoSuchBackup => "No such backup",
            Self::BackupPinned => "The backup is pinned",
            Self::BackupInUse => "The backup cannot be spared",
            Self::PinsOff => "Backups cannot be pinned here",
            Self::NoSuchJob => "No such job",
            Self::NoSuchProcess => "No such process",
            Self::NoSuchNotification => "No such target of notifications",
            Self::MethodNotAllowed => "This path does not have that method",
            Self::LaneBusy => "The stanza is busy",
            Self::JobEnded => "The job has ended",
            Self::TooLateToCancel => "The restore cannot be stopped any more",
            Self::PostgresRunning => "PostgreSQL is running",
            Self::PostgresStopped => "PostgreSQL is not running",
            Self::PostgresFenced => "A restore holds PostgreSQL",
            Self::PostgresNotSupervised => "PostgreSQL is not supervised by Headrest",
            Self::BackupsOff => "This server is not backed up",
            Self::TargetOutsideWindow => "The target cannot be reached",
            Self::TargetBeforeBackup => "The target is before the end of the backup",
            Self::RestoreRefused => "The restore cannot go well",
            Self::InsufficientSpace => "There is not enough space",
            Self::PlanExpired => "The plan is gone",
            Self::PlanStale => "Something has changed since the plan was made",
            Self::RestoreNotWaiting => "The restore does not wait for this",
            Self::NothingToUndo => "There is nothing to undo",
            Self::RestorePointExists | Self::ScheduleExists => "The name is taken",
            Self::NoSuchSchedule => "No such schedule",
            Self::ScheduleReadOnly => "The schedule is changed elsewhere",
            Self::PreconditionRequired => "Say which version is to be changed",
            Self::PreconditionFailed => "It has changed meanwhile",
            Self::ConfirmationRequired => "This destroys data and must be confirmed",
            Self::InvalidField => "A field or parameter cannot be taken",
            Self::IdempotencyMismatch => "The key was used for another request",
            Self::IdempotencyInProgress => "The first request with this key is not answered yet",
            Self::PayloadTooLarge => "The body is too large",
            Self::UnsupportedMediaType => "The body must be JSON",
            Self::RequestTimeout => "The body took too long to arrive",
            Self::RateLimited => "Too many attempts",
            Self::RepositoryUnavailable => "The repository cannot be read",
            Self::PostgresUnavailable => "PostgreSQL cannot be reached",
            Self::ShuttingDown => "Headrest is stopping",
            Self::Internal => "Something went wrong in Headrest",
        }
    }
}

/// An error on its way to the client.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) code: ErrorCode,
    pub(crate) detail: String,
    pub(crate) hints: Vec<String>,
    pub(crate) job: Option<JobId>,
    pub(crate) field: Option<String>,
    pub(crate) retry_after_s: Option<u32>,
    pub(crate) nearest: Option<String>,
    pub(crate) checks: Vec<CheckView>,
}

/// A check of a restore plan.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = PlanCheck)]
pub(crate) struct CheckView {
    /// lane-free, no-orphan-workers, repository, other-system, target, wal-gap, pgdata,
    /// owned-entries, wal-loss, space, layout, configuration-files, databases or
    /// pgbackrest-version.
    #[schema(example = "wal-gap")]
    pub(crate) id: &'static str,
    /// pass, warn or fail.
    #[schema(example = "pass")]
    pub(crate) verdict: &'static str,
    /// Whether its failure may be taken upon oneself, with `accept`.
    pub(crate) acceptable: bool,
    /// Why.
    pub(crate) detail: String,
}

impl From<&Check> for CheckView {
    fn from(check: &Check) -> Self {
        Self {
            id: check.id.as_str(),
            verdict: check.verdict.as_str(),
            acceptable: check.id.is_acceptable(),
            detail: check.detail.clone(),
        }
    }
}

pub(crate) type Outcome<T> = Result<T, Problem>;

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// A reference that identifies the kind of problem.
    #[schema(example = "/problems/lane-busy")]
    r#type: String,
    /// The kind of problem, for people.
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 409)]
    status: u16,
    /// What happened, with the names of what it happened to.
    detail: String,
    /// The path that was asked for.
    instance: String,
    /// The kind of problem, for programs.
    #[schema(example = "lane-busy")]
    code: &'static str,
    /// The request, as it stands in Headrest's log.
    request_id: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hints: Vec<String>,
    /// The job that is in the way, or that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<String>,
    /// The field or parameter that cannot be taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// The nearest moment, position or transaction that can be restored to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-11-20T10:00:00Z")]
    nearest: Option<String>,
    /// The checks that refuse a restore.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checks: Vec<CheckView>,
}

impl Problem {
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            hints: Vec::new(),
            job: None,
            field: None,
            retry_after_s: None,
            nearest: None,
            checks: Vec::new(),
        }
    }

    pub(crate) fn field(name: impl Into<String>, detail: impl Into<String>) -> Self {
        let name = name.into();
        Self { field: Some(name), ..Self::new(ErrorCode::InvalidField, detail) }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The body and headers. Called once for every problem, by the outermost layer, which knows
    /// the request.
    pub(crate) fn render(self, request_id: String, instance: String) -> Response {
        let status = self.code.status();
        let body = ProblemBody {
            r#type: format!("/problems/{}", self.code),
            title: self.code.title(),
            status: status.as_u16(),
            detail: self.detail,
            instance,
            code: self.code.as_str(),
            request_id,
            hints: self.hints,
            job: self.job.map(|id| format!("/api/v1/jobs/{id}")),
            field: self.field,
            nearest: self.nearest,
            checks: self.checks,
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.code == ErrorCode::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for Problem {
    /// Only a carrier: the outermost layer renders it, see [`Problem::render`].
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let detail = denied.to_string();
        match denied {
            Denied::LaneBusy { job, .. } => Self {
                job: Some(job),
                retry_after_s: Some(5),
                ..Self::new(ErrorCode::LaneBusy, detail)
            }
            .hint("Wait for it, or ask again with \"on_conflict\": \"queue\"."),
            Denied::QueueFull(_) => {
                Self { retry_after_s: Some(30), ..Self::new(ErrorCode::RateLimited, detail) }
            }
            Denied::NoSuchJob(_) => Self::new(ErrorCode::NoSuchJob, detail),
            Denied::Ended { job, .. } => {
                Self { job: Some(job), ..Self::new(ErrorCode::JobEnded, detail) }
            }
            Denied::TooLate { job, .. } => {
                Self { job: Some(job), ..Self::new(ErrorCode::TooLateToCancel, detail) }
            }
            Denied::NotSupervised(_) => Self::new(ErrorCode::PostgresNotSupervised, detail).hint(
                "Stop the server, run `pgbackrest restore` by hand and start it, or let Headrest \
                 supervise it.",
            ),
            // Only Headrest itself asks for that.
            Denied::NotEmpty(_) => Self::new(ErrorCode::RestoreRefused, detail),
            Denied::BackupsOff(_) => Self::new(ErrorCode::BackupsOff, detail),
            Denied::Copy(_) => Self::new(ErrorCode::BackupsOff, detail).hint(
                "To restore it again, start it with an empty PGDATA. To make it the original: \
                 HEADREST_BOOTSTRAP_ARCHIVE=on.",
            ),
            Denied::NoRestore(job) => {
                Self { job: Some(job), ..Self::new(ErrorCode::RestoreNotWaiting, detail) }
            }
            Denied::NotNow { job, why } => {
                let problem =
                    Self { job: Some(job), ..Self::new(ErrorCode::RestoreNotWaiting, detail) };
                match why {
                    NotNow::NotAccepted(check) => {
                        problem.hint(format!("Send \"accept\": [\"{check}\"]."))
                    }
                    NotNow::Phase(_) | NotNow::NotConsistent => problem,
                }
            }
            Denied::NotWritten(_) => Self::new(ErrorCode::Internal, detail),
            Denied::ShuttingDown => Self::new(ErrorCode::ShuttingDown, detail),
            Denied::Store(error) => error.into(),
        }
    }
}

impl From<PlanError> for Problem {
    fn from(error: PlanError) -> Self {
        let detail = error.to_string();
        match error {
            PlanError::NotSupervised(stanza) => Denied::NotSupervised(stanza).into(),
            PlanError::Unavailable(_) => Self::new(ErrorCode::RepositoryUnavailable, detail),
            PlanError::Refused(refusal) => refusal.into(),
            PlanError::Journal(_) => {
                tracing::error!("{detail}");
                Self::new(ErrorCode::Internal, "the restore journal cannot be read; see the log")
            }
            PlanError::Store(error) => error.into(),
        }
    }
}

impl From<Unreachable> for Problem {
    fn from(refusal: Unreachable) -> Self {
        let detail = refusal.to_string();
        let nearest = refusal.nearest().map(|moment| moment.to_string());
        let (code, field) = match refusal {
            Unreachable::NoBackup | Unreachable::NoBackupInRepo(_) => {
                (ErrorCode::NoSuchBackup, None)
            }
            Unreachable::NoSuchSet(_) => (ErrorCode::NoSuchBackup, Some("set")),
            Unreachable::SetOffBranch { .. } => (ErrorCode::TargetOutsideWindow, Some("set")),
            Unreachable::SetTooLate { .. } | Unreachable::BeforeFirstBackup { .. } => {
                (ErrorCode::TargetBeforeBackup, Some("target"))
            }
            Unreachable::InFuture { .. }
            | Unreachable::PastEnd { .. }
            | Unreachable::UnknownPlace(_) => (ErrorCode::TargetOutsideWindow, Some("target")),
            Unreachable::UnknownTimeline(_) => (ErrorCode::TargetOutsideWindow, Some("timeline")),
        };
        Self { nearest, field: field.map(str::to_owned), ..Self::new(code, detail) }
            .hint("GET /api/v1/stanzas/STANZA/recovery-window says what can be restored to.")
    }
}

impl From<Stale> for Problem {
    fn from(stale: Stale) -> Self {
        let detail = stale.to_string();
        let again = "POST /api/v1/stanzas/STANZA/restore-plans";
        match stale {
            Stale::Expired(_) => Self::new(ErrorCode::PlanExpired, detail).hint(again),
            Stale::Changed(..) => Self::new(ErrorCode::PlanStale, detail).hint(again),
            Stale::Plan(error) => error.into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        // The client learns no paths; whoever reads the log does.
        tracing::error!("{}", crate::telemetry::chain(&error));
        Self::new(ErrorCode::Internal, "the history cannot be read or written; see Headrest's log")
    }
}

impl From<Unavailable> for Problem {
    fn from(error: Unavailable) -> Self {
        tracing::warn!("{error}");
        Self::new(ErrorCode::RepositoryUnavailable, error.reason)
            .hint("Run `pgbackrest info` by hand; Headrest's log has the whole message.")
    }
}
