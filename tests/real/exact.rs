//! What comes back is what was asked for: names that exist twice, moments between two microseconds.

use std::fs;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::support::instance::Instance;
use crate::support::moments::at;
use crate::support::rows::Rows;

const POINTS: &str = "/api/v1/stanzas/main/restore-points";

fn running() -> (Instance, Rows) {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let rows = Rows::in_new_table(&instance.sql, "t");
    (instance, rows)
}

fn named(name: &str) -> Value {
    json!({ "type": "name", "value": name })
}

fn make_point(instance: &Instance, name: &str) {
    instance.http.post(POINTS, &json!({ "name": name })).expect(201);
}

/// PostgreSQL stops at the first point of a name; the one that Headrest made is meant.
#[test]
fn a_name_that_was_made_in_sql_before_is_the_one_that_headrest_made() {
    let (instance, mut rows) = running();
    rows.add(10);
    instance.sql.run("SELECT pg_create_restore_point('release')");
    rows.add(10);
    make_point(&instance, "release");
    let at_point = rows.clone();
    rows.add(10);
    instance.sql.run("SELECT pg_create_restore_point('release')");
    rows.add(10);
    let job = instance.restore_to(&named("release"), &json!({}));
    at_point.check();
    // It is known on every timeline: the same name is never made twice.
    let again = instance.http.post(POINTS, &json!({ "name": "release" }));
    assert_eq!(again.problem(409), "restore-point-exists");
    instance.undo(job["id"].as_str().unwrap());
    rows.check();
    let again = instance.http.post(POINTS, &json!({ "name": "release" }));
    assert_eq!(again.problem(409), "restore-point-exists");
}

/// The state directory was lost, and with it what Headrest knew of the first one.
#[test]
fn a_name_that_was_made_again_after_the_state_was_lost_is_the_second_one() {
    let (mut instance, mut rows) = running();
    rows.add(10);
    make_point(&instance, "release");
    rows.add(10);
    instance.stop();
    fs::remove_dir_all(instance.root.join("state")).unwrap();
    instance.start();
    instance.wait_ready();
    make_point(&instance, "release");
    let at_point = rows.clone();
    rows.add(10);
    instance.restore_to(&named("release"), &json!({}));
    at_point.check();
}

/// Two at a time: one of them makes it.
#[test]
fn a_name_is_given_once_however_many_ask_for_it() {
    let (instance, mut rows) = running();
    rows.add(1);
    let made: Vec<u16> = std::thread::scope(|scope| {
        let ask = || instance.http.post(POINTS, &json!({ "name": "once" })).status;
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|status| **status == 201).count(), 1, "{made:?}");
    assert_eq!(made.iter().filter(|status| **status == 409).count(), 7, "{made:?}");
    let log = fs::read_to_string(instance.root.join("state/log/postgres.log")).unwrap();
    assert_eq!(log.matches("restore point \"once\" created").count(), 1, "made more than once");
}

/// A commit of this very microsecond: the moment half a microsecond later has it, exclusive or not.
#[test]
fn a_moment_within_a_microsecond_keeps_the_commit_before_it() {
    let mut instance = Instance::new();
    instance.set("HEADREST_POSTGRES__ARGS", "-c listen_addresses= -c track_commit_timestamp=on");
    instance.start();
    instance.wait_ready();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let committed = instance.sql.run(
        "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM t LIMIT 1",
    );
    let committed = Timestamp::from_microsecond(committed.parse().unwrap()).unwrap();
    let then = rows.clone();
    rows.add_from(100, 10);
    let half = committed + SignedDuration::from_nanos(500);
    for (moment, exclusive, is_there) in [
        (half, true, true),
        (half, false, true),
        (committed, false, true),
        (committed, true, false),
        (committed - SignedDuration::from_nanos(500), true, false),
    ] {
        let mut target = at(moment);
        target["exclusive"] = json!(exclusive);
        instance.restore_to(&target, &json!({}));
        let count: u32 = instance.sql.run("SELECT count(*) FROM t").parse().unwrap();
        assert_eq!(count, if is_there { then.count() } else { 0 }, "{target}");
    }
}
