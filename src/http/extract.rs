//! Requests into domain types. Every rejection is a problem.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::auth::Caller;
use super::problem::{ErrorCode, Problem};
use super::state::AppState;
use crate::domain::{JobId, StanzaName};

/// The largest body.
pub(crate) const BODY_LIMIT: usize = 64 << 10;
/// How much of a larger one is read and dropped, so that its sender can read our answer.
const DRAIN_LIMIT: usize = 32 << 20;
/// How long a body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// The longest `Prefer: wait`.
const LONGEST_WAIT: u64 = 600;

/// A JSON body. As `Option<Json<T>>` it may be absent.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, _: &AppState) -> Result<Self, Problem> {
        require_json(request.headers())?;
        parse(&read_body(request.into_body()).await?)
    }
}

impl<T: DeserializeOwned> OptionalFromRequest<AppState> for Json<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, _: &AppState) -> Result<Option<Self>, Problem> {
        let typed = request.headers().contains_key(header::CONTENT_TYPE);
        let headers = request.headers().clone();
        let body = read_body(request.into_body()).await?;
        if body.is_empty() && !typed {
            return Ok(None);
        }
        require_json(&headers)?;
        if body.is_empty() {
            return Ok(None);
        }
        parse(&body).map(Some)
    }
}

/// Reads a whole body within the limits.
pub(crate) async fn read_body(body: Body) -> Result<Bytes, Problem> {
    timeout(BODY_PATIENCE, collect(body)).await.unwrap_or_else(|_| {
        let detail = format!("the body did not arrive within {} s", BODY_PATIENCE.as_secs());
        Err(Problem::new(ErrorCode::RequestTimeout, detail))
    })
}

async fn collect(mut body: Body) -> Result<Bytes, Problem> {
    let mut kept = Vec::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Problem::new(ErrorCode::MalformedJson, format!("the body broke off: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size <= BODY_LIMIT {
            kept.extend_from_slice(&data);
        } else {
            kept.clear();
            if size > DRAIN_LIMIT {
                break;
            }
        }
    }
    if size > BODY_LIMIT {
        let detail = format!("the body has more than {BODY_LIMIT} bytes");
        return Err(Problem::new(ErrorCode::PayloadTooLarge, detail));
    }
    Ok(kept.into())
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = given.and_then(|text| text.split(';').next()).map(str::trim);
    if kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let detail = match given {
        Some(given) => format!("the body is declared as {given:?}, not as application/json"),
        None => "the body must be declared with Content-Type: application/json".to_owned(),
    };
    Err(Problem::new(ErrorCode::UnsupportedMediaType, detail))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<Json<T>, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data => {
                let message = inner.to_string();
                // serde names an unknown or missing field in its message only.
                let named = message.split('`').nth(1).map(str::to_owned);
                let unnamed = path == "." || message.starts_with("unknown field");
                let field = match (unnamed, named) {
                    (true, Some(name)) => name,
                    _ => path,
                };
                Problem::field(field, without_position(&message))
            }
            _ => Problem::new(ErrorCode::MalformedJson, inner.to_string()),
        }
    })?;
    reader.end().map_err(|error| Problem::new(ErrorCode::MalformedJson, error.to_string()))?;
    Ok(Json(value))
}

fn without_position(message: &str) -> String {
    message.split(" at line ").next().unwrap_or(message).to_owned()
}

/// Query parameters; unknown ones are refused.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for Query<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let text = parts.uri.query().unwrap_or_default();
        serde_urlencoded::from_str(text).map(Self).map_err(|error| {
            let message = error.to_string();
            let field = message.split('`').nth(1).unwrap_or("query").to_owned();
            Problem::field(field, message)
        })
    }
}

/// A part of the path, percent-decoded.
async fn path_part(parts: &mut Parts, name: &str) -> Result<String, Problem> {
    let all = axum::extract::RawPathParams::from_request_parts(parts, &())
        .await
        .map_err(|error| Problem::new(ErrorCode::NotFound, error.to_string()))?;
    let part = all.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
    part.ok_or_else(|| Problem::new(ErrorCode::NotFound, "the path is incomplete"))
}

/// `{stanza}` of the path: a configured one.
#[derive(Debug)]
pub(crate) struct Stanza(pub(crate) StanzaName);

impl FromRequestParts<AppState> for Stanza {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let text = path_part(parts, "stanza").await?;
        find_stanza(state, &text).map(Self)
    }
}

/// A configured stanza by its name.
pub(crate) fn find_stanza(state: &AppState, name: &str) -> Result<StanzaName, Problem> {
    state.stanzas.iter().find(|stanza| stanza.as_str() == name).cloned().ok_or_else(|| {
        let known: Vec<_> = state.stanzas.iter().map(StanzaName::as_str).collect();
        let shown = crate::domain::stanza::shown(name);
        Problem::new(ErrorCode::NoSuchStanza, format!("there is no stanza {shown}"))
            .hint(format!("Configured: {}.", known.join(", ")))
    })
}

/// `{id}` of the path: a job's.
#[derive(Debug)]
pub(crate) struct Id(pub(crate) JobId);

impl FromRequestParts<AppState> for Id {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let text = path_part(parts, "id").await?;
        text.parse().map(Self).map_err(|_| {
            let shown = crate::domain::stanza::shown(&text);
            Problem::new(ErrorCode::NoSuchJob, format!("{shown} is not a job's id"))
        })
    }
}

/// `{label}` or `{name}` of the path, as text.
#[derive(Debug)]
pub(crate) struct Named(pub(crate) String);

impl FromRequestParts<AppState> for Named {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        match path_part(parts, "label").await {
            Ok(label) => Ok(Self(label)),
            Err(_) => path_part(parts, "name").await.map(Self),
        }
    }
}

/// `Prefer: wait=N` (RFC 7240): how long the answer may wait for the job.
#[derive(Debug)]
pub(crate) struct Prefer(pub(crate) Option<Duration>);

impl FromRequestParts<AppState> for Prefer {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        let values = parts.headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        let wait = values
            .flat_map(|value| value.split([',', ';']))
            .find_map(|part| part.trim().strip_prefix("wait=").map(str::to_owned));
        let Some(wait) = wait else { return Ok(Self(None)) };
        match wait.trim_matches('"').parse::<u64>() {
            Ok(seconds) => Ok(Self(Some(Duration::from_secs(seconds.min(LONGEST_WAIT))))),
            Err(_) => Err(Problem::field("Prefer", format!("{wait:?} is not a number of seconds"))),
        }
    }
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Problem::new(ErrorCode::Unauthenticated, "who is asking is not known"))
    }
}

/// The claimed `Idempotency-Key`, for the job's row.
#[derive(Debug, Clone)]
pub(crate) struct IdempotencyKey(pub(crate) Option<String>);

impl FromRequestParts<AppState> for IdempotencyKey {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Problem> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or(Self(None)))
    }
}
