//! Who is told what happens, and whether that arrives.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::clock;
use crate::config::{Channel, SecretUrl};
use crate::http::auth::Caller;
use crate::http::extract::Named;
use crate::http::problem::{ErrorCode, Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::notify::{Attempt, Target};
use crate::store::TargetRecord;

/// A target of notifications, as `[[notify]]` configures it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = NotificationTarget)]
pub(in crate::http) struct TargetView {
    /// Its name.
    #[schema(example = "ops")]
    name: String,
    /// webhook, slack, discord, ntfy, healthchecks or command.
    #[schema(example = "webhook")]
    r#type: &'static str,
    /// The host of its URL; the rest of that is a secret.
    #[schema(example = "hooks.example.com")]
    host: Option<String>,
    /// Which events it gets. Null: what is a warning or worse, and the end of that; for healthchecks
    /// what its schedules do.
    #[schema(example = json!(["backup.failed", "wal.*"]))]
    events: Option<Vec<String>>,
    /// info, warning or critical: nothing less than that.
    min_severity: Option<&'static str>,
    /// Only events of this stanza, and of none.
    stanza: Option<String>,
    /// Only these schedules, of a healthchecks target; all when there are none.
    schedules: Vec<String>,
    /// idle, delivering or retrying.
    #[schema(example = "idle")]
    state: &'static str,
    /// Notifications that are not delivered yet.
    waiting: u32,
    /// Notifications that were given up.
    given_up: u32,
    /// When it is tried again, while it retries.
    #[schema(value_type = Option<String>, format = DateTime)]
    next_attempt_at: Option<Timestamp>,
    /// When something last arrived.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_delivered_at: Option<Timestamp>,
    /// When something last did not arrive.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_failed_at: Option<Timestamp>,
    /// Why.
    last_error: Option<String>,
}

impl TargetView {
    fn new(target: &Target, record: TargetRecord) -> Self {
        let (config, status) = (&target.config, target.status());
        let schedules = match &config.channel {
            Channel::Healthchecks { schedules, .. } => schedules.clone(),
            Channel::Webhook { .. }
            | Channel::Slack { .. }
            | Channel::Discord { .. }
            | Channel::Ntfy { .. }
            | Channel::Command(_) => Vec::new(),
        };
        let events = config.events.as_ref();
        Self {
            name: config.name.clone(),
            r#type: config.channel.kind().as_str(),
            host: config.channel.url().map(SecretUrl::host).map(str::to_owned),
            events: events.map(|events| events.0.iter().map(ToString::to_string).collect()),
            min_severity: config.min_severity.map(|severity| severity.as_str()),
            stanza: config.stanza.as_ref().map(ToString::to_string),
            schedules,
            state: status.state.as_str(),
            waiting: record.waiting,
            given_up: record.given_up,
            next_attempt_at: status.next_attempt_at,
            last_delivered_at: record.delivered_at,
            last_failed_at: record.failed_at,
            last_error: record.error,
        }
    }
}

/// The targets of notifications.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct NotificationTargets {
    /// The targets, as they are configured.
    items: Vec<TargetView>,
}

/// How a test of a target went.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct NotificationTest {
    /// Whether it arrived.
    delivered: bool,
    /// The status that the receiver answered with, when it did.
    #[schema(example = 204)]
    status: Option<u16>,
    /// Why it did not arrive.
    error: Option<String>,
}

impl From<Attempt> for NotificationTest {
    fn from(attempt: Attempt) -> Self {
        let Attempt { delivered, status, error, refused: _, retry_after: _ } = attempt;
        Self { delivered, status, error }
    }
}

/// Who is told what happens, and whether that arrives.
#[utoipa::path(get, path = "/notifications", tag = "service", responses(
    (status = 200, description = "the targets", body = NotificationTargets),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn list(
    State(state): State<AppState>,
) -> Outcome<Json<NotificationTargets>> {
    let mut records = state.store.target_records().await?;
    let view = |target: &Target| {
        let record = records.remove(&target.config.name).unwrap_or_default();
        TargetView::new(target, record)
    };
    Ok(Json(NotificationTargets { items: state.notifier.targets().iter().map(view).collect() }))
}

/// Sends a test to a target, at once, and answers how that went.
#[utoipa::path(post, path = "/notifications/{name}/test", tag = "service", params(
    ("name" = String, Path, example = "ops"),
), responses(
    (status = 200, description = "it was tried; whether it arrived is in the answer", body = NotificationTest),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn test(
    State(state): State<AppState>,
    caller: Caller,
    Named(name): Named,
) -> Outcome<Json<NotificationTest>> {
    let attempt = state.notifier.test(&name, caller.by).await.ok_or_else(|| {
        let shown = crate::domain::stanza::shown(&name);
        Problem::new(ErrorCode::NoSuchNotification, format!("there is no [[notify]] named {shown}"))
    })?;
    let said = match &attempt.error {
        Some(error) => format!("not delivered: {error}"),
        None => "delivered".to_owned(),
    };
    let by = caller.by.to_owned();
    state.store.audit(clock::now(), by, "notification.test", name, said).await?;
    Ok(Json(attempt.into()))
}
