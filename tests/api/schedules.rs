//! Schedules through the API.

use axum::body::Body;
use headrest::domain::schedule::{Schedule, ScheduleKind};
use serde_json::{Value, json};

use crate::service::{Answer, Options, Service};

const SCHEDULES: &str = "/api/v1/schedules";

fn hourly() -> Value {
    json!({
        "name": "hourly-incr", "type": "incr", "cron": "0 * * * *", "timezone": "Europe/Berlin",
        "within_s": 1800, "jitter_s": 60, "retries": 1, "missed": "skip",
    })
}

async fn send(
    service: &Service,
    method: &str,
    path: &str,
    body: Value,
    tag: Option<&str>,
) -> Answer {
    let mut request = Service::request(method, path).header("content-type", "application/json");
    if let Some(tag) = tag {
        request = request.header("if-match", tag);
    }
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    service.send(request.body(body).unwrap()).await
}

#[tokio::test]
async fn a_schedule_is_made_shown_changed_and_removed() {
    let service = Service::new().await;
    let made = send(&service, "POST", SCHEDULES, hourly(), None).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.header("location"), "/api/v1/schedules/hourly-incr");
    let path = made.header("location").to_owned();
    let shown = service.get(&path).await;
    let body = shown.json();
    for (field, expect) in [
        ("type", json!("incr")),
        ("stanza", json!("main")),
        ("timezone", json!("Europe/Berlin")),
        ("within_s", json!(1800)),
        ("jitter_s", json!(60)),
        ("origin", json!("api")),
        ("missed", json!("skip")),
        ("paused", json!(false)),
        ("last_job", Value::Null),
        ("verdicts", json!([])),
    ] {
        assert_eq!(body[field], expect, "{field}: {body}");
    }
    assert!(body["in_words"].as_str().unwrap().contains("hour"), "{body}");
    assert!(body["next_run_at"].is_string());
    send(&service, "POST", SCHEDULES, hourly(), None).await.is_problem(409, "schedule-exists");

    // A change says what it is about.
    let daily = json!({"type": "diff", "cron": "@daily"});
    send(&service, "PUT", &path, daily.clone(), None)
        .await
        .is_problem(428, "precondition-required");
    send(&service, "PUT", &path, daily.clone(), Some("\"v7\""))
        .await
        .is_problem(412, "precondition-failed");
    let tag = shown.header("etag").to_owned();
    assert!(tag.starts_with("W/\"v1."), "{tag}");
    let changed = send(&service, "PUT", &path, daily.clone(), Some(&tag)).await;
    assert_eq!((changed.status.as_u16(), &changed.json()["cron"]), (200, &json!("@daily")));
    // The same tag again is about what is no more.
    send(&service, "PUT", &path, daily, Some(&tag)).await.is_problem(412, "precondition-failed");
    send(&service, "DELETE", &path, Value::Null, Some(&tag))
        .await
        .is_problem(412, "precondition-failed");
    send(&service, "DELETE", &path, Value::Null, None)
        .await
        .is_problem(428, "precondition-required");
    assert_eq!(send(&service, "DELETE", &path, Value::Null, Some("*")).await.status, 204);
    service.get(&path).await.is_problem(404, "no-such-schedule");
    let audit = service.get("/api/v1/audit").await.json();
    let actions: Vec<_> = audit["items"].as_array().unwrap().iter().map(|d| &d["action"]).collect();
    assert_eq!(actions, ["schedule.delete", "schedule.change", "schedule.create"]);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_the_field_is_named() {
    let service = Service::new().await;
    let cases = [
        ("cron", json!("0 0 30 2 *")),
        ("cron", json!("* * * * * *")),
        ("cron", json!("61 * * * *")),
        ("timezone", json!("Europe/Atlantis")),
        ("type", json!("drill")),
        ("missed", json!("sometimes")),
        ("within_s", json!(60 * 60 * 24 * 32)),
        ("jitter_s", json!(90_000)),
        ("retries", json!(11)),
        ("repo", json!(0)),
        ("name", json!("../x")),
        ("colour", json!("red")),
        ("within_s", json!(-1)),
    ];
    for (field, value) in cases {
        let mut request = hourly();
        request[field] = value;
        let answer = send(&service, "POST", SCHEDULES, request, None).await;
        let problem = answer.is_problem(422, "invalid-field");
        assert_eq!(problem["field"], field, "{problem}");
    }
    let mut elsewhere = hourly();
    elsewhere["stanza"] = json!("other");
    send(&service, "POST", SCHEDULES, elsewhere, None).await.is_problem(404, "no-such-stanza");
    assert_eq!(service.get(SCHEDULES).await.json()["items"], json!([]));
}

#[tokio::test]
async fn paused_resumed_previewed_and_run_now() {
    let service = Service::new().await;
    send(&service, "POST", SCHEDULES, hourly(), None).await;
    let path = "/api/v1/schedules/hourly-incr";
    let paused = service.post(&format!("{path}/pause"), "").await.json();
    assert_eq!((&paused["paused"], &paused["next_run_at"]), (&json!(true), &Value::Null));
    let preview = service.get(&format!("{path}/preview?count=3")).await.json();
    let slots: Vec<_> =
        preview["items"].as_array().unwrap().iter().map(|run| &run["slot"]).collect();
    assert_eq!(slots.len(), 3);
    assert!(preview["items"][0]["local"].as_str().unwrap().ends_with("[Europe/Berlin]"));
    for count in ["0", "101", "x"] {
        service
            .get(&format!("{path}/preview?count={count}"))
            .await
            .is_problem(422, "invalid-field");
    }
    assert_eq!(service.post(&format!("{path}/resume"), "").await.json()["paused"], false);
    let run = service.post(&format!("{path}/run"), "").await;
    assert_eq!(run.status, 202, "{run:?}");
    let job = run.json();
    assert_eq!(job["trigger"], "schedule:hourly-incr");
    assert_eq!((&job["kind"], &job["by"]), (&json!("backup"), &json!("admin-token")));
    let shown = service.get(path).await.json();
    assert_eq!(shown["last_job"]["id"], job["id"]);
    service.post("/api/v1/schedules/none/run", "").await.is_problem(404, "no-such-schedule");
}

#[tokio::test]
async fn those_of_the_file_are_changed_there() {
    let nightly = Schedule::new(
        "nightly".parse().unwrap(),
        "main".parse().unwrap(),
        ScheduleKind::Full,
        "0 2 * * *".parse().unwrap(),
    );
    let options = Options { schedules: vec![nightly], ..Options::default() };
    let service = Service::with(options).await;
    let path = "/api/v1/schedules/nightly";
    assert_eq!(service.get(path).await.json()["origin"], "file");
    let body = json!({"type": "diff", "cron": "@daily"});
    send(&service, "PUT", path, body, None).await.is_problem(409, "schedule-read-only");
    send(&service, "DELETE", path, Value::Null, Some("*"))
        .await
        .is_problem(409, "schedule-read-only");
    // But it can be paused.
    assert_eq!(service.post(&format!("{path}/pause"), "").await.json()["paused"], true);
}
