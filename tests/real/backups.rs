//! What a backup is asked for with, and what comes of it.

use std::thread;

use reqwest::Method;
use serde_json::{Value, json};

use crate::interrupted::slow_backups;
use crate::support::client::{Reply, send};
use crate::support::instance::Instance;
use crate::support::jobs::{BACKUPS, accepted, id_of, is_final};
use crate::support::rows::Rows;
use crate::support::{PATIENCE, until};

#[test]
fn annotations_come_back_with_the_backup() {
    let instance = Instance::with_full_backup();
    let notes = json!({ "ticket": "OPS-42", "why": "before --force; rm -rf / = \"x\" 'y' %p äöü" });
    let job = instance.backup(&json!({ "type": "incr", "annotations": notes }));
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id_of(&job)));
    let label = job["result"]["label"].as_str().unwrap();
    for path in [format!("{BACKUPS}/{label}"), format!("{BACKUPS}/latest")] {
        let detail = instance.http.get(&path).expect(200).json();
        assert_eq!(detail["label"], label);
        assert_eq!(detail["annotations"], notes, "{detail:#}");
        assert_eq!(detail["type"], "incr");
    }
    // And pgBackRest itself says the same: its own answer, untouched.
    let info = instance.http.get("/api/v1/stanzas/main/info").expect(200).json();
    let backups = info[0]["backup"].as_array().unwrap();
    assert_eq!(backups.last().unwrap()["annotation"], notes, "{info:#}");
    for bad in [json!({ "a b": "x" }), json!({ "a": "two\nlines" }), json!({ "a": "" })] {
        let reply = instance.http.post(BACKUPS, &json!({ "type": "incr", "annotations": bad }));
        assert_eq!(reply.problem(422), "invalid-field", "{bad}");
        assert_eq!(reply.json()["field"], "annotations");
    }
}

#[test]
fn lists_and_details_show_what_builds_upon_what() {
    let instance = Instance::with_full_backup();
    let full = instance.http.get(&format!("{BACKUPS}/latest")).expect(200).json();
    Rows::in_new_table(&instance.sql, "t").add(1000);
    let diff = instance.good_backup("diff")["result"].clone();
    let incr = instance.good_backup("incr")["result"].clone();
    let list = instance.http.get(BACKUPS).expect(200).json();
    let labels: Vec<_> = list["items"].as_array().unwrap().iter().map(|b| &b["label"]).collect();
    assert_eq!(labels, [&incr["label"], &diff["label"], &full["label"]]);
    let detail = |label: &Value| {
        let path = format!("{BACKUPS}/{}", label.as_str().unwrap());
        instance.http.get(&path).expect(200).json()
    };
    assert_eq!(detail(&full["label"])["needed_by"], json!([diff["label"], incr["label"]]));
    assert_eq!(detail(&incr["label"])["needs"], json!([full["label"], diff["label"]]));
    let databases = detail(&incr["label"])["databases"].clone();
    assert!(databases.to_string().contains("\"postgres\""), "{databases}");
    let only = instance.http.get(&format!("{BACKUPS}?type=diff")).expect(200).json();
    assert_eq!(only["items"].as_array().unwrap().len(), 1);
    assert_eq!(
        instance.http.get(&format!("{BACKUPS}/20200101-000000F")).problem(404),
        "no-such-backup"
    );
}

fn with_key(instance: &Instance, key: &str, body: &Value) -> Reply {
    let request = instance.http.request(Method::POST, BACKUPS).json(body);
    send(request.header("Idempotency-Key", key))
}

#[test]
fn the_same_key_again_makes_no_second_backup() {
    let mut instance = Instance::with_full_backup();
    let body = json!({ "type": "incr" });
    let first = with_key(&instance, "monday", &body);
    let id = accepted(&first);
    let again = with_key(&instance, "monday", &body);
    assert_eq!(accepted(&again), id);
    assert_eq!(again.body, first.body, "not the same answer");
    let other = with_key(&instance, "monday", &json!({ "type": "full" }));
    assert_eq!(other.problem(422), "idempotency-mismatch");
    assert_eq!(instance.wait_job(&id)["state"], "succeeded");
    // Also after a crash.
    instance.kill();
    instance.start();
    assert_eq!(accepted(&with_key(&instance, "monday", &body)), id);
    let backups = instance.jobs().iter().filter(|job| job["kind"] == "backup").count();
    assert_eq!(backups, 2, "the first start's and ours");
    // At once from many sides: one job.
    let askers: Vec<_> = (0..5)
        .map(|_| {
            let http = instance.http.clone();
            thread::spawn(move || {
                let request = http.request(Method::POST, BACKUPS).json(&json!({ "type": "incr" }));
                send(request.header("Idempotency-Key", "tuesday")).status
            })
        })
        .collect();
    for asker in askers {
        let status = asker.join().unwrap();
        assert!(status == 202 || status == 409, "{status}");
    }
    let backups = instance.jobs().iter().filter(|job| job["kind"] == "backup").count();
    assert_eq!(backups, 3);
}

#[test]
fn a_diff_without_a_full_becomes_one_and_says_so() {
    let mut instance = Instance::new();
    slow_backups(&mut instance);
    instance.start();
    instance.wait_ready();
    // The first full is ended, so that there is none.
    let first = until("the first backup runs", PATIENCE, || {
        let mut jobs = instance.jobs().into_iter();
        jobs.find(|job| job["kind"] == "backup" && job["state"] == "running")
    });
    let cancel = format!("/api/v1/jobs/{}/cancel", id_of(&first));
    instance.http.post(&cancel, &json!({})).expect(202);
    assert_eq!(instance.wait_job(id_of(&first))["state"], "cancelled");

    let job = instance.backup(&json!({ "type": "diff" }));
    assert_eq!(job["state"], "warned", "{job:#}\n{}", instance.job_log(id_of(&job)));
    assert_eq!(job["result"]["type"], "full", "{job:#}");
    assert!(job["result"]["label"].as_str().unwrap().ends_with('F'));
    assert_eq!(job["error"]["code"], "became-full", "{job:#}");
    let next = instance.good_backup("diff");
    assert!(is_final(&next));
}

/// `Prefer: wait` answers with the job as it stands when the time is over.
#[test]
fn progress_is_seen_while_a_backup_runs() {
    let mut instance = Instance::new();
    slow_backups(&mut instance);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let reply = instance.http.post_and_wait(BACKUPS, &json!({ "type": "full" }), 1);
    let id = accepted(&reply);
    let mut seen = Vec::new();
    let job = instance.wait_job_until(&id, "ends", is_final);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let second = instance.begin_backup("full");
    instance.wait_job_until(&second, "ends", |job| {
        seen.push(job["progress"]["percent"].as_f64());
        is_final(job)
    });
    let known: Vec<f64> = seen.into_iter().flatten().collect();
    assert!(known.iter().any(|percent| (1.0..99.0).contains(percent)), "{known:?}");
    assert!(known.is_sorted(), "progress goes back: {known:?}");
}
