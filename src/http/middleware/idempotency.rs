//! `Idempotency-Key`: the same request again gets the same answer and does nothing.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};

use crate::clock;
use crate::http::auth::hex;
use crate::http::extract::{IdempotencyKey, read_body};
use crate::http::problem::{ErrorCode, Problem};
use crate::http::state::AppState;
use crate::store::{Claim, StoredAnswer};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

pub(in crate::http) async fn honour(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let Some(key) = request.headers().get(&KEY).cloned() else { return next.run(request).await };
    answer(&state, key, request, next).await.unwrap_or_else(Problem::into_response)
}

async fn answer(
    state: &AppState,
    key: HeaderValue,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let key = key.to_str().ok().map(str::trim).filter(|key| (1..=255).contains(&key.len()));
    let key = key.ok_or_else(|| {
        Problem::field("Idempotency-Key", "must be 1 to 255 printable ASCII characters")
    })?;
    let (parts, body) = request.into_parts();
    let body = read_body(body).await?;
    let mut hasher = Sha256::new();
    for part in [parts.method.as_str().as_bytes(), b" ", parts.uri.to_string().as_bytes(), b"\n"] {
        hasher.update(part);
    }
    hasher.update(&body);
    let fingerprint = hex(&hasher.finalize());
    match state.store.claim_key(key.to_owned(), fingerprint, clock::now()).await? {
        Claim::Fresh => {}
        Claim::Mismatch => {
            let detail = format!("key {key:?} was used for another request");
            return Err(Problem::new(ErrorCode::IdempotencyMismatch, detail));
        }
        Claim::InProgress => {
            let detail = format!("the first request with key {key:?} is not answered yet");
            return Err(Problem::new(ErrorCode::IdempotencyInProgress, detail)
                .hint("Its job, if it made one, is in GET /api/v1/jobs."));
        }
        Claim::Answered(answer) => return Ok(replay(answer)),
    }
    // In a task of its own: a client that leaves must not leave its key unsettled.
    let (state, key) = (state.clone(), key.to_owned());
    let mut request = Request::from_parts(parts, Body::from(body));
    request.extensions_mut().insert(IdempotencyKey(Some(key.clone())));
    let work = tokio::spawn(async move {
        let response = next.run(request).await;
        settle(&state, key, response).await
    });
    work.await.unwrap_or_else(|error| {
        Err(Problem::new(ErrorCode::Internal, format!("the request ended early: {error}")))
    })
}

/// Keeps a success. A refusal did nothing, so the same key may be tried again.
async fn settle(state: &AppState, key: String, response: Response) -> Result<Response, Problem> {
    if !response.status().is_success() {
        state.store.settle_key(key, None).await?;
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let location = parts.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let answer = StoredAnswer {
        status: parts.status.as_u16(),
        location: location.map(str::to_owned),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    state.store.settle_key(key, Some(answer)).await?;
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn replay(answer: StoredAnswer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = (status, answer.body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if let Some(location) = answer.location.and_then(|text| HeaderValue::from_str(&text).ok()) {
        headers.insert(header::LOCATION, location);
    }
    response
}
