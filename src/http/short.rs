//! The short routes: one line of `curl`, plain text back. The same jobs underneath.
//!
//! A GET changes state here, so HEAD never executes, other sites cannot make a browser do it, and
//! what destroys data must name the stanza.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::api::jobs::{as_text, describe, log_lines};
use super::api::restores::{confirmed, plan};
use super::auth::Caller;
use super::extract::{Query, find_stanza};
use super::middleware::guard::accepts_html;
use super::problem::{ErrorCode, Outcome, Problem};
use super::state::AppState;
use crate::config::ShortRoutes;
use crate::domain::job::{BackupSpec, JobSpec, JobState, OnConflict, Trigger};
use crate::domain::plan::Wish;
use crate::domain::recovery::{OnReached, RecoveryTarget};
use crate::domain::{BackupType, DatabaseName, StanzaName};
use crate::jobs::Submission;
use crate::jobs::plans::PlanRequest;

/// Where they live.
pub(super) const PREFIX: &str = "/pgBackRest";

/// Whether a GET of this path changes something.
pub(super) fn changes_something(path: &str) -> bool {
    let Some(route) = path.strip_prefix(PREFIX) else { return false };
    !matches!(route, "/info" | "/db_status")
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShortQuery {
    /// The stanza; the first when not given.
    stanza: Option<String>,
    /// The stanza again, for what destroys data.
    confirm: Option<String>,
    /// The database, where one is restored alone.
    db: Option<String>,
}

impl ShortQuery {
    fn stanza(&self, state: &AppState) -> Outcome<StanzaName> {
        match &self.stanza {
            Some(name) => find_stanza(state, name),
            None => state
                .stanzas
                .first()
                .cloned()
                .ok_or_else(|| Problem::new(ErrorCode::NoSuchStanza, "no stanza is configured")),
        }
    }
}

/// pgBackRest's text info.
pub(super) async fn info(
    State(state): State<AppState>,
    Query(query): Query<ShortQuery>,
    headers: HeaderMap,
) -> Outcome<Response> {
    let stanza = query.stanza(&state)?;
    Ok(answer(StatusCode::OK, &state.catalog.text(&stanza).await?, &headers))
}

/// Whether PostgreSQL takes writes.
pub(super) async fn db_status(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let text = if state.postgres.status().takes_writes() {
        "Postgres status True\n"
    } else {
        "Postgres status False\n"
    };
    answer(StatusCode::OK, text, &headers)
}

pub(super) async fn full(context: Short) -> Outcome<Response> {
    context.backup(BackupType::Full).await
}

pub(super) async fn diff(context: Short) -> Outcome<Response> {
    context.backup(BackupType::Diff).await
}

pub(super) async fn incr(context: Short) -> Outcome<Response> {
    context.backup(BackupType::Incr).await
}

/// `stanza-create`.
pub(super) async fn create(context: Short) -> Outcome<Response> {
    let stanza = context.query.stanza(&context.state)?;
    context.run(JobSpec::StanzaCreate { stanza }, OnConflict::Refuse).await
}

/// In-place delta restore to the latest state.
pub(super) async fn restore(context: Short) -> Outcome<Response> {
    if context.query.db.is_some() {
        return Err(Problem::field("db", "is for /restore/db alone"));
    }
    context.restore(Vec::new()).await
}

/// The same of one database; the others become unusable and must be dropped.
pub(super) async fn restore_db(context: Short) -> Outcome<Response> {
    let name = context.query.db.as_deref();
    let name = name.ok_or_else(|| Problem::field("db", "is missing: ?db=NAME"))?;
    let name = name.parse::<DatabaseName>();
    let name = name.map_err(|error| Problem::field("db", error.to_string()))?;
    context.restore(vec![name]).await
}

/// What a short route that starts a job needs.
pub(super) struct Short {
    state: AppState,
    caller: Caller,
    query: ShortQuery,
    method: Method,
    headers: HeaderMap,
}

impl axum::extract::FromRequestParts<AppState> for Short {
    type Rejection = Problem;
    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        state: &AppState,
    ) -> Outcome<Self> {
        // axum answers HEAD by running the GET handler; here that would be a deed.
        if parts.method == Method::HEAD {
            let detail = "HEAD would start a job; use GET or POST";
            return Err(Problem::new(ErrorCode::MethodNotAllowed, detail));
        }
        Ok(Self {
            state: state.clone(),
            caller: Caller::from_request_parts(parts, state).await?,
            query: Query::from_request_parts(parts, state).await?.0,
            method: parts.method.clone(),
            headers: parts.headers.clone(),
        })
    }
}

impl Short {
    async fn restore(self, databases: Vec<DatabaseName>) -> Outcome<Response> {
        let stanza = self.query.stanza(&self.state)?;
        let trusting = self.state.short_routes == ShortRoutes::Trusting;
        if self.method == Method::GET && !trusting {
            confirmed(stanza.as_str(), self.query.confirm.as_deref()).map_err(|problem| {
                Problem { hints: vec![format!("Add ?confirm={stanza} to the address.")], ..problem }
            })?;
        }
        let request = PlanRequest {
            wish: Wish { target: RecoveryTarget::Latest, set: None, repo: None, timeline: None },
            on_reached: OnReached::Promote,
            databases,
            accept: Vec::new(),
        };
        let plan = plan(&self.state, &stanza, request, OnConflict::Cancel).await?;
        self.run(JobSpec::Restore(plan.spec()), OnConflict::Cancel).await
    }

    async fn backup(self, backup_type: BackupType) -> Outcome<Response> {
        let stanza = self.query.stanza(&self.state)?;
        let spec = BackupSpec::plain(stanza, backup_type);
        self.run(JobSpec::Backup(spec), OnConflict::Refuse).await
    }

    /// Starts a job, waits for its end however long it takes, and answers its log. If the client
    /// leaves, the job goes on.
    async fn run(self, spec: JobSpec, on_conflict: OnConflict) -> Outcome<Response> {
        let what = describe(&spec);
        let submission = Submission::new(spec, Trigger::ShortRoute, self.caller.by);
        let submission = Submission { on_conflict, ..submission };
        let accepted = self.state.jobs.submit(submission).await.map_err(|denied| Problem {
            hints: vec!["Ask again when the other job has ended.".to_owned()],
            ..Problem::from(denied)
        })?;
        let job = self.state.jobs.finished(accepted.id).await?;
        let lines = log_lines(&self.state, job.id, 0, None).await?;
        let mut text: String = lines.iter().map(as_text).collect();
        text.push_str(&format!("{what} {}: job {}\n", job.state, job.id));
        if let Some(error) = &job.error {
            text.push_str(&format!("{}: {}\n", error.code, error.message));
            for hint in &error.hints {
                text.push_str(&format!("HINT: {hint}\n"));
            }
        }
        let status = match job.state {
            JobState::Succeeded | JobState::Warned => StatusCode::OK,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Ok(answer(status, &text, &self.headers))
    }
}

/// Plain text, or the same as a page for a browser.
fn answer(status: StatusCode, text: &str, headers: &HeaderMap) -> Response {
    let (kind, body) = if accepts_html(headers) {
        let page = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Headrest</title>\
             <pre>{}</pre></html>",
            escaped(text)
        );
        ("text/html; charset=utf-8", page)
    } else {
        ("text/plain; charset=utf-8", text.to_owned())
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
