//! `/metrics`, for Prometheus: answered from memory, never waits for a repository or a database.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};

use super::problem::{ErrorCode, Problem};
use super::state::AppState;
use crate::clock;
use crate::domain::StanzaName;
use crate::jobs::catalog::Observation;
use crate::metrics::exporter::{self, Moment, Seen};
use crate::metrics::{CONTENT_TYPE, Lane, Process, Service};

/// What is measured, as OpenMetrics text: the metrics of pgbackrest_exporter by its names, and
/// Headrest's own. They are what was seen last; ages are those of this moment. Open to everybody when
/// `metrics_public` is set.
#[utoipa::path(get, path = "/metrics", tag = "service", responses(
    (status = 200, description = "the metrics", body = String, content_type = "application/openmetrics-text"),
))]
pub(super) async fn show(State(state): State<AppState>) -> Result<Response, Problem> {
    let metrics = &state.metrics;
    let observed: Vec<(&StanzaName, Option<std::sync::Arc<Observation>>)> = state
        .stanzas
        .iter()
        .map(|stanza| (stanza, state.catalog.last(stanza).and_then(Result::ok)))
        .collect();
    let seen: Vec<Seen<'_>> = observed
        .iter()
        .map(|(stanza, seen)| Seen { stanza, info: seen.as_deref().map(|seen| &seen.stanza) })
        .collect();
    let moment = Moment { now: clock::now(), zone: metrics.zone() };
    let mut families =
        exporter::families(&seen, state.pgbackrest.as_ref(), metrics.config(), moment);
    families.extend(service(&state).families());
    let text = metrics.encode(families).map_err(|error| {
        Problem::new(ErrorCode::Internal, format!("the metrics cannot be written: {error}"))
    })?;
    let kind = HeaderValue::from_static(CONTENT_TYPE);
    let mut response = text.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn service(state: &AppState) -> Service<'_> {
    let status = state.postgres.is_supervised().then(|| state.postgres.status());
    let postgres = status.map(|status| Process {
        name: "postgres",
        up: status.state.has_process(),
        restarts: status.restarts,
    });
    let lane = |stanza| {
        let running = state.jobs.lane(stanza).and_then(|lane| lane.running);
        Lane { stanza, running: running.map(|(_, kind)| kind) }
    };
    Service {
        processes: postgres.into_iter().collect(),
        lanes: state.stanzas.iter().map(lane).collect(),
        pgbackrest: state.pgbackrest.as_ref(),
    }
}
