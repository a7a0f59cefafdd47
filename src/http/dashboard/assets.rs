//! The files of the pages, and the headers that keep others' files out.

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;

use crate::http::extract::Named;
use crate::http::problem::{ErrorCode, Outcome, Problem};

#[derive(RustEmbed)]
#[folder = "templates/static/"]
struct Assets;

/// A file of the pages.
pub(in crate::http) async fn asset(Named(name): Named) -> Outcome<Response> {
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
pub(in crate::http) async fn security_headers(request: Request, next: Next) -> Response {
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
