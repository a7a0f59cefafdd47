//! What the page's forms do: log in, log out, back up.

use std::net::SocketAddr;

use askama::Template;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::html;
use crate::domain::BackupType;
use crate::domain::job::{BackupSpec, JobSpec, Trigger};
use crate::http::auth::{COOKIE, Caller, LoginError, Via, same};
use crate::http::extract::{find_stanza, read_body};
use crate::http::middleware::guard::cookie;
use crate::http::problem::{ErrorCode, Outcome, Problem};
use crate::http::state::AppState;
use crate::jobs::Submission;

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    error: Option<&'static str>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupForm {
    #[serde(default)]
    csrf: String,
    stanza: String,
    r#type: String,
}

/// A button: take a backup, then back to the page.
pub(in crate::http) async fn back_up(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Outcome<Response> {
    let form: BackupForm = form(request).await?;
    check_form(&caller, &form.csrf)?;
    let stanza = find_stanza(&state, &form.stanza)?;
    let backup_type = form.r#type.parse::<BackupType>();
    let backup_type = backup_type.map_err(|error| Problem::field("type", error.to_string()))?;
    let spec = JobSpec::Backup(BackupSpec::plain(stanza, backup_type));
    let submission = Submission::new(spec, Trigger::Dashboard, caller.by);
    let word = match state.jobs.submit(submission).await {
        Ok(_) => "started",
        Err(crate::jobs::Denied::LaneBusy { .. }) => "busy",
        Err(denied) => return Err(denied.into()),
    };
    Ok(Redirect::to(&format!("/?notice={word}")).into_response())
}

/// The way in.
pub(in crate::http) async fn login_page(State(state): State<AppState>) -> Outcome<Response> {
    if state.auth.is_open() {
        return Ok(Redirect::to("/").into_response());
    }
    html(StatusCode::OK, &LoginPage { error: None })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoginForm {
    token: String,
}

/// Takes a token and begins a session.
pub(in crate::http) async fn log_in(
    State(state): State<AppState>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
) -> Outcome<Response> {
    let site = request.headers().get("sec-fetch-site").and_then(|value| value.to_str().ok());
    if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return Err(Problem::new(ErrorCode::Forbidden, "this login comes from another site"));
    }
    let form: LoginForm = form(request).await?;
    match state.auth.log_in(&form.token, from.ip()) {
        Ok(session) => {
            let cookie = format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict", session.cookie);
            let mut response = Redirect::to("/").into_response();
            if let Ok(value) = HeaderValue::from_str(&cookie) {
                response.headers_mut().insert(header::SET_COOKIE, value);
            }
            Ok(response)
        }
        Err(LoginError::WrongToken) => {
            let error = Some("This is not the token.");
            html(StatusCode::UNAUTHORIZED, &LoginPage { error })
        }
        Err(LoginError::TooManyFailures) => {
            let error = Some("Too many attempts from this address. Wait a minute.");
            html(StatusCode::TOO_MANY_REQUESTS, &LoginPage { error })
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogoutForm {
    #[serde(default)]
    csrf: String,
}

/// Ends the session.
pub(in crate::http) async fn log_out(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Outcome<Response> {
    let session = cookie(request.headers()).map(str::to_owned);
    let form: LogoutForm = form(request).await?;
    check_form(&caller, &form.csrf)?;
    if let Some(session) = session {
        state.auth.log_out(&session);
    }
    Ok(Redirect::to("/login").into_response())
}

async fn form<T: serde::de::DeserializeOwned>(request: Request) -> Outcome<T> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded")) {
        return Err(Problem::new(ErrorCode::UnsupportedMediaType, "this takes a form"));
    }
    let body = read_body(request.into_body()).await?;
    serde_urlencoded::from_bytes(&body).map_err(|error| Problem::field("form", error.to_string()))
}

fn check_form(caller: &Caller, given: &str) -> Outcome<()> {
    match &caller.via {
        Via::Session { csrf } if !same(csrf, given) => {
            Err(Problem::new(ErrorCode::Csrf, "reload the page and try again"))
        }
        Via::Session { .. } | Via::Open | Via::Token => Ok(()),
    }
}
