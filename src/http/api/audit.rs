//! Who did what that should be answered for.

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Page, page, page_limit};
use crate::http::extract::Query;
use crate::http::problem::{Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::store::Deed;

/// A deed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Deed)]
pub(in crate::http) struct DeedView {
    /// Grows from deed to deed.
    id: i64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Who.
    #[schema(example = "admin-token")]
    by: String,
    /// What: restore.begin, restore.promote, restore.retarget, restore.abandon, backup.expire,
    /// backup.pin, backup.unpin, schedule.create, schedule.change, schedule.delete, schedule.pause,
    /// schedule.resume or notification.test.
    #[schema(example = "restore.promote")]
    action: String,
    /// To what: a stanza, or a restore's id.
    subject: String,
    /// With which parameters, and what was accepted.
    detail: String,
}

impl From<Deed> for DeedView {
    fn from(deed: Deed) -> Self {
        let Deed { id, at, by, action, subject, detail } = deed;
        Self { id, at, by, action, subject, detail }
    }
}

/// Which deeds to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct AuditQuery {
    /// Items per page, at most 200.
    #[param(example = 50, minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Who did what, newest first.
#[utoipa::path(get, path = "/audit", tag = "service", params(AuditQuery), responses(
    (status = 200, description = "deeds, newest first", body = Page<DeedView>),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn list(
    State(state): State<AppState>,
    Query(query): Query<AuditQuery>,
) -> Outcome<Response> {
    let limit = page_limit(query.limit)?;
    let before = query.cursor.map(|cursor| cursor.parse()).transpose();
    let before = before.map_err(|_| Problem::field("cursor", "is not one of ours"))?;
    let mut deeds = state.store.deeds(before, limit + 1).await?;
    let more = deeds.len() > limit as usize;
    deeds.truncate(limit as usize);
    let next_cursor = deeds.last().filter(|_| more).map(|deed| deed.id.to_string());
    let items = deeds.into_iter().map(DeedView::from).collect();
    Ok(page("/api/v1/audit", Page { items, next_cursor }))
}
