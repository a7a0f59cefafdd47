//! Jobs through the API, with a fake pgbackrest.

use axum::body::Body;
use serde_json::json;

use crate::service::{Options, Service, THREE, TOKEN, info_from};
use headrest::config::ShortRoutes;

const BACKUPS: &str = "/api/v1/stanzas/main/backups";
const FULL: &str = "{\"type\":\"full\"}";

/// A pgbackrest whose backups wait until a file appears.
fn waiting_script(gate: &std::path::Path) -> String {
    format!(
        "case \"$*\" in *info*) cat '{THREE}';; *) while [ ! -e '{}' ]; do sleep 0.02; done;; esac",
        gate.display()
    )
}

#[tokio::test]
async fn a_backup_is_accepted_runs_and_shows_its_log() {
    let script = format!(
        "case \"$*\" in *info*) cat '{THREE}';; *) echo '2026-11-20 10:00:00.000 P00   INFO: hello \
         there'; echo '2026-11-20 10:00:01.000 P01 DETAIL: backup file /d/base/1/2 (8KB, 42.17%) \
         checksum 0';; esac"
    );
    let service = Service::with_script(&script).await;
    let answer = service.post_with(BACKUPS, FULL, &[("prefer", "wait=30")]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let job = answer.json();
    assert_eq!(answer.header("location"), format!("/api/v1/jobs/{}", job["id"].as_str().unwrap()));
    // The fake makes no new backup, so there is something to look at.
    assert_eq!(
        (&job["state"], &job["error"]["code"]),
        (&json!("warned"), &json!("backup-not-listed"))
    );
    let log = service.get(job["links"]["log"].as_str().unwrap()).await;
    assert!(log.text.contains("P00   INFO: hello there"), "{}", log.text);
    assert!(!log.text.contains("42.17"), "file lines become progress: {}", log.text);
    let list = service.get("/api/v1/jobs?kind=backup&state=warned").await.json();
    assert_eq!(list["items"][0]["id"], job["id"]);
    let events = service.get(job["links"]["events"].as_str().unwrap()).await;
    assert_eq!(events.header("content-type"), "text/event-stream");
    assert!(events.text.starts_with("event: job\n"), "{}", events.text);
    assert!(events.text.contains("hello there") && events.text.contains("event: end\n"));
}

#[tokio::test]
async fn events_resume_after_the_last_one_that_was_seen() {
    let script = format!(
        "case \"$*\" in *info*) cat '{THREE}';; *) for n in 1 2 3 4 5; do echo line-$n; done;; esac"
    );
    let service = Service::with_script(&script).await;
    let job = service.post_with(BACKUPS, FULL, &[("prefer", "wait=30")]).await.json();
    let path = job["links"]["events"].as_str().unwrap();
    let all = service.get(path).await.text;
    let ids: Vec<i64> = all
        .lines()
        .filter_map(|line| line.strip_prefix("id: ").and_then(|id| id.parse().ok()))
        .collect();
    assert!(ids.is_sorted() && ids.len() > 5, "{all}");
    for seen in 0..ids.len() {
        let request = Service::request("GET", path).header("last-event-id", ids[seen].to_string());
        let rest = service.send(request.body(Body::empty()).unwrap()).await;
        let again: Vec<i64> = rest
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("id: ").and_then(|id| id.parse().ok()))
            .collect();
        assert_eq!(again, ids[seen + 1..], "after {}", ids[seen]);
        if again.is_empty() {
            assert_eq!(rest.status, 204, "everything was seen");
        }
    }
    let request = Service::request("GET", path).header("last-event-id", "x");
    service.send(request.body(Body::empty()).unwrap()).await.is_problem(422, "invalid-field");
}

#[tokio::test]
async fn every_exit_code_becomes_a_failed_job_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let code_file = directory.path().join("code");
    let script = format!(
        "case \"$*\" in *info*) cat '{THREE}';; *) code=$(cat '{}'); printf 'ERROR: [%03d]: no \
         such luck\\n      HINT: look\\n' $code >&2; exit $code;; esac",
        code_file.display()
    );
    let service = Service::with_script(&script).await;
    for code in 25..=125 {
        std::fs::write(&code_file, code.to_string()).unwrap();
        let job = service.post_with(BACKUPS, FULL, &[("prefer", "wait=30")]).await.json();
        assert_eq!(job["state"], "failed", "{code}: {job}");
        let error = &job["error"];
        assert_eq!(error["exit_code"], code);
        assert_eq!(error["message"], "no such luck");
        assert!(!error["code"].as_str().unwrap().is_empty());
        assert!(!error["hints"].as_array().unwrap().is_empty());
    }
    std::fs::write(&code_file, "50").unwrap();
    let job = service.post_with(BACKUPS, FULL, &[("prefer", "wait=30")]).await.json();
    assert_eq!(job["error"]["code"], "lock-held");
    assert_eq!(job["error"]["exit_name"], "LockAcquireError");
    assert_eq!(job["error"]["retryable"], true);
}

#[tokio::test]
async fn a_signal_and_a_missing_program_are_told_apart() {
    let script = format!("case \"$*\" in *info*) cat '{THREE}';; *) kill -SEGV $$;; esac");
    let service = Service::with_script(&script).await;
    let job = service.post_with(BACKUPS, FULL, &[("prefer", "wait=30")]).await.json();
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("interrupted")));
    assert_eq!(job["error"]["exit_code"], json!(null));
    assert!(job["error"]["message"].as_str().unwrap().contains("SIGSEGV"), "{job}");

    let binary = service.directory.path().join("pgbackrest");
    std::fs::remove_file(&binary).unwrap();
    let job = service.post_with(BACKUPS, FULL, &[("prefer", "wait=30")]).await.json();
    assert_eq!(job["error"]["code"], "pgbackrest-not-started", "{job}");
    std::fs::write(&binary, "").unwrap();
    let job = service.post_with(BACKUPS, FULL, &[("prefer", "wait=30")]).await.json();
    assert_eq!(job["error"]["code"], "pgbackrest-not-started", "{job}");
}

#[tokio::test]
async fn a_taken_lane_is_refused_with_the_job_and_can_be_waited_for() {
    let gate = tempfile::tempdir().unwrap();
    let gate = gate.path().join("open");
    let service = Service::with_script(&waiting_script(&gate)).await;
    let (a, b) = tokio::join!(service.post(BACKUPS, FULL), service.post(BACKUPS, FULL));
    let (won, lost) = if a.status == 202 { (a, b) } else { (b, a) };
    assert_eq!(won.status, 202, "{won:?}");
    let problem = lost.is_problem(409, "lane-busy");
    let first = won.json();
    assert_eq!(problem["job"], first["links"]["self"]);
    let queued = service.post(BACKUPS, "{\"type\":\"incr\",\"on_conflict\":\"queue\"}").await;
    assert_eq!((queued.status.as_u16(), queued.json()["state"].as_str()), (202, Some("queued")));
    let stanza = service.get("/api/v1/stanzas/main").await.json();
    assert_eq!(stanza["lane"]["running"]["id"], first["id"]);
    assert_eq!(stanza["lane"]["waiting"], 1);
    service
        .post(
            "/api/v1/stanzas/main/restores",
            "{\"target\":{\"type\":\"latest\"},\"confirm\":\"main\"}",
        )
        .await
        .is_problem(409, "postgres-not-supervised");
    std::fs::write(&gate, "").unwrap();
    let id = queued.json()["links"]["events"].as_str().unwrap().to_owned();
    let events = service.get(&id).await.text;
    assert!(events.contains("event: end"), "{events}");
    // A job's end is told before the next one gets the lane.
    let first = service.get(first["links"]["self"].as_str().unwrap()).await.json();
    assert_eq!(first["state"], "warned", "{first}");
}

#[tokio::test]
async fn cancelling_ends_the_whole_group_and_a_waiting_job_at_once() {
    let gate = tempfile::tempdir().unwrap();
    let pids = gate.path().join("pids");
    // A main process that waits for a worker, which ignores SIGTERM.
    let script = format!(
        "case \"$*\" in *info*) cat '{THREE}';; *) sh -c 'trap \"\" TERM; echo $$ >> {0}; while :; do \
         sleep 0.05; done' & echo $$ >> {0}; wait;; esac",
        pids.display()
    );
    let service = Service::with_script(&script).await;
    let job = service.post(BACKUPS, FULL).await.json();
    let waiting =
        service.post(BACKUPS, "{\"type\":\"full\",\"on_conflict\":\"queue\"}").await.json();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let written = || std::fs::read_to_string(&pids).unwrap_or_default().lines().count();
    while written() < 2 && std::time::Instant::now() < deadline {
        tokio::task::yield_now().await;
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let cancel = |id: &serde_json::Value| format!("/api/v1/jobs/{}/cancel", id.as_str().unwrap());
    let ended = service.post(&cancel(&waiting["id"]), "").await;
    assert_eq!(ended.json()["state"], "cancelled", "{ended:?}");
    assert_eq!(service.post(&cancel(&job["id"]), "").await.json()["state"], "cancelling");
    let events = service.get(job["links"]["events"].as_str().unwrap()).await.text;
    assert!(events.contains("event: end"), "{events}");
    let job = service.get(job["links"]["self"].as_str().unwrap()).await.json();
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("cancelled"), &json!("cancelled")));
    for pid in std::fs::read_to_string(&pids).unwrap().lines() {
        let alive = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "));
        assert!(!alive, "process {pid} is left");
    }
    service.post(&cancel(&job["id"]), "").await.is_problem(409, "job-ended");
}

#[tokio::test]
async fn a_flood_of_output_keeps_its_beginning_and_its_end() {
    let script = format!(
        "case \"$*\" in *info*) cat '{THREE}';; *) echo first; yes \
         '2026-11-20 10:00:00.000 P00   INFO: the same line over and over' | head -c 100000000; \
         printf '\\377\\376 not text\\n'; head -c 100000 /dev/zero | tr '\\0' x; echo; echo last;; esac"
    );
    let service = Service::with_script(&script).await;
    let job = service.post_with(BACKUPS, FULL, &[("prefer", "wait=120")]).await.json();
    assert_eq!(job["state"], "warned", "{job}");
    let log = service.get(job["links"]["log"].as_str().unwrap()).await.text;
    assert!(log.len() < 8 << 20, "{} bytes were kept", log.len());
    assert!(
        log.contains("first") && log.trim_end().ends_with("last"),
        "{}",
        &log[log.len() - 200..]
    );
    assert!(log.contains("not text") && log.contains("lines were not kept"));
}

#[tokio::test]
async fn the_same_key_gets_the_same_answer() {
    let service = Service::new().await;
    let key = [("idempotency-key", "k-1")];
    let first = service.post_with(BACKUPS, FULL, &key).await;
    assert_eq!(first.status, 202);
    let again = service.post_with(BACKUPS, FULL, &key).await;
    assert_eq!((again.status, &again.text), (first.status, &first.text));
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(again.header("idempotency-replayed"), "true");
    service
        .post_with(BACKUPS, "{\"type\":\"diff\"}", &key)
        .await
        .is_problem(422, "idempotency-mismatch");
    service.post_with(BACKUPS, "{", &[("idempotency-key", "k-2")]).await;
    let fixed = service.post_with(BACKUPS, "{", &[("idempotency-key", "k-2")]).await;
    fixed.is_problem(400, "malformed-json");
    let jobs = service.get("/api/v1/jobs").await.json();
    assert_eq!(jobs["items"].as_array().unwrap().len(), 1, "{jobs}");
}

#[tokio::test]
async fn a_key_whose_first_request_is_still_answered_is_refused() {
    let gate = tempfile::tempdir().unwrap();
    let gate = gate.path().join("open");
    let service = Service::with_script(&waiting_script(&gate)).await;
    let headers = [("idempotency-key", "k"), ("prefer", "wait=60")];
    let second = async {
        loop {
            let jobs = service.get("/api/v1/jobs?state=running").await.json();
            if !jobs["items"].as_array().unwrap().is_empty() {
                break;
            }
        }
        let answer = service.post_with(BACKUPS, FULL, &headers).await;
        std::fs::write(&gate, "").unwrap();
        answer
    };
    let (first, second) = tokio::join!(service.post_with(BACKUPS, FULL, &headers), second);
    assert_eq!(first.status, 200, "{first:?}");
    second.is_problem(409, "idempotency-in-progress");
}

#[tokio::test]
async fn a_restore_must_name_what_it_destroys() {
    let service = Service::new().await;
    let path = "/api/v1/stanzas/main/restores";
    let cases = [
        ("{\"target\":{\"type\":\"latest\"}}", "confirmation-required", "confirm"),
        (
            "{\"target\":{\"type\":\"latest\"},\"confirm\":\"other\"}",
            "confirmation-required",
            "confirm",
        ),
        (
            "{\"target\":{\"type\":\"--force\"},\"confirm\":\"main\"}",
            "invalid-field",
            "target.type",
        ),
        (
            "{\"target\":{\"type\":\"latest\",\"value\":\"x\"},\"confirm\":\"main\"}",
            "invalid-field",
            "target.value",
        ),
        ("{\"confirm\":\"main\"}", "invalid-field", "target"),
    ];
    for (body, code, field) in cases {
        let problem = service.post(path, body).await.is_problem(422, code);
        assert_eq!(problem["field"], field, "{body}");
    }
}

/// What becomes a setting of PostgreSQL or an argument of pgBackRest is parsed to a type first.
#[tokio::test]
async fn hostile_targets_are_refused_by_their_field_and_start_nothing() {
    // The health looks at the repository by itself, whatever is asked.
    let script = "case \"$*\" in *' info') ;; *) touch \"$0.ran\";; esac; exit 1";
    let service = Service::with_script(script).await;
    let evil = "x'\nrecovery_end_command = 'touch /tmp/x";
    let target = |kind: &str, value: serde_json::Value| serde_json::json!({ "target": { "type": kind, "value": value } });
    let latest = |field: &str, value: serde_json::Value| serde_json::json!({ "target": { "type": "latest" }, field: value });
    let mut cases = Vec::new();
    for kind in ["name", "time", "lsn", "xid"] {
        for value in [evil, "", "--for ce", "é"] {
            cases.push((target(kind, value.into()), "target.value"));
        }
        cases.push((serde_json::json!({ "target": { "type": kind } }), "target.value"));
        cases.push((target(kind, serde_json::json!({ "a": 1 })), "target.value"));
    }
    for value in ["2026-11-20T10:00:00", "2026-11-20 10:00", "yesterday", "2026-02-31T00:00:00Z"] {
        cases.push((target("time", value.into()), "target.value"));
    }
    cases.push((target("xid", "0x10".into()), "target.value"));
    cases.push((target("lsn", "0/G".into()), "target.value"));
    cases.push((target("name", "a".repeat(64).into()), "target.value"));
    cases.push((latest("timeline", evil.into()), "timeline"));
    cases.push((latest("timeline", "0x1".into()), "timeline"));
    cases.push((latest("set", "../../etc".into()), "set"));
    cases.push((latest("repo", 0.into()), "repo"));
    cases.push((latest("databases", serde_json::json!(["a\nb"])), "databases"));
    cases.push((latest("accept", serde_json::json!(["everything"])), "accept"));
    cases.push((latest("on_reached", "shutdown".into()), "on_reached"));
    cases.push((latest("mode", "side-by-side".into()), "mode"));
    cases.push((
        serde_json::json!({ "target": { "type": "immediate", "exclusive": true } }),
        "target.exclusive",
    ));
    for (mut body, field) in cases {
        let plans = "/api/v1/stanzas/main/restore-plans";
        let problem = service.post(plans, &body.to_string()).await;
        let problem = problem.is_problem(422, "invalid-field");
        assert_eq!(problem["field"], field, "{body}");
        body["confirm"] = "main".into();
        let problem = service.post("/api/v1/stanzas/main/restores", &body.to_string()).await;
        let problem = problem.is_problem(422, "invalid-field");
        assert_eq!(problem["field"], field, "{body}");
    }
    let both = r#"{"plan":"x","target":{"type":"latest"},"confirm":"main"}"#;
    let problem = service.post("/api/v1/stanzas/main/restores", both).await;
    assert_eq!(problem.is_problem(422, "invalid-field")["field"], "plan");
    let ran = service.directory.path().join("pgbackrest.ran");
    assert!(!ran.exists(), "a refused request started pgbackrest");
    // A good one is refused for another reason: this service has no server.
    let good = r#"{"target":{"type":"xid","value":742},"confirm":"main"}"#;
    let answer = service.post("/api/v1/stanzas/main/restores", good).await;
    answer.is_problem(409, "postgres-not-supervised");
}

#[tokio::test]
async fn short_routes_answer_the_log_and_refuse_what_they_must() {
    let script = format!(
        "case \"$*\" in *json*) cat '{THREE}';; *info*) echo 'stanza: main <b>';; \
                          *--type=diff*) echo done-diff;; *) echo bad; exit 56;; esac"
    );
    let service = Service::with_script(&script).await;
    let info = service.get("/pgBackRest/info").await;
    assert_eq!((info.status.as_u16(), info.text.as_str()), (200, "stanza: main <b>\n"));
    let html = Service::request("GET", "/pgBackRest/info").header("accept", "text/html,*/*");
    let html = service.send(html.body(Body::empty()).unwrap()).await;
    assert!(html.text.contains("stanza: main &lt;b&gt;"), "{}", html.text);
    let diff = service.get("/pgBackRest/backup/diff").await;
    assert_eq!(diff.status, 200, "{diff:?}");
    assert!(diff.text.contains("done-diff"), "{}", diff.text);
    assert_eq!(diff.header("cache-control"), "no-store");
    let full = service.post("/pgBackRest/backup/full", "").await;
    assert_eq!(full.status, 500, "{full:?}");
    assert!(full.text.contains("postgres-unavailable"), "{}", full.text);
    let before = service.get("/api/v1/jobs").await.json()["items"].as_array().unwrap().len();
    for path in
        ["/pgBackRest/backup/full", "/pgBackRest/restore/delta?confirm=main", "/pgBackRest/create"]
    {
        let head = Service::request("HEAD", path).body(Body::empty()).unwrap();
        assert_eq!(service.send(head).await.status, 405, "{path}");
    }
    for path in ["/pgBackRest/restore/delta", "/pgBackRest/restore/time/latest?confirm=x"] {
        service.get(path).await.is_problem(422, "confirmation-required");
    }
    service.get("/pgBackRest/backup/full?stanza=--force").await.is_problem(404, "no-such-stanza");
    let after = service.get("/api/v1/jobs").await.json()["items"].as_array().unwrap().len();
    assert_eq!(before, after, "nothing was started");
    let status = service.get("/pgBackRest/db_status").await;
    assert_eq!(status.text, "Postgres status False\n");

    let off = Options { short_routes: ShortRoutes::Off, ..Options::default() };
    let service = Service::with(off).await;
    service.get("/pgBackRest/info").await.is_problem(404, "not-found");
}

#[tokio::test]
async fn what_a_failed_request_says_never_holds_the_token() {
    let service = Service::with_script(&info_from("/nowhere")).await;
    let answer = service.get("/api/v1/stanzas/main").await;
    answer.is_problem(503, "repository-unavailable");
    assert!(!answer.text.contains(TOKEN));
}

#[tokio::test]
async fn the_end_of_a_job_is_written_as_soon_as_it_can_be() {
    let directory = tempfile::tempdir().unwrap();
    let gate = directory.path().join("gate");
    let service = Service::with_script(&waiting_script(&gate)).await;
    let path = "/api/v1/stanzas/main/check";
    let job = service.post(path, "").await.json();
    let this = job["links"]["self"].as_str().unwrap();
    // Somebody holds the history for longer than a write waits.
    let other = rusqlite::Connection::open(service.directory.path().join("headrest.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::fs::write(&gate, "").unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(7)).await;
    assert_eq!(service.get(this).await.json()["state"], "running");
    // It has its lane still: nobody takes it for done.
    other.execute_batch("ROLLBACK").unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while service.get(this).await.json()["state"] != "succeeded" {
        assert!(std::time::Instant::now() < deadline, "its end is never written");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let next = service.post_with(path, "", &[("prefer", "wait=20")]).await;
    assert_eq!(next.json()["state"], "succeeded", "{next:?}");
}
