//! What the repository holds, from recorded `info` of three pgBackRest versions.

use axum::body::Body;
use serde_json::{Value, json};

use crate::service::{Service, THREE, info_from};

fn fixture(version: &str, name: &str) -> String {
    format!("{}/tests/fixtures/pgbackrest/{version}/{name}.json", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn a_stanza_of_every_version_shows_its_backups() {
    for version in ["2.45", "2.55.1", "2.60.0"] {
        let service = Service::with_script(&info_from(&fixture(version, "info-three"))).await;
        let stanza = service.get("/api/v1/stanzas/main").await.json();
        assert_eq!(stanza["status"]["code"], 0, "{version}: {stanza}");
        assert_eq!(stanza["backups"]["count"], 3);
        assert_eq!(stanza["backups"]["latest_full"]["type"], "full");
        assert_eq!(stanza["backups"]["latest"]["type"], "incr");
        assert!(stanza["databases"][0]["system_id"].is_string());
        let list = service.get("/api/v1/stanzas/main/backups").await.json();
        let types: Vec<&str> =
            list["items"].as_array().unwrap().iter().map(|b| b["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["incr", "diff", "full"], "{version}");
        let raw = service.get("/api/v1/stanzas/main/info").await;
        assert_eq!(raw.text, std::fs::read_to_string(fixture(version, "info-three")).unwrap());
        assert!(raw.header("x-observed-at").ends_with('Z'));
    }
}

#[tokio::test]
async fn pages_follow_each_other_without_gaps() {
    let service = Service::with_script(&info_from(&fixture("2.45", "info-100"))).await;
    let mut seen: Vec<String> = Vec::new();
    let mut path = "/api/v1/stanzas/main/backups?limit=7".to_owned();
    loop {
        let answer = service.get(&path).await;
        let page = answer.json();
        let labels = page["items"].as_array().unwrap().iter();
        seen.extend(labels.map(|b| b["label"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        assert!(answer.header("link").contains("rel=\"next\""));
        path = format!("/api/v1/stanzas/main/backups?limit=7&cursor={cursor}");
    }
    let all = service.get("/api/v1/stanzas/main").await.json()["backups"]["count"].clone();
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!((json!(seen.len()), json!(distinct.len())), (all.clone(), all));
    assert!(seen.len() >= 100);
}

#[tokio::test]
async fn backups_are_filtered_by_type_and_time() {
    let service = Service::new().await;
    let all = service.get("/api/v1/stanzas/main/backups").await.json();
    let diff = &all["items"][1];
    let one = service.get("/api/v1/stanzas/main/backups?type=diff&repo=1").await.json();
    assert_eq!(one["items"], json!([diff]));
    let at = diff["stopped_at"].as_str().unwrap();
    let path = format!("/api/v1/stanzas/main/backups?from={at}&to={at}");
    assert_eq!(service.get(&path).await.json()["items"], json!([diff]));
    assert_eq!(service.get("/api/v1/stanzas/main/backups?repo=2").await.json()["items"], json!([]));
}

#[tokio::test]
async fn a_backup_names_what_it_needs_and_what_needs_it() {
    let set = fixture("2.45", "info-set");
    let script = format!("case \"$*\" in *--set=*) cat '{set}';; *info*) cat '{THREE}';; esac");
    let service = Service::with_script(&script).await;
    let list = service.get("/api/v1/stanzas/main/backups").await.json();
    let label = |n: usize| list["items"][n]["label"].as_str().unwrap().to_owned();
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(&set).unwrap()).unwrap();
    let in_set = recorded[0]["backup"][0]["label"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/stanzas/main/backups/{in_set}");
    let answer = service.get(&path).await;
    // The recorded set is of another repository; it is found only if the labels are the same.
    if answer.status == 200 {
        assert!(!answer.json()["databases"].as_array().unwrap().is_empty());
    } else {
        answer.is_problem(404, "no-such-backup");
    }
    let full = service.get(&format!("/api/v1/stanzas/main/backups/{}", label(2))).await;
    if full.status == 200 {
        assert_eq!(full.json()["needed_by"], json!([label(1), label(0)]));
    } else {
        full.is_problem(503, "repository-unavailable");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_repository_is_said() {
    for (name, code) in [("info-missing-stanza", 1), ("info-no-backup", 2), ("info-unreadable", 99)]
    {
        let service = Service::with_script(&info_from(&fixture("2.45", name))).await;
        let stanza = service.get("/api/v1/stanzas/main").await.json();
        assert_eq!(stanza["status"]["code"], code, "{name}: {stanza}");
        let list = service.get("/api/v1/stanzas/main/backups").await;
        if code == 99 {
            list.is_problem(503, "repository-unavailable");
        } else {
            assert_eq!(list.json()["items"], json!([]), "{name}");
        }
        let latest = service.get("/api/v1/stanzas/main/backups/latest").await;
        assert!(latest.status == 404 || code == 99, "{latest:?}");
    }
    let service = Service::with_script("echo '[]'").await;
    assert_eq!(service.get("/api/v1/stanzas/main").await.json()["status"]["code"], 1);
}

#[tokio::test]
async fn an_info_that_is_no_answer_is_unavailable() {
    for script in ["echo garbage", "exit 37", "echo '{}'", "kill -9 $$", "printf ''"] {
        let service = Service::with_script(script).await;
        let answer = service.get("/api/v1/stanzas/main").await;
        answer.is_problem(503, "repository-unavailable");
    }
}

#[tokio::test]
async fn five_megabytes_on_one_line_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("info.json");
    let mut info: Value = serde_json::from_str(&std::fs::read_to_string(THREE).unwrap()).unwrap();
    let one = info[0]["backup"][0].clone();
    let many: Vec<Value> = (0..12_000)
        .map(|n| {
            let mut backup = one.clone();
            let (day, second) = (n / 86_400 + 1, n % 86_400);
            let clock = format!("{:02}{:02}{:02}", second / 3600, second / 60 % 60, second % 60);
            backup["label"] = json!(format!("202001{day:02}-{clock}F"));
            backup
        })
        .collect();
    info[0]["backup"] = json!(many);
    let text = info.to_string();
    assert!(text.len() > 5_000_000 && !text.contains('\n'), "{}", text.len());
    std::fs::write(&file, text).unwrap();
    let service = Service::with_script(&info_from(file.to_str().unwrap())).await;
    let stanza = service.get("/api/v1/stanzas/main").await.json();
    assert_eq!(stanza["backups"]["count"], 12_000);
}

#[tokio::test]
async fn a_hundred_callers_cost_one_run() {
    let directory = tempfile::tempdir().unwrap();
    let count = directory.path().join("runs");
    let script = format!("echo x >> '{}'; sleep 0.2; cat '{THREE}'", count.display());
    let service = Service::with_script(&script).await;
    let asking = (0..100).map(|_| service.get("/api/v1/stanzas/main"));
    for answer in futures_util::future::join_all(asking).await {
        assert_eq!(answer.status, 200);
    }
    assert_eq!(std::fs::read_to_string(&count).unwrap().lines().count(), 1);
    let fresh = Service::request("GET", "/api/v1/stanzas/main").header("cache-control", "no-cache");
    assert_eq!(service.send(fresh.body(Body::empty()).unwrap()).await.status, 200);
    assert_eq!(std::fs::read_to_string(&count).unwrap().lines().count(), 2);
}

#[tokio::test]
async fn unchanged_answers_are_not_sent_again() {
    let service = Service::new().await;
    let first = service.get("/api/v1/stanzas/main/backups").await;
    let tag = first.header("etag").to_owned();
    assert!(tag.starts_with("W/\""), "{first:?}");
    let again =
        Service::request("GET", "/api/v1/stanzas/main/backups").header("if-none-match", &tag);
    let again = service.send(again.body(Body::empty()).unwrap()).await;
    assert_eq!((again.status.as_u16(), again.text.as_str()), (304, ""));
    let other = Service::request("GET", "/api/v1/jobs").header("if-none-match", &tag);
    assert_eq!(service.send(other.body(Body::empty()).unwrap()).await.status, 200);
}
