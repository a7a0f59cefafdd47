//! Weak entity tags on JSON answers to GET: unchanged data is not sent again.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;

pub(in crate::http) async fn tag(request: Request, next: Next) -> Response {
    let reads = request.method() == Method::GET;
    let known = request.headers().get(header::IF_NONE_MATCH).cloned();
    let response = next.run(request).await;
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes() == b"application/json");
    if !reads || !is_json || response.status() != StatusCode::OK {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // Handlers build their bodies in memory, so this copies nothing.
    let Ok(body) = body.collect().await else {
        return Response::from_parts(parts, Body::empty());
    };
    let body = body.to_bytes();
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    // A handler's own tag says which version a change is about; the rest, what was shown with it.
    let version = parts.headers.get(header::ETAG).and_then(|value| value.to_str().ok());
    let version =
        version.map_or(String::new(), |version| format!("{}.", version.trim_matches('"')));
    let tag = format!("W/\"{version}{:016x}\"", hasher.finish());
    let unchanged = known.as_ref().and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.split(',').any(|one| matches!(one.trim(), "*") || one.trim() == tag)
    });
    if let Ok(value) = HeaderValue::from_str(&tag) {
        parts.headers.insert(header::ETAG, value);
    }
    parts.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if unchanged {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::CONTENT_TYPE);
        return Response::from_parts(parts, Body::empty());
    }
    Response::from_parts(parts, Body::from(body))
}
