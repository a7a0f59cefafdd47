//! Who may pass: host names, cross-site requests, tokens, sessions and their forms.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Redirect, Response};

use crate::http::auth::{COOKIE, Via, same};
use crate::http::problem::{ErrorCode, Problem};
use crate::http::state::AppState;

/// The header in which a script shows that it runs on one of our pages.
const CSRF_HEADER: &str = "x-csrf-token";
/// The forms of our pages: their handlers read the body and check the token in it.
const FORMS: [&str; 2] = ["/backups", "/logout"];

/// Lets in who may, and says who it is.
pub(in crate::http) async fn check(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let bearer = bearer(headers);
    let caller = state.auth.caller(bearer, cookie(headers));
    // A browser does not know the token by itself, so only without it can it have been tricked.
    let has_token = caller.as_ref().is_some_and(|caller| caller.via == Via::Token);
    if !has_token
        && let Err(problem) = check_host(&state, &request).and_then(|()| check_site(&request))
    {
        return problem.into_response();
    }
    let Some(caller) = caller else {
        let wants_page = request.method() == Method::GET
            && bearer.is_none()
            && accepts_html(headers)
            && !request.uri().path().starts_with("/api/");
        return if wants_page { Redirect::to("/login").into_response() } else { refused(bearer) };
    };
    if let Via::Session { csrf } = &caller.via
        && changes_something(request.method())
        && !FORMS.contains(&request.uri().path())
        && !headers.get(CSRF_HEADER).and_then(|v| v.to_str().ok()).is_some_and(|v| same(v, csrf))
    {
        let detail = format!("a request that changes something needs {CSRF_HEADER} or a form");
        return Problem::new(ErrorCode::Csrf, detail).into_response();
    }
    let from_here = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    if matches!(caller.via, Via::Session { .. })
        && crate::http::short::changes_something(request.uri().path())
        && !from_here.is_some_and(|site| matches!(site, "same-origin" | "none"))
    {
        // Such a GET has no token, so it must be certain that no other page made it.
        let detail = "use the token, or a browser that says where a request comes from";
        return Problem::new(ErrorCode::Forbidden, detail).into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn check_host(state: &AppState, request: &Request) -> Result<(), Problem> {
    let named = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
    let named = named.or_else(|| request.uri().host()).unwrap_or_default();
    let host = match named.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => named,
    };
    if state.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host)) {
        return Ok(());
    }
    let detail = format!("host {named:?} is not one of allowed_hosts");
    Err(Problem::new(ErrorCode::HostNotAllowed, detail)
        .hint("Add it to allowed_hosts in Headrest's configuration, or send a bearer token."))
}

/// Another site must not make a browser do anything here (Fetch Metadata Request Headers).
fn check_site(request: &Request) -> Result<(), Problem> {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let acts = changes_something(request.method())
        || crate::http::short::changes_something(request.uri().path());
    if !acts {
        return Ok(());
    }
    let foreign =
        text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let prefetch = [text("sec-purpose"), text("purpose")]
        .into_iter()
        .flatten()
        .any(|purpose| purpose.contains("prefetch"));
    if foreign || prefetch {
        let detail = "a request of another site, or one made in advance, changes nothing here";
        return Err(Problem::new(ErrorCode::Forbidden, detail));
    }
    Ok(())
}

fn changes_something(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn refused(bearer: Option<&str>) -> Response {
    let detail = match bearer {
        Some(_) => "this token is not known",
        None => "send the admin token: Authorization: Bearer TOKEN",
    };
    Problem::new(ErrorCode::Unauthenticated, detail)
        .hint("The token is in the file admin-token of Headrest's state directory.")
        .into_response()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The value of the session cookie.
pub(in crate::http) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// Whether the client asks for a page rather than for data.
pub(in crate::http) fn accepts_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}
