//! What can be restored to: the window follows the archive, and tells what is missing of it.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::files::walk;
use crate::support::instance::Instance;
use crate::support::jobs::{RESTORES, id_of, time};
use crate::support::moments::{at, checks, request};
use crate::support::rows::Rows;
use crate::support::{PATIENCE, SOON, until};
use crate::wal::set_writable;

const WAL: &str = "/api/v1/stanzas/main/wal";
const POINTS: &str = "/api/v1/stanzas/main/restore-points";

/// The window of a timeline.
#[track_caller]
fn on_timeline(window: &Value, timeline: u32) -> Value {
    let mut all = window["windows"].as_array().unwrap().iter();
    let found = all.find(|of| of["timeline"] == timeline);
    found.unwrap_or_else(|| panic!("no timeline {timeline} in {window:#}")).clone()
}

/// A segment's file in the archive.
fn archived(instance: &Instance, segment: &str) -> Option<PathBuf> {
    let mut files = walk(&instance.root.join("repo/archive")).into_iter();
    files.find(|path| path.file_name().unwrap().to_string_lossy().starts_with(segment))
}

#[test]
fn the_window_begins_after_the_first_backup_and_ends_with_the_archive() {
    let instance = Instance::beating();
    let backup = instance.wait_first_backup();
    instance.wait_restorable(&backup);
    let window = instance.window();
    assert_eq!(time(&window["from"]), Instance::first_moment(&backup), "{window:#}");
    assert_eq!(window["continuous"], true, "{window:#}");
    assert_eq!(window["windows"].as_array().unwrap().len(), 1, "{window:#}");
    let only = on_timeline(&window, 1);
    assert_eq!((&only["current"], &only["repo"]), (&json!(true), &json!(1)), "{window:#}");
    assert_eq!(only["gaps"], json!([]), "{window:#}");

    let mut rows = Rows::in_new_table(&instance.sql, "t");
    let first = time(&window["to"]);
    rows.add(10);
    let (moment, at_moment) = (instance.sql.now(), rows.clone());
    rows.add(10);
    assert!(time(&instance.window()["to"]) < moment, "what is not archived counts");
    instance.switch_wal();
    rows.add(10);
    let later = instance.sql.now();
    instance.switch_wal();
    let window = instance.window();
    let last = time(&window["to"]);
    assert!(last > first && last >= later, "{first}, {later}: {window:#}");
    assert!(last <= instance.sql.now(), "{last} is in the future");
    assert_eq!(time(&window["from"]), Instance::first_moment(&backup), "{window:#}");
    // Any moment in it can be had.
    instance.restore_to(&at(moment), &json!({}));
    at_moment.check();

    // Both timelines are there, each as far as it reaches.
    instance.switch_wal();
    let window = instance.window();
    let (old, new) = (on_timeline(&window, 1), on_timeline(&window, 2));
    assert_eq!((&old["current"], &new["current"]), (&json!(false), &json!(true)), "{window:#}");
    for of in [&old, &new] {
        assert_eq!(time(&of["from"]), Instance::first_moment(&backup), "{window:#}");
        assert_eq!(of["gaps"], json!([]), "{window:#}");
        assert_eq!(of["ranges"].as_array().unwrap().len(), 1, "{window:#}");
    }
    assert!(time(&old["to"]) >= last, "the old timeline lost its end: {window:#}");
    assert!(time(&new["to"]) > time(&old["to"]), "{window:#}");
    assert_eq!((&window["from"], &window["to"]), (&new["from"], &new["to"]), "{window:#}");
}

#[test]
fn a_missing_segment_cuts_the_window() {
    let instance = Instance::beating();
    let first = instance.wait_first_backup();
    instance.wait_restorable(&first);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    let mut next = || {
        rows.add(10);
        let before = instance.sql.now();
        let segment = instance.switch_wal();
        (segment, before, instance.sql.now())
    };
    let (whole, missing, after) = (next(), next(), next());
    let second = instance.good_backup("full");
    instance.wait_restorable(&second);
    next();
    let until_now = time(&instance.window()["to"]);

    let file = archived(&instance, &missing.0).expect("the segment in the archive");
    let aside = instance.root.join("aside");
    fs::rename(&file, &aside).unwrap();
    let window = instance.window();
    assert_eq!(window["continuous"], false, "{window:#}");
    let of = on_timeline(&window, 1);
    let gap = json!([{ "first": missing.0, "last": missing.0, "segments": 1 }]);
    assert_eq!(of["gaps"], gap, "{window:#}");
    let ranges = of["ranges"].as_array().unwrap();
    assert_eq!(ranges.len(), 2, "{window:#}");
    assert_eq!(time(&ranges[0]["from"]), Instance::first_moment(&first), "{window:#}");
    let end = time(&ranges[0]["to"]);
    assert!(whole.1 <= end && end <= whole.2, "{} to {}: {window:#}", whole.1, whole.2);
    assert_eq!(time(&ranges[1]["from"]), Instance::first_moment(&second), "{window:#}");
    assert!(time(&ranges[1]["to"]) >= until_now, "{window:#}");

    let wal = instance.http.get(WAL).expect(200).json();
    let ranges = wal["archives"][0]["ranges"].as_array().unwrap();
    assert_eq!(ranges.len(), 2, "{wal:#}");
    assert_eq!((&ranges[0]["last"], &ranges[1]["first"]), (&json!(whole.0), &json!(after.0)));

    // What is before and after it can be had; what is in it cannot.
    for reachable in [whole.1, time(&window["to"])] {
        let plan = instance.plan(&at(reachable), &json!({}));
        assert_eq!(plan["refused"], false, "{plan:#}");
    }
    let plan = instance.plan(&at(after.1), &json!({}));
    assert_eq!(plan["refused"], true, "{plan:#}");
    assert_eq!(plan["wal"]["gaps"], gap, "{plan:#}");
    let reply = instance.http.post(RESTORES, &request(&at(after.1), &json!({})));
    assert_eq!(reply.problem(409), "restore-refused");
    assert_eq!(checks(&reply.json(), "fail"), ["wal-gap"], "{}", reply.body);

    fs::rename(&aside, &file).unwrap();
    let window = instance.window();
    assert_eq!(window["continuous"], true, "{window:#}");
    assert_eq!(on_timeline(&window, 1)["gaps"], json!([]), "{window:#}");
    rows.check();
}

#[test]
fn the_wal_and_its_archive_are_told() {
    let instance = Instance::with_full_backup();
    let state = || instance.http.get(WAL).expect(200).json();
    // The archive is what was seen when the window was.
    let fresh = || {
        instance.window();
        state()
    };
    let wal = fresh();
    assert_eq!(wal["position"]["timeline"], 1, "{wal:#}");
    assert_eq!(wal["segment_bytes"], 16 << 20, "{wal:#}");
    assert_eq!(wal["archiver"]["failing"], false, "{wal:#}");
    let lsn = wal["position"]["lsn"].as_str().unwrap().to_owned();
    let behind = format!("SELECT pg_current_wal_insert_lsn() >= '{lsn}'");
    assert_eq!(instance.sql.run(&behind), "t", "{wal:#}");

    Rows::in_new_table(&instance.sql, "t").add(10);
    let segment = instance.switch_wal();
    assert!(archived(&instance, &segment).is_some(), "{segment} is not in the archive");
    let wal = fresh();
    assert_eq!(wal["backlog"], json!({ "count": 0, "first": null, "last": null }), "{wal:#}");
    assert_eq!(wal["archiver"]["last_archived_wal"], segment, "{wal:#}");
    let (archive, ranges) = (&wal["archives"][0], wal["archives"][0]["ranges"].as_array().unwrap());
    assert_eq!((&archive["repo"], &archive["timeline"]), (&json!(1), &json!(1)), "{wal:#}");
    assert_eq!(archive["parent"], Value::Null, "{wal:#}");
    assert_eq!(ranges.len(), 1, "{wal:#}");
    assert_eq!(ranges[0]["last"], segment, "{wal:#}");

    // What waits to be archived, in order.
    let directory = instance.root.join("repo/archive");
    set_writable(&directory, false);
    let switch = "SELECT pg_walfile_name(pg_switch_wal())";
    let mut waiting = Vec::new();
    for id in 100..102 {
        instance.sql.run(&format!("INSERT INTO t VALUES ({id})"));
        waiting.push(instance.sql.run(switch));
    }
    let wal = until("the archiver fails", PATIENCE, || {
        Some(state()).filter(|wal| wal["archiver"]["failing"] == true)
    });
    let backlog = json!({ "count": 2, "first": waiting[0], "last": waiting[1] });
    assert_eq!(wal["backlog"], backlog, "{wal:#}");
    assert_eq!(wal["archiver"]["last_failed_wal"], waiting[0], "{wal:#}");
    set_writable(&directory, true);
    until("everything is archived", PATIENCE, || (state()["backlog"]["count"] == 0).then_some(()));

    // Of a server that is down only its files can be told.
    instance.stop_server();
    let wal = state();
    assert_eq!((&wal["position"], &wal["archiver"]), (&Value::Null, &Value::Null), "{wal:#}");
    let switch = instance.http.post(&format!("{WAL}/switch"), &json!({}));
    assert_eq!(switch.problem(503), "postgres-unavailable");
    let point = instance.http.post(POINTS, &json!({ "name": "down" }));
    assert_eq!(point.problem(503), "postgres-unavailable");
}

#[test]
fn restore_points_are_listed_newest_first_and_each_name_is_there_once() {
    let instance = Instance::with_full_backup();
    assert_eq!(instance.http.get(POINTS).expect(200).json()["items"], json!([]));
    let mut made = Vec::new();
    for name in ["before-release", "x_1.2:3", &"n".repeat(63)] {
        let before = instance.sql.now();
        let point = instance.http.post(POINTS, &json!({ "name": name })).expect(201).json();
        assert_eq!((&point["name"], &point["timeline"]), (&json!(name), &json!(1)), "{point:#}");
        assert!(time(&point["at"]) >= before, "{point:#}");
        made.insert(0, point);
    }
    let known = || instance.http.get(POINTS).expect(200).json()["items"].clone();
    assert_eq!(known(), json!(made));
    let again = instance.http.post(POINTS, &json!({ "name": "before-release" }));
    assert_eq!(again.problem(409), "restore-point-exists");
    for bad in ["", "a b", "é", &"n".repeat(64)] {
        let reply = instance.http.post(POINTS, &json!({ "name": bad }));
        assert_eq!(reply.problem(422), "invalid-field", "{bad}");
        assert_eq!(reply.json()["field"], "name");
    }
    assert_eq!(known(), json!(made));
}

#[test]
fn a_single_database_can_be_restored_and_the_others_are_told_to_be_lost() {
    let instance = Instance::with_full_backup();
    let sql = &instance.sql;
    let run = |database: &str, statement: &str| {
        sql.attempt_in(database, statement).unwrap_or_else(|error| panic!("{statement}: {error}"))
    };
    for database in ["shop", "blog"] {
        sql.run(&format!("CREATE DATABASE {database}"));
        run(database, "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    }
    instance.good_backup("full");
    for database in ["shop", "blog"] {
        run(database, "INSERT INTO t SELECT generate_series(11, 20)");
    }
    let count = "SELECT count(*) FROM t";
    let latest = json!({ "type": "latest" });

    let jobs = instance.jobs().len();
    for unknown in ["nosuch", "postgres"] {
        let databases = json!({ "databases": ["shop", unknown] });
        let plan = instance.plan(&latest, &databases);
        assert_eq!(plan["refused"], true, "{plan:#}");
        let reply = instance.http.post(RESTORES, &request(&latest, &databases));
        assert_eq!(reply.problem(409), "restore-refused");
        assert_eq!(checks(&reply.json(), "fail"), ["databases"], "{}", reply.body);
    }
    assert_eq!(instance.jobs().len(), jobs, "a refused restore became a job");

    let only = json!({ "databases": ["shop"] });
    let plan = instance.plan(&latest, &only);
    assert_eq!(plan["refused"], false, "{plan:#}");
    let all = plan["checks"].as_array().unwrap();
    let check = all.iter().find(|check| check["id"] == "databases").expect("the check");
    assert_eq!(check["verdict"], "warn", "{check:#}");
    let detail = check["detail"].as_str().unwrap();
    let (_, lost) = detail.rsplit_once(": ").unwrap();
    assert_eq!(lost, "blog", "{detail}");

    let job = instance.restore_to(&latest, &only);
    let view = instance.restore_view(id_of(&job));
    assert_eq!(view["databases"], json!(["shop"]), "{view:#}");
    assert_eq!(run("shop", count), "20");
    assert!(sql.attempt_in("blog", count).is_err(), "a database that was left out answers");
    // As it is told: it must be dropped. Everything else goes on.
    sql.run("DROP DATABASE blog");
    run("shop", "INSERT INTO t VALUES (21)");
    instance.good_backup("full");
    instance.good_restore();
    assert_eq!(run("shop", count), "21");

    // And the undo of the first brings the whole of it back.
    instance.undo(id_of(&job));
    for database in ["shop", "blog"] {
        assert_eq!(run(database, count), "20", "{database}");
    }
    until("it takes writes", SOON, || {
        sql.attempt_in("blog", "INSERT INTO t VALUES (22)").is_ok().then_some(())
    });

    // So does giving one up while it waits.
    let moment = sql.now();
    run("blog", "INSERT INTO t VALUES (23)");
    let more = json!({ "databases": ["shop"], "on_reached": "pause" });
    let id = instance.begin_restore_to(&at(moment), &more);
    instance.wait_at(&id, moment);
    instance.steer(&id, "abandon", &json!({ "confirm": "main" })).expect(202);
    assert_eq!(instance.wait_job(&id)["state"], "cancelled");
    instance.wait_ready();
    assert_eq!(run("blog", count), "22");
}
