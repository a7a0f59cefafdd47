//! Events as they happen: a job's, and everybody's. Server-sent events; clients resume by id.
//!
//! What is sent is read from the store, so a slow or reconnecting client loses nothing.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, Stream, StreamExt as _};
use serde::Deserialize;
use tokio::sync::watch;
use utoipa::IntoParams;

use super::jobs::{JobView, ProgressView, find};
use crate::domain::JobId;
use crate::domain::job::Progress;
use crate::http::extract::{Id, Query};
use crate::http::problem::{Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::store::StoredEvent;

const HEARTBEAT: Duration = Duration::from_secs(15);
/// Events read from the store at once.
const BATCH: u32 = 500;

/// Where to begin.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct EventsQuery {
    /// Only events after this id, for clients that cannot send `Last-Event-ID`.
    after: Option<i64>,
}

/// A job's events, live: first `job` (the whole job), then `log`, `progress`, `phase` and `state`
/// as they come, all from the beginning or after `Last-Event-ID`; `end` when the job has ended.
#[utoipa::path(get, path = "/jobs/{id}/events", tag = "jobs", params(
    ("id" = String, Path, description = "the job's id"), EventsQuery,
    ("Last-Event-ID" = Option<i64>, Header, description = "the last id that was seen"),
), responses(
    (status = 200, description = "server-sent events", body = String, content_type = "text/event-stream"),
    (status = 204, description = "the job has ended and everything was seen: do not come back"),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn of_job(
    State(state): State<AppState>,
    Id(id): Id,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Outcome<Response> {
    let resumed = last_seen(&headers, &query)?;
    let job = find(&state, id).await?;
    if let Some(after) = resumed
        && job.state.is_final()
        && state.store.events(Some(id), after, None, 1).await?.is_empty()
    {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let first = json_event("job", &JobView::from(job));
    let stream = stream::iter([first]).chain(follow(state, Some(id), resumed.unwrap_or(0)));
    Ok(respond(stream))
}

/// Everything that happens, from now on or after `Last-Event-ID`: `state`, `phase` and `progress`
/// of every job, each with its id. Log lines are only in a job's own stream.
#[utoipa::path(get, path = "/events", tag = "jobs", params(EventsQuery,
    ("Last-Event-ID" = Option<i64>, Header, description = "the last id that was seen"),
), responses(
    (status = 200, description = "server-sent events", body = String, content_type = "text/event-stream"),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn of_all(
    State(state): State<AppState>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Outcome<Response> {
    let after = match last_seen(&headers, &query)? {
        Some(after) => after,
        None => state.store.last_event_id().await?,
    };
    let first = Event::default().event("hello").data("{}").id(after.to_string());
    let stream = stream::iter([first]).chain(follow(state, None, after));
    Ok(respond(stream))
}

fn respond(stream: impl Stream<Item = Event> + Send + 'static) -> Response {
    let stream = stream.map(Ok::<_, Infallible>);
    Sse::new(stream).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

fn last_seen(headers: &HeaderMap, query: &EventsQuery) -> Outcome<Option<i64>> {
    let Some(header) = headers.get("last-event-id") else { return Ok(query.after) };
    let id = header.to_str().ok().and_then(|text| text.parse().ok());
    id.map(Some).ok_or_else(|| Problem::field("Last-Event-ID", "is not an event's id"))
}

struct Following {
    state: AppState,
    job: Option<JobId>,
    after: i64,
    wake: watch::Receiver<i64>,
    over: bool,
}

fn follow(state: AppState, job: Option<JobId>, after: i64) -> impl Stream<Item = Event> + Send {
    let wake = state.jobs.events();
    let following = Following { state, job, after, wake, over: false };
    let batches = stream::unfold(following, |mut following| async move {
        let batch = following.next_batch().await?;
        Some((stream::iter(batch), following))
    });
    batches.flatten()
}

impl Following {
    /// The next events, `None` when there will be no more.
    async fn next_batch(&mut self) -> Option<Vec<Event>> {
        while !self.over {
            // Marked as seen before the store is read: what comes later wakes again.
            self.wake.borrow_and_update();
            let ended = match self.job {
                Some(id) => self.state.store.job(id).await.ok()??.state.is_final(),
                None => false,
            };
            let events = self.state.store.events(self.job, self.after, None, BATCH).await.ok()?;
            if let Some(last) = events.last() {
                self.after = last.id;
                let everybody = self.job.is_none();
                let told = events.iter().filter(|event| !(everybody && event.kind == "log"));
                return Some(told.map(event_of).collect());
            }
            if ended {
                self.over = true;
                return Some(vec![Event::default().event("end").data("{}")]);
            }
            tokio::select! {
                changed = self.wake.changed() => changed.ok()?,
                () = self.state.shutdown.cancelled() => return None,
            }
        }
        None
    }
}

fn event_of(event: &StoredEvent) -> Event {
    let id = event.id.to_string();
    let data = if event.kind == "log" {
        serde_json::json!({
            "at": event.at, "level": event.level, "process": event.process, "text": event.text,
        })
    } else {
        let mut data: serde_json::Value = match serde_json::from_str::<Progress>(&event.text) {
            // As in the job itself.
            Ok(progress) if event.kind == "progress" => {
                serde_json::json!(ProgressView::from(progress))
            }
            _ => serde_json::from_str(&event.text).unwrap_or_default(),
        };
        if let Some(fields) = data.as_object_mut() {
            fields.insert("job".to_owned(), event.job.to_string().into());
        }
        data
    };
    json_event(&event.kind, &data).id(id)
}

fn json_event<T: serde::Serialize>(kind: &str, data: &T) -> Event {
    // Our own types are always JSON; a failure would show as an event without data.
    Event::default().event(kind).json_data(data).unwrap_or_else(|_| Event::default().event(kind))
}
