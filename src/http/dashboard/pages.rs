//! The overview.

use std::time::Duration;

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use tokio::time::timeout;

use super::html;
use super::view::{
    BackupRow, Fact, JobRow, Moment, ProblemRow, ScheduleRow, Tone, archive_fact, backup_row, fact,
    job_row, moment, next_fact, postgres_fact, problem_rows, repository_fact, restoring_fact,
    safety_fact, schedule_row, unsafe_on_purpose, with_problems,
};
use crate::clock;
use crate::domain::StanzaName;
use crate::domain::job::JobKind;
use crate::domain::window::Window;
use crate::http::auth::{Caller, Via};
use crate::http::extract::Query;
use crate::http::problem::{ErrorCode, Outcome, Problem};
use crate::http::state::AppState;
use crate::jobs::catalog::{FRESH_ENOUGH, Freshness};
use crate::jobs::retention::Marks;
use crate::pgbackrest::info;
use crate::postgres::supervisor::Archiving;
use crate::store::JobFilter;

/// Backups and jobs shown on the page.
const SHOWN: usize = 20;
/// How long the page waits for what can be restored to.
const WINDOW_PATIENCE: Duration = Duration::from_secs(2);

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
    /// Whether what the repository holds is known: what is not there may be there.
    is_known: bool,
    problems: Vec<ProblemRow>,
    next: Fact,
    schedules: Vec<ScheduleRow>,
    backups: Vec<BackupRow>,
    more_backups: usize,
    jobs: Vec<JobRow>,
    observed: Moment,
    now: Moment,
    can_back_up: bool,
    /// What a full lets go, in words; empty when nothing.
    full_removes: String,
    notice: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(in crate::http) struct OverviewQuery {
    notice: Option<String>,
}

/// The page.
pub(in crate::http) async fn overview(
    State(state): State<AppState>,
    caller: Caller,
    Query(query): Query<OverviewQuery>,
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
    let marks = match &seen {
        Ok(seen) => state.keeper.marks(&stanza, &seen.stanza).await?,
        Err(_) => Marks::default(),
    };
    if let Ok(seen) = &seen {
        let mut backups: Vec<_> = seen.stanza.backups.iter().collect();
        backups.sort_by_key(|backup| std::cmp::Reverse((backup.stopped_at, &backup.label)));
        more_backups = backups.len().saturating_sub(SHOWN);
        rows =
            backups.into_iter().take(SHOWN).map(|backup| backup_row(backup, &marks, now)).collect();
    }
    // One that cannot be restored makes nothing safe.
    let restorable = |backup: &info::Backup| marks.judgement(backup).state.can_be_restored();
    let newest = seen.as_ref().ok().and_then(|seen| seen.stanza.newest_of(restorable));
    let last_backup = newest.map(|backup| backup_row(backup, &marks, now));
    let repository = match &seen {
        Ok(seen) => repository_fact(&seen.stanza),
        Err(error) => fact(Tone::Bad, "unreadable", &error.reason),
    };
    let (archive, postgres) = if state.postgres.is_supervised() {
        (archive_fact(&status, now), postgres_fact(&status, now))
    } else {
        let beside = "Headrest runs beside this server";
        (fact(Tone::Warn, "not watched", beside), fact(Tone::Warn, "not supervised", beside))
    };
    let restoring = running.is_some_and(|job| job.spec.kind() == JobKind::Restore);
    let safety = match (status.fenced_by, restoring) {
        (Some(job), true) => restoring_fact(state.store.kept_journal(job).await?.as_ref()),
        // Nobody works on it, so somebody must.
        (Some(job), false) => {
            let detail = format!(
                "Restore {job} stopped half way, and PGDATA is no database until another restore \
                 has come to its end. See the last jobs for what to do."
            );
            fact(Tone::Bad, "PostgreSQL is down", &detail)
        }
        (None, _) => {
            if let Some(fact) = unsafe_on_purpose(status.archiving) {
                fact
            } else {
                let window = window_of(&state, &stanza).await;
                safety_fact(newest, window.as_ref(), &repository, &archive, now)
            }
        }
    };
    let checks = state.monitor.health(&stanza, now);
    let full_removes = match &seen {
        Ok(_) => full_removes(&state, &stanza).await,
        Err(_) => String::new(),
    };
    let views = state.scheduler.views();
    let own: Vec<_> = views.iter().filter(|view| view.schedule.stanza == stanza).collect();
    let page = Overview {
        problems: problem_rows(&checks),
        next: next_fact(&own, now),
        schedules: own.iter().map(|view| schedule_row(view, now)).collect(),
        stanza: stanza.to_string(),
        csrf: match &caller.via {
            Via::Session { csrf } => csrf.clone(),
            Via::Open | Via::Token => String::new(),
        },
        can_log_out: matches!(caller.via, Via::Session { .. }),
        safety: with_problems(safety, &checks),
        postgres,
        archive,
        running: running.map(|job| job_row(job, now)),
        waiting: lane.map_or(0, |lane| lane.waiting),
        is_known: repository.tone != Tone::Bad || last_backup.is_some(),
        last_backup,
        repository,
        backups: rows,
        more_backups,
        jobs: jobs.iter().take(8).map(|job| job_row(job, now)).collect(),
        observed: seen.as_ref().map_or_else(|_| Moment::default(), |s| moment(s.observed_at, now)),
        now: moment(now, now),
        can_back_up: running_id.is_none()
            && status.archiving == Archiving::Ours
            && (status.takes_writes() || !state.postgres.is_supervised()),
        full_removes,
        notice: query.notice.and_then(|word| notice(&word)),
    };
    html(StatusCode::OK, &page)
}

/// What can be restored to on the server's own timeline. A repository that hangs must not keep the
/// page away.
async fn window_of(state: &AppState, stanza: &StanzaName) -> Option<Window> {
    let look = timeout(WINDOW_PATIENCE, state.planner.windows(stanza)).await.ok()?.ok()?;
    let own = look.windows.iter().filter(|window| window.is_current);
    own.max_by_key(|window| window.to()).cloned()
}

/// What retention removes after a full that ends now, in words.
async fn full_removes(state: &AppState, stanza: &StanzaName) -> String {
    let Ok(ground) = state.keeper.look(stanza).await else {
        return "Headrest cannot calculate which backups retention removes after a full."
            .to_owned();
    };
    let labels: Vec<String> =
        ground.after_full(None).into_iter().map(|(_, label)| label.to_string()).collect();
    match labels.as_slice() {
        [] => String::new(),
        some => format!("After a full, retention removes {}.", some.join(", ")),
    }
}

fn notice(word: &str) -> Option<String> {
    match word {
        "started" => Some("The backup was started.".to_owned()),
        "busy" => Some("Another job is running; nothing was started.".to_owned()),
        _ => None,
    }
}
