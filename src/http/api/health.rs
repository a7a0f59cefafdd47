//! Health: what is wrong, and what to do about it.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::clock;
use crate::domain::StanzaName;
use crate::domain::health::{Check, Level, worst};
use crate::http::extract::{Query, find_stanza};
use crate::http::problem::{Outcome, Problem, ProblemBody};
use crate::http::state::AppState;

/// How to ask.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct HealthQuery {
    /// 1: a warning is answered with 503, too.
    #[param(example = "1")]
    strict: Option<String>,
    /// nagios: one line with the exit word first, as plain text. json is the default.
    #[param(example = "nagios")]
    format: Option<String>,
    /// Only this stanza.
    #[param(example = "main")]
    stanza: Option<String>,
}

/// How everything is.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Health {
    /// The worst of all checks: pass, warn or fail.
    #[schema(example = "pass")]
    status: &'static str,
    /// When that was judged.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// The checks, worst first. What is not known is not there.
    checks: Vec<HealthCheck>,
}

/// A check.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct HealthCheck {
    /// postgres, last-backup, last-full, repository, archive-mode, archive-command, archiver,
    /// wal-ready, wal-age, wal-gap, page-checksums, verify, stop-file, schedule, disk-space,
    /// versions or notifications.
    #[schema(example = "archiver")]
    name: &'static str,
    /// Which one, of what there are several: a schedule's name, what is on a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    /// The stanza.
    #[schema(example = "main")]
    stanza: String,
    /// pass, warn or fail.
    #[schema(example = "pass")]
    status: &'static str,
    /// Why.
    detail: String,
    /// What to do.
    #[serde(skip_serializing_if = "str::is_empty")]
    hint: &'static str,
}

/// How everything is: 200 when all checks pass or warn, 503 when one fails (with `strict=1` when one
/// warns, too). Judged from memory; the repositories are looked at every `health.interval`.
#[utoipa::path(get, path = "/health", tag = "service", params(HealthQuery), responses(
    (status = 200, description = "nothing fails", body = Health),
    (status = 503, description = "something fails", body = Health),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn show(
    State(state): State<AppState>,
    Query(query): Query<HealthQuery>,
) -> Outcome<Response> {
    let strict = match query.strict.as_deref() {
        None | Some("0" | "false") => false,
        Some("" | "1" | "true") => true,
        Some(_) => return Err(Problem::field("strict", "is neither 0 nor 1")),
    };
    let nagios = match query.format.as_deref() {
        None | Some("json") => false,
        Some("nagios") => true,
        Some(_) => return Err(Problem::field("format", "is neither json nor nagios")),
    };
    let stanzas = match query.stanza {
        Some(name) => vec![find_stanza(&state, &name)?],
        None => state.stanzas.clone(),
    };
    let now = clock::now();
    let checks: Vec<(StanzaName, Check)> = stanzas
        .into_iter()
        .flat_map(|stanza| {
            let checks = state.monitor.health(&stanza, now);
            checks.into_iter().map(move |check| (stanza.clone(), check))
        })
        .collect();
    let all: Vec<Check> = checks.iter().map(|(_, check)| check.clone()).collect();
    let level = worst(&all);
    let well = match level {
        Level::Pass => true,
        Level::Warn => !strict,
        Level::Fail => false,
    };
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = if nagios {
        (status, plugin_output(level, &checks)).into_response()
    } else {
        let checks = checks.into_iter().map(|(stanza, check)| HealthCheck {
            name: check.key.id.as_str(),
            of: check.key.of,
            stanza: stanza.to_string(),
            status: check.level.as_str(),
            detail: check.detail,
            hint: check.hint,
        });
        let mut checks: Vec<HealthCheck> = checks.collect();
        checks.sort_by_key(|check| std::cmp::Reverse(check.status.parse::<Level>().ok()));
        (status, axum::Json(Health { status: level.as_str(), at: now, checks })).into_response()
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A line as Nagios' plugins write it (Monitoring Plugins Development Guidelines), with the numbers
/// of checks as performance data.
fn plugin_output(level: Level, checks: &[(StanzaName, Check)]) -> String {
    let word = match level {
        Level::Pass => "OK",
        Level::Warn => "WARNING",
        Level::Fail => "CRITICAL",
    };
    let count = |level| checks.iter().filter(|(_, check)| check.level == level).count();
    let several = checks.iter().any(|(stanza, _)| *stanza != checks[0].0);
    let mut bad: Vec<_> = checks.iter().filter(|(_, check)| check.level != Level::Pass).collect();
    bad.sort_by_key(|(_, check)| std::cmp::Reverse(check.level));
    let line = |(stanza, check): &&(StanzaName, Check)| {
        let of = if several { format!("{stanza} ") } else { String::new() };
        format!("{of}{}: {}", check.key, check.detail.replace(['|', '\n'], " "))
    };
    let mut told: Vec<String> = bad.iter().map(line).collect();
    if told.is_empty() {
        told.push(format!("{} checks pass", checks.len()));
    }
    format!(
        "HEADREST {word} - {} | pass={} warn={} fail={}\n",
        told.join("; "),
        count(Level::Pass),
        count(Level::Warn),
        count(Level::Fail)
    )
}
