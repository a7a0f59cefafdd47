//! The dashboard: one page, a way in and a way out. Works without scripts; one small script keeps
//! it up to date.

mod assets;
mod forms;
mod pages;
mod view;

use askama::Template;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};

pub(super) use assets::{asset, security_headers};
pub(super) use forms::{back_up, log_in, log_out, login_page};
pub(super) use pages::overview;

use super::problem::{ErrorCode, Outcome, Problem};

fn html(status: StatusCode, page: &impl Template) -> Outcome<Response> {
    let text = page.render().map_err(|error| {
        tracing::error!("a page cannot be rendered: {error}");
        Problem::new(ErrorCode::Internal, "the page cannot be rendered; see Headrest's log")
    })?;
    let mut response = (status, Html(text)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
