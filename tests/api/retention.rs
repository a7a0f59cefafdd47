//! Retention, pins and verification through the API, with a fake pgbackrest that ends everything
//! well: what is told must not come from its exit code.

use std::collections::BTreeMap;

use axum::body::Body;
use headrest::config::RetentionConfig;
use headrest::domain::retention::Policy;
use headrest::jobs::retention::Retention;
use headrest::pgbackrest::conf::UserOptions;
use serde_json::{Value, json};

use crate::service::{Answer, Options, Service, THREE, info_from};

const FULL: &str = "20261120-111222F";
const DIFF: &str = "20261120-111222F_20261120-111225D";
const INCR: &str = "20261120-111222F_20261120-111227I";
const STANZA: &str = "/api/v1/stanzas/main";

async fn send(service: &Service, method: &str, path: &str, body: &Value) -> Answer {
    let request = Service::request(method, &format!("{STANZA}{path}"));
    let request = request.header("content-type", "application/json").header("prefer", "wait=30");
    service.send(request.body(Body::from(body.to_string())).unwrap()).await
}

async fn patch(service: &Service, label: &str, body: &Value) -> Answer {
    send(service, "PATCH", &format!("/backups/{label}"), body).await
}

#[tokio::test]
async fn the_preview_says_of_every_backup_why_it_stays() {
    let service = Service::new().await;
    let preview = service.get(&format!("{STANZA}/retention")).await.json();
    assert_eq!(preview["policy"]["daily"], Value::Null);
    assert_eq!(preview["policy"]["timezone"], "UTC");
    let repo = &preview["repos"][0];
    let backups = repo["backups"].as_array().unwrap();
    let labels: Vec<_> = backups.iter().map(|backup| backup["label"].as_str().unwrap()).collect();
    assert_eq!(labels, [INCR, DIFF, FULL]);
    assert!(backups.iter().all(|b| b["kept"] == true && b["doomed"].is_null()), "{preview:#}");
    assert_eq!(backups[0]["reasons"], json!(["newest backup"]));
    let needed = json!(["nothing is configured that removes backups", format!("needed by {INCR}")]);
    assert_eq!(backups[1]["reasons"], needed);
    assert_eq!(repo["calls"], json!([]));
    service.get("/api/v1/stanzas/other/retention").await.is_problem(404, "no-such-stanza");
}

#[tokio::test]
async fn a_pin_counts_at_once_whatever_runs() {
    let directory = tempfile::tempdir().unwrap();
    let gate = directory.path().join("gate");
    let script = format!(
        "case \"$*\" in *info*) cat '{THREE}';; *) while [ ! -e '{}' ]; do sleep 0.02; done;; esac",
        gate.display()
    );
    let service = Service::with_script(&script).await;
    let running = service.post(&format!("{STANZA}/backups"), "{\"type\":\"full\"}").await;
    assert_eq!(running.status, 202);
    let pinned = patch(&service, DIFF, &json!({ "pinned": true })).await;
    assert_eq!((pinned.status.as_u16(), &pinned.json()["pinned"]), (200, &json!(true)));
    let list = service.get(&format!("{STANZA}/backups")).await.json();
    let pins: Vec<_> = list["items"].as_array().unwrap().iter().map(|b| &b["pinned"]).collect();
    assert_eq!(pins, [&json!(false), &json!(true), &json!(false)]);
    // Annotations need the lane.
    let note = json!({ "annotations": { "a": "b" } });
    let refused = patch(&service, DIFF, &note).await;
    refused.is_problem(409, "lane-busy");
    // But a pin in the same request counts; what takes it back does not.
    let both = |pinned: bool| json!({ "annotations": { "a": "b" }, "pinned": pinned });
    patch(&service, INCR, &both(true)).await.is_problem(409, "lane-busy");
    patch(&service, INCR, &both(false)).await.is_problem(409, "lane-busy");
    let incr = service.get(&format!("{STANZA}/backups/{INCR}")).await.json();
    assert_eq!(incr["pinned"], true, "{incr}");
    assert_eq!(patch(&service, INCR, &json!({ "pinned": false })).await.status, 200);
    // Neither it nor what it builds upon can go.
    for label in [DIFF, FULL] {
        let refused = send(&service, "DELETE", &format!("/backups/{label}"), &json!({})).await;
        let problem = refused.is_problem(409, "backup-pinned");
        assert!(problem["detail"].as_str().unwrap().contains(DIFF), "{problem}");
    }
    std::fs::write(&gate, "").unwrap();
    let deeds = service.get("/api/v1/audit").await.text;
    assert!(deeds.contains("backup.pin"), "{deeds}");
}

#[tokio::test]
async fn what_info_still_lists_was_not_removed() {
    let service = Service::new().await;
    let preview =
        send(&service, "DELETE", &format!("/backups/{DIFF}?dry_run=true"), &json!({})).await;
    let preview = preview.json();
    let going: Vec<_> =
        preview["removes"].as_array().unwrap().iter().map(|r| r["label"].clone()).collect();
    assert_eq!(going, [DIFF, INCR]);
    assert_eq!(preview["freed_bytes"], 877_309 + 1_096_210);
    // The fake ends well and removes nothing.
    let answer = send(&service, "DELETE", &format!("/backups/{DIFF}"), &json!({})).await;
    let job = answer.json();
    assert_eq!(answer.status, 200, "{job:#}");
    assert_eq!(answer.header("location"), format!("/api/v1/jobs/{}", job["id"].as_str().unwrap()));
    assert_eq!((&job["kind"], &job["state"]), (&json!("expire"), &json!("failed")));
    assert_eq!(job["error"]["code"], "expire-incomplete", "{job:#}");
    assert_eq!((&job["result"]["removed"], &job["result"]["kept"]), (&json!([]), &json!(3)));
    let last = send(&service, "DELETE", &format!("/backups/{FULL}"), &json!({})).await;
    last.is_problem(409, "backup-in-use");
    // Nor is a change of annotations believed that info does not show.
    let answer = patch(&service, DIFF, &json!({ "annotations": { "a": "b" } })).await;
    let problem = answer.is_problem(503, "repository-unavailable");
    assert!(problem["detail"].as_str().unwrap().contains("info does not show it"), "{problem}");
}

#[tokio::test]
async fn a_verification_is_not_judged_by_its_exit_code() {
    let report = |lines: &str| {
        format!(
            "case \"$*\" in *info*) cat '{THREE}';; *repo-ls*) echo '{{}}';; *verify*) {lines};; esac"
        )
    };
    let ok = "printf 'stanza: main\\nstatus: ok\\n'";
    for (lines, part) in [
        ("exit 0", "gave no report"),
        (ok, "verify does not mention it"),
        ("printf 'stanza: main\\nstatus: error\\n  No usable backup.info file\\n'", "No usable"),
    ] {
        let service = Service::with_script(&report(lines)).await;
        let job = send(&service, "POST", "/verify", &json!({})).await.json();
        assert_eq!((&job["kind"], &job["state"]), (&json!("verify"), &json!("failed")), "{lines}");
        assert_eq!(job["error"]["code"], "verify-errors", "{job:#}");
        let errors = job["result"]["errors"].to_string();
        assert!(errors.contains(part), "{part:?} is not in {errors}");
    }
}

#[tokio::test]
async fn what_is_not_known_is_refused_by_its_field() {
    let service = Service::new().await;
    for (method, path, body, field) in [
        ("POST", "/verify", json!({ "deep": true }), "deep"),
        ("POST", "/verify", json!({ "set": "latest" }), "set"),
        ("POST", "/verify", json!({ "repo": 0 }), "repo"),
        ("POST", "/expire", json!({ "set": "--all" }), "set"),
        ("POST", "/expire", json!({ "on_conflict": "cancel" }), "on_conflict"),
        ("PATCH", "/backups/latest", json!({ "pinned": true }), "label"),
        ("PATCH", &format!("/backups/{FULL}"), json!({ "pin": true }), "pin"),
        (
            "PATCH",
            &format!("/backups/{FULL}"),
            json!({ "annotations": { "": "x" } }),
            "annotations",
        ),
        ("DELETE", &format!("/backups/{FULL}?repo=x"), json!({}), "repo"),
        ("DELETE", &format!("/backups/{FULL}?all=true"), json!({}), "all"),
        (
            "DELETE",
            &format!("/backups/{DIFF}?dry_run=true&on_conflict=nonsense"),
            json!({}),
            "on_conflict",
        ),
    ] {
        let problem = send(&service, method, path, &body).await.is_problem(422, "invalid-field");
        assert_eq!(problem["field"], field, "{method} {path} {body}");
    }
    let jobs = service.get("/api/v1/jobs").await.json();
    assert_eq!(jobs["items"], json!([]), "something was started");
    let gone = send(&service, "POST", "/expire", &json!({ "set": "20200101-000000F" })).await;
    gone.is_problem(404, "no-such-backup");
}

#[tokio::test]
async fn a_repository_that_is_not_there_is_neither_verified_nor_expired() {
    let config = RetentionConfig {
        policy: Policy { daily: Some(3), ..Policy::default() },
        ..RetentionConfig::default()
    };
    let retention = Retention::new(config, BTreeMap::new());
    let service = Service::with(Options { retention, ..Options::default() }).await;
    for path in ["/verify", "/expire"] {
        let job = send(&service, "POST", path, &json!({ "repo": 9 })).await.json();
        assert_eq!(job["error"]["code"], "config-invalid", "{path}: {job:#}");
        let message = "stanza main has no repository 9; it has 1";
        assert_eq!(job["error"]["message"], message, "{path}: {job:#}");
    }
}

#[tokio::test]
async fn days_and_pgbackrests_own_counts_are_added_up_and_a_narrow_one_is_warned_of() {
    let hundred = THREE.replace("info-three", "info-100");
    let options = UserOptions::parse(
        &[("pgbackrest.conf", "[global]\nrepo1-retention-full=2\n")],
        std::iter::empty(),
        &"main".parse().unwrap(),
    );
    let config = RetentionConfig {
        policy: Policy { daily: Some(3), ..Policy::default() },
        ..RetentionConfig::default()
    };
    let options = BTreeMap::from([("main".parse().unwrap(), options)]);
    let retention = Retention::new(config, options);
    let script = info_from(&hundred);
    let service = Service::with(Options { script, retention, ..Options::default() }).await;
    let list = service.get(&format!("{STANZA}/backups?type=full&limit=200")).await.json();
    let oldest = list["items"].as_array().unwrap().last().unwrap()["label"].clone();
    assert_eq!(
        patch(&service, oldest.as_str().unwrap(), &json!({ "pinned": true })).await.status,
        200
    );

    let preview = service.get(&format!("{STANZA}/retention")).await.json();
    let repo = &preview["repos"][0];
    assert_eq!(repo["options"], json!({ "repo1-retention-full": "2" }));
    let backups = repo["backups"].as_array().unwrap();
    assert_eq!(backups.len(), 100);
    // Two fulls with their two diffs and seven incrs each, and the pinned one.
    let kept: Vec<&Value> = backups.iter().filter(|backup| backup["kept"] == true).collect();
    assert_eq!(kept.len(), 21, "{kept:#?}");
    assert_eq!(kept[20]["label"], oldest);
    assert_eq!(kept[20]["reasons"], json!(["pinned"]));
    let calls = repo["calls"].as_array().unwrap();
    let removed: usize = calls.iter().map(|call| call["removes"].as_array().unwrap().len()).sum();
    assert_eq!(removed, 79, "{calls:#?}");
    let warning = preview["warnings"][0].as_str().unwrap();
    assert!(warning.contains("repo1-retention-full=2"), "{warning}");
    assert!(warning.contains("remove 1 of the backups"), "{warning}");

    let dry = json!({ "dry_run": true });
    let job = send(&service, "POST", "/expire", &dry).await.json();
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["result"]["removed"].as_array().unwrap().len(), 79);
    assert_eq!(job["result"]["kept"], 21);
}

#[tokio::test]
async fn a_restore_journal_that_cannot_be_read_lets_nothing_go() {
    let service = Service::new().await;
    let path = service.directory.path().join("restore/main.json");
    std::fs::write(&path, "{").unwrap();
    let job = send(&service, "POST", "/expire", &json!({})).await.json();
    assert_eq!(job["error"]["code"], "refused", "{job:#}");
    assert!(job["error"]["message"].as_str().unwrap().contains("restore"), "{job:#}");
    service.get(&format!("{STANZA}/retention")).await.is_problem(500, "internal");
    let removal = send(&service, "DELETE", &format!("/backups/{DIFF}"), &json!({})).await;
    removal.is_problem(500, "internal");
}

#[tokio::test]
async fn a_repository_without_a_limit_and_damaged_backups_are_warned_of() {
    let config = RetentionConfig {
        policy: Policy { daily: Some(1), ..Policy::default() },
        ..RetentionConfig::default()
    };
    let retention = Retention::new(config, BTreeMap::new());
    let script = info_from(&THREE.replace("info-three", "info-100"));
    let service = Service::with(Options { script, retention, ..Options::default() }).await;
    let preview = service.get(&format!("{STANZA}/retention")).await.json();
    let warning = preview["warnings"][0].as_str().unwrap();
    assert!(warning.contains("repository 1 has no limit of its own"), "{warning}");

    let options = UserOptions::parse(
        &[("pgbackrest.conf", "[global]\nrepo1-retention-full=1\n")],
        std::iter::empty(),
        &"main".parse().unwrap(),
    );
    let options = BTreeMap::from([("main".parse().unwrap(), options)]);
    let retention = Retention::new(RetentionConfig::default(), options);
    let script =
        format!("case \"$*\" in *info*) sed 's/\"error\":false/\"error\":true/g' '{THREE}';; esac");
    let service = Service::with(Options { script, retention, ..Options::default() }).await;
    let preview = service.get(&format!("{STANZA}/retention")).await.json();
    let warnings = preview["warnings"].to_string();
    assert!(warnings.contains(&format!("Damaged: {FULL} and 2 more")), "{warnings}");
    assert!(warnings.contains("pgBackRest's own retention only counts"), "{warnings}");
    let backups = preview["repos"][0]["backups"].as_array().unwrap();
    // They go no sooner than if they were good, and none of them is called good.
    assert_eq!(backups[0]["reasons"][0], "newest backup");
    for backup in backups {
        let reasons = backup["reasons"].to_string();
        assert!(reasons.contains("pgBackRest's own retention"), "{backup}");
        assert!(!reasons.contains("not damaged"), "{backup}");
    }
}

#[tokio::test]
async fn pins_can_be_turned_off() {
    let config = RetentionConfig { pins: false, ..RetentionConfig::default() };
    let retention = Retention::new(config, BTreeMap::new());
    let service = Service::with(Options { retention, ..Options::default() }).await;
    patch(&service, FULL, &json!({ "pinned": true })).await.is_problem(409, "pins-off");
    assert_eq!(patch(&service, FULL, &json!({ "pinned": false })).await.status, 200);
}
