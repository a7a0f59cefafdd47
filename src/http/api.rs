//! `/api/v1`: one file per resource, its request and response structs beside its handlers.

pub(super) mod audit;
pub(super) mod backups;
pub(super) mod decisions;
pub(super) mod events;
pub(super) mod health;
pub mod jobs;
pub(super) mod notifications;
pub(super) mod plans;
pub(super) mod processes;
pub(super) mod restores;
pub(super) mod retention;
pub(super) mod schedules;
pub(super) mod stanzas;
pub(super) mod upkeep;
pub(super) mod version;
pub(super) mod wal;

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::auth::{Caller, Via};
use super::problem::{Outcome, Problem};
use super::state::AppState;
use crate::domain::job::{JobSpec, Trigger};
use crate::jobs::Submission;

/// The most items of one page.
const LARGEST_PAGE: u32 = 200;
/// The items of a page when nobody says how many.
const USUAL_PAGE: u32 = 50;

/// One page of a list, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    /// The items.
    items: Vec<T>,
    /// Pass it as `cursor` for the next page; null on the last one.
    next_cursor: Option<String>,
}

/// How many items a page has.
fn page_limit(given: Option<u32>) -> Outcome<u32> {
    match given.unwrap_or(USUAL_PAGE) {
        limit @ 1..=LARGEST_PAGE => Ok(limit),
        other => Err(Problem::field("limit", format!("{other} is not from 1 to 200"))),
    }
}

/// A page as a response, with `Link: rel="next"`.
fn page<T: Serialize>(path: &str, page: Page<T>) -> Response {
    let link =
        page.next_cursor.as_ref().map(|cursor| format!("<{path}?cursor={cursor}>; rel=\"next\""));
    let mut response = axum::Json(page).into_response();
    if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

/// The trigger of a job that this caller asks for through the API.
fn trigger_of(caller: &Caller) -> Trigger {
    match caller.via {
        Via::Session { .. } => Trigger::Dashboard,
        Via::Open | Via::Token => Trigger::Api,
    }
}

/// What a caller asks for through the API; refused when the lane is taken.
fn asked(caller: &Caller, spec: JobSpec) -> Submission {
    Submission::new(spec, trigger_of(caller), caller.by)
}

/// Submits and answers 202 with the job, or, if it ends within `wait`, 200 with the finished job.
async fn accept(
    state: &AppState,
    submission: Submission,
    wait: Option<Duration>,
) -> Outcome<Response> {
    accept_as(state, submission, wait, |job| job).await
}

/// The same, with what `body` makes of the job.
async fn accept_as<T: Serialize>(
    state: &AppState,
    submission: Submission,
    wait: Option<Duration>,
    body: impl FnOnce(jobs::JobView) -> T,
) -> Outcome<Response> {
    let job = state.jobs.submit(submission).await?;
    let location = format!("/api/v1/jobs/{}", job.id);
    let finished = match wait {
        Some(wait) => timeout(wait, state.jobs.finished(job.id)).await.ok().transpose()?,
        None => None,
    };
    let status = if finished.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED };
    // What was not waited for is told as it was accepted, or as it stands after the wait.
    let job = match (finished, wait) {
        (Some(finished), _) => finished,
        (None, Some(_)) => state.store.job(job.id).await?.unwrap_or(job),
        (None, None) => job,
    };
    let mut response = (status, axum::Json(body(jobs::JobView::from(job)))).into_response();
    if let Ok(value) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    Ok(response)
}
