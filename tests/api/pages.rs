//! The dashboard without a browser.

use axum::body::Body;
use axum::http::Request;

use headrest::domain::schedule::{Schedule, ScheduleKind};

use crate::service::{Answer, Options, Service, TOKEN};

fn browser(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("accept", "text/html")
}

async fn form(service: &Service, path: &str, cookie: &str, body: &str) -> Answer {
    let request = browser("POST", path)
        .header("cookie", cookie)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(body.to_owned()))
        .unwrap();
    service.send(request).await
}

async fn log_in(service: &Service) -> String {
    let answer = form(service, "/login", "", &format!("token={TOKEN}")).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/"), "{answer:?}");
    let cookie = answer.header("set-cookie");
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    cookie.split(';').next().unwrap().to_owned()
}

async fn page(service: &Service, cookie: &str) -> Answer {
    let request = browser("GET", "/").header("cookie", cookie).body(Body::empty()).unwrap();
    service.send(request).await
}

fn csrf_of(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"csrf\" value=\"").unwrap();
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_stranger_is_sent_to_the_login_and_a_wrong_token_does_not_help() {
    let service = Service::new().await;
    let answer = service.send(browser("GET", "/").body(Body::empty()).unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/login"));
    let login = service.send(browser("GET", "/login").body(Body::empty()).unwrap()).await;
    assert!(login.status == 200 && login.text.contains("type=\"password\""));
    let wrong = form(&service, "/login", "", "token=wrong").await;
    assert_eq!(wrong.status, 401);
    assert!(wrong.header("set-cookie").is_empty());
    assert_eq!(page(&service, "headrest_session=forged").await.status, 303);
}

#[tokio::test]
async fn the_page_shows_the_state_and_its_buttons_start_backups() {
    let service = Service::new().await;
    let cookie = log_in(&service).await;
    let shown = page(&service, &cookie).await;
    assert_eq!(shown.status, 200);
    for part in
        ["Safe", "PostgreSQL", "Repository", "WAL archive", "Full", "Differential", "Incremental"]
    {
        let there = shown.text.contains(part) || part == "Safe" && shown.text.contains("Backed up");
        assert!(there, "{part} is not on the page");
    }
    assert!(shown.text.len() < 60_000, "{} bytes", shown.text.len());
    assert!(!shown.text.contains(" style=") && !shown.text.contains("<style"), "inline style");
    assert!(shown.header("content-security-policy").starts_with("default-src 'self'"));
    let csrf = csrf_of(&shown.text);
    let refused = form(&service, "/backups", &cookie, "stanza=main&type=full&csrf=x").await;
    refused.is_problem(403, "csrf");
    let forced = format!("stanza=main&type=--force&csrf={csrf}");
    form(&service, "/backups", &cookie, &forced).await.is_problem(422, "invalid-field");
    let done =
        form(&service, "/backups", &cookie, &format!("stanza=main&type=full&csrf={csrf}")).await;
    assert_eq!((done.status.as_u16(), done.header("location")), (303, "/?notice=started"));
    let jobs = service.get("/api/v1/jobs").await.json();
    assert_eq!(jobs["items"][0]["trigger"], "dashboard", "{jobs}");
}

#[tokio::test]
async fn a_session_may_read_the_api_but_changes_need_its_token() {
    let service = Service::new().await;
    let cookie = log_in(&service).await;
    let read = browser("GET", "/api/v1/jobs").header("cookie", &cookie);
    assert_eq!(service.send(read.body(Body::empty()).unwrap()).await.status, 200);
    let post = |csrf: Option<String>| {
        let mut request = browser("POST", "/api/v1/stanzas/main/backups")
            .header("cookie", &cookie)
            .header("content-type", "application/json");
        if let Some(csrf) = csrf {
            request = request.header("x-csrf-token", csrf);
        }
        request.body(Body::from("{\"type\":\"full\"}")).unwrap()
    };
    service.send(post(None)).await.is_problem(403, "csrf");
    let csrf = csrf_of(&page(&service, &cookie).await.text);
    assert_eq!(service.send(post(Some(csrf.clone()))).await.status, 202);
    let out = form(&service, "/logout", &cookie, &format!("csrf={csrf}")).await;
    assert_eq!(out.status, 303);
    assert_eq!(page(&service, &cookie).await.status, 303);
}

#[tokio::test]
async fn everything_a_page_needs_is_served_from_here() {
    let service = Service::new().await;
    for (file, kind) in [
        ("headrest.css", "text/css; charset=utf-8"),
        ("headrest.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ] {
        let answer =
            service.send(browser("GET", &format!("/static/{file}")).body(Body::empty()).unwrap());
        let answer = answer.await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, kind), "{file}");
        let links = answer.text.contains("https://") || answer.text.contains("//cdn");
        assert!(!links, "{file} loads something from elsewhere");
    }
    let missing = browser("GET", "/static/..%2fCargo.toml").body(Body::empty()).unwrap();
    service.send(missing).await.is_problem(404, "not-found");
    let docs = service.get("/docs/").await;
    assert_eq!(docs.status, 200, "{docs:?}");
    assert!(docs.text.contains("swagger-ui-bundle.js"), "{}", docs.text);
    assert!(!docs.text.contains("https://"), "{}", docs.text);
    let bundle = service.get("/docs/swagger-ui-bundle.js").await;
    assert!(bundle.status == 200 && bundle.text.contains("SwaggerUIBundle"), "{}", bundle.status);
}

#[tokio::test]
async fn what_is_wrong_and_what_comes_next_is_on_the_page() {
    let nightly = Schedule::new(
        "nightly".parse().unwrap(),
        "main".parse().unwrap(),
        ScheduleKind::Full,
        "0 2 * * *".parse().unwrap(),
    );
    let service = Service::with(Options { schedules: vec![nightly], ..Options::default() }).await;
    let cookie = log_in(&service).await;
    // The recorded backups are old, which the health finds out.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let shown = loop {
        let shown = page(&service, &cookie).await.text;
        if shown.contains("last-backup") {
            break shown;
        }
        assert!(std::time::Instant::now() < deadline, "{shown}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    for part in
        ["Problems", "the newest backup ended", "nightly", "At 02:00", "Next run", "on time"]
    {
        assert!(shown.contains(part), "{part} is not on the page: {shown}");
    }
    let health = service.get("/api/v1/health").await;
    assert_eq!((health.status.as_u16(), &health.json()["status"]), (503, &"fail".into()));
    let nagios = service.get("/api/v1/health?format=nagios&strict=1").await;
    assert!(nagios.text.starts_with("HEADREST CRITICAL - last-"), "{}", nagios.text);
    for query in ["strict=maybe", "format=xml", "colour=red"] {
        let answer = service.get(&format!("/api/v1/health?{query}")).await;
        answer.is_problem(422, "invalid-field");
    }
    service.get("/api/v1/health?stanza=other").await.is_problem(404, "no-such-stanza");
}
