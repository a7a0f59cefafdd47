//! Schedules: what is done by itself, and when.

mod views;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use self::views::{
    ComingRun, ScheduleDetail, SchedulePreview, ScheduleView, Schedules, VerdictView,
};
use super::jobs::JobView;
use crate::clock;
use crate::domain::job::Trigger;
use crate::domain::schedule::{Schedule, ScheduleName};
use crate::domain::{RepoKey, StanzaName};
use crate::http::auth::Caller;
use crate::http::extract::{Json as Body, Named, Query, find_stanza};
use crate::http::problem::{ErrorCode, Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::scheduler::{Expected, Origin, ScheduleError, View};

/// Verdicts shown with a schedule.
const SHOWN_VERDICTS: u32 = 20;
/// The most moments of a preview.
const LONGEST_PREVIEW: u32 = 100;

/// What a schedule is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ScheduleRequest {
    /// Its name: 1 to 63 of a-z, 0-9, `_` and `-`. With PUT it may be left out: the path has it.
    #[schema(example = "hourly-incr")]
    name: Option<String>,
    /// The stanza; the first configured one when not given.
    #[schema(example = "main")]
    stanza: Option<String>,
    /// full, diff, incr, expire, verify or check.
    #[schema(example = "incr")]
    r#type: String,
    /// Five fields as in cron (minute, hour, day of month, month, day of week), or @hourly, @daily,
    /// @weekly, @monthly, @yearly.
    #[schema(example = "0 * * * *")]
    cron: String,
    /// The IANA zone that the expression is meant in; UTC when not given.
    #[schema(example = "Europe/Berlin")]
    timezone: Option<String>,
    /// What is done about a run whose time has passed: run-once (the default) or skip.
    #[schema(example = "run-once")]
    missed: Option<String>,
    /// Seconds that a missed run may start late; 6 hours when not given.
    #[schema(example = 21_600)]
    within_s: Option<u32>,
    /// Each run starts up to so many seconds later, always the same for the same moment.
    #[schema(example = 0)]
    jitter_s: Option<u32>,
    /// How often a run that failed is tried again; 3 when not given.
    #[schema(example = 3, maximum = 10)]
    retries: Option<u8>,
    /// The repository; pgBackRest's choice when not given.
    #[schema(example = 1)]
    repo: Option<u32>,
}

/// All schedules, by name.
#[utoipa::path(get, path = "/schedules", tag = "schedules", responses(
    (status = 200, description = "the schedules", body = Schedules),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn list(State(state): State<AppState>) -> Json<Schedules> {
    let views = state.scheduler.views();
    Json(Schedules { items: views.iter().map(ScheduleView::from).collect() })
}

/// One schedule, with its newest job and what became of its last moments. Its ETag changes only when
/// the schedule itself does; send it as If-Match to change or remove it.
#[utoipa::path(get, path = "/schedules/{name}", tag = "schedules", params(("name" = String, Path, example = "weekly-full")), responses(
    (status = 200, description = "the schedule", body = ScheduleDetail),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn show(
    State(state): State<AppState>,
    Named(name): Named,
) -> Outcome<Response> {
    let view = state.scheduler.view(&name)?;
    let name = view.schedule.name.clone();
    let jobs = state.store.jobs_of(Trigger::Schedule(name.to_string()), 1).await?;
    let verdicts = state.store.schedule_verdicts(name, SHOWN_VERDICTS).await?;
    let detail = ScheduleDetail {
        schedule: ScheduleView::from(&view),
        last_job: jobs.into_iter().next().map(JobView::from),
        verdicts: verdicts.into_iter().map(VerdictView::from).collect(),
    };
    Ok(tagged(StatusCode::OK, &view, detail))
}

/// Makes a schedule.
#[utoipa::path(post, path = "/schedules", tag = "schedules", request_body = ScheduleRequest, responses(
    (status = 201, description = "the schedule", body = ScheduleView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Body(request): Body<ScheduleRequest>,
) -> Outcome<Response> {
    let name = request.name.clone().ok_or_else(|| Problem::field("name", "is missing"))?;
    let schedule = request.parse(&state, &name)?;
    let view = state.scheduler.create(schedule, caller.by).await?;
    let mut response = tagged(StatusCode::CREATED, &view, ScheduleView::from(&view));
    let location = format!("/api/v1/schedules/{}", view.schedule.name);
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Changes a schedule that was made through the API. Moments that have passed do not count for the
/// new one.
#[utoipa::path(put, path = "/schedules/{name}", tag = "schedules", params(
    ("name" = String, Path, example = "hourly-incr"),
    ("If-Match" = String, Header, description = "the ETag of the schedule that is to be changed, or *"),
), request_body = ScheduleRequest, responses(
    (status = 200, description = "the schedule", body = ScheduleView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn replace(
    State(state): State<AppState>,
    caller: Caller,
    Named(name): Named,
    headers: HeaderMap,
    Body(request): Body<ScheduleRequest>,
) -> Outcome<Response> {
    if request.name.as_ref().is_some_and(|other| *other != name) {
        return Err(Problem::field("name", "is another one than that of the path"));
    }
    let expected = expected(&state.scheduler.view(&name)?, &headers)?;
    let schedule = request.parse(&state, &name)?;
    let view = state.scheduler.replace(schedule, expected, caller.by).await?;
    Ok(tagged(StatusCode::OK, &view, ScheduleView::from(&view)))
}

/// Removes a schedule that was made through the API. A job of its that runs goes on.
#[utoipa::path(delete, path = "/schedules/{name}", tag = "schedules", params(
    ("name" = String, Path, example = "hourly-incr"),
    ("If-Match" = String, Header, description = "the ETag of the schedule that is to be removed, or *"),
), responses(
    (status = 204, description = "it is removed"),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    Named(name): Named,
    headers: HeaderMap,
) -> Outcome<StatusCode> {
    // What cannot be read has no version to name.
    if state.scheduler.remove_unreadable(&name, &state.store).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    let view = state.scheduler.view(&name)?;
    let expected = expected(&view, &headers)?;
    state.scheduler.delete(view.schedule.name, expected, caller.by).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Does now what the schedule would do, as soon as the stanza's lane is free. Its moments stay as they
/// are, but for those that come while it runs: they are coalesced with it.
#[utoipa::path(post, path = "/schedules/{name}/run", tag = "schedules", params(("name" = String, Path, example = "weekly-full")), responses(
    (status = 202, description = "the job", body = JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn run(
    State(state): State<AppState>,
    caller: Caller,
    Named(name): Named,
) -> Outcome<Response> {
    let name = state.scheduler.view(&name)?.schedule.name;
    let job = state.scheduler.run_now(name, caller.by).await?;
    let location = HeaderValue::from_str(&format!("/api/v1/jobs/{}", job.id));
    let mut response = (StatusCode::ACCEPTED, Json(JobView::from(job))).into_response();
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Pauses a schedule: its moments are skipped until it is resumed.
#[utoipa::path(post, path = "/schedules/{name}/pause", tag = "schedules", params(("name" = String, Path, example = "weekly-full")), responses(
    (status = 200, description = "the schedule", body = ScheduleView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn pause(
    State(state): State<AppState>,
    caller: Caller,
    Named(name): Named,
) -> Outcome<Json<ScheduleView>> {
    let name = state.scheduler.view(&name)?.schedule.name;
    Ok(Json(ScheduleView::from(&state.scheduler.pause(name, true, caller.by).await?)))
}

/// Lets a paused schedule go on. What it skipped is not made up for.
#[utoipa::path(post, path = "/schedules/{name}/resume", tag = "schedules", params(("name" = String, Path, example = "weekly-full")), responses(
    (status = 200, description = "the schedule", body = ScheduleView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn resume(
    State(state): State<AppState>,
    caller: Caller,
    Named(name): Named,
) -> Outcome<Json<ScheduleView>> {
    let name = state.scheduler.view(&name)?.schedule.name;
    Ok(Json(ScheduleView::from(&state.scheduler.pause(name, false, caller.by).await?)))
}

/// How many runs to show.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct PreviewQuery {
    /// How many, at most 100.
    #[param(example = 5, minimum = 1, maximum = 100)]
    count: Option<u32>,
}

/// The next runs of a schedule, whether it is paused or not.
#[utoipa::path(get, path = "/schedules/{name}/preview", tag = "schedules", params(("name" = String, Path, example = "weekly-full"), PreviewQuery), responses(
    (status = 200, description = "the next runs", body = SchedulePreview),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn preview(
    State(state): State<AppState>,
    Named(name): Named,
    Query(query): Query<PreviewQuery>,
) -> Outcome<Json<SchedulePreview>> {
    let count = query.count.unwrap_or(5);
    if !(1..=LONGEST_PREVIEW).contains(&count) {
        return Err(Problem::field("count", format!("{count} is not from 1 to {LONGEST_PREVIEW}")));
    }
    let View { schedule, state, .. } = state.scheduler.view(&name)?;
    let mut after = state.decided.max(clock::now());
    let mut items = Vec::new();
    while items.len() < count as usize {
        let Some((slot, due_at)) = schedule.next_due(after) else { break };
        let local = due_at.to_zoned(schedule.timezone.tz().clone()).to_string();
        items.push(ComingRun { slot, due_at, local });
        after = slot;
    }
    Ok(Json(SchedulePreview { items }))
}

impl ScheduleRequest {
    fn parse(self, state: &AppState, name: &str) -> Outcome<Schedule> {
        let name = parsed::<ScheduleName>("name", name)?;
        let stanza = match &self.stanza {
            Some(stanza) => find_stanza(state, stanza)?,
            None => first_stanza(state)?,
        };
        let kind = parsed("type", &self.r#type)?;
        let cron = parsed("cron", &self.cron)?;
        let mut schedule = Schedule::new(name, stanza, kind, cron);
        if let Some(zone) = &self.timezone {
            schedule.timezone = parsed("timezone", zone)?;
        }
        if let Some(missed) = &self.missed {
            schedule.missed = parsed("missed", missed)?;
        }
        let seconds = |given: Option<u32>| given.map(|s| SignedDuration::from_secs(s.into()));
        schedule.within = seconds(self.within_s).unwrap_or(schedule.within);
        schedule.jitter = seconds(self.jitter_s).unwrap_or(schedule.jitter);
        schedule.retries = self.retries.unwrap_or(schedule.retries);
        let repo = self.repo.map(RepoKey::try_from).transpose();
        schedule.repo = repo.map_err(|error| Problem::field("repo", error.to_string()))?;
        schedule.check().map_err(|invalid| {
            let field = match invalid.field {
                "within" => "within_s",
                "jitter" => "jitter_s",
                other => other,
            };
            Problem::field(field, invalid.message)
        })?;
        Ok(schedule)
    }
}

fn first_stanza(state: &AppState) -> Outcome<StanzaName> {
    let first = state.stanzas.first().cloned();
    first.ok_or_else(|| Problem::new(ErrorCode::NoSuchStanza, "no stanza is configured"))
}

fn parsed<T>(field: &'static str, text: &str) -> Outcome<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| Problem::field(field, error.to_string()))
}

/// An answer that names the version of the schedule; the outer layer makes the ETag of it.
fn tagged(status: StatusCode, view: &View, body: impl Serialize) -> Response {
    let mut response = (status, Json(body)).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"v{}\"", view.version)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// `If-Match`, which a change must carry (RFC 9110, 13.1.1).
fn expected(view: &View, headers: &HeaderMap) -> Outcome<Expected> {
    if view.origin != Origin::Api {
        // It is refused in any case.
        return Ok(Expected::Any);
    }
    let given: Vec<&str> =
        headers.get_all(header::IF_MATCH).iter().filter_map(|value| value.to_str().ok()).collect();
    if given.is_empty() {
        let detail = "a change needs If-Match with the ETag of what is to be changed";
        return Err(Problem::new(ErrorCode::PreconditionRequired, detail).hint(
            "GET the schedule and send its ETag, or If-Match: * to change whatever is there.",
        ));
    }
    let tags: Vec<&str> = given.iter().flat_map(|value| value.split(',')).map(str::trim).collect();
    if tags.contains(&"*") {
        return Ok(Expected::Any);
    }
    let version = |tag: &&str| {
        let plain = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
        plain.strip_prefix('v')?.split('.').next()?.parse().ok()
    };
    Ok(Expected::OneOf(tags.iter().filter_map(version).collect()))
}

impl From<ScheduleError> for Problem {
    fn from(error: ScheduleError) -> Self {
        let detail = error.to_string();
        match error {
            ScheduleError::NoSuch(_) => Self::new(ErrorCode::NoSuchSchedule, detail)
                .hint("GET /api/v1/schedules lists them."),
            ScheduleError::Exists(_) => {
                let problem = Self::new(ErrorCode::ScheduleExists, detail);
                Self { field: Some("name".to_owned()), ..problem }
            }
            ScheduleError::ReadOnly { .. } => Self::new(ErrorCode::ScheduleReadOnly, detail),
            ScheduleError::Changed { .. } => Self::new(ErrorCode::PreconditionFailed, detail)
                .hint("GET it again, and decide again."),
            ScheduleError::Denied(denied) => denied.into(),
            ScheduleError::Store(error) => error.into(),
            ScheduleError::ShuttingDown => Self::new(ErrorCode::ShuttingDown, detail),
        }
    }
}
