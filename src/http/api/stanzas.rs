//! Stanzas: what stands where, and their creation and check.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::backups::BackupView;
use super::{accept, asked};
use crate::domain::job::{JobSpec, OnConflict};
use crate::domain::{RepoKey, StanzaName};
use crate::http::auth::Caller;
use crate::http::extract::{IdempotencyKey, Json as Body, Prefer, Stanza};
use crate::http::problem::{Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::jobs::Submission;
use crate::jobs::catalog::{FRESH_ENOUGH, Freshness, Observation};
use crate::jobs::retention::Marks;
use crate::pgbackrest::info;

/// When the repository was looked at.
const OBSERVED_AT: HeaderName = HeaderName::from_static("x-observed-at");

/// A stanza.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Stanza)]
pub(in crate::http) struct StanzaView {
    /// Its name.
    #[schema(example = "main")]
    name: String,
    /// pgBackRest's own judgement.
    status: StatusView,
    /// When the repository was looked at.
    #[schema(value_type = String, format = DateTime)]
    observed_at: Timestamp,
    /// `none`, or the cipher.
    cipher: Option<String>,
    /// Its repositories.
    repos: Vec<RepoView>,
    /// The history of its database: a new entry for every initdb or upgrade.
    databases: Vec<DatabaseView>,
    /// WAL in the archive, by database and repository. Gaps do not show here.
    archives: Vec<ArchiveView>,
    /// What pgBackRest has locked on this host.
    lock: LockView,
    /// What Headrest is doing for it.
    lane: LaneJson,
    /// Its backups, in short.
    backups: BackupsSummary,
    /// Whether it is the supervised server's.
    supervised: bool,
    /// Where to go from here.
    links: StanzaLinks,
}

/// pgBackRest's judgement of a stanza or repository.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RepositoryStatus)]
pub(in crate::http) struct StatusView {
    /// 0 ok, 1 missing stanza path, 2 no valid backups, 3 missing stanza data, 4 different across
    /// repositories, 5 database mismatch, 6 backup not found, 99 other.
    #[schema(example = 0)]
    code: i64,
    /// In words.
    #[schema(example = "ok")]
    message: String,
}

/// A repository.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Repository)]
pub(in crate::http) struct RepoView {
    /// Its key: the N of repoN-path.
    #[schema(example = 1)]
    key: u16,
    /// `none`, or the cipher.
    cipher: Option<String>,
    /// pgBackRest's judgement.
    status: StatusView,
}

/// An entry of a database's history.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Database)]
pub(in crate::http) struct DatabaseView {
    /// Its number in the history.
    id: Option<u64>,
    /// The repository that knows it.
    repo: Option<u16>,
    /// The system identifier, a string because it exceeds 2^53.
    #[schema(example = "7710214198124908965")]
    system_id: String,
    /// The version of PostgreSQL.
    #[schema(example = "15")]
    version: Option<String>,
}

/// WAL in the archive.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Archive)]
pub(in crate::http) struct ArchiveView {
    /// The archive's id: version and number in the history.
    #[schema(example = "15-1")]
    id: String,
    /// The repository.
    repo: Option<u16>,
    /// The first segment.
    min: Option<String>,
    /// The last segment.
    max: Option<String>,
}

/// What pgBackRest has locked on this host.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Lock)]
pub(in crate::http) struct LockView {
    /// A backup, expire or stanza command runs.
    backup: LockStateView,
    /// A restore runs (pgBackRest 2.56 and later).
    restore: LockStateView,
}

/// One of pgBackRest's locks.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LockState)]
pub(in crate::http) struct LockStateView {
    /// Whether it is held.
    held: bool,
    /// Bytes to copy in all (pgBackRest 2.48 and later).
    size_bytes: Option<u64>,
    /// Bytes copied so far.
    size_complete_bytes: Option<u64>,
}

/// What Headrest is doing for a stanza.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Lane)]
pub(in crate::http) struct LaneJson {
    /// The job that runs.
    running: Option<RunningJob>,
    /// How many wait.
    waiting: usize,
}

/// A job that runs.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RunningJob {
    /// Its id.
    id: String,
    /// What it does.
    kind: &'static str,
    /// Where it is.
    link: String,
}

/// A stanza's backups, in short.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct BackupsSummary {
    /// How many there are.
    count: usize,
    /// The newest of all.
    latest: Option<BackupView>,
    /// The newest full.
    latest_full: Option<BackupView>,
    /// The newest diff.
    latest_diff: Option<BackupView>,
    /// The newest incr.
    latest_incr: Option<BackupView>,
}

/// Where to go from a stanza.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct StanzaLinks {
    /// The stanza.
    #[serde(rename = "self")]
    this: String,
    /// Its backups.
    backups: String,
    /// pgBackRest's own info.
    info: String,
}

/// The configured stanzas.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Stanzas {
    /// The stanzas.
    items: Vec<StanzaView>,
}

impl StanzaView {
    fn new(state: &AppState, name: &StanzaName, seen: &Observation, marks: &Marks) -> Self {
        let stanza = &seen.stanza;
        let repo = |key: Option<crate::domain::RepoKey>| key.map(|key| key.get());
        let lane = state.jobs.lane(name);
        let this = format!("/api/v1/stanzas/{name}");
        Self {
            name: name.to_string(),
            status: StatusView { code: stanza.status.code, message: stanza.status.message.clone() },
            observed_at: seen.observed_at,
            cipher: stanza.cipher.clone(),
            repos: stanza
                .repos
                .iter()
                .map(|repo| RepoView {
                    key: repo.key.get(),
                    cipher: repo.cipher.clone(),
                    status: StatusView {
                        code: repo.status.code,
                        message: repo.status.message.clone(),
                    },
                })
                .collect(),
            databases: stanza
                .databases
                .iter()
                .map(|database| DatabaseView {
                    id: database.id,
                    repo: repo(database.repo_key),
                    system_id: database.system_id.clone(),
                    version: database.version.clone(),
                })
                .collect(),
            archives: stanza
                .archives
                .iter()
                .map(|archive| ArchiveView {
                    id: archive.id.clone(),
                    repo: repo(archive.repo_key),
                    min: archive.min.clone(),
                    max: archive.max.clone(),
                })
                .collect(),
            lock: LockView {
                backup: LockStateView::from(&stanza.status.lock.backup),
                restore: LockStateView::from(&stanza.status.lock.restore),
            },
            lane: LaneJson {
                running: lane.as_ref().and_then(|lane| lane.running).map(|(id, kind)| RunningJob {
                    id: id.to_string(),
                    kind: kind.as_str(),
                    link: format!("/api/v1/jobs/{id}"),
                }),
                waiting: lane.map_or(0, |lane| lane.waiting),
            },
            backups: BackupsSummary::of(&stanza.backups, marks),
            supervised: state.postgres.is_supervised() && state.stanzas.first() == Some(name),
            links: StanzaLinks {
                backups: format!("{this}/backups"),
                info: format!("{this}/info"),
                this,
            },
        }
    }
}

impl From<&info::LockState> for LockStateView {
    fn from(lock: &info::LockState) -> Self {
        Self {
            held: lock.held,
            size_bytes: lock.size_bytes,
            size_complete_bytes: lock.size_complete_bytes,
        }
    }
}

impl BackupsSummary {
    fn of(backups: &[info::Backup], marks: &Marks) -> Self {
        let newest = |kind: Option<&str>| {
            backups
                .iter()
                .filter(|backup| kind.is_none_or(|kind| backup.kind.as_str() == kind))
                .max_by_key(|backup| (backup.stopped_at, &backup.label))
                .map(|backup| BackupView::new(backup, marks))
        };
        Self {
            count: backups.len(),
            latest: newest(None),
            latest_full: newest(Some("full")),
            latest_diff: newest(Some("diff")),
            latest_incr: newest(Some("incr")),
        }
    }
}

/// The repository's contents, as fresh as the request wants: `Cache-Control: no-cache` asks anew.
pub(in crate::http) async fn observe(
    state: &AppState,
    stanza: &StanzaName,
    headers: &HeaderMap,
) -> Outcome<std::sync::Arc<Observation>> {
    let cache = headers.get(header::CACHE_CONTROL).and_then(|value| value.to_str().ok());
    let freshness = if cache.is_some_and(|cache| cache.contains("no-cache")) {
        Freshness::New
    } else {
        Freshness::Within(FRESH_ENOUGH)
    };
    state.catalog.observe(stanza, freshness).await.map_err(Problem::from)
}

/// The configured stanzas.
#[utoipa::path(get, path = "/stanzas", tag = "stanzas", responses(
    (status = 200, description = "the stanzas", body = Stanzas),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn list(
    State(state): State<AppState>,
    headers: HeaderMap,
) -> Outcome<Json<Stanzas>> {
    let mut items = Vec::new();
    for name in &state.stanzas {
        let seen = observe(&state, name, &headers).await?;
        let marks = state.keeper.marks(name, &seen.stanza).await?;
        items.push(StanzaView::new(&state, name, &seen, &marks));
    }
    Ok(Json(Stanzas { items }))
}

/// One stanza.
#[utoipa::path(get, path = "/stanzas/{stanza}", tag = "stanzas", params(("stanza" = String, Path, example = "main")), responses(
    (status = 200, description = "the stanza", body = StanzaView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn show(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
    headers: HeaderMap,
) -> Outcome<Json<StanzaView>> {
    let seen = observe(&state, &stanza, &headers).await?;
    let marks = state.keeper.marks(&stanza, &seen.stanza).await?;
    Ok(Json(StanzaView::new(&state, &stanza, &seen, &marks)))
}

/// pgBackRest's own `info` JSON, untouched. `X-Observed-At` says when it was asked.
#[utoipa::path(get, path = "/stanzas/{stanza}/info", tag = "stanzas", params(("stanza" = String, Path, example = "main")), responses(
    (status = 200, description = "what `pgbackrest info --output=json` printed", body = Vec<serde_json::Value>),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn info(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
    headers: HeaderMap,
) -> Outcome<Response> {
    let seen = observe(&state, &stanza, &headers).await?;
    let mut response = seen.raw.to_vec().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(at) = HeaderValue::from_str(&seen.observed_at.to_string()) {
        headers.insert(OBSERVED_AT, at);
    }
    Ok(response)
}

/// How a job of a stanza is asked for.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct StanzaJobRequest {
    /// What to do when another job has the lane: refuse (the default) or queue.
    #[serde(default)]
    #[schema(example = "queue")]
    on_conflict: Option<String>,
}

/// Creates the stanza in every repository: `pgbackrest stanza-create`.
#[utoipa::path(post, path = "/stanzas/{stanza}", tag = "stanzas", params(("stanza" = String, Path, example = "main")), request_body = Option<StanzaJobRequest>, responses(
    (status = 200, description = "the finished job, with `Prefer: wait`", body = super::jobs::JobView),
    (status = 202, description = "the job", body = super::jobs::JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Stanza(stanza): Stanza,
    Prefer(wait): Prefer,
    key: IdempotencyKey,
    body: Option<Body<StanzaJobRequest>>,
) -> Outcome<Response> {
    simple_job(&state, &caller, JobSpec::StanzaCreate { stanza }, wait, key, body).await
}

/// Checks that archiving works from end to end: `pgbackrest check`.
#[utoipa::path(post, path = "/stanzas/{stanza}/check", tag = "stanzas", params(("stanza" = String, Path, example = "main")), request_body = Option<StanzaJobRequest>, responses(
    (status = 200, description = "the finished job, with `Prefer: wait`", body = super::jobs::JobView),
    (status = 202, description = "the job", body = super::jobs::JobView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn check(
    State(state): State<AppState>,
    caller: Caller,
    Stanza(stanza): Stanza,
    Prefer(wait): Prefer,
    key: IdempotencyKey,
    body: Option<Body<StanzaJobRequest>>,
) -> Outcome<Response> {
    simple_job(&state, &caller, JobSpec::Check { stanza }, wait, key, body).await
}

async fn simple_job(
    state: &AppState,
    caller: &Caller,
    spec: JobSpec,
    wait: Option<std::time::Duration>,
    key: IdempotencyKey,
    body: Option<Body<StanzaJobRequest>>,
) -> Outcome<Response> {
    let request = body.map(|Body(request)| request).unwrap_or_default();
    let on_conflict = on_conflict(request.on_conflict.as_deref(), OnConflict::Refuse)?;
    let submission = Submission { on_conflict, idempotency_key: key.0, ..asked(caller, spec) };
    accept(state, submission, wait).await
}

/// `repo` of a request.
pub(super) fn repo_of(number: Option<u32>) -> Outcome<Option<RepoKey>> {
    let parsed = number.map(RepoKey::try_from).transpose();
    parsed.map_err(|error| Problem::field("repo", error.to_string()))
}

/// `on_conflict` of a request. Only a restore may cancel what runs.
pub(super) fn on_conflict(given: Option<&str>, default: OnConflict) -> Outcome<OnConflict> {
    let Some(text) = given else { return Ok(default) };
    let parsed = text.parse().map_err(|error| Problem::field("on_conflict", format!("{error}")))?;
    if parsed == OnConflict::Cancel && default != OnConflict::Cancel {
        return Err(Problem::field("on_conflict", "only a restore may cancel what runs"));
    }
    Ok(parsed)
}
