//! The dashboard: one page, a way in and a way out. Works without scripts; one small script keeps
//! it up to date.

use std::net::SocketAddr;

use askama::Template;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Redirect, Response};
use jiff::{SignedDuration, Timestamp, Unit};
use rust_embed::RustEmbed;
use serde::Deserialize;

use super::api::jobs::describe;
use super::auth::{COOKIE, Caller, LoginError, Via, same};
use super::extract::{Named, find_stanza, read_body};
use super::middleware::guard::cookie;
use super::problem::{ErrorCode, Outcome, Problem};
use super::state::AppState;
use crate::clock;
use crate::domain::job::{BackupOptions, BackupSpec, Job, JobSpec, JobState, OnConflict, Trigger};
use crate::domain::{Annotations, BackupType};
use crate::jobs::Submission;
use crate::jobs::catalog::{FRESH_ENOUGH, Freshness};
use crate::pgbackrest::info::{self, StanzaStatus};
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::Status;
use crate::store::JobFilter;

/// Backups and jobs shown on the page.
const SHOWN: usize = 20;

#[derive(RustEmbed)]
#[folder = "templates/static/"]
struct Assets;

/// How well something is: a word, a mark and a colour, so that none of them carries it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Good,
    Busy,
    Warn,
    Bad,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Busy => "busy",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }

    fn mark(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Busy => "…",
            Self::Warn => "!",
            Self::Bad => "✗",
        }
    }
}

/// A fact with its tone.
#[derive(Debug)]
struct Fact {
    tone: Tone,
    word: String,
    detail: String,
}

#[derive(Debug)]
struct BackupRow {
    label: String,
    kind: String,
    repo: String,
    stopped: Moment,
    took: String,
    size: String,
    added: String,
    marked: bool,
}

#[derive(Debug)]
struct JobRow {
    id: String,
    what: String,
    tone: Tone,
    state: &'static str,
    when: Moment,
    by: String,
    percent: Option<String>,
    doing: String,
    message: String,
    hints: Vec<String>,
}

/// A time for people and for machines.
#[derive(Debug, Default)]
struct Moment {
    machine: String,
    human: String,
    ago: String,
}

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    stanza: String,
    csrf: String,
    can_log_out: bool,
    safety: Fact,
    postgres: Fact,
    repository: Fact,
    archive: Fact,
    running: Option<JobRow>,
    waiting: usize,
    last_backup: Option<BackupRow>,
    backups: Vec<BackupRow>,
    more_backups: usize,
    jobs: Vec<JobRow>,
    observed: Moment,
    now: Moment,
    can_back_up: bool,
    notice: Option<String>,
}

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    error: Option<&'static str>,
}

#[derive(Debug, Deserialize)]
pub(super) struct OverviewQuery {
    notice: Option<String>,
}

/// The page.
pub(super) async fn overview(
    State(state): State<AppState>,
    caller: Caller,
    super::extract::Query(query): super::extract::Query<OverviewQuery>,
) -> Outcome<Response> {
    let stanza = state.stanzas.first().cloned();
    let stanza =
        stanza.ok_or_else(|| Problem::new(ErrorCode::NoSuchStanza, "no stanza is configured"))?;
    let now = clock::now();
    let status = state.postgres.status();
    let seen = state.catalog.observe(&stanza, Freshness::Within(FRESH_ENOUGH)).await;
    let filter = JobFilter { stanza: Some(stanza.clone()), limit: 20, ..JobFilter::default() };
    let jobs = state.store.jobs(filter).await?;
    let lane = state.jobs.lane(&stanza);
    let running_id = lane.as_ref().and_then(|lane| lane.running).map(|(id, _)| id);
    let running = jobs.iter().find(|job| Some(job.id) == running_id);
    let mut rows: Vec<BackupRow> = Vec::new();
    let mut more_backups = 0;
    if let Ok(seen) = &seen {
        let mut backups: Vec<_> = seen.stanza.backups.iter().collect();
        backups.sort_by_key(|backup| std::cmp::Reverse((backup.stopped_at, &backup.label)));
        more_backups = backups.len().saturating_sub(SHOWN);
        rows = backups.into_iter().take(SHOWN).map(|backup| backup_row(backup, now)).collect();
    }
    let last_backup = seen
        .as_ref()
        .ok()
        .and_then(|seen| seen.stanza.newest_backup())
        .map(|backup| backup_row(backup, now));
    let repository = match &seen {
        Ok(seen) => repository_fact(&seen.stanza),
        Err(error) => fact(Tone::Bad, "unreadable", &error.reason),
    };
    let archive = archive_fact(&status, now);
    let postgres = postgres_fact(&status, now);
    let newest = seen.as_ref().ok().and_then(|seen| seen.stanza.newest_backup());
    let safety = safety_fact(newest, &status, &repository, &archive, now);
    let page = Overview {
        stanza: stanza.to_string(),
        csrf: match &caller.via {
            Via::Session { csrf } => csrf.clone(),
            Via::Open | Via::Token => String::new(),
        },
        can_log_out: matches!(caller.via, Via::Session { .. }),
        safety,
        postgres,
        repository,
        archive,
        running: running.map(|job| job_row(job, now)),
        waiting: lane.map_or(0, |lane| lane.waiting),
        last_backup,
        backups: rows,
        more_backups,
        jobs: jobs.iter().take(8).map(|job| job_row(job, now)).collect(),
        observed: seen.as_ref().map_or_else(|_| Moment::default(), |s| moment(s.observed_at, now)),
        now: moment(now, now),
        can_back_up: running_id.is_none()
            && (status.takes_writes() || !state.postgres.is_supervised()),
        notice: query.notice.and_then(|word| notice(&word)),
    };
    html(StatusCode::OK, &page)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupForm {
    #[serde(default)]
    csrf: String,
    stanza: String,
    r#type: String,
}

/// A button: take a backup, then back to the page.
pub(super) async fn back_up(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Outcome<Response> {
    let form: BackupForm = form(request).await?;
    check_form(&caller, &form.csrf)?;
    let stanza = find_stanza(&state, &form.stanza)?;
    let backup_type = form.r#type.parse::<BackupType>();
    let backup_type = backup_type.map_err(|error| Problem::field("type", error.to_string()))?;
    let submission = Submission {
        spec: JobSpec::Backup(BackupSpec {
            stanza,
            repo: None,
            backup_type,
            annotations: Annotations::default(),
            options: BackupOptions::default(),
        }),
        trigger: Trigger::Dashboard,
        by: caller.by.to_owned(),
        on_conflict: OnConflict::Refuse,
        idempotency_key: None,
    };
    let word = match state.jobs.submit(submission).await {
        Ok(_) => "started",
        Err(crate::jobs::Denied::LaneBusy { .. }) => "busy",
        Err(denied) => return Err(denied.into()),
    };
    Ok(Redirect::to(&format!("/?notice={word}")).into_response())
}

/// The way in.
pub(super) async fn login_page(State(state): State<AppState>) -> Outcome<Response> {
    if state.auth.is_open() {
        return Ok(Redirect::to("/").into_response());
    }
    html(StatusCode::OK, &LoginPage { error: None })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoginForm {
    token: String,
}

/// Takes a token and begins a session.
pub(super) async fn log_in(
    State(state): State<AppState>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
) -> Outcome<Response> {
    let site = request.headers().get("sec-fetch-site").and_then(|value| value.to_str().ok());
    if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return Err(Problem::new(ErrorCode::Forbidden, "this login comes from another site"));
    }
    let form: LoginForm = form(request).await?;
    match state.auth.log_in(&form.token, from.ip()) {
        Ok(session) => {
            let cookie = format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict", session.cookie);
            let mut response = Redirect::to("/").into_response();
            if let Ok(value) = HeaderValue::from_str(&cookie) {
                response.headers_mut().insert(header::SET_COOKIE, value);
            }
            Ok(response)
        }
        Err(LoginError::WrongToken) => {
            let error = Some("This is not the token.");
            html(StatusCode::UNAUTHORIZED, &LoginPage { error })
        }
        Err(LoginError::TooManyFailures) => {
            let error = Some("Too many attempts from this address. Wait a minute.");
            html(StatusCode::TOO_MANY_REQUESTS, &LoginPage { error })
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogoutForm {
    #[serde(default)]
    csrf: String,
}

/// Ends the session.
pub(super) async fn log_out(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Outcome<Response> {
    let session = cookie(request.headers()).map(str::to_owned);
    let form: LogoutForm = form(request).await?;
    check_form(&caller, &form.csrf)?;
    if let Some(session) = session {
        state.auth.log_out(&session);
    }
    Ok(Redirect::to("/login").into_response())
}

/// A file of the pages.
pub(super) async fn asset(Named(name): Named) -> Outcome<Response> {
    let file = Assets::get(&name);
    let file = file.ok_or_else(|| Problem::new(ErrorCode::NotFound, "there is no such file"))?;
    let kind = match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    let mut response = file.data.into_owned().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=300"));
    Ok(response)
}

/// No page of ours loads or runs anything of others, or inline.
pub(super) async fn security_headers(request: Request, next: Next) -> Response {
    // The documentation page brings styles of its own.
    let docs = request.uri().path().starts_with("/docs");
    let mut response = next.run(request).await;
    let policy = if docs {
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
         frame-ancestors 'none'"
    } else {
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'"
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn html(status: StatusCode, page: &impl Template) -> Outcome<Response> {
    let text = page.render().map_err(|error| {
        tracing::error!("a page cannot be rendered: {error}");
        Problem::new(ErrorCode::Internal, "the page cannot be rendered; see Headrest's log")
    })?;
    let mut response = (status, Html(text)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn form<T: serde::de::DeserializeOwned>(request: Request) -> Outcome<T> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded")) {
        return Err(Problem::new(ErrorCode::UnsupportedMediaType, "this takes a form"));
    }
    let body = read_body(request.into_body()).await?;
    serde_urlencoded::from_bytes(&body).map_err(|error| Problem::field("form", error.to_string()))
}

fn check_form(caller: &Caller, given: &str) -> Outcome<()> {
    match &caller.via {
        Via::Session { csrf } if !same(csrf, given) => {
            Err(Problem::new(ErrorCode::Csrf, "reload the page and try again"))
        }
        Via::Session { .. } | Via::Open | Via::Token => Ok(()),
    }
}

fn notice(word: &str) -> Option<String> {
    match word {
        "started" => Some("The backup was started.".to_owned()),
        "busy" => Some("Another job is running; nothing was started.".to_owned()),
        _ => None,
    }
}

fn fact(tone: Tone, word: &str, detail: &str) -> Fact {
    Fact { tone, word: word.to_owned(), detail: detail.to_owned() }
}

/// The answer to the question one has at 3 a.m.
fn safety_fact(
    newest: Option<&info::Backup>,
    status: &Status,
    repository: &Fact,
    archive: &Fact,
    now: Timestamp,
) -> Fact {
    if let Some(job) = status.fenced_by {
        return fact(Tone::Busy, "A restore is at work", &format!("job {job}"));
    }
    let Some(newest) = newest else {
        return match repository.tone {
            Tone::Bad => fact(Tone::Bad, "Not known", "the repository cannot be read"),
            _ => fact(Tone::Bad, "Not safe yet", "there is no backup"),
        };
    };
    let since = newest.stopped_at.map(|at| moment(at, now).human).unwrap_or_default();
    if repository.tone == Tone::Bad {
        return fact(Tone::Bad, "In danger", "the repository reports a problem");
    }
    if archive.tone == Tone::Bad {
        let detail = format!("backups since {since}, but the WAL is not archived");
        return fact(Tone::Bad, "In danger", &detail);
    }
    let until = status.archiver.as_ref().and_then(|archiver| archiver.last_archived_at);
    match until {
        Some(until) => {
            let until = moment(until, now);
            let detail = format!("WAL is archived up to {} ({})", until.human, until.ago);
            fact(Tone::Good, "Safe", &format!("{detail}; newest backup {since}"))
        }
        None => fact(Tone::Warn, "Backed up", &format!("newest backup {since}")),
    }
}

fn postgres_fact(status: &Status, now: Timestamp) -> Fact {
    let tone = match (status.fenced_by, status.state) {
        (Some(_), _) => Tone::Busy,
        (None, ServerState::Ready) => Tone::Good,
        (None, ServerState::Starting | ServerState::Recovering | ServerState::Stopping) => {
            Tone::Busy
        }
        (None, ServerState::Down) => Tone::Warn,
        (None, ServerState::BackingOff | ServerState::Failed) => Tone::Bad,
    };
    let word = if status.fenced_by.is_some() { "restoring" } else { status.state.as_str() };
    let detail = match (&status.reason, &status.version) {
        (Some(reason), _) => reason.clone(),
        (None, Some(version)) => {
            format!("PostgreSQL {version}, for {}", span(now.duration_since(status.since)))
        }
        (None, None) => format!("for {}", span(now.duration_since(status.since))),
    };
    fact(tone, word, &detail)
}

fn repository_fact(stanza: &info::StanzaInfo) -> Fact {
    let tone = match stanza.status.meaning() {
        StanzaStatus::Ok => Tone::Good,
        StanzaStatus::NoBackup => Tone::Warn,
        StanzaStatus::MissingPath
        | StanzaStatus::MissingData
        | StanzaStatus::DifferentAcrossRepos
        | StanzaStatus::DatabaseMismatch
        | StanzaStatus::BackupNotFound
        | StanzaStatus::Other(_) => Tone::Bad,
    };
    let troubles: Vec<_> = stanza
        .repos
        .iter()
        .filter(|repo| repo.status.code != 0)
        .map(|repo| format!("repository {}: {}", repo.key, repo.status.message))
        .collect();
    let detail = if troubles.is_empty() {
        format!("{} backups", stanza.backups.len())
    } else {
        troubles.join("; ")
    };
    fact(tone, &stanza.status.message, &detail)
}

fn archive_fact(status: &Status, now: Timestamp) -> Fact {
    let Some(archiver) = &status.archiver else {
        return fact(Tone::Busy, "not known", "PostgreSQL does not answer");
    };
    if archiver.is_failing() {
        let wal = archiver.last_failed_wal.as_deref().unwrap_or("a segment");
        let when = archiver.last_failed_at.map(|at| moment(at, now).ago).unwrap_or_default();
        return fact(Tone::Bad, "failing", &format!("{wal}, {when}"));
    }
    match archiver.last_archived_at {
        Some(at) => {
            let at = moment(at, now);
            fact(Tone::Good, "archiving", &format!("last segment {} ({})", at.human, at.ago))
        }
        None => fact(Tone::Busy, "nothing yet", "no WAL was archived since the start"),
    }
}

fn backup_row(backup: &info::Backup, now: Timestamp) -> BackupRow {
    let took = backup.started_at.zip(backup.stopped_at);
    BackupRow {
        label: backup.label.to_string(),
        kind: backup.kind.as_str().to_owned(),
        repo: backup.repo_key.map_or_else(String::new, |key| key.to_string()),
        stopped: backup.stopped_at.map(|at| moment(at, now)).unwrap_or_default(),
        took: took.map(|(start, stop)| span(stop.duration_since(start))).unwrap_or_default(),
        size: backup.size_bytes.map(bytes).unwrap_or_default(),
        added: backup.repo_delta_bytes.map(bytes).unwrap_or_default(),
        marked: backup.error == Some(true),
    }
}

fn job_row(job: &Job, now: Timestamp) -> JobRow {
    let tone = match job.state {
        JobState::Succeeded => Tone::Good,
        JobState::Queued | JobState::Running | JobState::Cancelling => Tone::Busy,
        JobState::Warned | JobState::Cancelled | JobState::Interrupted => Tone::Warn,
        JobState::Failed => Tone::Bad,
    };
    let percent = job.progress.percent_hundredths.filter(|_| !job.state.is_final());
    let doing = match job.restore_phase {
        Some(phase) => phase.describe().to_owned(),
        None => job.progress.phase.clone().unwrap_or_default(),
    };
    JobRow {
        id: job.id.to_string(),
        what: describe(&job.spec),
        tone,
        state: job.state.as_str(),
        when: moment(job.finished_at.or(job.started_at).unwrap_or(job.created_at), now),
        by: format!("{} ({})", job.by, job.trigger),
        percent: percent.map(|n| format!("{}.{:02}", n / 100, n % 100)),
        doing,
        message: job.error.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
        hints: job.error.as_ref().map(|error| error.hints.clone()).unwrap_or_default(),
    }
}

fn moment(at: Timestamp, now: Timestamp) -> Moment {
    let whole = at.round(Unit::Second).unwrap_or(at);
    Moment {
        machine: whole.to_string(),
        human: whole.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        ago: format!("{} ago", span(now.duration_since(at))),
    }
}

fn span(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Bytes for people, in powers of 1024 as pgBackRest prints them.
fn bytes(n: u64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB", "PB"];
    let mut unit = 0;
    let mut tenths = u128::from(n) * 10;
    while tenths >= 10_240 && unit + 1 < units.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KB"), (23_173_000, "22.0 MB")];
        for (n, expect) in cases {
            assert_eq!(bytes(n), expect);
        }
        assert_eq!(bytes(u64::MAX), "16383.9 PB");
        let spans = [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")];
        for (seconds, expect) in spans {
            assert_eq!(span(SignedDuration::from_secs(seconds)), expect);
        }
    }
}
