//! Every route.

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use super::api::{
    audit, backups, decisions, events, health, jobs, notifications, plans, processes, restores,
    retention, schedules, stanzas, upkeep, version, wal,
};
use super::middleware::{etag, guard, idempotency, measure, outermost};
use super::problem::{ErrorCode, Problem};
use super::state::AppState;
use super::{dashboard, metrics, openapi, probes, short};
use crate::config::ShortRoutes;

/// `/api/v1`, with its documentation.
pub(super) fn api() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(version::show))
        .routes(routes!(health::show))
        .routes(routes!(stanzas::list))
        .routes(routes!(stanzas::show, stanzas::create))
        .routes(routes!(stanzas::info))
        .routes(routes!(stanzas::check))
        .routes(routes!(backups::list, backups::create))
        .routes(routes!(backups::show, retention::remove, retention::change))
        .routes(routes!(retention::preview))
        .routes(routes!(upkeep::verify))
        .routes(routes!(upkeep::expire))
        .routes(routes!(wal::window))
        .routes(routes!(wal::show))
        .routes(routes!(wal::switch))
        .routes(routes!(wal::points, wal::create_point))
        .routes(routes!(plans::create))
        .routes(routes!(restores::create))
        .routes(routes!(restores::list))
        .routes(routes!(restores::show))
        .routes(routes!(restores::release))
        .routes(routes!(decisions::promote))
        .routes(routes!(decisions::retarget))
        .routes(routes!(decisions::abandon))
        .routes(routes!(decisions::undo))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::log))
        .routes(routes!(events::of_job))
        .routes(routes!(events::of_all))
        .routes(routes!(schedules::list, schedules::create))
        .routes(routes!(schedules::show, schedules::replace, schedules::delete))
        .routes(routes!(schedules::run))
        .routes(routes!(schedules::pause))
        .routes(routes!(schedules::resume))
        .routes(routes!(schedules::preview))
        .routes(routes!(processes::list))
        .routes(routes!(processes::show))
        .routes(routes!(processes::log))
        .routes(routes!(processes::start))
        .routes(routes!(processes::stop))
        .routes(routes!(processes::restart))
        .routes(routes!(processes::reload))
        .routes(routes!(notifications::list))
        .routes(routes!(notifications::test))
        .routes(routes!(audit::list))
}

/// The probes, with their documentation.
pub(super) fn probes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(probes::livez))
        .routes(routes!(probes::readyz))
        .routes(routes!(probes::startupz))
}

/// `/metrics`, with its documentation.
pub(super) fn metrics() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(metrics::show))
}

fn short_routes() -> Router<AppState> {
    Router::new()
        .route("/info", get(short::info))
        .route("/db_status", get(short::db_status))
        .route("/backup/full", get(short::full).post(short::full))
        .route("/backup/diff", get(short::diff).post(short::diff))
        .route("/backup/incr", get(short::incr).post(short::incr))
        .route("/restore/delta", get(short::restore).post(short::restore))
        .route("/restore/time/latest", get(short::restore).post(short::restore))
        .route("/restore/db", get(short::restore_db).post(short::restore_db))
        .route("/create", get(short::create).post(short::create))
}

fn pages() -> Router<AppState> {
    Router::new()
        .route("/", get(dashboard::overview))
        .route("/backups", axum::routing::post(dashboard::back_up))
        .route("/logout", axum::routing::post(dashboard::log_out))
}

/// Open to everybody: the way in, and what it looks like.
fn open_pages() -> Router<AppState> {
    Router::new()
        .route("/login", get(dashboard::login_page).post(dashboard::log_in))
        .route("/static/{name}", get(dashboard::asset))
}

/// The whole service.
pub fn router(state: &AppState) -> Router {
    let (api, _) = api().split_for_parts();
    let (mut open, _) = probes().split_for_parts();
    let (metrics, _) = metrics().split_for_parts();
    let api =
        api.layer(from_fn(etag::tag)).layer(from_fn_with_state(state.clone(), idempotency::honour));
    let mut guarded = Router::new()
        .nest("/api/v1", api)
        .merge(pages())
        .merge(SwaggerUi::new("/docs").url("/api/v1/openapi.json", openapi::document()));
    if state.short_routes != ShortRoutes::Off {
        guarded = guarded.nest(short::PREFIX, short_routes());
    }
    if state.metrics.config().public {
        open = open.merge(metrics);
    } else {
        guarded = guarded.merge(metrics);
    }
    let guarded = guarded
        .fallback(|uri: axum::http::Uri| async move {
            Problem::new(ErrorCode::NotFound, format!("there is no {}", uri.path()))
        })
        .layer(from_fn_with_state(state.clone(), guard::check));
    open.merge(open_pages())
        .merge(guarded)
        .layer(CatchPanicLayer::custom(outermost::on_panic))
        .layer(from_fn(dashboard::security_headers))
        .layer(from_fn(outermost::wrap))
        .layer(from_fn_with_state(state.clone(), measure::count))
        .with_state(state.clone())
}
