//! Bad input: every answer is a problem with the right code, and nothing is spawned.

use axum::body::Body;
use axum::http::Request;

use crate::service::{Options, Service, TOKEN};

/// A script that leaves a trace when it is run at all for anything but `info`.
fn tracing_script(directory_marker: &str) -> String {
    format!("case \"$*\" in *info*) echo '[]';; *) touch '{directory_marker}';; esac")
}

#[tokio::test]
async fn bodies_that_cannot_be_taken_are_refused_and_nothing_runs() {
    let marker = tempfile::tempdir().unwrap();
    let marker = marker.path().join("ran");
    let service = Service::with_script(&tracing_script(marker.to_str().unwrap())).await;
    let long = "x".repeat(600);
    let cases: &[(&str, u16, &str, &str)] = &[
        ("{", 400, "malformed-json", ""),
        ("", 400, "malformed-json", ""),
        ("{\"type\":\"full\"} x", 400, "malformed-json", ""),
        ("{}", 422, "invalid-field", "type"),
        ("[]", 422, "invalid-field", ""),
        ("{\"type\":\"--force\"}", 422, "invalid-field", "type"),
        ("{\"type\":\"full\\n\"}", 422, "invalid-field", "type"),
        ("{\"type\":1}", 422, "invalid-field", "type"),
        ("{\"type\":\"full\",\"force\":true}", 422, "invalid-field", "force"),
        ("{\"type\":\"full\",\"repo\":0}", 422, "invalid-field", "repo"),
        ("{\"type\":\"full\",\"repo\":\"--force\"}", 422, "invalid-field", "repo"),
        (
            "{\"type\":\"full\",\"annotations\":{\"a\":\"b\\nc\"}}",
            422,
            "invalid-field",
            "annotations",
        ),
        (
            "{\"type\":\"full\",\"annotations\":{\"--force\":\"b\"}}",
            422,
            "invalid-field",
            "annotations",
        ),
        (
            "{\"type\":\"full\",\"annotations\":{\"a=b\":\"c\"}}",
            422,
            "invalid-field",
            "annotations",
        ),
        (
            "{\"type\":\"full\",\"options\":{\"process_max\":0}}",
            422,
            "invalid-field",
            "options.process_max",
        ),
        ("{\"type\":\"full\",\"options\":{\"cmd\":\"x\"}}", 422, "invalid-field", "cmd"),
        ("{\"type\":\"full\",\"on_conflict\":\"cancel\"}", 422, "invalid-field", "on_conflict"),
        ("{\"type\":\"full\",\"on_conflict\":\"--force\"}", 422, "invalid-field", "on_conflict"),
    ];
    for (body, status, code, field) in cases {
        let problem = service.post("/api/v1/stanzas/main/backups", body).await;
        let problem = problem.is_problem(*status, code);
        if !field.is_empty() {
            assert_eq!(problem["field"], *field, "{body}: {problem}");
        }
    }
    let body = format!("{{\"type\":\"full\",\"annotations\":{{\"a\":\"{long}\"}}}}");
    service.post("/api/v1/stanzas/main/backups", &body).await.is_problem(422, "invalid-field");
    assert!(!marker.exists(), "a refused request ran pgbackrest");
}

#[tokio::test]
async fn large_bodies_and_other_types_are_refused() {
    let service = Service::new().await;
    let path = "/api/v1/stanzas/main/backups";
    let large = format!("{{\"type\":\"{}\"}}", "x".repeat(10 << 20));
    service.post(path, &large).await.is_problem(413, "payload-too-large");
    let limit = format!("{{\"type\":\"{}\"}}", "x".repeat(64 << 10));
    service.post(path, &limit).await.is_problem(413, "payload-too-large");
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let mut request = Service::request("POST", path);
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let request = request.body(Body::from("{\"type\":\"full\"}")).unwrap();
        service.send(request).await.is_problem(415, "unsupported-media-type");
    }
}

#[tokio::test]
async fn names_in_the_path_are_refused_with_their_kind() {
    let service = Service::new().await;
    let cases = [
        ("/api/v1/stanzas/other", 404, "no-such-stanza"),
        ("/api/v1/stanzas/--force", 404, "no-such-stanza"),
        ("/api/v1/stanzas/main%0a", 404, "no-such-stanza"),
        ("/api/v1/stanzas/main/backups/--force", 422, "invalid-field"),
        ("/api/v1/stanzas/main/backups/20261120-101500F%0a", 422, "invalid-field"),
        ("/api/v1/stanzas/main/backups/20261120-101500X", 422, "invalid-field"),
        ("/api/v1/stanzas/main/backups/20001120-101500F", 404, "no-such-backup"),
        ("/api/v1/stanzas/main/backups?type=--force", 422, "invalid-field"),
        ("/api/v1/stanzas/main/backups?limit=0", 422, "invalid-field"),
        ("/api/v1/stanzas/main/backups?limit=201", 422, "invalid-field"),
        ("/api/v1/stanzas/main/backups?from=yesterday", 422, "invalid-field"),
        ("/api/v1/stanzas/main/backups?from=2026-11-20T10:00:00", 422, "invalid-field"),
        ("/api/v1/stanzas/main/backups?force=1", 422, "invalid-field"),
        ("/api/v1/stanzas/main/backups?cursor=--force", 422, "invalid-field"),
        ("/api/v1/jobs/--force", 404, "no-such-job"),
        ("/api/v1/jobs/019aa0c4-6d2e-7cc1-a3a5-2f3ef8f1b0d1", 404, "no-such-job"),
        ("/api/v1/jobs?kind=--force", 422, "invalid-field"),
        ("/api/v1/jobs?cursor=x", 422, "invalid-field"),
        ("/api/v1/nothing", 404, "not-found"),
        ("/nothing", 404, "not-found"),
        ("/pgBackRest/nothing", 404, "not-found"),
        ("/api/v1/processes/postgres", 409, "postgres-not-supervised"),
    ];
    for (path, status, code) in cases {
        service.get(path).await.is_problem(status, code);
    }
}

#[tokio::test]
async fn a_wrong_method_names_the_right_ones() {
    let service = Service::new().await;
    for (method, path) in
        [("DELETE", "/api/v1/jobs"), ("PUT", "/livez"), ("PATCH", "/pgBackRest/info")]
    {
        let request = Service::request(method, path).body(Body::empty()).unwrap();
        let answer = service.send(request).await;
        answer.is_problem(405, "method-not-allowed");
        assert!(answer.header("allow").contains("GET"), "{path}: {:?}", answer.headers);
    }
}

#[tokio::test]
async fn without_a_token_only_the_probes_answer() {
    let service = Service::new().await;
    let plain = |path: &str| {
        Request::builder().uri(path).header("host", "localhost").body(Body::empty()).unwrap()
    };
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(service.send(plain(path)).await.status, 200, "{path}");
    }
    for path in [
        "/api/v1/jobs",
        "/api/v1/openapi.json",
        "/docs",
        "/pgBackRest/info",
        "/nothing",
        "/api/v1/nothing",
    ] {
        let answer = service.send(plain(path)).await;
        answer.is_problem(401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    for token in ["wrong", "", &TOKEN[1..], &format!("{TOKEN}x")] {
        let request = Request::builder()
            .uri("/api/v1/jobs")
            .header("host", "localhost")
            .header("authorization", format!("Bearer {token}"))
            .body(Body::empty())
            .unwrap();
        service.send(request).await.is_problem(401, "unauthenticated");
    }
}

#[tokio::test]
async fn other_hosts_and_other_sites_are_kept_out() {
    let open = Options { auth: headrest::config::Auth::Off, ..Options::default() };
    let service = Service::with(open).await;
    let request = |method: &str, path: &str| {
        Request::builder().method(method).uri(path).header("content-type", "application/json")
    };
    let evil = request("GET", "/api/v1/jobs").header("host", "evil.example:8433");
    let answer = service.send(evil.body(Body::empty()).unwrap()).await;
    answer.is_problem(421, "host-not-allowed");
    for (name, value) in [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-purpose", "prefetch"),
    ] {
        for (method, path) in
            [("POST", "/api/v1/stanzas/main/backups"), ("GET", "/pgBackRest/backup/full")]
        {
            let forged = request(method, path).header("host", "localhost:8433").header(name, value);
            let answer = service.send(forged.body(Body::empty()).unwrap()).await;
            answer.is_problem(403, "forbidden");
        }
    }
    let own = request("GET", "/pgBackRest/info").header("host", "localhost:8433");
    let own = own.header("sec-fetch-site", "cross-site").body(Body::empty()).unwrap();
    assert_eq!(service.send(own).await.status, 200, "reading is not a deed");
}

#[tokio::test]
async fn a_request_id_is_echoed_if_it_is_plain() {
    let service = Service::new().await;
    for (given, kept) in [("abc-123", true), ("a b", false), ("<script>", false)] {
        let request = Service::request("GET", "/api/v1/jobs").header("x-request-id", given);
        let answer = service.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.header("x-request-id") == given, kept, "{given}");
        assert!(!answer.header("x-request-id").is_empty());
    }
}
