//! The supervised processes.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::extract::{Named, Query};
use crate::http::problem::{ErrorCode, Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::postgres::client::ArchiverFacts;
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::{Actor, Order, Refusal, Status};

/// How long an answer waits for what was ordered.
const PATIENCE: Duration = Duration::from_mins(5);

/// A supervised process.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Process)]
pub(in crate::http) struct ProcessView {
    /// Its name.
    #[schema(example = "postgres")]
    name: &'static str,
    /// down, starting, recovering, ready, stopping, backing-off or failed.
    #[schema(example = "ready")]
    state: &'static str,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Why, where there is a reason to tell.
    reason: Option<String>,
    /// Its process id.
    pid: Option<i32>,
    /// Whether an earlier Headrest started it.
    adopted: bool,
    /// When it was started.
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    /// Starts after an unexpected exit.
    restarts: u64,
    /// How it ended last.
    last_exit: Option<String>,
    /// When it will be started again.
    #[schema(value_type = Option<String>, format = DateTime)]
    next_start_at: Option<Timestamp>,
    /// The restore job that holds it; nobody else starts or stops it then.
    fenced_by: Option<String>,
    /// Settings that it was started with, because its prepared transactions need more than is
    /// configured.
    #[schema(example = json!(["max_prepared_transactions = 5 (configured is 0)"]))]
    raised: Vec<String>,
    /// Its version.
    version: Option<String>,
    /// Its port.
    port: Option<u16>,
    /// The directory of its socket.
    socket_dir: Option<String>,
    /// on; off for a copy made of another server's backups; not-ours when backups are turned off.
    #[schema(example = "on")]
    archiving: &'static str,
    /// What its archiver does, as of some seconds ago.
    archiver: Option<ArchiverView>,
}

/// `pg_stat_archiver`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Archiver)]
pub(in crate::http) struct ArchiverView {
    /// Whether `archive_mode` is on.
    enabled: bool,
    /// Whether the last attempt failed.
    failing: bool,
    /// Segments archived since the statistics began.
    archived_count: u64,
    /// The last one.
    last_archived_wal: Option<String>,
    /// When.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_archived_at: Option<Timestamp>,
    /// Failed attempts since the statistics began.
    failed_count: u64,
    /// The last segment that failed.
    last_failed_wal: Option<String>,
    /// When.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_failed_at: Option<Timestamp>,
}

impl From<ArchiverFacts> for ArchiverView {
    fn from(archiver: ArchiverFacts) -> Self {
        Self {
            enabled: archiver.enabled,
            failing: archiver.is_failing(),
            archived_count: archiver.archived_count,
            last_archived_wal: archiver.last_archived_wal,
            last_archived_at: archiver.last_archived_at,
            failed_count: archiver.failed_count,
            last_failed_wal: archiver.last_failed_wal,
            last_failed_at: archiver.last_failed_at,
        }
    }
}

impl From<Status> for ProcessView {
    fn from(status: Status) -> Self {
        Self {
            name: "postgres",
            archiving: status.archiving.as_str(),
            state: status.state.as_str(),
            since: status.since,
            reason: status.reason,
            pid: status.pid,
            adopted: status.adopted,
            started_at: status.started_at,
            restarts: status.restarts,
            last_exit: status.last_exit,
            next_start_at: status.next_start_at,
            fenced_by: status.fenced_by.map(|job| format!("/api/v1/jobs/{job}")),
            raised: status.raised.iter().map(ToString::to_string).collect(),
            version: status.version,
            port: status.address.as_ref().map(|address| address.port),
            socket_dir: status.address.map(|address| address.socket_dir.display().to_string()),
            archiver: status.archiver.map(ArchiverView::from),
        }
    }
}

/// The supervised processes.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Processes {
    /// The processes.
    items: Vec<ProcessView>,
}

/// The supervised processes; none when Headrest runs beside an existing server.
#[utoipa::path(get, path = "/processes", tag = "processes", responses(
    (status = 200, description = "the processes", body = Processes),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn list(State(state): State<AppState>) -> Json<Processes> {
    let items = if state.postgres.is_supervised() {
        vec![state.postgres.status().into()]
    } else {
        Vec::new()
    };
    Json(Processes { items })
}

/// One process.
#[utoipa::path(get, path = "/processes/{name}", tag = "processes", params(("name" = String, Path, example = "postgres")), responses(
    (status = 200, description = "the process", body = ProcessView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn show(
    State(state): State<AppState>,
    Named(name): Named,
) -> Outcome<Json<ProcessView>> {
    known(&state, &name)?;
    Ok(Json(state.postgres.status().into()))
}

/// Which lines.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct LinesQuery {
    /// Only lines after the one with this id.
    after: Option<u64>,
}

/// The last lines of a process: as text, or with `Accept: application/x-ndjson` with their ids.
#[utoipa::path(get, path = "/processes/{name}/log", tag = "processes", params(("name" = String, Path, example = "postgres"), LinesQuery), responses(
    (status = 200, description = "the lines", body = String, content_type = "text/plain"),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn log(
    State(state): State<AppState>,
    Named(name): Named,
    Query(query): Query<LinesQuery>,
    headers: HeaderMap,
) -> Outcome<Response> {
    known(&state, &name)?;
    let lines = state.postgres.lines.after(query.after.unwrap_or(0));
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let as_json = accept.is_some_and(|accept| accept.contains("application/x-ndjson"));
    let kind = if as_json { "application/x-ndjson" } else { "text/plain; charset=utf-8" };
    let body: String = lines
        .into_iter()
        .map(|(id, line)| {
            if as_json {
                serde_json::json!({ "id": id, "text": line }).to_string() + "\n"
            } else {
                line + "\n"
            }
        })
        .collect();
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// Starts a process and waits until it serves, or does not.
#[utoipa::path(post, path = "/processes/{name}/start", tag = "processes", params(("name" = String, Path, example = "postgres")), responses(
    (status = 200, description = "the process", body = ProcessView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn start(
    State(state): State<AppState>,
    Named(name): Named,
) -> Outcome<Json<ProcessView>> {
    // Down again is an end, too: a recovery that was to shut down at its target.
    let over = |status: &Status| settled(status) || status.is_down();
    act(&state, &name, Order::Start, over).await
}

/// Stops a process, fast, and waits until it is gone. Asked again meanwhile: immediately.
#[utoipa::path(post, path = "/processes/{name}/stop", tag = "processes", params(("name" = String, Path, example = "postgres")), responses(
    (status = 200, description = "the process", body = ProcessView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn stop(
    State(state): State<AppState>,
    Named(name): Named,
) -> Outcome<Json<ProcessView>> {
    let again = state.postgres.status().state == ServerState::Stopping;
    let order = if again { Order::StopNow } else { Order::Stop };
    act(&state, &name, order, Status::is_down).await
}

/// Stops and starts a process and waits until it serves again.
#[utoipa::path(post, path = "/processes/{name}/restart", tag = "processes", params(("name" = String, Path, example = "postgres")), responses(
    (status = 200, description = "the process", body = ProcessView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn restart(
    State(state): State<AppState>,
    Named(name): Named,
) -> Outcome<Json<ProcessView>> {
    let before = state.postgres.status().pid;
    act(&state, &name, Order::Restart, move |status| settled(status) && status.pid != before).await
}

/// Makes a process read its configuration files again.
#[utoipa::path(post, path = "/processes/{name}/reload", tag = "processes", params(("name" = String, Path, example = "postgres")), responses(
    (status = 200, description = "the process", body = ProcessView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn reload(
    State(state): State<AppState>,
    Named(name): Named,
) -> Outcome<Json<ProcessView>> {
    act(&state, &name, Order::Reload, |_| true).await
}

/// Whether a start has come to something.
fn settled(status: &Status) -> bool {
    matches!(
        status.state,
        ServerState::Ready
            | ServerState::Recovering
            | ServerState::BackingOff
            | ServerState::Failed
    )
}

async fn act(
    state: &AppState,
    name: &str,
    order: Order,
    done: impl FnMut(&Status) -> bool,
) -> Outcome<Json<ProcessView>> {
    known(state, name)?;
    state.postgres.order(order, Actor::Operator).await?;
    // Told as it stands if it takes longer: a big recovery has no time limit.
    let status = state.postgres.wait_until(PATIENCE, done).await.unwrap_or_else(|last| last);
    Ok(Json(status.into()))
}

fn known(state: &AppState, name: &str) -> Outcome<()> {
    if !state.postgres.is_supervised() {
        return Err(Refusal::NotSupervised.into());
    }
    if name == "postgres" {
        return Ok(());
    }
    let shown = crate::domain::stanza::shown(name);
    Err(Problem::new(ErrorCode::NoSuchProcess, format!("there is no process {shown}"))
        .hint("There is: postgres."))
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::Fenced(job) => {
                Self { job: Some(job), ..Self::new(ErrorCode::PostgresFenced, detail) }
            }
            Refusal::Running => Self::new(ErrorCode::PostgresRunning, detail),
            Refusal::NotRunning => Self::new(ErrorCode::PostgresStopped, detail),
            Refusal::Stopping => {
                Self::new(ErrorCode::PostgresStopped, detail).hint("Ask again when it has stopped.")
            }
            Refusal::NotSupervised => Self::new(ErrorCode::PostgresNotSupervised, detail),
            Refusal::ShuttingDown => Self::new(ErrorCode::ShuttingDown, detail),
        }
    }
}
