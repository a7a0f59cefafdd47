//! One job of a stanza at a time.

use std::sync::{Arc, Barrier};
use std::thread;

use serde_json::json;

use crate::interrupted::{slow_backups, wait_workers};
use crate::support::instance::Instance;
use crate::support::jobs::{BACKUPS, accepted, id_of, is_final, time};
use crate::support::rows::Rows;

#[test]
fn of_two_requests_at_once_one_is_taken_and_the_other_learns_by_which_job() {
    let instance = Instance::with_full_backup();
    let barrier = Arc::new(Barrier::new(2));
    let askers: Vec<_> = (0..2)
        .map(|_| {
            let (http, barrier) = (instance.http.clone(), Arc::clone(&barrier));
            thread::spawn(move || {
                barrier.wait();
                http.post(BACKUPS, &json!({ "type": "incr" }))
            })
        })
        .collect();
    let mut replies: Vec<_> = askers.into_iter().map(|asker| asker.join().unwrap()).collect();
    replies.sort_by_key(|reply| reply.status);
    let [taken, refused] = replies.try_into().unwrap();
    let id = accepted(&taken);
    assert_eq!(refused.problem(409), "lane-busy");
    let job = refused.json()["job"].clone();
    assert!(job.to_string().contains(&id), "{job} does not name {id}");

    // Who can wait, waits, in order.
    let queue = |kind: &str| {
        let body = json!({ "type": kind, "on_conflict": "queue" });
        accepted(&instance.http.post(BACKUPS, &body))
    };
    let (second, third) = (queue("incr"), queue("diff"));
    let waiting = instance.job(&third);
    assert!(["queued", "running"].contains(&waiting["state"].as_str().unwrap()), "{waiting}");
    let ends = [&id, &second, &third].map(|id| {
        let job = instance.wait_job(id);
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id));
        (time(&job["started_at"]), time(&job["finished_at"]))
    });
    assert!(ends[0].1 <= ends[1].0 && ends[1].1 <= ends[2].0, "they overlap: {ends:?}");
}

#[test]
fn a_restore_does_not_wait_for_a_backup_but_ends_it() {
    let mut instance = Instance::new();
    slow_backups(&mut instance);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    let backup = instance.begin_backup("full");
    wait_workers(&instance);
    let restore = instance.good_restore();
    rows.check();
    let backup = instance.job(&backup);
    assert_eq!(backup["state"], "cancelled", "{backup:#}");
    assert!(
        time(&backup["finished_at"]) <= time(&restore["started_at"]),
        "both at once: {backup:#} {restore:#}"
    );
    instance.good_backup("full");
}

/// While it restores, nothing else gets the lane, and it cannot be cancelled half way.
#[test]
fn a_restore_gives_way_to_nothing() {
    let instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    let id = instance.begin_restore();
    let backup = instance.http.post(BACKUPS, &json!({ "type": "full" }));
    assert_eq!(backup.problem(409), "lane-busy");
    let second = instance.http.post(crate::support::jobs::RESTORES, &Instance::restore_request());
    assert_eq!(second.problem(409), "lane-busy");
    instance.wait_job_until(&id, "replaces files", |job| {
        ["restoring", "restored", "recovering"]
            .contains(&job["restore"]["phase"].as_str().unwrap_or(""))
            || is_final(job)
    });
    let cancel = instance.http.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({}));
    assert_eq!(cancel.status, 409, "{}", cancel.body);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    instance.wait_ready();
    rows.check();
}

/// Cancelled before anything was changed, the server goes on as before.
#[test]
fn a_restore_cancelled_in_time_changes_nothing() {
    let mut instance = Instance::new();
    slow_backups(&mut instance);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    // It waits for a backup, so it can be cancelled for sure.
    let backup = instance.begin_backup("full");
    wait_workers(&instance);
    let mut body = Instance::restore_request();
    body["on_conflict"] = "queue".into();
    let restore = accepted(&instance.http.post(crate::support::jobs::RESTORES, &body));
    let cancelled = instance.http.post(&format!("/api/v1/jobs/{restore}/cancel"), &json!({}));
    assert_eq!(cancelled.expect(202).json()["state"], "cancelled");
    let backup = instance.wait_job(&backup);
    assert_eq!(backup["state"], "succeeded", "{backup:#}");
    assert_eq!(id_of(&instance.jobs()[0]), restore);
    assert_eq!(instance.job(&restore)["started_at"], serde_json::Value::Null);
    instance.wait_ready();
    rows.check();
}
