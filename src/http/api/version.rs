//! Versions of everything involved.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::problem::ProblemBody;
use crate::http::state::AppState;

/// The versions.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Versions {
    /// Headrest's.
    #[schema(example = "0.1.0")]
    headrest: &'static str,
    /// pgBackRest's; null when it could not be asked.
    #[schema(example = "2.45")]
    pgbackrest: Option<String>,
    /// PostgreSQL's; null while it does not run or is not supervised.
    #[schema(example = "15.18 (Debian 15.18-0+deb12u1)")]
    postgresql: Option<String>,
    /// False when this pgBackRest is known not to support this PostgreSQL; null when not known.
    supported: Option<bool>,
}

/// Versions of Headrest, pgBackRest and PostgreSQL.
#[utoipa::path(get, path = "/version", tag = "service", responses(
    (status = 200, description = "the versions", body = Versions),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn show(State(state): State<AppState>) -> Json<Versions> {
    let postgresql = state.postgres.status().version;
    let pgbackrest = state.pgbackrest.as_ref();
    Json(Versions {
        headrest: env!("CARGO_PKG_VERSION"),
        supported: pgbackrest
            .zip(postgresql.as_deref())
            .and_then(|(version, server)| version.supports_server(server)),
        pgbackrest: pgbackrest.map(ToString::to_string),
        postgresql,
    })
}
