//! The request's id, its line in the log, and the rendering of problems.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::time::Instant;

use crate::http::probes;
use crate::http::problem::{ErrorCode, Problem};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub(in crate::http) async fn wrap(request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let id = match given {
        Some(id) if is_plain(id) => id.to_owned(),
        _ => uuid::Uuid::now_v7().to_string(),
    };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    let mut response = next.run(request).await;
    if response.status() == StatusCode::METHOD_NOT_ALLOWED
        && response.extensions().get::<Problem>().is_none()
    {
        // axum's own: it knows the allowed methods and nothing else.
        let allow = response.headers().get(header::ALLOW).cloned();
        let allowed = allow.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
        let detail = format!("{path} has {allowed}, not {method}");
        response = Problem::new(ErrorCode::MethodNotAllowed, detail).into_response();
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let mut allow = response.headers_mut().remove(header::ALLOW);
        if allow.is_none() && problem.code == ErrorCode::MethodNotAllowed {
            // HEAD on a route whose GET is a deed.
            allow = Some(HeaderValue::from_static("GET, POST"));
        }
        response = problem.render(id.clone(), path.clone());
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        if method == Method::HEAD {
            *response.body_mut() = axum::body::Body::empty();
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let status = response.status().as_u16();
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    if probes::PATHS.contains(&path.as_str()) {
        // What they say is in the log already, once.
        tracing::debug!(request.id = %id, status, duration_ms, "{method} {path} -> {status}");
    } else if status >= 500 {
        tracing::warn!(request.id = %id, status, duration_ms, "{method} {path} -> {status}");
    } else if method != Method::GET && method != Method::HEAD {
        tracing::info!(request.id = %id, status, duration_ms, "{method} {path} -> {status}");
    } else {
        tracing::debug!(request.id = %id, status, duration_ms, "{method} {path} -> {status}");
    }
    response
}

/// What a panicking handler answers.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over so")]
pub(in crate::http) fn on_panic(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!("a handler panicked: {text}");
    Problem::new(ErrorCode::Internal, "a bug in Headrest; its log has the details").into_response()
}

fn is_plain(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}
