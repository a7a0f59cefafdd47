//! `/livez`, `/readyz`, `/startupz`: for orchestrators, answered from memory, open to everybody.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::state::AppState;
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::Making;

/// The paths, which are asked every few seconds.
pub(super) const PATHS: [&str; 3] = ["/livez", "/readyz", "/startupz"];

/// Whether the service itself lives. 503 only when one of its own loops is stuck.
#[utoipa::path(get, path = "/livez", tag = "probes", security(()), responses(
    (status = 200, description = "alive", body = String, content_type = "text/plain", example = "ok"),
    (status = 503, description = "a loop of the service is stuck", body = String, content_type = "text/plain"),
))]
pub(super) async fn livez(State(state): State<AppState>) -> Response {
    match state.pulses.stuck() {
        None => word(true, "ok"),
        Some(_) => word(false, "stuck"),
    }
}

/// Whether PostgreSQL takes writes. 503 with one word: down, starting, recovering, stopping,
/// backing-off, failed or restoring.
#[utoipa::path(get, path = "/readyz", tag = "probes", security(()), responses(
    (status = 200, description = "PostgreSQL takes writes, or is not supervised", body = String, content_type = "text/plain", example = "ready"),
    (status = 503, description = "it does not", body = String, content_type = "text/plain", example = "restoring"),
))]
pub(super) async fn readyz(State(state): State<AppState>) -> Response {
    if !state.postgres.is_supervised() {
        return word(true, "not-supervised");
    }
    let status = state.postgres.status();
    if status.fenced_by.is_some() {
        return word(false, "restoring");
    }
    word(status.takes_writes(), status.state.as_str())
}

/// Whether PostgreSQL serves or is on its way to it; a restore, a first start, and waiting for somebody's
/// decision count as that.
#[utoipa::path(get, path = "/startupz", tag = "probes", security(()), responses(
    (status = 200, description = "started, or starting", body = String, content_type = "text/plain", example = "ready"),
    (status = 503, description = "down or failed", body = String, content_type = "text/plain", example = "failed"),
))]
pub(super) async fn startupz(State(state): State<AppState>) -> Response {
    if !state.postgres.is_supervised() {
        return word(true, "not-supervised");
    }
    let status = state.postgres.status();
    if status.fenced_by.is_some() {
        return word(true, "restoring");
    }
    if status.making == Making::UnderWay {
        return word(true, "initializing");
    }
    // Whoever restarts it for that takes the time away from those who are to decide.
    if status.held {
        return word(true, "held");
    }
    let on_its_way = match status.state {
        ServerState::Starting | ServerState::Recovering | ServerState::Ready => true,
        ServerState::Down
        | ServerState::Stopping
        | ServerState::BackingOff
        | ServerState::Failed => false,
    };
    word(on_its_way, status.state.as_str())
}

fn word(well: bool, word: &'static str) -> Response {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = (status, word).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
