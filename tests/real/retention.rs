//! Which backups stay and go, carried out by a real pgBackRest.

use std::fs;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::archive::{Damage, Damaged};
use crate::support::client::{Reply, send};
use crate::support::instance::Instance;
use crate::support::jobs::{BACKUPS, RESTORES, id_of, is_final, time};
use crate::support::moments::at;
use crate::support::rows::Rows;
use crate::support::{PATIENCE, until};

const EXPIRE: &str = "/api/v1/stanzas/main/expire";
const PREVIEW: &str = "/api/v1/stanzas/main/retention";

fn patch(instance: &Instance, label: &str, body: &Value) -> Reply {
    let path = format!("{BACKUPS}/{label}");
    send(instance.http.request(Method::PATCH, &path).json(body))
}

fn delete(instance: &Instance, label: &str, query: &str) -> Reply {
    let path = format!("{BACKUPS}/{label}{query}");
    send(instance.http.request(Method::DELETE, &path).header("Prefer", "wait=60"))
}

/// The labels that pgBackRest itself lists, oldest first.
fn labels(instance: &Instance) -> Vec<String> {
    let request = instance.http.request(Method::GET, "/api/v1/stanzas/main/info");
    let info = send(request.header("Cache-Control", "no-cache")).expect(200).json();
    let backups = info[0]["backup"].as_array().unwrap();
    backups.iter().map(|backup| backup["label"].as_str().unwrap().to_owned()).collect()
}

fn label_of(job: &Value) -> String {
    job["result"]["label"].as_str().unwrap().to_owned()
}

/// What a job says that it removed.
fn removed(job: &Value) -> Vec<String> {
    let removed = job["result"]["removed"].as_array().unwrap_or_else(|| panic!("{job:#}"));
    removed.iter().map(|one| one["label"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_pinned_backup_survives_every_expire_and_the_loss_of_the_history() {
    let mut instance = Instance::with_full_backup();
    let first = labels(&instance)[0].clone();
    let view = patch(&instance, &first, &json!({ "pinned": true })).expect(200).json();
    assert_eq!(view["pinned"], true, "{view:#}");
    // Two fulls are kept: the third backup would be the end of the first.
    let second = label_of(&instance.good_backup("full"));
    let third = label_of(&instance.good_backup("full"));
    assert_eq!(labels(&instance), [&first, &second, &third].map(String::clone));
    let preview = instance.http.get(PREVIEW).expect(200).json();
    let backups = preview["repos"][0]["backups"].as_array().unwrap();
    assert_eq!(backups[2]["label"], first.as_str());
    assert_eq!(backups[2]["reasons"], json!(["pinned"]), "{preview:#}");
    let reply = delete(&instance, &first, "");
    assert_eq!(reply.problem(409), "backup-pinned");
    let set = json!({ "set": first });
    assert_eq!(instance.http.post(EXPIRE, &set).problem(409), "backup-pinned");

    // The history is lost; the repository knows of the pin.
    instance.stop();
    for file in fs::read_dir(instance.root.join("state")).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("headrest.db") {
            fs::remove_file(file.path()).unwrap();
        }
    }
    instance.start();
    instance.wait_ready();
    let detail = instance.http.get(&format!("{BACKUPS}/{first}")).expect(200).json();
    assert_eq!(detail["pinned"], true, "{detail:#}");

    let queue = json!({ "pinned": false, "on_conflict": "queue" });
    let view = patch(&instance, &first, &queue).expect(200).json();
    assert_eq!(view["pinned"], false);
    let wait = json!({ "on_conflict": "queue" });
    let job = instance.http.post_and_wait(EXPIRE, &wait, 60).expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id_of(&job)));
    assert_eq!(removed(&job), [first]);
    assert_eq!(job["result"]["kept"], 2);
    assert_eq!(labels(&instance), [second, third]);
}

#[test]
fn a_full_goes_with_everything_that_builds_upon_it() {
    let instance = Instance::with_full_backup();
    let full = labels(&instance)[0].clone();
    let diff = label_of(&instance.good_backup("diff"));
    let incr = label_of(&instance.good_backup("incr"));
    assert_eq!(delete(&instance, &full, "").problem(409), "backup-in-use", "the last full");
    let next = label_of(&instance.good_backup("full"));
    let all = [&full, &diff, &incr, &next].map(String::clone);
    let would = delete(&instance, &full, "?dry_run=true").expect(200).json();
    let going: Vec<&str> =
        would["removes"].as_array().unwrap().iter().map(|r| r["label"].as_str().unwrap()).collect();
    assert_eq!(going, [&full, &diff, &incr]);
    let dry = json!({ "set": full, "dry_run": true });
    let dry = instance.http.post_and_wait(EXPIRE, &dry, 60).expect(200).json();
    assert_eq!((&dry["state"], &dry["result"]["dry_run"]), (&json!("succeeded"), &json!(true)));
    assert_eq!(removed(&dry).len(), 3);
    assert_eq!(labels(&instance), all, "a dry run removes nothing");
    assert_eq!(delete(&instance, "20200101-000000F", "").problem(404), "no-such-backup");
    let unknown = delete(&instance, &full, "?force=1");
    assert_eq!(
        (unknown.problem(422), &unknown.json()["field"]),
        ("invalid-field".into(), &json!("force"))
    );

    // What a restore works with stays.
    let restore = instance.begin_restore();
    let refused = delete(&instance, &next, "");
    assert_eq!(refused.problem(409), "backup-in-use");
    assert!(refused.json()["detail"].as_str().unwrap().contains(&restore), "{}", refused.body);
    let restored = instance.wait_job(&restore);
    assert_eq!(restored["state"], "succeeded", "{restored:#}");

    // Also for its undo, until it is released.
    let refused = delete(&instance, &incr, "").json();
    assert_eq!(refused["code"], "backup-in-use", "{refused:#}");
    assert!(refused["detail"].as_str().unwrap().contains(&restore), "{refused:#}");
    instance.steer(&restore, "release", &json!({})).expect(200);

    // The incr alone first, then the rest.
    let job = delete(&instance, &incr, "").expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(labels(&instance), [&full, &diff, &next].map(String::clone));
    let job = delete(&instance, &full, "").expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id_of(&job)));
    assert_eq!(removed(&job), [full, diff]);
    assert!(job["result"]["freed_bytes"].as_u64().unwrap() > 100_000, "{job:#}");
    assert_eq!(labels(&instance), [next]);
}

#[test]
fn days_and_pins_decide_and_wal_goes_with_what_needed_it() {
    let mut instance = Instance::new();
    instance.set("HEADREST_RETENTION__DAILY", "1");
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let first = labels(&instance)[0].clone();
    patch(&instance, &first, &json!({ "pinned": true })).expect(200);
    let incr = label_of(&instance.good_backup("incr"));
    let second = label_of(&instance.good_backup("full"));
    // The newest of the day is the second full; the incr was, and is not any more.
    assert_eq!(labels(&instance), [&first, &second].map(String::clone), "not {incr}");
    for _ in 0..3 {
        instance.http.post("/api/v1/stanzas/main/wal/switch", &json!({})).expect(200);
    }
    let third = label_of(&instance.good_backup("full"));
    assert_eq!(labels(&instance), [&first, &third].map(String::clone));
    let preview = instance.http.get(PREVIEW).expect(200).json();
    let repo = &preview["repos"][0];
    assert_eq!(repo["options"]["repo1-retention-full"], "9999999", "{preview:#}");
    assert_eq!((&repo["wal_fulls"], &repo["calls"]), (&json!(1), &json!([])), "{preview:#}");
    let reasons = repo["backups"][0]["reasons"].as_array().unwrap();
    assert_eq!(reasons[..2], [json!("newest backup"), json!("newest full")]);
    assert!(reasons[2].as_str().unwrap().starts_with("daily 20"), "{preview:#}");

    // The WAL between the two went, but for what makes the pinned one consistent; and that is no
    // error.
    let verify = "/api/v1/stanzas/main/verify";
    let job = instance.http.post_and_wait(verify, &json!({}), 60).expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id_of(&job)));
    assert_eq!(job["result"]["wal_expired"].as_array().unwrap().len(), 1, "{job:#}");
    assert_eq!(job["result"]["backups"], 2);
}

/// Sets a zone in which a new day begins now.
fn let_a_day_begin(instance: &mut Instance) {
    // What has just ended did so before.
    let now = jiff::Timestamp::now().as_second() + 1;
    let to_midnight = i32::try_from(86_400 - now.rem_euclid(86_400)).unwrap();
    let offset = if to_midnight > 43_200 { to_midnight - 86_400 } else { to_midnight };
    // TZif (RFC 9636), both versions of it: one kind of time, no transitions.
    let block = |version: u8| {
        let mut block = [b"TZif".as_slice(), &[version; 1], &[0; 15]].concat();
        for count in [0u32, 0, 0, 0, 1, 4] {
            block.extend(count.to_be_bytes());
        }
        block.extend(offset.to_be_bytes());
        block.extend([0, 0]);
        block.extend(b"NOW\0");
        block
    };
    let zones = instance.root.join("zones/Test");
    fs::create_dir_all(&zones).unwrap();
    fs::write(zones.join("Now"), [block(b'2'), block(b'2'), b"\n\n".to_vec()].concat()).unwrap();
    instance.set("TZDIR", instance.root.join("zones").display().to_string());
    instance.set("HEADREST_RETENTION__TIMEZONE", "Test/Now");
}

fn switch(instance: &Instance) -> String {
    let path = "/api/v1/stanzas/main/wal/switch";
    let switched = instance.http.post(path, &json!({})).expect(200).json();
    switched["segment"].as_str().unwrap().to_owned()
}

fn verify(instance: &Instance) -> Value {
    let path = "/api/v1/stanzas/main/verify";
    instance.http.post_and_wait(path, &json!({}), 90).expect(200).json()
}

#[test]
fn wal_stays_while_a_doomed_full_lies_between_two_that_stay() {
    let mut instance = Instance::with_full_backup();
    let first = labels(&instance)[0].clone();
    instance.stop();
    let_a_day_begin(&mut instance);
    instance.set("HEADREST_RETENTION__DAILY", "2");
    instance.set("PGBACKREST_EXPIRE_AUTO", "n");
    instance.start();
    instance.wait_ready();
    let segments = [switch(&instance), switch(&instance), switch(&instance)];
    let [second, third, fourth] = [(); 3].map(|()| label_of(&instance.good_backup("full")));
    let job = delete(&instance, &third, "").expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id_of(&job)));
    assert_eq!(labels(&instance), [&first, &second, &fourth].map(String::clone));
    let preview = instance.http.get(PREVIEW).expect(200).json();
    let kept = preview["repos"][0]["backups"].as_array().unwrap().iter().map(|b| &b["kept"]);
    assert_eq!(kept.collect::<Vec<_>>(), [true, false, true], "{preview:#}");
    let is_whole = |job: &Value| {
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id_of(job)));
        assert_eq!(job["result"]["wal_expired"], json!([]), "{job:#}");
    };
    is_whole(&verify(&instance));
    // And what is lost there did not go by retention.
    let damaged = Damaged::make(&instance, &segments[1], Damage::Missing);
    let job = verify(&instance);
    assert_eq!(job["error"]["code"], "wal-gap", "{job:#}");
    damaged.repair();
    let job = instance.http.post_and_wait(EXPIRE, &json!({}), 60).expect(200).json();
    assert_eq!(removed(&job), [second], "{job:#}");
    is_whole(&verify(&instance));
}

/// Headrest's own calculation, which a pin makes necessary, and pgBackRest's `expire --dry-run`.
#[test]
fn a_count_of_diffs_means_what_it_means_to_pgbackrest() {
    let mut instance = Instance::new();
    instance.set("PGBACKREST_EXPIRE_AUTO", "n");
    instance.set("PGBACKREST_REPO1_RETENTION_DIFF", "1");
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let full = labels(&instance)[0].clone();
    let [incr, first, upon, second] =
        ["incr", "diff", "incr", "diff"].map(|kind| label_of(&instance.good_backup(kind)));
    let dry = json!({ "dry_run": true });
    let job = instance.http.post_and_wait(EXPIRE, &dry, 60).expect(200).json();
    let log = instance.job_log(id_of(&job));
    let says = |label: &String| {
        let mut lines = log.lines().filter(|line| line.contains("remove expired backup"));
        lines.any(|line| line.trim_end().ends_with(label.as_str()))
    };
    let all = [&full, &incr, &first, &upon, &second].map(String::clone);
    let gone: Vec<String> = all.iter().filter(|label| says(label)).cloned().collect();
    assert_eq!(gone, [&first, &upon].map(String::clone), "{log}");
    patch(&instance, &second, &json!({ "pinned": true, "on_conflict": "queue" })).expect(200);
    let wait = json!({ "on_conflict": "queue" });
    let job = instance.http.post_and_wait(EXPIRE, &wait, 60).expect(200).json();
    assert_eq!(removed(&job), gone, "{job:#}");
    assert_eq!(labels(&instance), [full, incr, second]);
}

#[test]
fn a_limit_of_wal_that_is_set_for_backup_alone_counts() {
    let mut instance = Instance::new();
    let options = "[global:backup]\nrepo1-retention-archive=1\n";
    fs::write(instance.root.join("pgbackrest.conf"), options).unwrap();
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    for _ in 0..3 {
        switch(&instance);
    }
    instance.good_backup("full");
    let job = verify(&instance);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id_of(&job)));
    assert_eq!(job["result"]["wal_expired"].as_array().unwrap().len(), 1, "{job:#}");
}

#[test]
fn annotations_are_added_replaced_and_removed() {
    let instance = Instance::with_full_backup();
    let label = labels(&instance)[0].clone();
    let change = json!({ "annotations": { "ticket": "OPS-1", "why": "before --force; x = 'y'" } });
    let view = patch(&instance, &label, &change).expect(200).json();
    assert_eq!(view["annotations"], change["annotations"], "{view:#}");
    let change = json!({ "annotations": { "ticket": "OPS-2", "why": null } });
    patch(&instance, &label, &change).expect(200);
    // pgBackRest itself says the same.
    let info = instance.http.get("/api/v1/stanzas/main/info").expect(200).json();
    assert_eq!(info[0]["backup"][0]["annotation"], json!({ "ticket": "OPS-2" }), "{info:#}");
    for bad in [json!({ "headrest-pin": "x" }), json!({ "a b": null }), json!({ "a": "x\ny" })] {
        let reply = patch(&instance, &label, &json!({ "annotations": bad }));
        assert_eq!(reply.problem(422), "invalid-field", "{bad}");
        assert_eq!(reply.json()["field"], "annotations");
    }
    let other = patch(&instance, "20200101-000000F", &json!({ "pinned": true }));
    assert_eq!(other.problem(404), "no-such-backup");
}

/// Restores with every default, and answers the job with the label of the full that follows it.
fn restore_and_back_up(instance: &Instance, moment: Timestamp) -> (Value, String) {
    let request = json!({ "target": at(moment), "confirm": "main" });
    let restore = instance.http.post_and_wait(RESTORES, &request, 120).expect(200).json();
    assert_eq!(restore["state"], "succeeded", "{restore:#}");
    let begun = time(&restore["created_at"]);
    let full = until("the full after the restore and what follows it have ended", PATIENCE, || {
        let jobs = instance.jobs();
        let over = jobs.iter().all(is_final);
        let later = |job: &&Value| job["kind"] == "backup" && time(&job["created_at"]) > begun;
        jobs.iter().find(later).filter(|_| over).cloned()
    });
    assert_eq!(full["state"], "succeeded", "{full:#}");
    (restore, label_of(&full))
}

#[test]
fn two_restores_in_a_row_leave_everything_before_the_first_restorable() {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let first = labels(&instance)[0].clone();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let early = instance.sql.now();
    rows.add(10);
    let (late, at_late) = (instance.sql.now(), rows.clone());
    rows.add(10);

    // Each queues a full, and two fulls are kept by default.
    let (one, second) = restore_and_back_up(&instance, early);
    let (two, third) = restore_and_back_up(&instance, early);
    assert_eq!(labels(&instance), [&first, &second, &third].map(String::clone));
    let preview = instance.http.get(PREVIEW).expect(200).json();
    let reason = preview["repos"][0]["backups"][2]["reasons"].to_string();
    assert!(reason.contains(&format!("for the undo of restore {} until", id_of(&two))), "{reason}");
    assert_eq!(delete(&instance, &first, "").problem(409), "backup-in-use");
    let plan = instance.plan(&at(early), &json!({}));
    assert_eq!(plan["full_afterwards"]["removes"], json!([]), "{plan:#}");
    assert!(plan["full_afterwards"]["kept_until"].is_string(), "{plan:#}");

    // What was there before the first one can still be reached, and its undo brings back everything.
    instance.restore_to(&at(late), &json!({}));
    at_late.check();
    instance.undo(id_of(&one));
    rows.check_later();

    // Once all are released two are kept, as it is configured.
    for restore in instance.jobs().iter().filter(|job| job["kind"] == "restore") {
        let id = id_of(restore);
        let can_be_released = |view: &Value| {
            let actions = view["actions"].as_array().unwrap();
            assert_eq!(actions.contains(&json!("release")), view["kept_until"].is_string());
            view["kept_until"].is_string()
        };
        assert!(can_be_released(&instance.restore_view(id)));
        for _ in 0..2 {
            let view = instance.steer(id, "release", &json!({})).expect(200).json();
            assert!(!can_be_released(&view), "{view:#}");
        }
    }
    let preview = instance.http.get(PREVIEW).expect(200).json();
    assert_eq!(preview["repos"][0]["calls"][0]["removes"], json!([first]), "{preview:#}");
    let page = instance.http.get("/").expect(200).body;
    assert!(
        page.contains(&format!("After a full, retention removes {first}, {second}.")),
        "{page}"
    );
    let job = instance.http.post_and_wait(EXPIRE, &json!({}), 60).expect(200).json();
    assert_eq!(removed(&job), [first]);
}

#[test]
fn without_after_restore_retention_decides_alone() {
    let mut instance = Instance::new();
    instance.set("HEADREST_RETENTION__AFTER_RESTORE", "0s");
    instance.start();
    instance.wait_ready();
    instance.wait_restorable(&instance.wait_first_backup());
    let first = labels(&instance)[0].clone();
    let second = label_of(&instance.good_backup("full"));
    let moment = instance.sql.now();
    instance.sql.run("SELECT pg_current_xact_id()");
    let plan = instance.plan(&at(moment), &json!({}));
    let removes = json!([{ "label": first, "repo": 1 }]);
    assert_eq!(plan["full_afterwards"]["removes"], removes, "{plan:#}");
    assert_eq!(plan["full_afterwards"]["kept_until"], Value::Null, "{plan:#}");
    let (_, third) = restore_and_back_up(&instance, moment);
    assert_eq!(labels(&instance), [second, third]);
}
