//! Undoing a restore: whatever was there before comes back, and nothing is ever lost on the way.

use serde_json::{Value, json};

use crate::support::client::Reply;
use crate::support::fake::Fake;
use crate::support::files;
use crate::support::instance::Instance;
use crate::support::jobs::id_of;
use crate::support::moments::at;
use crate::support::rows::Rows;
use crate::support::{PATIENCE, until};
use crate::wal::set_writable;

fn try_undo(instance: &Instance, id: &str) -> Reply {
    let body = json!({ "confirm": "main", "backup_after": false });
    instance.http.post(&format!("/api/v1/restores/{id}/undo"), &body)
}

#[test]
fn an_undo_brings_every_row_back_and_can_be_undone_itself() {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let (moment, at_moment) = (instance.sql.now(), rows.clone());
    rows.add(10);
    instance.sql.run("SELECT pg_switch_wal()");
    // Right before the restore: these are in no archive when it begins.
    rows.add(10);
    let restore = instance.restore_to(&at(moment), &json!({}));
    at_moment.check();
    let id = id_of(&restore);
    let view = instance.restore_view(id);
    assert!(view["actions"].as_array().unwrap().contains(&json!("undo")), "{view:#}");
    assert_eq!(view["undo_point"]["timeline"], 1, "{view:#}");
    for body in [json!({}), json!({ "confirm": "mian" })] {
        let reply = instance.http.post(&format!("/api/v1/restores/{id}/undo"), &body);
        assert_eq!(reply.problem(422), "confirmation-required", "{body}");
    }

    let mut others = at_moment.clone();
    others.add_from(1000, 10);
    let undo = instance.undo(id);
    rows.check();
    let view = instance.restore_view(id_of(&undo));
    assert_eq!(view["undoes"], id, "{view:#}");
    assert_eq!(view["timeline"], 1, "{view:#}");

    // What was written in between, undone and brought back in turn.
    let again = instance.undo(id_of(&undo));
    others.check();
    others.add_from(2000, 10);
    instance.undo(id_of(&again));
    rows.check();
    rows.add_from(3000, 10);
    // The first one can still be undone: that means its time before, not the present.
    let first = instance.undo(id);
    rows.up_to(30).check();
    instance.undo(id_of(&first));
    rows.check();
}

#[test]
fn rows_that_were_never_archived_come_back_by_an_undo() {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let archive = instance.root.join("repo/archive");
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let (moment, at_moment) = (instance.sql.now(), rows.clone());
    rows.add(10);
    instance.switch_wal();
    // Once it is still broken when the restore is undone, once it is mended by then.
    let mut timelines = vec![1];
    for mended in [false, true] {
        set_writable(&archive, false);
        for _ in 0..2 {
            rows.add(10);
            instance.sql.run("SELECT pg_switch_wal()");
        }
        rows.add(10);
        until("the archiver fails", PATIENCE, || {
            let failing = "SELECT last_failed_time > coalesce(last_archived_time, '-infinity') \
                           FROM pg_stat_archiver";
            (instance.sql.run(failing) == "t").then_some(())
        });
        let restore = instance.restore_to(&at(moment), &json!({}));
        at_moment.check();
        if mended {
            set_writable(&archive, true);
        }
        let undo = instance.undo(id_of(&restore));
        rows.check();
        // Of a timeline that is in no archive PostgreSQL would take the number once more.
        for job in [&restore, &undo] {
            let timeline = job["result"]["timeline"].as_u64().unwrap();
            assert!(!timelines.contains(&timeline), "{timeline} was there before: {timelines:?}");
            timelines.push(timeline);
        }
        set_writable(&archive, true);
        until("the archiver works again", PATIENCE, || {
            let working = "SELECT last_archived_time > coalesce(last_failed_time, '-infinity') \
                           FROM pg_stat_archiver";
            instance.sql.run("SELECT pg_switch_wal()");
            (instance.sql.run(working) == "t").then_some(())
        });
        rows.check();
    }
    // Everything is in order again.
    instance.good_backup("full");
    rows.add(10);
    instance.good_restore();
    rows.check();
}

#[test]
fn a_restore_that_changed_nothing_cannot_be_undone() {
    let (instance, fake) = Fake::with_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let postmaster = instance.postmaster();
    // It waits for somebody else's backup, until it is cancelled.
    let info = format!("'{}' \"$@\"", files::pgbackrest().display());
    fake.on("info", &format!("{info} | sed 's/\"held\":false/\"held\":true/g'"));
    let id = instance.begin_restore();
    instance.wait_job_until(&id, "waits", |job| job["restore"]["phase"] == "quiesced");
    let during = try_undo(&instance, &id);
    assert_eq!(during.problem(409), "nothing-to-undo");
    instance.http.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({})).expect(202);
    fake.forget("info");
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "cancelled", "{job:#}\n{}", instance.job_log(&id));
    assert_eq!(job["restore"]["phase"], "aborted", "{job:#}");

    let view = instance.restore_view(&id);
    assert_eq!(view["actions"], json!([]), "{view:#}");
    let jobs = instance.jobs().len();
    assert_eq!(try_undo(&instance, &id).problem(409), "nothing-to-undo");
    // Nor can a backup, or what never was.
    let backup = instance.jobs().into_iter().find(|job| job["kind"] == "backup").unwrap();
    for other in [id_of(&backup), "01a21390-3847-77af-aece-f19c71ca0d14"] {
        assert_eq!(try_undo(&instance, other).problem(404), "no-such-job");
    }
    assert_eq!(instance.jobs().len(), jobs, "a refused undo became a job");
    assert_eq!(instance.postmaster(), postmaster, "the server was touched");
    assert_eq!(instance.server()["fenced_by"], Value::Null);
    rows.check();
}
