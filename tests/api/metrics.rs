//! `/metrics`: who may see it, what it costs, and what it counts.

use axum::body::Body;
use axum::http::Request;
use headrest::config::MetricsConfig;
use headrest::metrics::Metrics;

use crate::service::{Answer, Options, Service, THREE, eventually, fake, info_from};

const CHECK: &str = "/api/v1/stanzas/main/check";

fn public() -> Options {
    Options {
        metrics: MetricsConfig { public: true, ..MetricsConfig::default() },
        ..Options::default()
    }
}

async fn without_token(service: &Service, method: &str, host: &str) -> Answer {
    let request = Request::builder().method(method).uri("/metrics").header("host", host);
    service.send(request.body(Body::empty()).unwrap()).await
}

/// The value of a series, by its name and labels as they are written.
fn value(text: &str, series: &str) -> Option<f64> {
    let line =
        text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(id, _)| id == series))?;
    line.rsplit_once(' ').unwrap().1.parse().ok()
}

#[tokio::test]
async fn only_with_a_token_unless_it_is_public() {
    let service = Service::new().await;
    without_token(&service, "GET", "localhost").await.is_problem(401, "unauthenticated");
    let answer = service.get("/metrics").await;
    assert_eq!(answer.status, 200);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type"), kind);
    assert!(answer.text.ends_with("# EOF\n"));

    let service = Service::with(public()).await;
    for host in ["localhost", "headrest.example"] {
        assert_eq!(without_token(&service, "GET", host).await.status, 200);
        let head = without_token(&service, "HEAD", host).await;
        assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
        assert_eq!(head.header("content-type"), kind);
        without_token(&service, "POST", host).await.is_problem(405, "method-not-allowed");
    }
}

#[tokio::test]
async fn a_scrape_runs_nothing_and_tells_what_was_seen_last() {
    let directory = tempfile::tempdir().unwrap();
    let runs = directory.path().join("runs");
    // Nothing is answered before the gate is open, not even to the health.
    let gate = directory.path().join("gate");
    let script = format!(
        "while [ ! -e '{}' ]; do sleep 0.02; done; echo x >> '{}'; {}",
        gate.display(),
        runs.display(),
        info_from(THREE)
    );
    let service = Service::with_script(&script).await;
    let status = "pgbackrest_exporter_status{stanza=\"main\"}";
    let size = "pgbackrest_backup_last_size_bytes{backup_type=\"full\",block_incr=\"n\",\
                stanza=\"main\"}";
    let before = service.get("/metrics").await.text;
    assert_eq!((value(&before, status), value(&before, size)), (Some(0.0), None));
    std::fs::write(&gate, "").unwrap();
    assert_eq!(service.get("/api/v1/stanzas/main").await.status, 200);
    let after = service.get("/metrics").await.text;
    assert_eq!((value(&after, status), value(&after, size)), (Some(1.0), Some(24_590_133.0)));
    let count = || std::fs::read_to_string(&runs).unwrap().lines().count();
    let run = count();
    for _ in 0..20 {
        service.get("/metrics").await;
    }
    assert_eq!(count(), run);

    // A repository that is not there any more takes what it held with it.
    fake(service.directory.path(), "exit 37");
    let fresh = Service::request("GET", "/api/v1/stanzas/main").header("cache-control", "no-cache");
    service.send(fresh.body(Body::empty()).unwrap()).await;
    let gone = service.get("/metrics").await.text;
    assert_eq!((value(&gone, status), value(&gone, size)), (Some(0.0), None));
}

#[tokio::test]
async fn requests_are_counted_by_route_and_never_by_path() {
    let service = Service::new().await;
    for path in ["/api/v1/jobs/a", "/api/v1/jobs/b", "/nowhere/a", "/nowhere/b", "/livez"] {
        service.get(path).await;
    }
    let text = service.get("/metrics").await.text;
    let count = |route: &str, status: u16| {
        let series = format!(
            "headrest_http_requests_total{{method=\"GET\",route=\"{route}\",status=\"{status}\"}}"
        );
        value(&text, &series)
    };
    assert_eq!(count("/api/v1/jobs/{id}", 404), Some(2.0), "{text}");
    assert_eq!(count("unmatched", 404), Some(2.0));
    assert_eq!(count("/livez", 200), Some(1.0));
    let timed = "headrest_http_request_duration_seconds_count{method=\"GET\",route=\"/livez\"}";
    assert_eq!(value(&text, timed), Some(1.0));
    assert!(!text.contains("nowhere"));
}

/// A pgbackrest whose checks fail.
fn failing_checks() -> String {
    format!("case \"$*\" in *info*) cat '{THREE}';; *check*) exit 28;; esac")
}

#[tokio::test]
async fn jobs_are_counted_when_they_end_and_again_after_a_restart() {
    let service = Service::with_script(&failing_checks()).await;
    let counted = |metrics: &Metrics| {
        let text = metrics.encode(Vec::new()).unwrap();
        let of = |series: &str| value(&text, series).unwrap();
        (
            of("headrest_jobs_total{kind=\"check\",outcome=\"failed\"}"),
            of("headrest_job_duration_seconds_count{kind=\"check\"}"),
        )
    };
    assert_eq!(counted(&service.metrics), (0.0, 0.0));
    for expected in [1.0, 2.0] {
        let check = Service::request("POST", CHECK).header("prefer", "wait=20");
        let job = service.send(check.body(Body::empty()).unwrap()).await.json();
        assert_eq!(job["state"], "failed", "{job}");
        // It is counted just after it is told.
        eventually("counted", || counted(&service.metrics) == (expected, expected)).await;
    }
    assert_eq!(counted(&service.count_again().await), (2.0, 2.0));
}

#[tokio::test]
async fn a_running_job_is_a_gauge() {
    let directory = tempfile::tempdir().unwrap();
    let gate = directory.path().join("gate");
    let script = format!(
        "case \"$*\" in *info*) cat '{THREE}';; *) while [ ! -e '{}' ]; do sleep 0.02; done;; esac",
        gate.display()
    );
    let service = Service::with_script(&script).await;
    let running = "headrest_job_running{kind=\"check\",stanza=\"main\"}";
    assert_eq!(value(&service.get("/metrics").await.text, running), Some(0.0));
    let check = Service::request("POST", CHECK).body(Body::empty()).unwrap();
    let job = service.send(check).await.json();
    assert_eq!(value(&service.get("/metrics").await.text, running), Some(1.0), "{job}");
    std::fs::write(&gate, "").unwrap();
}
